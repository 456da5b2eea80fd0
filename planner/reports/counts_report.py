"""The numbers of GPUs that were judged for `--objective gpus|cost`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.reports.blocks import Block, Heading, Table, Text
from planner.reports.search_report import Section
from planner.units import seconds

if TYPE_CHECKING:
    from planner.capacity.counts import Count, Counted

VERDICT = {
    "optimal": "fits, proved fastest",
    "feasible": "fits",
    "infeasible": "proved not to fit",
    "unknown": "not settled in time",
    "failed": "failed",
}


def counts_section(found: Counted) -> Section:
    """What `--objective gpus` and `--objective cost` add to a search."""

    def count(c: Count) -> dict[str, Any]:
        return {
            "gpus": c.gpus,
            "status": c.outcome.word,
            "step_seconds": c.outcome.plan.step.seconds if c.outcome.plan else None,
            "gpu_seconds_per_token": c.gpu_seconds_per_token,
            "cost_per_million_tokens": c.cost_per_million_tokens,
        }

    return Section("counts", [count(c) for c in found.counts], tuple(_blocks(found)))


def _blocks(found: Counted) -> list[Block]:
    money = f"{found.currency or 'cost'} per M tokens"
    rows = tuple(
        (
            f"{c.gpus:,}",
            VERDICT[c.outcome.word] + (f": {c.outcome.error}" if c.outcome.error else ""),
            seconds(c.outcome.plan.step.seconds) if c.outcome.plan else "",
            "" if c.gpu_seconds_per_token is None else f"{c.gpu_seconds_per_token * 1e6:,.1f}",
            *((("" if c.cost_per_million_tokens is None else f"{c.cost_per_million_tokens:,.4f}"),) * found.priced),
        )
        for c in found.counts
    )
    marked = next((i for i, c in enumerate(found.counts) if c.gpus == found.gpus), None)
    columns = ("GPUs", "<verdict", "step", "GPU-seconds per M tokens", *((money,) * found.priced))
    note = (
        f"Judged, up to the {found.given:,} GPUs given: the even shares of a node, then whole nodes; without failures, "
        "restarts and checkpoints."
    )
    return [Heading("Numbers of GPUs"), Table(columns, rows, marked=marked), Text(note, "quiet")]
