"""What a launch makes of a plan whose stages recompute different numbers of layers: Megatron has one number for all."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.reports.blocks import Text
from planner.reports.search_report import Section
from planner.reports.words import margin_words
from planner.units import seconds, size

if TYPE_CHECKING:
    from planner.question import Question
    from planner.solver.result import Plan


def one_count_section(question: Question, plan: Plan) -> Section | None:
    """The time and the memory of the chosen layout as Megatron can launch it; None where that is the plan itself."""
    if len(set(plan.layout.recompute.stage_layers)) < 2:
        return None
    from planner.question import accounting_of
    from planner.timing.step import Timing

    layout = replace(plan.layout, recompute=plan.layout.recompute.with_one_count)
    step = Timing(question.model, question.workload, question.implementation, question.cluster).step(layout)
    memory = accounting_of(question).report(layout)
    peak = memory.peak_stage.total_bytes
    number = layout.recompute.num_layers
    sentence = (
        "Megatron-LM recomputes one number of layers on all stages, this plan a number of each: "
        f"with {number} on each, as --flags writes it, a step takes {seconds(step.seconds)} "
        f"({margin_words(step.seconds / plan.step.seconds - 1)}) and the fullest GPU holds {size(peak)}."
    )
    data = {"recompute_num_layers": number, "step_seconds": step.seconds, "peak_bytes": peak, "fits": memory.fits}
    return Section("with_one_recompute_count", data, (Text(sentence, "quiet"),))
