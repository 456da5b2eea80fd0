"""What the split minimises: the step time of `planner.timing.form`, to the nanosecond."""

from __future__ import annotations

from ortools.sat.python import cp_model

from planner.solver.bounds import slowest_bound
from planner.solver.problem import SplitProblem
from planner.solver.variables import Linear, SplitVariables


def step_time(
    model: cp_model.CpModel, problem: SplitProblem, variables: SplitVariables, limit_ns: int
) -> cp_model.IntVar:
    """A variable that is at least the step time and equal to it in every optimum; `limit_ns` bounds it from above."""
    step = problem.step
    kinds = range(problem.kinds)
    times = []
    for stage, form in enumerate(step.stages):
        time: Linear = form.fixed_ns + sum(form.layer_ns[k] * variables.stage_layers(stage, k) for k in kinds)
        if problem.may_recompute:
            time += sum(form.recompute_ns[k] * variables.stage_recomputed(stage, k) for k in kinds)
        times.append(time)
    rounds = step.num_microbatches * step.vpp - 1
    # The slowest stage alone takes (rounds + 1) / vpp of its time: the tight bound keeps products within 64 bits.
    longest = limit_ns * step.vpp // (rounds + 1) + 1
    least, _ = slowest_bound(step, problem.kind_counts)
    slowest = model.new_int_var(min(least, longest), longest, "slowest_stage_ns")
    for time in times:
        model.add(slowest >= time)
    total: Linear = sum(times)
    if step.vpp == 1 and not step.filled_ns:
        pipeline: Linear = rounds * slowest + total
    else:
        pipeline = model.new_int_var(0, limit_ns, "pipeline_ns")
        model.add(step.vpp * (pipeline + step.filled_ns) >= rounds * slowest + total)
        if step.filled_ns:
            model.add(pipeline >= step.num_microbatches * slowest)
    result = model.new_int_var(0, limit_ns, "step_ns")
    model.add(result >= pipeline + _longest_tail(model, problem, variables, limit_ns) + step.once_ns)
    return result


def _longest_tail(model: cp_model.CpModel, problem: SplitProblem, variables: SplitVariables, limit_ns: int) -> Linear:
    """The longest of the stages' tails; each tail is the sum of parts that are never negative."""
    if not any(stage.tails for stage in problem.step.stages):
        return 0
    longest = model.new_int_var(0, limit_ns, "longest_tail_ns")
    for index, stage in enumerate(problem.step.stages):
        parts: list[Linear] = []
        for tail in stage.tails:
            value: Linear = tail.fixed_ns + sum(
                t * variables.stage_layers(index, k) for k, t in enumerate(tail.layer_ns) if t
            )
            if tail.fixed_ns >= 0 and all(t >= 0 for t in tail.layer_ns):
                parts.append(value)
                continue
            part = model.new_int_var(0, limit_ns, f"{tail.name}_{index}_ns")
            model.add(part >= value)
            parts.append(part)
        model.add(longest >= sum(parts))
    return longest
