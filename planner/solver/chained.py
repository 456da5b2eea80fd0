"""One chunk a stage, split exactly: stage by stage along the model, by dynamic programming.

Of all splits whose stages take no longer than T and whose tails are no longer than U, the one with the least sum of
stage times is a shortest path from the first layer to the last. The step time grows with the slowest stage, that sum
and the longest tail, so a best-first search over T and U, which a path bounds from below and whose split bounds it from
above, ends at the fastest split. It is what CP-SAT proves too, which needs seconds where microbatches are few (a sum
counts as much as the slowest stage) or layers of several kinds alternate.
"""

from __future__ import annotations

from heapq import heappop, heappush
from typing import NamedTuple

from planner.memory.form import Counts
from planner.solver.bounds import slowest_bound, tail_bound
from planner.solver.fill import TOLERANCE, Chain, least_limit, slowest_allowed
from planner.solver.problem import Split, SplitProblem

PATHS = 400
"""Shortest paths of one problem at most; what is not proved with them is left to CP-SAT."""
UNREACHED = 2**61
"""Longer than any time [ns]; the sum of two is still a 64-bit integer."""
WORK_SECONDS = 1e-5
"""What a stage with a run of layers, looked at once, counts for in the work of a solve."""


class Chained(NamedTuple):
    """What the paths tell of a problem: no split is faster than the bound (None: no split fits), and the fastest split
    that was seen."""

    bound_ns: int | None
    split: Split | None
    step_ns: int | None
    work_seconds: float


class Part(NamedTuple):
    """Splits whose slowest stage takes from `low` to `high` and whose tails are no longer than `tail` [ns]."""

    bound_ns: int
    low: int
    high: int
    tail: int


def chained(problem: SplitProblem, cutoff_ns: int | None = None) -> Chained | None:
    """The fastest split of a problem with one chunk a stage, if any is as fast as the cutoff; None where it is not of
    this kind, or no split is easily found to start from."""
    if problem.vpp > 1 or problem.fixed_slices is not None:
        return None
    chain = Chain(problem)
    slowest, _ = slowest_bound(problem.step, problem.kind_counts)
    least = least_limit(chain.holds, slowest, problem.longest_stage_ns)
    if least is None:
        return Chained(None, None, None, 0.0)
    start = chain.fill(least + int(least * TOLERANCE) + 1)
    start = None if start is None else _started(problem, start)
    if start is None:
        return None
    step_ns = problem.step_ns(start)
    limit = slowest_allowed(problem, step_ns if cutoff_ns is None else min(step_ns, cutoff_ns))
    return _Paths(problem, limit).fastest(start, step_ns, least)


def _started(problem: SplitProblem, split: Split) -> Split | None:
    """The split, if it fits; where something must be recomputed and nothing is, with one layer on the first stage that
    can."""
    if not problem.must_recompute or any(split.recomputed):
        return split if problem.fits(split) else None
    for stage, held in enumerate(split.slices):
        one = Split(split.slices, tuple([int(i == stage) for i in range(problem.pp)]))
        if held and problem.fits(one):
            return one
    return None


class Run(NamedTuple):
    """Consecutive layers on a stage [ns]: their time, the same where a layer is recomputed at least, their tail, and
    how many must be recomputed for them to fit."""

    time: int
    forced: int
    tail: int
    redone: int
    some: int
    """The same where it is at least one."""


class Stage(NamedTuple):
    """A stage of a path: its layers, and whether it recomputes one that memory would not ask for."""

    stage: int
    start: int
    end: int
    forced: bool


