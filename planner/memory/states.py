"""Model states: weights, gradients and optimizer of the parameters that a rank holds, and how ZeRO divides them.

Bytes for each parameter element, whole + sharded over the data-parallel group of d ranks (dense parameters dp * cp;
experts tp * cp * dp / (etp * ep)):

    zero  keeper      weights            gradients     optimizer
    0     Megatron    2                  4             12 (fp32 master, two moments)
    1     Megatron    2                  4             12 / d (distributed optimizer: docs/user-guide/features/dist_optimizer.md)
    2     DeepSpeed   2                  g / d         12 / d (runtime/zero/stage_1_and_2.py)
    2     FSDP2       2 + 4 / d          4 / d         8 / d  (the fp32 shard is the master; 16-bit copies stay gathered)
    2     Megatron    2 + 4 / d          g / d         8 / d  (Megatron-FSDP optim_grads: main weights are a buffer)
    3     FSDP2       4 / d              4 / d         8 / d  (torch.distributed.fsdp.fully_shard, reshard_after_forward)
    3     Megatron    6 / d              g / d         8 / d  (optim_grads_params: param_and_grad_buffer.py)
    3     DeepSpeed   2 / d              g / d         12 / d (runtime/zero/stage3.py)

g is 4, or 2 where gradients are kept in bf16: they are then copied to fp32 for the optimizer's step. What is gathered
for its turn stands in sharded.py. Rajbhandari et al. 2020 (arXiv:1910.02054), section 5.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

from planner.errors import NotModelled
from planner.implementation import Implementation
from planner.layout import Layout
from planner.parameters import Weight
from planner.workload import Workload


@dataclass(frozen=True, slots=True)
class StateBytes:
    """Bytes for one parameter element: kept whole on every rank, and divided over the data-parallel group."""

    weights_whole: int
    weights_sharded: int
    gradients_whole: int
    gradients_sharded: int
    optimizer_whole: int
    optimizer_sharded: int
    gathered: int = 0
    """Bytes for one element of a layer that is gathered for its turn (ZeRO 3), else 0."""
    computed: int = 2
    """Bytes of a weight as it is computed with."""

    @property
    def sharded(self) -> int:
        return self.weights_sharded + self.gradients_sharded + self.optimizer_sharded


OPTIMIZER_MOMENTS = {"adamw": 2, "adamw-8bit": 2, "sgd": 0, "sgd-momentum": 1, "muon": 1}
"""Moments that each optimizer keeps for an element of a weight matrix."""
MUON_MATRICES = ("attention", "mlp", "experts", "shared_experts", "mtp")
"""Parts whose matrices Muon orthogonalises; everything else is left to AdamW (megatron/core/optimizer/muon.py)."""


@lru_cache(maxsize=1024)
def state_bytes(zero: int, workload: Workload, impl: Implementation) -> StateBytes:
    """Bytes for each parameter element. Raises NotModelled for combinations no framework offers."""
    moments = _moment_bytes(workload, impl)
    if workload.precision == "fp32":
        weight, gradient, master = 4, 4, 0
    else:
        weight = 2
        gradient = (
            4 if workload.precision == "fp16" and impl.framework == "megatron-deepspeed" else impl.grad_reduce_bytes
        )
        master = impl.main_params_bytes
    if impl.fp8_param_gather and workload.precision == "fp8":
        weight = 1
    optimizer = master + moments
    if zero == 0:
        return StateBytes(weight, 0, gradient, 0, optimizer, 0, computed=weight)
    if zero == 1:
        return StateBytes(weight, 0, gradient, 0, 0, optimizer, computed=weight)
    if impl.sharded_framework == "deepspeed":
        if zero == 2:
            return StateBytes(weight, 0, 0, gradient, 0, optimizer, computed=weight)
        return StateBytes(0, weight, 0, gradient, 0, optimizer, gathered=weight, computed=weight)
    if impl.sharded_framework == "megatron_fsdp":
        # model weights, main weights and main gradients are three buffers; fp32 training has no second weight buffer
        main = 0 if workload.precision == "fp32" else impl.main_params_bytes
        if zero == 2:
            return StateBytes(weight, main, 0, gradient, 0, moments, computed=weight)
        return StateBytes(0, weight + main, 0, gradient, 0, moments, gathered=weight, computed=weight)
    # fully_shard keeps the parameters in fp32 and casts what it gathers; gradients come back in the parameters' type
    if zero == 2:
        return StateBytes(weight, 4, 0, 4, 0, moments, computed=weight)
    return StateBytes(0, 4, 0, 4, 0, moments, gathered=weight, computed=weight)


def _moment_bytes(workload: Workload, impl: Implementation) -> int:
    """Bytes of all moments of one element. 8-bit Adam keeps one byte and a 4-byte scale for each 256 elements of each
    moment (bitsandbytes: blockwise quantisation), rounded to 2 bytes."""
    if workload.optimizer == "adamw-8bit":
        return 2
    if workload.optimizer == "adamw":
        return impl.exp_avg_bytes + impl.exp_avg_sq_bytes
    if workload.optimizer not in OPTIMIZER_MOMENTS:
        raise NotModelled(
            f"optimizer '{workload.optimizer}' is not modelled; modelled are {', '.join(sorted(OPTIMIZER_MOMENTS))}."
        )
    return 4 * OPTIMIZER_MOMENTS[workload.optimizer]


def moments_left_to_adam(weights: Sequence[Weight], workload: Workload) -> int:
    """Elements that a second moment is kept for although the optimizer keeps one: Muon's embeddings, heads and vectors."""
    if workload.optimizer != "muon":
        return 0
    return sum(w.numel for w in weights if len(w.shape) < 2 or w.part not in MUON_MATRICES)


