"""Seconds of a mixture of experts on one rank, without communication: router, permutation, grouped products."""

from __future__ import annotations

from planner.implementation import Implementation
from planner.model import Model, MoE
from planner.parameters import Weight
from planner.routing import received_copies, routed_copies
from planner.timing.kernels import Device, memory_seconds
from planner.timing.launch import DISPATCH, ROUTER
from planner.timing.passes import HALF, Passes, Work, feed_forward, linear
from planner.timing.shard import Shard
from planner.workload import Workload


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
    linear(p, device, router, t, "fp32" if implementation.moe_router_fp32 else "bf16", implementation)
    # scores, top-k, probabilities, counts and their gradients: a dozen small fp32 kernels over tokens x experts
    p.add(
        memory_seconds(device, t * moe.num_experts * 4 * 10, 10),
        memory_seconds(device, t * moe.num_experts * 4 * 8, 8),
        ROUTER,
    )
    total = max(1, received_copies(t, moe, implementation, shard.ep, shard.etp))
    permute = HALF * h * (t + routed_copies(t, moe, implementation))
    sort = HALF * h * 2 * total if shard.ep < moe.num_experts and shard.ep > 1 else 0
    passes = 1.0 if implementation.moe_permute_fusion else 1.5
    p.add(
        memory_seconds(device, passes * 2 * (permute + sort), 6),
        memory_seconds(device, passes * 2 * (permute + sort), 6),
        DISPATCH,
    )
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


def _output_bias(p: Passes, device: Device, elements: int, experts: int, wide: int) -> None:
    """Add the down projection's bias over `elements` outputs of as many local experts (megatron/core/transformer/moe/
    experts.py: TEGroupedMLP._apply_bias). Each expert's share: bias times probabilities is written, added to the output
    into a third tensor, and all are joined; backward splits the gradient, and multiplies and sums it once for the
    biases, once for the probabilities. All of that in the probabilities' type of `wide` bytes; wider than activations,
    what is joined is cast to them, and back for the gradients. The up projection's bias is added within the product."""
    cast = wide + HALF if wide > HALF else 0
    forward, backward = (2 * experts + 1 + (cast > 0), 4 * experts + 1 + 2 * (cast > 0))
    p.add(
        memory_seconds(device, elements * (HALF + 5 * wide + cast), forward),
        memory_seconds(device, elements * (2 * HALF + 6 * wide + 2 * cast), backward),
        (forward, backward),
    )
