"""What a memory figure takes for granted, as sentences printed beside it."""

from __future__ import annotations

from planner.attention import fuses_softmax, has_sinks, scoring_heads
from planner.cluster import Cluster
from planner.implementation import Implementation, recomputed_modules, separate_norms, weight_copies
from planner.layout import OPERATIONS, Layout
from planner.memory.states import keeps_half_gradients, keeps_remainders
from planner.model import Model
from planner.parameters import parameters
from planner.units import size
from planner.workload import Workload


def assumptions(
    model: Model,
    workload: Workload,
    impl: Implementation,
    layout: Layout,
    cluster: Cluster,
    reserve_bytes: int,
    host_bytes: int = 0,
) -> tuple[str, ...]:
    """The sentences that hold for this layout. `host_bytes`: host memory that the most burdened rank takes."""
    half = {"bf16": "bf16", "fp16": "fp16", "fp8": "bf16 (fp8 matrix products)", "fp32": "fp32"}[workload.precision]
    halved = "fp16" if workload.precision == "fp16" else "bf16"
    gradients = "fp32" if impl.grad_reduce_bytes == 4 else halved
    notes = [f"{half} weights and activations, {gradients} main gradients, {_optimizer(workload, impl, layout)}"]
    notes += _fp8(workload, impl)
    spec = (
        "Transformer Engine layers" if impl.layer_implementation == "transformer_engine" else "Megatron's local layers"
    )
    notes.append(f"{spec}, {_attention(model, workload, impl, layout)}")
    dropout = model.dropout if impl.hidden_dropout is None else impl.hidden_dropout
    if dropout:
        notes.append(f"dropout {dropout:g}: its masks are kept for the backward pass")
    if model.is_moe:
        if impl.moe_capacity_factor is None:
            factor = impl.moe_imbalance
            load = "balanced" if factor == 1 else f"the busiest rank gets {factor:g} x the mean"
            notes.append(f"dropless routing, {load}")
        else:
            notes.append(f"experts take at most {impl.moe_capacity_factor:g} x their even share of tokens")
    if weight_copies(impl, layout.pp) > 1:
        notes.append(
            "DualPipe: a rank holds its stage and the mirrored one, counted as twice its own, with the embedding and "
            "the loss at both ends, and pp + 1 microbatches in flight"
        )
    if layout.zero == 1:
        whose = "DeepSpeed" if impl.framework == "megatron-deepspeed" else "Megatron's distributed optimizer"
        notes.append(f"optimizer state divided over data-parallel ranks ({whose})")
    if layout.zero < 2 and keeps_half_gradients(workload, impl):
        notes.append("DeepSpeed keeps bf16 gradients beside their fp32 sums, both whole on every rank")
    if layout.zero >= 2:
        notes += _sharded(model, impl, layout)
    notes += _fused_norms(model, impl, layout)
    notes += _nothing_there(model, impl, layout, host_bytes)
    notes += _offloaded(impl, cluster, host_bytes)
    if impl.cuda_graphs:
        notes.append(f"CUDA graphs of {', '.join(impl.cuda_graphs)}: their static buffers are not counted")
    if impl.tp_comm_overlap and layout.tp > 1:
        notes.append(
            "user buffers of overlapped tensor parallelism stand with the reserve: Transformer Engine's default"
        )
    reserve = f"reserve {reserve_bytes / 2**30:.1f} GiB outside the allocator"
    notes.append(f"{reserve}: CUDA context, NCCL, library workspaces, fragmentation")
    return (*notes, *model.notes)


def _optimizer(workload: Workload, impl: Implementation, layout: Layout) -> str:
    """The optimizer and what its states are kept in."""
    if workload.optimizer == "adamw-8bit":
        return "adamw-8bit with fp32 master weights, moments of one byte and a scale for each 256 elements"
    if workload.optimizer == "muon":
        dealt = layout.zero == 1 and not impl.layer_wise_param_layout
        how = "; whole tensors are dealt out, the largest to one rank" if dealt else ""
        even = "" if dealt or not layout.zero else "; shards of whole matrices are counted as equal"
        beside = "Lion" if impl.muon_scalar_optimizer == "lion" else "AdamW"
        return f"muon with fp32 states, {beside} for embeddings, head and vectors{how}{even}"
    moments = {impl.exp_avg_bytes, impl.exp_avg_sq_bytes}
    if workload.optimizer == "adamw" and moments != {4}:
        return f"adamw with moments of {impl.exp_avg_bytes} and {impl.exp_avg_sq_bytes} bytes"
    if keeps_remainders(layout.zero, workload, impl):
        return f"{workload.optimizer} with fp32 moments; of a master weight the 16 bits that bf16 lacks"
    return f"{workload.optimizer} with fp32 states"


