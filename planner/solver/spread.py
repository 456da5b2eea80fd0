"""One stage by itself: over which of its virtual chunks its layers spread, with the fewest recomputed."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.memory.form import Counts
from planner.solver.problem import SplitProblem


@dataclass(frozen=True, slots=True)
class Spread:
    """Layers of each chunk of a stage, and how many of the stage's first layers are recomputed."""

    chunks: tuple[int, ...]
    redo: int


def simple_spread(problem: SplitProblem, stage: int, layers: int, redo: int) -> Spread | None:
    """A spread that fits with so many recomputed layers, if an obvious one does."""
    for chunks in _obvious(problem, stage, layers):
        if _fits(problem, stage, chunks, redo):
            return Spread(tuple(chunks), redo)
    return None


def _obvious(problem: SplitProblem, stage: int, layers: int) -> Iterator[list[int]]:
    """Further layers go to the last chunks, to the first, or to those where they cost least at one of the moments."""
    minima = [problem.minimum(v * problem.pp + stage) for v in range(problem.vpp)]
    chunks = range(problem.vpp)
    orders = [list(reversed(chunks)), list(chunks)]
    for moment in problem.moments[stage]:
        costs = [row[0] for row in moment.layer]
        orders.append(sorted(chunks, key=lambda v, costs=costs: (costs[v], -v)))  # type: ignore[misc]
    for order in orders:
        for edges_first in (True, False):  # the ends of the model may be empty, but seldom want to be
            held, left = list(minima), layers - sum(minima)
            for v in chunks if edges_first else ():
                more = min(left, max(minima) - held[v])
                held[v] += more
                left -= more
            for v in order:
                more = min(left, problem.maximum - held[v])
                held[v] += more
                left -= more
            if left == 0:
                yield held


def _fits(problem: SplitProblem, stage: int, chunks: list[int], redo: int) -> bool:
    again = []
    for n in chunks:
        again.append(min(n, redo))
        redo -= again[-1]
    counts = Counts(tuple((n,) for n in chunks), tuple((n,) for n in again))
    limit = problem.limits[stage]
    return redo == 0 and all(moment.bytes(counts) <= limit for moment in problem.moments[stage])


def best_spread(problem: SplitProblem, stage: int, layers: int) -> Spread | None:
    """The spread with the fewest recomputed layers, proved by CP-SAT; None when none fits."""
    from ortools.sat.python import cp_model

    from planner.solver.split import new_solver

    model = cp_model.CpModel()
    chunks = range(problem.vpp)
    most = problem.maximum
    held = [model.new_int_var(problem.minimum(v * problem.pp + stage), most, f"layers_{v}") for v in chunks]
    again = [model.new_int_var(0, most if problem.may_recompute else 0, f"recomputed_{v}") for v in chunks]
    model.add(sum(held) == layers)
    for v in chunks:
        model.add(again[v] <= held[v])
        if v and problem.may_recompute:
            whole = model.new_bool_var(f"recomputed_whole_{v - 1}")
            model.add(again[v - 1] >= held[v - 1]).only_enforce_if(whole)
            model.add(again[v] <= most * whole)
    some = model.new_bool_var("recomputes")
    model.add(sum(again) <= layers * some)
    for moment in problem.moments[stage]:
        sizes = [row[0] for row in moment.layer] + [row[0] for row in moment.recomputed]
        once = moment.if_layer[0] * (layers > 0) + moment.fixed
        alive = cp_model.LinearExpr.weighted_sum([*held, *again, some], [*sizes, moment.if_recomputed[0]])
        model.add(alive + once <= problem.limits[stage])
    model.minimize(sum(again))
    solver = new_solver(float("inf"))  # one stage: a few integers
    status = solver.solve(model)
    if status == cp_model.INFEASIBLE:
        return None
    assert status == cp_model.OPTIMAL, solver.status_name(status)
    return Spread(tuple(solver.value(n) for n in held), sum(solver.value(n) for n in again))
