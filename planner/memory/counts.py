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
    for chunk in layout.stages[stage]:
        held = model.pattern[chunk.start : chunk.stop]
        layers.append(chunk_counts(held, kinds))
        if r.granularity != "full":
            first = 0
        elif r.stage_layers:
            first = min(left, len(held))
            left -= first
        elif r.method == "block":
            first = min(r.num_layers or 0, len(held))
        else:
            first = len(held)
        recomputed.append(chunk_counts(held[:first], kinds))
    return Counts(tuple(layers), tuple(recomputed))
