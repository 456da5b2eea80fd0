"""How fast the slowest stage can be when memory counts: stages are filled with layers up to a time T and their memory.

If the stages cannot hold the whole model within T, no split is that fast. With one chunk a stage, following from stage
to stage where each can end is exact (`Chain`); in general only numbers of layers are filled (`Counted`), which bounds
every split.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

from planner.memory.form import Counts
from planner.solver.bags import Counted
from planner.solver.bounds import slowest_bound, tail_bound
from planner.solver.problem import Split, SplitProblem

TOLERANCE = 2**-14
"""The search for the least T stops at this relative distance; the bound is taken from below."""


def split_bound(problem: SplitProblem, plain: SplitProblem | None = None, cutoff_ns: int | None = None) -> int | None:
    """The least step time [ns] that any split of the problem could reach; None when no split fits, or none is as fast
    as the cutoff.

    `plain` is the same layout without virtual stages: it stands in for the stages that were not looked at yet, so that
    a problem which fails at a few stages is not made at all of them.
    """
    if problem.fixed_slices is not None:
        return _step_bound(problem, 0)
    fill: Chain | Counted = Chain(problem) if problem.vpp == 1 else Counted(problem)
    if plain is not None and isinstance(fill, Counted):
        limit = slowest_allowed(problem, cutoff_ns)
        for stages in _first_looks(problem.pp):
            fill.stand_in(Counted(plain), stages)
            if not fill.holds(limit):
                return None
        fill.stand_in(None, set())
    slowest, _ = slowest_bound(problem.step, problem.kind_counts)
    least = least_limit(fill.holds, slowest, problem.longest_stage_ns)
    return None if least is None else _step_bound(problem, least)


def least_slowest(problem: SplitProblem) -> int | None:
    """The least time of the slowest stage, by counts of layers only; None when the stages cannot hold the model.

    With the memory of one chunk a stage it holds for any number of virtual chunks: under the interleaved schedule no
    chunk has fewer microbatches in flight than its stage has without it, and a stage's layers are taken from anywhere
    in the model, not from one run of it (`Bag`).
    """
    slowest, _ = slowest_bound(problem.step, problem.kind_counts)
    return least_limit(Counted(problem).holds, slowest, problem.longest_stage_ns)


def could_fit(problem: SplitProblem, lenient: bool = False) -> bool:
    """Whether the stages could hold the model at all, by counts of layers only. `lenient` leaves out what the backward
    pass of a layer needs for its turn."""
    return Counted(problem, lenient).holds(problem.longest_stage_ns)


def first_split(problem: SplitProblem) -> Split | None:
    """A split that fits and has nearly the least slowest stage, where one is easily found; a start for the solver."""
    if problem.vpp > 1 or problem.fixed_slices is not None or (problem.must_recompute and not problem.step.mixed):
        return None
    chain = Chain(problem)
    slowest, _ = slowest_bound(problem.step, problem.kind_counts)
    least = least_limit(chain.holds, slowest, problem.longest_stage_ns)
    if least is None:
        return None
    found = chain.fill(least + int(least * TOLERANCE) + 1)
    if problem.must_recompute and found is not None and not any(found.recomputed):
        return None
    return found if found is not None and problem.fits(found) else None


def _first_looks(pp: int) -> list[set[int]]:
    """The stages to look at first: the ends and the middle of the pipeline."""
    return [{0}, {0, pp - 1}, {0, pp // 4, pp // 2, pp - 1}] if pp > 2 else []


def slowest_allowed(problem: SplitProblem, cutoff_ns: int | None) -> int:
    """With a slower slowest stage than this, no step keeps the cutoff."""
    if cutoff_ns is None:
        return problem.longest_stage_ns
    form, counts = problem.step, problem.kind_counts
    _, total = slowest_bound(form, counts)
    left = cutoff_ns - tail_bound(form, counts) - form.once_ns
    rounds = form.num_microbatches * form.vpp - 1
    if not rounds:
        return problem.longest_stage_ns
    allowed = ((left + form.filled_ns) * form.vpp - total) // rounds
    return min(allowed, left // form.num_microbatches) if form.filled_ns else allowed


def _step_bound(problem: SplitProblem, least_slowest_ns: int) -> int:
    form, counts = problem.step, problem.kind_counts
    redone = 0
    if problem.must_recompute:
        redone = min(t for s in form.stages for t, n in zip(s.recompute_ns, counts, strict=True) if n)
    slowest, total = slowest_bound(form, counts, redone)
    return form.makespan_ns(max(slowest, least_slowest_ns), total) + tail_bound(form, counts) + form.once_ns


def least_limit(holds: Callable[[int], bool], start: int, longest: int) -> int | None:
    """The least T that holds, or a little less: `start` itself, or just above the last T that failed. None when even
    the longest fails."""
    if holds(start):
        return start
    if not holds(max(longest, start)):
        return None
    low, high = start, start + max(1, start // 8)
    while not holds(high):
        low, high = high, 2 * high
    while high - low > max(1, int(low * TOLERANCE)):
        middle = (low + high) // 2
        if holds(middle):
            high = middle
        else:
            low = middle
    return low + 1


def _largest(holds: Callable[[int], bool], least: int, most: int) -> int | None:
    """The largest number between that holds, for a predicate that never holds again; None when not even the least."""
    if most < least or not holds(least):
        return None
    if holds(most):
        return most
    low, high = least, most
    while high - low > 1:
        middle = (low + high) // 2
        if holds(middle):
            low = middle
        else:
            high = middle
    return low


class Chain:
    """One chunk a stage: each stage takes layers from where the one before may end.

    A stage with fewer layers never needs more time or memory. So if an end is reached at all, it is from the latest
    start; and where layers are alike, all that matters is how far the stages before come. Where kinds differ, no stage
    may be filled as far as it goes and be done: inner stages hold a layer at least, so one that took the light layers
    may push a heavy one onto a stage that cannot hold it.
    """

    def __init__(self, problem: SplitProblem):
        self.problem = problem
        self._costs: dict[tuple[int, tuple[int, ...]], tuple[int, int] | None] = {}
        """Of a stage with layers of these kinds in order, wherever they stand in the model."""

    def holds(self, limit_ns: int) -> bool:
        return self.fill(limit_ns) is not None

    def fill(self, limit_ns: int) -> Split | None:
        """The split within the limit whose later stages hold the fewest layers; None when none is within it."""
        problem, starts = self.problem, [0]
        reached: list[dict[int, int]] = []
        for stage in range(problem.pp):
            reached.append(self._ends(stage, starts, limit_ns))
            starts = sorted(reached[-1])
            if not starts:
                return None
        slices: list[int] = []
        redone: list[int] = []
        end = problem.layers
        for stage in reversed(range(problem.pp)):
            start = reached[stage][end]
            cost = self._cost(stage, start, end - start)
            assert cost is not None
            slices.insert(0, end - start)
            redone.insert(0, cost[1])
            end = start
        return Split(tuple(slices), tuple(redone))

    def _ends(self, stage: int, starts: list[int], limit_ns: int) -> dict[int, int]:
        """Where the stage can end when it begins at one of these starts (ascending), each end with the latest start
        that it is reached from. Of layers that are alike, the latest end alone."""
        problem = self.problem
        least = problem.minimum(stage)
        first, last = problem.windows[stage + 1] if stage + 1 < problem.pp else (problem.layers, problem.layers)

        def within(end: int, start: int) -> bool:
            cost = self._cost(stage, start, end - start)
            return cost is not None and cost[0] <= limit_ns

        latest = starts[-1]
        furthest = _largest(lambda end: within(end, latest), max(first, latest + least), last)
        if problem.kinds == 1:
            return {} if furthest is None else {furthest: latest}
        ends = {} if furthest is None else dict.fromkeys(range(max(first, latest + least), furthest + 1), latest)
        for start, following in pairwise(starts):
            for end in range(max(first, start + least), min(last + 1, following + least)):
                if not within(end, start):
                    break
                ends[end] = start
        return ends

    def _cost(self, stage: int, start: int, n: int) -> tuple[int, int] | None:
        """(time, recomputed layers) of layers [start, start + n) on a stage; None when they do not fit."""
        key = (stage, self.problem.pattern[start : start + n])
        if key not in self._costs:
            self._costs[key] = self._evaluate(stage, start, n)
        return self._costs[key]

    def _evaluate(self, stage: int, start: int, n: int) -> tuple[int, int] | None:
        problem = self.problem
        held = tuple(c[start + n] - c[start] for c in problem.cumulative)
        for redo in range(n + 1 if problem.may_recompute else 1):
            again = tuple(c[start + redo] - c[start] for c in problem.cumulative)
            counts = Counts((held,), (again,))
            if all(m.bytes(counts) <= problem.limits[stage] for m in problem.moments[stage]):
                return problem.step.microbatch_ns(stage, held, again), redo
        return None
