"""The frontier of memory headroom against step time, by the epsilon-constraint method.

"The fastest layout that leaves at least X free on every GPU" is solved again and again, with X raised above what the
last answer leaves (Haimes, Lasdon and Wismer, 1971). Each answer is a proved point: with as much memory left, nothing
is faster. The frontier ends at the layout that leaves most, known beforehand (`planner.solver.least`).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import pairwise

from planner.layout import Layout
from planner.rules.rule import divisors
from planner.solver.asked import Asked, pinned_to
from planner.solver.least import TimeUp, least_peaks
from planner.solver.result import Plan, Status

GIB = 2**30
STEPS = 20
"""Points of the frontier at most, about: the default step is the card's capacity divided by this, in whole GiB."""
KNOBS: dict[str, tuple[str, ...]] = {
    "recompute": ("recompute", "recompute_modules"),
    "zero": ("zero",),
    "micro-batch": ("micro_batch",),
    "vpp": ("vpp",),
    "tp": ("tp", "dp", "sequence_parallel"),
    "cp": ("cp", "dp"),
    "pp": ("pp", "dp", "vpp"),
    "ep": ("ep",),
    "etp": ("etp",),
}
"""Each knob with the fields that move when it is turned: the number of GPUs stays, so degrees take from dp."""


@dataclass(frozen=True, slots=True)
class Point:
    """The fastest layout that leaves at least so much free. `proved`: with so much left nothing is faster."""

    plan: Plan
    kept_free_bytes: int
    """What was asked for; the layout leaves at least as much."""
    proved: bool

    @property
    def headroom_bytes(self) -> int:
        """What is free on the fullest GPU, beside the reserve."""
        return self.plan.memory.peak_stage.headroom_bytes


@dataclass(frozen=True, slots=True)
class Trade:
    """From one layout to another that leaves more free: what changed, and its price."""

    changed: tuple[str, ...]
    """Names of the choices that differ."""
    freed_bytes: int
    seconds: float
    """Longer step time."""

    @property
    def seconds_per_gib(self) -> float:
        return self.seconds / (self.freed_bytes / GIB)


@dataclass(frozen=True, slots=True)
class Turned:
    """One knob turned alone, from the fastest layout: the fastest result that frees at least one step, if any."""

    knob: str
    plan: Plan | None
    trade: Trade | None


@dataclass(frozen=True, slots=True)
class Frontier:
    """Points from the fastest to the one that leaves most, each slower and leaving more than the last."""

    points: tuple[Point, ...]
    step_bytes: int
    """Layouts whose headroom differs by less are not told apart."""
    complete: bool
    """False: the time limit came before the end, or before a proof."""
    knobs: tuple[Turned, ...] = ()
    """Cheapest first; knobs that free nothing by themselves last."""

    @property
    def trades(self) -> tuple[Trade, ...]:
        """Between neighbouring points."""
        return tuple(trade(a.plan, b.plan) for a, b in pairwise(self.points))


def default_step_bytes(capacity_bytes: int) -> int:
    """Whole GiB, at least one, so that there are about STEPS points at most."""
    return max(1, round(capacity_bytes / STEPS / GIB)) * GIB


def frontier(asked: Asked, fastest: Plan, proved: bool, step_bytes: int | None = None) -> Frontier:
    """The frontier that begins at the fastest plan; `step_bytes` is the least difference in headroom."""
    step = step_bytes or default_step_bytes(fastest.memory.capacity_bytes)
    most = _most_headroom(asked)
    points = [Point(fastest, 0, proved)]
    ended = False
    while not ended and not asked.late:
        wanted = points[-1].headroom_bytes + step
        if most is not None and wanted >= most:
            if points[-1].headroom_bytes >= most:
                break
            wanted, ended = most, True
        # No point may take more than half of what is left, so that a hard one does not cost all others.
        result = _hurried(asked).search(kept_free_bytes=wanted)
        if not result.plans:
            ended = result.status is Status.INFEASIBLE
            break
        found = Point(result.plans[0], wanted, result.status is Status.OPTIMAL)
        if found.plan.step.step_ns <= points[-1].plan.step.step_ns:
            points.pop()  # as fast and leaves more
        points.append(found)
    complete = (ended or (most is not None and points[-1].headroom_bytes >= most)) and all(p.proved for p in points)
    return Frontier(tuple(points), step, complete, _turned(asked, fastest, step))


