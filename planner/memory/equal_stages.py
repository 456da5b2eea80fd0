"""Bytes of stages that hold equal layers and edges, which differ by the microbatches in flight alone.

The terms are added up once for all of them; what is left for a stage is a product with the microbatches of each
virtual chunk. `StageForm.peak` adds the very same terms one by one: tests hold both together.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import add
from typing import Generic, TypeVar, cast

from planner.memory.form import COMPONENTS, Always, Bundle, Counts, Moment, Moments, Values

Turn = TypeVar("Turn")


class EqualStages(Generic[Turn]):
    """The sums of some terms for stages with these counts. `held`: what one microbatch keeps of each virtual chunk;
    `moments`: those of a turn; `alone`: moments with nothing in flight."""

    __slots__ = ("_alone", "_always", "_held", "_largest", "_moments", "counts")

    def __init__(
        self,
        counts: Counts,
        always: Always,
        held: Sequence[Bundle],
        moments: Callable[[Turn], Moments],
        alone: tuple[Moment, ...] = (),
    ) -> None:
        self.counts = counts
        self._always = always.values(counts)
        values = [bundle.values(counts) for bundle in held]
        self._held = [(total, [(i, size) for i, size in enumerate(parts) if size]) for total, parts in values]
        self._moments = moments
        self._alone = [(*moment.values(counts), moment.name) for moment in alone]
        self._largest: dict[Turn, tuple[int, Values, str]] = {}

    def peak(
        self, states: Sequence[tuple[int, ...]], turns: Sequence[Turn], further_bytes: int = 0
    ) -> tuple[str, Values]:
        """The name of the moment with most bytes, and its bytes of each component. `states`: microbatches in flight of
        each chunk, each with its turn; `further_bytes` of activations are alive with them. The first of equals."""
        best, most, alive = self._most(states, turns, further_bytes)
        for lone in self._alone:
            if lone[0] > most:
                best, most, alive = lone, lone[0], ()
        components = list(map(add, self._always[1], best[1]))
        if alive:
            components[_ACTIVATIONS] += further_bytes
            for n, (_, parts) in zip(alive, self._held, strict=True):
                for i, size in parts:
                    components[i] += n * size
        return best[2], cast(Values, tuple(components))

    def peak_bytes(self, microbatches: tuple[int, ...], turn: Turn) -> int:
        """Bytes of the largest moment of one state in flight."""
        total = self._always[0] + self._own(turn)[0]
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
        self, states: Sequence[tuple[int, ...]], turns: Sequence[Turn], further_bytes: int
    ) -> tuple[tuple[int, Values, str], int, tuple[int, ...]]:
        """The largest moment's own bytes, those with what is in flight, and the state that it belongs to."""
        if len(states) == 1 and not self._alone:
            # nothing to compare with
            return self._own(turns[0]), 0, states[0]
        best: tuple[tuple[int, Values, str], int, tuple[int, ...]] | None = None
        for microbatches, turn in zip(states, turns, strict=True):
            largest = self._own(turn)
            size = largest[0] + further_bytes
            for n, (kept, _) in zip(microbatches, self._held, strict=True):
                size += n * kept
            if best is None or size > best[1]:
                best = (largest, size, microbatches)
        assert best is not None, "a pipeline has at least one state"
        return best


_ACTIVATIONS = COMPONENTS.index("activations")
