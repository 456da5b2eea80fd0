"""Arguments that Megatron-LM refuses together, where only the words of the launch can tell.

Rules about the model, the implementation and the layout stand in `planner.rules`. Here each refusal is in core_r0.12
and in every release since, or came with the argument that it is about; what some releases refuse and others take is in
`releases`. Megatron-DeepSpeed is another program: of its launches only DeepSpeed's own experts and its pipeline
are judged here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

from planner.implementation import Implementation
from planner.interop.megatron.parse import Arguments, readable
from planner.interop.megatron.problem import Problem
from planner.interop.megatron.releases import release_notes
from planner.layout import Layout
from planner.model import Model, MoE
from planner.rules.states import DEEPSPEED_EXPERTS, ZERO_PIPELINE

_ARGUMENTS = "megatron/training/arguments.py: validate_args"
_CONFIG = "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__"


class Launch(NamedTuple):
    """A launch's words, and what they were read to."""

    args: Arguments
    model: Model
    layout: Layout
    implementation: Implementation


class Conflict(NamedTuple):
    """Arguments that exclude or need each other. `given` is what breaks the sentence, nothing where it is kept."""

    id: str
    sentence: str
    source: str
    given: Callable[[Launch], str]


def find_conflicts(launch: Launch, problems: list[Problem]) -> None:
    """Add to `problems` what Megatron-LM refuses, and to `not_accounted` what some of its releases refuse."""
    args = launch.args
    if (ramp := _ramp(launch)) and "load" in args.given:
        args.not_accounted.append(f"--rampup-batch-size: {ramp}: only a checkpoint that is past the ramp can go on")
    elif ramp:
        problems.append(Problem(BATCH_RAMP.id, BATCH_RAMP.sentence, BATCH_RAMP.source, ramp))
    if args.under_deepspeed:
        if launch.layout.zero == 3 and launch.model.is_moe and launch.layout.ep == 1:
            # its experts are DeepSpeed's own layer on one rank too, where the rule cannot tell them from a model's
            rule = DEEPSPEED_EXPERTS
            problems.append(Problem(rule.id, rule.sentence, rule.source, "zero-stage is 3"))
        problems += _pipeline_of_deepspeed(launch)
        return
    for conflict in CONFLICTS:
        given = "" if conflict is BATCH_RAMP else conflict.given(launch)
        if given:
            problems.append(Problem(conflict.id, conflict.sentence, conflict.source, given))
    args.not_accounted += release_notes(args, launch.model, launch.layout)


def _pipeline_of_deepspeed(launch: Launch) -> Iterator[Problem]:
    """Megatron-DeepSpeed runs DeepSpeed's pipeline with one stage too, unless it is told not to."""
    args, stages = launch.args, launch.args.get("pipeline-model-parallel-size", 1)
    if args.flag("no-pipeline-parallel"):
        if stages > 1:
            yield Problem(
                "deepspeed-no-pipeline",
                "--no-pipeline-parallel needs one pipeline stage",
                "Megatron-DeepSpeed: megatron/arguments.py: validate_args",
                f"--pipeline-model-parallel-size is {stages}",
            )
    elif launch.layout.zero >= 2 and launch.layout.pp == 1:
        yield Problem(
            ZERO_PIPELINE.id,
            "ZeRO 2 and 3 under Megatron-DeepSpeed need --no-pipeline-parallel, with one stage too",
            "Megatron-DeepSpeed: pretrain_gpt.py: model_provider; deepspeed/runtime/pipe/engine.py: PipelineEngine",
            f"the stage is {launch.layout.zero} and --no-pipeline-parallel is absent",
        )


def _positions(launch: Launch) -> str:
    """For a learned table this is the rule `sequence-positions`."""
    args = launch.args
    rows, tokens = args.get("max-position-embeddings"), args.get("seq-length", args.get("encoder-seq-length"))
    short = rows is not None and rows < tokens and launch.model.position != "learned"
    return f"--max-position-embeddings is {rows} and --seq-length {tokens}" if short else ""


def _needs(flag: str, needed: str) -> Callable[[Launch], str]:
    return lambda launch: "it is absent" if launch.args.flag(flag) and not launch.args.flag(needed) else ""


def _excludes(flag: str, other: str) -> Callable[[Launch], str]:
    return lambda launch: "both are given" if launch.args.flag(flag) and launch.args.flag(other) else ""


def _megatron_fsdp(args: Arguments) -> bool:
    return args.flag("use-megatron-fsdp") or args.flag("use-custom-fsdp")


