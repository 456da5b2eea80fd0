"""How the framework computes the model: kernels, fusions and buffers. Nothing here changes the mathematics, all of it
changes bytes or seconds.

Names follow Megatron-LM's arguments (`megatron/training/arguments.py`); defaults are what `pretrain_gpt.py` does on a
current release with Transformer Engine, flash attention, and communication overlap on.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from planner.model import MLP, LatentAttention, Layer, Model, MoE

LayerImplementation = Literal["transformer_engine", "local"]
ContextExchange = Literal["p2p", "a2a", "allgather", "a2a+p2p"]
ShardedFramework = Literal["fsdp2", "megatron_fsdp", "deepspeed"]
AttentionKernel = Literal["auto", "flash", "fused", "unfused"]
Schedule = Literal["1f1b", "zb-h1", "dualpipe"]
CrossEntropy = Literal["unfused", "native", "te", "torch", "compiled", "liger"]
"""unfused, native, te: Megatron's. torch: torch.nn.functional.cross_entropy of fp32 logits; compiled: the same under
torch.compile; liger: Liger-Kernel's, fused with the head, a chunk of tokens at a time."""

LEAST_OFFLOADED = 2**20
"""Elements of a tensor below which Megatron does not offload it unless told (transformer_config.py:
min_offloaded_tensor_size)."""


DEEPSPEED_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's reduce_bucket_size (deepspeed/runtime/zero/config.py)."""


@dataclass(frozen=True, slots=True)
class DeepSpeedZero:
    """Sizes of DeepSpeed's ZeRO stage 3 in elements, and its defaults (deepspeed/runtime/zero/config.py)."""

    prefetch: int = 50_000_000
    """stage3_prefetch_bucket_size: weights that are fetched ahead."""
    reuse_distance: int = 1_000_000_000
    """stage3_max_reuse_distance: weights are kept where fewer elements are used before their next use."""
    live: int = 1_000_000_000
    """stage3_max_live_parameters: nothing is fetched ahead beyond."""
    sub_group: int = 1_000_000_000
    """sub_group_size: of a rank's shard, what one pass of the optimizer's step takes."""


