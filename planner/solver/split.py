"""One solve of the inner problem: the fastest stage split and recomputation of one choice of degrees. Shortest paths
(`planner.solver.chained`) come first where a stage is one chunk; CP-SAT proves what they leave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.solver.chained import chained
from planner.solver.fill import first_split
from planner.solver.problem import Split, SplitProblem
from planner.solver.result import Status

if TYPE_CHECKING:
    from ortools.sat.python import cp_model

SEED = 5
TIDY_SECONDS = 0.5
"""Work allowed to choosing among equally fast splits, counted as in `EFFORTS`."""

EFFORTS = (2.0, 20.0)
"""Work allowed to one solve, in seconds as CP-SAT counts its steps and not by the clock: two runs stop at the same
place. One after another, as long as a problem is neither solved nor proved to be worse than what was found meanwhile.
"""


@dataclass(frozen=True, slots=True)
class Solved:
    """What the paths or CP-SAT say of one problem. `lower_bound_ns` holds for every split that keeps the cutoff."""

    status: Status
    split: Split | None
    step_ns: int | None
    lower_bound_ns: int
    work_seconds: float = 0.0
    """As CP-SAT counts its steps, and the paths theirs."""


def solve_split(
    problem: SplitProblem,
    cutoff_ns: int | None = None,
    seconds: float | None = None,
    at_least_ns: int = 0,
    effort: float = EFFORTS[-1],
) -> Solved:
    """The fastest split of the problem. INFEASIBLE also means: none is as fast as `cutoff_ns`.

    `at_least_ns` is a bound already proved: CP-SAT raises its own by single nanoseconds where big numbers are rounded.
    `seconds` limits the clock; without it only the deterministic limit stands and two runs agree to the byte.
    """
    from ortools.sat.python import cp_model

    paths = chained(problem, cutoff_ns)
    start = first_split(problem) if paths is None else paths.split
    if paths is not None:
        if paths.bound_ns is None or (cutoff_ns is not None and paths.bound_ns > cutoff_ns):
            none_below = 0 if cutoff_ns is None else cutoff_ns + 1
            return Solved(Status.INFEASIBLE, None, None, none_below, paths.work_seconds)
        if paths.bound_ns == paths.step_ns:
            return Solved(Status.OPTIMAL, paths.split, paths.step_ns, paths.bound_ns, paths.work_seconds)
        at_least_ns = max(at_least_ns, paths.bound_ns)
    longest_ns = problem.longest_ns
    model, variables, step = _build(problem, longest_ns if cutoff_ns is None else min(longest_ns, cutoff_ns))
    model.add(step >= at_least_ns)
    model.minimize(step)
    if start is not None:
        variables.hint(start)
    solver = new_solver(effort, seconds)
    status = solver.solve(model)
    work = solver.response_proto.deterministic_time + (paths.work_seconds if paths else 0.0)
    if status == cp_model.INFEASIBLE:
        return Solved(Status.INFEASIBLE, None, None, 0 if cutoff_ns is None else cutoff_ns + 1, work)
    bound = max(0, round(solver.best_objective_bound))
    if status == cp_model.OPTIMAL:
        split = variables.value(solver)
        step_ns = problem.step_ns(split)
        if step_ns != round(solver.objective_value):
            raise AssertionError(f"the constraint model says {solver.objective_value} ns, its own split {step_ns} ns")
        return Solved(Status.OPTIMAL, split, step_ns, step_ns, work)
    if status == cp_model.FEASIBLE:
        split = variables.value(solver)
        return Solved(Status.FEASIBLE, split, problem.step_ns(split), bound, work)
    if status == cp_model.MODEL_INVALID:
        raise AssertionError(f"the constraint model is invalid: {model.validate()}")
    return Solved(Status.UNKNOWN, None, None, bound, work)


def tidy(problem: SplitProblem, split: Split) -> Split:
    """Of the splits that are as fast as this one: least recomputation, then slices of most equal length."""
    from ortools.sat.python import cp_model

    step_ns = problem.step_ns(split)
    model, variables, _ = _build(problem, step_ns)
    longest = model.new_int_var(0, problem.layers, "longest_slice")
    shortest = model.new_int_var(0, problem.layers, "shortest_slice")
    inner = variables.slices[1:-1] or variables.slices
    model.add_max_equality(longest, variables.slices)
    model.add_min_equality(shortest, inner)
    unevenness = (
        longest - shortest + _off(variables.slices[0], shortest, model) + _off(variables.slices[-1], shortest, model)
    )
    if problem.step.mixed:
        unevenness = _unevenness_by_card(problem, variables.slices, model)
    redone = sum(variables.redo)
    model.minimize(4 * problem.layers * redone + unevenness)
    variables.hint(split)
    solver = new_solver(TIDY_SECONDS, None)
    if solver.solve(model) not in (cp_model.OPTIMAL, cp_model.FEASIBLE):
        return split
    return variables.value(solver)


def _unevenness_by_card(
    problem: SplitProblem, slices: list[cp_model.IntVar], model: cp_model.CpModel
) -> cp_model.LinearExprT:
    """How far apart the slices of stages are whose layers take equally long: others are meant to differ."""
    alike: dict[tuple[int, ...], list[cp_model.IntVar]] = {}
    for index, held in enumerate(slices):
        alike.setdefault(problem.step.stages[index % problem.pp].layer_ns, []).append(held)
    spreads = []
    for group in alike.values():
        longest, shortest = model.new_int_var(0, problem.layers, ""), model.new_int_var(0, problem.layers, "")
        model.add_max_equality(longest, group)
        model.add_min_equality(shortest, group)
        spreads.append(longest - shortest)
    return sum(spreads)


def _off(edge: cp_model.IntVar, shortest: cp_model.IntVar, model: cp_model.CpModel) -> cp_model.IntVar:
    """How much shorter an edge slice is than the shortest between them."""
    off = model.new_int_var(0, 10**6, "")
    model.add(off >= shortest - edge)
    return off


def _build(problem: SplitProblem, limit_ns: int):
    from ortools.sat.python import cp_model

    from planner.solver.constraints import CONSTRAINTS
    from planner.solver.objective import step_time
    from planner.solver.variables import SplitVariables

    model = cp_model.CpModel()
    variables = SplitVariables(model, problem)
    for constraint in CONSTRAINTS:
        constraint.build(model, problem, variables)
    return model, variables, step_time(model, problem, variables, limit_ns)


def new_solver(deterministic_seconds: float, seconds: float | None = None) -> cp_model.CpSolver:
    from ortools.sat.python import cp_model

    solver = cp_model.CpSolver()
    solver.parameters.num_workers = 1
    solver.parameters.catch_sigint_signal = False  # Ctrl-C is Python's, which ends the whole search
    solver.parameters.random_seed = SEED
    solver.parameters.max_deterministic_time = deterministic_seconds
    if seconds is not None:
        solver.parameters.max_time_in_seconds = max(0.01, seconds)
    return solver
