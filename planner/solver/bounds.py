"""Lower bounds of the step time of one choice of degrees, cheap enough to discard most of them unsolved.

`layer_bound` knows the time of a layer only, `time_bound` all coefficients of time. Neither knows memory, which
`planner.solver.fill` adds. All hold for every split and every recomputation.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from functools import lru_cache

from planner.solver import unequal
from planner.solver.problem import chunked_totals, even_chunk
from planner.solver.virtual import Virtual
from planner.timing.form import StepForm


def layer_bound(
    layer_ns: tuple[int, ...], layers: tuple[int, ...], microbatches: int, pp: int, virtual: Sequence[Virtual]
) -> int:
    """The pipeline's makespan at least, from the time of a layer alone: with the best of these numbers of virtual
    stages, no stage is faster than the mean, nor than the fewest whole layers of the longest. `layers` is the model's
    count of each kind."""
    total = sum(n * t for n, t in zip(layers, layer_ns, strict=True))
    each = min(t for n, t in zip(layers, layer_ns, strict=True) if n)
    mean = -(-total // pp)
    return min(-(-((microbatches * vpp - 1) * max(mean, longest * each) + total) // vpp) for vpp, longest in virtual)


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


def slowest_bound(form: StepForm, layers: tuple[int, ...], recomputed_ns: int = 0, longest: int = 0) -> tuple[int, int]:
    """(slowest stage, sum of all stages) at least, without memory: the mean of the stages, the largest fixed work, and
    whole layers: some stage holds at least the ceiling of the mean, and `longest` where so many are known."""
    if form.mixed:
        return unequal.slowest_bound(form, layers, recomputed_ns)
    stages = len(form.stages)
    least = tuple(map(min, *(s.layer_ns for s in form.stages))) if stages > 1 else form.stages[0].layer_ns
    fixed = [s.fixed_ns for s in form.stages]
    total = sum(fixed) + sum(n * t for n, t in zip(layers, least, strict=True)) + recomputed_ns
    used = [t for n, t in zip(layers, least, strict=True) if n]
    whole = min(fixed) + max(longest, -(-sum(layers) // stages)) * min(used)
    if len(used) == 1:
        whole = max(whole, _equal_layers(tuple(fixed), sum(layers), used[0]))
    return max(-(-total // stages), max(fixed), whole), total


def chunked_slowest(form: StepForm, layers: int, vpp: int, used: tuple[int, ...]) -> int | None:
    """The least time of the slowest stage where each has `vpp` chunks of equal length; None where the layers cannot be
    shared out so. `used` are the kinds of the model's layers; memory is not looked at."""
    even, last = even_chunk(layers, len(form.stages), vpp), len(form.stages) - 1
    each = [min(s.layer_ns[k] for k in used) for s in form.stages]
    ends, inner = chunked_totals(even, vpp, True), chunked_totals(even, vpp, False)
    times = [
        [(s.fixed_ns + n * t, n) for n in (ends if i in (0, last) else inner)]
        for i, (s, t) in enumerate(zip(form.stages, each, strict=True))
    ]
    limits = sorted({time for stage in times for time, _ in stage})

    def holds(limit: int) -> bool:
        first, *between, final = [[n for time, n in stage if time <= limit] for stage in times]
        if not (first and final and all(between)):
            return False
        least, most = sum(map(min, between)), sum(map(max, between))
        wanted = {layers - a - b for a in first for b in final}
        return any(least <= left <= most and (left - least) % vpp == 0 for left in wanted)

    place = bisect_left(limits, True, key=holds)
    return limits[place] if place < len(limits) else None


@lru_cache(maxsize=4096)
def _equal_layers(fixed: tuple[int, ...], layers: int, each: int) -> int:
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


def time_bound(form: StepForm, layers: tuple[int, ...], at_least_recomputed: bool = False, longest: int = 0) -> int:
    """No split and no recomputation is faster, whatever the memory; `longest` as in `slowest_bound`."""
    redone = min(min(s.recompute_ns) for s in form.stages) if at_least_recomputed else 0
    slowest, total = slowest_bound(form, layers, redone, longest)
    return form.makespan_ns(slowest, total) + tail_bound(form, layers) + form.once_ns
