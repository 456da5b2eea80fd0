"""How fast the slowest stage can be when memory counts: stages are filled with layers up to a time T and their memory.

If the stages cannot hold the whole model within T, no split is that fast. With one chunk a stage, filling from the
first stage on is exact (`Chain`); in general only counts of layers are filled (`Counted`), which bounds every split.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from planner.memory.form import Counts
from planner.solver.bounds import pipeline_bound, slowest_bound, tail_bound
from planner.solver.problem import LinearMoment, Split, SplitProblem

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
        limit = _slowest_allowed(problem, cutoff_ns)
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

    With the coefficients of one chunk a stage it holds for any number of virtual chunks: under the interleaved
    schedule no chunk has fewer microbatches in flight than its stage has without it.
    """
    slowest, _ = slowest_bound(problem.step, problem.kind_counts)
    return least_limit(Counted(problem).holds, slowest, problem.longest_stage_ns)


def could_fit(problem: SplitProblem) -> bool:
    """Whether the stages could hold the model at all, by counts of layers only."""
    return Counted(problem).holds(problem.longest_stage_ns)


def first_split(problem: SplitProblem) -> Split | None:
    """A split that fits and has nearly the least slowest stage, where one is easily found; a start for the solver."""
    if problem.vpp > 1 or problem.fixed_slices is not None or problem.must_recompute:
        return None
    chain = Chain(problem)
    slowest, _ = slowest_bound(problem.step, problem.kind_counts)
    least = least_limit(chain.holds, slowest, problem.longest_stage_ns)
    if least is None:
        return None
    found = chain.fill(least + int(least * TOLERANCE) + 1)
    return found if found is not None and problem.fits(found) else None