def _gather_needs_shards(launch: Launch) -> str:
    args = launch.args
    sharded = args.flag("use-distributed-optimizer") or args.get("optimizer") == "dist_muon" or _megatron_fsdp(args)
    return "neither is given" if args.flag("overlap-param-gather") and not sharded else ""


def _gather_needs_reduce(launch: Launch) -> str:
    """Megatron-FSDP of core_r0.12 and core_r0.13 overlaps the reduction by itself."""
    reduces = launch.args.flag("overlap-grad-reduce") or _megatron_fsdp(launch.args)
    return "it is absent" if launch.args.flag("overlap-param-gather") and not reduces else ""


def _two_sends(launch: Launch) -> str:
    """Two stages would send to each other twice in one batch. One stage breaks the rule `virtual-needs-pipeline`."""
    pp, vpp = launch.layout.pp, launch.layout.vpp
    waits = "no-overlap-p2p-communication" in launch.args.given
    return f"pp is {pp} and vpp is {vpp}" if waits and vpp > 1 and pp == 2 else ""


def _selective_counts(launch: Launch) -> str:
    args = launch.args
    selective = args.flag("recompute-activations") or args.get("recompute-granularity") == "selective"
    return _listed(launch, ("recompute-method", "recompute-num-layers")) if selective else ""


_UNEVEN = ("decoder-first-pipeline-num-layers", "decoder-last-pipeline-num-layers")
_COUNTED = ("account-for-embedding-in-pipeline-split", "account-for-loss-in-pipeline-split")
_DTYPES = ("main-grads-dtype", "main-params-dtype", "exp-avg-dtype", "exp-avg-sq-dtype")


def _listed(launch: Launch, names: tuple[str, ...]) -> str:
    """Those of the arguments that are given, with their values."""
    given = [readable(" ".join(["--" + name, *launch.args.given[name]])) for name in names if name in launch.args]
    return f"{' and '.join(given)} {'is' if len(given) == 1 else 'are'} given" if given else ""


def _small_states(launch: Launch) -> str:
    args = launch.args
    small = tuple(name for name in _DTYPES if args.get(name, "fp32") != "fp32")
    return "" if args.flag("use-precision-aware-optimizer") else _listed(launch, small)


def _one_expert(launch: Launch) -> str:
    """The softmax of one score is 1 and has no gradient. Sinkhorn routing has no softmax."""
    args = launch.args
    one = launch.model.is_moe and args.get("moe-router-topk") == 1
    softmax = args.get("moe-router-score-function", "softmax") == "softmax"
    sinkhorn = "sinkhorn" in args.given.get("moe-router-load-balancing-type", ())
    return "it is absent" if one and softmax and not sinkhorn and "moe-router-pre-softmax" not in args.given else ""


def _yarn(launch: Launch) -> str:
    predicts, given = launch.model.mtp_num_layers, launch.args.get("position-embedding-type")
    rotary = launch.args.flag("use-rotary-position-embeddings")
    return "--position-embedding-type is yarn" if predicts and given == "yarn" and not rotary else ""


def _nothing_to_overlap(launch: Launch) -> str:
    """Sequence parallelism is switched off without tensor parallelism; with it this is a rule about the layout."""
    return "tp is 1" if launch.args.flag("tp-comm-overlap") and launch.layout.tp == 1 else ""


def _given(flag: str, excluded: tuple[str, ...]) -> Callable[[Launch], str]:
    """What of the excluded arguments stands beside the flag."""

    def given(launch: Launch) -> str:
        found = ["--" + name for name in excluded if name in launch.args.given]
        return f"{' and '.join(found)} {'is' if len(found) == 1 else 'are'} given" if found else ""

    return lambda launch: given(launch) if flag in launch.args.given else ""


def _small_gradients(launch: Launch) -> str:
    """Of bf16 alone."""
    args = launch.args
    small = args.get("main-grads-dtype", "fp32") != "fp32" and args.flag("bf16")
    return _listed(launch, ("main-grads-dtype",)) if small and args.flag("accumulate-allreduce-grads-in-fp32") else ""


def _unfused_squares(launch: Launch) -> str:
    """Without biases the fusion is off by itself; SwiGLU has a refusal of its own."""
    args = launch.args
    fused = not args.flag("disable-bias-linear") and not args.flag("no-bias-gelu-fusion") and not args.flag("swiglu")
    return "it is absent" if "squared-relu" in args.given and fused else ""


