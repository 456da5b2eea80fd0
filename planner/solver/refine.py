"""Looking closer at a part of the space: from a group of layouts to one layout whose split can be solved.

Each step has a bound at least as sharp as the last. What the bounds take for granted of accounting and timing, and
tests hold them to:

- a layer's time depends on tp, cp, ep, etp, micro-batch and recomputation only; ZeRO 2 and 3 add to it
- virtual stages leave a layer's time alone; two of them cost a stage no more fixed time than any more do, and the more
  there are, the more of the tails is hidden
- recomputation never makes a layer faster, naming more modules neither
- the interleaved schedule, with even chunks, never lowers a stage's peak below that of plain 1F1B with the same layers
- no recomputation keeps less of a layer until its backward pass than full recomputation does, nor a set of modules
  less than a larger set
- a larger micro-batch never lowers a stage's peak, at the same degrees
- a stage between the ends takes as long as the one before it with the same layers, and needs no more memory
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import replace

from planner.layout import Layout, Recompute
from planner.memory.form import StageForm
from planner.memory.interface import Accounting
from planner.solver.bounds import chunked_slowest
from planner.solver.candidates import Space
from planner.solver.fill import could_fit, least_slowest, split_bound
from planner.solver.linear import LinearMoment, LinearMoments
from planner.solver.micro_batches import FittingMicroBatches
from planner.solver.node import Level, Node, simplicity
from planner.solver.problem import Lazy, SplitProblem
from planner.solver.times import TimeBounds
from planner.stages import split_from_counts
from planner.timing.form import StepForm
from planner.timing.interface import StepTiming
from planner.topology.kinds import mixed

ROUNDED_NS = 16
"""A layer's time is the sum of its parts, each rounded up to nanoseconds: two that are equal differ by less."""
FULL = Layout(recompute=Recompute("full"))


