"""The report of `plan memory`: one layout, its memory, and its time where that is modelled."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.reports import body
from planner.reports.blocks import Block, Command, Heading, Report, Text
from planner.reports.ranks import rank_blocks
from planner.reports.rows import memory_rows
from planner.reports.sections import (
    assumptions,
    detail_blocks,
    memory_blocks,
    placed,
    step_blocks,
    understood,
)
from planner.reports.variations_report import variations_blocks, variations_body
from planner.reports.words import gpus_words, layout_line

if TYPE_CHECKING:
    from planner.layout import Layout
    from planner.memory.report import MemoryReport
    from planner.question import Question
    from planner.timing.report import StepTime
    from planner.variations import Variations


def memory_report(
    question: Question,
    layout: Layout,
    memory: MemoryReport,
    step: StepTime | None,
    detail: bool = False,
    ranks: list[dict[str, Any]] | None = None,
    next_command: str = "",
    variations: Variations | None = None,
) -> Report:
    """The report of a given layout. Without `step` there is no time: the data says null. `variations`: the same
    layout with one thing changed."""
    data = {
        "version": body.VERSION,
        "inputs": body.inputs(question),
        "layout": body.layout(layout, question.workload.global_batch, question.cluster),
        "memory": body.memory(memory, detail, ranks),
        "step": body.step(step) if step else None,
        **variations_body(variations),
    }
    title = f"Memory of {question.model.name} on {gpus_words(question.cluster)}"
    blocks: list[Block] = [
        Text(title, "title"),
        understood(question, memory.capacity_bytes),
        Text(layout_line(layout, question.workload.global_batch), "title"),
        *placed(layout, question.cluster),
        *memory_blocks(memory),
    ]
    if detail:
        blocks += detail_blocks(memory)
    blocks += variations_blocks(variations, memory)
    if ranks is not None:
        blocks += rank_blocks(ranks)
    if step:
        blocks += step_blocks(step)
    blocks += assumptions(question, memory.assumptions, step.assumptions if step else ())
    if next_command:
        blocks += [Heading("Next"), Command("the best layout of all", next_command)]
    return Report(title, data, tuple(blocks), memory_rows(memory, detail, ranks))
