"""The memory of one pipeline stage as named terms, linear in the number of layers that the stage holds.

One accounting, two readers: the report evaluates the terms for a given stage split, the constraint model multiplies the
very same integers with its variables. A stage is judged at several moments (end of the forward pass, backward of a
layer, optimizer step, ...); its peak is the largest.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from operator import add
from typing import ClassVar, Literal, NamedTuple, cast

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


class Term(NamedTuple):
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


class Counts:
    """What a stage holds: layers[chunk][kind], and how many of them are fully recomputed. There is one object of each:
    it is the key under which bytes are kept, and is found by identity."""

    __slots__ = ("layers", "recomputed")
    layers: tuple[tuple[int, ...], ...]
    recomputed: tuple[tuple[int, ...], ...]
    _known: ClassVar[dict[tuple[object, object], Counts]] = {}

    def __new__(cls, layers: tuple[tuple[int, ...], ...], recomputed: tuple[tuple[int, ...], ...]) -> Counts:
        key = (layers, recomputed)
        found = cls._known.get(key)
        if found is None:
            found = cls._known[key] = super().__new__(cls)
            found.layers, found.recomputed = key
        return found

    def __reduce__(self) -> tuple[type[Counts], tuple[object, object]]:
        return Counts, (self.layers, self.recomputed)

    def __repr__(self) -> str:
        return f"Counts(layers={self.layers}, recomputed={self.recomputed})"


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


def added(sums: Sequence[tuple[int, Sums]]) -> Sums:
    """Several sums, each a number of times, as one; entries of equal multipliers stand side by side."""
    return Sums(
        sum(n * s.fixed for n, s in sums),
        tuple((c, k, n * b) for n, s in sums for c, k, b in s.layer),
        tuple((c, k, n * b) for n, s in sums for c, k, b in s.recomputed),
        tuple((k, n * b) for n, s in sums for k, b in s.if_recomputed),
        tuple((k, n * b) for n, s in sums for k, b in s.if_layer),
    )


def multiplier(term: Term, counts: Counts) -> int:
    """How often a term counts on a stage with these layers."""
    times = term.times
    if times == "fixed":
        return 1
    if times == "layer":
        return counts.layers[term.chunk][term.kind]
    if times == "recomputed":
        return counts.recomputed[term.chunk][term.kind]
    for chunk in counts.recomputed if times == "if_recomputed" else counts.layers:
        if chunk[term.kind]:
            return 1
    return 0


Values = tuple[int, int, int, int, int, int, int]
"""Bytes of each component, in the order of COMPONENTS."""
NOTHING: Values = (0, 0, 0, 0, 0, 0, 0)
_INDEX = {component: i for i, component in enumerate(COMPONENTS)}


class Bundle:
    """Terms that many stages and layouts have in common: added up once, and once for each number of layers that they
    are asked for. Compares by identity."""

    __slots__ = ("_components", "_fixed", "_found", "_sums", "_varying", "terms")

    def __init__(self, terms: Iterable[Term] = ()) -> None:
        self.terms = tuple([t for t in terms if t.bytes])
        self._sums: Sums | None = None
        self._components: tuple[tuple[Component, Sums], ...] | None = None
        self._found: dict[Counts, tuple[int, Values]] | None = None
        self._fixed: tuple[int, Values] = (0, NOTHING)
        self._varying: tuple[Term, ...] = ()

    @property
    def sums(self) -> Sums:
        """The terms added up by what they are multiplied with."""
        if self._sums is None:
            self._sums = sums_of(self.terms)
        return self._sums

    @property
    def component_sums(self) -> tuple[tuple[Component, Sums], ...]:
        """The terms of each component added up."""
        if self._components is None:
            parts = ((c, [t for t in self.terms if t.component == c]) for c in COMPONENTS)
            self._components = tuple((c, sums_of(terms)) for c, terms in parts if terms)
        return self._components

    def values(self, counts: Counts) -> tuple[int, Values]:
        """All bytes for the layers that a stage holds, and the bytes of each component."""
        if self._found is None:
            self._found = {}
            sizes = [0] * len(COMPONENTS)
            for t in self.terms:
                if t.times == "fixed":
                    sizes[_INDEX[t.component]] += t.bytes
            self._fixed = sum(sizes), cast(Values, tuple(sizes))
            self._varying = tuple([t for t in self.terms if t.times != "fixed"])
        if not self._varying:
            return self._fixed
        found = self._found.get(counts)
        if found is None:
            sizes = list(self._fixed[1])
            for t in self._varying:
                sizes[_INDEX[t.component]] += t.bytes * multiplier(t, counts)
            found = self._found[counts] = (sum(sizes), cast(Values, tuple(sizes)))
        return found

    def total(self, counts: Counts) -> int:
        """All bytes for the layers that a stage holds. Nothing is kept: for terms that are asked for once."""
        return sum([t.bytes if t.times == "fixed" else t.bytes * multiplier(t, counts) for t in self.terms])


class Moment:
    """What is alive at one moment of the step: terms of its own, and what a `flight` of microbatches keeps."""

    __slots__ = ("_sums", "flight", "name", "own")

    def __init__(self, name: str, terms: Iterable[Term] | Bundle, flight: Flight | None = None) -> None:
        self.name = name
        self.own = terms if isinstance(terms, Bundle) else Bundle(terms)
        self.flight = flight
        self._sums: Sums | None = None

    @property
    def terms(self) -> tuple[Term, ...]:
        """Every term, spelled out."""
        return (*self.flight.terms, *self.own.terms) if self.flight else self.own.terms

    @property
    def sums(self) -> Sums:
        """The terms added up by what they are multiplied with."""
        if self.flight is None:
            return self.own.sums
        if self._sums is None:
            self._sums = added([*((n, unit.sums) for n, unit in self.flight.kept), (1, self.own.sums)])
        return self._sums

    def values(self, counts: Counts) -> tuple[int, Values]:
        """All bytes, and the bytes of each component."""
        total, components = self.own.values(counts)
        return self.flight.plus(counts, total, components) if self.flight else (total, components)


class Moments:
    """Moments of one state of the pipeline that differ in their own terms only: whatever is in flight, the largest of
    them is the same."""

    __slots__ = ("_largest", "each")

    def __init__(self, each: Iterable[Moment]) -> None:
        self.each = tuple(each)
        self._largest: dict[Counts, tuple[int, Values, str]] = {}

    def largest(self, counts: Counts) -> tuple[int, Values, str]:
        """The moment with most bytes of its own: these, by component too, and its name; the first of equals."""
        found = self._largest.get(counts)
        if found is None:
            moment = max(self.each, key=lambda m: m.own.total(counts))
            found = self._largest[counts] = (*moment.own.values(counts), moment.name)
        return found


class Flight:
    """Microbatches in flight when a backward starts, and the moments that can be the peak then. `kept`: how many of
    each virtual chunk, and what one of them keeps."""

    __slots__ = ("kept", "moments")

    def __init__(self, kept: tuple[tuple[int, Bundle], ...], moments: Moments) -> None:
        self.kept = kept
        self.moments = moments

    @property
    def terms(self) -> tuple[Term, ...]:
        """What all microbatches keep, spelled out."""
        return tuple(
            Term(t.component, t.name, n * t.bytes, t.times, t.kind, t.chunk, t.certainty)
            for n, unit in self.kept
            for t in unit.terms
        )

    def plus(self, counts: Counts, total: int, components: Values) -> tuple[int, Values]:
        """These bytes and those in flight."""
        out = list(components)
        for n, unit in self.kept:
            kept, by_component = unit.values(counts)
            total += n * kept
            for i, size in enumerate(by_component):
                out[i] += n * size
        return total, cast(Values, tuple(out))


class Always:
    """Terms that are alive at every moment, in bundles that stages and layouts have in common."""

    __slots__ = ("_sums", "bundles")

    def __init__(self, terms: Iterable[Term] = (), bundles: tuple[Bundle, ...] = ()) -> None:
        own = Bundle(terms)
        self.bundles = (own, *bundles) if own.terms else bundles
        self._sums: tuple[tuple[Component, Sums], ...] | None = None

    @property
    def terms(self) -> tuple[Term, ...]:
        """Every term, spelled out."""
        return tuple(t for bundle in self.bundles for t in bundle.terms)

    @property
    def sums(self) -> tuple[tuple[Component, Sums], ...]:
        """The terms of each component added up; a component may come more than once."""
        if self._sums is None:
            self._sums = tuple(entry for bundle in self.bundles for entry in bundle.component_sums)
        return self._sums

    def values(self, counts: Counts) -> tuple[int, Values]:
        """All bytes, and the bytes of each component."""
        total, components = 0, NOTHING
        for bundle in self.bundles:
            size, by_component = bundle.values(counts)
            components = (
                cast(Values, tuple(map(add, components, by_component))) if components is not NOTHING else by_component
            )
            total += size
        return total, components


class StageForm:
    """The memory of one stage at every moment that can be its peak: what is `always` alive, and what each moment adds.

    The moments are those of each flight, then those given alone. `padding_bytes` bounds what depends on the split in a
    way that is not linear (bucket padding); the report adds its true value, never more.
    """

    __slots__ = ("_additions", "alone", "always", "flights", "padding_bytes")

    def __init__(
        self,
        alone: tuple[Moment, ...] = (),
        padding_bytes: int = 0,
        always: Always | None = None,
        flights: tuple[Flight, ...] = (),
    ) -> None:
        self.alone = alone
        self.padding_bytes = padding_bytes
        self.always = always or Always()
        self.flights = flights
        self._additions: tuple[Moment, ...] | None = None

    @property
    def additions(self) -> tuple[Moment, ...]:
        """What each moment adds to what is always alive."""
        if self._additions is None:
            flying = tuple(Moment(m.name, m.own, flight) for flight in self.flights for m in flight.moments.each)
            self._additions = flying + self.alone
        return self._additions

    @property
    def moments(self) -> tuple[Moment, ...]:
        """Every moment with all its terms."""
        return tuple(Moment(m.name, self.always.terms + m.terms) for m in self.additions)

    def peak(self, counts: Counts) -> tuple[Moment, dict[Component, int]]:
        """The moment with most bytes alive (what it adds), and all bytes at that moment by component."""
        moment = max(self.additions, key=lambda m: m.values(counts)[0])
        always = self.always.values(counts)[1]
        sizes = map(add, always, moment.values(counts)[1])
        return moment, dict(zip(COMPONENTS, sizes, strict=True))

    def peak_bytes(self, counts: Counts) -> int:
        """Bytes at the peak, the reserve included."""
        return self.always.values(counts)[0] + max(m.values(counts)[0] for m in self.additions)


def chunk_counts(kinds: Sequence[int], num_kinds: int) -> tuple[int, ...]:
    """Layers of each kind in a slice, given the kind of each of its layers."""
    counts = [0] * num_kinds
    for kind in kinds:
        counts[kind] += 1
    return tuple(counts)