def _ramp(launch: Launch) -> str:
    """The first batch of a ramp that ranks cannot share; Megatron-DeepSpeed has the same class (microbatches.py)."""
    args, layout = launch.args, launch.layout
    words = [word.replace("_", "") for word in args.given.get("rampup-batch-size", [])[:2]]
    batch = args.get("global-batch-size")
    if batch is None or len(words) < 2 or not all(word.isascii() and word.isdigit() for word in words):
        return ""
    start, step = (int(word[:16]) for word in words)
    if not 0 < start <= batch or step < 1 or (batch - start) % step:
        return f"the ramp is from {start} by {step} to {batch}"
    share = layout.micro_batch * layout.dp
    wrong = start if start % share else start + step if start < batch and step % share else None
    if wrong is None or "decrease-batch-size-if-needed" in args.given:
        return ""
    return f"the ramp has {wrong}, micro_batch is {layout.micro_batch} and dp is {layout.dp}"


def _shared_biases(launch: Launch) -> str:
    shared = [k.mlp.shared for k in launch.model.layer_kinds if isinstance(k.mlp, MoE) and k.mlp.shared]
    return "it is absent" if any(expert.bias for expert in shared) else ""


def _checked_graph(launch: Launch) -> str:
    """Dynamic loss scaling of fp16 switches the check off."""
    args, whole = launch.args, launch.implementation.cuda_graphs == ("iteration",)
    scaled = args.flag("fp16") and "loss-scale" not in args.given
    unchecked = scaled or "no-check-for-nan-in-loss-and-grad" in args.given
    return "it is absent" if whole and not unchecked else ""


def _levels(launch: Launch) -> str:
    two = "a2a+p2p" in launch.args.get("cp-comm-type", ())
    return "it is absent" if two and "hierarchical-context-parallel-sizes" not in launch.args.given else ""


def _offloads_locally(launch: Launch) -> str:
    local = launch.implementation.layer_implementation == "local"
    return "layers are local" if local and launch.args.flag("fine-grained-activation-offloading") else ""


def _unplaced(launch: Launch) -> str:
    args = launch.args
    rotary = args.flag("use-rotary-position-embeddings") or args.get("position-embedding-type") == "rope"
    return "the type is not rope" if args.flag("no-position-embedding") and not rotary else ""


BATCH_RAMP = Conflict(
    "batch-ramp",
    "--rampup-batch-size must reach the global batch in whole increments, each batch a multiple of micro_batch x dp",
    "megatron/core/num_microbatches_calculator.py: RampupBatchsizeNumMicroBatchesCalculator",
    _ramp,
)
"""Of Megatron-DeepSpeed too. With --load a note: the run may be past the ramp, as BigScience's continuations were."""

