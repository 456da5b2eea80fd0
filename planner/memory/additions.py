"""Terms that sharding and offloading add to the moments of a step, over activations and states."""

from __future__ import annotations

from dataclasses import dataclass

from planner.memory.form import Term


@dataclass(frozen=True, slots=True)
class Additions:
    """What each moment has besides activations and states; bytes may be negative (what has left the GPU)."""

    layers: tuple[tuple[Term, ...], ...]
    """Backward of a layer of each kind."""
    loss: tuple[Term, ...] = ()
    """Loss and backward of the head."""
    embedding: tuple[Term, ...] = ()
    always: tuple[Term, ...] = ()
    """Alive throughout, the optimizer step included."""


def combined(a: Additions, b: Additions) -> Additions:
    """Both."""
    layers = tuple((*x, *y) for x, y in zip(a.layers, b.layers, strict=True))
    return Additions(layers, (*a.loss, *b.loss), (*a.embedding, *b.embedding), (*a.always, *b.always))
