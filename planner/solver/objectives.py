"""Least memory instead of least time: the layout whose fullest GPU holds least, of equals the fastest."""

from __future__ import annotations

from dataclasses import replace

from planner.solver.asked import Asked
from planner.solver.least import Least, TimeUp, degrees, least_peaks
from planner.solver.result import Plan, SearchResult, Status

PEAK = "peak_bytes"
SLACK_BYTES = 2**20
"""Where no split keeps the bound of a filling, the least limit is narrowed down to this."""


def least_memory(asked: Asked, top: int = 5) -> SearchResult:
    """The layouts of least peak per GPU, of different degrees, ascending; of equal peaks the fastest.

    The peak is the total of the fullest GPU, reserve included. The first is proved: the lower bound comes from filling
    the stages by memory alone, and time is searched among all degrees that reach it. INFEASIBLE when nothing fits.
    """
    try:
        ranked = least_peaks(asked, max(2, top))
        chunked = _chunked(asked)
    except TimeUp:
        fastest = asked.search()
        status = Status.FEASIBLE if fastest.plans else Status.UNKNOWN
        return replace(fastest, status=status, objective=PEAK, value=_peak(fastest.plans[:1]), lower_bound=None)
    candidates = sum(1 for _ in asked.space().groups())
    plans: list[Plan] = []
    if not ranked:
        searched = asked.search() if chunked is not None else None
        if chunked is None or searched is None or searched.status is Status.INFEASIBLE:
            return SearchResult(Status.INFEASIBLE, (), PEAK, None, None, statistics={"candidates": candidates})
        ranked, plans = [chunked], list(searched.plans[:1])
    proved, bound = True, ranked[0].limit_bytes
    others = ranked[1].limit_bytes if len(ranked) > 1 else None
    for place, least in enumerate(ranked[:top]):
        result, refuted = _fastest(asked, least)
        plans += result.plans[:1]
        if place == 0:
            proved = result.status is Status.OPTIMAL and refuted <= least.limit_bytes
            bound = max(bound, refuted if others is None else min(refuted, others))
    if chunked is not None and chunked.limit_bytes < bound:
        bound, proved = chunked.limit_bytes, False
        if plans and degrees(chunked.layout) not in [degrees(least.layout) for least in ranked[:top]]:
            result, _ = _fastest(asked, chunked)
            plans += result.plans[:1]
    plans.sort(key=lambda plan: (peak_bytes(plan), plan.step.step_ns))
    del plans[top:]
    value = _peak(plans[:1])
    proved = proved or value == bound
    lower = bound if value is None else min(bound, value)
    status = Status.OPTIMAL if proved else Status.FEASIBLE if plans else Status.UNKNOWN
    return SearchResult(status, tuple(plans), PEAK, value, lower, statistics={"candidates": candidates})


def _chunked(asked: Asked) -> Least | None:
    """The least limit where virtual stages may pick the lighter of several kinds of layer; None where they cannot."""
    if len(asked.model.layer_kinds) == 1 or asked.pins.vpp == (1,):
        return None
    return next(iter(least_peaks(asked, chunked=True)), None)


def _fastest(asked: Asked, least: Least) -> tuple[SearchResult, int]:
    """The fastest plan of these degrees at their least limit, and a limit below which none of them fits [bytes].

    A filling may promise what no split keeps (several kinds of layers, pinned virtual stages): then the limit is
    raised until a plan is found, and narrowed down again.
    """
    pins = least.pins(asked.pins)
    low, high = least.limit_bytes, None
    result = asked.search(pins, most_bytes=low)
    if result.plans or result.status is not Status.INFEASIBLE:
        return result, low
    raised = SLACK_BYTES
    while not result.plans:
        if result.status is not Status.INFEASIBLE or asked.late or raised > 2**50:
            return result, low
        result = asked.search(pins, most_bytes=least.limit_bytes + raised)
        if not result.plans:
            low = least.limit_bytes + raised
            raised *= 2
    high = peak_bytes(result.plans[0])
    while high - low > SLACK_BYTES and not asked.late:
        middle = (low + high) // 2
        found = asked.search(pins, most_bytes=middle)
        if found.plans:
            result, high = found, peak_bytes(found.plans[0])
        else:
            low = middle
    return result, low


def peak_bytes(plan: Plan) -> int:
    """What the fullest GPU holds, reserve included."""
    return max(stage.total_bytes for stage in plan.memory.stages)


def _peak(plans: tuple[Plan, ...] | list[Plan]) -> int | None:
    return peak_bytes(plans[0]) if plans else None
