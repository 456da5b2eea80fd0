"""Megatron arguments to the Implementation (kernels, fusions, buffers) and the Workload (batch, precision, optimizer).

Where an argument is absent the value is Megatron's own default, which is often the slower or larger one: hidden dropout
0.1, no communication overlap, the all-gather dispatcher, fp32 weights without --bf16 or --fp16.

Sources: megatron/training/arguments.py: validate_args; megatron/training/training.py: get_megatron_ddp_config;
megatron/core/transformer/transformer_config.py.
"""

from __future__ import annotations

from typing import Literal, TypeVar

from planner.errors import InputError, NotModelled
from planner.implementation import (
    ALL_MICROBATCHES,
    LEAST_OFFLOADED,
    AttentionKernel,
    ContextExchange,
    CrossEntropy,
    Implementation,
    LayerImplementation,
    ShardedFramework,
)
from planner.interop.megatron.architecture import dropout, positive
from planner.interop.megatron.environment import (
    Environment,
    allowed_attention,
    device_max_connections,
    launch_blocking,
)
from planner.interop.megatron.graphs import build_cuda_graphs, capturer
from planner.interop.megatron.parse import Arguments, readable
from planner.memory.offload import OFFLOAD_MODULES
from planner.workload import Optimizer, Precision, Workload

Chosen = TypeVar("Chosen")

_GROUP = "microbatch-group-size-per-virtual-pipeline-stage"

_KERNELS: dict[str, AttentionKernel] = {
    "auto": "auto",
    "flash": "flash",
    "fused": "fused",
    "unfused": "unfused",
    "local": "unfused",
}
_IMPLEMENTATIONS: dict[str, LayerImplementation] = {
    "transformer_engine": "transformer_engine",
    "local": "local",
}
_DISPATCHERS: dict[str, Literal["allgather", "alltoall", "flex"]] = {
    "allgather": "allgather",
    "alltoall": "alltoall",
    "alltoall_seq": "alltoall",
    "flex": "flex",
}
_EXCHANGES: dict[str, ContextExchange] = {"p2p": "p2p", "a2a": "a2a", "allgather": "allgather", "a2a+p2p": "a2a+p2p"}
_FP8_RECIPES: dict[str, Literal["delayed", "tensorwise", "blockwise", "mxfp8"]] = {
    "delayed": "delayed",
    "tensorwise": "tensorwise",
    "blockwise": "blockwise",
    "mxfp8": "mxfp8",
    # a factory of the user's own: scales are counted as those of one tensor
    "custom": "tensorwise",
}
_DEEPSPEEDS_FLASH = ("use-flash-attn-v1", "use-flash-attn-v2", "use-flash-attn-triton", "use-flash-attn-builder")
_MOMENT_BYTES: dict[str, Literal[1, 2, 4]] = {"fp32": 4, "fp16": 2, "bf16": 2, "fp8": 1}
_MAIN_BYTES: dict[str, Literal[2, 4]] = {"fp32": 4, "fp16": 2, "bf16": 2}
_FSDP_GRADIENTS = {"auto": "auto", "fp32": "fp32", "bf16": "bf16", "fp16": "fp16"}
_SCALAR_OPTIMIZERS: dict[str, Literal["adam", "lion"]] = {"adam": "adam", "lion": "lion"}
_FLASH_VERSIONS: dict[str, Literal[2, 3, 4] | None] = {"2": 2, "3": 3, "4": 4}
_OPTIMIZERS: dict[str, Optimizer] = {
    "adam": "adamw",
    "adamw": "adamw",
    "sgd": "sgd-momentum",
    "muon": "muon",
    "dist_muon": "muon",
}


def choose(args: Arguments, name: str, known: dict[str, Chosen], default: str, source: str) -> Chosen:
    """The meaning of an argument that is one of a few words."""
    given = str(args.get(name, default))
    if given not in known:
        raise InputError(f"{source}: --{name} must be one of {', '.join(known)}, but was given '{readable(given)}'.")
    return known[given]


def layer_implementation(args: Arguments, source: str) -> LayerImplementation:
    """Transformer Engine unless `--transformer-impl local` or `--spec local`; Megatron-DeepSpeed's default is its own
    layers (its megatron/arguments.py: --transformer-impl)."""
    if args.get("transformer-impl") == "inference_optimized":
        raise NotModelled(f"{source}: --transformer-impl inference_optimized is not modelled.")
    own = args.get("spec") == ["local"] or args.under_deepspeed
    default = "local" if own else "transformer_engine"
    return choose(args, "transformer-impl", _IMPLEMENTATIONS, default, source)


