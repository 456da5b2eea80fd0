"""Seconds of a mixture of experts on one rank, without communication: router, permutation, grouped products."""

from __future__ import annotations

from planner.implementation import Implementation
from planner.model import Model, MoE
from planner.parameters import Weight
from planner.routing import reached, received_copies, routed_copies
from planner.timing.kernels import Device, gemm_seconds, memory_seconds
from planner.timing.launch import DISPATCH, ROUTER, WIDE_ROUTER_PRODUCT
from planner.timing.passes import HALF, Passes, Work, feed_forward, linear
from planner.timing.shard import Shard
from planner.workload import Workload

ROUTING_BYTES = (40, 32)
ROUTING_KERNELS = (10, 8)
"""Bytes for each token and expert, and kernels, of scores, top-k, probabilities, maps and auxiliary loss in fp32
(megatron/core/transformer/moe/router.py: TopKRouter.routing; moe_utils.py: topk_routing_with_score_function,
compute_routing_scores_for_aux_loss). Counted there, forward 83 bytes in 23 kernels, and 30 in 4 where Transformer
Engine fuses them (--moe-router-fusion); backward 32 in 8, and 40 in 4. Launches are not asked which, and a figure
between them stands for both: at most 0.5 % of the step of any published mixture."""
UNFUSED_PERMUTATION = 1.5
"""Times as long as the fused kernels that PyTorch's take for the rows, where instructions do not bound both. A choice
within what moe_utils.py (permute, unpermute) allows: for k copies of a token index_select reads and writes each, and
scatter_add reads each and adds it to a sum, 5 k + 1 rows against the 2 k + 2 of Transformer Engine's, 1.8 times for k =
2 and 2.3 for k = 8; or as many, where a token's row stays in the cache between its copies."""


