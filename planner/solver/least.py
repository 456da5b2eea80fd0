"""The layouts with the least peak of memory, found without their time: what the end of every trade-off is.

Of each choice of degrees the leanest variants are judged (`planner.solver.explain.leanest`). Filling the stages by
memory alone says whether a variant could hold the model under a limit, so the least limit of each is found by
bisection, and only for variants that could beat the best known one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.layout import Layout
from planner.solver.asked import Asked
from planner.solver.candidates import Pins
from planner.solver.explain import leanest
from planner.solver.fill import Chain, could_fit
from planner.solver.problem import Lazy, SplitProblem

UNLIMITED_BYTES = 2**50
"""More than any card has."""
DEGREES = ("tp", "cp", "pp", "ep", "etp", "dp")


class TimeUp(Exception):
    """The asked time ran out before the answer was proved."""


@dataclass(frozen=True, slots=True)
class Least:
    """Degrees whose leanest variant (split undecided) needs a limit of so many bytes a GPU, and none less."""

    limit_bytes: int
    layout: Layout
    ties: tuple[Layout, ...] = ()
    """Of the first only: variants of other degrees that the same limit holds."""

    def pins(self, pins: Pins) -> Pins:
        """The user's pins narrowed down to these degrees and those of the ties."""
        alike = (self.layout, *self.ties)
        return replace(pins, **{name: tuple(sorted({getattr(x, name) for x in alike})) for name in DEGREES})


def least_peaks(
    asked: Asked, count: int = 1, pins: Pins | None = None, within_capacity: bool = True, chunked: bool = False
) -> list[Least]:
    """Up to `count` least limits of different degrees, ascending; none when nothing fits. A smaller limit than the
    first is refuted for every layout of the space: filling the stages never takes more than any split needs.

    Where kinds of layer differ that is meant without virtual stages, unless `chunked`: a limit that refutes those too,
    and that no layout may reach.

    `within_capacity` False asks what would be needed if cards were as large as one likes. Raises TimeUp when the
    asked time ran out, since the answer would not be proved.
    """
    space = asked.space(pins)
    refiner = asked.refiner(space)
    best: dict[tuple[int, ...], tuple[int, int, Layout]] = {}
    """degrees: (least limit, order, variant)"""
    ties: dict[tuple[int, ...], Layout] = {}
    for order, layout in enumerate(leanest(space)):
        if asked.late:
            raise TimeUp
        limit = _Limit(asked, replace(refiner.problem(layout), must_recompute=False), layout, within_capacity, chunked)
        key, first = degrees(layout), min(best.values(), default=None)
        if first is not None and limit.holds(first[0]):
            if not limit.holds(first[0] - 1):
                if key != degrees(first[2]):
                    ties[key] = layout
                if key in best or len(best) == count:
                    continue
            else:
                ties.clear()
        worst = best.get(key) or (max(best.values()) if len(best) == count else None)
        if worst is not None and not limit.holds(worst[0] - 1):
            continue
        found = limit.least(UNLIMITED_BYTES if worst is None else worst[0] - 1)
        if found is None:
            continue
        if worst is not None:
            del best[degrees(worst[2])]
        best[key] = (found, order, layout)
    ranked = [Least(bytes, layout) for bytes, _, layout in sorted(best.values())]
    return [replace(ranked[0], ties=tuple(ties.values())), *ranked[1:]] if ranked else []


def degrees(layout: Layout) -> tuple[int, ...]:
    """What makes two leanest variants different answers."""
    return tuple(getattr(layout, name) for name in DEGREES)


class _Limit:
    """Limits in bytes of one variant."""

    def __init__(self, asked: Asked, problem: SplitProblem, layout: Layout, within_capacity: bool, chunked: bool):
        self._asked, self._problem, self._layout, self._within = asked, problem, layout, within_capacity
        self._chunked = chunked
        self._known: dict[int, bool] = {}

    def holds(self, bytes: int) -> bool:
        """Whether the stages could hold the model with no card filled beyond so many bytes."""
        if bytes not in self._known:
            limits = Lazy(self._layout.pp, lambda stage: self._stage_limit(stage, bytes))
            self._known[bytes] = _could_hold(replace(self._problem, limits=limits), self._chunked)
        return self._known[bytes]

    def _stage_limit(self, stage: int, bytes: int) -> int:
        accounting, layout = self._asked.accounting, self._layout
        most = min(bytes, accounting.stage_capacity_bytes(layout, stage)) if self._within else bytes
        return most - accounting.form(layout, stage).padding_bytes

    def least(self, most: int) -> int | None:
        """The least that holds, up to `most`; None when not even that does."""
        if not self.holds(most):
            return None
        low, high = 0, most
        if most == UNLIMITED_BYTES:
            high = 2**30
            while not self.holds(high):
                low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            if self.holds(middle):
                high = middle
            else:
                low = middle
        return high


def _could_hold(problem: SplitProblem, chunked: bool) -> bool:
    """Whether the stages could hold the model. Exact with one chunk a stage, unless kinds of layer differ and virtual
    stages (`chunked`) could pick those that are lighter."""
    if not could_fit(problem):
        return False
    inexact = problem.vpp > 1 or problem.fixed_slices is not None or (chunked and problem.kinds > 1)
    return inexact or Chain(problem).holds(problem.longest_stage_ns)
