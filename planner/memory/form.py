"""The memory of one pipeline stage as named terms, linear in the number of layers that the stage holds.

This is the one accounting with two readers (DESIGN.md, decision 1): the report evaluates the terms for a given stage split, the
constraint model multiplies the very same integers with its variables. A stage is judged at several moments (end of
the forward pass, backward of a layer, optimizer step, ...); its peak is the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Component = Literal["weights", "gradients", "optimizer", "activations", "logits", "buffers", "reserve"]
COMPONENTS: tuple[Component, ...] = (
    "weights",
    "gradients",
    "optimizer",
    "activations",
    "logits",
    "buffers",
    "reserve",
)
Certainty = Literal["exact", "measured", "estimated"]


@dataclass(frozen=True, slots=True)
class Term:
    """`bytes` for each of what it is multiplied with.

    times: fixed        once
           layer        each layer of `kind` in virtual chunk `chunk`
           recomputed   each fully recomputed layer of `kind` in `chunk` (negative: what recomputation saves)
           if_recomputed   once, when any layer of `kind` on the stage is fully recomputed
           if_layer     once, when the stage holds any layer of `kind`
    """

    component: Component
    name: str
    bytes: int
    times: Literal["fixed", "layer", "recomputed", "if_recomputed", "if_layer"] = "fixed"
    kind: int = 0
    chunk: int = 0
    certainty: Certainty = "exact"


@dataclass(frozen=True, slots=True)
class Counts:
    """What a stage holds: layers[chunk][kind], and how many of them are fully recomputed."""

    layers: tuple[tuple[int, ...], ...]
    recomputed: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class Moment:
    """What is alive at one moment of the step."""

    name: str
    terms: tuple[Term, ...]

    def bytes_by_component(self, counts: Counts) -> dict[Component, int]:
        """Bytes of each component for the layers that the stage holds."""
        out: dict[Component, int] = dict.fromkeys(COMPONENTS, 0)
        for term in self.terms:
            out[term.component] += term.bytes * multiplier(term, counts)
        return out


def multiplier(term: Term, counts: Counts) -> int:
    """How often a term counts on a stage with these layers."""
    match term.times:
        case "fixed":
            return 1
        case "layer":
            return counts.layers[term.chunk][term.kind]
        case "recomputed":
            return counts.recomputed[term.chunk][term.kind]
        case "if_recomputed":
            return int(any(chunk[term.kind] for chunk in counts.recomputed))
        case "if_layer":
            return int(any(chunk[term.kind] for chunk in counts.layers))


@dataclass(frozen=True, slots=True)
class StageForm:
    """The memory of one stage at every moment that can be its peak. `padding_bytes` bounds what depends on the split in a
    way that is not linear (bucket padding); the report adds its true value, never more."""

    moments: tuple[Moment, ...]
    padding_bytes: int = 0

    def peak(self, counts: Counts) -> tuple[Moment, dict[Component, int]]:
        """The moment with most bytes alive, and those bytes by component."""
        best: tuple[int, Moment, dict[Component, int]] | None = None
        for moment in self.moments:
            components = moment.bytes_by_component(counts)
            total = sum(components.values())
            if best is None or total > best[0]:
                best = (total, moment, components)
        assert best is not None
        return best[1], best[2]


def total(components: dict[Component, int]) -> int:
    return sum(components.values())


def chunk_counts(kinds: Sequence[int], num_kinds: int) -> tuple[int, ...]:
    """Layers of each kind in a slice, given the kind of each of its layers."""
    counts = [0] * num_kinds
    for kind in kinds:
        counts[kind] += 1
    return tuple(counts)
