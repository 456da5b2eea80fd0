"""What is gathered, reduced and sharded together: layers, and the root unit of embedding, final norm and head."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.form import Component, Term
from planner.memory.states import elements
from planner.parameters import Weight, numel


@dataclass(frozen=True, slots=True)
class Units:
    """Elements of what is gathered together on a stage."""

    layers: tuple[int, ...]
    """A layer of each kind."""
    embedding: int
    head: int
    """The final norm, the head and multi-token prediction."""
    stage_layers: int
    """Decoder layers of a mean stage."""
    chunks: int
    """Virtual chunks of a stage."""
    kept: tuple[int, ...]
    """Bytes that a layer of each kind keeps for its backward."""
    shards: tuple[int, ...]
    """The largest shard of a layer of each kind."""
    root_shard: int
    largest: int
    """The largest tensor."""
    accumulates: bool
    """A step has several microbatches."""

    @property
    def root(self) -> int:
        return self.embedding + self.head

    @property
    def mean_layer(self) -> int:
        return max(1, sum(self.layers) // len(self.layers))


def units_of(
    kinds: Sequence[Sequence[Weight]],
    kept: Sequence[int],
    embedding: Sequence[Weight],
    head: Sequence[Weight],
    layers: int,
    impl: Implementation,
    layout: Layout,
    accumulates: bool,
) -> Units:
    """The units of a stage of a model with `layers` decoder layers; `kept`: bytes that a layer of each kind keeps."""
    root = (*embedding, *head)
    return Units(
        tuple(numel(tuple(weights)) for weights in kinds),
        numel(tuple(embedding)),
        numel(tuple(head)),
        -(-layers // layout.pp),
        layout.vpp,
        tuple(kept),
        tuple(elements(weights, layout, impl)[1] for weights in kinds),
        elements(root, layout, impl)[1],
        largest_tensor((*root, *(w for weights in kinds for w in weights))),
        accumulates,
    )


def largest_tensor(weights: Iterable[Weight]) -> int:
    """Elements of the largest of these tensors."""
    return max((w.numel // w.count for w in weights), default=0)


def at_once(name: str, size: int, kind: int | None = None, component: Component = "buffers") -> Term:
    """Once, or once where the stage holds a layer of `kind`."""
    times = "fixed" if kind is None else "if_layer"
    return Term(component, name, size, times, kind or 0, 0, "estimated")  # type: ignore[arg-type]


def of_stage(
    name: str, layers: Sequence[int], root: int, chunks: int, component: Component = "buffers"
) -> tuple[Term, ...]:
    """So many bytes for each layer of the stage, by kind, and for its root unit."""
    terms = [
        Term(component, name, size, "layer", kind, chunk, "estimated")
        for kind, size in enumerate(layers)
        for chunk in range(chunks)
    ]
    return (*terms, at_once(name, root, component=component))
