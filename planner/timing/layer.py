"""Seconds that the kernels of one decoder layer take for one microbatch on one rank, without communication.

Matrix products come from the layer's weight tensors on the rank (`parameters.layer_weights`): forward, and for the
backward pass the products of the input's and of the weight's gradient. Everything else is a memory-bound pass counted
in bytes read and written for each token.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.attention import (
    BEFORE_FLASH,
    core_widths,
    fuses_softmax,
    gathered_projection_width,
    has_sinks,
    head_widths,
    rank_key_width,
    scoring_heads,
)
from planner.implementation import Implementation, separate_norms
from planner.layout import OPERATIONS
from planner.memory.activations.selective_ops import kept_products
from planner.model import Attention, LatentAttention, Layer, Model, MoE
from planner.parameters import Weight, layer_weights
from planner.timing.efficiency import Efficiency
from planner.timing.kernels import Device, flash_seconds, gemm_seconds, linear_precision, memory_seconds
from planner.timing.launch import Operations, layer_operations, replayed
from planner.timing.mixture import mixture, permutation_seconds, permutes_beside
from planner.timing.passes import BIAS_PASS, HALF, Passes, Work, bias_gradient, elementwise, feed_forward, linear, norm
from planner.timing.shard import Shard, dropout_of
from planner.workload import Workload


@dataclass(frozen=True, slots=True)
class LayerCompute:
    """Kernels of one layer for one microbatch [s]."""

    attention: Passes
    core_forward: float
    """Of attention: the core (scores, softmax, values), which context parallelism hides its ring behind."""
    core_backward: float
    mlp: Passes
    selective: Work
    """Forward work that selective recomputation repeats."""
    operations: Operations
    """That the host issues."""
    launches: Operations = (0, 0)
    """Kernels of grouped experts that a library launches within these operations."""
    exchanged: float = 0.0
    """Permutation that belongs to the experts' exchange, forward and as much backward; in none of the others."""

    @property
    def forward(self) -> float:
        return self.attention.forward + self.mlp.forward

    @property
    def backward(self) -> float:
        return self.attention.backward + self.mlp.backward

    @property
    def weight_gradients(self) -> float:
        return self.attention.weight_gradients + self.mlp.weight_gradients

    def host_seconds(self, e: Efficiency) -> tuple[float, float]:
        """(forward, backward) time in which the host can issue the layer's operations."""
        operations = self.operations[0], self.operations[1] + self.selective.operations
        forward, backward = (
            count * e.launch_seconds + launches * e.expert_launch_seconds
            for count, launches in zip(operations, self.launches, strict=True)
        )
        return forward, backward


def _residual(passes: Passes, device: Device, elements: float, dropout: float, bias: bool, fused: bool) -> None:
    """Bias, dropout and addition to the residual stream, in one kernel or each in its own (megatron/core/fusions/
    fused_bias_dropout.py: _bias_dropout_add_func; dropout of 0 is none). Backward is the same for both: dropout's
    gradient, and the sum of the branch's gradient and the stream's."""
    mask = 1 if dropout else 0
    backward = (3 * HALF + (2 * HALF + mask if dropout else 0), 1 + mask)
    if fused:
        elementwise(passes, device, elements, 3 * HALF + mask, backward[0], (1, backward[1]))
        return
    forward = 3 * HALF + (2 * HALF + mask if dropout else 0) + (BIAS_PASS if bias else 0)
    elementwise(passes, device, elements, forward, backward[0], (1 + mask + bias, backward[1]))


FUSED_SOFTMAX = (4, 6)
"""Bytes for each stored 16-bit score: read and written once, and backward read with its gradient."""
SOFTMAX_GRADIENT = 6
"""Elements for each score that PyTorch's softmax of more than 1,024 keys reads or writes backward (aten/src/ATen/
native/cuda/SoftMax.cu: softmax_backward_cuda_out): gradient times output, and its sum, each a pass of its own; what is
read twice within a pass comes from caches. Forward a row of up to 12,000 keys is kept in shared memory."""


