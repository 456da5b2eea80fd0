"""What the split minimises: the step time of `planner.timing.form`, to the nanosecond."""

from __future__ import annotations

from ortools.sat.python import cp_model

from planner.solver.bounds import slowest_bound
from planner.solver.problem import SplitProblem
from planner.solver.variables import Linear, SplitVariables
from planner.timing.interleaved import first_group, parts_of_ns, steady


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
    if problem.vpp > 1:
        pipeline: Linear = _interleaved(model, problem, variables, slowest, total, limit_ns)
    elif not step.filled_ns:
        pipeline = rounds * slowest + total
    else:
        pipeline = model.new_int_var(0, limit_ns, "pipeline_ns")
        model.add(pipeline + step.filled_ns >= rounds * slowest + total)
        model.add(pipeline >= step.num_microbatches * slowest)
    result = model.new_int_var(0, limit_ns, "step_ns")
    model.add(result >= pipeline + _longest_tail(model, problem, variables, limit_ns) + step.once_ns)
    return result


def _interleaved(
    model: cp_model.CpModel,
    problem: SplitProblem,
    variables: SplitVariables,
    slowest: cp_model.IntVar,
    total: Linear,
    limit_ns: int,
) -> Linear:
    """The pipeline's makespan where stages have chunks: `StepForm.pipeline_ns` with unknowns."""
    pp, vpp, parts = problem.pp, problem.vpp, parts_of_ns(problem.vpp)
    more = problem.step.num_microbatches - pp
    kinds, most = range(problem.kinds), 2 * parts * limit_ns
    stages = []
    for stage, form in enumerate(problem.step.stages):
        layers, recomputed = (
            [[of(stage, chunk, k) for k in kinds] for chunk in range(vpp)]
            for of in (variables.layers_of, variables.recomputed_of)
        )
        stages.append(form.chunk_times(layers, recomputed))

    def largest(*times: Linear) -> Linear:
        longest = model.new_int_var(-most, most, "longest_path")
        for time in times:
            model.add(longest >= time)
        return longest

    first = model.new_int_var(0, limit_ns, "first_group_ns")
    model.add(vpp * first >= (pp * vpp - 1) * slowest + total)
    model.add(parts * first >= first_group(stages, largest))
    if not more:
        return first
    rate = model.new_int_var(0, limit_ns // more, "rate_ns")
    model.add(rate >= slowest)
    model.add(2 * pp * parts * rate >= steady(stages, largest))
    return first + more * rate


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
