"""The robust choice: the layout that loses least when memory and time are off by their measured error.

Memory: a layout may be chosen only if it still fits when everything but the reserve takes 1 + e_m of what was counted.

Time: each part of a step (compute, tensor_parallel, pipeline_bubble, ...) may take between 1 - e_t and 1 + e_t of its
prediction, alike in all layouts, one part independently of another: a link slower than thought is slow for every
layout that uses it. A layout's regret against another is what it loses at worst, which for such intervals has a closed
form (Kouvelis and Yu, Robust Discrete Optimization, 1997, for costs given as intervals):

    regret(x, y) = sum over parts of (x - y) + e_t |x - y|  =  T(x) - T(y) + e_t sum |x - y|

The robust layout has the least worst regret against every layout that fits as counted and is nearly as fast. What two
layouts have in common cancels, so the error moves only what sets them apart. See docs/adr/0009-robust-choice.md.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from planner.solver.asked import Asked
from planner.solver.result import Plan, SearchResult, Status
from planner.solver.search import Search, degrees

REGRET = "worst_regret_seconds"
POOL = 64
"""Layouts of different degrees that are compared at most, the fastest first."""
WIDTH = 0.25
"""Of the error of time: layouts slower than the fastest by more than this share of it do not count as rivals. All of
the error would have to fall on what sets two layouts apart, which is seldom more than this share of a step."""
EFFORT = 6000
"""Work allowed to find the pool, counted as in `planner.solver.search.RUNNER_UP_EFFORT`."""


@dataclass(frozen=True, slots=True)
class Errors:
    """What is guarded against, as fractions."""

    memory: float
    time: float


@dataclass(frozen=True, slots=True)
class Judged:
    """A layout with what it could lose."""

    plan: Plan
    regret_seconds: float
    rival: Plan | None
    """The layout against which it would lose that; None when it loses to none."""
    survives: bool
    """Whether it fits when memory is off by its error."""


@dataclass(frozen=True, slots=True)
class Robust:
    """The choice and what it is compared with."""

    errors: Errors
    chosen: Judged | None
    """None: no layout survives the error of memory."""
    fastest: Judged
    judged: tuple[Judged, ...]
    """The survivors, least regret first."""
    compared: int
    result: SearchResult
    """The survivors as plans, the robust one first; the objective is its worst regret."""

    @property
    def price_seconds(self) -> float:
        """What the robust layout costs by prediction, against the fastest."""
        return self.chosen.plan.step.seconds - self.fastest.plan.step.seconds if self.chosen else 0.0


def regret_seconds(ours: Mapping[str, float], theirs: Mapping[str, float], error: float) -> float:
    """What a layout with these parts of a step loses at worst against another [s]; negative when it always wins."""
    parts = {*ours, *theirs}
    differences = [ours.get(part, 0.0) - theirs.get(part, 0.0) for part in parts]
    return sum(differences) + error * sum(map(abs, differences))


class Pool(Search):
    """A search for every layout (one of each choice of degrees) up to a share slower than the fastest."""

    runner_up_effort = EFFORT

    def __init__(self, *question: Any, width: float):
        super().__init__(*question)
        self.width = width

    def _worst_kept(self) -> int | None:
        worst = super()._worst_kept()
        if not self.found:
            return worst
        cut = int(min(found.step_ns for found in self.found.values()) * (1 + self.width))
        return cut if worst is None else min(worst, cut)

    def _plans(self) -> list[Plan]:
        cut = self._worst_kept()
        return [plan for plan in super()._plans() if cut is None or plan.step.step_ns <= cut]


def robust(asked: Asked, errors: Errors, top: int = 5) -> Robust | None:
    """The robust layout among the POOL fastest that fit; None when nothing fits at all (the plain search says why)."""
    pool = partial(Pool, width=WIDTH * errors.time)
    fitting = asked.search(top=POOL, make=pool)
    if not fitting.plans:
        return None
    safe = asked.search(top=POOL, error=errors.memory, make=pool)
    survivors = safe.plans
    kept = {_identity(plan) for plan in survivors}
    rivals = (*fitting.plans, *(p for p in survivors if _identity(p) not in {_identity(q) for q in fitting.plans}))
    judged = sorted(
        (_judge(plan, rivals, errors.time, survives=True) for plan in survivors),
        key=lambda j: (j.regret_seconds, j.plan.step.step_ns),
    )
    best = fitting.plans[0]
    fastest = _judge(best, rivals, errors.time, survives=_identity(best) in kept)
    if not judged:
        status = Status.INFEASIBLE if safe.status is Status.INFEASIBLE else Status.UNKNOWN
        empty = replace(fitting, status=status, plans=(), objective=REGRET, value=None, lower_bound=None)
        return Robust(errors, None, fastest, (), len(rivals), empty)
    chosen = judged[0]
    lower = _lower_bound(chosen, safe, fitting, errors)
    result = replace(
        fitting,
        status=Status.OPTIMAL if lower >= chosen.regret_seconds else Status.FEASIBLE,
        plans=tuple(j.plan for j in judged[:top]),
        objective=REGRET,
        value=chosen.regret_seconds,
        lower_bound=min(lower, chosen.regret_seconds),
    )
    return Robust(errors, chosen, fastest, tuple(judged), len(rivals), result)


def _identity(plan: Plan) -> tuple[object, ...]:
    return (degrees(plan.layout), plan.step.step_ns)


def _judge(plan: Plan, rivals: tuple[Plan, ...], error: float, survives: bool) -> Judged:
    worst, rival = 0.0, None
    for other in rivals:
        if other is plan:
            continue
        lost = regret_seconds(plan.step.components, other.step.components, error)
        if lost > worst:
            worst, rival = lost, other
    return Judged(plan, worst, rival, survives)


def _lower_bound(chosen: Judged, safe: SearchResult, fitting: SearchResult, errors: Errors) -> float:
    """The least regret of any survivor, as far as the pools prove it: one beyond its pool is slower than the pool
    reaches, and loses at least the difference to the fastest. Without all rivals no regret is proved."""
    if fitting.status is not Status.OPTIMAL or safe.status is not Status.OPTIMAL or not _all_found(fitting):
        return 0.0
    reach = _reach(safe, errors) - fitting.plans[0].step.seconds
    return max(0.0, min(chosen.regret_seconds, reach))


def _all_found(result: SearchResult) -> bool:
    """Whether the pool holds every layout that is near enough to the fastest, by one of its degrees."""
    return bool(result.statistics.get("runners_up_proved")) and len(result.plans) < POOL


def _reach(result: SearchResult, errors: Errors) -> float:
    """Every layout up to this step time [s] is in the pool, by one of its degrees."""
    fastest, last = result.plans[0].step.seconds, result.plans[-1].step.seconds
    if not result.statistics.get("runners_up_proved"):
        return fastest
    return last if len(result.plans) == POOL else fastest * (1 + WIDTH * errors.time)
