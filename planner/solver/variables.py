"""The unknowns of a stage split, asked in the words of the problem: layers of a kind in a chunk, recomputed layers, ...

The wrapper owns every solver variable, so that the constraints contain no index arithmetic.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

from ortools.sat.python import cp_model

from planner.solver.problem import Split, SplitProblem

Linear = Any
"""A number or an OR-Tools expression; its stubs do not let sums of both keep a type."""


class SplitVariables:
    """Integer layers of each slice and integer recomputed layers of each stage.

    With one kind of layer the counts are the slices themselves. With several, a slice is an interval of the model, and
    its count of a kind is the difference of the kind's running count at the two edges.
    """

    def __init__(self, model: cp_model.CpModel, problem: SplitProblem):
        self.model = model
        self.problem = problem
        self.num_slices = problem.pp * problem.vpp
        layers = problem.layers
        fixed = problem.fixed_slices or ()
        self.slices = [
            model.new_int_var(
                min(problem.minimum(c), *fixed[c : c + 1], layers),
                max(problem.maximum, *fixed[c : c + 1], 0),
                f"layers_of_slice_{c}",
            )
            for c in range(self.num_slices)
        ]
        if problem.vpp > 1 and not fixed:
            self._equal_chunks()
        most = layers if problem.may_recompute else 0
        self.redo = [model.new_int_var(0, most, f"recomputed_on_stage_{s}") for s in range(problem.pp)]
        self._redone_in_slice = self._redone_slices()
        self._layers, self._recomputed = self._by_kind()
        self._indicators: dict[tuple[str, int, int], cp_model.IntVar] = {}
        self._held, self._redone = self._stage_totals()

    def layers_of(self, stage: int, chunk: int, kind: int) -> Linear:
        """Layers of a kind in one chunk of a stage."""
        return self._layers[chunk * self.problem.pp + stage][kind]

    def recomputed_of(self, stage: int, chunk: int, kind: int) -> Linear:
        """Recomputed layers of a kind in one chunk of a stage."""
        return self._recomputed[chunk * self.problem.pp + stage][kind]

    def stage_layers(self, stage: int, kind: int) -> Linear:
        """Layers of a kind on a stage."""
        return self._held[stage][kind]

    def stage_recomputed(self, stage: int, kind: int) -> Linear:
        """Recomputed layers of a kind on a stage."""
        return self._redone[stage][kind]

    def recomputes_any(self, stage: int, kind: int) -> cp_model.IntVar:
        """Whether the stage recomputes any layer of a kind."""
        return self._indicator("recomputes", stage, kind, self.stage_recomputed(stage, kind))

    def holds_any(self, stage: int, kind: int) -> cp_model.IntVar:
        """Whether the stage holds any layer of a kind."""
        return self._indicator("holds", stage, kind, self.stage_layers(stage, kind))

    def value(self, solver: cp_model.CpSolver) -> Split:
        """The split that the solver found."""
        slices = tuple(solver.value(n) for n in self.slices)
        return Split(slices, tuple(solver.value(r) for r in self.redo))

    def hint(self, split: Split) -> None:
        """Start from a known split."""
        hinted = set()
        for variable, value in zip((*self.slices, *self.redo), (*split.slices, *split.recomputed), strict=True):
            if variable.index not in hinted:  # a stage's equal chunks are one variable
                hinted.add(variable.index)
                self.model.add_hint(variable, value)

    def _equal_chunks(self) -> None:
        """A stage's chunks hold as many layers, but for the model's first and last chunk, which may hold fewer."""
        ends = (0, self.num_slices - 1)
        for stage in range(self.problem.pp):
            edges = [c for c in range(stage, self.num_slices, self.problem.pp) if c in ends]
            chunks = [c for c in range(stage, self.num_slices, self.problem.pp) if c not in ends]
            for c in edges:
                self.model.add(self.slices[c] <= self.slices[chunks[0]])
            for c in chunks:
                self.slices[c] = self.slices[chunks[0]]

    def _redone_slices(self) -> list[Linear]:
        """Recomputed layers of each slice: a stage repeats its first layers, so a chunk begins when the one before it
        is recomputed whole."""
        problem, model = self.problem, self.model
        if not problem.may_recompute:
            return [0] * self.num_slices
        if problem.vpp == 1:
            for n, redo in zip(self.slices, self.redo, strict=True):
                model.add(redo <= n)
            return list(self.redo)
        redone = [model.new_int_var(0, problem.layers, f"recomputed_of_slice_{c}") for c in range(self.num_slices)]
        for stage in range(problem.pp):
            chunks = range(stage, self.num_slices, problem.pp)
            model.add(sum(redone[c] for c in chunks) == self.redo[stage])
            for c in chunks:
                model.add(redone[c] <= self.slices[c])
            for before, c in pairwise(chunks):
                whole = model.new_bool_var(f"recomputed_whole_{before}")
                model.add(redone[before] >= self.slices[before]).only_enforce_if(whole)
                model.add(redone[c] <= problem.layers * whole)
        return redone

    def _by_kind(self) -> tuple[list[list[Linear]], list[list[Linear]]]:
        if self.problem.kinds == 1:
            return [[n] for n in self.slices], [[r] for r in self._redone_in_slice]
        layers: list[list[Linear]] = []
        recomputed: list[list[Linear]] = []
        start: Linear = 0
        before = self._running_counts(start, "start")
        for index, n in enumerate(self.slices):
            stop = self.model.new_int_var(0, self.problem.layers, f"edge_{index}")
            self.model.add(stop == start + n)
            after = self._running_counts(stop, f"edge_{index}")
            layers.append([b - a for a, b in zip(before, after, strict=True)])
            if self.problem.may_recompute:
                redone = self._running_counts(start + self._redone_in_slice[index], f"redone_{index}")
                recomputed.append([b - a for a, b in zip(before, redone, strict=True)])
            else:
                recomputed.append([0] * self.problem.kinds)
            start, before = stop, after
        return layers, recomputed

    def _running_counts(self, position: Linear, name: str) -> list[Linear]:
        """Layers of each kind among the first `position`; the last kind is what the others leave."""
        if isinstance(position, int):
            return [row[position] for row in self.problem.cumulative]
        counts: list[Linear] = []
        for kind, row in enumerate(self.problem.cumulative[:-1]):
            count = self.model.new_int_var(0, row[-1], f"{name}_kind_{kind}")
            self.model.add_element(position, list(row), count)
            counts.append(count)
        counts.append(position - sum(counts))
        return counts

    def _stage_totals(self) -> tuple[list[list[Linear]], list[list[Linear]]]:
        """Layers and recomputed layers of each stage, [stage][kind]. Of several kinds over several chunks they are
        unknowns of their own: all that time asks for is these few numbers, and a proof gets on by deciding them."""
        problem = self.problem
        stages, kinds = range(problem.pp), range(problem.kinds)
        held, redone = (
            [[sum(table[c][k] for c in range(s, self.num_slices, problem.pp)) for k in kinds] for s in stages]
            for table in (self._layers, self._recomputed)
        )
        if problem.kinds == 1 or problem.vpp == 1:
            return held, redone
        for what, table in (("layers", held), ("recomputed", redone)):
            for stage, row in enumerate(table):
                for kind, total in enumerate(row):
                    if isinstance(total, int):
                        continue
                    row[kind] = self.model.new_int_var(0, problem.kind_counts[kind], f"{what}_{stage}_kind_{kind}")
                    self.model.add(row[kind] == total)
        for kind in kinds:
            self.model.add(sum(row[kind] for row in held) == problem.kind_counts[kind])
        return held, redone

    def _indicator(self, what: str, stage: int, kind: int, count: Linear) -> cp_model.IntVar:
        key = (what, stage, kind)
        if key not in self._indicators:
            boolean = self.model.new_bool_var(f"{what}_{stage}_{kind}")
            # One-sided: more memory is never wanted, so the solver sets it only where it must.
            self.model.add(count <= self.problem.layers * boolean)
            self._indicators[key] = boolean
        return self._indicators[key]
