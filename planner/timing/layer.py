"""Seconds that the kernels of one decoder layer take for one microbatch on one rank, without communication.

Matrix products come from the layer's weight tensors on the rank (`parameters.layer_weights`): forward, and for the
backward pass the products of the input's and of the weight's gradient. Everything else is a memory-bound pass counted
in bytes read and written for each token.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.implementation import Implementation
from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE
from planner.parameters import Weight, layer_weights
from planner.timing.efficiency import Efficiency
from planner.timing.kernels import Device, flash_seconds, gemm_seconds, memory_seconds
from planner.timing.shard import Shard, dropout_of
from planner.workload import Workload

HALF = 2
"""Bytes of an activation element."""
LAYER_OPERATIONS = (10, 15)
"""Operations (forward, backward) that the host issues for any layer beyond its kernels: views, random states, hooks.
From GPT-2 XL at micro-batch 1 on H100, which takes 3.5 ms a layer whatever the kernels."""
ROUTER_OPERATIONS = (25, 20)
DISPATCH_OPERATIONS = (30, 25)
"""Operations (forward, backward) that the host issues for routing and for dispatch and combine, counted in
megatron/core/transformer/moe/{router,moe_utils,token_dispatcher}.py: scores, top-k, auxiliary loss, maps and counts;
permutation, splits, exchanges, sorting by expert and back."""


@dataclass(slots=True)
class Passes:
    """Forward and backward seconds of a part of a layer, and what of the backward can hide communication."""

    forward: float = 0.0
    backward: float = 0.0
    column_dgrad: float = 0.0
    """Of backward: input gradients of the products whose input was gathered over tp."""
    column_wgrad: float = 0.0
    """Of backward: weight gradients of the same products."""
    column_forward: float = 0.0
    row_forward: float = 0.0
    row_dgrad: float = 0.0
    forward_kernels: int = 0
    backward_kernels: int = 0

    def add(self, forward: float, backward: float, kernels: tuple[int, int] = (1, 1)) -> None:
        self.forward += forward
        self.backward += backward
        self.forward_kernels += kernels[0]
        self.backward_kernels += kernels[1]


@dataclass(frozen=True, slots=True)
class LayerCompute:
    """Kernels of one layer for one microbatch [s]."""

    attention: Passes
    core_forward: float
    """Of attention: the core (scores, softmax, values), which context parallelism hides its ring behind."""
    core_backward: float
    mlp: Passes
    selective: float
    """Forward work that selective recomputation repeats."""

    @property
    def forward(self) -> float:
        return self.attention.forward + self.mlp.forward

    @property
    def backward(self) -> float:
        return self.attention.backward + self.mlp.backward

    def host_seconds(self, e: Efficiency) -> tuple[float, float]:
        """(forward, backward) time in which the host can issue the layer's operations."""
        a, m = self.attention, self.mlp
        forward = LAYER_OPERATIONS[0] + a.forward_kernels + m.forward_kernels
        backward = LAYER_OPERATIONS[1] + a.backward_kernels + m.backward_kernels
        return forward * e.launch_seconds, backward * e.launch_seconds


def linear(
    passes: Passes,
    device: Device,
    weight: Weight,
    tokens: int,
    precision: str,
    implementation: Implementation,
    side: str = "",
) -> None:
    """Add a linear layer: y = x W^T for `tokens` rows on each of `weight.count` weights.

    The weight's gradient is accumulated into the main gradient, read and written (`gradient_accumulation_fusion`), or
    made apart and then added. fp8 casts each operand with its transpose: one read of 2 bytes, two writes of 1.
    """
    out, width = weight.shape
    n = weight.count
    main = implementation.grad_reduce_bytes
    forward = gemm_seconds(device, tokens, out, width, precision, HALF, n)
    dgrad = gemm_seconds(device, tokens, width, out, precision, HALF, n)
    if implementation.gradient_accumulation_fusion:
        wgrad = gemm_seconds(device, out, width, tokens, precision, 2 * main, n)
    else:
        wgrad = gemm_seconds(device, out, width, tokens, precision, HALF, n)
        wgrad += memory_seconds(device, weight.numel * (HALF + 2 * main))
    cast_in = cast_out = 0.0
    if precision in ("fp8", "fp4"):
        cast_in = memory_seconds(device, tokens * n * width * 4)
        cast_out = memory_seconds(device, tokens * n * out * 4)
    passes.add(forward + cast_in, dgrad + wgrad + cast_out, (1 + (cast_in > 0), 2 + (cast_in > 0)))
    if side == "column":
        passes.column_forward += forward
        passes.column_dgrad += dgrad
        passes.column_wgrad += wgrad
    elif side == "row":
        passes.row_forward += forward
        passes.row_dgrad += dgrad