@dataclass(frozen=True, slots=True)
class Implementation:
    """Choices of the framework. Immutable and hashable: a key of the accounting's caches."""

    layer_implementation: LayerImplementation = "transformer_engine"
    attention: AttentionKernel = "flash"
    """flash: FlashAttention; fused: cuDNN through Transformer Engine; unfused: scores and softmax are stored; auto:
    what Transformer Engine picks on the card (`attention_on`)."""
    flash_attention_version: Literal[2, 3, 4] | None = None
    """Generation of FlashAttention (--flash-attention-version); None is the newest for the card."""
    masked_softmax_fusion: bool = True
    attention_softmax_in_fp32: bool = True
    """Where no fused softmax takes stored scores, PyTorch's runs in fp32 (--attention-softmax-in-fp32)."""
    bias_activation_fusion: bool = True
    bias_dropout_fusion: bool = True
    rope_fusion: bool = True
    hidden_dropout: float | None = None
    """None is the model's own (`Model.dropout`)."""
    attention_dropout: float | None = None
    cross_entropy: CrossEntropy = "unfused"
    gradient_accumulation_fusion: bool = True
    """Weight gradients are added to fp32 main gradients inside the GEMM."""
    grad_reduce_bytes: Literal[2, 4] = 4
    """Bytes of one main gradient element: fp32, or bf16 with --grad-reduce-in-bf16."""
    prescales_gradients: bool = True
    """Megatron multiplies main gradients by 1 / data-parallel size before they are reduced (megatron/core/distributed/
    param_and_grad_buffer.py: start_grad_sync), unless the reduction averages (--ddp-average-in-collective) or their sum
    is divided by tokens (--calculate-per-token-loss; distributed_data_parallel.py: gradient_scaling_factor)."""
    overlap_grad_reduce: bool = True
    overlap_param_gather: bool = True
    tp_comm_overlap: bool = False
    cp_comm_type: ContextExchange = "p2p"
    """How context-parallel ranks exchange keys and values (--cp-comm-type): p2p: around a ring; a2a: whole sequences of
    a part of the heads, as Ulysses does; allgather: gathered before attention; a2a+p2p: both, by level."""
    ddp_bucket_elements: int | None = None
    """None is Megatron's default: max(40 000 000, 1 000 000 x data-parallel size)."""
    pad_buckets_for_high_nccl_busbw: bool = False
    num_distributed_optimizer_instances: int = 1
    vocab_divisible_by: int = 128
    moe_capacity_factor: float | None = None
    """None is dropless routing."""
    moe_pad_to_capacity: bool = False
    moe_imbalance: float = 1.0
    """Dropless: tokens of the busiest expert-parallel rank over the mean."""
    moe_grouped_gemm: bool = True
    moe_permute_fusion: bool = False
    moe_dispatcher: Literal["allgather", "alltoall", "flex"] = "alltoall"
    moe_router_fp32: bool = False
    moe_shared_expert_overlap: bool = False
    overlap_moe_expert_parallel_comm: bool = False
    fp8_param_gather: bool = False
    fp8_recipe: Literal["delayed", "tensorwise", "blockwise", "mxfp8"] = "delayed"
    """How scales of fp8 products are chosen (--fp8-recipe)."""
    fp8_columns: bool = True
    """Weights and gradients in fp8 have a column-wise copy too; the card decides (`keeps_fp8_columns`)."""
    precision_aware_optimizer: bool = False
    main_grads_bytes: Literal[2, 4] = 4
    main_params_bytes: Literal[2, 4] = 4
    exp_avg_bytes: Literal[1, 2, 4] = 4
    exp_avg_sq_bytes: Literal[1, 2, 4] = 4
    optimizer_offload_fraction: float = 0.0
    """Part of the optimizer's shard that is kept and updated on the host."""
    offload_parameters: bool = False
    """ZeRO 3: shards of the weights are kept on the host."""
    offload_activation_layers: int = 0
    """Layers whose activations wait on the host (--cpu-offloading-num-layers)."""
    offload_modules: tuple[str, ...] = ()
    """Modules whose activations wait on the host (--fine-grained-activation-offloading, --offload-modules); sorted."""
    activation_offload_fraction: float = 1.0
    """Part of those modules' activations that goes (--activation-offload-fraction)."""
    least_offloaded_elements: int = LEAST_OFFLOADED
    """Smaller tensors of those modules stay (--min-offloaded-tensor-size)."""
    muon_scalar_optimizer: Literal["adam", "lion"] = "adam"
    """Who updates embeddings, heads and vectors beside Muon (--muon-scalar-optimizer)."""
    layer_wise_param_layout: bool = True
    """Muon's distributed optimizer divides every buffer evenly; without, it deals out whole tensors
    (--no-use-layer-wise-param-layout)."""
    sharded_framework: ShardedFramework = "fsdp2"
    """Who shards gradients and weights at ZeRO 2 and 3."""
    deepspeed_zero: DeepSpeedZero = DeepSpeedZero()
    """Of the stage 3 of DeepSpeed."""
    schedule: Schedule = "1f1b"
    """The pipeline schedule; with virtual stages 1f1b is Megatron's interleaved one."""
    microbatch_group_size: int | None = None
    """Microbatches of one virtual stage in a row; None is the pipeline size."""
    keeps_gradients: bool = False
    """The last step's gradients stay beside the new ones, in half precision and as fp32 copies: Megatron-LM before July
    2021 without contiguous buffers (param.main_grad = param.grad in megatron/model/distributed.py; zero_grad in
    megatron/optimizer/optimizer.py left the main parameters' gradients; mended in 4fd6432 and 6f2bff5)."""
    framework: Literal["megatron", "megatron-deepspeed"] = "megatron"
    cuda_graphs: tuple[str, ...] = ()
    """What is replayed as CUDA graphs (--cuda-graph-impl, --cuda-graph-modules), of GRAPHED."""
    cuda_graph_impl: Literal["local", "transformer_engine"] = "transformer_engine"
    """Who captures layers and modules; the whole iteration is PyTorch's."""
    launch_blocking: bool = False
    """CUDA_LAUNCH_BLOCKING=1: the host waits for each operation, so that nothing overlaps and every launch shows."""
    device_max_connections: int | None = None
    """CUDA_DEVICE_MAX_CONNECTIONS; None is whatever the layout needs."""
    deterministic: bool = False
    """--deterministic-mode: larger cuBLAS workspaces, other attention kernels on some cards."""
    attention_mask_in_dataloader: bool = True
    """Every microbatch brings an explicit [batch, 1, seq, seq] mask of bytes (Megatron's default)."""
    deferred_embedding_wgrads: int = 0
    """Microbatches whose head weight gradient waits (--defer-embedding-wgrad-compute, --wgrad-deferral-limit)."""

    @property
    def probability_bytes(self) -> int:
        """Of one routing probability at the experts: fp32 by --moe-router-dtype, and always where DeepEP or HybridEP
        dispatches (token_dispatcher.py: _DeepepManager.dispatch, _HybridEPManager.dispatch); else as activations."""
        return 4 if self.moe_router_fp32 or self.moe_dispatcher == "flex" else 2

    @property
    def adds_expert_bias_apart(self) -> bool:
        """Whether biases of down projections are added expert by expert in kernels of their own (experts.py:
        TEGroupedMLP._apply_bias); the local layers run their experts one after another."""
        return self.moe_grouped_gemm and self.layer_implementation == "transformer_engine"