def mixture(
    p: Passes,
    device: Device,
    model: Model,
    moe: MoE,
    weights: tuple[Weight, ...],
    shard: Shard,
    workload: Workload,
    implementation: Implementation,
) -> dict[str, Work]:
    """Router, permutation to the experts, grouped products, permutation back, shared expert. Returns the forward work
    of each module that selective recomputation can name."""
    before = p.so_far
    t, h = shard.tokens(workload) // shard.tp, model.hidden_size
    router = next(w for w in weights if w.name == "router.weight")
    if implementation.moe_router_fp32 and implementation.layer_implementation == "transformer_engine":
        _wide_router(p, device, router, t)
    else:
        linear(p, device, router, t, "fp32" if implementation.moe_router_fp32 else "bf16", implementation)
    scores = t * moe.num_experts
    forward, backward = zip(ROUTING_BYTES, ROUTING_KERNELS, strict=True)
    p.add(
        memory_seconds(device, scores * forward[0], forward[1]),
        memory_seconds(device, scores * backward[0], backward[1]),
        ROUTER,
    )
    total = max(1, received_copies(t, moe, implementation, shard.ep, shard.etp))
    permuted = permutation_seconds(device, h, moe, t, shard, implementation)
    beside = permutes_beside(implementation, shard)
    p.add(0.0 if beside else permuted, 0.0 if beside else permuted, DISPATCH)
    experts = [w for w in weights if w.part == "experts"]
    local = max(1, moe.num_experts // shard.ep)
    rows = max(1, total // local)
    if implementation.moe_grouped_gemm:
        activation = feed_forward(p, device, moe.expert, experts, rows, workload.precision, implementation)
    else:
        one = [Weight(w.part, w.name, w.shape, w.expert, 1) for w in experts]
        activation = Work()
        for _ in range(local):
            activation += feed_forward(p, device, moe.expert, one, rows, workload.precision, implementation)
    if moe.expert.bias and implementation.adds_expert_bias_apart:
        _output_bias(p, device, total * h, local, implementation.probability_bytes)
    start = p.so_far
    if moe.shared:
        shared = [w for w in weights if w.part == "shared_experts"]
        feed_forward(p, device, moe.shared, shared, shard.tokens(workload), workload.precision, implementation)
    return {"moe_act": activation, "shared_experts": p.since(start), "moe": p.since(before)}


def permutes_beside(implementation: Implementation, shard: Shard) -> bool:
    """Whether tokens are permuted within the exchange that runs beside another microbatch's kernels: HybridEP does both
    in one call (megatron/core/transformer/moe/fused_a2a.py: HybridEPDispatch, HybridEPCombine), and the flex dispatcher
    is taken to be its."""
    flex = implementation.moe_dispatcher == "flex" and shard.ep > 1
    return flex and implementation.overlap_moe_expert_parallel_comm


def permutation_seconds(
    device: Device, hidden: int, moe: MoE, tokens: int, shard: Shard, implementation: Implementation
) -> float:
    """One pass, forward or backward, that brings a rank's `tokens` into the order of their experts and back. Rows that
    are drawn from everywhere take longer than chunks that are copied whole; unfused, several kernels move the rows."""
    total = max(1, received_copies(tokens, moe, implementation, shard.ep, shard.etp))
    if implementation.moe_dispatcher == "flex" and shard.ep > 1:
        # what arrives, once for each token and rank, is copied to its experts (token_dispatcher.py: _DeepepManager.
        # get_permuted_hidden_states_by_experts; HybridEP's csrc/hybrid_ep/extension/permute.cu)
        rows, chunks = tokens * reached(moe, shard.ep) + total, 0
    else:
        # to the order of experts before the exchange; chunks by the local experts after it (MoEAlltoAllTokenDispatcher)
        rows = tokens + routed_copies(tokens, moe, implementation)
        chunks = 2 * total if 1 < shard.ep < moe.num_experts else 0
    slower = max(1 / device.efficiency.irregular, 1.0 if implementation.moe_permute_fusion else UNFUSED_PERMUTATION)
    return memory_seconds(device, 2 * HALF * hidden * (slower * rows + chunks), 6)


WIDE = 4
"""Bytes of an fp32 element."""


def _wide_router(p: Passes, device: Device, router: Weight, tokens: int) -> None:
    """Add the router's product under --moe-router-dtype fp32 (megatron/core/transformer/moe/moe_utils.py:
    RouterGatingLinearFunction): 16-bit operands with fp32 scores forward; backward both operands are cast to fp32,
    multiplied in TF32 (Transformer Engine, common/gemm/cublaslt_gemm.cu: CUBLAS_COMPUTE_32F_FAST_TF32), and both
    gradients cast back."""
    experts, hidden = router.shape
    cast = memory_seconds(device, (HALF + WIDE) * (tokens + experts) * hidden, 2)
    backward = gemm_seconds(device, tokens, hidden, experts, "tf32", WIDE)
    backward += gemm_seconds(device, experts, hidden, tokens, "tf32", WIDE)
    forward = gemm_seconds(device, tokens, experts, hidden, "bf16", WIDE)
    p.add(forward, backward + 2 * cast, WIDE_ROUTER_PRODUCT)


def _output_bias(p: Passes, device: Device, elements: int, experts: int, wide: int) -> None:
    """Add the down projection's bias over `elements` outputs of as many local experts (megatron/core/transformer/moe/
    experts.py: TEGroupedMLP._apply_bias). Each expert's share: bias times probabilities is written, added to the output
    into a third tensor, and all are joined; backward splits the gradient, and multiplies and sums it once for the
    biases, once for the probabilities. All of that in the probabilities' type of `wide` bytes; wider than activations,
    what is joined is cast to them, and back for the gradients. The up projection's bias is added within the product."""
    cast = wide + HALF if wide > HALF else 0
    forward, backward = (2 * experts + 1 + (cast > 0), 4 * experts + 1 + 2 * (cast > 0))
    moved = elements / device.efficiency.irregular
    p.add(
        memory_seconds(device, moved * (HALF + 5 * wide + cast), forward),
        memory_seconds(device, moved * (2 * HALF + 6 * wide + 2 * cast), backward),
        (forward, backward),
    )