def build_implementation(args: Arguments, source: str, environment: Environment) -> Implementation:
    """The framework's choices. Raises InputError where a word is none of Megatron's."""
    local = layer_implementation(args, source) == "local"
    gated_by_swiglu = args.flag("swiglu")
    bias = not args.flag("disable-bias-linear")
    precision_aware = args.flag("use-precision-aware-optimizer")
    offloads = args.flag("optimizer-cpu-offload") or args.flag("cpu-optimizer")
    fraction = _fraction(args, "optimizer-offload-fraction", source) if offloads else 0.0
    capacity = args.get("moe-expert-capacity-factor")
    padded = any(name in args for name in ("padded-vocab-size", "pad-vocab-size-to"))
    padded = padded or args.flag("no-pad-vocab-size") or args.flag("disable-pad-vocab-size")
    return Implementation(
        layer_implementation="local" if local else "transformer_engine",
        attention=_attention(args, local, environment, source),
        flash_attention_version=choose(args, "flash-attention-version", _FLASH_VERSIONS, "", source)
        if "flash-attention-version" in args
        else None,
        masked_softmax_fusion=not args.flag("no-masked-softmax-fusion"),
        attention_softmax_in_fp32=_softmax_in_fp32(args),
        bias_activation_fusion=not args.flag("no-bias-swiglu-fusion")
        if gated_by_swiglu
        else bias and not args.flag("no-bias-gelu-fusion"),
        bias_dropout_fusion=not args.flag("no-bias-dropout-fusion"),
        # The fused kernel comes with Transformer Engine; the local specification is what runs without it.
        rope_fusion=not local and not args.flag("no-rope-fusion") and args.get("position-embedding-type") != "yarn",
        hidden_dropout=dropout(args, "hidden-dropout", source),
        attention_dropout=dropout(args, "attention-dropout", source),
        cross_entropy=_cross_entropy(args, source),
        # Megatron-DeepSpeed's own layers never do (its megatron/core/tensor_parallel/layers.py)
        gradient_accumulation_fusion=not (args.flag("no-gradient-accumulation-fusion") or args.under_deepspeed),
        grad_reduce_bytes=_grad_reduce_bytes(args, source),
        overlap_grad_reduce=args.flag("overlap-grad-reduce"),
        overlap_param_gather=args.flag("overlap-param-gather"),
        tp_comm_overlap=args.flag("tp-comm-overlap"),
        ddp_bucket_elements=positive(args, "ddp-bucket-size", source) if "ddp-bucket-size" in args else None,
        prescales_gradients=not (args.flag("ddp-average-in-collective") or args.flag("calculate-per-token-loss")),
        pad_buckets_for_high_nccl_busbw=args.flag("ddp-pad-buckets-for-high-nccl-busbw"),
        num_distributed_optimizer_instances=positive(args, "num-distributed-optimizer-instances", source, 1),
        vocab_divisible_by=1 if padded else positive(args, "make-vocab-size-divisible-by", source, 128),
        moe_capacity_factor=capacity if capacity is not None and capacity > 0 else None,
        moe_pad_to_capacity=args.flag("moe-pad-expert-input-to-capacity"),
        moe_grouped_gemm=args.flag("moe-grouped-gemm"),
        moe_permute_fusion=args.flag("moe-permute-fusion"),
        moe_dispatcher=choose(args, "moe-token-dispatcher-type", _DISPATCHERS, "allgather", source),
        moe_router_fp32=args.get("moe-router-dtype") in ("fp32", "fp64"),
        moe_shared_expert_overlap=args.flag("moe-shared-expert-overlap"),
        overlap_moe_expert_parallel_comm=args.flag("overlap-moe-expert-parallel-comm"),
        fp8_param_gather=args.flag("fp8-param-gather"),
        fp8_recipe=choose(args, "fp8-recipe", _FP8_RECIPES, "delayed", source),
        precision_aware_optimizer=precision_aware,
        main_grads_bytes=choose(args, "main-grads-dtype", _MAIN_BYTES, "fp32", source),
        main_params_bytes=choose(args, "main-params-dtype", _MAIN_BYTES, "fp32", source),
        exp_avg_bytes=choose(args, "exp-avg-dtype", _MOMENT_BYTES, "fp32", source),
        exp_avg_sq_bytes=choose(args, "exp-avg-sq-dtype", _MOMENT_BYTES, "fp32", source),
        optimizer_offload_fraction=fraction,
        offload_activation_layers=max(0, args.get("cpu-offloading-num-layers", 0)),
        offload_modules=_offload_modules(args, source),
        activation_offload_fraction=_fraction(args, "activation-offload-fraction", source),
        least_offloaded_elements=_least_offloaded(args, source),
        muon_scalar_optimizer=choose(args, "muon-scalar-optimizer", _SCALAR_OPTIMIZERS, "adam", source),
        layer_wise_param_layout=not args.flag("no-use-layer-wise-param-layout"),
        sharded_framework=sharded_framework(args),
        microbatch_group_size=positive(args, _GROUP, source) if _GROUP in args else None,
        framework="megatron-deepspeed" if args.under_deepspeed else "megatron",
        cp_comm_type=_cp_comm_type(args, source),
        cuda_graphs=build_cuda_graphs(args, source),
        cuda_graph_impl=capturer(args, source),
        launch_blocking=launch_blocking(environment),
        device_max_connections=device_max_connections(environment),
        deterministic=args.flag("deterministic-mode"),
        attention_mask_in_dataloader=not args.flag("no-create-attention-mask-in-dataloader"),
        deferred_embedding_wgrads=_deferred_embedding_wgrads(args),
    )