def _softmax(implementation: Implementation, element: int, sinks: bool) -> tuple[tuple[int, int], tuple[int, int]]:
    """((forward, backward) bytes for each stored score, kernels of the attention core) where no fused kernel takes the
    scores (megatron/core/fusions/fused_softmax.py: forward_torch_softmax): scores of 16 bits are cast to fp32, unless
    told otherwise, masked, normalised and cast back, each a pass; a column of sinks is joined to them and cut off again
    (SoftmaxOne), backward filled up with zeros."""
    wide = 4 if implementation.attention_softmax_in_fp32 else element
    forward, backward = 4 * wide, (SOFTMAX_GRADIENT + 2) * wide
    kernels = (5, 8)
    if wide > element:
        forward, backward, kernels = forward + 2 * (wide + element), backward + 2 * (wide + element), (7, 10)
    if sinks:
        forward, backward, kernels = forward + 2 * wide, backward + 3 * wide, (kernels[0] + 1, kernels[1] + 2)
    return (forward, backward), kernels


def _unfused_core(
    device: Device,
    a: Attention | LatentAttention,
    shard: Shard,
    workload: Workload,
    implementation: Implementation,
    drop: float,
) -> tuple[float, float, tuple[int, int]]:
    """Forward and backward seconds of attention whose scores are stored, and its kernels: batched products over the
    full square, masked softmax, dropout, and the heads gathered into rows."""
    qk, v = head_widths(a)
    batch, seq = shard.micro_batch * scoring_heads(a, shard.tp, shard.cp), workload.seq_length
    rows, element = seq, workload.activation_bytes
    scores = batch * rows * seq
    precision = "fp32" if workload.precision == "fp32" else "bf16"
    product = gemm_seconds(device, rows, seq, qk, precision, element, batch, strided=True)
    values = gemm_seconds(device, rows, v, seq, precision, element, batch, strided=True)
    sinks = has_sinks(a)
    fused = fuses_softmax(implementation, seq, batch, sinks, element)
    softmax, kernels = (FUSED_SOFTMAX, (4, 6)) if fused else _softmax(implementation, element, sinks)
    mask = 2 * element + 1 if drop else 0
    forward = product + values + memory_seconds(device, scores * (softmax[0] + mask), 2)
    backward = 2 * (product + values) + memory_seconds(device, scores * (softmax[1] + mask), 2)
    # heads are gathered into rows by a copy (megatron/core/transformer/dot_product_attention.py: context.permute)
    copied = memory_seconds(device, batch * rows * v * 2 * element)
    dropouts = 1 if drop else 0
    return forward + copied, backward + copied, (kernels[0] + dropouts, kernels[1] + dropouts)


