"""Why nothing fits: facts that alone are infeasible, each of them necessary.

The facts are parts of the memory. Beginning with all parts, one after another is taken away; a part whose absence still
leaves nothing that fits was not the reason. What remains overflows every layout, and dropping any one of them would
make room.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from planner.cluster import Cluster
from planner.layout import FULL, Layout, described
from planner.memory.counts import stage_counts
from planner.memory.form import Always, Component, Counts, Moment, StageForm, multiplier
from planner.memory.interface import Accounting
from planner.rules import RULES, Rule, broken_rules
from planner.rules.world import WORLD
from planner.solver.accounting_view import AccountingView
from planner.solver.all_gpus import too_much_for_all
from planner.solver.candidates import FULL_BLOCK, Space
from planner.solver.fill import least_slowest, split_bound
from planner.solver.refine import Refiner
from planner.solver.result import Fact
from planner.solver.shares import shared_out
from planner.solver.split import EFFORTS, solve_split
from planner.stages import split_from_counts
from planner.timing.interface import StepTiming
from planner.topology.kinds import mixed
from planner.topology.standing import standing

REMOVAL: tuple[Component, ...] = ("reserve", "buffers", "logits", "activations", "gradients", "optimizer", "weights")
"""The order in which parts are tried away: what matters least to the argument first."""
WORDS: dict[str, str] = {
    "weights": "weights",
    "gradients": "gradients",
    "optimizer": "optimizer states",
    "activations": "activations of the microbatches in flight",
    "logits": "logits and loss",
    "buffers": "buffers and temporaries",
    "reserve": "the reserve for CUDA, NCCL and fragmentation",
}
DIVIDED_FROM = {"weights": 3, "gradients": 2, "optimizer": 1}
"""The ZeRO stage that first divides a state over the data-parallel ranks."""


UNCHECKED = Fact(
    "unchecked",
    "the time limit came before each of these parts was shown to be needed; a larger --time-limit may leave fewer",
)


class TimeUp(Exception):
    """The monotonic clock came to what was allowed."""


@dataclass(frozen=True)
class Filtered(AccountingView):
    """An accounting that sees some components only."""

    kept: frozenset[Component]

    def form(self, layout: Layout, stage: int) -> StageForm:
        form = self.accounting.form(layout, stage)
        additions = tuple(Moment(m.name, tuple(t for t in m.terms if t.component in self.kept)) for m in form.additions)
        always = Always(tuple(t for t in form.always.terms if t.component in self.kept))
        return StageForm(additions, form.padding_bytes if "optimizer" in self.kept else 0, always)

    def least_held(self, zero: int, gpus: int) -> Mapping[Component, int]:
        return {c: n for c, n in self.accounting.least_held(zero, gpus).items() if c in self.kept}


def facts(space: Space, accounting: Accounting, timing: StepTiming, until: float | None = None) -> tuple[Fact, ...]:
    """Why no layout of the space fits; the space must be infeasible. Where the monotonic clock comes to `until`, parts
    that were not tried yet are told with the rest, and UNCHECKED with them."""
    sharded = _leanest_sharded(space)
    layouts = [layout for each in sharded for layout in _most_recomputed(space, each)]
    if not layouts:
        return no_legal_layout(space)
    kept = frozenset(REMOVAL)
    late = False
    try:
        for component in REMOVAL:
            without = kept - {component}
            if _first_that_fits(space, Filtered(accounting, without), timing, sharded, until) is None:
                kept = without
    except TimeUp:
        late = True
    needed = Filtered(accounting, kept)
    told = list(_told(space, needed, min(layouts, key=lambda layout: _missing(space, needed, layout)[0])))
    try:
        if not late:
            told += _elsewhere(space, needed, timing, sharded, {fact.id for fact in told}, until)
    except TimeUp:
        late = True
    return (*told, UNCHECKED) if late else tuple(told)


def fits_with(
    space: Space, accounting: Accounting, timing: StepTiming, kept: frozenset[Component], until: float | None = None
) -> bool:
    """Whether any layout of the space fits when only these components are counted. Raises TimeUp."""
    return first_that_fits(space, Filtered(accounting, kept), timing, until) is not None


def first_that_fits(
    space: Space, accounting: Accounting, timing: StepTiming, until: float | None = None
) -> Layout | None:
    """One of the leanest layouts of the space that fits, its split left open; None where nothing does. Raises TimeUp
    when the monotonic clock comes to `until`."""
    return _first_that_fits(space, accounting, timing, _leanest_sharded(space), until)


def leanest(space: Space) -> list[Layout]:
    """The variants that need least memory: the smallest micro-batch and the fewest virtual stages of every choice of
    degrees, under every ZeRO stage and recomputation."""
    layouts = [layout for sharded in _leanest_sharded(space) for layout in _recomputed(space, sharded)]
    # Full recomputation and much sharding first: where anything fits, they do.
    layouts.sort(key=lambda x: (x.recompute.granularity != "full", *_sharding_order(x)))
    return layouts


def _leanest_sharded(space: Space) -> list[Layout]:
    """The same without their recomputation."""
    smallest: dict[tuple[object, ...], Layout] = {}
    for group in space.groups():
        key = (group.tp, group.cp, group.pp, group.ep, group.etp, group.sequence_parallel, group.placement)
        known = smallest.get(key)
        if known is None or group.micro_batch < known.micro_batch:
            smallest[key] = group
    groups = filter(space.has_virtual, smallest.values())
    sharded = (x for group in groups for each in space.extend(group, "zero") for x in _over_most_ranks(space, each))
    return sorted(sharded, key=_sharding_order)


def _over_most_ranks(space: Space, layout: Layout) -> list[Layout]:
    """The layout with the fewest legal replicas of its shards."""
    return sorted(space.extend(layout, "hsdp_replicas"), key=lambda x: x.hsdp_replicas)[:1]


def _sharding_order(layout: Layout) -> tuple[int, ...]:
    return (-layout.zero, -layout.tp * layout.pp, layout.tp, layout.cp, layout.ep, layout.etp)


def _recomputed(space: Space, sharded: Layout) -> Iterator[Layout]:
    """The layout under every legal recomputation, full recomputation first."""
    modes = sorted(space.extend(sharded, "recompute"), key=lambda x: x.recompute.granularity != "full")
    for layout in modes:
        virtual = next(space.extend(layout, "vpp"), None)
        if virtual is not None:
            yield virtual


def _most_recomputed(space: Space, sharded: Layout) -> Iterator[Layout]:
    """Full recomputation alone where it is legal, since nothing needs less; else every mode."""
    modes = list(_recomputed(space, sharded))
    yield from [x for x in modes if x.recompute.granularity == "full"] or modes


def _first_that_fits(
    space: Space, accounting: Accounting, timing: StepTiming, sharded: list[Layout], until: float | None
) -> Layout | None:
    """The first of all variants that fits."""
    if too_much_for_all(space, accounting):
        return None
    refiner = Refiner(space, accounting, timing)
    for each in sharded:
        _look_at_the_clock(until)
        # what does not fit when all is recomputed and no layer needs anything for its turn does not fit at all
        if refiner.nothing_fits(replace(each, recompute=FULL_BLOCK)):
            continue
        for layout in _recomputed(space, each):
            if space.pins.stage_layers is not None:
                if _missing(space, accounting, layout)[0] <= 0:
                    return layout
                continue
            problem = replace(refiner.problem(layout), must_recompute=False)
            if least_slowest(problem) is None:
                continue
            if split_bound(problem) is not None:
                return layout
            if problem.kinds > 1 and layout.pp > 1:  # virtual stages can pick the lighter kind
                for chunked in space.extend(layout, "vpp"):
                    _look_at_the_clock(until)
                    problem = replace(refiner.problem(chunked), must_recompute=False)
                    if split_bound(problem) is not None and solve_split(problem, effort=EFFORTS[0]).split:
                        return chunked
    return None


def _look_at_the_clock(until: float | None) -> None:
    if until is not None and time.monotonic() > until:
        raise TimeUp


def _missing(space: Space, accounting: Accounting, layout: Layout) -> tuple[int, int]:
    """(bytes beyond the capacity, stage) of the fuller end of a pipeline whose layers are shared out evenly, or of the
    fullest stage where the split is pinned, or where cards differ and each has its share."""
    worst = []
    everywhere = layout.placement or space.pins.stage_layers is not None
    for stage in range(layout.pp) if everywhere else sorted({0, layout.pp - 1}):
        needed = sum(_peak(accounting.form(layout, stage), _counts(space, accounting, layout, stage)).values())
        worst.append((needed - accounting.stage_capacity_bytes(layout, stage), stage))
    return max(worst)


def _counts(space: Space, accounting: Accounting, layout: Layout, stage: int) -> Counts:
    """The pinned split, else even shares, or on a mixed cluster layers in proportion to the room that the stages' cards
    have for them."""
    if space.pins.stage_layers is not None:
        redone = FULL if layout.recompute.granularity == "full" else layout.recompute  # of every layer, as below
        stages = split_from_counts(space.model, space.pins.stage_layers)
        return stage_counts(space.model, replace(layout, stages=stages, recompute=redone), stage)
    if not layout.placement:
        return _even_counts(space, layout, stage)
    pattern, kinds = space.model.pattern, range(len(space.model.layer_kinds))
    mean = Counter(pattern)
    again = layout.recompute.granularity == "full"

    def held(layers: Sequence[int]) -> Counts:
        row = tuple(list(layers).count(kind) for kind in kinds)
        none = tuple(0 for _ in kinds)
        rest = (none,) * (layout.vpp - 1)
        return Counts((row, *rest), (row if again else none, *rest))

    common = mean.most_common(1)[0][0]
    rooms = []
    for each in range(layout.pp):
        form, capacity = accounting.form(layout, each), accounting.stage_capacity_bytes(layout, each)
        one, two = (sum(_peak(form, held([common] * n)).values()) for n in (1, 2))
        rooms.append(1 + (capacity - one) / max(1, two - one))
    shares = shared_out(len(pattern), rooms)
    start = sum(shares[:stage])
    return held(pattern[start : start + shares[stage]])


def _even_counts(space: Space, layout: Layout, stage: int) -> Counts:
    pattern, slices = space.model.pattern, layout.pp * layout.vpp
    layers, again = [], []
    for chunk in range(layout.vpp):
        index = chunk * layout.pp + stage
        held = pattern[index * len(pattern) // slices : (index + 1) * len(pattern) // slices]
        row = tuple(held.count(kind) for kind in range(len(space.model.layer_kinds)))
        layers.append(row)
        again.append(row if layout.recompute.granularity == "full" else tuple(0 for _ in row))
    return Counts(tuple(layers), tuple(again))


def _peak(form: StageForm, counts: Counts) -> dict[str, int]:
    """Bytes of each component at the moment with most."""
    peaks = []
    for moment in form.moments:
        components: dict[str, int] = {}
        for term in moment.terms:
            components[term.component] = components.get(term.component, 0) + term.bytes * multiplier(term, counts)
        peaks.append(components)
    return max(peaks, key=lambda components: sum(components.values()))


def _told(space: Space, accounting: Filtered, layout: Layout) -> tuple[Fact, ...]:
    """The facts with their bytes in the layout that misses by least."""
    missing, stage = _missing(space, accounting, layout)
    capacity = accounting.stage_capacity_bytes(layout, stage)
    card = _card(space.cluster, layout, stage)
    where = f"stage {stage} of {layout.pp}" if layout.pp > 1 else "each GPU"
    if layout.placement and layout.pp > 1:
        where += f" (on {card})"
    peak = _peak(accounting.form(layout, stage), _counts(space, accounting, layout, stage))
    parts = sorted(((size, name) for name, size in peak.items() if name in accounting.kept and size), reverse=True)
    told = [
        Fact(
            name,
            f"{where} holds {size / 2**30:.2f} GiB of {WORDS[name]}{_not_divided(name, layout)}",
            {"bytes": size, "stage": stage},
        )
        for size, name in parts
    ]
    less = f"{missing / 2**30:.2f} GiB less than these together, even"
    if missing <= 0:
        less = "which these together leave on no split of the layers, not even"
    told.append(
        Fact(
            "capacity",
            f"each {card} offers {capacity / 2**30:.2f} GiB, {less} in the layout that needs least: "
            f"{described(layout)}",
            {"bytes": capacity, "missing_bytes": missing},
        )
    )
    return tuple(told)


def _elsewhere(
    space: Space, accounting: Filtered, timing: StepTiming, sharded: list[Layout], told: set[str], until: float | None
) -> Iterator[Fact]:
    """Facts about parts that are needed but not alive at the peak that is told of: they rule out other layouts, or the
    same one at another moment. Each is told of a layout that would fit without it."""
    for name in REMOVAL:
        if name not in accounting.kept or name in told:
            continue
        without = Filtered(accounting.accounting, accounting.kept - {name})
        other = _first_that_fits(space, without, timing, sharded, until)
        assert other is not None
        size, stage = max(
            (sum(t.bytes * multiplier(t, counts) for t in moment.terms if t.component == name), -stage)
            for stage in range(other.pp)
            for counts in (_counts(space, accounting, other, stage),)
            for moment in accounting.form(other, stage).moments
        )
        where = f"stage {-stage} of {other.pp}" if other.pp > 1 else "each GPU"
        yield Fact(
            name,
            f"with {described(other)} it would fit, but for {size / 2**30:.2f} GiB of {WORDS[name]} on {where}"
            f"{_not_divided(name, other)}",
            {"bytes": size, "stage": -stage},
        )


def _card(cluster: Cluster, layout: Layout, stage: int) -> str:
    """The card of a stage, the smallest where it has several."""
    if not mixed(cluster):
        return cluster.card.name
    return min(standing(cluster, layout).cards(stage), key=lambda card: card.capacity_bytes - card.reserve_bytes).name


def _not_divided(component: str, layout: Layout) -> str:
    """By what the component is not divided, where it could be."""
    if component not in DIVIDED_FROM:
        return ""
    if layout.world_size == 1:
        return ", which a single GPU can divide by nothing"
    if layout.dp * layout.cp > 1 and layout.zero < DIVIDED_FROM[component]:
        return f", which zero {layout.zero} does not divide over the {layout.dp * layout.cp} data-parallel ranks"
    return ""


def no_legal_layout(space: Space) -> tuple[Fact, ...]:
    """A smallest set of rules that alone leave the pinned degrees no layout: without any one of them there is one."""
    pins, world = space.pins, space.world
    values = {name: pin[0] for name in ("tp", "cp", "pp", "vpp", "ep", "etp", "zero") if (pin := getattr(pins, name))}
    share = values.get("tp", 1) * values.get("cp", 1) * values.get("pp", 1)
    if world % share:
        sentence = f"{world} GPUs cannot be divided by tp x cp x pp = {share}"
        return (Fact("world-size", sentence, {"gpus": world, "share": share}),)
    layout = Layout(
        **values,
        dp=pins.dp[0] if pins.dp else world // share,
        micro_batch=pins.micro_batch[0] if pins.micro_batch else 1,
        sequence_parallel=pins.sequence_parallel[0] if pins.sequence_parallel else values.get("tp", 1) > 1,
    )
    broken = broken_rules(space.model, space.workload, space.implementation, layout, world, space.cluster)
    needed = _needed_rules(space)
    if needed:
        given = {b.id: str(b) for b in broken}
        return tuple(Fact(rule.id, given.get(rule.id, rule.sentence)) for rule in needed)
    # Not even the values can be written down: the degrees do not divide the GPUs, or mean nothing for this model.
    counted = [b for b in broken if b.id == WORLD.id] or broken[:1]
    if counted:
        return tuple(Fact(b.id, str(b)) for b in counted)
    return (Fact("no-layout", f"no layout of {world} GPUs keeps every rule under these pins", {"gpus": world}),)


def _needed_rules(space: Space) -> tuple[Rule, ...]:
    """Of all rules those that are needed to leave nothing, found by taking away one after another, the book's last
    first; none where there is no layout even without rules."""

    def empty(rules: tuple[Rule, ...]) -> bool:
        question = (space.model, space.workload, space.implementation, space.cluster, space.pins)
        return Space(*question, rules=rules).some() is None

    if empty(()):
        return ()
    kept = tuple(RULES)
    for rule in reversed(RULES):
        without = tuple(r for r in kept if r is not rule)
        if empty(without):
            kept = without
    return kept