def elementwise(
    passes: Passes, device: Device, elements: float, forward: float, backward: float, fused: bool = True
) -> None:
    """Add a memory-bound pass over `elements`, moving so many bytes for each; unfused it takes three kernels, each of
    which reads and writes what the fused one keeps in registers (2.5 times the bytes)."""
    kernels, factor = (1, 1.0) if fused else (3, 2.5)
    passes.add(
        memory_seconds(device, elements * forward * factor, kernels) if forward else 0.0,
        memory_seconds(device, elements * backward * factor, kernels) if backward else 0.0,
        (kernels if forward else 0, kernels if backward else 0),
    )


def _norm(passes: Passes, device: Device, elements: float) -> None:
    elementwise(passes, device, elements, 2 * HALF, 3 * HALF)


def _residual(passes: Passes, device: Device, elements: float, dropout: float, fused: bool) -> None:
    """Bias, dropout and addition to the residual stream; backward adds the branch's gradient to the stream's."""
    mask = 1 if dropout else 0
    elementwise(passes, device, elements, 3 * HALF + mask, 3 * HALF + (2 * HALF + mask if dropout else 0), fused)


def _unfused_core(
    device: Device, a: Attention | LatentAttention, shard: Shard, seq: int, implementation: Implementation, drop: float
) -> tuple[float, float]:
    """Attention whose scores are stored: batched products over the full square, masked softmax, dropout."""
    heads = a.num_heads // shard.tp
    qk, v = (a.head_dim, a.head_dim) if isinstance(a, Attention) else (a.qk_dim, a.v_head_dim)
    batch, rows = shard.micro_batch * heads, seq // shard.cp
    scores = batch * rows * seq
    product = gemm_seconds(device, rows, seq, qk, "bf16", HALF, batch)
    values = gemm_seconds(device, rows, v, seq, "bf16", HALF, batch)
    # fused: read and write 2 bytes each; else scale, mask, cast to fp32, softmax and cast back, each a pass
    softmax, softmax_backward = (4, 6) if implementation.masked_softmax_fusion else (22, 18)
    mask = 5 if drop else 0
    forward = product + values + memory_seconds(device, scores * (softmax + mask), 2)
    backward = 2 * (product + values) + memory_seconds(device, scores * (softmax_backward + mask), 2)
    return forward, backward


def _attention(
    device: Device,
    model: Model,
    layer: Layer,
    weights: dict[str, Weight],
    shard: Shard,
    workload: Workload,
    implementation: Implementation,
) -> tuple[Passes, float, float, float]:
    a = layer.attention
    p = Passes()
    t, t_norm, h = shard.tokens(workload), shard.norm_tokens(workload), model.hidden_size
    te = implementation.layer_implementation == "transformer_engine"
    _norm(p, device, t_norm * h)
    for name, w in weights.items():
        if len(w.shape) != 2 or w.part != "attention":
            continue
        down = "down_proj" in name
        side = "row" if name.startswith("linear_proj") else "" if down else "column"
        linear(p, device, w, t_norm if down and te else t, workload.precision, implementation, side)
    if isinstance(a, Attention):
        heads, qk, v, window = a.num_heads // shard.tp, a.head_dim, a.head_dim, a.window
        width = (a.query_width + 2 * a.key_width) / shard.tp
        rotated = (a.query_width + a.key_width) / shard.tp
        normed = rotated if a.qk_norm != "none" else 0.0
    else:
        heads, qk, v, window = a.num_heads // shard.tp, a.qk_dim, a.v_head_dim, None
        width = heads * (2 * qk + v)
        rotated = heads * 2 * qk  # rotary parts are split off and joined again with the rest
        normed = (a.q_lora_rank or 0) + a.kv_lora_rank if a.latent_norms else 0.0
    elementwise(p, device, t * width, 2 * HALF, 2 * HALF)  # split into heads, joined again backward
    if normed:
        _norm(p, device, t * normed)
    if model.position == "rope":
        elementwise(p, device, t * rotated, 2 * HALF, 2 * HALF, implementation.rope_fusion)
    if implementation.attention == "unfused":
        drop = dropout_of(model, implementation.attention_dropout)
        forward, backward = _unfused_core(device, a, shard, workload.seq_length, implementation, drop)
        kernels = (4, 7) if implementation.masked_softmax_fusion else (8, 11)
    else:
        key = (device, shard.micro_batch, workload.seq_length, heads, qk, v, window, shard.cp)
        forward, backward = flash_seconds(*key, False, not te), flash_seconds(*key, True, not te)
        if shard.cp > 1:  # each part's output is rescaled and merged in fp32
            merge = memory_seconds(device, (shard.cp - 1) * t * heads * v * 8, 3 * (shard.cp - 1))
            forward, backward = forward + merge, backward + merge
        kernels = (shard.cp, 3 * shard.cp)
    p.add(forward, backward, kernels)
    _residual(
        p,
        device,
        t_norm * h,
        dropout_of(model, implementation.hidden_dropout),
        implementation.bias_dropout_fusion,
    )
    selective = forward if "core_attn" in shard.modules else 0.0
    if "layernorm" in shard.modules:
        selective += memory_seconds(device, t_norm * h * 2 * HALF * layer.norms, layer.norms)
    if "mla_up_proj" in shard.modules and isinstance(a, LatentAttention):
        selective += sum(
            gemm_seconds(device, t, w.shape[0], w.shape[1], workload.precision)
            for name, w in weights.items()
            if "up_proj" in name
        )
    return p, forward, backward, selective