def _fp8(workload: Workload, impl: Implementation) -> list[str]:
    if workload.precision != "fp8":
        return []
    if impl.layer_implementation == "local":
        return ["fp8 needs Transformer Engine: Megatron's local layers are counted in bf16"]
    copies = "row-wise and column-wise" if impl.fp8_columns else "one for both products"
    weights = f"fp8 copies of linear weights are kept, {copies}"
    if impl.fp8_param_gather:
        weights = "fp8 weights of linear layers" + (" with a column-wise copy" if impl.fp8_columns else "")
    recipe = {
        "delayed": "delayed scaling",
        "tensorwise": "current scaling",
        "blockwise": "a scale for 128 elements",
        "mxfp8": "mxfp8",
    }
    kept = f"linear layers keep their inputs in fp8 ({recipe[impl.fp8_recipe]}), all else is kept in bf16: estimated"
    left_out = "padded tokens of experts, amax histories, fp8 attention and layers in bf16 are not counted"
    return [weights, kept, left_out]


def _sharded(model: Model, impl: Implementation, layout: Layout) -> list[str]:
    """Whose implementation is counted, and its defaults. deepspeed/runtime/engine.py: _configure_distributed_model
    moves a model that zero.Init did not build to the GPU whole."""
    name = {"fsdp2": "PyTorch FSDP2", "megatron_fsdp": "Megatron-FSDP", "deepspeed": "DeepSpeed"}
    how = {
        "fsdp2": "a unit is a layer, embedding and head stay gathered, shards are fp32, a fused optimizer",
        "megatron_fsdp": "a unit is a layer, what is in none stays gathered, no double buffer",
        "deepspeed": "contiguous gradients",
    }
    kind = impl.sharded_framework
    notes = [f"ZeRO-{layout.zero} as in {name[kind]} ({how[kind]}); gathered layers and buckets are estimated"]
    if kind == "deepspeed" and layout.zero == 3:
        whole = size(2 * parameters(model))
        notes.append(f"built under deepspeed.zero.Init: else the whole model, {whole}, is on each GPU at the start")
    if layout.hsdp_replicas > 1:
        notes.append(f"HSDP: {layout.hsdp_replicas} replicas of the sharded states")
    return notes


def _fused_norms(model: Model, impl: Implementation, layout: Layout) -> list[str]:
    """What recomputing norms leaves alone."""
    if "layernorm" not in layout.recompute.modules:
        return []
    separate = {alone for layer in model.layer_kinds for alone in separate_norms(impl, layer)}
    if separate == {True}:
        return []
    which = "some of this model's norms" if True in separate else "all of this model's norms, so it changes nothing"
    return [f"recompute of layernorm leaves what Transformer Engine fuses with a projection: {which}"]


def _nothing_there(model: Model, impl: Implementation, layout: Layout, host_bytes: int) -> list[str]:
    """Modules that were named and that this model has not, which Megatron takes without a word."""
    there = {"core_attn", "layernorm", OPERATIONS, *recomputed_modules(model, impl)}
    named = [module for module in layout.recompute.modules if module not in there]
    notes = [f"recompute of {', '.join(named)} changes nothing: the model has none"] if named else []
    if impl.offload_modules and not host_bytes:
        which = ", ".join(impl.offload_modules)
        notes.append(
            f"offloading of {which} moves nothing: the model has none, or they keep no tensor of 2^20 elements"
        )
    return notes


def _offloaded(impl: Implementation, cluster: Cluster, host_bytes: int) -> list[str]:
    if not host_bytes:
        return []
    node = host_bytes * cluster.gpus_per_node
    sentence = (
        f"offloading takes {host_bytes / 2**30:.1f} GiB of pinned host memory a rank, {node / 2**30:.0f} GiB a node"
    )
    held = cluster.card.host_bytes_per_node
    if held:
        less = "more than" if node > held else "of"
        sentence += f", {less} the {held / 2**30:,.0f} GiB of {cluster.card.name}'s reference node"
    else:
        sentence += f"; what a node of {cluster.card.name} has is not known, so it is not judged"
    return [sentence, "pinned memory is counted as asked for; PyTorch rounds each block up to a power of two"]


def _attention(model: Model, workload: Workload, impl: Implementation, layout: Layout) -> str:
    """The kernel, and whose softmax takes scores that are stored."""
    if impl.attention != "unfused":
        return {"flash": "flash attention", "fused": "cuDNN attention"}[impl.attention]
    kinds = [kind.attention for kind in model.layer_kinds]
    batch_heads = [scoring_heads(a, layout.tp, layout.cp) * layout.micro_batch for a in kinds]
    sizes = zip(kinds, batch_heads, strict=True)
    element = workload.activation_bytes
    if all(fuses_softmax(impl, workload.seq_length, heads, has_sinks(a), element) for a, heads in sizes):
        return "unfused attention (scores are stored)"
    if workload.precision == "fp32":
        return "unfused attention (scores are stored, and no kernel that fuses them or their softmax takes fp32)"
    softmax = f"PyTorch's softmax in {'fp32' if impl.attention_softmax_in_fp32 else 'half precision'}"
    softmax += ", for no fused one takes these shapes"
    if impl.layer_implementation == "local" and impl.framework == "megatron":
        softmax += "; without --attention-softmax-in-fp32 Megatron-LM keeps fewer bytes"
    return f"unfused attention (scores are stored; {softmax})"
