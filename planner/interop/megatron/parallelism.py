"""Megatron arguments and the number of GPUs to a Layout.

What makes a layout illegal is for `planner.rules` to say; here every layout that can be written down is built, and only
what stands in the way of that is reported as a problem.

Sources: megatron/training/arguments.py: validate_args; megatron/core/transformer/transformer_config.py: __post_init__
(recompute); megatron/core/transformer/transformer_block.py: get_num_layers_to_build.
"""

from __future__ import annotations

import math
from dataclasses import replace

from planner.errors import InputError, RuleBroken
from planner.interop.megatron.architecture import positive
from planner.interop.megatron.computation import choose, sharded_framework
from planner.interop.megatron.parse import Arguments, readable
from planner.interop.megatron.partition import DEFAULT, by_type
from planner.interop.megatron.problem import Problem
from planner.layout import NO_RECOMPUTE, Granularity, Layout, Recompute, Stage
from planner.model import Model
from planner.stages import balanced_split, split_from_layout_string, uneven_split

MAX_DEGREE = 1_000_000

_SHARDING = {"no_shard": 0, "optim": 1, "optim_grads": 2, "optim_grads_params": 3}


def build_layout(args: Arguments, source: str, model: Model, world_size: int | None, problems: list[Problem]) -> Layout:
    """The layout of a launch on `world_size` GPUs; without it the data-parallel size is the smallest possible.

    Where the GPUs do not divide, dp is rounded down (at least 1): the rule on the world size then says so.
    """
    tp = _degree(args, "tensor-model-parallel-size", source)
    pp = 1 if args.flag("no-pipeline-parallel") else _degree(args, "pipeline-model-parallel-size", source)
    # Megatron-DeepSpeed's Ulysses is context parallelism by all-to-all
    cp = _degree(args, "ds-sequence-parallel-size" if args.under_deepspeed else "context-parallel-size", source)
    ep = _degree(args, "expert-model-parallel-size", source, args.get("moe-expert-parallel-size", 1))
    etp = _degree(args, "expert-tensor-parallel-size", source, tp) if model.is_moe else 1
    if world_size is None:
        dp = math.lcm(tp * cp, ep * etp) // (tp * cp)
    else:
        dp = max(1, world_size // (tp * pp * cp))
    vpp = _virtual_stages(args, source, model, pp, problems)
    zero = _zero(args, source)
    return Layout(
        tp=tp,
        cp=cp,
        pp=pp,
        vpp=vpp,
        ep=ep,
        etp=etp,
        dp=dp,
        zero=zero,
        micro_batch=positive(args, "micro-batch-size", source),
        # Megatron switches sequence parallelism off where there is no tensor parallelism.
        sequence_parallel=args.flag("sequence-parallel") and tp > 1,
        recompute=_recompute(args, source, problems),
        stages=_stages(args, source, model, pp, vpp, problems),
        hsdp_replicas=_replicas(args, source, zero),
    )


def _degree(args: Arguments, name: str, source: str, default: int = 1) -> int:
    value = positive(args, name, source, default)
    if value > MAX_DEGREE:
        raise InputError(f"{source}: --{name} must be at most {MAX_DEGREE}, but was given {value}.")
    return value


def _virtual_stages(args: Arguments, source: str, model: Model, pp: int, problems: list[Problem]) -> int:
    """Virtual chunks of each stage, from whichever of three arguments says so."""
    layout = args.get("pipeline-model-parallel-layout")
    named = [
        name
        for name in (
            "num-layers-per-virtual-pipeline-stage",
            "num-virtual-stages-per-pipeline-rank",
            "pipeline-model-parallel-layout",
        )
        if name in args
    ]
    if len(named) > 1:
        problems.append(
            Problem(
                "one-virtual-pipeline-argument",
                "Only one of num-layers-per-virtual-pipeline-stage, num-virtual-stages-per-pipeline-rank and "
                "pipeline-model-parallel-layout may be given",
                "megatron/training/arguments.py: validate_args",
                ", ".join(f"--{name} {args.get(name)}" for name in named),
            )
        )
    if layout is not None:
        # The parts are counted on the split itself; a string that cannot be read is a problem of the stages.
        try:
            return len(split_from_layout_string(model, _plain(layout), pp)[0])
        except InputError:
            return 1
    if "num-virtual-stages-per-pipeline-rank" in args:
        return _degree(args, "num-virtual-stages-per-pipeline-rank", source)
    if "num-layers-per-virtual-pipeline-stage" not in args:
        return 1
    per_chunk = positive(args, "num-layers-per-virtual-pipeline-stage", source)
    counted = model.num_layers
    counted += args.flag("account-for-embedding-in-pipeline-split") + args.flag("account-for-loss-in-pipeline-split")
    per_stage = counted // pp
    if per_stage % per_chunk or per_stage < per_chunk:
        problems.append(
            Problem(
                "virtual-stage-divides-stage",
                "The layers of a pipeline stage must be divisible by the layers of a virtual stage",
                "megatron/training/arguments.py: validate_args",
                f"layers per stage = {per_stage}, num-layers-per-virtual-pipeline-stage = {per_chunk}",
            )
        )
    return max(1, per_stage // per_chunk)


def _plain(layout: str) -> str:
    """The layout string without the backslashes that YAML files keep for a later shell."""
    return layout.replace("\\", "")


def _stages(
    args: Arguments, source: str, model: Model, pp: int, vpp: int, problems: list[Problem]
) -> tuple[Stage, ...]:
    """The stage split; where the launch has no legal one, the reason is a problem and a balanced split is assumed."""
    layout = args.get("pipeline-model-parallel-layout")
    by_deepspeed = args.under_deepspeed and pp > 1 and vpp == 1 and layout is None
    try:
        if by_deepspeed:
            return deepspeed_stages(args, source, model, pp)
        if layout is not None:
            return split_from_layout_string(model, _plain(layout), pp)
        return uneven_split(
            model,
            pp,
            vpp,
            first=args.get("decoder-first-pipeline-num-layers"),
            last=args.get("decoder-last-pipeline-num-layers"),
            account_for_embedding=args.flag("account-for-embedding-in-pipeline-split"),
            account_for_loss=args.flag("account-for-loss-in-pipeline-split"),
        )
    except InputError as error:
        if by_deepspeed and not isinstance(error, RuleBroken):
            raise
        file = "megatron/core/transformer/pipeline_parallel_layer_layout.py: validate_layer_layout"
        if by_deepspeed:
            file = "deepspeed/runtime/pipe/module.py: PipelineModule._partition_layers"
        elif layout is None:
            file = "megatron/core/transformer/transformer_block.py: get_num_layers_to_build"
        given = f"num_layers = {model.num_layers}, pp = {pp}, vpp = {vpp}"
        stages = _assumed_stages(model, pp, vpp)
        if stages:
            given += "; the report assumes stages of " + ", ".join(
                str(sum(chunk.num_layers for chunk in stage)) for stage in stages[:16]
            )
            given += ", ..." if len(stages) > 16 else ""
        problems.append(Problem("stage-split", str(error).rstrip("."), file, given))
        return stages


def _assumed_stages(model: Model, pp: int, vpp: int) -> tuple[Stage, ...]:
    """A split that the report can go on with where the launch has no legal one; empty where there is none at all."""
    try:
        return balanced_split(model, pp, vpp)
    except InputError:
        return ()


def _zero(args: Arguments, source: str) -> int:
    """What is sharded over data parallelism. Megatron-FSDP shards all three unless it is told otherwise. DeepSpeed's
    pipeline runs bf16 with an optimizer that shards its states whatever the stage (deepspeed/runtime/engine.py:
    _do_optimizer_sanity_check; bf16_optimizer.py: _setup_for_real_optimizer)."""
    if args.flag("use-megatron-fsdp") or args.flag("use-custom-fsdp"):
        return choose(args, "data-parallel-sharding-strategy", _SHARDING, "optim_grads_params", source)
    if args.flag("use-torch-fsdp2"):
        return 2 if args.flag("torch-fsdp2-no-reshard-after-forward") else 3
    stage = args.get("zero-stage", 0)
    if not 0 <= stage <= 3:
        raise InputError(f"{source}: --zero-stage must be from 0 to 3, but was given {stage}.")
    deepspeed = args.under_deepspeed
    if deepspeed and stage == 0 and args.flag("bf16") and not args.flag("no-pipeline-parallel"):
        args.not_accounted.append("--zero-stage 0: with --bf16 DeepSpeed's pipeline shards optimizer states as stage 1")
        return 1
    # validate_args: dist_muon is muon under the layer-wise distributed optimizer
    return max(stage, int(args.flag("use-distributed-optimizer") or args.get("optimizer") == "dist_muon"))


def _replicas(args: Arguments, source: str, zero: int) -> int:
    """Groups that replicate one another's shards: Megatron-FSDP's. Torch FSDP2's mesh is all of data parallelism
    (megatron/core/distributed/torch_fully_sharded_data_parallel.py: TorchFullyShardedDataParallel.__init__)."""
    instances = positive(args, "num-distributed-optimizer-instances", source, 1)
    if zero < 2 or instances == 1:
        return 1
    if sharded_framework(args) == "fsdp2":
        args.not_accounted.append(
            f"--num-distributed-optimizer-instances {instances}: has no effect with --use-torch-fsdp2, "
            "which shards over all of data parallelism"
        )
        return 1
    return instances


def _recompute(args: Arguments, source: str, problems: list[Problem]) -> Recompute:
    """The recomputed activations. Full recompute without a number of layers takes all layers of a chunk as one."""
    granularity = _granularity(args, source)
    if args.flag("checkpoint-activations") and granularity is None:
        layers = positive(args, "checkpoint-num-layers", source, 1)
        return Recompute("full", num_layers=layers, distribute_saved_activations=_distributed(args))
    if args.flag("moe-layer-recompute") and granularity is None:
        granularity = "selective"
    if granularity is None:
        return replace(NO_RECOMPUTE, distribute_saved_activations=args.flag("distribute-saved-activations"))
    if granularity == "selective":
        modules = set(args.get("recompute-modules", ["core_attn"]))
        if args.flag("moe-layer-recompute"):
            modules.add("moe")
        distributed = args.flag("distribute-saved-activations")
        return Recompute("selective", tuple(sorted(modules)), distribute_saved_activations=distributed)
    missing = [name for name in ("recompute-method", "recompute-num-layers") if name not in args]
    if missing:
        problems.append(
            Problem(
                "full-recompute-complete",
                "Full recompute needs a recompute-method (uniform or block) and a recompute-num-layers",
                "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__",
                "absent: " + ", ".join(missing),
            )
        )
    block = choose(args, "recompute-method", {"uniform": False, "block": True}, "uniform", source)
    number = positive(args, "recompute-num-layers", source) if "recompute-num-layers" in args else None
    return Recompute(
        "full",
        method="block" if block else "uniform",
        num_layers=number,
        distribute_saved_activations=_distributed(args),
    )


def _granularity(args: Arguments, source: str) -> Granularity | None:
    """Selective where --recompute-activations is given, whatever --recompute-granularity says (validate_args)."""
    known: dict[str, Granularity] = {"selective": "selective", "full": "full"}
    if "recompute-granularity" not in args:
        return "selective" if args.flag("recompute-activations") else None
    given = choose(args, "recompute-granularity", known, "", source)
    return "selective" if args.flag("recompute-activations") else given


def _distributed(args: Arguments) -> bool:
    """Of full recompute, by either name; without it the rule `recompute-distributed-activations` is broken."""
    return args.flag("distribute-saved-activations") or args.flag("distribute-checkpointed-activations")


def deepspeed_stages(args: Arguments, source: str, model: Model, pp: int) -> tuple[Stage, ...]:
    """The split of a launch under DeepSpeed's pipeline. `type:transformer` counts decoder layers; with `|embedding` the
    embedding and a tied head count as one each. Other methods count what is not known here: decoder layers stand in,
    and the report says so. Raises InputError where the method is none of DeepSpeed's."""
    method = str(args.get("pp-partition-method", DEFAULT)).strip("'\"").lower()
    kind, _, pattern = method.partition(":")
    if kind not in ("type", "uniform", "parameters"):
        known = "type:transformer, type:transformer|embedding, uniform or parameters"
        raise InputError(f"{source}: --pp-partition-method must be {known}, but was given '{readable(method)}'.")
    if kind != "type" or "transformer" not in pattern:
        args.not_accounted.append(f"--pp-partition-method {readable(method)}: stages are counted as {DEFAULT}'s")
    return by_type(model, pp, embedding=kind == "type" and "transformer" in pattern and "embed" in pattern)
