"""Seconds before and after the pipeline, per stage: gradient reduction, parameter gather, optimizer step.

megatron/core/distributed/param_and_grad_buffer.py: gradients are reduced bucket by bucket during the last microbatch's
backward pass (`overlap_grad_reduce`), parameters gathered bucket by bucket during the first one's forward pass
(`overlap_param_gather`); only what outlasts that pass, and the last bucket, is exposed. Without overlap all of it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import add

from planner.implementation import Implementation, weight_copies
from planner.layout import Layout
from planner.memory.states import (
    bucket_limit,
    half_weight_bytes,
    keeps_remainders,
    master_bytes,
    moment_bytes,
    shard_group,
    takes_muon,
)
from planner.parameters import Weight
from planner.timing.collectives import all_reduce_seconds, gather_seconds, keeps_weights, reduces_whole
from planner.timing.efficiency import Efficiency
from planner.timing.form import Tail, nanoseconds
from planner.timing.host import host_step_seconds
from planner.timing.kernels import Device
from planner.timing.traffic import Links
from planner.topology import GroupLink
from planner.workload import Workload

NEWTON_SCHULZ_STEPS = 5
"""Of Muon (--muon-num-ns-steps)."""
LARGE = 1e9
"""Bytes of a message whose latency does not matter."""

Parameters = tuple[int, int]
"""(dense, expert) parameters on a rank."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Seconds linear in a stage's layers: a fixed part and one for each layer kind; rounded to nanoseconds by step."""

    fixed: float
    layers: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Rates:
    """Seconds for each (dense, expert) parameter on a rank, and the latency of one collective."""

    reduce: tuple[float, float]
    gather: tuple[float, float]
    optimizer: tuple[float, float]
    latency: float


def _slope(collective: Callable[[GroupLink, float, Efficiency], float], link: GroupLink, e: Efficiency) -> float:
    """Seconds a byte of a large message."""
    return (collective(link, 2 * LARGE, e) - collective(link, LARGE, e)) / LARGE


def optimizer_traffic_bytes(zero: int, workload: Workload, implementation: Implementation) -> int:
    """What the optimizer reads and writes for one parameter of the rank's shard: its gradient for the norm, to clip it
    (twice) and to apply it; master weight and moments there and back; the weight.

    Gradients that were reduced in half precision are copied to fp32 first (FSDP2 casts them as they come:
    _fsdp_collectives.py: foreach_reduce), unless the precision-aware optimizer takes them as they are; where it keeps
    what fp32 has beyond the weight, the weight is read too (megatron/core/optimizer/distrib_optimizer.py:
    _copy_model_grads_to_main_grads; optimizer_config.py: store_param_remainders).
    """
    aware = implementation.precision_aware_optimizer
    gradient = implementation.main_grads_bytes if aware else 4
    copied = implementation.grad_reduce_bytes + 4 if implementation.grad_reduce_bytes < 4 and not aware else 0
    weight = half_weight_bytes(workload, implementation)
    read = weight if keeps_remainders(zero, workload, implementation) else 0
    kept = master_bytes(zero, workload, implementation) + moment_bytes(workload, implementation)
    return copied + 4 * gradient + 2 * kept + read + weight


def prescales(layout: Layout, implementation: Implementation) -> bool:
    """Whether whole main gradients are multiplied before their reduction, experts' too where just one rank has them."""
    megatron = implementation.framework == "megatron" and layout.zero < 2
    return megatron and implementation.prescales_gradients and layout.dp * layout.cp > 1


def rates(
    device: Device,
    layout: Layout,
    implementation: Implementation,
    workload: Workload,
    links: Links,
    ranks_per_node: int,
) -> Rates:
    """What reduction, gather and optimizer cost for each parameter under a layout."""
    e = device.efficiency
    away = implementation.optimizer_offload_fraction
    on_host = host_step_seconds(device, implementation, ranks_per_node) if away else 0.0
    reduce, gather, update = [0.0, 0.0], [0.0, 0.0], [0.0, 0.0]
    traffic = optimizer_traffic_bytes(layout.zero, workload, implementation)
    main, weight = implementation.grad_reduce_bytes, half_weight_bytes(workload, implementation)
    # read, multiplied and written, all of the buffer, whose memory traffic no other kernel hides
    scaled = 2 * main if prescales(layout, implementation) else 0
    for i, name in enumerate(("dp_cp", "edp")):
        link = links[name]
        shards = shard_group(layout, implementation, name == "edp") if layout.zero else 1
        moved = (1 - away) * traffic / shards + main / (shards if layout.zero >= 2 else 1) + scaled
        update[i] = moved / device.memory_bytes_per_second + away * on_host / shards
        if link.size == 1:
            continue
        if layout.zero == 0:
            reduce[i] = main * _slope(all_reduce_seconds, link, e)
        elif layout.zero == 1:
            reduction = all_reduce_seconds if reduces_whole(implementation, layout.zero) else gather_seconds
            reduce[i] = main * _slope(reduction, link, e)
            gather[i] = weight * _slope(gather_seconds, link, e)
        elif keeps_weights(implementation, layout.zero):
            shard = links["shard"] if layout.hsdp_replicas > 1 else link
            gather[i] = weight * _slope(gather_seconds, shard, e)
        if layout.zero >= 2 and layout.hsdp_replicas > 1 and implementation.sharded_framework != "fsdp2":
            # shards are reduced in every backward pass, replicas agree in the last one
            reduce[i] = main * _slope(all_reduce_seconds, links["replicate"], e) / links["shard"].size
    group = links["dp_cp"]
    latency = gather_seconds(group, 1e-9, e) * (2 if layout.zero == 0 else 1) if group.size > 1 else 0.0
    n = weight_copies(implementation, layout.pp)
    each = [(n * dense, n * expert) for dense, expert in (reduce, gather, update)]
    return Rates(each[0], each[1], each[2], latency)


