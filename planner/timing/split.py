"""What each stage of a split holds: decoder layers of each kind, and how many of them are fully recomputed."""

from __future__ import annotations

from planner.layout import Layout
from planner.memory.counts import stage_counts as chunk_counts
from planner.model import Model

Counts = list[tuple[int, ...]]


def stage_counts(model: Model, layout: Layout) -> tuple[Counts, Counts]:
    """(layers, recomputed), each [stage][kind], of a layout whose stages are given: the memory accounting's counts,
    summed over virtual chunks."""
    counts = [chunk_counts(model, layout, stage) for stage in range(len(layout.stages))]
    return [_sum(c.layers) for c in counts], [_sum(c.recomputed) for c in counts]


def _sum(chunks: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*chunks, strict=True)))


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
