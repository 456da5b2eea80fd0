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
        self._held = [bundle.values(counts) for bundle in held]
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
            for n, (_, by_component) in zip(alive, self._held, strict=True):
                for i, size in enumerate(by_component):
                    if size:
                        components[i] += n * size
        return best[2], cast(Values, tuple(components))

    def peak_bytes(self, microbatches: tuple[int, ...], turn: Turn) -> int:
        """Bytes of the largest moment of one state in flight."""
        return self._always[0] + self._most((microbatches,), (turn,), 0)[1]

    def _most(
        self, states: Sequence[tuple[int, ...]], turns: Sequence[Turn], further_bytes: int
    ) -> tuple[tuple[int, Values, str], int, tuple[int, ...]]:
        """The largest moment's own bytes, those with what is in flight, and the state that it belongs to."""
        best: tuple[tuple[int, Values, str], int, tuple[int, ...]] | None = None
        for microbatches, turn in zip(states, turns, strict=True):
            largest = self._largest.get(turn)
            if largest is None:
                largest = self._largest[turn] = self._moments(turn).largest(self.counts)
            size = largest[0] + further_bytes
            for n, (kept, _) in zip(microbatches, self._held, strict=True):
                size += n * kept
            if best is None or size > best[1]:
                best = (largest, size, microbatches)
        assert best is not None, "a pipeline has at least one state"
        return best


_ACTIVATIONS = COMPONENTS.index("activations")
