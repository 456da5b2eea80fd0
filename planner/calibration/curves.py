"""From a microbenchmark to constants of the model of time, by the model's own functions: what is fitted is used.

The curve of efficiency against size is `kernels.gemm_seconds`: waves of tiles, a ramp in depth, a floor. Its two
constants (the best fraction and the ramp) are fitted to all products of a precision; the same for attention, copies and
collectives.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from planner.calibration.least_squares import fit
from planner.calibration.recording import AttentionTime, CollectiveTime, ProductTime, Recording, Sample
from planner.cluster import Cluster
from planner.errors import InputError
from planner.layout import Layout
from planner.timing.collectives import all_reduce_seconds, all_to_all_seconds, gather_seconds
from planner.timing.efficiency import Efficiency, efficiency
from planner.timing.factors import KEYS
from planner.timing.kernels import UNMEASURED_GEMM, Device, flash_seconds, gemm_seconds, memory_seconds
from planner.topology import GroupLink, group_links

SHAPE_ERROR = 0.10
"""What the curve leaves of single shapes (median over 514 products on B200, see `Efficiency.gemm_ramp`)."""
SOFT = 0.3
"""Residuals [log] beyond which a shape weighs less and less (as its inverse hyperbolic sine): a library that lacks a
good kernel for one shape is not the curve's business."""
RATE_PRIOR, TIME_PRIOR = 0.5, 1.0
LEAST_COPY_BYTES = 2**26
"""Smaller copies stay in the second-level cache."""


@dataclass(frozen=True, slots=True)
class Constant:
    """One measured constant of the model of time."""

    name: str
    value: float
    before: float
    deviation: float
    """Standard deviation of its logarithm."""
    count: int
    median_error: float
    """Median absolute error of the fitted curve over the measurements."""
    determined: bool
    key: str = ""
    """Of a constant by precision."""

    def provenance(self, recording: Recording) -> str:
        return (
            f"plan calibrate --measure: {recording.name}, {recording.machine.name}, {self.count} measurements, median "
            f"error of the fit {self.median_error * 100:.1f} %, within {self.deviation * 100:.1f} %"
        )


def constants_of_recording(recording: Recording, cluster: Cluster) -> list[Constant]:
    """Every constant that the recording says something about, determined or not. Raises InputError where it holds
    collectives of more GPUs, or of other nodes, than the cluster has."""
    e = efficiency(replace(cluster, calibration={}))
    found: list[Constant] = []
    if recording.kernel is not None:
        seconds = recording.kernel.median_seconds
        found.append(Constant("kernel_seconds", seconds, e.kernel_seconds, recording.kernel.spread, 1, 0.0, True))
        e = replace(e, kernel_seconds=seconds)
    for part in (_memory, _products, _attention, _collectives):
        constants = part(recording, cluster, e)
        found += constants
        e = applied(e, constants)
    return found


def applied(e: Efficiency, constants: Iterable[Constant]) -> Efficiency:
    """The constants put in place of their defaults."""
    for c in constants:
        if c.determined:
            value: object = {**getattr(e, c.name), c.key: c.value} if c.key else c.value
            e = replace(e, **{c.name: value})  # type: ignore[arg-type]
    return e


def calibration_of_recording(
    recording: Recording, constants: Iterable[Constant], cluster: Cluster
) -> dict[str, object]:
    """The cluster's calibration with the determined constants, each with its provenance, and without what they make
    stale (`stale_factors`)."""
    constants = tuple(constants)
    stale = stale_factors(constants, cluster)
    calibration: dict[str, object] = {k: v for k, v in cluster.calibration.items() if k not in stale}
    for c in constants:
        if not c.determined:
            continue
        figure = {"value": float(f"{c.value:.4g}"), "source": c.provenance(recording)}
        if c.key:
            old = calibration.get(c.name)
            calibration[c.name] = {**(old if isinstance(old, dict) else {}), c.key: figure}
        else:
            calibration[c.name] = figure
    return calibration


def stale_factors(constants: Iterable[Constant], cluster: Cluster) -> tuple[str, ...]:
    """What the cluster's calibration has from logs and the constants are measured without: the factors of their rates,
    which would count twice what is in a constant now, and the error that was left with those factors."""
    measured = {c.name for c in constants if c.determined}
    plain = efficiency(replace(cluster, calibration={}))
    stale = []
    for factor in KEYS:
        halved = efficiency(replace(cluster, calibration={factor: 0.5}))
        if factor in cluster.calibration and any(getattr(halved, name) != getattr(plain, name) for name in measured):
            stale.append(factor)
    if stale and "relative_error" in cluster.calibration:
        stale.append("relative_error")
    return tuple(stale)


