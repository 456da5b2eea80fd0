"""Bytes of stages that hold equal layers and edges, which differ by the microbatches in flight alone.

The terms are added up once for all of them; what is left for a stage is a product with the microbatches of each
virtual chunk. `StageForm.peak` adds the very same terms one by one: tests hold both together. What is always alive
stands apart: it changes with the states' division, this with the shape of a rank's tensors, so that layouts which
agree in one share it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, NamedTuple, TypeVar, cast

from planner.memory.form import COMPONENTS, Bundle, Counts, Moments, Values

Turn = TypeVar("Turn")


class Peak(NamedTuple):
    """What the largest moment adds to what is always alive."""

    total: int
    values: Values
    """By component."""
    name: str


class EqualStages(Generic[Turn]):
    """What stages with these counts add to what is always alive. `held`: what one microbatch keeps of each virtual
    chunk; `moments`: those of a turn."""

    __slots__ = ("_held", "_largest", "_moments", "_peaks", "counts")

    def __init__(self, counts: Counts, held: Sequence[Bundle], moments: Callable[[Turn], Moments]) -> None:
        self.counts = counts
        values = [bundle.values(counts) for bundle in held]
        self._held = [(total, [(i, size) for i, size in enumerate(parts) if size]) for total, parts in values]
        self._moments = moments
        self._largest: dict[Turn, tuple[int, Values, str]] = {}
        self._peaks: dict[int, tuple[object, Peak]] = {}

    def peak(self, states: Sequence[tuple[int, ...]], turns: Sequence[Turn], further_bytes: int = 0) -> Peak:
        """The moment with most bytes; the first of equals. `states`: microbatches in flight of each chunk, each with
        its turn, kept by the caller for good; `further_bytes` of activations are alive with them."""
        found = self._peaks.get(id(states)) if not further_bytes else None
        if found is not None:
            return found[1]
        own, total, alive = self._most(states, turns)
        components = list(own[1])
        components[_ACTIVATIONS] += further_bytes
        for n, (_, parts) in zip(alive, self._held, strict=True):
            for i, size in parts:
                components[i] += n * size
        peak = Peak(total + further_bytes, cast(Values, tuple(components)), own[2])
        if not further_bytes:
            self._peaks[id(states)] = (states, peak)
        return peak

    def bytes(self, microbatches: tuple[int, ...], turn: Turn) -> int:
        """Bytes of the largest moment of one state in flight."""
        total = self._own(turn)[0]
        for n, (kept, _) in zip(microbatches, self._held, strict=True):
            total += n * kept
        return total

    def _own(self, turn: Turn) -> tuple[int, Values, str]:
        """The largest moment of a turn, with what is its own."""
        found = self._largest.get(turn)
        if found is None:
            found = self._largest[turn] = self._moments(turn).largest(self.counts)
        return found

    def _most(
        self, states: Sequence[tuple[int, ...]], turns: Sequence[Turn]
    ) -> tuple[tuple[int, Values, str], int, tuple[int, ...]]:
        """The largest moment's own bytes, those with what is in flight, and the state that it belongs to."""
        best: tuple[tuple[int, Values, str], int, tuple[int, ...]] | None = None
        for microbatches, turn in zip(states, turns, strict=True):
            largest = self._own(turn)
            size = largest[0]
            for n, (kept, _) in zip(microbatches, self._held, strict=True):
                size += n * kept
            if best is None or size > best[1]:
                best = (largest, size, microbatches)
        assert best is not None, "a pipeline has at least one state"
        return best


_ACTIVATIONS = COMPONENTS.index("activations")
