"""Layouts as options: from a command line to a layout, and back to a command line that names it."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal

from planner.commands.finer import named_modules
from planner.commands.placed import placed, stated
from planner.errors import InputError, RuleBroken
from planner.question import Question
from planner.units import plural

if TYPE_CHECKING:
    from planner.layout import Layout, Recompute, Stage
    from planner.model import Model
    from planner.solver.space import Pins


def given_layout(question: Question, options: dict[str, Any]) -> tuple[Question, Layout]:
    """The layout in the options, with Megatron's defaults and dp from the number of GPUs; and the question with a batch
    that it divides. Raises RuleBroken with the rule's sentence and id."""
    from planner import rules
    from planner.layout import Layout

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
        hsdp_replicas=one("hsdp_replicas", 1),
        micro_batch=one("micro_batch", 1),
        sequence_parallel=tp > 1 if parallel is None else parallel,
        recompute=given_recompute(options, pp),
    )
    question = fill_batch(question, layout)
    cluster = question.cluster
    rules.check(question.model, question.workload, question.implementation, layout, cluster.gpus, cluster)
    try:
        split, assumed = given_split(question.model, counts, pp, vpp)
    except RuleBroken as broken:
        raise RuleBroken(f"{broken} [pipeline-split]", broken.rules) from None
    if assumed:
        question = replace(question, defaults=(*question.defaults, assumed))
    layout = replace(layout, stages=split)
    if beyond := more_than_a_chunk(layout):
        question = replace(question, defaults=(*question.defaults, beyond))
    question = replace(question, defaults=(*question.defaults, *without_effect(options, layout)))
    rules.check(question.model, question.workload, question.implementation, layout, cluster.gpus, cluster)
    layout, chosen = placed(question, layout, options.get("placement"))
    if chosen:
        question = replace(question, defaults=(*question.defaults, chosen))
    return question, layout


def given_split(
    model: Model, counts: Sequence[int] | Sequence[Sequence[int]] | None, pp: int, vpp: int
) -> tuple[tuple[Stage, ...], str]:
    """The stage split, and what was assumed where none was given and the layers do not divide."""
    from planner.stages import balanced_split, even_split, layout_string, split_from_counts

    if counts:
        return split_from_counts(model, counts), ""
    if model.num_layers % (pp * vpp) == 0:
        return even_split(model, pp, vpp), ""
    split = balanced_split(model, pp, vpp)
    return split, (
        f"stage split {layout_string(split)}: {model.num_layers} layers do not divide over {pp * vpp} chunks, "
        "so the embedding and the loss count as a layer each (--stage-layers gives another split)"
    )


def given_recompute(options: dict[str, Any], pp: int) -> Recompute:
    """What is recomputed: nothing, the named modules, every layer, layers in groups, or the first of each chunk."""
    from planner.layout import FULL, NO_RECOMPUTE, OPERATIONS, SELECTIVE, Recompute
    from planner.rules import states

    granularity = options["recompute"][0] if options["recompute"] else "none"
    modules, layers = options["recompute_modules"], options["recompute_layers"]
    for name, value, needed in (("modules", modules, "selective"), ("layers", layers, "full")):
        if value is not None and granularity != needed:
            raise InputError(f"--recompute-{name} needs --recompute {needed}, but it is {granularity}.")
    method, number = options.get("recompute_method"), options.get("recompute_num_layers")
    distribute = bool(options.get("distribute_saved_activations"))
    wholly = {"recompute-method": method, "recompute-num-layers": number, "distribute-saved-activations": distribute}
    for name, value in wholly.items():
        if value and granularity != "full":
            raise InputError(f"--{name} needs --recompute full, but it is {granularity}.")
        if value and layers is not None:
            raise InputError(f"--{name} and --recompute-layers exclude each other: give one of them.")
    if modules is not None:
        return Recompute("selective", named_modules("--recompute-modules", modules, (*states.MODULES, OPERATIONS)))
    if any(wholly.values()):
        kind: Literal["uniform", "block"] = "block" if method == "block" else "uniform"
        return Recompute("full", method=kind, num_layers=number or 1, distribute_saved_activations=distribute)
    if layers is None:
        return {"none": NO_RECOMPUTE, "selective": SELECTIVE, "full": FULL}[granularity]
    if len(layers) != pp or isinstance(layers[0], tuple):
        raise InputError(f"--recompute-layers must name one number for each of {pp} stages, but names {len(layers)}.")
    return Recompute("full", method="block", num_layers=None, stage_layers=layers)


