"""Seconds of what stands around the decoder layers: embedding, final norm, head and loss, multi-token prediction."""

from __future__ import annotations

from dataclasses import replace
from typing import NamedTuple

from planner.implementation import CrossEntropy, Implementation
from planner.memory.activations.edges import chunk_rows
from planner.model import Model
from planner.parameters import Weight, padded_vocab_size
from planner.timing.collectives import all_reduce_seconds, gather_seconds
from planner.timing.efficiency import Efficiency
from planner.timing.kernels import Device, memory_seconds
from planner.timing.passes import HALF, Passes, elementwise, linear, norm
from planner.timing.shard import Shard, dropout_of
from planner.timing.traffic import Links, tensor_parallel_seconds
from planner.topology import GroupLink
from planner.workload import Workload


class Loss(NamedTuple):
    """What a loss moves for each 16-bit logit [bytes], and its kernels."""

    forward: int
    backward: int
    kernels: int


LOSSES = {
    "unfused": Loss(38, 14, 26),
    "native": Loss(22, 10, 10),
    "te": Loss(6, 4, 8),
    "torch": Loss(22, 26, 7),
    "compiled": Loss(4, 4, 4),
    "liger": Loss(6, 0, 3),
}
"""unfused: megatron/core/tensor_parallel/cross_entropy.py. Forward cast to fp32 (6), maximum (4), subtraction (8),
exponential (8), sum (4) and division (8), backward the product (8) and autograd's cast (6); the other kernels are as
small as the tokens. native: the same in the functions of fusions/fused_cross_entropy.py, each compiled: cast and
maximum (6), subtraction, exponential and sum (8), division (8), and backward all in one. te: Transformer Engine,
pytorch/triton/cross_entropy.py before 2.18: two reads and a write in place, and backward another product in place
(since its pull request 3193 the gradient is kept in fp32: 22 in all). torch: torch.nn.functional.cross_entropy of fp32
logits: cast (6), and a log-softmax that reads three times (aten/src/ATen/native/cuda/SoftMax.cu: cunn_SoftMaxForward);
backward zeros (4), its gradient, which reads three times too, and cast (6). compiled: each pass in one kernel over
16-bit logits. liger: one kernel, forward, on a chunk of tokens (linkedin/Liger-Kernel,
ops/fused_linear_cross_entropy.py).

Measured on A100 for vocabularies of 32,768 to 131,072 (Liger-Kernel benchmark/data/all_benchmark_data.csv), in bytes at
this model's bandwidth: the log-softmax 15 of the 16 that are counted here; Liger's two kernels on fp32 logits 15 to 18
of 20, because what is read twice comes from caches for the smaller ones."""

WIDE = 4
"""Bytes of an fp32 element."""


def embedding_seconds(
    device: Device, model: Model, shard: Shard, workload: Workload, implementation: Implementation, links: Links
) -> tuple[float, float]:
    """(kernels, tensor-parallel communication), forward and backward together.

    Rows are copied out (with dropout, if any): read and written. Backward, their gradients are read and added into rows
    of a dense gradient of the table (aten/src/ATen/native/cuda/Embedding.cu: embedding_dense_backward_cuda), which was
    filled with zeros and is read for the main gradient, row by row whatever was touched (megatron/core/distributed/
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
        norm(p, device, shard.norm_tokens(workload) * h)
    half = "fp32" if workload.precision == "fp32" else "bf16"
    width = model.embedding_width or h
    weight, kind = Weight("head", "output_layer.weight", (vocab, width)), implementation.cross_entropy
    loss = LOSSES[kind]
    chunks, rows = 1, tokens
    if kind == "liger":
        # the products of a chunk follow each other; the weight's gradient is added up in 16 bits by the product itself
        # until 0.4, since then by kernels of their own, which take longer (ops/fused_linear_cross_entropy.py)
        rows = chunk_rows(tokens, vocab, width)
        chunks = -(-tokens // rows)
        implementation = replace(implementation, gradient_accumulation_fusion=True, grad_reduce_bytes=2)
    for _ in range(chunks):
        linear(p, device, weight, rows, half, implementation, "column")
    p.add(0.0, memory_seconds(device, tokens * vocab * (loss.forward + loss.backward), chunks * loss.kernels))
    kernels = p.forward + p.backward
    if shard.tp == 1:
        return kernels, 0.0
    hidden = HALF * tokens * h
    one_way = tensor_parallel_seconds(p, hidden, 0.0, links["tp"], shard, implementation, half, e)
    return kernels, one_way[0] + one_way[1] + _loss_traffic(kind, tokens, links["tp"], e)


def _loss_traffic(kind: CrossEntropy, tokens: int, link: GroupLink, e: Efficiency) -> float:
    """What the ranks of a divided vocabulary tell each other of each token, in fp32: the largest logit, the target's
    and the sum of exponentials. Three all-reduces (megatron/core/tensor_parallel/cross_entropy.py; torch/distributed/
    tensor/parallel/loss.py), of which the fused ones join two (megatron/core/fusions/fused_cross_entropy.py), or one
    gather (Transformer Engine, pytorch/triton/cross_entropy.py: all_gather_into_tensor)."""
    if kind == "te":
        return gather_seconds(link, 3.0 * WIDE * tokens * link.size, e)
    one = all_reduce_seconds(link, float(WIDE * tokens), e)
    return one + all_reduce_seconds(link, 2.0 * WIDE * tokens, e) if kind == "native" else 3 * one


def projection_seconds(
    device: Device, model: Model, shard: Shard, workload: Workload, implementation: Implementation, links: Links
) -> tuple[float, float]:
    """(kernels, tensor-parallel communication) of what a multi-token-prediction module does around its layer, forward
    and backward together (megatron/core/transformer/multi_token_prediction.py: _concat_embeddings, _postprocess): norms
    of the embedding, of the hidden state and of the result, the first two joined and projected by columns, and the
    projection's output gathered. Backward the joined gradient is cut without a copy."""
    e = device.efficiency
    tokens, own, h = shard.tokens(workload), shard.norm_tokens(workload), model.hidden_size
    p = Passes()
    for _ in range(3):
        norm(p, device, own * h)
    elementwise(p, device, 2 * own * h, 2 * HALF, 0.0, (1, 0))
    weight = Weight("mtp", "eh_proj.weight", (h // shard.tp, 2 * h))
    linear(p, device, weight, tokens, workload.precision, implementation, "column")
    if shard.tp == 1:
        return p.forward + p.backward, 0.0
    hidden = HALF * tokens * h
    joined = tensor_parallel_seconds(p, 2.0 * hidden, 0.0, links["tp"], shard, implementation, workload.precision, e)
    # the output is gathered, and cut again for sequence parallelism, whose backward pass gathers
    gathers = 2 if shard.sequence_parallel else 1
    return p.forward + p.backward, sum(joined) + gathers * gather_seconds(links["tp"], float(hidden), e)