def _first_looks(pp: int) -> list[set[int]]:
    """The stages to look at first: the ends and the middle of the pipeline."""
    return [{0}, {0, pp - 1}, {0, pp // 4, pp // 2, pp - 1}] if pp > 2 else []


def _slowest_allowed(problem: SplitProblem, cutoff_ns: int | None) -> int:
    """With a slower slowest stage than this, no step keeps the cutoff."""
    if cutoff_ns is None:
        return problem.longest_stage_ns
    form, counts = problem.step, problem.kind_counts
    _, total = slowest_bound(form, counts)
    left = cutoff_ns - tail_bound(form, counts) - form.once_ns
    rounds = form.num_microbatches * form.vpp - 1
    return (left * form.vpp - total) // rounds if rounds else problem.longest_stage_ns


def _step_bound(problem: SplitProblem, least_slowest_ns: int) -> int:
    form, counts = problem.step, problem.kind_counts
    redone = 0
    if problem.must_recompute:
        redone = min(t for s in form.stages for t, n in zip(s.recompute_ns, counts, strict=True) if n)
    slowest, total = slowest_bound(form, counts, redone)
    return pipeline_bound(form, max(slowest, least_slowest_ns), total) + tail_bound(form, counts) + form.once_ns


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
    """One chunk a stage: each stage takes as many of the next layers as it can.

    If that does not hold the model, nothing does, since a stage with fewer layers never needs more time or memory.
    """

    def __init__(self, problem: SplitProblem):
        self.problem = problem
        self._costs: dict[tuple[int, int, int], tuple[int, int] | None] = {}

    def holds(self, limit_ns: int) -> bool:
        return self.fill(limit_ns) is not None

    def fill(self, limit_ns: int) -> Split | None:
        """The split that fills every stage up to the limit, front to back; None when layers are left over."""
        problem, start = self.problem, 0
        after = sum(problem.minimum(s) for s in range(1, problem.pp))
        slices, redone = [], []
        for stage in range(problem.pp):

            def within(n: int, stage: int = stage, start: int = start) -> bool:
                cost = self._cost(stage, start, n)
                return cost is not None and cost[0] <= limit_ns

            n = _largest(within, problem.minimum(stage), problem.layers - start - after)
            if n is None:
                return None
            cost = self._cost(stage, start, n)
            assert cost is not None
            slices.append(n)
            redone.append(cost[1])
            start += n
            if stage + 1 < problem.pp:
                after -= problem.minimum(stage + 1)
        return Split(tuple(slices), tuple(redone)) if start == problem.layers else None

    def _cost(self, stage: int, start: int, n: int) -> tuple[int, int] | None:
        """(time, recomputed layers) of layers [start, start + n) on a stage; None when they do not fit."""
        key = (stage, start if self.problem.kinds > 1 else 0, n)
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


@dataclass(frozen=True, slots=True)
class KindMoment:
    """One moment for layers of one kind only [bytes]: at the fewest layers, of each number of further layers, saved by
    each number of recomputed ones, and once when any is recomputed. Further layers go where they cost least, recomputed
    ones are where they save most, as far as the chunks hold them: never more than any split needs."""

    base: int
    further: tuple[int, ...]
    saved: tuple[int, ...]
    once: int


def _filled(sizes: list[tuple[int, int]]) -> tuple[int, ...]:
    """Running sum over items that are taken in order; sizes are (bytes of one, how many there are)."""
    sums = [0]
    for size, count in sizes:
        for _ in range(count):
            sums.append(sums[-1] + size)
    return tuple(sums)


class Counted:
    """Stages as bags of layers of one kind at a time; other kinds and the order are ignored."""

    def __init__(self, problem: SplitProblem):
        self.problem = problem
        self.used = [k for k, n in enumerate(problem.kind_counts) if n]
        self._bags: dict[int, tuple[int, int, list[list[KindMoment]]]] = {}
        self._plain: Counted | None = None
        self._looked: set[int] = set()

    def stand_in(self, plain: Counted | None, looked: set[int]) -> None:
        """Judge only the stages that are looked at by themselves, all others by a plainer problem."""
        self._plain, self._looked = plain, looked

    def holds(self, limit_ns: int) -> bool:
        """Whether, for every kind, the stages could hold its layers with none slower than the limit."""
        for position, kind in enumerate(self.used):
            missing = self.problem.kind_counts[kind]
            if not self._could_hold(position, kind, missing, limit_ns):
                return False
            for stage in range(self.problem.pp):
                most = self._most(stage, position, kind, missing, limit_ns)
                if most is None:
                    return False
                missing -= most
            if missing:
                return False
        return True

    def _could_hold(self, position: int, kind: int, layers: int, limit_ns: int) -> bool:
        """A first look at two stages only: without virtual stages, no stage before the last but one has fewer
        microbatches in flight than that one, so none holds more layers on the same card."""
        pp = self.problem.pp
        if pp < 4 or self.problem.vpp > 1 or self.problem.step.mixed:
            return True
        inner = self._most(pp - 2, position, kind, layers, limit_ns)
        last = self._most(pp - 1, position, kind, layers, limit_ns)
        return inner is not None and last is not None and inner * (pp - 1) + last >= layers

    def least_recomputed(self, stage: int) -> tuple[int | None, ...]:
        """For a model of one kind of layer: at each number of layers, the fewest that the stage must recompute; None
        where it cannot hold so many, or so few."""
        assert len(self.used) == 1
        fewest, most, kinds = self._bag(stage)
        limit = self.problem.limits[stage]
        return tuple(
            self._least_recompute(kinds[0], n, n - fewest, limit) if fewest <= n <= most else None
            for n in range(self.problem.layers + 1)
        )

    def _most(self, stage: int, position: int, kind: int, wanted: int, limit_ns: int) -> int | None:
        """Most layers of a kind on a stage; None when not even the fewest fit."""
        fewest, most, kinds = self._bag(stage)
        time, moments, limit = self.problem.step.stages[stage], kinds[position], self._limit(stage)

        def within(n: int) -> bool:
            redo = self._least_recompute(moments, n, max(0, n - fewest), limit)
            if redo is None:
                return False
            return time.fixed_ns + n * time.layer_ns[kind] + redo * time.recompute_ns[kind] <= limit_ns

        return _largest(within, 0, min(wanted, most))

    def _least_recompute(self, moments: Sequence[KindMoment], n: int, further: int, limit: int) -> int | None:
        """Fewest recomputed layers with which n layers fit; None when they never do."""
        if all(m.base + m.further[further] <= limit for m in moments):
            return 0
        if not self.problem.may_recompute:
            return None
        redo = 1
        for m in moments:
            over = m.base + m.further[further] + m.once - limit
            if over > m.saved[min(redo, len(m.saved) - 1)]:
                redo = bisect_left(m.saved, over)
                if redo > n or redo >= len(m.saved):
                    return None
        return redo

    def _limit(self, stage: int) -> int:
        if self._plain is not None and stage not in self._looked:
            return self._plain._limit(stage)
        return self.problem.limits[stage]

    def _bag(self, stage: int) -> tuple[int, int, list[list[KindMoment]]]:
        """(fewest, most) layers of a stage, and its moments for each kind."""
        if self._plain is not None and stage not in self._looked:
            return self._plain._bag(stage)
        if stage not in self._bags:
            problem = self.problem
            minima = [problem.minimum(v * problem.pp + stage) for v in range(problem.vpp)]
            if problem.vpp == 1:
                minima = [0]
            moments = [[self._of_kind(m, minima, kind) for m in problem.moments[stage]] for kind in self.used]
            self._bags[stage] = (sum(minima), problem.maximum * problem.vpp, moments)
        return self._bags[stage]

    def _of_kind(self, moment: LinearMoment, minima: list[int], kind: int) -> KindMoment:
        base, most = moment.fixed, self.problem.maximum
        for n, row, again in zip(minima, moment.layer, moment.recomputed, strict=True):
            if len(self.used) == 1:
                base += n * row[kind]
            else:  # the fewest layers may be of another kind, and recomputed
                base += n * min(row[k] + min(0, again[k]) for k in self.used)
        further = sorted((row[kind], most - n) for n, row in zip(minima, moment.layer, strict=True))
        if len(self.used) > 1:  # what is further of this kind may be among the fewest
            further = [(further[0][0], most * len(further))]
        saved = sorted(((max(0, -row[kind]), most) for row in moment.recomputed), reverse=True)
        return KindMoment(base, _filled(further), _filled(saved), moment.if_recomputed[kind])
