"""Lower bounds of the step time of one choice of degrees, cheap enough to discard most of them unsolved.

`time_bound` knows no memory. `Bounder` adds it: the slowest stage can be no faster than T when, within time T and its
memory, the stages cannot hold the whole model between them. Both hold for every split and every recomputation.
"""

from __future__ import annotations

from planner.memory.form import Counts
from planner.solver.problem import LinearMoment, Split, SplitProblem
from planner.timing.form import StepForm

TOLERANCE = 2**-14
"""The search for the least possible T stops at this relative distance; the bound is taken from below."""


def pipeline_bound(form: StepForm, slowest_ns: int, total_ns: int) -> int:
    """The pipeline's makespan when no stage is slower than the slowest, and all take `total_ns` together."""
    rounds = form.num_microbatches * form.vpp - 1
    return -(-(rounds * slowest_ns + total_ns) // form.vpp)


def tail_bound(form: StepForm, layers: tuple[int, ...]) -> int:
    """The largest tail is no less than the mean of all, and tails are convex: the mean is at least the mean stage's.

    `layers` is the model's count of each kind. A tail that some stage lacks is left out.
    """
    stages = len(form.stages)
    names: dict[str, list[int]] = {}
    least: dict[str, tuple[int, ...]] = {}
    for stage in form.stages:
        for tail in stage.tails:
            fixed = names.setdefault(tail.name, [])
            fixed.append(tail.fixed_ns)
            known = least.get(tail.name)
            least[tail.name] = tail.layer_ns if known is None else tuple(map(min, known, tail.layer_ns))
    bound = 0
    for name, fixed in names.items():
        if len(fixed) == stages:
            bound += max(0, sum(fixed) + sum(n * t for n, t in zip(layers, least[name], strict=True))) // stages
    return bound


def slowest_bound(form: StepForm, layers: tuple[int, ...], recomputed_ns: int = 0) -> tuple[int, int]:
    """(slowest stage, sum of all stages) at least, without memory: the mean of the stages, the largest fixed work, and
    whole layers: some stage holds at least the ceiling of the mean."""
    stages = len(form.stages)
    least = tuple(map(min, *(s.layer_ns for s in form.stages))) if stages > 1 else form.stages[0].layer_ns
    fixed = [s.fixed_ns for s in form.stages]
    total = sum(fixed) + sum(n * t for n, t in zip(layers, least, strict=True)) + recomputed_ns
    used = [t for n, t in zip(layers, least, strict=True) if n]
    whole = min(fixed) + -(-sum(layers) // stages) * min(used)
    if len(used) == 1:
        whole = _equal_layers(fixed, sum(layers), used[0])
    return max(-(-total // stages), max(fixed), whole), total


def _equal_layers(fixed: list[int], layers: int, each: int) -> int:
    """The least T at which stages with this fixed work hold all layers of equal time: sum of floor((T - f) / t) >= L.

    Only T of the form f + n t can be the least; the search is over n around the mean for each distinct f.
    """
    if each == 0:
        return max(fixed)
    stages = len(fixed)
    distinct = {f: fixed.count(f) for f in set(fixed)}
    mean = (sum(fixed) + layers * each) // stages

    def holds(limit: int) -> bool:
        return sum(count * max(0, (limit - f) // each) for f, count in distinct.items()) >= layers

    best = None
    for f in distinct:
        n = max(0, (mean - f) // each)
        while not holds(f + n * each):
            n += 1
        while n > 0 and holds(f + (n - 1) * each):
            n -= 1
        best = f + n * each if best is None else min(best, f + n * each)
    assert best is not None
    return best


def time_bound(form: StepForm, layers: tuple[int, ...], at_least_recomputed: bool = False) -> int:
    """No split and no recomputation is faster, whatever the memory."""
    redone = min(min(s.recompute_ns) for s in form.stages) if at_least_recomputed else 0
    slowest, total = slowest_bound(form, layers, redone)
    return pipeline_bound(form, slowest, total) + tail_bound(form, layers) + form.once_ns


class Bounder:
    """Memory-aware bound and a first split of one problem."""

    def __init__(self, problem: SplitProblem):
        self.problem = problem
        self.layers = tuple(row[-1] for row in problem.cumulative)
        self._costs: dict[tuple[int, int, int], tuple[int, int] | None] = {}
        self._relaxed = [_relax(problem, stage) for stage in range(problem.pp)] if problem.vpp > 1 else []
        step = problem.step
        self._each = [min(t for t, n in zip(s.layer_ns, self.layers, strict=True) if n) for s in step.stages]
        self._again = [min(t for t, n in zip(s.recompute_ns, self.layers, strict=True) if n) for s in step.stages]

    def bound(self) -> int | None:
        """The least step time [ns] that any split could reach; None when no split fits."""
        problem, form = self.problem, self.problem.step
        redone = min(self._again) if problem.must_recompute else 0
        slowest, total = slowest_bound(form, self.layers, redone)
        if problem.fixed_slices is None:
            least = self._least_slowest(slowest)
            if least is None:
                return None
            slowest = least
        return pipeline_bound(form, slowest, total) + tail_bound(form, self.layers) + form.once_ns

    def first_split(self) -> Split | None:
        """A split that fits and has the least slowest stage, where one is easily found; a start for the solver."""
        if self.problem.vpp > 1 or self.problem.fixed_slices is not None or self.problem.must_recompute:
            return None
        slowest, _ = slowest_bound(self.problem.step, self.layers)
        least = self._least_slowest(slowest)
        if least is None:
            return None
        found = self._chain(least + int(least * TOLERANCE) + 1)
        return found if found is None or self.problem.fits(found) else None

    def _least_slowest(self, start: int) -> int | None:
        """The least T, or nearly, in which the stages hold the model: `start` or just above the last T that failed."""
        if self._holds(start):
            return start
        low, high = start, start * 2 + 1
        ceiling = sum(s.fixed_ns for s in self.problem.step.stages) + sum(
            n * max((s.layer_ns[k] + s.recompute_ns[k]) for s in self.problem.step.stages)
            for k, n in enumerate(self.layers)
        )
        if not self._holds(max(ceiling, start)):
            return None
        while not self._holds(high):
            low, high = high, high * 2
        while high - low > max(1, int(low * TOLERANCE)):
            middle = (low + high) // 2
            if self._holds(middle):
                high = middle
            else:
                low = middle
        return low + 1

    def _holds(self, limit_ns: int) -> bool:
        """Whether the stages could hold the model with none slower than the limit."""
        if self.problem.vpp == 1:
            return self._chain(limit_ns) is not None
        held = 0
        for stage in range(self.problem.pp):
            most = self._most_relaxed(stage, limit_ns)
            if most < 0:
                return False
            held += most
        return held >= self.problem.layers

    # one chunk a stage: filling from the first stage on is exact

    def _chain(self, limit_ns: int) -> Split | None:
        """Each stage takes as many of the next layers as it can; if that does not hold the model, nothing does, since a
        stage that holds fewer layers never needs more time or memory."""
        problem, start = self.problem, 0
        after = sum(problem.minimum(s) for s in range(1, problem.pp))
        slices, redone = [], []
        for stage in range(problem.pp):
            most = problem.layers - start - after
            least = problem.minimum(stage)
            n = self._most(stage, start, least, most, limit_ns)
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

    def _most(self, stage: int, start: int, least: int, most: int, limit_ns: int) -> int | None:
        def within(n: int) -> bool:
            cost = self._cost(stage, start, n)
            return cost is not None and cost[0] <= limit_ns

        if most < least or not within(least):
            return None
        if within(most):
            return most
        low, high = least, most
        while high - low > 1:
            middle = (low + high) // 2
            if within(middle):
                low = middle
            else:
                high = middle
        return low

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

    # virtual chunks: counts only, each chunk at its least

    def _most_relaxed(self, stage: int, limit_ns: int) -> int:
        """Most layers on a stage, in any chunks; -1 when not even the fewest fit."""
        problem, form = self.problem, self.problem.step.stages[stage]
        least = sum(problem.minimum(v * problem.pp + stage) for v in range(problem.vpp))
        low, high = least - 1, problem.layers + 1

        def within(n: int) -> bool:
            redo = _least_recompute(self._relaxed[stage], n, problem.limits[stage], problem.may_recompute)
            if redo is None:
                return False
            return form.fixed_ns + n * self._each[stage] + redo * self._again[stage] <= limit_ns

        while high - low > 1:
            middle = (low + high) // 2
            if within(middle):
                low = middle
            else:
                high = middle
        return low if low >= least else -1


Relaxed = tuple[int, int, int, int]
"""One moment: bytes at the stage's fewest layers, of each further layer, of each recomputed one, and once when any is
recomputed; each the least over chunks and kinds."""


def _relax(problem: SplitProblem, stage: int) -> tuple[int, list[Relaxed]]:
    used = [k for k, row in enumerate(problem.cumulative) if row[-1]]
    minima = [problem.minimum(v * problem.pp + stage) for v in range(problem.vpp)]

    def least(moment: LinearMoment) -> Relaxed:
        chunks = [min(row[k] for k in used) for row in moment.layer]
        base = moment.fixed + sum(n * b for n, b in zip(minima, chunks, strict=True))
        base += min(moment.if_layer[k] for k in used) if sum(minima) else 0
        again = min(row[k] for row in moment.recomputed for k in used)
        return base, min(chunks), again, min(moment.if_recomputed[k] for k in used)

    return sum(minima), [least(moment) for moment in problem.moments[stage]]


def _least_recompute(relaxed: tuple[int, list[Relaxed]], n: int, limit: int, may_recompute: bool) -> int | None:
    """Fewest recomputed layers with which n layers fit; None when they never do."""
    fewest, moments = relaxed
    if all(base + (n - fewest) * each <= limit for base, each, _, _ in moments):
        return 0
    if not may_recompute:
        return None
    redo = 1
    for base, each, again, once in moments:
        over = base + (n - fewest) * each + once - limit
        if over + redo * again > 0:
            if again >= 0:
                return None
            redo = max(redo, -(over // again))
    return redo if redo <= n else None
