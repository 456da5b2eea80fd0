"""The moments of a step at which a stage's memory can peak, as terms.

1F1B alternates forwards and backwards, so the most is alive when a backward starts with every microbatch in flight:
in the loss and the head on the last stage, in the backward of a layer (its gradients over everything kept, or a
recomputed layer rebuilt), in the embedding's gradient at the end of a backward.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

from planner.memory.additions import Additions
from planner.memory.form import Bundle, Moment, Moments, Term
from planner.memory.in_flight import InFlight
from planner.memory.pieces import EdgeCosts, LayerCost

_MTP = "multi-token prediction"

Turn = tuple[int, bool, bool, bool, bool]
"""All that the own terms of a state's moments depend on, besides what the stage holds: the chunk in backward where it
matters (else -1), whether the loss and whether the embedding are in its turn, whether a loss is alive, and whether
there is one chunk only."""


@dataclass(frozen=True)
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
    mtp_chunk: int | None = None
    """Where the stage's multi-token-prediction modules are; on the chunk of the loss if any may be there."""

    @property
    def mtp_away(self) -> bool:
        """Whether the stage's modules of multi-token prediction run into losses on a later stage."""
        return self.mtp_layers > 0 and self.loss_chunk is None

    @cached_property
    def edges(self) -> tuple[bool, bool, int]:
        """Whether the stage holds the embedding and the loss, and how many multi-token-prediction modules."""
        return (self.embedding_chunk is not None, self.loss_chunk is not None, self.mtp_layers)

    @cached_property
    def around(self) -> tuple:
        """All but what is in flight."""
        return (
            self.embedding_chunk, self.loss_chunk, self.mtp_layers, self.deferred, self.tied_head_grad, self.mtp_chunk,
        )  # fmt: skip

    @cached_property
    def microbatches(self) -> tuple[tuple[int, ...], ...]:
        """Those of each state in flight."""
        return tuple(state.microbatches for state in self.in_flight)

    @cached_property
    def turns(self) -> tuple[Turn, ...]:
        """The turn of each state in flight."""
        return tuple(map(self._turn, self.in_flight))

    def _turn(self, state: InFlight) -> Turn:
        on_loss, on_embedding = self.loss_chunk == state.chunk, self.embedding_chunk == state.chunk
        alone = len(state.microbatches) == 1
        # a microbatch's backward follows its loss at once, whatever else is in flight
        alive = self.loss_chunk is not None and state.microbatches[self.loss_chunk] > 0
        return (state.chunk if on_embedding or alone else -1, on_loss, on_embedding, alive, alone)


def kept_by_one(
    kinds: tuple[LayerCost, ...], edges: EdgeCosts, chunk: int, embedding: bool, mtp: int, output: int
) -> Bundle:
    """What one microbatch in flight keeps of a virtual chunk, which may begin with the embedding or end with `mtp`
    modules of multi-token prediction whose losses are on a later stage, and whose output may stay (`output` bytes)."""
    terms = []
    for k, cost in enumerate(kinds):
        terms.append(Term("activations", "layers", cost.saved_bytes, "layer", k, chunk, cost.certainty))
        less = cost.checkpoint_bytes - cost.saved_bytes
        terms.append(Term("activations", "recomputed layers", less, "recomputed", k, chunk, cost.certainty))
    if embedding:
        terms.append(Term("activations", "embedding", edges.embedding_bytes))
    if mtp:
        terms.append(Term("activations", _MTP, mtp * edges.mtp_module, certainty="estimated"))
    if output:
        terms.append(Term("activations", "output of the stage", output))
    return Bundle(terms)


def moments(
    kinds: tuple[LayerCost, ...],
    edges: EdgeCosts,
    parts: StageParts,
    now: Turn,
    besides: Additions,
    stream: int,
    dense_gradients: bool,
) -> Moments:
    """What each moment of a state (`now`: its turn) adds to what is always alive and in flight. `dense_gradients`:
    weight gradients are tensors of their own."""
    chunk, on_loss, on_embedding, alive, alone = now
    out: list[Moment] = []
    kept = _edges_kept(edges, parts, alive)
    if on_loss:
        out.append(Moment("loss", (*kept, *_loss(edges), *besides.loss)))
        out.append(Moment("head backward", (*kept, *_head(edges, dense_gradients), *besides.loss)))
    freed = _loss_freed(edges, parts, dense_gradients) if on_loss else ()
    # a recomputed layer stands before the kept ones of its chunk: their activations are gone by then
    gone = _layers_gone(kinds, chunk) if alone else ()
    for k, cost in enumerate(kinds):
        here = Term("activations", "layer gradients", cost.backward_bytes, "if_layer", k, 0, cost.certainty)
        out.append(Moment("backward", (*kept, *freed, here, *besides.layers[k])))
        name = "recomputed layer and its gradients"
        rebuilt = Term("activations", name, cost.recompute_bytes, "if_recomputed", k, 0, cost.certainty)
        out.append(Moment("recompute", (*kept, *freed, *gone, rebuilt, *besides.layers[k])))
    if on_embedding:
        done = (*_layers_gone(kinds, chunk), *_checkpoints_gone(kinds, chunk))
        grads = _embedding(edges, parts, stream, dense_gradients)
        out.append(Moment("embedding backward", (*kept, *freed, *done, *grads, *besides.embedding)))
    return Moments(out)


def _layers_gone(kinds: tuple[LayerCost, ...], chunk: int) -> tuple[Term, ...]:
    """The kept layers of the chunk in backward, of one microbatch."""
    terms = []
    for k, cost in enumerate(kinds):
        terms.append(Term("activations", "layers done", -cost.saved_bytes, "layer", k, chunk, cost.certainty))
        terms.append(Term("activations", "layers done", cost.saved_bytes, "recomputed", k, chunk, cost.certainty))
    return tuple(terms)


def _checkpoints_gone(kinds: tuple[LayerCost, ...], chunk: int) -> tuple[Term, ...]:
    return tuple(
        Term("activations", "layers done", -cost.checkpoint_bytes, "recomputed", k, chunk, cost.certainty)
        for k, cost in enumerate(kinds)
    )


def _edges_kept(edges: EdgeCosts, parts: StageParts, alive: bool) -> list[Term]:
    """What the loss keeps of its one microbatch, if that is `alive`."""
    if parts.loss_chunk is None:
        return []
    terms = []
    if alive:
        terms.append(Term("activations", "final norm and head input", edges.before_loss_bytes))
        terms.append(Term("logits", "loss", edges.loss_bytes))
    if parts.deferred:
        size = parts.deferred * edges.deferred
        terms.append(Term("logits", "deferred head gradients", size, certainty="measured"))
    if alive:
        size = parts.mtp_layers * edges.mtp_module + edges.mtp_losses
        terms.append(Term("activations", _MTP, size, certainty="estimated"))
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
