"""Every GPU of a layout: where it is, and what it holds (`--per-rank`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from planner.reports.blocks import Block, Heading, Table
from planner.units import gib

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.layout import Layout
    from planner.memory.report import MemoryReport


def rank_entries(report: MemoryReport, layout: Layout, cluster: Cluster) -> list[dict[str, Any]]:
    """The contract's `ranks`: one entry for each GPU, in rank order."""
    from planner.topology import place_ranks

    totals = [stage.total_bytes for stage in report.stages]
    mixed = any(stage.card for stage in report.stages)
    return [
        {
            "rank": p.rank,
            "node": p.node,
            "gpu": p.gpu,
            "tp": p.tp,
            "cp": p.cp,
            "dp": p.dp,
            "pp": p.pp,
            "ep": p.ep,
            "stage": p.pp,
            "total_bytes": totals[p.pp],
            **({"card": p.card} if mixed else {}),
        }
        for p in place_ranks(layout, cluster)
    ]


def rank_blocks(entries: list[dict[str, Any]]) -> Iterator[Block]:
    """The same as a table."""
    names = ("rank", "node", "gpu", "tp", "cp", "dp", "pp", "ep")
    card = ("card",) if "card" in entries[0] else ()
    rows = tuple((*(str(e[name]) for name in (*names, *card)), gib(e["total_bytes"])) for e in entries)
    yield Heading("Every GPU")
    yield Table((*names, *(f"<{name}" for name in card), "total GiB"), rows)
