"""The memory of one pipeline stage as named terms, linear in the number of layers that the stage holds.

One accounting, two readers: the report evaluates the terms for a given stage split, the constraint model multiplies the
very same integers with its variables. A stage is judged at several moments (end of the forward pass, backward of a
layer, optimizer step, ...); its peak is the largest.
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


@dataclass(frozen=True)
class Moment:
    """What is alive at one moment of the step."""

    name: str
    terms: tuple[Term, ...]

    @cached_property
    def sums(self) -> Sums:
        """The terms added up by what they are multiplied with."""
        return sums_of(self.terms)


@dataclass(frozen=True, slots=True)
class Sums:
    """Terms added up by multiplier: bytes = fixed + layers . n + recomputed . r + indicators."""

    fixed: int
    layer: tuple[tuple[int, int, int], ...]
    """(chunk, kind, bytes)"""
    recomputed: tuple[tuple[int, int, int], ...]
    if_recomputed: tuple[tuple[int, int], ...]
    """(kind, bytes)"""
    if_layer: tuple[tuple[int, int], ...]

    def bytes(self, counts: Counts) -> int:
        """Bytes for the layers that a stage holds."""
        total = self.fixed
        layers, recomputed = counts.layers, counts.recomputed
        for chunk, kind, size in self.layer:
            total += size * layers[chunk][kind]
        for chunk, kind, size in self.recomputed:
            total += size * recomputed[chunk][kind]
        for kind, size in self.if_layer:
            if any(held[kind] for held in layers):
                total += size
        for kind, size in self.if_recomputed:
            if any(held[kind] for held in recomputed):
                total += size
        return total


def sums_of(terms: Sequence[Term]) -> Sums:
    """Add the terms up."""
    fixed = 0
    found: dict[str, dict[tuple[int, ...], int]] = {"layer": {}, "recomputed": {}, "if_recomputed": {}, "if_layer": {}}
    for t in terms:
        if t.times == "fixed":
            fixed += t.bytes
            continue
        key = (t.chunk, t.kind) if t.times in ("layer", "recomputed") else (t.kind,)
        sums = found[t.times]
        sums[key] = sums.get(key, 0) + t.bytes
    flat = {times: tuple((*key, size) for key, size in sums.items() if size) for times, sums in found.items()}
    return Sums(fixed, flat["layer"], flat["recomputed"], flat["if_recomputed"], flat["if_layer"])  # type: ignore[arg-type]


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


@dataclass(frozen=True)
class Always:
    """Terms that are alive at every moment; shared by the stages and layouts that have them in common."""

    terms: tuple[Term, ...] = ()

    @cached_property
    def sums(self) -> tuple[tuple[Component, Sums], ...]:
        """The terms of each component added up."""
        parts = ((c, [t for t in self.terms if t.component == c]) for c in COMPONENTS)
        return tuple((c, sums_of(terms)) for c, terms in parts if terms)


@dataclass(frozen=True)
class StageForm:
    """The memory of one stage at every moment that can be its peak: what is `always` alive, and what each moment adds.

    `padding_bytes` bounds what depends on the split in a way that is not linear (bucket padding); the report adds its
    true value, never more.
    """

    additions: tuple[Moment, ...]
    padding_bytes: int = 0
    always: Always = Always()

    @cached_property
    def moments(self) -> tuple[Moment, ...]:
        """Every moment with all its terms."""
        return tuple(Moment(m.name, self.always.terms + m.terms) for m in self.additions)

    def peak(self, counts: Counts) -> tuple[Moment, dict[Component, int]]:
        """The moment with most bytes alive (what it adds), and all bytes at that moment by component."""
        moment = (
            max(self.additions, key=lambda m: m.sums.bytes(counts)) if len(self.additions) > 1 else self.additions[0]
        )
        components: dict[Component, int] = dict.fromkeys(COMPONENTS, 0)
        for component, sums in self.always.sums:
            components[component] = sums.bytes(counts)
        for term in moment.terms:
            components[term.component] += term.bytes * multiplier(term, counts)
        return moment, components

    def peak_bytes(self, counts: Counts) -> int:
        """Bytes at the peak, the reserve included."""
        base = sum(sums.bytes(counts) for _, sums in self.always.sums)
        return base + max(m.sums.bytes(counts) for m in self.additions)


def chunk_counts(kinds: Sequence[int], num_kinds: int) -> tuple[int, ...]:
    """Layers of each kind in a slice, given the kind of each of its layers."""
    counts = [0] * num_kinds
    for kind in kinds:
        counts[kind] += 1
    return tuple(counts)
