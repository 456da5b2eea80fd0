"""The memory of a stage as linear forms of its layers: each moment's terms added up, dominated moments left out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain
from operator import add, ge
from typing import Any, NamedTuple

from planner.memory.form import Counts, StageForm, Sums

Matrix = tuple[tuple[int, ...], ...]
FEW_MOMENTS = 16
"""Up to so many are added up and compared one by one, which is faster than to make arrays of them."""


class LinearMoment(NamedTuple):
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


class LinearMoments:
    """Makes them, with terms that stages have in common laid out once.

    A row is the coefficients of one moment: fixed, of layers [chunk][kind], of recomputed layers, if any of a kind is
    recomputed, if any is held.
    """

    def __init__(self, kinds: int):
        self._kinds = kinds
        self._rows: dict[tuple[int, int], tuple[object, tuple[int, ...]]] = {}
        self._stacked: dict[tuple[int, ...], tuple[object, Any]] = {}

    def of(self, form: StageForm, chunks: int) -> tuple[LinearMoment, ...]:
        """The moments of a form that no other covers in every term."""
        always = self._sum(chain.from_iterable([(1, sums)] for _, sums in form.always.sums), chunks)
        count = sum(len(flight.moments.each) for flight in form.flights) + len(form.alone)
        if count <= FEW_MOMENTS:
            rows: dict[tuple[int, ...], None] = {}
            for flight in form.flights:
                kept = self._plus(always, [(n, unit.sums) for n, unit in flight.kept], chunks)
                for moment in flight.moments.each:
                    rows[self._plus(kept, [(1, moment.own.sums)], chunks)] = None
            for moment in form.alone:
                rows[self._plus(always, [(1, moment.sums)], chunks)] = None
            found = list(rows)
            if len(found) > 1:
                found = [
                    row for row in found if not any(other is not row and all(map(ge, other, row)) for other in found)
                ]
        else:
            found = self._many(form, always, chunks)
        return tuple([self._moment(row, chunks) for row in found])

    def _many(self, form: StageForm, always: tuple[int, ...], chunks: int) -> list[tuple[int, ...]]:
        """The same with arrays: for the many states of an interleaved schedule."""
        import numpy as np

        parts = []
        base = np.array(always, dtype=np.int64)
        for flight in form.flights:
            units = self._stack([unit.sums for _, unit in flight.kept], chunks)
            own = self._stack([moment.own.sums for moment in flight.moments.each], chunks)
            parts.append(own + (base + np.array([n for n, _ in flight.kept], dtype=np.int64) @ units))
        if form.alone:
            parts.append(base + self._stack([moment.sums for moment in form.alone], chunks))
        rows = np.unique(np.concatenate(parts), axis=0)[::-1]  # one that covers another comes before it
        kept = np.ones(len(rows), dtype=bool)
        for index in range(len(rows)):
            if kept[index]:
                covered = (rows[index + 1 :] <= rows[index]).all(axis=1)
                kept[index + 1 :] &= ~covered
        return [tuple(row) for row in rows[kept].tolist()]

    def _stack(self, sums: Sequence[Sums], chunks: int) -> Any:
        import numpy as np

        key = (chunks, *map(id, sums))
        if key not in self._stacked:  # the sums are kept, so that their ids stay theirs
            self._stacked[key] = (sums, np.array([self._row(s, chunks) for s in sums], dtype=np.int64))
        return self._stacked[key][1]

    def _sum(self, sums: Iterable[tuple[int, Sums]], chunks: int) -> tuple[int, ...]:
        return self._plus((0,) * (1 + 2 * (chunks + 1) * self._kinds), sums, chunks)

    def _plus(self, row: tuple[int, ...], sums: Iterable[tuple[int, Sums]], chunks: int) -> tuple[int, ...]:
        for n, s in sums:
            more = self._row(s, chunks)
            row = tuple(map(add, row, more)) if n == 1 else tuple([a + n * b for a, b in zip(row, more, strict=True)])
        return row

    def _row(self, sums: Sums, chunks: int) -> tuple[int, ...]:
        key = (id(sums), chunks)
        found = self._rows.get(key)
        if found is None:
            kinds = self._kinds
            row = [0] * (1 + 2 * (chunks + 1) * kinds)
            row[0] = sums.fixed
            for start, entries in ((1, sums.layer), (1 + chunks * kinds, sums.recomputed)):
                for chunk, kind, size in entries:
                    row[start + chunk * kinds + kind] += size
            for start, once in (
                (1 + 2 * chunks * kinds, sums.if_recomputed),
                (1 + (2 * chunks + 1) * kinds, sums.if_layer),
            ):
                for kind, size in once:
                    row[start + kind] += size
            found = self._rows[key] = (sums, tuple(row))
        return found[1]

    def _moment(self, row: tuple[int, ...], chunks: int) -> LinearMoment:
        kinds = self._kinds
        each = [row[start : start + kinds] for start in range(1, len(row), kinds)]
        return LinearMoment(row[0], tuple(each[:chunks]), tuple(each[chunks : 2 * chunks]), each[-2], each[-1])