def _flash_core(
    device: Device,
    a: Attention | LatentAttention,
    shard: Shard,
    workload: Workload,
    implementation: Implementation,
    drop: float,
) -> tuple[float, float, tuple[int, int]]:
    """Forward and backward seconds of flash attention over a rank's heads, and its kernels. Under context parallelism a
    ring takes cp parts, gathered keys take two (the causal balance), and an all-to-all gives whole sequences of a cp-th
    of the heads."""
    second = implementation.attention == "flash" and implementation.flash_attention_version == 2
    newer = device.card.architecture not in (*BEFORE_FLASH, "ampere", "ada")
    older = implementation.layer_implementation != "transformer_engine" or (second and newer)
    cp, heads, window = shard.cp, a.num_heads // shard.tp, a.window if isinstance(a, Attention) else None
    whole = cp > 1 and implementation.cp_comm_type == "a2a"
    parts, held = (1, max(1, heads // cp)) if whole else (cp, heads)
    key = (device, shard.micro_batch, workload.seq_length, held, *head_widths(a), window, parts)
    forward, backward = (flash_seconds(*key, again, older, drop > 0) for again in (False, True))
    if cp == 1:
        return forward, backward, (1, 3)
    moved, copies, kernels = _exchange_copies(a, shard, implementation)
    t = HALF * shard.tokens(workload)
    forward += memory_seconds(device, t * moved[0], copies[0])
    backward += memory_seconds(device, t * moved[1], copies[1])
    return forward, backward, kernels


def _exchange_copies(
    a: Attention | LatentAttention, shard: Shard, implementation: Implementation
) -> tuple[tuple[float, float], tuple[int, int], tuple[int, int]]:
    """What context parallelism moves besides: ((forward, backward) elements read or written for each token of a rank,
    kernels that do so, all kernels of the core). Transformer Engine, pytorch/attention/dot_product_attention/
    context_parallel.py; of a ring the last rank's, which merges whole parts."""
    cp, (query, key_value, output) = shard.cp, core_widths(a, shard.tp)
    if implementation.cp_comm_type == "a2a":  # flash_attn_a2a_communicate: a copy before each exchange, one after it
        moved = 2 * 2 * (query + key_value + output)
        return (moved, moved), (8, 8), (13, 15)
    if implementation.cp_comm_type == "allgather":  # AttnFuncWithCPAndKVAllGather
        # forward what was gathered is put in order, halves of the queries cut out and of the outputs joined; backward
        # the same, gradients filled with zeros, those of keys and values added for either half and put in order
        whole = cp * key_value
        return (2 * whole + 2 * query + 2 * output, 8 * whole + 5 * query + 4 * output), (6, 19), (10, 28)
    # AttnFuncWithCPAndKVP2P: flash_attn_fwd_out_correction_init and _out_correction; the gradients' dq.add_, dk.add_
    steps = cp - 1
    moved_back = (2 + 3 * steps) * query + (1 + 1.5 * cp) * key_value
    return ((2 + 3 * steps) * output, moved_back), (2 * cp, 3 * cp), (3 * cp, 6 * cp)


ROTARY_PASSES = (12, 17)
"""Elements that unfused rotary embeddings read or write for each that is rotated (megatron/core/models/common/
embeddings/rope_utils.py: _apply_rotary_pos_emb_bshd). Forward the products with the cosine and the sine, the halves
exchanged (one negated, both joined), their sum, and its join with the empty rest; backward the same without the joins,
the gradients of both halves joined, those of both products added, and those of the two slices filled up and added."""
ROTARY_KERNELS = (6, 11)


def _rotary(p: Passes, device: Device, elements: float, fused: bool) -> None:
    """Add rotary embeddings over `elements` of queries and keys. Megatron-Core has the unfused ones without
    --apply-rope-fusion, and wherever YaRN scales cosines and sines (rope_utils.py: apply_rotary_pos_emb)."""
    if fused:
        elementwise(p, device, elements, 2 * HALF, 2 * HALF)
        return
    kernels = 2 * ROTARY_KERNELS[0], 2 * ROTARY_KERNELS[1]  # of queries and of keys
    forward, backward = (HALF * elements * passes / device.efficiency.irregular for passes in ROTARY_PASSES)
    p.add(memory_seconds(device, forward, kernels[0]), memory_seconds(device, backward, kernels[1]), kernels)


def _attention(
    device: Device,
    model: Model,
    layer: Layer,
    weights: dict[str, Weight],
    shard: Shard,
    workload: Workload,
    implementation: Implementation,
) -> tuple[Passes, float, float, Work]:
    a = layer.attention
    p = Passes()
    t, t_norm, h = shard.tokens(workload), shard.norm_tokens(workload), model.hidden_size
    te = implementation.layer_implementation == "transformer_engine"
    norm(p, device, t_norm * h)
    for name, w in weights.items():
        if name == "linear_proj.bias":
            bias_gradient(p, device, w, t_norm)
        elif name == "linear_qkv.bias" and not te:  # Transformer Engine's product has it in its epilogue
            bias_gradient(p, device, w, t)
        if len(w.shape) != 2 or w.part != "attention":
            continue
        down = "down_proj" in name
        side = "row" if name.startswith("linear_proj") else "" if down else "column"
        linear(p, device, w, t_norm if down and te else t, workload.precision, implementation, side)
    if isinstance(a, Attention):
        query, key = a.query_width / shard.tp, rank_key_width(a, shard.tp)
        width, rotated = query + 2 * key, query + key
        normed = rotated if a.qk_norm != "none" else 0.0
    else:
        heads = a.num_heads // shard.tp
        width, rotated = float(heads * (2 * a.qk_dim + a.v_head_dim)), float(heads * a.qk_pos_emb_head_dim)
        normed = (a.q_lora_rank or 0) + a.kv_lora_rank if a.latent_norms else 0.0
    before_core = p.so_far
    if gathered := t * gathered_projection_width(a, shard.tp) * HALF:
        # tensor_parallel/mappings.py: _gather_along_last_dim joins the ranks' columns in a copy; backward the slice's
        # gradient is filled up with zeros, and cut into the ranks' columns by a copy
        p.add(memory_seconds(device, 2 * gathered), memory_seconds(device, 3 * gathered, 2), (1, 2))
    if isinstance(a, LatentAttention) and model.position == "rope" and implementation.rope_fusion:
        # fusions/fused_mla_yarn_rope_apply.py: queries are rotated in place; keys and values are read together, and
        # written apart with the rotary part joined to the keys
        each = 2 * a.qk_head_dim + a.qk_pos_emb_head_dim + 2 * a.v_head_dim
        elementwise(p, device, t * (a.num_heads // shard.tp) * each, HALF, HALF)
    else:
        elementwise(p, device, t * width, 2 * HALF, 2 * HALF)  # split into heads, joined again backward
    if normed:
        norm(p, device, t * normed)
    if model.position == "rope":
        _rotary(p, device, t * rotated, implementation.rope_fusion)
    prepared = p.since(before_core)
    drop = dropout_of(model, implementation.attention_dropout)
    core = _unfused_core if implementation.attention == "unfused" else _flash_core
    forward, backward, kernels = core(device, a, shard, workload, implementation, drop)
    p.add(forward, backward, kernels)
    hidden_drop = dropout_of(model, implementation.hidden_dropout)
    _residual(p, device, t_norm * h, hidden_drop, "linear_proj.bias" in weights, implementation.bias_dropout_fusion)
    selective = Work(forward, kernels[0]) if "core_attn" in shard.modules else Work()
    if "layernorm" in shard.modules:
        norms = sum(separate_norms(implementation, layer)[: layer.norms])
        selective += Work(memory_seconds(device, t_norm * h * 2 * HALF * norms, norms), norms)
    if "mla_up_proj" in shard.modules and isinstance(a, LatentAttention):
        # up projections, norms before them, rotary embedding and the joining of both parts
        # (megatron/core/transformer/multi_latent_attention.py: qkv_up_proj_and_rope_apply)
        up = Passes()
        for name, w in weights.items():
            if "up_proj" in name:
                linear(up, device, w, t, workload.precision, implementation, "column")
        selective += up.so_far + prepared
    return p, forward, backward, selective


def layer_compute(
    device: Device, model: Model, layer: Layer, shard: Shard, workload: Workload, implementation: Implementation
) -> LayerCompute:
    """Kernels of one layer of this kind."""
    weights = layer_weights(layer, model.hidden_size, model.norm, shard.sharding(implementation))
    named = {w.name: w for w in weights if w.part == "attention"}
    attention, core_forward, core_backward, selective = _attention(
        device, model, layer, named, shard, workload, implementation
    )
    p = Passes()
    t_norm = shard.norm_tokens(workload)
    for _ in range(layer.norms - 1):
        norm(p, device, t_norm * model.hidden_size)
    exchanged = 0.0
    bias = not isinstance(layer.mlp, MoE) and layer.mlp.bias  # of experts it is added before they are joined
    if isinstance(layer.mlp, MoE):
        if permutes_beside(implementation, shard):
            t = shard.tokens(workload) // shard.tp
            exchanged = permutation_seconds(device, model.hidden_size, layer.mlp, t, shard, implementation)
        parts = mixture(p, device, model, layer.mlp, weights, shard, workload, implementation)
        for module in shard.modules:
            selective += parts.get(module, Work())
    else:
        own = [w for w in weights if w.part == "mlp"]
        rows = shard.tokens(workload)
        start = p.so_far
        feed_forward(p, device, layer.mlp, own, rows, workload.precision, implementation)
        for w in own:
            if w.name in ("linear_fc1.bias", "linear_fc2.bias"):
                bias_gradient(p, device, w, rows if w.name == "linear_fc1.bias" else t_norm)
        if "mlp" in shard.modules:
            selective += p.since(start)
    drop = dropout_of(model, implementation.hidden_dropout)
    _residual(p, device, t_norm * model.hidden_size, drop, bias, implementation.bias_dropout_fusion)
    if OPERATIONS in shard.modules:
        precision = linear_precision(device.card, workload.precision, implementation)
        kept = _saved_products(device, model, layer, shard.tp, shard.tokens(workload), precision)
        again = max(0.0, attention.forward + p.forward - core_forward - kept)
        selective = Work(again, attention.forward_kernels + p.forward_kernels)
    operations = layer_operations(attention, p, isinstance(layer.mlp, MoE), implementation)
    captured = replayed(implementation) or "moe" in implementation.cuda_graphs
    launches = (0, 0) if captured else (p.forward_launches, p.backward_launches)
    if replayed(implementation):
        selective = selective._replace(operations=0)
    return LayerCompute(attention, core_forward, core_backward, p, selective, operations, launches, exchanged)


def _saved_products(device: Device, model: Model, layer: Layer, tp: int, tokens: int, precision: str) -> float:
    """Forward seconds of the matrix products whose outputs the policy of `selective_ops` keeps, the attention aside."""
    products = kept_products(layer, model.hidden_size, tp)
    return sum(gemm_seconds(device, tokens, out, width, precision) for out, width in products)
