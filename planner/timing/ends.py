"""Seconds of what stands around the decoder layers: embedding, final norm, head and loss, multi-token prediction."""

from __future__ import annotations

from planner.implementation import Implementation
from planner.model import Model
from planner.parameters import Weight, padded_vocab_size
from planner.timing.collectives import all_reduce_seconds, gather_seconds
from planner.timing.kernels import Device, memory_seconds
from planner.timing.passes import HALF, Passes, linear
from planner.timing.shard import Shard, dropout_of
from planner.timing.traffic import Links, tensor_parallel_seconds
from planner.workload import Workload

LOSS_BYTES = {
    "unfused": (26, 14), "native": (14, 8), "te": (8, 4), "torch": (18, 22), "compiled": (4, 4), "liger": (8, 4),
}  # fmt: skip
"""Bytes moved for each logit, forward and backward. unfused: cast to fp32, maximum, subtract, exponential, sum, divide,
each a pass of its own (megatron/core/tensor_parallel/cross_entropy.py); native: jit-fused; te, liger: one online
pass; torch: cast, log-softmax, and their gradients; compiled: two fused passes over half-precision logits."""


def embedding_seconds(
    device: Device, model: Model, shard: Shard, workload: Workload, implementation: Implementation, links: Links
) -> tuple[float, float]:
    """(kernels, tensor-parallel communication), forward and backward together.

    Rows are copied out (with dropout, if any). Backward, their gradients are added into a dense gradient of the table,
    and this into the main gradient, row by row whatever was touched (megatron/core/distributed/
    distributed_data_parallel.py: param.main_grad.add_(param.grad)).
    """
    e = device.efficiency
    tokens, h = shard.tokens(workload), model.hidden_size
    table = padded_vocab_size(model.vocab_size, shard.tp, implementation.vocab_divisible_by) // shard.tp
    table *= model.embedding_width or h
    moved = tokens * h * 5 * HALF + table * (2 * HALF + 2 * implementation.grad_reduce_bytes)
    if dropout_of(model, implementation.hidden_dropout):
        moved += shard.norm_tokens(workload) * h * 2 * (2 * HALF + 1)
    kernels = memory_seconds(device, moved, 8)
    if shard.tp == 1:
        return kernels, 0.0
    reduced = HALF * tokens * h
    if shard.sequence_parallel:  # reduce-scatter forward, gather backward
        return kernels, 2 * gather_seconds(links["tp"], reduced, e)
    return kernels, all_reduce_seconds(links["tp"], reduced, e)


def head_seconds(
    device: Device, model: Model, shard: Shard, workload: Workload, implementation: Implementation, links: Links
) -> tuple[float, float]:
    """(kernels, tensor-parallel communication) of final norm, head and loss, forward and backward together."""
    e = device.efficiency
    tokens, h = shard.tokens(workload), model.hidden_size
    vocab = padded_vocab_size(model.vocab_size, shard.tp, implementation.vocab_divisible_by) // shard.tp
    p = Passes()
    if model.final_norm:
        p.add(0.0, memory_seconds(device, shard.norm_tokens(workload) * h * 5 * HALF, 2))
    half = "fp32" if workload.precision == "fp32" else "bf16"
    width = model.embedding_width or h
    linear(p, device, Weight("head", "output_layer.weight", (vocab, width)), tokens, half, implementation, "column")
    forward, backward = LOSS_BYTES[implementation.cross_entropy]
    p.add(0.0, memory_seconds(device, tokens * vocab * (forward + backward), 8))
    kernels = p.forward + p.backward
    if shard.tp == 1:
        return kernels, 0.0
    hidden = HALF * tokens * h
    one_way = tensor_parallel_seconds(p, hidden, 0.0, links["tp"], shard, implementation, half, e)
    loss = 3 * all_reduce_seconds(links["tp"], 4.0 * tokens, e)
    return kernels, one_way[0] + one_way[1] + loss


def projection_seconds(device: Device, model: Model, shard: Shard, workload: Workload, impl: Implementation) -> float:
    """The projection of embedding and hidden state in a multi-token-prediction module, with its norms."""
    h = model.hidden_size
    p = Passes()
    linear(
        p,
        device,
        Weight("mtp", "eh_proj.weight", (h // shard.tp, 2 * h)),
        shard.tokens(workload),
        workload.precision,
        impl,
    )
    return p.forward + p.backward + memory_seconds(device, shard.norm_tokens(workload) * h * 15 * HALF, 6)
