"""The moments of a step at which a stage's memory can peak, as terms.

1F1B alternates forwards and backwards, so the most is alive when a backward starts with every microbatch in flight:
in the loss and the head on the last stage, in the backward of a layer (its gradients over everything kept, or a
recomputed layer rebuilt), in the embedding's gradient at the end of a backward.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.memory.form import Moment, Term
from planner.memory.in_flight import InFlight
from planner.memory.pieces import EdgeCosts, LayerCost


@dataclass(frozen=True, slots=True)
class StageParts:
    """What a stage holds besides decoder layers, and when."""

    in_flight: tuple[InFlight, ...]
    embedding_chunk: int | None
    loss_chunk: int | None
    mtp_layers: int = 0
    deferred: int = 0
    """Microbatches whose head weight gradient waits."""
    tied_head_grad: bool = False
    """Embedding and head are one tensor on this stage: the head's gradient waits for the embedding's."""


def moments(
    kinds: tuple[LayerCost, ...],
    edges: EdgeCosts,
    parts: StageParts,
    always: tuple[Term, ...],
    transients: tuple[tuple[Term, ...], ...],
    stream: int,
    dense_gradients: bool,
) -> tuple[Moment, ...]:
    """Every moment of a stage. `always`: terms alive throughout (states, buffers). `transients[k]`: what a layer of kind
    k needs besides its activations (gathered weights). `dense_gradients`: weight gradients are tensors of their own."""
    out: list[Moment] = []
    for state in parts.in_flight:
        kept = tuple(_kept(kinds, state.microbatches))
        edge = tuple(_edges_kept(edges, parts, state))
        on_loss = parts.loss_chunk == state.chunk
        if on_loss:
            out.append(Moment("loss", (*always, *kept, *edge, *_loss(edges))))
            out.append(Moment("head backward", (*always, *kept, *edge, *_head(edges, parts, dense_gradients))))
        freed = tuple(_loss_freed(edges, parts, dense_gradients)) if on_loss else ()
        for k, cost in enumerate(kinds):
            here = Term("activations", "layer gradients", cost.backward_bytes, "if_layer", k)
            out.append(Moment("backward", (*always, *kept, *edge, *freed, here, *transients[k])))
            rebuilt = Term(
                "activations", "recomputed layer and its gradients", cost.recompute_bytes, "if_recomputed", k
            )
            # a recomputed layer stands before the kept ones of its chunk: their activations are gone by then
            gone = tuple(_layers_gone(kinds, state)) if len(state.microbatches) == 1 else ()
            out.append(Moment("recompute", (*always, *kept, *edge, *freed, *gone, rebuilt, *transients[k])))
        if parts.embedding_chunk == state.chunk:
            gone = (*_layers_gone(kinds, state), *_checkpoints_gone(kinds, state))
            grads = tuple(_embedding(edges, parts, stream, dense_gradients))
            out.append(Moment("embedding backward", (*always, *kept, *edge, *freed, *gone, *grads)))
    return tuple(_distinct(out))


def _kept(kinds: tuple[LayerCost, ...], microbatches: tuple[int, ...]) -> Iterator[Term]:
    for chunk, alive in enumerate(microbatches):
        for k, cost in enumerate(kinds):
            yield Term("activations", "layers", alive * cost.saved_bytes, "layer", k, chunk)
            less = cost.checkpoint_bytes - cost.saved_bytes
            yield Term("activations", "recomputed layers", alive * less, "recomputed", k, chunk)


def _layers_gone(kinds: tuple[LayerCost, ...], state: InFlight) -> Iterator[Term]:
    """The kept layers of the chunk in backward, of one microbatch."""
    for k, cost in enumerate(kinds):
        yield Term("activations", "layers done", -cost.saved_bytes, "layer", k, state.chunk)
        yield Term("activations", "layers done", cost.saved_bytes, "recomputed", k, state.chunk)


def _checkpoints_gone(kinds: tuple[LayerCost, ...], state: InFlight) -> Iterator[Term]:
    for k, cost in enumerate(kinds):
        yield Term("activations", "layers done", -cost.checkpoint_bytes, "recomputed", k, state.chunk)


def _edges_kept(edges: EdgeCosts, parts: StageParts, state: InFlight) -> Iterator[Term]:
    if parts.embedding_chunk is not None:
        alive = state.microbatches[parts.embedding_chunk]
        yield Term("activations", "embedding", alive * sum(edges.embedding_saved.values()))
    if parts.loss_chunk is not None:
        alive = state.microbatches[parts.loss_chunk]
        before = sum(edges.final_norm_saved.values()) + sum(edges.head_saved.values())
        yield Term("activations", "final norm and head input", alive * before)
        yield Term("logits", "loss", alive * sum(edges.loss_saved.values()))
        yield Term("logits", "deferred head gradients", parts.deferred * edges.deferred, certainty="measured")
        if parts.mtp_layers:
            yield Term(
                "activations",
                "multi-token prediction",
                alive * parts.mtp_layers * edges.mtp_saved,
                "fixed",
                0,
                0,
                "estimated",
            )


def _loss(edges: EdgeCosts) -> Iterator[Term]:
    yield Term("logits", "half-precision logits", edges.half_logits)
    yield Term("logits", "second fp32 logits", edges.second_logits, certainty="measured")
    yield Term("logits", "loss temporaries", edges.loss_temporary)


def _head(edges: EdgeCosts, parts: StageParts, dense_gradients: bool) -> Iterator[Term]:
    yield Term("logits", "loss done", -sum(edges.loss_saved.values()))
    yield Term("logits", "gradient of the logits", edges.half_logits or sum(edges.loss_saved.values()))
    yield Term("activations", "gradient of the head's input", edges.head_input_grad)
    if dense_gradients:
        yield Term("buffers", "gradient of the head's weight", edges.vocab_grad)


def _loss_freed(edges: EdgeCosts, parts: StageParts, dense_gradients: bool) -> Iterator[Term]:
    before = sum(edges.final_norm_saved.values()) + sum(edges.head_saved.values())
    yield Term("logits", "loss done", -sum(edges.loss_saved.values()))
    yield Term("activations", "head done", -before)
    if parts.tied_head_grad and dense_gradients:
        yield Term("buffers", "gradient of the tied head", edges.vocab_grad)


def _embedding(edges: EdgeCosts, parts: StageParts, stream: int, dense_gradients: bool) -> Iterator[Term]:
    """The embedding's gradient is always a tensor of its own; a tied head's joins it in a third one (autograd adds the
    gradients of both uses of a leaf before it accumulates)."""
    if parts.tied_head_grad and dense_gradients:
        # the head's gradient is counted already since its backward
        yield Term("buffers", "gradient of the embedding and its sum with the head's", 2 * edges.vocab_grad)
    else:
        yield Term("activations", "gradient of the stream", stream)
        yield Term("buffers", "gradient of the embedding", edges.vocab_grad)


def _distinct(found: list[Moment]) -> Iterator[Moment]:
    seen: set[tuple[Term, ...]] = set()
    for moment in found:
        if moment.terms not in seen:
            seen.add(moment.terms)
            yield moment