def _activation(p: Passes, device: Device, mlp: MLP, tokens: float, width: float, fused: bool) -> None:
    """Gated: read both halves, write one; backward reads them with the gradient and writes both gradients."""
    if mlp.gated:
        elementwise(p, device, tokens * width, 3 * HALF, 5 * HALF, fused)
    else:
        elementwise(p, device, tokens * width, 2 * HALF, 3 * HALF, fused)


def _feed_forward(
    p: Passes,
    device: Device,
    mlp: MLP,
    weights: list[Weight],
    rows: int,
    precision: str,
    implementation: Implementation,
) -> float:
    """Both linear layers of an MLP on `rows` tokens (for each expert, when it stands for several) and its activation.
    Returns the activation's forward seconds."""
    before = 0.0
    for w in weights:
        if len(w.shape) == 2 and w.shape[0] > 1:
            linear(p, device, w, rows, precision, implementation, "column" if "fc1" in w.name else "row")
    fc2 = next(w for w in weights if w.name == "linear_fc2.weight")
    before = p.forward
    _activation(p, device, mlp, rows * fc2.count, fc2.shape[1], implementation.bias_activation_fusion)
    return p.forward - before


def expert_rows(moe: MoE, shard: Shard, workload: Workload, implementation: Implementation) -> int:
    """Tokens that one rank's experts work on together in one microbatch: its share of all copies, times imbalance."""
    copies = shard.tokens(workload) * moe.top_k * shard.etp / shard.tp
    return max(1, round(copies * implementation.moe_imbalance))


def _mixture(
    p: Passes,
    device: Device,
    model: Model,
    moe: MoE,
    weights: tuple[Weight, ...],
    shard: Shard,
    workload: Workload,
    implementation: Implementation,
) -> tuple[float, float]:
    """Router, permutation to the experts, grouped products, permutation back, shared expert. Returns seconds of the
    activation and of everything (both forward), for selective recomputation."""
    t, h = shard.tokens(workload) // shard.tp, model.hidden_size
    router = next(w for w in weights if w.name == "router.weight")
    linear(p, device, router, t, "fp32" if implementation.moe_router_fp32 else "bf16", implementation)
    # scores, top-k, probabilities, counts and their gradients: a dozen small fp32 kernels over tokens x experts
    p.add(
        memory_seconds(device, t * moe.num_experts * 4 * 10, 10),
        memory_seconds(device, t * moe.num_experts * 4 * 8, 8),
        ROUTER_OPERATIONS,
    )
    total = expert_rows(moe, shard, workload, implementation)
    permute = HALF * h * (t + t * moe.top_k)
    sort = HALF * h * 2 * total if shard.ep < moe.num_experts and shard.ep > 1 else 0
    passes = 1.0 if implementation.moe_permute_fusion else 1.5
    p.add(
        memory_seconds(device, passes * 2 * (permute + sort), 6),
        memory_seconds(device, passes * 2 * (permute + sort), 6),
        DISPATCH_OPERATIONS,
    )
    experts = [w for w in weights if w.part == "experts"]
    local = max(1, moe.num_experts // shard.ep)
    rows = max(1, total // local)
    start = p.forward
    if implementation.moe_grouped_gemm:
        activation = _feed_forward(p, device, moe.expert, experts, rows, workload.precision, implementation)
    else:
        one = [Weight(w.part, w.name, w.shape, w.expert, 1) for w in experts]
        activation = 0.0
        for _ in range(local):
            activation += _feed_forward(p, device, moe.expert, one, rows, workload.precision, implementation)
    whole = p.forward - start
    if moe.shared:
        shared = [w for w in weights if w.part == "shared_experts"]
        rows = shard.tokens(workload)
        whole += _feed_forward(p, device, moe.shared, shared, rows, workload.precision, implementation)
    return activation, whole


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
        _norm(p, device, t_norm * model.hidden_size)
    if isinstance(layer.mlp, MoE):
        activation, whole = _mixture(p, device, model, layer.mlp, weights, shard, workload, implementation)
        if "moe_act" in shard.modules:
            selective += activation
        if "moe" in shard.modules:
            selective += whole
    else:
        own = [w for w in weights if w.part == "mlp"]
        rows = shard.tokens(workload)
        start = p.forward
        _feed_forward(p, device, layer.mlp, own, rows, workload.precision, implementation)
        if "mlp" in shard.modules:
            selective += p.forward - start
    drop = dropout_of(model, implementation.hidden_dropout)
    _residual(p, device, t_norm * model.hidden_size, drop, implementation.bias_dropout_fusion)
    return LayerCompute(attention, core_forward, core_backward, p, selective)