class _Paths:
    """The stages of a problem with every run of layers that keeps the limit: [stage][first layer, end] of its time, its
    tail [ns] and its recomputed layers; `forced` where one is recomputed at least."""

    def __init__(self, problem: SplitProblem, limit_ns: int):
        import numpy as np

        self._problem, self._limit = problem, limit_ns
        self._looked = 0
        size = problem.layers + 1
        self._times, self._forced, self._tails, self._redone, self._some = (
            np.full((problem.pp, size, size), UNREACHED, dtype=np.int64) for _ in range(5)
        )
        for stage in range(problem.pp):
            self._fill(stage)

    def fastest(self, start: Split, start_ns: int, least_ns: int) -> Chained:
        """From a split that fits and a time that no slowest stage is below."""
        problem, step = self._problem, self._problem.step
        after = tail_bound(step, problem.kind_counts) + step.once_ns
        best, split, paths = start_ns, start, 0
        parts = [Part(0, least_ns, self._limit, UNREACHED)]
        while parts and parts[0].bound_ns < best and paths < PATHS:
            part = heappop(parts)
            found, paths = self._shortest(part.high, part.tail), paths + 1
            if found is None:
                continue
            total, stages = found
            slowest, tail, candidate = self._read(stages)
            reached = step.makespan_ns(slowest, total) + tail + step.once_ns
            if reached < best:
                best, split = reached, candidate
            # what is faster than this split has a faster slowest stage, or with one no faster a shorter tail
            middle = (part.low + slowest) // 2
            for low, high, longest in (
                (part.low, min(middle, slowest - 1), part.tail),
                (middle + 1, slowest - 1, part.tail),
                (max(part.low, slowest), part.high, tail - 1),
            ):
                bound = max(part.bound_ns, step.makespan_ns(low, total) + after)
                if low <= high and bound < best:
                    heappush(parts, Part(bound, low, high, longest))
        bound = min([best, *(part.bound_ns for part in parts)])
        return Chained(bound, split, best, WORK_SECONDS * (self._looked + paths * problem.pp * problem.layers / 8))

    def _fill(self, stage: int) -> None:
        problem = self._problem
        layers, least = problem.layers, problem.minimum(stage)
        first, last = problem.windows[stage]
        known: dict[tuple[int, ...], list[Run]] = {}
        for start in range(first, last + 1):
            behind = problem.pattern[start:]
            alike = behind[:1] if problem.kinds == 1 else behind
            runs = known.get(alike)
            if runs is None:
                runs = known[alike] = self._runs(stage, start)
            for n, run in enumerate(runs[: layers - start + 1]):
                if n >= least:
                    at = stage, start, start + n
                    self._times[at], self._forced[at], self._tails[at], self._redone[at], self._some[at] = run

    def _runs(self, stage: int, start: int) -> list[Run]:
        """The next 0, 1, 2, ... layers, as far as they keep the limit and fit. A longer run never takes less, nor needs
        fewer layers recomputed."""
        problem, step = self._problem, self._problem.step
        cumulative, redo, some = problem.cumulative, 0, 1
        found: list[Run] = []

        def layers(end: int) -> tuple[int, ...]:
            return tuple([c[end] - c[start] for c in cumulative])

        def fits(held: tuple[int, ...], redo: int) -> bool:
            self._looked += 1
            counts = Counts((held,), (layers(start + redo),))
            return all(m.bytes(counts) <= problem.limits[stage] for m in problem.moments[stage])

        for end in range(start, problem.layers + 1):
            held = layers(end)
            while not fits(held, redo):
                redo += 1
                if not problem.may_recompute or redo > end - start:
                    return found
            time = forced = step.microbatch_ns(stage, held, layers(start + redo))
            if time > self._limit:
                return found
            some = max(some, redo)
            if problem.must_recompute and not redo:
                while some <= end - start and not fits(held, some):
                    some += 1
                forced = step.microbatch_ns(stage, held, layers(start + some)) if some <= end - start else UNREACHED
            found.append(Run(time, forced, step.tail_ns(stage, held), redo, some))
        return found

    def _shortest(self, limit_ns: int, tail_ns: int) -> tuple[int, list[Stage]] | None:
        """The least sum of stage times within the limits, and its stages; None when no split is within."""
        import numpy as np

        must, layers = self._problem.must_recompute, self._problem.layers
        free = np.full(layers + 1, UNREACHED, dtype=np.int64)
        """Of the stages so far; `done` where one of them recomputes something."""
        free[0] = 0
        done = np.full(layers + 1, UNREACHED, dtype=np.int64)
        came = []
        for times, forced, tails in zip(self._times, self._forced, self._tails, strict=True):
            short = tails <= tail_ns
            times = np.where(short & (times <= limit_ns), times, UNREACHED)
            sums = free[:, None] + times
            here = [sums.argmin(axis=0)]
            if must:
                kept = done[:, None] + times
                begun = free[:, None] + np.where(short & (forced <= limit_ns), forced, UNREACHED)
                here += [kept.argmin(axis=0), begun.argmin(axis=0), begun.min(axis=0) < kept.min(axis=0)]
                done = np.minimum(np.minimum(kept.min(axis=0), begun.min(axis=0)), UNREACHED)
            free = np.minimum(sums.min(axis=0), UNREACHED)
            came.append(here)
        total = int((done if must else free)[-1])
        if total >= UNREACHED:
            return None
        end, found = layers, []
        for stage in reversed(range(len(came))):
            now = bool(must and came[stage][3][end])
            start = int(came[stage][2 if now else 1 if must else 0][end])
            found.append(Stage(stage, start, end, now))
            end, must = start, must and not now
        return total, found[::-1]

    def _read(self, stages: list[Stage]) -> tuple[int, int, Split]:
        """The slowest stage, the longest tail and the split."""
        runs = [(s.stage, s.start, s.end) for s in stages]
        times = [int((self._forced if s.forced else self._times)[run]) for s, run in zip(stages, runs, strict=True)]
        redone = [int((self._some if s.forced else self._redone)[run]) for s, run in zip(stages, runs, strict=True)]
        split = Split(tuple([s.end - s.start for s in stages]), tuple(redone))
        return max(times), max(int(self._tails[run]) for run in runs), split
