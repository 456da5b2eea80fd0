"""The search: best first over all degrees, by bounds that prove what they discard, with CP-SAT, or shortest paths where
those are enough, deciding the split.

Every group of layouts has a lower bound of its step time. The queue pops the least bound and looks closer (`refine`):
at a ZeRO stage, a recomputation, a number of virtual stages, each with a sharper bound, until nothing is left to
sharpen and the split is solved. Once the least bound left is no better than the worst plan kept, everything left is
proved to be no better, and the search ends.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush

from planner.cluster import Cluster
from planner.collector import collector_paused
from planner.implementation import Implementation
from planner.layout import Layout, Recompute
from planner.memory.interface import Accounting
from planner.model import Model
from planner.solver.all_gpus import too_much_for_all
from planner.solver.candidates import FREE, Pins, Space
from planner.solver.node import Level, Node, simplicity
from planner.solver.problem import Split, SplitProblem
from planner.solver.refine import Refiner
from planner.solver.result import Explanation, Plan, SearchResult, Status
from planner.solver.split import EFFORTS, solve_split, tidy
from planner.stages import split_from_counts
from planner.timing.interface import StepTiming
from planner.workload import Workload

Progress = Callable[[int, int, str], object]
RUNNER_UP_EFFORT = 1200
"""Work allowed, once the best plan is proved, to find and prove the best of other degrees: chunks of stages whose
memory is looked at. Counted, not timed, so that two runs stop at the same place; the statistic `runners_up_proved`
says whether it was enough."""
RUNNER_UP_SHARE = 4
"""Or a fourth of the work that the best plan took, where that is more: where memory is so tight that most of what could
be fast does not fit, the runners-up are as rare as the best plan."""
EFFORT_PER_SECOND = 400
"""What a second of CP-SAT's, as it counts its steps, adds to that."""

HINT_EFFORT = 12000
"""The same for finding a fast layout of a remedy."""

DIVE_SHARE = 0.35
DIVE_GROUPS = 1000
"""What part of the time limit is kept to look for any plan where none was found before, and over how many groups."""


@dataclass(slots=True)
class Found:
    """The best split known of one choice of degrees."""

    step_ns: int
    layout: Layout
    problem: SplitProblem
    split: Split

    @property
    def order(self) -> tuple:
        return (self.step_ns, simplicity(self.layout))


DEGREES = ("tp", "cp", "pp", "ep", "etp", "dp", "micro_batch")
"""What makes two plans different answers; virtual stages, ZeRO stage and recomputation are variants of one."""


def degrees(layout: Layout) -> tuple[int, ...]:
    """What identifies an answer."""
    return tuple(getattr(layout, name) for name in DEGREES)