ALL_MICROBATCHES = 1_000_000
"""Deferred microbatches where all are: more than any step has."""
GRAPHED = ("attn", "mlp", "moe", "moe_router", "moe_preprocess", "layer", "iteration")
"""Modules of every layer (megatron/core/transformer/enums.py: CudaGraphModule), whole layers, or all of forward and
backward."""


def keeps_fp8_columns(implementation: Implementation, architecture: str, scale_up: str) -> bool:
    """Whether a tensor in fp8 that takes part in two products needs a copy for each. Scales of rows and columns differ;
    under one scale for a whole tensor the same bytes serve both where the products take any layout: on Blackwell but
    for its PCIe cards (Transformer Engine, common/transformer_engine.cpp: nvte_is_non_tn_fp8_gemm_supported, compute
    capability 10; pytorch/csrc/quantizer.cpp: with_transpose)."""
    by_tensor = implementation.fp8_recipe in ("delayed", "tensorwise")
    return not (by_tensor and architecture == "blackwell" and scale_up == "nvlink")


def separate_norms(implementation: Implementation, layer: Layer) -> tuple[bool, bool]:
    """Whether the norms before attention and before the MLP are modules of their own, which `layernorm` recomputes and
    `attn_norm` and `mlp_norm` offload. Transformer Engine fuses a norm with the projection that follows, but not before
    latent attention's down-projections or a router (gpt_layer_specs.py:
    get_gpt_layer_with_transformer_engine_submodules; transformer_layer.py: recompute_input_layernorm)."""
    if implementation.layer_implementation != "transformer_engine" or layer.parallel:
        return True, True
    return isinstance(layer.attention, LatentAttention), isinstance(layer.mlp, MoE)


def recomputed_modules(model: Model, implementation: Implementation) -> list[str]:
    """Modules that selective recomputation can name for this model and that drop something.

    Flash and fused attention keep no scores, so `core_attn` is left out with them, and `layernorm` where all norms are
    fused with a projection.
    """
    modules = []
    if implementation.attention == "unfused":
        modules.append("core_attn")
    if any(any(separate_norms(implementation, layer)) for layer in model.layer_kinds):
        modules.append("layernorm")
    if any(isinstance(layer.attention, LatentAttention) for layer in model.layer_kinds):
        modules.append("mla_up_proj")
    if any(isinstance(layer.mlp, MLP) for layer in model.layer_kinds):
        modules.append("mlp")
    experts = [layer.mlp for layer in model.layer_kinds if isinstance(layer.mlp, MoE)]
    if experts:
        modules += ["moe", "moe_act"]
        if any(moe.shared for moe in experts):
            modules.append("shared_experts")
    return modules


def weight_copies(implementation: Implementation, pp: int) -> int:
    """Stages' worth of weights on a rank. DualPipe runs microbatches into the pipeline from both ends, so a rank holds
    its stage and the mirrored one (DeepSeek-V3 technical report, arXiv:2412.19437, table 2)."""
    return 2 if implementation.schedule == "dualpipe" and pp > 1 else 1


def as_sharded(implementation: Implementation, zero: int) -> Implementation:
    """What holds of the implementation under a ZeRO stage. FSDP2 and DeepSpeed reduce the gradients of autograd: there
    is no main gradient that a matrix product could add to (megatron/training/arguments.py: validate_args,
    use_torch_fsdp2). Megatron-FSDP has one. DeepSpeed sums gradients in the type of the weights where no launch says
    otherwise (deepspeed/runtime/engine.py: get_data_types)."""
    if zero < 2 or implementation.sharded_framework == "megatron_fsdp":
        return implementation
    unsaid = implementation.sharded_framework == "deepspeed" and implementation.framework == "megatron"
    sums: Literal[2, 4] = 2 if unsaid else implementation.grad_reduce_bytes
    if not implementation.gradient_accumulation_fusion and sums == implementation.grad_reduce_bytes:
        return implementation
    return replace(implementation, gradient_accumulation_fusion=False, grad_reduce_bytes=sums)
