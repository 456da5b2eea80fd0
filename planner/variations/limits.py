"""How far a layout reaches before its memory ends: sequence length, micro-batch, uneven routing, more ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from math import lcm

from planner.model import MoE
from planner.routing import worst_imbalance
from planner.rules.rule import divisors
from planner.variations.around import Around

LONGEST = 2**24
"""Tokens of a sequence beyond which nothing is tried."""
SEQUENCE_UNIT = 128
"""The longest sequence is looked for in whole units of this or of what the ranks divide it by."""


@dataclass(frozen=True, slots=True)
class Limits:
    """The largest of each that fits with all else as it is; None where not even the least does."""

    seq_length: int | None
    """In whole `seq_unit`s, with as many sequences in the batch."""
    seq_unit: int
    micro_batch: int | None
    """Of those that divide each rank's part of the batch."""
    seq_ended_by: str = ""
    """The rule that a longer sequence would break; empty where memory ends it."""
    imbalance: float | None = None
    """Tokens of the busiest expert-parallel rank over the mean, to a hundredth; None without expert parallelism."""


@dataclass(frozen=True, slots=True)
class Changed:
    """The layout with one number changed."""

    value: float
    given: bool
    peak_bytes: int
    """Of the fullest GPU, the reserve included."""
    fits: bool


def limits(around: Around) -> Limits:
    """The largest sequence, micro-batch and imbalance that fit."""
    layout, workload = around.layout, around.question.workload
    unit = lcm(SEQUENCE_UNIT, 2 * layout.cp if layout.cp > 1 else 1, layout.tp * layout.cp)

    def holds(units: int) -> bool:
        longer = replace(workload, seq_length=units * unit)
        peak = around.peak(workload=longer) if around.legal(workload=longer) else None
        return peak is not None and peak.fits

    longest = _largest(holds, max(1, workload.seq_length // unit), LONGEST // unit)
    part = workload.global_batch // layout.dp
    micro = next((n for n in reversed(divisors(part)) if _fits(around, n)), None) if part else None
    longer = replace(workload, seq_length=(longest + 1) * unit)
    ended_by = around.refused(workload=longer)
    return Limits(longest * unit if longest else None, unit, micro, ended_by, _imbalance(around))


def _fits(around: Around, micro_batch: int) -> bool:
    other = replace(around.layout, micro_batch=micro_batch)
    peak = around.peak(other) if around.legal(other) else None
    return peak is not None and peak.fits


def _largest(holds: Callable[[int], bool], start: int, end: int) -> int:
    """The largest number up to `end` that holds, where all below the largest do; 0 where 1 does not. Doubles or halves
    from `start`, then bisects."""
    low, high = 0, start
    while high <= end and holds(high):
        low, high = high, 2 * high
    high = min(high, end + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def _routes(around: Around) -> bool:
    """Whether experts are divided and take whatever is routed to them."""
    return (
        around.question.model.is_moe
        and around.layout.ep > 1
        and around.question.implementation.moe_capacity_factor is None
    )


def _imbalance(around: Around) -> float | None:
    if not _routes(around):
        return None

    def holds(extra: int) -> bool:
        peak = _routed(around, (99 + extra) / 100)
        return peak is not None and peak.fits

    hundredths = _largest(holds, 1, int(100 * _worst(around)) - 99)
    return (99 + hundredths) / 100 if hundredths else None


def _routed(around: Around, imbalance: float) -> Changed | None:
    own = around.question.implementation
    peak = around.peak(implementation=replace(own, moe_imbalance=imbalance))
    given = imbalance == min(own.moe_imbalance, _worst(around))
    return None if peak is None else Changed(imbalance, given, peak.total_bytes, peak.fits)


def uneven_routing(around: Around) -> tuple[Changed, ...]:
    """Peaks from even routing to as many copies as can be on one of the ep ranks; nothing where all are alike."""
    if not _routes(around):
        return ()
    worst = _worst(around)
    factors = {1.0, 1.25, 1.5, 2.0, worst, min(worst, around.question.implementation.moe_imbalance)}
    rows = (_routed(around, f) for f in sorted(factors) if f <= worst)
    return tuple(row for row in rows if row is not None)


def _worst(around: Around) -> float:
    """The largest imbalance that there can be."""
    layers = around.question.model.layer_kinds
    return max(worst_imbalance(kind.mlp, around.layout.ep) for kind in layers if isinstance(kind.mlp, MoE))


def data_parallel(around: Around) -> tuple[Changed, ...]:
    """Peaks with 1 to 64 times as many data-parallel ranks, each with the work that it has now: what falls is what they
    divide among them, what is left is not."""
    layout, workload = around.layout, around.question.workload
    rows = []
    for times in (1, 2, 4, 8, 64):
        wider = replace(layout, dp=layout.dp * times)
        more = replace(workload, global_batch=workload.global_batch * times)
        if not around.legal(wider, more, world_size=wider.world_size):
            continue
        peak = around.peak(wider, more, nodes=times)
        if peak is not None:
            rows.append(Changed(wider.dp, times == 1, peak.total_bytes, peak.fits))
    return tuple(rows)