def _attention(args: Arguments, local: bool, environment: Environment, source: str) -> AttentionKernel:
    """Transformer Engine picks a kernel by the card (`auto`) of those that its environment leaves; Megatron's own
    module is unfused by default."""
    given = choose(args, "attention-backend", _KERNELS, "auto", source)
    if given != "auto":
        return given
    if _asks_for_flash(args, local):
        return "flash"
    return "unfused" if local else allowed_attention(environment, source)


def _asks_for_flash(args: Arguments, local: bool) -> bool:
    """Whether --use-flash-attn decides. Only the local layers of the legacy models read it, until core_r0.17
    (megatron/legacy/model/transformer.py: ParallelAttention.__init__), and Megatron-DeepSpeed's, by several names."""
    if any(map(args.flag, _DEEPSPEEDS_FLASH)):
        return True
    if not args.flag("use-flash-attn"):
        return False
    if args.under_deepspeed or (local and "use-legacy-models" in args.given):
        return True
    args.not_accounted.append("--use-flash-attn: has no effect in Megatron-Core (--attention-backend flash has)")
    return False


def _softmax_in_fp32(args: Arguments) -> bool:
    """Whether PyTorch's softmax runs in fp32. Megatron-DeepSpeed's does with the layer scaling that it defaults to, or
    where it is told so (its megatron/arguments.py); Megatron-LM's launches are counted as its configuration's default,
    and the report says what that means."""
    if not args.under_deepspeed:
        return True
    return args.flag("attention-softmax-in-fp32") or not args.flag("no-query-key-layer-scaling")


def _cp_comm_type(args: Arguments, source: str) -> ContextExchange:
    """One for all layers, else that of the first; DeepSpeed's Ulysses exchanges by all-to-all."""
    if args.under_deepspeed:
        return "a2a"
    given = [word.replace("_", "").lower() for word in args.get("cp-comm-type", ["p2p"])] or ["p2p"]
    for word in given:
        if word not in _EXCHANGES:
            known = ", ".join(_EXCHANGES)
            raise InputError(f"{source}: --cp-comm-type must be of {known}, but was given '{readable(word)}'.")
    if len({*given}) > 1:
        args.not_accounted.append(f"--cp-comm-type: layers differ, all are counted as {given[0]}")
    return _EXCHANGES[given[0]]


def _offload_modules(args: Arguments, source: str) -> tuple[str, ...]:
    """Modules whose activations go to the host."""
    if not args.flag("fine-grained-activation-offloading"):
        return ()
    names = sorted(set(args.get("offload-modules", [])))
    for name in names:
        if name == "fused_group_mlp":
            raise NotModelled(f"{source}: --offload-modules fused_group_mlp is not modelled.")
        if name not in OFFLOAD_MODULES:
            known = ", ".join(OFFLOAD_MODULES)
            raise InputError(f"{source}: --offload-modules must be of {known}, but was given '{readable(name)}'.")
    return tuple(names)


def _least_offloaded(args: Arguments, source: str) -> int:
    """Elements of the smallest tensor that goes to the host."""
    value: int = args.get("min-offloaded-tensor-size", LEAST_OFFLOADED)
    if value < 0:
        raise InputError(f"{source}: --min-offloaded-tensor-size must be at least 0, but was given {value}.")
    return value


def _fraction(args: Arguments, name: str, source: str) -> float:
    """A number from 0 to 1; 1 where it is absent."""
    value = float(args.get(name, 1.0))
    if not 0 <= value <= 1:
        raise InputError(f"{source}: --{name} must be from 0 to 1, but was given {value}.")
    return value


def _deferred_embedding_wgrads(args: Arguments) -> int:
    """Microbatches whose head weight gradient is computed later; a limit of 0 defers all of them."""
    if not args.flag("defer-embedding-wgrad-compute"):
        return 0
    limit = args.get("wgrad-deferral-limit", 0)
    return limit if limit > 0 else ALL_MICROBATCHES


