"""How many layers of each kind a stage holds, and how many of them are fully recomputed."""

from __future__ import annotations

from planner.layout import Layout
from planner.memory.form import Counts, chunk_counts
from planner.model import Model


def stage_counts(model: Model, layout: Layout, stage: int) -> Counts:
    """Counts of one stage of a layout whose split is set. Recomputed are the first layers of each chunk (block), all
    (uniform), or as many of the stage's first layers as `recompute.stage_layers` says."""
    kinds = len(model.layer_kinds)
    r = layout.recompute
    left = r.stage_layers[stage] if r.stage_layers else 0
    layers, recomputed = [], []
    none = (0,) * kinds
    for chunk in layout.stages[stage]:
        held = _held(model, chunk.start, chunk.stop, kinds)
        layers.append(held)
        if r.granularity != "full":
            recomputed.append(none)
            continue
        if r.stage_layers:
            first = min(left, chunk.num_layers)
            left -= first
        elif r.method == "block":
            first = min(r.num_layers or 0, chunk.num_layers)
        else:
            first = chunk.num_layers
        recomputed.append(_held(model, chunk.start, chunk.start + first, kinds))
    return Counts(tuple(layers), tuple(recomputed))


def _held(model: Model, start: int, stop: int, kinds: int) -> tuple[int, ...]:
    if kinds == 1:
        return (stop - start,)
    return chunk_counts(model.pattern[start:stop], kinds)
