"""`plan memory`: per-rank memory of one given layout; no search."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.commands import words
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
from planner.commands.question import Question, ask
from planner.commands.types import StageLayers
from planner.errors import InputError, NotModelled, RuleBroken

if TYPE_CHECKING:
    from planner.layout import Layout, Recompute
    from planner.timing.report import StepTime


@click.command(short_help="Memory of one given layout, no search.")
@model_option()
@hardware_options()
@layout_options(many=False, free="[each degree is 1, dp what the GPUs leave]")
@click.option(
    "--recompute-modules",
    metavar="NAME,...",
    help="With --recompute selective: core_attn, layernorm, mlp, moe, moe_act, ... [core_attn]",
)
@click.option(
    "--recompute-layers",
    type=StageLayers(),
    metavar="N,N,...",
    help="With --recompute full: the first N layers of each chunk of each stage. [all]",
)
@workload_options()
@accounting_options()
@click.option("--detail", is_flag=True, help="What each stage is made of, piece by piece and term by term.")
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
    from planner.memory.accounting import make_accounting
    from planner.reports.memory_report import memory_report
    from planner.reports.ranks import rank_entries

    format = choose_format(format, output)
    question = ask(options)
    question, layout = given_layout(question, options)
    if flags:
        emit_flags(flags, question, layout, format, output)
        return 0
    cluster = question.cluster
    accounting = make_accounting(
        question.accounting, question.model, question.workload, question.implementation, cluster, question.reserve_bytes
    )
    report = accounting.report(layout, detail=detail)
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
        ),
        format,
        output,
    )
    return 0


def given_layout(question: Question, options: dict[str, Any]) -> tuple[Question, Layout]:
    """The layout in the options, with Megatron's defaults and dp from the number of GPUs; and the question with a batch
    that it divides. Raises RuleBroken with the rule's sentence and id."""
    from planner import rules
    from planner.layout import Layout
    from planner.stages import even_split, split_from_counts

    def one(name: str, default: int) -> int:
        return int(options[name][0]) if options[name] else default

    counts = options["stage_layers"]
    virtual = len(counts[0]) if counts and isinstance(counts[0], tuple) else 1
    tp, cp = one("tp", 1), one("cp", 1)
    pp, vpp = one("pp", len(counts) if counts else 1), one("vpp", virtual)
    if counts and (pp, vpp) != (len(counts), virtual):
        raise RuleBroken(
            f"--stage-layers must name pp x vpp = {pp} x {vpp} counts, but names {len(counts)} x {virtual}."
        )
    parallel = options["sequence_parallel"]
    layout = Layout(
        tp=tp,
        cp=cp,
        pp=pp,
        vpp=vpp,
        ep=one("ep", 1),
        # megatron/training/arguments.py: expert_tensor_parallel_size follows the tensor-parallel size.
        etp=one("etp", tp if question.model.is_moe else 1),
        dp=one("dp", max(1, question.cluster.gpus // (tp * cp * pp))),
        zero=one("zero", 1),
        micro_batch=one("micro_batch", 1),
        sequence_parallel=tp > 1 if parallel is None else parallel,
        recompute=given_recompute(options, pp),
    )
    question = fill_batch(question, layout)
    cluster = question.cluster
    rules.check(question.model, question.workload, question.implementation, layout, cluster.gpus, cluster)
    try:
        split = split_from_counts(question.model, counts) if counts else even_split(question.model, pp, vpp)
    except RuleBroken as broken:
        hint = "" if counts else " --stage-layers gives an uneven split."
        raise RuleBroken(f"{broken}{hint} [pipeline-split]") from None
    layout = replace(layout, stages=split)
    rules.check(question.model, question.workload, question.implementation, layout, cluster.gpus, cluster)
    return question, layout


def given_recompute(options: dict[str, Any], pp: int) -> Recompute:
    """What is recomputed: nothing, the named modules, every layer, or the first layers of each chunk of each stage."""
    from planner.layout import FULL, NO_RECOMPUTE, SELECTIVE, Recompute

    granularity = options["recompute"][0] if options["recompute"] else "none"
    modules, layers = options["recompute_modules"], options["recompute_layers"]
    for name, value, needed in (("modules", modules, "selective"), ("layers", layers, "full")):
        if value is not None and granularity != needed:
            raise InputError(f"--recompute-{name} needs --recompute {needed}, but it is {granularity}.")
    if modules is not None:
        return Recompute("selective", tuple(sorted({name.strip() for name in modules.split(",")})))
    if layers is None:
        return {"none": NO_RECOMPUTE, "selective": SELECTIVE, "full": FULL}[granularity]
    if len(layers) != pp or isinstance(layers[0], tuple):
        raise InputError(f"--recompute-layers must name one number for each of {pp} stages, but names {len(layers)}.")
    return Recompute("full", method="block", num_layers=None, stage_layers=layers)


def fill_batch(question: Question, layout: Layout) -> Question:
    """A batch that was left out is rounded up to one that the layout divides."""
    share = layout.micro_batch * layout.dp
    batch = -(-question.workload.global_batch // share) * share
    if question.batch_given or batch == question.workload.global_batch:
        return question
    stated = tuple(line for line in question.defaults if not line.startswith("global batch"))
    return replace(
        question,
        workload=replace(question.workload, global_batch=batch),
        defaults=(*stated, f"global batch {batch} sequences: the nearest to 4 million tokens that the layout divides"),
    )


def step_time(question: Question, layout: Layout) -> StepTime | None:
    """The step's time, or None where memory is modelled and time is not."""
    from planner.timing.step import Timing

    try:
        return Timing(question.model, question.workload, question.implementation, question.cluster).step(layout)
    except NotModelled as reason:
        click.echo(f"Warning: no step time: {reason}", err=True)
        return None