def _cross_entropy(args: Arguments, source: str) -> CrossEntropy:
    fused: dict[str, CrossEntropy] = {"native": "native", "te": "te"}
    kind = choose(args, "cross-entropy-fusion-impl", fused, "native", source)
    return kind if args.flag("cross-entropy-loss-fusion") else "unfused"


def precision(args: Arguments, source: str) -> Precision:
    """fp32 unless --bf16 or --fp16; fp8 is the matrix products' on top of either."""
    if args.flag("bf16") and args.flag("fp16"):
        raise InputError(f"{source}: either --bf16 or --fp16 may be given, but both are.")
    if args.get("fp8-format") or args.get("fp8"):
        return "fp8"
    return "bf16" if args.flag("bf16") else "fp16" if args.flag("fp16") else "fp32"


def _grad_reduce_bytes(args: Arguments, source: str) -> Literal[2, 4]:
    """Bytes of a main gradient. bf16 implies fp32 gradients unless --grad-reduce-in-bf16 (or bf16 main gradients); fp16
    keeps them in fp16 unless --accumulate-allreduce-grads-in-fp32; Megatron-FSDP keeps the weights' own type."""
    if not (args.flag("bf16") or args.flag("fp16")):
        return 4
    if args.under_deepspeed:
        return _deepspeed_sum_bytes(args)
    if args.flag("use-megatron-fsdp") or args.flag("use-custom-fsdp"):
        return 4 if choose(args, "megatron-fsdp-main-grads-dtype", _FSDP_GRADIENTS, "auto", source) == "fp32" else 2
    if args.flag("grad-reduce-in-bf16") and args.flag("bf16"):
        return 2
    if args.flag("accumulate-allreduce-grads-in-fp32"):
        return 4
    return 4 if args.flag("bf16") and args.get("main-grads-dtype", "fp32") == "fp32" else 2


def _deepspeed_sum_bytes(args: Arguments) -> Literal[2, 4]:
    """Bytes of a summed gradient where no data_types.grad_accum_dtype says otherwise; Megatron's arguments do not. Its
    own type (deepspeed/runtime/engine.py: get_data_types), but fp32 in bf16 without ZeRO, as DeepSpeed had it from its
    first bf16 (56c52238, April 2022) until it summed in bf16 there too (889f0ead, August 2025), after the last change
    of Megatron-DeepSpeed."""
    return 4 if args.flag("bf16") and args.get("zero-stage", 0) == 0 else 2


def sharded_framework(args: Arguments) -> ShardedFramework:
    """Who shards gradients and weights, where they are."""
    if args.flag("use-megatron-fsdp") or args.flag("use-custom-fsdp"):
        return "megatron_fsdp"
    return "deepspeed" if args.under_deepspeed else "fsdp2"


def build_workload(args: Arguments, source: str, micro_batch: int, dp: int) -> Workload:
    """One step. The global batch defaults to one microbatch on each rank; a ramp counts at its full size."""
    seq_length = positive(args, "seq-length", source, args.get("encoder-seq-length"))
    if "global-batch-size" in args:
        batch = positive(args, "global-batch-size", source)
    else:
        batch = _scheduled_batch(args, source) or micro_batch * dp
    name = str(args.get("optimizer", "adam"))
    if name in ("lion", "soap", "adaptive_muon"):
        raise NotModelled(f"{source}: --optimizer {name} is not modelled.")
    optimizer = choose(args, "optimizer", _OPTIMIZERS, "adam", source)
    if optimizer == "sgd-momentum" and args.get("sgd-momentum", 0.9) == 0:
        optimizer = "sgd"
    if optimizer == "adamw" and args.flag("use-bnb-optimizer"):
        optimizer = "adamw-8bit"
        args.not_accounted.append("--use-bnb-optimizer: the embedding's moments are counted in 8 bits, as all others")
    return Workload(seq_length, batch, precision(args, source), optimizer)


def _scheduled_batch(args: Arguments, source: str) -> int | None:
    """The last batch of `--step-batch-size-schedule "0:384 200B:768"`: the size that training settles at."""
    steps = args.get("step-batch-size-schedule")
    if steps is None:
        return None
    batch = steps[-1].rpartition(":")[2] if steps else ""
    if not (batch.isascii() and batch.isdigit() and 0 < len(batch) < 12 and int(batch)):
        shown = readable(" ".join(steps))
        raise InputError(
            f"{source}: --step-batch-size-schedule must be like '0:384 200B:768', but was given '{shown}'."
        )
    return int(batch)
