"""Seconds before and after the pipeline, per stage: gradient reduction, parameter gather, optimizer step.

megatron/core/distributed/param_and_grad_buffer.py: gradients are reduced bucket by bucket during the last microbatch's
backward pass (`overlap_grad_reduce`), parameters gathered bucket by bucket during the first one's forward pass
(`overlap_param_gather`); only what outlasts that pass, and the last bucket, is exposed. Without overlap all of it is.
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.implementation import Implementation
from planner.layout import Layout
from planner.timing.collectives import all_reduce_seconds, gather_seconds
from planner.timing.efficiency import Efficiency
from planner.timing.kernels import Device
from planner.timing.traffic import Links

OPTIMIZER_BYTES = {"adamw": 42, "adamw-8bit": 36, "sgd": 22, "sgd-momentum": 30, "muon": 42}
"""Memory traffic of one parameter of the rank's optimizer shard. Adam: gradient read for the norm, read and written to
clip it, read again (16); fp32 weight and two moments read and written (24); 16-bit weight written (2)."""
BUFFER_BYTES = 2
"""Gradient buffer cleared: its element's bytes are written once, in units of grad_reduce_bytes / 2."""


@dataclass(frozen=True, slots=True)
class Linear:
    """Seconds linear in a stage's layers."""

    fixed: float
    layers: tuple[float, ...]


def _bytes_seconds(
    params: tuple[int, int], layout: Layout, implementation: Implementation, links: Links, e: Efficiency
) -> tuple[float, float]:
    """(reduction, gather) seconds of (dense, expert) parameters without per-bucket latency."""
    reduce = gather = 0.0
    gather_bytes = 1 if implementation.fp8_param_gather else 2
    for count, name in zip(params, ("dp_cp", "edp"), strict=True):
        link = links[name]
        if not count or link.size == 1:
            continue
        whole = float(count * implementation.grad_reduce_bytes)
        if layout.zero == 0:
            reduce += all_reduce_seconds(link, whole, e) - all_reduce_seconds(link, 1e-9, e)
        elif layout.zero == 1:
            reduce += gather_seconds(link, whole, e) - gather_seconds(link, 1e-9, e)
            gather += gather_seconds(link, float(count * gather_bytes), e) - gather_seconds(link, 1e-9, e)
        elif layout.hsdp_replicas > 1:  # shards already reduced in the backward pass; replicas agree now
            replicas = links["replicate"]
            reduce += all_reduce_seconds(replicas, whole / links["shard"].size, e)
    return reduce, gather


def reductions(
    layout: Layout,
    implementation: Implementation,
    links: Links,
    e: Efficiency,
    fixed: tuple[int, int],
    layers: tuple[tuple[int, int], ...],
    forward: tuple[float, ...],
    backward: tuple[float, ...],
) -> dict[str, Linear]:
    """Exposed data-parallel communication of a stage with (dense, expert) parameters `fixed` around its layers and
    `layers[kind]` in each; `forward[kind]` and `backward[kind]` are one layer's seconds that can hide it."""
    group = links["dp_cp"]
    if group.size == 1 and links["edp"].size == 1:
        return {}
    parts: dict[str, Linear] = {}
    args = (layout, implementation, links, e)
    base = _bytes_seconds(fixed, *args)
    each = [_bytes_seconds(count, *args) for count in layers]
    bucket = implementation.ddp_bucket_elements or max(40_000_000, 1_000_000 * group.size)
    last = _bytes_seconds((bucket, 0), *args)
    latency = gather_seconds(group, 1e-9, e) * (2 if layout.zero == 0 else 1)
    for i, (name, overlap, hide) in enumerate(
        (
            ("grad_reduce", implementation.overlap_grad_reduce, backward),
            ("param_gather", implementation.overlap_param_gather, forward),
        )
    ):
        if not base[i] and not any(one[i] for one in each):
            continue
        whole = Linear(base[i] + latency, tuple(one[i] for one in each))
        if not overlap or layout.zero >= 2:
            parts[name] = whole
            continue
        tax = e.overlap_tax
        parts[name + "_hidden"] = Linear(tax * whole.fixed, tuple(tax * x for x in whole.layers))
        parts[name + "_last_bucket"] = Linear(
            (1 - tax) * min(last[i], base[i] + 8 * max(o[i] for o in each)), (0.0,) * len(each)
        )
        parts[name] = Linear(
            (1 - tax) * (whole.fixed - last[i]),
            tuple((1 - tax) * x - h for x, h in zip(whole.layers, hide, strict=True)),
        )
    return parts


def optimizer(
    device: Device,
    layout: Layout,
    implementation: Implementation,
    optimizer_name: str,
    fixed: tuple[int, int],
    layers: tuple[tuple[int, int], ...],
    links: Links,
) -> Linear:
    """The optimizer's pass over its shard and the clearing of the gradient buffer."""

    def one(params: tuple[int, int]) -> float:
        moved = 0.0
        for count, name in zip(params, ("dp_cp", "edp"), strict=True):
            shards = links[name].size if layout.zero else 1
            if layout.zero >= 2:
                shards = max(1, shards // layout.hsdp_replicas)
            moved += count / shards * OPTIMIZER_BYTES[optimizer_name]
            moved += count / (shards if layout.zero >= 2 else 1) * implementation.grad_reduce_bytes
        return moved / device.memory_bytes_per_second

    return Linear(one(fixed), tuple(one(count) for count in layers))