class Search:
    """One search; `run` gives its result."""

    runner_up_effort = RUNNER_UP_EFFORT
    first_is_enough = False
    """Whether to end with the first plan that is found: the search goes by bounds, so it is a fast one."""
    effort_limit = sys.maxsize
    """Of a search that ends with the first: it ends without one after so much work."""

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
        self.started = time.monotonic()
        self.deadline = None if time_limit_seconds is None else self.started + time_limit_seconds
        self.refiner = Refiner(self.space, accounting, timing)
        self.found: dict[tuple[int, ...], Found] = {}
        self.unproved_bound: int | None = None
        self.solved = 0
        self._looked_at = 0
        """The bound of the node that is being looked at."""
        self.proved_after: int | None = None
        """Effort spent when the best plan was proved."""
        self.runners_up_proved = True

    def run(self) -> SearchResult:
        """Search until the proof, or until the time is up."""
        with collector_paused():
            return self._run()

    def _run(self) -> SearchResult:
        dive_at = None
        if self.deadline is not None:
            dive_at = self.deadline - DIVE_SHARE * (self.deadline - self.started)
        queue = self.refiner.roots(dive_at)
        groups = len(queue)
        if self.refiner.complete and too_much_for_all(self.space, self.accounting):
            queue = []
        heapify(queue)
        remaining: int | None = 0
        try:
            if self.refiner.complete:
                remaining = self._drain(queue, dive_at)
            if remaining is not None and not self.found:
                self._dive(queue)
            if remaining is not None and self.refiner.complete:
                remaining = self._drain(queue, self.deadline)
        except KeyboardInterrupt:
            if not self.found:
                raise
            remaining = self._looked_at
        statistics = self.refiner.statistics | {
            "candidates": self.refiner.statistics["groups"],
            "left_by_bound": len(queue),
            "solved": self.solved,
            "runners_up_proved": int(self.runners_up_proved and remaining is None),
            "solve_seconds": round(time.monotonic() - self.started, 3),
        }
        plans = self._plans()
        bounds = [b for b in (remaining, self.unproved_bound) if b is not None]
        if not plans:
            status = Status.UNKNOWN if bounds else Status.INFEASIBLE
            lower = min(bounds) / 1e9 if bounds and self.refiner.complete else None
            return SearchResult(status, (), "step_seconds", None, lower, statistics=statistics)
        value = plans[0].step.step_ns
        if not self.refiner.complete:  # no bound but the hardware's
            bounds = [int(1e9 * plans[0].step.lower_bound_seconds)]
        lower_ns = min([value, *bounds])
        assert groups == self.refiner.statistics["groups"]
        return SearchResult(
            Status.OPTIMAL if lower_ns == value else Status.FEASIBLE,
            tuple(plans),
            "step_seconds",
            plans[0].step.seconds,
            lower_ns / 1e9,
            statistics=statistics,
        )

    def _drain(self, queue: list[Node], until: float | None) -> int | None:
        """Work until the least bound left is no better than what is kept; that bound if time ran out, else None. Once a
        plan is found the time is the whole search's."""
        total = len(queue)
        while queue:
            node = queue[0]
            if self.first_is_enough and (self.found or self.refiner.statistics["effort"] > self.effort_limit):
                return node.bound_ns
            if self._settled(node.bound_ns) or self._worked_enough(node.bound_ns):
                return None
            if until is not None and time.monotonic() > (self.deadline if self.found and self.deadline else until):
                return node.bound_ns
            self._looked_at = node.bound_ns
            heappop(queue)
            if self._hopeless(node):
                continue
            if self.progress is not None:
                self.progress(max(0, total - len(queue)), total, f"{self.solved} solved")
            if node.problem is not None:
                harder = self._solve(node)
                if harder is not None:
                    heappush(queue, harder)
                continue
            for child in self.refiner.refine(node, self._cutoff(node.layout)):
                heappush(queue, child)
        return None

    def _dive(self, queue: list[Node]) -> None:
        """With the time up and nothing found: the lean variants of groups sampled over the whole queue, best bound
        first, so that the answer is a plan with its gap where one is to be had."""
        groups = sorted(node for node in queue if node.level <= Level.GROUP)
        assert self.deadline is not None
        for node in groups[:: max(1, len(groups) // DIVE_GROUPS)]:
            if time.monotonic() > self.deadline or (self.first_is_enough and self.found):
                return
            lean = self.refiner.lean(node)
            if lean is not None and lean.problem is not None:
                self._solve(lean, lean=True)

    def _settled(self, bound_ns: int) -> bool:
        """Whether nothing with this bound could be among the plans that are reported."""
        worst = self._worst_kept()
        return worst is not None and bound_ns > worst

    def _worked_enough(self, bound_ns: int) -> bool:
        """Whether the best plan is proved and the work allowed for the runners-up is done."""
        effort = int(self.refiner.statistics["effort"])
        if self.proved_after is None:
            if not self.found or bound_ns <= min(f.step_ns for f in self.found.values()):
                return False
            self.proved_after = effort
        if effort - self.proved_after <= max(self.runner_up_effort, self.proved_after // RUNNER_UP_SHARE):
            return False
        self.runners_up_proved = False
        return True

    def _hopeless(self, node: Node) -> bool:
        """Whether a plan of the same degrees is known that no variant below this node can beat."""
        known = self.found.get(degrees(node.layout))
        return known is not None and (node.bound_ns, node.key) > known.order

    def _solve(self, node: Node, lean: bool = False) -> Node | None:
        """Solve a node's split; a `lean` one only looks for a plan, its group is still in the queue. What is not proved
        with the effort of this turn comes back, with what was proved: meanwhile others may find what settles it."""
        assert node.problem is not None
        self.solved += 1
        seconds = None if self.deadline is None else self.deadline - time.monotonic()
        solved = solve_split(node.problem, self._cutoff(node.layout), seconds, node.bound_ns, EFFORTS[node.tried])
        self.refiner.statistics["effort"] += round(EFFORT_PER_SECOND * solved.work_seconds)
        if solved.split is not None and solved.step_ns is not None:
            new = Found(solved.step_ns, node.layout, node.problem, solved.split)
            known = self.found.get(degrees(node.layout))
            if known is None or new.order < known.order:
                self.found[degrees(node.layout)] = new
        if solved.status not in (Status.FEASIBLE, Status.UNKNOWN) or lean:
            return None
        bound = max(solved.lower_bound_ns, node.bound_ns)
        if node.tried + 1 < len(EFFORTS):
            return replace(node, bound_ns=bound, tried=node.tried + 1)
        self.unproved_bound = bound if self.unproved_bound is None else min(self.unproved_bound, bound)
        return None

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

    def _plans(self) -> list[Plan]:
        best = sorted(self.found.values(), key=lambda f: f.order)[: self.top]
        return [self._plan(found) for found in best]

    def _plan(self, found: Found) -> Plan:
        """The plan as accounting and timing report it; they must repeat what the solver promised."""
        split = found.split
        late = self.deadline is not None and time.monotonic() > self.deadline
        if self.pins.stage_layers is None and not late:
            split = tidy(found.problem, split)
        layout = with_split(self.model, found.layout, split)
        plan = Plan(layout, self.accounting.report(layout), self.timing.step(layout))
        promised_ns = found.problem.step_ns(split)
        if plan.step.step_ns != promised_ns:
            raise AssertionError(f"solver {promised_ns} ns, report {plan.step.step_ns} ns for {layout}")
        if not plan.memory.gpus_fit:
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

    started = time.monotonic()

    def prepared(on: Cluster, using: Pins, count: int) -> Search:
        seconds = None
        if time_limit_seconds is not None:  # for all searches together
            seconds = max(0.0, time_limit_seconds - (time.monotonic() - started))
        reserve = None if reserve_bytes == cluster.card.reserve_bytes and accounting_name == "exact" else reserve_bytes
        accounting = make_accounting(accounting_name, model, workload, implementation, on, reserve)
        timing = Timing(model, workload, implementation, on)
        return Search(model, workload, implementation, on, accounting, timing, using, count, seconds, progress)

    asked = prepared(cluster, pins, top)
    result = asked.run()
    if result.status is not Status.INFEASIBLE:
        return result
    from planner.solver.explain import TimeUp, facts, first_that_fits
    from planner.solver.hints import hints

    until = None if time_limit_seconds is None else started + time_limit_seconds

    def solve(on: Cluster, using: Pins) -> SearchResult:
        """Some fast layout, or where those are long in coming the fastest that is cut like the leanest one."""
        other = prepared(on, using, 1)
        try:  # much quicker than a search
            leanest = first_that_fits(other.space, other.accounting, other.timing, until)
        except TimeUp:
            return SearchResult(Status.UNKNOWN, (), "step_seconds", None, None)
        if leanest is None:
            return SearchResult(Status.INFEASIBLE, (), "step_seconds", None, None)
        other.first_is_enough, other.effort_limit = True, HINT_EFFORT
        found = other.run()
        if found.plans:
            return found
        return prepared(on, replace(using, **{name: (getattr(leanest, name),) for name in DEGREES}), 1).run()

    now = time.monotonic()
    half = None if until is None else now + max(0.0, until - now) / 2  # the other half is for the remedies
    explanation = Explanation(facts(asked.space, asked.accounting, asked.timing, half), hints(asked.space, solve))
    return replace(result, explanation=explanation)