def without_effect(options: dict[str, Any], layout: Layout) -> Iterator[str]:
    """What was asked for and means nothing to this layout."""
    if (framework := options.get("sharded_by")) and layout.zero < 2:
        instead = "Megatron's distributed optimizer shards there" if layout.zero else "nothing is sharded there"
        yield f"--sharded-by {framework} has no effect at ZeRO {layout.zero}: {instead}"
    if (exchange := options.get("cp_comm_type")) and layout.cp == 1:
        yield f"--cp-comm-type {exchange} has no effect at CP 1"


def more_than_a_chunk(layout: Layout) -> str:
    """What a number of recomputed layers means that no chunk has; Megatron takes it and stops at a chunk's end
    (megatron/core/transformer/transformer_block.py: _checkpointed_forward)."""
    number, method = layout.recompute.num_layers, layout.recompute.method
    most = max(chunk.num_layers for stage in layout.stages for chunk in stage)
    if layout.recompute.granularity != "full" or layout.recompute.stage_layers or (number or 1) <= most:
        return ""
    meant = "every layer is recomputed" if method == "block" else "each chunk is one group"
    return f"recompute-num-layers {number}: no chunk of a stage has more than {plural(most, 'layer')}, so {meant}"


def pins(options: dict[str, Any]) -> Pins:
    """What the user fixed or restricted; the stage split fixes pp and vpp as well."""
    from planner.solver.space import Pins

    names = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "zero", "hsdp_replicas", "micro_batch", "recompute")
    given = {name: options[name] for name in names}
    counts = options["stage_layers"]
    if counts:
        implied = {"pp": len(counts), "vpp": len(counts[0]) if isinstance(counts[0], tuple) else 1}
        for name, value in implied.items():
            if given[name] is not None and value not in given[name]:
                allowed = ", ".join(map(str, given[name]))
                raise RuleBroken(f"--stage-layers means {name} {value}, but --{name} allows {allowed}.")
            given[name] = (value,)
    parallel = options["sequence_parallel"]
    return Pins(
        **given,
        sequence_parallel=None if parallel is None else (parallel,),
        stage_layers=counts,
        placement=stated(options.get("placement"), options.get("gpus") or options.get("cluster")),
    )


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


def layout_arguments(layout: Layout) -> str:
    """The options of `plan memory` that name this layout."""
    arguments = [f"--tp {layout.tp}"]
    arguments += [
        f"--{name} {getattr(layout, name)}" for name in ("cp", "pp", "vpp", "ep") if getattr(layout, name) > 1
    ]
    if layout.ep > 1 or layout.etp > 1:
        arguments.append(f"--etp {layout.etp}")
    arguments.append(f"--zero {layout.zero}")
    if layout.hsdp_replicas > 1:
        arguments.append(f"--hsdp-replicas {layout.hsdp_replicas}")
    arguments.append(f"--micro-batch {layout.micro_batch}")
    if layout.recompute.granularity != "none":
        arguments.append(f"--recompute {layout.recompute.granularity}")
    if layout.recompute.granularity == "selective":
        arguments.append("--recompute-modules " + ",".join(layout.recompute.modules))
    if layout.recompute.method == "block" and not layout.recompute.stage_layers:
        arguments.append("--recompute-method block")
    if layout.recompute.granularity == "full" and (layout.recompute.num_layers or 1) > 1:
        arguments.append(f"--recompute-num-layers {layout.recompute.num_layers}")
    if layout.recompute.distribute_saved_activations:
        arguments.append("--distribute-saved-activations")
    if layout.recompute.stage_layers:
        arguments.append("--recompute-layers " + ",".join(map(str, layout.recompute.stage_layers)))
    if layout.tp > 1 and not layout.sequence_parallel:
        arguments.append("--no-sequence-parallel")
    if len({tuple(chunk.num_layers for chunk in stage) for stage in layout.stages}) > 1 or layout.vpp > 1:
        split = [",".join(str(chunk.num_layers) for chunk in stage) for stage in layout.stages]
        arguments.append("--stage-layers " + shlex.quote(("/" if layout.vpp > 1 else ",").join(split)))
    return " ".join(arguments)
