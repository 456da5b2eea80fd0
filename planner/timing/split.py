"""What each stage of a split holds: decoder layers of each kind, and how many of them are fully recomputed."""

from __future__ import annotations

from planner.layout import Layout
from planner.model import Model

Counts = list[tuple[int, ...]]


def stage_counts(model: Model, layout: Layout) -> tuple[Counts, Counts]:
    """(layers, recomputed), each [stage][kind], of a layout whose stages are given.

    Full recomputation repeats every layer (uniform) or the first `num_layers` of each virtual chunk (block;
    megatron/core/transformer/transformer_block.py: _checkpointed_forward), or `stage_layers[i]` of stage i, first
    layers first.
    """
    recompute = layout.recompute
    full = recompute.granularity == "full"
    kinds = len(model.layer_kinds)
    layers: Counts = []
    recomputed: Counts = []
    for i, stage in enumerate(layout.stages):
        held, again = [0] * kinds, [0] * kinds
        left = recompute.stage_layers[i] if recompute.stage_layers else None
        for chunk in stage:
            for position, kind in enumerate(model.pattern[chunk.start : chunk.stop]):
                held[kind] += 1
                if not full:
                    continue
                if left is not None:
                    repeat = left > 0
                    left -= 1
                else:
                    repeat = recompute.method == "uniform" or position < (recompute.num_layers or 0)
                again[kind] += repeat
        layers.append(tuple(held))
        recomputed.append(tuple(again))
    return layers, recomputed


def ends(layout: Layout) -> tuple[int, int, int]:
    """Stages that hold the embedding, the multi-token-prediction modules and the loss; undecided: first, last, last."""
    last = layout.pp - 1
    embedding, mtp, loss = 0, last, last
    for i, stage in enumerate(layout.stages):
        for chunk in stage:
            if chunk.embedding:
                embedding = i
            if chunk.mtp_layers:
                mtp = i
            if chunk.loss:
                loss = i
    return embedding, mtp, loss
