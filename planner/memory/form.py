"""The memory of one pipeline stage as named terms, linear in the number of layers that the stage holds.

This is the one accounting with two readers (DESIGN.md, decision 1): the report evaluates the terms for a given stage split, the
constraint model multiplies the very same integers with its variables. A stage is judged at several moments (end of
the forward pass, backward of a layer, optimizer step, ...); its peak is the largest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
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


def multiplier(term: Term, counts: Counts) -> int:
    """How often a term counts on a stage with these layers."""
    times = term.times
    if times == "fixed":
        return 1
    if times == "layer":
        return counts.layers[term.chunk][term.kind]
    if times == "recomputed":
        return counts.recomputed[term.chunk][term.kind]
    held = counts.recomputed if times == "if_recomputed" else counts.layers
    return int(any(chunk[term.kind] for chunk in held))


def add_up(terms: tuple[Term, ...], counts: Counts, into: dict[Component, int]) -> int:
    """Add the terms' bytes to each component; their sum."""
    total = 0
    for term in terms:
        size = term.bytes * multiplier(term, counts)
        into[term.component] += size
        total += size
    return total


@dataclass(frozen=True)
class StageForm:
    """The memory of one stage at every moment that can be its peak: what is `always` alive, and what each moment adds.

    `padding_bytes` bounds what depends on the split in a way that is not linear (bucket padding); the report adds its
    true value, never more.
    """

    additions: tuple[Moment, ...]
    padding_bytes: int = 0
    always: tuple[Term, ...] = ()

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """Every moment with all its terms."""
        return tuple(Moment(m.name, self.always + m.terms) for m in self.additions)

    def peak(self, counts: Counts) -> tuple[Moment, dict[Component, int]]:
        """The moment with most bytes alive (what it adds), and all bytes at that moment by component."""
        base: dict[Component, int] = dict.fromkeys(COMPONENTS, 0)
        add_up(self.always, counts, base)
        best: tuple[int, Moment, dict[Component, int]] | None = None
        for moment in self.additions:
            components = base.copy()
            added = add_up(moment.terms, counts, components)
            if best is None or added > best[0]:
                best = (added, moment, components)
        assert best is not None
        return best[1], best[2]


def chunk_counts(kinds: Sequence[int], num_kinds: int) -> tuple[int, ...]:
    """Layers of each kind in a slice, given the kind of each of its layers."""
    counts = [0] * num_kinds
    for kind in kinds:
        counts[kind] += 1
    return tuple(counts)