def _hurried(asked: Asked) -> Asked:
    left = asked.seconds_left
    return asked if left is None else replace(asked, deadline=time.monotonic() + max(0.0, left) / 2)


def _most_headroom(asked: Asked) -> int | None:
    """The most that any layout leaves free on its fullest GPU; None where it is not known: on cards of several sizes
    the least peak says nothing about what is free, and the frontier then ends where nothing more fits."""
    if len({group.card.capacity_bytes for group in asked.cluster.groups}) > 1:
        return None
    try:
        least = least_peaks(_hurried(asked))
    except TimeUp:
        return None
    if not least:
        return None
    layout = least[0].layout
    return asked.accounting.stage_capacity_bytes(layout, 0) - least[0].limit_bytes


def changed(before: Layout, after: Layout) -> tuple[str, ...]:
    """Names of the choices that differ; dp only where nothing else explains it, the split only where degrees agree."""
    names = [
        name
        for name in ("tp", "cp", "pp", "vpp", "ep", "etp", "zero", "micro_batch", "recompute", "sequence_parallel")
        if _value(before, name) != _value(after, name)
    ]
    if not {"tp", "cp", "pp"} & set(names) and before.dp != after.dp:
        names.append("dp")
    if "sequence_parallel" in names and 1 in (before.tp, after.tp):
        names.remove("sequence_parallel")  # it means nothing with tp 1
    if not {"pp", "vpp"} & set(names) and before.stages != after.stages:
        names.append("stage_layers")
    return tuple(names)


def _value(layout: Layout, name: str) -> object:
    if name == "recompute":
        r = layout.recompute
        return (r.granularity, r.modules, r.stage_layers)
    return getattr(layout, name)


def trade(before: Plan, after: Plan) -> Trade:
    """What the second plan frees and costs against the first."""
    freed = after.memory.peak_stage.headroom_bytes - before.memory.peak_stage.headroom_bytes
    return Trade(changed(before.layout, after.layout), freed, after.step.seconds - before.step.seconds)


def _turned(asked: Asked, fastest: Plan, step_bytes: int) -> tuple[Turned, ...]:
    """Every knob that the user left free, turned alone until one step of memory is freed."""
    found = list(_each_knob(asked, fastest, step_bytes))
    found.sort(key=lambda t: (t.trade is None, t.trade.seconds_per_gib if t.trade else 0.0))
    return tuple(found)


def _each_knob(asked: Asked, fastest: Plan, step_bytes: int) -> Iterator[Turned]:
    wanted = fastest.memory.peak_stage.headroom_bytes + step_bytes
    for knob, fields in KNOBS.items():
        if asked.late:
            return
        values = _other_values(asked, fastest.layout, fields[0])
        if not values:
            continue
        pins = pinned_to(fastest.layout, fields)
        freed = {name: getattr(asked.pins, name) for name in fields} | {fields[0]: values}
        result = asked.search(replace(pins, **freed, stage_layers=asked.pins.stage_layers), kept_free_bytes=wanted)
        best = result.plans[0] if result.plans else None
        yield Turned(knob, best, trade(fastest, best) if best else None)


def _other_values(asked: Asked, layout: Layout, name: str) -> tuple[object, ...]:
    """What the user and the hardware allow a choice to be instead; nothing where it is pinned or means nothing."""
    allowed = getattr(asked.pins, name)
    if name == "recompute":
        return allowed or ("none", "selective", "full")
    if allowed is None:
        world, layers = asked.cluster.gpus, asked.model.num_layers
        match name:
            case "zero":
                allowed = (0, 1, 2, 3)
            case "vpp":
                allowed = tuple(range(1, layers + 1)) if layout.pp > 1 else ()
            case "micro_batch":
                allowed = tuple(2**i for i in range(asked.workload.global_batch.bit_length()))
            case "ep" | "etp":
                allowed = tuple(divisors(world)) if asked.model.is_moe else ()
            case _:
                allowed = tuple(divisors(world))
    return tuple(value for value in allowed if value != getattr(layout, name))