def _fit(
    names: Sequence[tuple[str, str]],
    before: Sequence[float],
    priors: Sequence[float],
    samples: Sequence[Sample],
    predict: Callable[[dict[str, float]], list[float]],
) -> list[Constant]:
    """Fit named constants to samples; `predict` gives seconds of each sample for constants by name.

    The first is scanned before: where another limit hides it at its default (a network faster than what feeds it), its
    derivative there says nothing."""
    if not samples:
        return []
    measured = [math.log(s.median_seconds) for s in samples]

    def left(ratios: Sequence[float], start: Sequence[float] = before) -> list[float]:
        values = {name: b * r for (name, _), b, r in zip(names, start, ratios, strict=True)}
        return [m - math.log(p) for m, p in zip(measured, predict(values), strict=True)]

    def soft(x: float) -> float:
        return SOFT * math.asinh(x / SOFT)

    ones = (1.0,) * len(names)
    scan = sorted((2 ** (k / 4) for k in range(-8, 5)), key=lambda ratio: abs(math.log(ratio)))
    starts = [(before[0] * ratio, *before[1:]) for ratio in scan]
    start = min(starts, key=lambda x: sum(soft(d) ** 2 for d in left(ones, x)))  # the first of equals: nearest
    errors = [math.hypot(SHAPE_ERROR, s.spread / 1.35 / math.sqrt(s.repetitions)) for s in samples]
    estimates = fit([name for name, _ in names], priors, lambda ratios: [soft(x) for x in left(ratios, start)], errors)
    values = [x0 * x.ratio if x.determined else b for x0, b, x in zip(start, before, estimates, strict=True)]
    error = median(abs(x) for x in left([v / b for v, b in zip(values, before, strict=True)]))
    return [
        Constant(name, value, b, x.deviation, len(samples), error, x.determined, key)
        for (name, key), value, b, x in zip(names, values, before, estimates, strict=True)
    ]


def _memory(recording: Recording, cluster: Cluster, e: Efficiency) -> list[Constant]:
    copies = [c for c in recording.copies if c.moved_bytes >= LEAST_COPY_BYTES]

    def predict(values: dict[str, float]) -> list[float]:
        device = Device(cluster.card, replace(e, memory=values["memory"]))
        return [memory_seconds(device, c.moved_bytes) for c in copies]

    return _fit([("memory", "")], [e.memory], [RATE_PRIOR], [c.sample for c in copies], predict)


def _products(recording: Recording, cluster: Cluster, e: Efficiency) -> list[Constant]:
    """The best fraction of each precision; the ramp from the 16-bit ones. `sustained`, which is about training under a
    power limit, plays no part in a benchmark of single products."""
    found: list[Constant] = []
    for precision in ("bf16", "fp16", "fp8"):
        times = [p for p in recording.products if p.precision == precision]
        if not times or precision not in cluster.card.flops:
            continue
        ramp = precision != "fp8" and not any(c.name == "gemm_ramp" for c in found)
        found += _precision(times, precision, cluster, applied(e, found), ramp)
    return found


def _precision(
    times: Sequence[ProductTime], precision: str, cluster: Cluster, e: Efficiency, ramp: bool
) -> list[Constant]:
    names = [("gemm", precision)] + ([("gemm_ramp", "")] if ramp else [])
    before = [e.gemm.get(precision, UNMEASURED_GEMM)] + ([float(e.gemm_ramp)] if ramp else [])
    priors = [RATE_PRIOR] + ([TIME_PRIOR] if ramp else [])

    def predict(values: dict[str, float]) -> list[float]:
        changed = replace(
            e,
            sustained={},
            gemm={**e.gemm, precision: values["gemm"]},
            gemm_ramp=values.get("gemm_ramp", e.gemm_ramp),  # type: ignore[arg-type]
        )
        device = Device(cluster.card, changed)
        return [gemm_seconds(device, t.m, t.n, t.k, precision) for t in times]

    return [
        replace(c, value=float(round(c.value))) if c.name == "gemm_ramp" else c
        for c in _fit(names, before, priors, [t.sample for t in times], predict)
    ]


def unused(recording: Recording, cluster: Cluster) -> list[str]:
    """What was measured and tells nothing here, in words: products that the card has no rate for, kernels of attention
    that do not run on it in training."""
    card, notes = cluster.card, []
    for precision in sorted({p.precision for p in recording.products} - set(card.flops)):
        count = sum(p.precision == precision for p in recording.products)
        notes.append(f"{count} products in {precision} are not used: {card.name} has no such rate")
    older = sum(t.kernel == "cudnn" for t in recording.attention)
    if older and not _modern(cluster):
        notes.append(f"{older} times of cuDNN's attention are not used: training on {card.name} runs the flash kernel")
    return notes


