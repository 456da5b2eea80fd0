"""`plan memory`: per-rank memory of one given layout; no search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.commands import words
from planner.commands.finer import finer_options, with_finer_choices
from planner.commands.layouts import given_layout
from planner.commands.options import (
    accounting_options,
    flags_option,
    hardware_options,
    layout_options,
    model_option,
    output_options,
    workload_options,
)
from planner.commands.output import choose_format, emit, emit_flags
from planner.commands.placed import placement_option
from planner.errors import NotModelled
from planner.question import Question, accounting_of, ask

if TYPE_CHECKING:
    from planner.layout import Layout
    from planner.timing.report import StepTime
    from planner.variations import Variations


@click.command(short_help="Memory of one given layout, no search.")
@model_option()
@hardware_options()
@layout_options(many=False, free="[each degree is 1, etp is tp, dp what the GPUs leave]")
@placement_option()
@finer_options()
@workload_options()
@accounting_options()
@click.option(
    "--detail",
    is_flag=True,
    help="What each stage is made of, term by term; of one layout also what each change makes.",
)
@click.option("--per-rank", is_flag=True, help="One entry for every GPU: where it is and what it holds.")
@click.option("--time", is_flag=True, help="The predicted step time too.")
@flags_option()
@output_options()
@click.pass_context
def memory(
    ctx: click.Context,
    format: str | None,
    output: Path | None,
    detail: bool,
    per_rank: bool,
    time: bool,
    flags: str | None,
    **options: Any,
) -> int:
    """Memory of every pipeline stage of one layout; with --time its predicted step time.

    The layout must keep the rules (`plan rules`). One that is legal but does not fit is a report like any other.

    \b
    Example:
      plan memory --model 13b --gpus 8xA100-80G --tp 2 --pp 2 --recompute selective
    """
    from planner.reports.memory_report import memory_report
    from planner.reports.ranks import rank_entries
    from planner.reports.sections import peak_words

    format = choose_format(format, None if flags else output)  # arguments go into any file
    question = with_finer_choices(ask(options), options)
    question, layout = given_layout(question, options)
    cluster = question.cluster
    accounting = accounting_of(question)
    if flags:
        emit_flags(flags, question, layout, format, output)
        report = accounting.report(layout)
        if not report.fits:
            verdict = peak_words(report)
            click.echo(f"Note: {verdict[0].lower()}{verdict[1:]}", err=True)
        return 0
    report = accounting.report(layout, detail=detail)
    around: Variations | None = None
    if detail:
        from planner.variations import variations  # imports the model of time

        around = variations(question, accounting, layout)
    again = f"plan {words.typed(ctx, (*words.QUESTION, *words.WORKLOAD, *words.ACCOUNTING))}"
    emit(
        memory_report(
            question,
            layout,
            report,
            step_time(question, layout) if time else None,
            detail,
            rank_entries(report, layout, cluster) if per_rank else None,
            again,
            around,
        ),
        format,
        output,
    )
    return 0


def step_time(question: Question, layout: Layout) -> StepTime | None:
    """The step's time, or None where memory is modelled and time is not."""
    from planner.timing.step import Timing

    try:
        return Timing(question.model, question.workload, question.implementation, question.cluster).step(layout)
    except NotModelled as reason:
        click.echo(f"Warning: no step time: {reason}", err=True)
        return None
