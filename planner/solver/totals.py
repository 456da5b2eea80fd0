"""Virtual chunks in two steps: first how many layers each stage holds, then how they spread over its chunks.

With one kind of layer the order of slices does not matter, so stages are tied to one another by their totals alone.
What a stage must recompute at each total is bounded from below by its memory (`Counted.least_recomputed`). CP-SAT
solves the totals under that bound. Where a stage finds no spread over its chunks that keeps it, the bound is replaced
by the true number, proved by CP-SAT for that stage alone, and the totals are solved again. The totals are always a
relaxation, so when every stage has its spread, the split is optimal.
"""

from __future__ import annotations

from dataclasses import replace

from planner.solver.bags import Counted
from planner.solver.fill import first_split
from planner.solver.problem import Split, SplitProblem
from planner.solver.result import Status
from planner.solver.split import EFFORTS, Solved, solve_split, tidy
from planner.solver.spread import Spread, best_spread, simple_spread


class Totals:
    """A problem whose stages are tied by totals only: several chunks, one kind of layer, no given split."""

    def __init__(self, problem: SplitProblem):
        self.problem = problem
        counted = Counted(problem)
        self._tables = [list(counted.least_recomputed(stage)) for stage in range(problem.pp)]
        self._best: dict[tuple[int, int], Spread | None] = {}

    @staticmethod
    def apply(problem: SplitProblem) -> bool:
        return problem.vpp > 1 and problem.kinds == 1 and problem.fixed_slices is None

    def solve(self, cutoff_ns: int | None, seconds: float | None, at_least_ns: int, effort: float) -> Solved:
        """The fastest split; INFEASIBLE also where none is as fast as the cutoff."""
        while all(any(redo is not None for redo in table) for table in self._tables):
            before = self._reduced()
            solved = solve_split(before, cutoff_ns, None, seconds, at_least_ns, effort)
            if solved.split is None:
                return solved
            split = self._spread_out(solved.split)
            if split is not None:
                if solved.step_ns is not None and solved.step_ns < at_least_ns:
                    raise AssertionError(f"a split of {solved.step_ns} ns was proved to take {at_least_ns} ns")
                return replace(solved, split=split)
            if solved.status is not Status.OPTIMAL:
                return Solved(Status.UNKNOWN, None, None, solved.lower_bound_ns)
            if self._reduced().tables == before.tables:
                return solve_split(self.problem, cutoff_ns, None, seconds, at_least_ns, effort)
        return Solved(Status.INFEASIBLE, None, None, 0 if cutoff_ns is None else cutoff_ns + 1)

    def tidy(self, split: Split) -> Split:
        """Of the equally fast splits the one with least recomputation and most equal stages."""
        pp = self.problem.pp
        stages = Split(tuple(sum(split.slices[stage::pp]) for stage in range(pp)), split.recomputed)
        while True:
            before = self._reduced()
            better = self._spread_out(tidy(before, stages))
            if better is not None:
                return better
            if self._reduced().tables == before.tables:
                return split

    def _reduced(self) -> SplitProblem:
        tables = tuple(map(tuple, self._tables))
        return replace(self.problem, vpp=1, moments=((),) * self.problem.pp, tables=tables)

    def _spread_out(self, stages: Split) -> Split | None:
        """The split with these totals; None when some stage has no such spread, whose table then says so."""
        problem = self.problem
        slices = [0] * (problem.pp * problem.vpp)
        refused = False
        for stage, (layers, redo) in enumerate(zip(stages.slices, stages.recomputed, strict=True)):
            spread = simple_spread(problem, stage, layers, redo)
            if spread is None:
                key = (stage, layers)
                if key not in self._best:
                    self._best[key] = best_spread(problem, stage, layers)
                best = self._best[key]
                self._tables[stage][layers] = None if best is None else best.redo
                if best is None or best.redo != redo:
                    refused = True
                    continue
                spread = best
            slices[stage :: problem.pp] = spread.chunks
        return None if refused else Split(tuple(slices), stages.recomputed)


def solve(
    problem: SplitProblem,
    cutoff_ns: int | None,
    seconds: float | None,
    at_least_ns: int = 0,
    effort: float = EFFORTS[-1],
) -> Solved:
    """The fastest split of a problem; INFEASIBLE also where none is as fast as the cutoff. `at_least_ns` is a bound
    already proved."""
    if Totals.apply(problem):
        return Totals(problem).solve(cutoff_ns, seconds, at_least_ns, effort)
    return solve_split(problem, cutoff_ns, first_split(problem), seconds, at_least_ns, effort)


def tidied(problem: SplitProblem, split: Split) -> Split:
    """Of the equally fast splits the one with least recomputation and most equal stages."""
    if Totals.apply(problem):
        return Totals(problem).tidy(split)
    return tidy(problem, split)