CONFLICTS = (
    Conflict(
        "tensor-overlap-one-rank",
        "--tp-comm-overlap needs tensor and sequence parallelism",
        f"{_ARGUMENTS} (tp_comm_overlap)",
        _nothing_to_overlap,
    ),
    Conflict(
        "max-position-embeddings",
        "--max-position-embeddings must be at least --seq-length, whatever the positions",
        f"{_ARGUMENTS} (max_position_embeddings)",
        _positions,
    ),
    Conflict(
        "optimizer-cpu-offload",
        "--optimizer-cpu-offload needs --use-precision-aware-optimizer",
        f"{_ARGUMENTS} (optimizer_cpu_offload)",
        _needs("optimizer-cpu-offload", "use-precision-aware-optimizer"),
    ),
    Conflict(
        "precision-aware-states",
        "main gradients, main weights and optimizer states other than fp32 need --use-precision-aware-optimizer",
        "megatron/core/optimizer/optimizer_config.py: OptimizerConfig.__post_init__",
        _small_states,
    ),
    Conflict(
        "fsdp2-distributed-optimizer",
        "--use-torch-fsdp2 excludes --use-distributed-optimizer",
        f"{_ARGUMENTS} (use_torch_fsdp2)",
        _excludes("use-torch-fsdp2", "use-distributed-optimizer"),
    ),
    Conflict(
        "fsdp2-gradient-fusion",
        "--use-torch-fsdp2 needs --no-gradient-accumulation-fusion",
        f"{_ARGUMENTS} (use_torch_fsdp2)",
        _needs("use-torch-fsdp2", "no-gradient-accumulation-fusion"),
    ),
    Conflict(
        "overlap-param-gather-shards",
        "--overlap-param-gather needs --use-distributed-optimizer or --use-megatron-fsdp",
        f"{_ARGUMENTS} (overlap_param_gather)",
        _gather_needs_shards,
    ),
    Conflict(
        "overlap-param-gather-reduce",
        "--overlap-param-gather needs --overlap-grad-reduce",
        f"{_ARGUMENTS} (overlap_param_gather)",
        _gather_needs_reduce,
    ),
    Conflict(
        "virtual-stages-overlap",
        "virtual stages under --no-overlap-p2p-communication need pp above 2",
        f"{_ARGUMENTS} (overlap_p2p_comm)",
        _two_sends,
    ),
    Conflict(
        "virtual-stages-uneven",
        "--num-layers-per-virtual-pipeline-stage needs an even split, an uneven one "
        "--num-virtual-stages-per-pipeline-rank",
        f"{_ARGUMENTS} (num_layers_per_virtual_pipeline_stage)",
        lambda launch: _listed(launch, _UNEVEN) if "num-layers-per-virtual-pipeline-stage" in launch.args else "",
    ),
    Conflict(
        "pipeline-layout-alone",
        "--pipeline-model-parallel-layout excludes every other argument of the split",
        f"{_CONFIG} (pipeline_model_parallel_layout)",
        lambda launch: _listed(launch, _UNEVEN + _COUNTED) if "pipeline-model-parallel-layout" in launch.args else "",
    ),
    Conflict(
        "selective-recompute-counts",
        "selective recompute takes neither --recompute-method nor --recompute-num-layers",
        f"{_ARGUMENTS} (recompute_method); {_CONFIG} (recompute_num_layers)",
        _selective_counts,
    ),
    Conflict(
        "router-one-expert",
        "--moe-router-topk 1 with softmax scores needs --moe-router-pre-softmax",
        f"{_CONFIG} (moe_router_topk)",
        _one_expert,
    ),
    Conflict(
        "mtp-positions",
        "multi-token prediction excludes yarn as a type of positions",
        f"{_ARGUMENTS} (mtp_num_layers)",
        _yarn,
    ),
    Conflict(
        "deterministic-loss-fusion",
        "--deterministic-mode excludes --cross-entropy-loss-fusion",
        f"{_ARGUMENTS} (deterministic_mode); megatron/training/determinism.py: apply_determinism_to_args",
        _excludes("deterministic-mode", "cross-entropy-loss-fusion"),
    ),
    Conflict(
        "shared-expert-bias",
        "a shared expert needs --disable-bias-linear",
        "megatron/core/transformer/moe/shared_experts.py: SharedExpertMLP.__init__",
        _shared_biases,
    ),
    Conflict(
        "no-position-embedding",
        "--no-position-embedding needs --position-embedding-type rope",
        f"{_ARGUMENTS} (add_position_embedding)",
        _unplaced,
    ),
    Conflict(
        "main-gradients-in-fp32",
        "--accumulate-allreduce-grads-in-fp32 with --bf16 needs main gradients of fp32",
        f"{_ARGUMENTS} (main_grads_dtype)",
        _small_gradients,
    ),
    Conflict(
        "swiglu-alone",
        "--swiglu excludes --squared-relu and --quick-geglu",
        "megatron/training/argument_utils.py: core_transformer_config_from_args",
        _given("swiglu", ("squared-relu", "quick-geglu")),
    ),
    Conflict(
        "squared-relu-fusion",
        "--squared-relu with biases needs --no-bias-gelu-fusion",
        f"{_CONFIG} (bias_activation_fusion)",
        _unfused_squares,
    ),
    Conflict(
        "offloaded-modules-engine",
        "--fine-grained-activation-offloading needs --transformer-impl transformer_engine",
        f"{_ARGUMENTS} (fine_grained_activation_offloading)",
        _offloads_locally,
    ),
    Conflict(
        "graph-checks-gradients",
        "a CUDA graph of the whole iteration needs --no-check-for-nan-in-loss-and-grad",
        f"{_ARGUMENTS} (cuda_graph_impl)",
        _checked_graph,
    ),
    Conflict(
        "batch-schedule-alone",
        "--step-batch-size-schedule excludes --global-batch-size",
        f"{_ARGUMENTS} (step_batch_size_schedule)",
        _given("step-batch-size-schedule", ("global-batch-size",)),
    ),
    Conflict(
        "hierarchical-context-sizes",
        "--cp-comm-type a2a+p2p needs --hierarchical-context-parallel-sizes",
        f"{_ARGUMENTS} (hierarchical_context_parallel_sizes)",
        _levels,
    ),
    BATCH_RAMP,
)
