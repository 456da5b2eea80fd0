"""The moments of a step at which a stage's memory can peak, as terms.

1F1B alternates forwards and backwards, so the most is alive when a backward starts with every microbatch in flight:
in the loss and the head on the last stage, in the backward of a layer (its gradients over everything kept, or a
recomputed layer rebuilt), in the embedding's gradient at the end of a backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from planner.memory.additions import Additions
from planner.memory.form import Moment, Term
from planner.memory.in_flight import InFlight
from planner.memory.pieces import EdgeCosts, LayerCost


@dataclass(frozen=True, slots=True)
class StageParts:
    """What a stage holds besides decoder layers, and when."""

    in_flight: tuple[InFlight, ...]
    peak_in_flight: Fraction
    """In whole-stage units."""
    embedding_chunk: int | None
    loss_chunk: int | None
    mtp_layers: int = 0
    deferred: int = 0
    """Microbatches whose head weight gradient waits."""
    tied_head_grad: bool = False
    """Embedding and head are one tensor on this stage: the head's gradient waits for the embedding's."""

    @property
    def edges(self) -> tuple[bool, bool, int]:
        """Whether the stage holds the embedding and the loss, and how many multi-token-prediction modules."""
        return (self.embedding_chunk is not None, self.loss_chunk is not None, self.mtp_layers)


def moments(
    kinds: tuple[LayerCost, ...],
    edges: EdgeCosts,
    parts: StageParts,
    besides: Additions,
    stream: int,
    dense_gradients: bool,
) -> tuple[Moment, ...]:
    """What each moment of a stage adds to what is always alive. `transients[k]`: what a layer of kind k needs besides
    its activations (gathered weights). `dense_gradients`: weight gradients are tensors of their own."""
    out: list[Moment] = []
    for state in parts.in_flight:
        kept = (*_kept(kinds, state.microbatches), *_edges_kept(edges, parts, state))
        on_loss = parts.loss_chunk == state.chunk
        if on_loss:
            out.append(Moment("loss", (*kept, *_loss(edges), *besides.loss)))
            out.append(Moment("head backward", (*kept, *_head(edges, dense_gradients), *besides.loss)))
        freed = _loss_freed(edges, parts, dense_gradients) if on_loss else ()
        # a recomputed layer stands before the kept ones of its chunk: their activations are gone by then
        gone = _layers_gone(kinds, state) if len(state.microbatches) == 1 else ()
        for k, cost in enumerate(kinds):
            here = Term("activations", "layer gradients", cost.backward_bytes, "if_layer", k)
            out.append(Moment("backward", (*kept, *freed, here, *besides.layers[k])))
            rebuilt = Term(
                "activations", "recomputed layer and its gradients", cost.recompute_bytes, "if_recomputed", k
            )
            out.append(Moment("recompute", (*kept, *freed, *gone, rebuilt, *besides.layers[k])))
        if parts.embedding_chunk == state.chunk:
            done = (*_layers_gone(kinds, state), *_checkpoints_gone(kinds, state))
            grads = _embedding(edges, parts, stream, dense_gradients)
            out.append(Moment("embedding backward", (*kept, *freed, *done, *grads, *besides.embedding)))
    return tuple(out)


def _kept(kinds: tuple[LayerCost, ...], microbatches: tuple[int, ...]) -> list[Term]:
    terms = []
    for chunk, alive in enumerate(microbatches):
        for k, cost in enumerate(kinds):
            terms.append(Term("activations", "layers", alive * cost.saved_bytes, "layer", k, chunk))
            less = cost.checkpoint_bytes - cost.saved_bytes
            terms.append(Term("activations", "recomputed layers", alive * less, "recomputed", k, chunk))
    return terms


def _layers_gone(kinds: tuple[LayerCost, ...], state: InFlight) -> tuple[Term, ...]:
    """The kept layers of the chunk in backward, of one microbatch."""
    terms = []
    for k, cost in enumerate(kinds):
        terms.append(Term("activations", "layers done", -cost.saved_bytes, "layer", k, state.chunk))
        terms.append(Term("activations", "layers done", cost.saved_bytes, "recomputed", k, state.chunk))
    return tuple(terms)


def _checkpoints_gone(kinds: tuple[LayerCost, ...], state: InFlight) -> tuple[Term, ...]:
    return tuple(
        Term("activations", "layers done", -cost.checkpoint_bytes, "recomputed", k, state.chunk)
        for k, cost in enumerate(kinds)
    )


def _edges_kept(edges: EdgeCosts, parts: StageParts, state: InFlight) -> list[Term]:
    terms = []
    if parts.embedding_chunk is not None and edges.embedding_bytes:
        alive = state.microbatches[parts.embedding_chunk]
        terms.append(Term("activations", "embedding", alive * edges.embedding_bytes))
    if parts.loss_chunk is not None:
        # a microbatch's backward follows its loss at once, whatever else is in flight
        alive = min(1, state.microbatches[parts.loss_chunk])
        terms.append(Term("activations", "final norm and head input", alive * edges.before_loss_bytes))
        terms.append(Term("logits", "loss", alive * edges.loss_bytes))
        if parts.deferred:
            size = parts.deferred * edges.deferred
            terms.append(Term("logits", "deferred head gradients", size, certainty="measured"))
        if parts.mtp_layers:
            size = alive * parts.mtp_layers * edges.mtp_saved
            terms.append(Term("activations", "multi-token prediction", size, certainty="estimated"))
    return terms


def _loss(edges: EdgeCosts) -> list[Term]:
    terms = [
        Term("logits", "half-precision logits", edges.half_logits),
        Term("logits", "loss temporaries", edges.loss_temporary),
    ]
    if edges.second_logits:
        terms.append(Term("logits", "second fp32 logits", edges.second_logits, certainty="measured"))
    return terms


def _head(edges: EdgeCosts, dense_gradients: bool) -> list[Term]:
    terms = [
        Term("logits", "loss done", -edges.loss_bytes),
        Term("logits", "gradient of the logits", edges.half_logits or edges.loss_bytes),
        Term("activations", "gradient of the head's input", edges.head_input_grad),
    ]
    if dense_gradients:
        terms.append(Term("buffers", "gradient of the head's weight", edges.vocab_grad))
    return terms


def _loss_freed(edges: EdgeCosts, parts: StageParts, dense_gradients: bool) -> tuple[Term, ...]:
    done = (
        Term("logits", "loss done", -edges.loss_bytes),
        Term("activations", "head done", -edges.before_loss_bytes),
    )
    if parts.tied_head_grad and dense_gradients:
        return (*done, Term("buffers", "gradient of the tied head", edges.vocab_grad))
    return done


def _embedding(edges: EdgeCosts, parts: StageParts, stream: int, dense_gradients: bool) -> tuple[Term, ...]:
    """The embedding's gradient is always a tensor of its own; a tied head's joins it in a third one (autograd adds the
    gradients of both uses of a leaf before it accumulates)."""
    if parts.tied_head_grad and dense_gradients:
        # the head's gradient is counted already since its backward
        return (Term("buffers", "gradient of the embedding and its sum with the head's", 2 * edges.vocab_grad),)
    return (
        Term("activations", "gradient of the stream", stream),
        Term("buffers", "gradient of the embedding", edges.vocab_grad),
    )
