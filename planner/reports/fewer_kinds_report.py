"""A mixed cluster beside what is left of it without each kind of nodes: which cards pay for themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.reports.blocks import Block, Heading, Table, Text
from planner.reports.objective_words import signed
from planner.reports.search_report import Section
from planner.reports.words import degrees_words, gpus_words
from planner.units import percent, seconds

if TYPE_CHECKING:
    from planner.question import Question
    from planner.solver.fewer_kinds import Without
    from planner.solver.result import Plan


def fewer_kinds_section(question: Question, best: Plan, rows: tuple[Without, ...]) -> Section:
    """What a search on several kinds of GPUs adds; `best` is its chosen plan."""
    return Section("without", [_data(row) for row in rows], tuple(_blocks(question, best, rows)))


def _data(row: Without) -> dict[str, Any]:
    plan = row.result.plans[0] if row.result.plans else None
    return {
        "without": row.label,
        "gpus": row.cluster.gpus,
        "status": str(row.result.status),
        "step_seconds": plan.step.seconds if plan else None,
        "changed": list(row.changed),
    }


def _blocks(question: Question, best: Plan, rows: tuple[Without, ...]) -> list[Block]:
    faster = [row for row in rows if row.result.plans and row.result.plans[0].step.seconds < best.step.seconds]
    blocks: list[Block] = [Heading("Whether each kind of GPU pays for itself, at the same batch")]
    for row in faster:
        plan = row.result.plans[0]
        gained = 1 - plan.step.seconds / best.step.seconds
        with_others = f", with {' and '.join(row.changed)}," if row.changed else ""
        sentence = (
            f"Faster without {row.label}: {gpus_words(row.cluster)} alone{with_others} take "
            f"{seconds(plan.step.seconds)} a step, {percent(gained)} less than all together."
        )
        blocks.append(Text(sentence, "bad"))
    table = [("all", f"{question.cluster.gpus:,}", degrees_words(best.layout), seconds(best.step.seconds), "")]
    for row in rows:
        first = row.result.plans[0] if row.result.plans else None
        table.append(
            (
                f"without {row.label}",
                f"{row.cluster.gpus:,}",
                degrees_words(first.layout) if first else _NOTHING[str(row.result.status)],
                seconds(first.step.seconds) if first else "",
                signed(first.step.seconds / best.step.seconds - 1) if first else "",
            )
        )
    blocks.append(Table(("<", "GPUs", "<best degrees", "step", "change"), tuple(table), marked=0))
    return blocks


_NOTHING = {"infeasible": "none fits", "unknown": "none found in time"}