def _modern(cluster: Cluster) -> bool:
    """Whether training runs cuDNN's attention."""
    return cluster.card.architecture.lower() in ("hopper", "blackwell")


def _attention(recording: Recording, cluster: Cluster, e: Efficiency) -> list[Constant]:
    """cuDNN's kernel where there is one is what Transformer Engine runs from Hopper on, and PyTorch's flash kernel the
    older one; before Hopper the flash kernel is the one that runs."""
    newer = [t for t in recording.attention if t.kernel == "cudnn"]
    modern = _modern(cluster)
    main = newer if modern else [t for t in recording.attention if t.kernel == "flash"]
    older = [t for t in recording.attention if t.kernel == "flash"] if modern else []
    found: list[Constant] = []
    for name, backward in (("attention_forward", False), ("attention_backward", True)):
        times = [t for t in main if t.backward == backward]
        found += _fit(
            [(name, "")],
            [getattr(e, name)],
            [RATE_PRIOR],
            [t.sample for t in times],
            _attention_predictor(times, cluster, e, False),
        )
    e = applied(e, found)
    found += _fit(
        [("older_attention", "")],
        [e.older_attention],
        [RATE_PRIOR],
        [t.sample for t in older],
        _attention_predictor(older, cluster, e, True),
    )
    return found


def _attention_predictor(
    times: Sequence[AttentionTime], cluster: Cluster, e: Efficiency, older: bool
) -> Callable[[dict[str, float]], list[float]]:
    def predict(values: dict[str, float]) -> list[float]:
        device = Device(cluster.card, replace(e, **values))  # type: ignore[arg-type]
        return [
            flash_seconds(device, t.batch, t.seq, t.heads, t.qk_dim, t.v_dim, None, 1, t.backward, older) for t in times
        ]

    return predict


def _collectives(recording: Recording, cluster: Cluster, e: Efficiency) -> list[Constant]:
    """Bandwidth inside the domain with the cost of a call, of all-reduces there where switches reduce, over the
    network, and the fraction of these that all-to-alls reach."""
    links = {(t.ranks, t.ranks_per_node): _link(recording, t, cluster) for t in recording.collectives}
    switched = ("all_reduce",) if e.scale_up_all_reduce else ()
    rings = tuple(k for k in ("all_gather", "reduce_scatter", "all_reduce") if k not in switched)
    every = ("all_gather", "reduce_scatter", "all_reduce")
    found: list[Constant] = []
    for names, inside, kinds in (
        (("scale_up", "collective_seconds"), True, rings),
        (("scale_up_all_reduce",), True, switched),
        (("network",), False, every),
        (("all_to_all",), True, ("all_to_all",)),
        (("all_to_all",), False, ("all_to_all",)),
    ):
        if any(c.name == names[0] for c in found):
            continue  # inside the domain is where an all-to-all of experts is meant to be
        times = [
            t for t in recording.collectives if t.kind in kinds and links[t.ranks, t.ranks_per_node].inside == inside
        ]
        now = applied(e, found)
        found += _fit(
            [(name, "") for name in names],
            [getattr(now, name) for name in names if times],
            [TIME_PRIOR if name.endswith("seconds") else RATE_PRIOR for name in names],
            [t.sample for t in times],
            _collective_predictor(times, links, now),
        )
    return found


def _collective_predictor(
    times: Sequence[CollectiveTime], links: dict[tuple[int, int], GroupLink], e: Efficiency
) -> Callable[[dict[str, float]], list[float]]:
    functions = {"all_reduce": all_reduce_seconds, "all_to_all": all_to_all_seconds}

    def predict(values: dict[str, float]) -> list[float]:
        changed = replace(e, **values)  # type: ignore[arg-type]
        return [
            functions.get(t.kind, gather_seconds)(links[t.ranks, t.ranks_per_node], float(t.whole_bytes), changed)
            for t in times
        ]

    return predict


def _link(recording: Recording, time: CollectiveTime, cluster: Cluster) -> GroupLink:
    if time.ranks < 2:
        raise InputError(f"{recording.name}: a collective needs at least 2 ranks, but one has {time.ranks}.")
    if time.ranks > cluster.gpus:
        raise InputError(
            f"{recording.name}: its collectives ran on {time.ranks} GPUs, but the cluster has {cluster.gpus}."
        )
    if time.ranks > time.ranks_per_node != cluster.gpus_per_node:
        raise InputError(
            f"{recording.name}: its nodes have {time.ranks_per_node} GPUs, but those of the cluster have "
            f"{cluster.gpus_per_node}."
        )
    return group_links(Layout(dp=time.ranks), cluster)["dp_cp"]