class Refiner:
    """Makes the nodes of one search and keeps what they share."""

    def __init__(self, space: Space, accounting: Accounting, timing: StepTiming):
        self.space, self.accounting, self.timing = space, accounting, timing
        self.model = space.model
        self.kinds = len(self.model.layer_kinds)
        self.counts = self.model.kind_counts
        self.fixed_slices: tuple[int, ...] | None = None
        if space.pins.stage_layers is not None:
            stages = split_from_counts(self.model, space.pins.stage_layers)
            self.fixed_slices = tuple(stage[v].num_layers for v in range(len(stages[0])) for stage in stages)
        self.statistics: dict[str, int | float] = dict.fromkeys(
            ("groups", "refined", "pruned_by_memory", "problems", "effort"), 0
        )
        self._times = TimeBounds(space, timing, self.fixed_slices is not None)
        self._holding: defaultdict[tuple, FittingMicroBatches] = defaultdict(FittingMicroBatches)
        self._lean: defaultdict[tuple, FittingMicroBatches] = defaultdict(FittingMicroBatches)
        self._linear = LinearMoments(self.kinds)
        self._moments: dict[tuple[int, int], tuple[object, tuple[LinearMoment, ...]]] = {}
        self._smallest: dict[tuple, int] = {}
        self.complete = True
        """Whether the roots were all made."""

    def roots(self, until: float | None = None) -> list[Node]:
        """Every group of degrees and micro-batch, bounded by the time of its layers alone: where there are experts, by
        the least time under any of their degrees, so that only what could win is timed by itself. The list is cut short
        (and `complete` false) where the monotonic clock comes to `until`."""
        nodes = []
        level, bound = Level.GROUP, self._times.group
        if mixed(self.space.cluster):
            bound = self._times.mixed_group
        elif self.model.is_moe:
            level, bound = Level.FLOOR, self._times.floor
        for group in self.space.groups():
            if until is not None and time.monotonic() > until:
                self.complete = False
                break
            family = _family(group)
            self._smallest[family] = min(group.micro_batch, self._smallest.get(family, group.micro_batch))
            nodes.append(Node(bound(group), simplicity(group), level, group))
        self.statistics["groups"] = len(nodes)
        return nodes

    def refine(self, node: Node, cutoff_ns: int | None = None) -> Iterator[Node]:
        """What is one step below a node, without what is proved slower than the cutoff."""
        self.statistics["refined"] += 1
        match node.level:
            case Level.FLOOR:
                bound = max(node.bound_ns, self._times.group(node.layout))
                yield replace(node, bound_ns=bound, level=Level.GROUP)
            case Level.GROUP:
                for sharded in self.space.extend(node.layout, "zero"):
                    for layout in self.space.extend(sharded, "hsdp_replicas"):
                        yield from self._zero(replace(node, layout=layout))
            case Level.RECOMPUTE:
                yield from self._recompute(node)
            case Level.FILLED:
                yield from self._filled(node)
            case Level.VIRTUAL:
                yield from self._virtual(node, cutoff_ns)

    def lean(self, node: Node) -> Node | None:
        """One variant of a group that needs little memory, ready to be solved; None where it does not fit."""
        sharded = list(self.space.extend(node.layout, "zero"))
        sharded = list(self.space.extend(sharded[-1], "hsdp_replicas")) if sharded else []
        sharded.sort(key=lambda x: -x.hsdp_replicas)
        modes = list(self.space.extend(sharded[-1], "recompute")) if sharded else []
        for layout in self.space.extend(modes[-1], "vpp") if modes else ():
            problem = self.problem(layout)
            if split_bound(problem) is None:
                return None
            return Node(node.bound_ns, simplicity(layout), Level.SOLVE, layout, problem)
        return None

    def _zero(self, node: Node) -> Iterator[Node]:
        """No recomputation first, since all others are slower; without it, all that nothing simpler leads to."""
        modes = tuple(self.space.extend(node.layout, "recompute"))
        plain = [x for x in modes if x.recompute.granularity == "none"]
        for layout in plain or self._simplest(modes):
            yield Node(node.bound_ns, simplicity(layout), Level.RECOMPUTE, layout, modes=modes)

    @staticmethod
    def _simplest(modes: Sequence[Layout]) -> list[Layout]:
        """Full recomputation, and each module alone (or a set of which no module may be named alone)."""
        alone = {x.recompute.modules for x in modes if len(x.recompute.modules) == 1}
        return [
            x
            for x in modes
            if x.recompute.granularity != "none"
            and (len(x.recompute.modules) < 2 or not any((module,) in alone for module in x.recompute.modules))
        ]

    def _recompute(self, node: Node) -> Iterator[Node]:
        """Time with this recomputation, at the best number of virtual stages, as if memory were free."""
        if self._known_too_large(node.layout):
            self.statistics["pruned_by_memory"] += 1
            yield from self._slower_modes(node, too_large=True)
            return
        # also of what recomputes more, whose parts may be rounded up by less
        microbatches = node.layout.num_microbatches(self.space.workload.global_batch)
        rounded = ROUNDED_NS * microbatches * self.model.num_layers
        bound = max(node.bound_ns, self._times.variant(node.layout) - rounded)
        yield replace(node, bound_ns=bound, level=Level.FILLED)

    def _filled(self, node: Node) -> Iterator[Node]:
        """The same with memory, filled as if there were no virtual stages; then each number of virtual stages."""
        slowest: int | None = 0
        if self.fixed_slices is None and self._plain_bounds(node.layout):
            slowest = None
            if self._could_hold(node.layout):
                eased = self.problem(node.layout, self._times.least_form(node.layout))
                slowest = least_slowest(eased)
                self._holding[_sharding(node.layout)].note(node.layout.micro_batch, slowest is not None)
        yield from self._slower_modes(node, slowest is None)
        if slowest is None:
            self.statistics["pruned_by_memory"] += 1
            return
        layouts = list(self.space.extend(node.layout, "vpp"))
        for chain in ([x for x in layouts if x.vpp == 1], [x for x in layouts if x.vpp > 1]):
            virtual = tuple(self._times.by_virtual(chain, slowest))
            yield from self._next_virtual(replace(node, virtual=virtual, slowest_ns=slowest))

    @staticmethod
    def _next_virtual(node: Node) -> Iterator[Node]:
        """The number of virtual stages whose bound is least of those left."""
        if node.virtual:
            (bound, layout), *rest = node.virtual
            bound, key = max(node.bound_ns, bound), simplicity(layout)
            yield Node(bound, key, Level.VIRTUAL, layout, None, node.slowest_ns, virtual=tuple(rest))

    def _virtual(self, node: Node, cutoff_ns: int | None) -> Iterator[Node]:
        """One layout: its own time, then its own memory."""
        if node.virtual:
            yield from self._next_virtual(node)
            node = replace(node, virtual=())
        form, slowest = self.timing.form(node.layout), node.slowest_ns
        if node.layout.vpp > 1 and self.fixed_slices is None:
            used = tuple([kind for kind, n in enumerate(self.counts) if n])
            chunked = chunked_slowest(form, self.model.num_layers, node.layout.vpp, used)
            if chunked is None:
                return
            slowest = max(slowest, chunked)
        bound = max(node.bound_ns, self._times.layout(node.layout, slowest))
        if bound > node.bound_ns:
            yield replace(node, bound_ns=bound)
            return
        problem = self.problem(node.layout)
        plain = None
        if problem.vpp > 1 and self._plain_bounds(node.layout):
            plain = self.problem(replace(node.layout, vpp=1), problem.step)  # its memory is meant
        sharper = split_bound(problem, plain, cutoff_ns)
        if sharper is None:
            self.statistics["pruned_by_memory"] += 1
            return
        yield Node(max(bound, sharper), node.key, Level.SOLVE, node.layout, problem)

    def _slower_modes(self, node: Node, too_large: bool) -> Iterator[Node]:
        """What recomputes more: after none the simplest modes, after a set of modules each set with one more."""
        r, modes = node.layout.recompute, node.modes
        more: Sequence[Layout] = ()
        if r.granularity == "none":
            if too_large:
                node = replace(node, modes=self._leaner(modes, self.timing.form(node.layout)))
            more = self._simplest(node.modes)
        elif r.granularity == "selective":
            more = [x for x in modes if x.recompute.modules[:-1] == r.modules]
        for layout in more:
            yield replace(node, key=simplicity(layout), level=Level.RECOMPUTE, layout=layout)

    def _leaner(self, modes: tuple[Layout, ...], step: StepForm) -> tuple[Layout, ...]:
        """The modes that could fit where keeping everything does not. No mode keeps less of a layer than the largest
        sets of modules that include it do, and none less than full recomputation: where these do not fit even
        without what rebuilding a layer takes, nothing does. Only bytes are judged: the times may be those of `step`."""
        if self.fixed_slices is not None or not self._plain_bounds():
            return modes
        full = [x for x in modes if x.recompute.granularity == "full"]
        if not all(self._leanest_fits(x, step) for x in full):
            self.statistics["pruned_by_memory"] += 1
            return ()
        named = [x for x in modes if x.recompute.granularity == "selective"]
        modules = {x: set(x.recompute.modules) for x in named}
        largest = [x for x in named if not any(modules[x] < modules[y] for y in named)]
        fitting = [modules[x] for x in largest if self._leanest_fits(x, step)]
        return (*[x for x in named if any(modules[x] <= most for most in fitting)], *full)

    def nothing_fits(self, full: Layout, step: StepForm | None = None) -> bool:
        """Whether no recomputation of a layout fits, judged by this full one. Without being known it is False."""
        if self.fixed_slices is not None or not self._plain_bounds():
            return False
        return not self._leanest_fits(full, step)

    def _leanest_fits(self, layout: Layout, step: StepForm | None = None) -> bool:
        """Whether a layout could fit without what rebuilding a layer takes."""

        def fits(micro_batch: int) -> bool:
            tried = layout if micro_batch == layout.micro_batch else replace(layout, micro_batch=micro_batch)
            return could_fit(self.problem(tried, step or self.timing.form(layout)), lenient=True)

        smallest = self._smallest.get(_family(layout), layout.micro_batch)
        return self._lean[_sharding(layout)].judge(layout.micro_batch, smallest, fits)

    def _known_too_large(self, layout: Layout) -> bool:
        """Whether this micro-batch or a smaller one was found not to fit."""
        return self._holding[_sharding(layout)].known(layout.micro_batch) is False

    def _plain_bounds(self, layout: Layout = FULL) -> bool:
        """Whether memory without virtual stages bounds that with them."""
        return layout.recompute.granularity != "full" or self.accounting.chunks_save_nothing

    def _could_hold(self, layout: Layout) -> bool:
        """Whether the group's memory could hold the model at this micro-batch, judged at smaller ones."""

        def fits(micro_batch: int) -> bool:
            smaller = replace(layout, micro_batch=micro_batch)
            return could_fit(self.problem(smaller, self.timing.form(layout)))

        known = self._holding[_sharding(layout)]
        smallest = self._smallest.get(_family(layout), layout.micro_batch)
        if smallest < layout.micro_batch:
            known.judge(layout.micro_batch // 2, smallest, fits)
        return known.known(layout.micro_batch) is not False

    def problem(self, layout: Layout, step: StepForm | None = None) -> SplitProblem:
        """The inner problem of a layout; `step` where another layout's time is meant."""
        self.statistics["problems"] += 1
        forms = Lazy(layout.pp, lambda stage: self.accounting.form(layout, stage))

        def stage_limit(stage: int) -> int:
            return self.accounting.stage_capacity_bytes(layout, stage) - forms[stage].padding_bytes

        full = layout.recompute.granularity == "full"
        return SplitProblem(
            pattern=self.model.pattern,
            kinds=self.kinds,
            pp=layout.pp,
            vpp=layout.vpp,
            step=self.timing.form(layout) if step is None else step,
            moments=Lazy(layout.pp, lambda stage: self._stage_moments(layout.vpp, forms[stage])),
            limits=Lazy(layout.pp, stage_limit),
            may_recompute=full,
            must_recompute=full,
            fixed_slices=self.fixed_slices,
        )

    def _stage_moments(self, vpp: int, form: StageForm) -> tuple[LinearMoment, ...]:
        key = (id(form), vpp)
        if key not in self._moments:
            self._moments[key] = (form, self._linear.of(form, vpp))
            self.statistics["effort"] += vpp
        return self._moments[key][1]


def _sharding(layout: Layout) -> tuple[object, ...]:
    """All that memory depends on but the micro-batch, without virtual stages."""
    return (_family(layout), layout.zero, layout.hsdp_replicas, layout.recompute)


def _family(layout: Layout) -> tuple[object, ...]:
    """All degrees but the micro-batch, and what they stand on."""
    return (layout.tp, layout.cp, layout.pp, layout.ep, layout.etp, layout.sequence_parallel, layout.placement)