@dataclass(frozen=True, slots=True)
class Weighed:
    """What a stage's parameters cost after the pipeline, nothing hidden yet; None where there is no such traffic."""

    optimizer: Linear
    reduce: Linear | None
    gather: Linear | None
    rates: Rates


def orthogonalisation_seconds(
    device: Device, implementation: Implementation, weights: Sequence[Weight], layout: Layout
) -> float:
    """Muon's Newton-Schulz steps on these whole matrices, m x n with m <= n: X X^T, its square, and their product with
    X, 4 m^2 n + 2 m^3 FLOPs each (megatron/core/optimizer/emerging_optimizers.py). Every tensor-parallel rank computes
    the whole (--muon-tp-mode duplicated); the distributed optimizer deals matrices out over data parallelism."""
    flops = 0.0
    for w in weights:
        if takes_muon(w):
            m, n = sorted(w.shape)
            held = w.count / layout.ep if w.expert else w.count
            ranks = shard_group(layout, implementation, w.expert) if layout.zero else 1
            flops += held / ranks * NEWTON_SCHULZ_STEPS * (4 * m * m * n + 2 * m**3)
    return flops / device.flops("bf16")


def weighed(r: Rates, fixed: Parameters, layers: tuple[Parameters, ...], matrices: Linear) -> Weighed:
    """Of a stage with parameters `fixed` around its layers and `layers[kind]` in each; `matrices`: what the optimizer
    does besides with whole matrices."""
    return Weighed(
        _sum(_linear(r.optimizer, fixed, layers), matrices),
        _linear(r.reduce, fixed, layers) if any(r.reduce) else None,
        _linear(r.gather, fixed, layers) if any(r.gather) else None,
        r,
    )


@dataclass(frozen=True, slots=True)
class Hidden:
    """A tail that the passes over a stage's layers hide."""

    name: str
    fixed_ns: int
    layers: tuple[float, ...]
    """[kind], seconds that no pass hides yet."""
    backward: bool
    """The last backward pass hides it, else the first forward pass."""

    def shown(self, forward: Sequence[float], backward: Sequence[float]) -> Tail:
        """Less these seconds of each layer."""
        hide = zip(self.layers, backward if self.backward else forward, strict=True)
        return Tail(self.name, self.fixed_ns, tuple([nanoseconds(x - h) for x, h in hide]))


def tails(w: Weighed, layout: Layout, implementation: Implementation, e: Efficiency) -> tuple[Tail | Hidden, ...]:
    """What a stage adds to the pipeline. "data_parallel" is what is exposed in any case: latencies, the last bucket,
    and the tax of what is hidden."""
    parts: list[Tail | Hidden] = [_tail("optimizer", w.optimizer)]
    bucket = bucket_limit(implementation, layout.dp * layout.cp)
    passes = (
        ("grad_reduce", w.reduce, w.rates.reduce, implementation.overlap_grad_reduce),
        ("param_gather", w.gather, w.rates.gather, implementation.overlap_param_gather),
    )
    always = [0.0] * (1 + len(w.optimizer.layers))
    for name, whole, rate, overlap in passes:
        if whole is None:
            continue
        always[0] += w.rates.latency
        if not overlap or (layout.zero >= 2 and implementation.sharded_framework != "megatron_fsdp"):
            parts.append(_tail(name, whole))
            continue
        tax, last = e.overlap_tax, rate[0] * bucket
        always[0] += tax * whole.fixed + min((1 - tax) * last, whole.fixed + max(whole.layers))
        for kind, seconds in enumerate(whole.layers, start=1):
            always[kind] += tax * seconds
        fixed = nanoseconds((1 - tax) * (whole.fixed - last))
        parts.append(Hidden(name, fixed, tuple([(1 - tax) * x for x in whole.layers]), name == "grad_reduce"))
    if any(always):
        parts.append(_tail("data_parallel", Linear(always[0], tuple(always[1:]))))
    return tuple(parts)


def exposed(parts: Sequence[Tail | Hidden], forward: Sequence[float], backward: Sequence[float]) -> tuple[Tail, ...]:
    """What is left of a stage's tails where `forward[kind]` and `backward[kind]` seconds of each layer hide them: it
    may be negative, and then is nothing."""
    return tuple([part.shown(forward, backward) if isinstance(part, Hidden) else part for part in parts])


def _tail(name: str, seconds: Linear) -> Tail:
    return Tail(name, nanoseconds(seconds.fixed), tuple(map(nanoseconds, seconds.layers)))


def _sum(a: Linear, b: Linear) -> Linear:
    return Linear(a.fixed + b.fixed, tuple(map(add, a.layers, b.layers)))


def _linear(rate: tuple[float, float], fixed: Parameters, layers: tuple[Parameters, ...]) -> Linear:
    dense, expert = rate
    return Linear(fixed[0] * dense + fixed[1] * expert, tuple([n * dense + m * expert for n, m in layers]))
