"""The inner problem of the search: with all degrees chosen, which layers go to which stage, and which are recomputed.

A split is one number of decoder layers for each slice of the model (slice c is chunk c // pp of stage c % pp) and one
number of fully recomputed layers for each stage: its first so many, chunk after chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from operator import ge
from typing import Any

from planner.memory.form import Counts, StageForm, Sums
from planner.solver.windows import windows
from planner.timing.form import StepForm

Matrix = tuple[tuple[int, ...], ...]
FEW_MOMENTS = 24
"""Up to so many are compared one by one, which is faster than to make an array of them."""


@dataclass(frozen=True, slots=True)
class LinearMoment:
    """One moment of a stage with its terms added up: fixed + layer . n + recomputed . r + the indicators [bytes]."""

    fixed: int
    layer: Matrix
    """[chunk][kind]"""
    recomputed: Matrix
    """[chunk][kind]"""
    if_recomputed: tuple[int, ...]
    """[kind]"""
    if_layer: tuple[int, ...]
    """[kind]"""

    def bytes(self, counts: Counts) -> int:
        """Bytes alive for these layers."""
        total = self.fixed
        for weights, numbers in ((self.layer, counts.layers), (self.recomputed, counts.recomputed)):
            for row, counted in zip(weights, numbers, strict=True):
                total += sum(w * n for w, n in zip(row, counted, strict=True))
        for kind, (once, held) in enumerate(zip(self.if_recomputed, self.if_layer, strict=True)):
            total += once * any(chunk[kind] for chunk in counts.recomputed)
            total += held * any(chunk[kind] for chunk in counts.layers)
        return total

    @property
    def coefficients(self) -> tuple[int, ...]:
        rows = (*self.layer, *self.recomputed, self.if_recomputed, self.if_layer)
        return (self.fixed, *(value for row in rows for value in row))


def linear_moments(form: StageForm, chunks: int, kinds: int) -> tuple[LinearMoment, ...]:
    """The moments of a form with equal terms added up, without those that another moment covers in every term."""
    always = _Tally(chunks, kinds)
    for _, sums in form.always.sums:
        always.add(sums)
    moments: dict[tuple[int, ...], LinearMoment] = {}
    for addition in form.additions:
        tally = always.copy()
        tally.add(addition.sums)
        linear = tally.linear()
        moments.setdefault(linear.coefficients, linear)
    return _undominated(moments)


class _Tally:
    """Terms being added up."""

    def __init__(self, chunks: int, kinds: int):
        self.fixed = 0
        self.layer = [[0] * kinds for _ in range(chunks)]
        self.recomputed = [[0] * kinds for _ in range(chunks)]
        self.if_recomputed, self.if_layer = [0] * kinds, [0] * kinds

    def copy(self) -> _Tally:
        other = _Tally(0, 0)
        other.fixed = self.fixed
        other.layer, other.recomputed = [row[:] for row in self.layer], [row[:] for row in self.recomputed]
        other.if_recomputed, other.if_layer = self.if_recomputed[:], self.if_layer[:]
        return other

    def add(self, sums: Sums) -> None:
        self.fixed += sums.fixed
        for chunk, kind, size in sums.layer:
            self.layer[chunk][kind] += size
        for chunk, kind, size in sums.recomputed:
            self.recomputed[chunk][kind] += size
        for kind, size in sums.if_recomputed:
            self.if_recomputed[kind] += size
        for kind, size in sums.if_layer:
            self.if_layer[kind] += size

    def linear(self) -> LinearMoment:
        return LinearMoment(
            self.fixed,
            tuple(map(tuple, self.layer)),
            tuple(map(tuple, self.recomputed)),
            tuple(self.if_recomputed),
            tuple(self.if_layer),
        )


def _undominated(moments: dict[tuple[int, ...], LinearMoment]) -> tuple[LinearMoment, ...]:
    """The moments that no other covers in every coefficient; `moments` has each under its coefficients."""
    if len(moments) == 1:
        return tuple(moments.values())
    if len(moments) <= FEW_MOMENTS:
        return tuple(m for key, m in moments.items() if not any(k is not key and all(map(ge, k, key)) for k in moments))
    import numpy as np

    keys = np.array(list(moments), dtype=np.int64)
    kept = []
    for index, moment in enumerate(moments.values()):
        covering = np.all(keys >= keys[index], axis=1)
        covering[index] = False
        if not covering.any():
            kept.append(moment)
    return tuple(kept)


@dataclass(frozen=True, slots=True)
class Split:
    """A solution: decoder layers of each slice in model order, and recomputed layers of each stage."""

    slices: tuple[int, ...]
    recomputed: tuple[int, ...]


class Lazy(Sequence):
    """A sequence whose items are made when they are first asked for."""

    def __init__(self, length: int, make: Callable[[int], Any]):
        self._length, self._make = length, make
        self._made: dict[int, Any] = {}

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: Any) -> Any:
        if not 0 <= index < self._length:
            raise IndexError(index)
        if index not in self._made:
            self._made[index] = self._make(index)
        return self._made[index]


@dataclass(frozen=True)
class SplitProblem:
    """Bytes and nanoseconds of every stage as coefficients, and what a split must keep.

    `limits` is each stage's capacity less the padding that its form only bounds [bytes].
    """

    pattern: tuple[int, ...]
    """The kind of each decoder layer."""
    kinds: int
    pp: int
    vpp: int
    step: StepForm
    moments: Sequence[tuple[LinearMoment, ...]]
    limits: Sequence[int]
    may_recompute: bool = False
    must_recompute: bool = False
    """At least one layer must be recomputed: the user pinned full recomputation."""
    fixed_slices: tuple[int, ...] | None = None
    tables: tuple[tuple[int | None, ...], ...] = ()
    """[stage][layers]: the fewest layers that a stage with so many must recompute, None where it cannot hold so many;
    given where memory is said by totals instead of moments."""

    @property
    def layers(self) -> int:
        return len(self.pattern)

    @cached_property
    def cumulative(self) -> Matrix:
        """cumulative[kind][p]: layers of the kind among the first p."""
        rows = []
        for kind in range(self.kinds):
            row = [0]
            for k in self.pattern:
                row.append(row[-1] + (k == kind))
            rows.append(tuple(row))
        return tuple(rows)

    def minimum(self, index: int) -> int:
        """Fewest layers of a slice: the first and the last may be empty, they hold the embedding and the loss."""
        slices = self.pp * self.vpp
        if slices > 1 and index in (0, slices - 1):
            return 0
        return self._even if self.vpp > 1 else 1

    @property
    def maximum(self) -> int:
        """Most layers of a slice. Virtual chunks differ by one layer at most (but for the two at the ends): the time of
        the interleaved schedule is that of equal chunks, so a split far from it would be promised too much."""
        return self._even + 1 if self.vpp > 1 else self.layers

    @property
    def _even(self) -> int:
        return max(1, self.layers // (self.pp * self.vpp))

    def counts(self, split: Split) -> list[Counts]:
        """What each stage holds under a split."""
        layers: list[list[tuple[int, ...]]] = [[] for _ in range(self.pp)]
        recomputed: list[list[tuple[int, ...]]] = [[] for _ in range(self.pp)]
        left = list(split.recomputed)
        start = 0
        for index, n in enumerate(split.slices):
            stage = index % self.pp
            redo = min(n, left[stage])
            left[stage] -= redo
            layers[stage].append(tuple(c[start + n] - c[start] for c in self.cumulative))
            recomputed[stage].append(tuple(c[start + redo] - c[start] for c in self.cumulative))
            start += n
        return [Counts(tuple(a), tuple(b)) for a, b in zip(layers, recomputed, strict=True)]

    @cached_property
    def kind_counts(self) -> tuple[int, ...]:
        """Layers of each kind in the model."""
        return tuple(row[-1] for row in self.cumulative)

    @cached_property
    def windows(self) -> tuple[tuple[int, int], ...]:
        """Where each slice can begin: the earliest and the latest first layer."""
        slices = range(self.pp * self.vpp)
        fewest = tuple([self.minimum(c) for c in slices])
        return windows(self.layers, fewest, self.maximum)

    @cached_property
    def longest_stage_ns(self) -> int:
        """No stage takes longer: every layer on it, all of them recomputed."""
        stages = self.step.stages
        return max(s.fixed_ns + self.layers * (max(s.layer_ns) + max(s.recompute_ns)) for s in stages)

    @cached_property
    def longest_ns(self) -> int:
        """No split takes longer."""
        layers, stages = self.layers, self.step.stages
        slowest = self.longest_stage_ns
        tail = max(sum(max(0, t.fixed_ns) + layers * max(0, *t.layer_ns) for t in s.tails) for s in stages)
        rounds = self.step.num_microbatches * self.step.vpp - 1
        return (rounds + self.pp) * slowest // self.step.vpp + 1 + tail + self.step.once_ns

    def step_ns(self, split: Split) -> int:
        """The step time of a split."""
        counts = self.counts(split)
        return self.step.step_ns([_sum(c.layers) for c in counts], [_sum(c.recomputed) for c in counts])

    def fits(self, split: Split) -> bool:
        """Whether every stage keeps its limit at every moment."""
        return all(
            moment.bytes(counts) <= limit
            for moments, limit, counts in zip(self.moments, self.limits, self.counts(split), strict=True)
            for moment in moments
        )


def _sum(chunks: Matrix) -> tuple[int, ...]:
    return tuple(map(sum, zip(*chunks, strict=True)))
