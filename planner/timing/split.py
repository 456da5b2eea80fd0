"""What each stage of a split holds: decoder layers of each kind, and how many of them are fully recomputed."""

from __future__ import annotations

from typing import NamedTuple

from planner.layout import Layout
from planner.memory.counts import stage_counts as chunk_counts
from planner.memory.form import Counts
from planner.model import Model


class Held(NamedTuple):
    """What a stage holds. Stages alike share it."""

    counts: Counts
    layers: tuple[int, ...]
    """[kind], of all chunks together."""
    recomputed: tuple[int, ...]


def stage_counts(model: Model, layout: Layout) -> list[Held]:
    """What each stage of a layout holds whose stages are given: the memory accounting's counts."""
    alike = len(model.layer_kinds) == 1 and not layout.recompute.stage_layers
    if alike:
        spans = [chunk.stop - chunk.start for stage in layout.stages for chunk in stage]
        if spans.count(spans[0]) == len(spans) and len(set(map(len, layout.stages))) == 1:  # equal stages
            counts = chunk_counts(model, layout, 0)
            return [Held(counts, _sum(counts.layers), _sum(counts.recomputed))] * layout.pp
    known: dict[object, Held] = {}
    found = []
    for i, stage in enumerate(layout.stages):
        key: object = tuple([chunk.stop - chunk.start for chunk in stage]) if alike else i
        if key not in known:
            counts = chunk_counts(model, layout, i)
            held = Held(counts, _sum(counts.layers), _sum(counts.recomputed))
            known[key] = known.setdefault(counts, held)
        found.append(known[key])
    return found


def _sum(chunks: tuple[tuple[int, ...], ...]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*chunks, strict=True)))


def ends(model: Model, layout: Layout) -> tuple[int, int, int]:
    """Stages that hold the embedding, the multi-token-prediction modules and the loss; undecided: first, last, last."""
    last = layout.pp - 1
    usual = (0, last, last)
    stages = layout.stages
    if not stages or (not model.mtp_num_layers and stages[0][0].embedding and stages[-1][-1].loss):
        return usual
    embedding, mtp, loss = usual
    for i, stage in enumerate(stages):
        for chunk in stage:
            if chunk.embedding:
                embedding = i
            if chunk.mtp_layers:
                mtp = i
            if chunk.loss:
                loss = i
    return embedding, mtp, loss
