"""The flat rows of a layout's memory, for a spreadsheet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from planner.memory.form import COMPONENTS

if TYPE_CHECKING:
    from planner.memory.report import MemoryReport, StageMemory


Row = Mapping[str, Any]


def memory_rows(
    report: MemoryReport,
    detail: bool = False,
    ranks: Sequence[Row] | None = None,
    beside: Row = MappingProxyType({}),
) -> list[dict[str, Any]]:
    """A row for each stage, in bytes; with `detail` one for each term that is alive at a stage's peak, where the
    accounting has terms; with `ranks` (`rank_entries`) the rows of its stage for every GPU. `beside` stands first in
    each."""
    held = (_term_rows(s) if detail and s.terms else [_stage_row(s)] for s in report.stages)
    stages = [[{**beside, **row} for row in rows] for rows in held]
    if ranks is None:
        return [row for rows in stages for row in rows]
    return [{**rank, **row} for rank in ranks for row in stages[rank["stage"]]]


def _stage_row(s: StageMemory) -> dict[str, Any]:
    return {
        "stage": s.stage,
        **({"card": s.card} if s.card else {}),
        "ranks": s.ranks,
        "layers": s.layers,
        "parameters": s.parameters,
        "in_flight_microbatches": float(s.in_flight_microbatches),
        **{f"{part}_bytes": s.components[part] for part in COMPONENTS},
        "allocated_bytes": s.allocated_bytes,
        "total_bytes": s.total_bytes,
        "capacity_bytes": s.capacity_bytes,
        "headroom_bytes": s.headroom_bytes,
        "fits": s.fits,
        "rule_of_thumb_bytes": s.rule_of_thumb_bytes,
    }


def _term_rows(s: StageMemory) -> list[dict[str, Any]]:
    return [
        {
            "stage": s.stage,
            **({"card": s.card} if s.card else {}),
            "component": component,
            "term": name,
            "bytes": amount,
            "certainty": certainty,
        }
        for component, name, amount, certainty in s.terms
    ]
