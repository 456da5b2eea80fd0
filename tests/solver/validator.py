"""A judge of plans that shares no code with the constraint model: it recounts everything from the layout."""

from __future__ import annotations

from planner.layout import Layout
from planner.model import Model
from planner.rules import broken_rules
from planner.solver.result import Plan


def faults(plan: Plan, model: Model, workload, implementation, cluster, accounting, timing) -> list[str]:
    """What is wrong with a plan; empty when nothing is."""
    layout, wrong = plan.layout, []
    wrong += [b.id for b in broken_rules(model, workload, implementation, layout, cluster.gpus, cluster)]
    wrong += _split_faults(layout, model)
    wrong += _memory_faults(plan, model, accounting)
    if layout.tp * layout.cp * layout.pp * layout.dp != cluster.gpus:
        wrong.append("GPUs are left over")
    if layout.num_microbatches(workload.global_batch) * layout.dp * layout.micro_batch != workload.global_batch:
        wrong.append("the batch is not trained whole")
    if plan.step.step_ns != _step_ns(layout, model, timing):
        wrong.append("the step time is not that of the coefficients")
    return wrong


def _split_faults(layout: Layout, model: Model) -> list[str]:
    held = []
    for chunk in range(layout.vpp):
        for stage in range(layout.pp):
            piece = layout.stages[stage][chunk]
            held += list(range(piece.start, piece.stop))
    return [] if held == list(range(len(model.pattern))) else ["the stages do not hold the model in order"]


def _layers(layout: Layout, model: Model, stage: int) -> list[list[tuple[int, bool]]]:
    """(kind, recomputed) of each layer of each chunk."""
    recompute = layout.recompute
    budget = recompute.stage_layers[stage] if recompute.granularity == "full" else 0
    chunks = []
    for piece in layout.stages[stage]:
        row = []
        for index in range(piece.start, piece.stop):
            row.append((model.pattern[index], budget > 0))
            budget -= 1
        chunks.append(row)
    return chunks


def _memory_faults(plan: Plan, model: Model, accounting) -> list[str]:
    wrong = []
    for stage in range(plan.layout.pp):
        chunks = _layers(plan.layout, model, stage)
        everything = [layer for chunk in chunks for layer in chunk]
        form = accounting.form(plan.layout, stage)
        peaks = []
        for moment in form.moments:
            alive = 0
            for term in moment.terms:
                here = chunks[term.chunk] if term.chunk < len(chunks) else []
                times = {
                    "fixed": 1,
                    "layer": sum(kind == term.kind for kind, _ in here),
                    "recomputed": sum(kind == term.kind and again for kind, again in here),
                    "if_recomputed": int(any(kind == term.kind and again for kind, again in everything)),
                    "if_layer": int(any(kind == term.kind for kind, _ in everything)),
                }[term.times]
                alive += term.bytes * times
            peaks.append(alive)
        reported = plan.memory.stages[stage]
        if not max(peaks) <= reported.total_bytes <= max(peaks) + form.padding_bytes:
            wrong.append(f"stage {stage} reports {reported.total_bytes} bytes, its terms add up to {max(peaks)}")
        if reported.total_bytes > accounting.stage_capacity_bytes(plan.layout, stage):
            wrong.append(f"stage {stage} overflows")
    return wrong


def _step_ns(layout: Layout, model: Model, timing) -> int:
    form = timing.form(layout)
    times, tails, passes = [], [], []
    for index, stage in enumerate(form.stages):
        chunks = _layers(layout, model, index)
        flat = [layer for chunk in chunks for layer in chunk]
        kinds = range(len(stage.layer_ns))
        passes.append(
            stage.chunk_times(
                [[sum(kind == k for kind, _ in chunk) for k in kinds] for chunk in chunks],
                [[sum(kind == k and again for kind, again in chunk) for k in kinds] for chunk in chunks],
            )
        )
        times.append(
            stage.fixed_ns
            + sum(stage.layer_ns[kind] for kind, _ in flat)
            + sum(stage.recompute_ns[kind] for kind, again in flat if again)
        )
        tails.append(sum(max(0, t.fixed_ns + sum(t.layer_ns[kind] for kind, _ in flat)) for t in stage.tails))
    rounds = form.num_microbatches * form.vpp - 1
    whole, rest = divmod(rounds * max(times) + sum(times), form.vpp)
    pipeline = max(whole + (rest > 0) - form.filled_ns, form.num_microbatches * max(times))
    if form.vpp > 1:  # unequal chunks only add to what the totals of the stages say
        pipeline = max(pipeline, form.pipeline_ns(times, passes))
    return pipeline + max(tails) + form.once_ns
