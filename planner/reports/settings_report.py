"""What `--allow` let the search use, and what each combination would give."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.reports.blocks import Block, Heading, Items, Table, Text
from planner.reports.search_report import Section
from planner.reports.words import margin_words
from planner.solver.result import Status
from planner.units import gib, seconds

if TYPE_CHECKING:
    from planner.solver.allowed import Tried

VERDICT = {
    Status.OPTIMAL: "proved",
    Status.FEASIBLE: "fits",
    Status.INFEASIBLE: "proved not to fit",
    Status.UNKNOWN: "not settled in time",
}


def settings_section(tried: tuple[Tried, ...], chosen: Tried) -> Section:
    """What `--allow` adds to a search."""
    return Section("settings", [_data(t, chosen) for t in tried], tuple(_blocks(tried, chosen)))


def _peak_bytes(t: Tried) -> int | None:
    plan = t.result.plans[0] if t.result and t.result.plans else None
    return max(stage.total_bytes for stage in plan.memory.stages) if plan else None


def _data(t: Tried, chosen: Tried) -> dict[str, Any]:
    return {
        "uses": list(t.setting.uses),
        "chosen": t is chosen,
        "status": "refused" if t.refused or t.result is None else str(t.result.status),
        "reason": t.refused or None,
        "step_seconds": t.step_ns / 1e9 if t.step_ns is not None else None,
        "lower_bound_seconds": t.result.lower_bound if t.result else None,
        "peak_bytes": _peak_bytes(t),
    }


def _blocks(tried: tuple[Tried, ...], chosen: Tried) -> list[Block]:
    least = chosen.step_ns

    def behind(t: Tried) -> str:
        if t is chosen or t.step_ns is None or least is None:
            return ""
        return margin_words(t.step_ns / least - 1)

    rows = []
    for t in tried:
        peak = _peak_bytes(t)
        rows.append(
            (
                ", ".join(t.setting.uses) or "the defaults",
                "not possible" if t.refused or t.result is None else VERDICT[t.result.status],
                seconds(t.step_ns / 1e9) if t.step_ns is not None else "",
                behind(t),
                gib(peak) if peak is not None else "",
            )
        )
    table = Table(
        ("<uses", "<verdict", "step", "behind", "peak GiB"),
        tuple(rows),
        marked=tried.index(chosen) if least is not None else None,
    )
    note = "Each combination of what --allow names was searched."
    if least is not None:
        note += " The best layouts above are those of the marked one."
    refused = tuple(f"{', '.join(t.setting.uses)}: {t.refused}" for t in tried if t.refused)
    return [Heading("What was allowed"), table, *([Items(refused)] if refused else []), Text(note, "quiet")]