def shard_group(layout: Layout, impl: Implementation, expert: bool) -> int:
    """Ranks that a parameter's optimizer state is divided over. Experts count as dense without expert parallelism
    (megatron/core/transformer/moe/experts.py: the allreduce attribute)."""
    ranks = layout.edp if expert and layout.ep > 1 else layout.dp * layout.cp
    replicas = impl.num_distributed_optimizer_instances if layout.zero == 1 else layout.hsdp_replicas
    return max(1, ranks // replicas)


def split_by_group(weights: Sequence[Weight], layout: Layout) -> tuple[int, int]:
    """Elements (reduced with the dense parameters, reduced over the expert data-parallel group)."""
    dense = expert = 0
    for w in weights:
        if w.expert and layout.ep > 1:
            expert += w.numel
        else:
            dense += w.numel
    return dense, expert


def shard(numel: int, group: int) -> int:
    """Elements of the largest shard."""
    return -(-numel // group)


PARAMETER_ALIGNMENT = 64
"""Elements to which each parameter's start in a bucket is aligned (param_and_grad_buffer.py)."""
BUS_BANDWIDTH_ALIGNMENT = 65536
"""Elements to which buckets are padded for NCCL bus bandwidth (--ddp-pad-buckets-for-high-nccl-busbw)."""


def bucket_elements(impl: Implementation, data_parallel: int) -> int | None:
    """Elements after which a bucket is closed; None: one bucket (distributed_data_parallel.py)."""
    if not impl.overlap_grad_reduce:
        return None
    return impl.ddp_bucket_elements or max(40_000_000, 1_000_000 * data_parallel)


def padded_elements(weights: Sequence[Weight], group: int, bucket: int | None, high_bandwidth: bool) -> int:
    """Elements of a distributed-optimizer buffer over these parameters, in reverse order as Megatron fills it: each start
    aligned, each bucket's end padded to a multiple of the group and of 128
    (megatron/core/distributed/param_and_grad_buffer.py: _ParamAndGradBuffer.__init__)."""
    unit = math.lcm(group, BUS_BANDWIDTH_ALIGNMENT if high_bandwidth else 128)
    start = bucket_start = 0
    for w in reversed(weights):
        size = w.numel // w.count
        for _ in range(w.count if size % PARAMETER_ALIGNMENT or bucket else 1):
            start = -(-start // PARAMETER_ALIGNMENT) * PARAMETER_ALIGNMENT
            start += size if size % PARAMETER_ALIGNMENT or bucket else w.numel
            if bucket and start - bucket_start >= bucket:
                start = -(-start // unit) * unit
                bucket_start = start
    return -(-start // unit) * unit
