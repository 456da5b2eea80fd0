"""The search: best first over all degrees, by bounds that prove what they discard, with CP-SAT deciding the split.

Every legal choice of degrees has a lower bound of its step time. The queue pops the least bound and either sharpens it
(time alone, then time and memory) or, when nothing is left to sharpen, solves the split. Once the least bound left is
no better than the worst plan kept, everything left is proved to be no better, and the search ends.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from planner.cluster import Cluster
from planner.implementation import Implementation
from planner.layout import Layout, Recompute
from planner.model import Model
from planner.solver.bounds import Bounder, time_bound
from planner.solver.candidates import FREE, Pins, Space
from planner.solver.interfaces import Accounting, StepTiming
from planner.solver.problem import Split, SplitProblem, linear_moments
from planner.solver.result import Plan, SearchResult, Status
from planner.solver.split import Solved, solve_split, tidy
from planner.stages import split_from_counts
from planner.workload import Workload

Progress = Callable[[int, int, str], object]
Key = tuple[object, ...]


@dataclass(slots=True)
class Found:
    """The best split known of one choice of degrees."""

    step_ns: int
    layout: Layout
    problem: SplitProblem
    split: Split
    proved: bool


def degrees(layout: Layout) -> Key:
    """What makes two plans different answers; ZeRO stage and recomputation are variants of one."""
    return (layout.tp, layout.cp, layout.pp, layout.vpp, layout.ep, layout.etp, layout.dp, layout.micro_batch)


def simplicity(layout: Layout) -> Key:
    """Of equally fast layouts the one that is simpler to run comes first."""
    r = layout.recompute
    rank = ("none", "selective", "full").index(r.granularity)
    size = layout.tp * layout.cp * layout.pp
    experts = layout.ep * layout.etp
    return (layout.vpp, rank, len(r.modules), layout.zero, size, experts, layout.micro_batch, layout.pp, layout.cp,
            layout.tp, layout.etp, layout.sequence_parallel, r.modules)  # fmt: skip


class Search:
    """One search; `run` gives its result."""

    def __init__(
        self,
        model: Model,
        workload: Workload,
        implementation: Implementation,
        cluster: Cluster,
        accounting: Accounting,
        timing: StepTiming,
        pins: Pins = FREE,
        top: int = 5,
        time_limit_seconds: float | None = None,
        progress: Progress | None = None,
    ):
        self.model, self.accounting, self.timing = model, accounting, timing
        self.space = Space(model, workload, implementation, cluster, pins)
        self.pins, self.top, self.progress = pins, top, progress
        self.deadline = None if time_limit_seconds is None else time.monotonic() + time_limit_seconds
        self.counts = tuple(model.pattern.count(k) for k in range(len(model.layer_kinds)))
        self.fixed_slices = None
        if pins.stage_layers is not None:
            stages = split_from_counts(model, pins.stage_layers)
            self.fixed_slices = tuple(s[v].num_layers for v in range(len(stages[0])) for s in stages)
        self.found: dict[Key, Found] = {}
        self.unproved_bound: int | None = None
        self.statistics: dict[str, int | float] = dict.fromkeys(
            ("candidates", "pruned_by_time", "pruned_by_memory", "bounded_with_memory", "solved"), 0
        )

    def run(self) -> SearchResult:
        """Search until the proof, or until the time is up."""
        started = time.monotonic()
        queue = self._queue()
        remaining = self._drain(queue)
        plans = self._plans()
        self.statistics["pruned_by_time"] = len(queue)
        self.statistics["solve_seconds"] = round(time.monotonic() - started, 3)
        bounds = [b for b in (remaining, self.unproved_bound) if b is not None]
        if not plans:
            status = Status.UNKNOWN if bounds else Status.INFEASIBLE
            return SearchResult(status, (), "step_seconds", None, min(bounds) / 1e9 if bounds else None,
                                statistics=self.statistics)  # fmt: skip
        value = plans[0].step.step_ns
        lower = min([value, *bounds])
        return SearchResult(
            Status.OPTIMAL if lower == value else Status.FEASIBLE,
            tuple(plans),
            "step_seconds",
            plans[0].step.seconds,
            plans[0].step.seconds if lower == value else lower / 1e9,
            statistics=self.statistics,
        )

    # the queue

    def _queue(self) -> list[tuple]:
        queue: list[tuple] = []
        for layout in self.space:
            full = layout.recompute.granularity == "full"
            bound = time_bound(self.timing.form(layout), self.counts, full)
            queue.append((bound, 0, simplicity(layout), layout, None))
        self.statistics["candidates"] = len(queue)
        heapify(queue)
        return queue

    def _drain(self, queue: list[tuple]) -> int | None:
        """Work until the least bound left is no better than what is kept; that bound if time ran out, else None."""
        total = int(self.statistics["candidates"])
        while queue:
            bound, level, key, layout, bounder = queue[0]
            cutoff = self._cutoff(layout)
            if cutoff is not None and bound > cutoff:
                if bound > (self._worst_kept() or bound):
                    return None
                heappop(queue)  # another variant of the same degrees is faster
                continue
            if self.deadline is not None and time.monotonic() > self.deadline:
                return bound
            heappop(queue)
            if self.progress is not None:
                self.progress(total - len(queue), total, f"{int(self.statistics['solved'])} solved")
            if level == 0:
                self._sharpen(queue, bound, key, layout)
            else:
                self._solve(layout, bounder, cutoff)
        return None

    def _sharpen(self, queue: list[tuple], bound: int, key: Key, layout: Layout) -> None:
        self.statistics["bounded_with_memory"] += 1
        bounder = Bounder(self._problem(layout))
        sharper = bounder.bound()
        if sharper is None:
            self.statistics["pruned_by_memory"] += 1
            return
        heappush(queue, (max(bound, sharper), 1, key, layout, bounder))

    def _solve(self, layout: Layout, bounder: Bounder, cutoff: int | None) -> None:
        self.statistics["solved"] += 1
        seconds = None if self.deadline is None else self.deadline - time.monotonic()
        solved: Solved = solve_split(bounder.problem, cutoff, bounder.first_split(), seconds)
        if solved.status is not Status.OPTIMAL and solved.status is not Status.INFEASIBLE:
            self.unproved_bound = min(self.unproved_bound or solved.lower_bound_ns, solved.lower_bound_ns)
        if solved.split is None or solved.step_ns is None:
            return
        new = Found(solved.step_ns, layout, bounder.problem, solved.split, solved.status is Status.OPTIMAL)
        known = self.found.get(degrees(layout))
        if known is None or (new.step_ns, simplicity(layout)) < (known.step_ns, simplicity(known.layout)):
            self.found[degrees(layout)] = new

    def _worst_kept(self) -> int | None:
        """The step time of the last plan that would be reported, once there are enough."""
        if len(self.found) < self.top:
            return None
        return sorted(f.step_ns for f in self.found.values())[self.top - 1]

    def _cutoff(self, layout: Layout) -> int | None:
        """A split of this layout that is slower than this is not wanted."""
        known = self.found.get(degrees(layout))
        limits = [x for x in (self._worst_kept(), known.step_ns if known else None) if x is not None]
        return min(limits) if limits else None

    # the inner problem

    def _problem(self, layout: Layout) -> SplitProblem:
        kinds = len(self.model.layer_kinds)
        moments, limits = [], []
        for stage in range(layout.pp):
            form = self.accounting.form(layout, stage)
            moments.append(linear_moments(form, layout.vpp, kinds))
            limits.append(self.accounting.stage_capacity_bytes(layout, stage) - form.padding_bytes)
        full = layout.recompute.granularity == "full"
        return SplitProblem(
            pattern=self.model.pattern,
            kinds=kinds,
            pp=layout.pp,
            vpp=layout.vpp,
            step=self.timing.form(layout),
            moments=tuple(moments),
            limits=tuple(limits),
            may_recompute=full,
            must_recompute=full,
            fixed_slices=self.fixed_slices,
        )

    # the answer

    def _plans(self) -> list[Plan]:
        best = sorted(self.found.values(), key=lambda f: (f.step_ns, simplicity(f.layout)))[: self.top]
        return [self._plan(found) for found in best]

    def _plan(self, found: Found) -> Plan:
        """The plan as accounting and timing report it; they must repeat what the solver promised."""
        split = found.split if self.fixed_slices else tidy(found.problem, found.split)
        layout = with_split(self.model, found.layout, split)
        plan = Plan(layout, self.accounting.report(layout), self.timing.step(layout))
        if plan.step.step_ns != found.step_ns:
            raise AssertionError(f"solver {found.step_ns} ns, report {plan.step.step_ns} ns for {layout}")
        if not plan.memory.fits:
            raise AssertionError(f"the solver's plan does not fit: {layout}")
        return plan


def with_split(model: Model, layout: Layout, split: Split) -> Layout:
    """The layout with its stages decided."""
    rows = [list(split.slices[stage :: layout.pp]) for stage in range(layout.pp)]
    recompute = layout.recompute
    if recompute.granularity == "full":
        recompute = Recompute("full", method="block", stage_layers=split.recomputed)
    return replace(layout, stages=split_from_counts(model, rows), recompute=recompute)


def search(
    model: Model,
    workload: Workload,
    implementation: Implementation,
    cluster: Cluster,
    accounting_name: str = "exact",
    pins: Pins = FREE,
    top: int = 5,
    time_limit_seconds: float | None = None,
    reserve_bytes: int | None = None,
    progress: Progress | None = None,
) -> SearchResult:
    """The fastest layouts that fit, proved; `accounting_name` is exact or rule-of-thumb."""
    from planner.memory.accounting import make_accounting
    from planner.timing.step import Timing

    accounting = make_accounting(accounting_name, model, workload, implementation, cluster, reserve_bytes)
    timing = Timing(model, workload, implementation, cluster)
    return Search(
        model, workload, implementation, cluster, accounting, timing, pins, top, time_limit_seconds, progress
    ).run()
