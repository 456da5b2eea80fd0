"""Bounds of a layout's time as long as nothing is known of its memory: from a group of layouts, of which only the time
of a layer is looked at, to one number of virtual stages."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from planner.layout import Layout
from planner.solver import unequal
from planner.solver.bounds import layer_bound, slowest_bound, tail_bound, time_bound
from planner.solver.candidates import Space
from planner.solver.virtual import Virtual, best_virtual, longest_stage
from planner.timing.form import NO_BUBBLE, StepForm
from planner.timing.interface import StepTiming


class TimeBounds:
    """Lower bounds of the step time of the layouts of a space; keeps what they share."""

    def __init__(self, space: Space, timing: StepTiming, fixed_split: bool):
        self._space, self._timing, self._fixed_split = space, timing, fixed_split
        self._counts = space.model.kind_counts
        self._layer_ns: dict[tuple, tuple[int, ...]] = {}
        self._interleaved: dict[tuple[int, int], tuple[StepForm, StepForm]] = {}
        self._fills = space.implementation.schedule != "1f1b"
        """Whether the schedule fills the bubble, how much is known of each layout; then it has no virtual stages."""

    def group(self, group: Layout) -> int:
        """For all variants of a group [ns]."""
        shard = (group.tp, group.cp, group.ep, group.etp, group.micro_batch, group.sequence_parallel)
        layer_ns = self._layer_ns.get(shard)
        if layer_ns is None:
            form = self._timing.form(group)
            layer_ns = tuple(map(min, *{s.layer_ns for s in form.stages}, form.stages[0].layer_ns))
            self._layer_ns[shard] = layer_ns
        return self._by_layer(group, layer_ns)

    def floor(self, group: Layout) -> int:
        """The same with the least time of a layer under any degrees of its experts [ns]."""
        shard = (group.tp, group.cp, group.micro_batch, group.sequence_parallel)
        layer_ns = self._layer_ns.get(shard)
        if layer_ns is None:
            layer_ns = self._layer_ns[shard] = self._timing.layer_floor_ns(group)
        return self._by_layer(group, layer_ns)

    def mixed_group(self, group: Layout) -> int:
        """The same on several kinds of nodes, whose stages have layer times of their own [ns]."""
        form = self._timing.form(group)
        most = max(vpp for vpp, _ in self._best_virtual(group))
        return unequal.layer_bound(form, self._counts, form.num_microbatches, most)

    def variant(self, layout: Layout) -> int:
        """With this ZeRO stage and recomputation, at the best number of virtual stages [ns]."""
        plain, interleaved = self._forms(layout)
        full = layout.recompute.granularity == "full"
        bounds = []
        if interleaved is None or 1 in self._space.virtual_sizes(layout):
            bounds.append(time_bound(plain, self._counts, full))
        if interleaved is not None:
            for vpp, longest in self._best_virtual(layout):
                if vpp > 1:
                    bounds.append(time_bound(replace(interleaved, vpp=vpp), self._counts, full, longest))
        return min(bounds)

    def by_virtual(self, layouts: Sequence[Layout], slowest_ns: int) -> list[tuple[int, Layout]]:
        """Layouts that differ in their virtual stages with a bound of each [ns], the least first and of equals that of
        most stages; without those that cannot share out the layers. No stage is faster than `slowest_ns`."""
        bounds = []
        for layout in layouts:
            longest = 0 if self._fixed_split else longest_stage(sum(self._counts), layout.pp, layout.vpp)
            if longest is None:
                continue
            plain, interleaved = self._forms(layout)
            form = plain if layout.vpp == 1 or interleaved is None else replace(interleaved, vpp=layout.vpp)
            bounds.append((self.layout(layout, slowest_ns, form, longest), layout))
        return sorted(bounds, key=lambda found: (found[0], -found[1].vpp))

    def layout(self, layout: Layout, slowest_ns: int, form: StepForm | None = None, longest: int = 0) -> int:
        """With one number of virtual stages [ns]: no stage is faster than `slowest_ns`, and one holds at least
        `longest` layers. `form` where others than the layout's own coefficients are meant."""
        form = self._timing.form(layout) if form is None else form
        redone = 0
        if layout.recompute.granularity == "full":
            stages = form.stages if form.mixed else form.stages[:1]
            redone = min(t for s in stages for t, n in zip(s.recompute_ns, self._counts, strict=True) if n)
        slowest, total = slowest_bound(form, self._counts, redone, longest)
        return form.makespan_ns(max(slowest, slowest_ns), total) + tail_bound(form, self._counts) + form.once_ns

    def least_form(self, layout: Layout) -> StepForm:
        """No number of virtual stages takes a stage less time: a send may cost more without them."""
        plain, interleaved = self._forms(layout)
        if interleaved is None:
            return plain
        pairs = zip(plain.stages, interleaved.stages, strict=True)
        return replace(plain, stages=tuple([a if a.fixed_ns <= b.fixed_ns else b for a, b in pairs]))

    def _by_layer(self, group: Layout, layer_ns: tuple[int, ...]) -> int:
        microbatches = group.num_microbatches(self._space.workload.global_batch)
        return layer_bound(layer_ns, self._counts, microbatches, group.pp, self._best_virtual(group))

    def _best_virtual(self, group: Layout) -> Sequence[Virtual]:
        """What no number of virtual stages, and no schedule, does better than."""
        layers, sizes = sum(self._counts), self._space.virtual_sizes(group)
        found = () if self._fixed_split or self._fills else best_virtual(layers, group.pp, sizes)
        if found:
            return found
        most = NO_BUBBLE if self._fills else max(sizes, default=1)
        return (Virtual(most, -(-layers // group.pp)),)

    def _forms(self, layout: Layout) -> tuple[StepForm, StepForm | None]:
        """Coefficients with one virtual stage, and the least with several: the fixed time of two, the tails of most."""
        plain = self._timing.form(layout if layout.vpp == 1 else replace(layout, vpp=1))
        most = max(self._space.virtual_sizes(layout), default=1)
        if most == 1:
            return plain, None
        # a form is one object for all layouts that it is the form of, and is kept
        key = (id(plain), most)
        found = self._interleaved.get(key)
        if found is None:
            two = self._timing.form(replace(layout, vpp=2))
            tails = [stage.tails for stage in self._timing.form(replace(layout, vpp=most)).stages]
            stages = tuple([replace(a, tails=b) for a, b in zip(two.stages, tails, strict=True)])
            found = self._interleaved[key] = plain, replace(two, stages=stages)
        return found
