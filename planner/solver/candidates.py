"""Every legal choice of degrees: what the pins allow and the rules permit, one axis after another.

Each rule is asked as soon as the last field that it reads is set, so a broken rule cuts everything below it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import combinations

from planner.cluster import Cluster
from planner.implementation import Implementation, recomputed_modules
from planner.layout import NO_RECOMPUTE, SELECTIVE, Layout, Recompute
from planner.model import Model
from planner.rules import RULES, Case, Rule
from planner.rules.rule import divisors
from planner.solver.space import FREE, Pins
from planner.topology.kinds import Placement, mixed, placements
from planner.workload import Workload

__all__ = ["FREE", "FULL_BLOCK", "Pins", "Space", "selective_sets"]

FULL_BLOCK = Recompute("full", method="block")
"""Full recomputation of a number of layers that the split decides, stage by stage."""


@dataclass(frozen=True, slots=True)
class Axis:
    """One field of the layout and the values that it may take once the earlier fields are set."""

    name: str
    values: Callable[[Layout], list]
    rules: tuple[Rule, ...]


class Space:
    """The legal layouts of a model and workload on a cluster, stages undecided.

    A group is a choice of all degrees and the micro-batch; its variants differ in ZeRO stage, recomputation and virtual
    stages. Iteration gives every variant of every group.
    """

    def __init__(
        self,
        model: Model,
        workload: Workload,
        implementation: Implementation,
        cluster: Cluster,
        pins: Pins = FREE,
        rules: tuple[Rule, ...] = RULES,
    ):
        self.model, self.workload, self.implementation = model, workload, implementation
        self.cluster, self.pins = cluster, pins
        self.world = cluster.gpus
        self._selective = selective_sets(model, implementation)
        self._case = Case(model, workload, implementation, Layout(), self.world, cluster)
        waiting = [rule for rule in rules if "stages" not in rule.reads]
        self._always = tuple(rule for rule in waiting if not rule.reads)
        assigned: set[str] = set()
        self._axes: dict[str, Axis] = {}
        values: dict[str, Callable[[Layout], list]] = {
            "tp": lambda x: self._divisors("tp", self.world),
            "cp": lambda x: self._divisors("cp", self.world // x.tp),
            "pp": self._pipeline_sizes,
            "dp": self._data_sizes,
            **({"placement": lambda x: list(self._placements(x))} if mixed(cluster) else {}),
            "sequence_parallel": self._sequence_parallel,
            "ep": self._expert_sizes,
            "etp": self._expert_tensor_sizes,
            "micro_batch": self._micro_batches,
            "zero": self._zero_stages,
            "hsdp_replicas": self._replicas,
            "recompute": self._recomputes,
            "vpp": self._virtual_sizes,
        }
        for name, of in values.items():
            assigned.add(name)
            ready = tuple(r for r in waiting if name in r.reads and set(r.reads) <= assigned)
            self._axes[name] = Axis(name, of, ready)
        self._order = tuple(self._axes)
        degrees = set(self._order[: self._order.index("zero")])
        rules = tuple(r for r in self._axes["vpp"].rules if set(r.reads) <= degrees | {"vpp"})
        read = {"pp"}.union(*(rule.reads for rule in rules)) - {"vpp"}
        self._virtual_rules = tuple(sorted(read)), rules
        self._virtual: dict[tuple, tuple[int, ...]] = {}

    def __iter__(self) -> Iterator[Layout]:
        for group in self.groups():
            yield from self._below(group, self._order.index("zero"), len(self._order))

    def groups(self) -> Iterator[Layout]:
        """Every group, with one virtual stage, no recomputation and ZeRO 0."""
        if all(rule.holds(self._case) for rule in self._always):
            yield from self._below(Layout(), 0, self._order.index("zero"))

    def extend(self, layout: Layout, name: str) -> Iterator[Layout]:
        """The layout with each legal value of one more field."""
        axis, of = self._axes[name], self._case
        for value in axis.values(layout):
            extended = layout.with_field(name, value)
            if axis.rules:
                case = Case(of.model, of.workload, of.implementation, extended, of.world_size, of.cluster)
                if not all(rule.holds(case) for rule in axis.rules):
                    continue
            yield extended

    def _below(self, layout: Layout, depth: int, stop: int) -> Iterator[Layout]:
        if depth == stop:
            yield layout
            return
        for extended in self.extend(layout, self._order[depth]):
            yield from self._below(extended, depth + 1, stop)

    def some(self) -> Layout | None:
        """Some legal layout; None where pins and rules leave none."""
        start, stop = self._order.index("zero"), len(self._order)
        for group in self.groups():
            found = next(self._below(group, start, stop), None) if self.has_virtual(group) else None
            if found is not None:
                return found
        return None

    def has_virtual(self, group: Layout) -> bool:
        """Whether any number of virtual stages is left for a group; without one it has no variant."""
        return bool(self._axes["vpp"].values(group))

    def virtual_sizes(self, group: Layout) -> tuple[int, ...]:
        """The numbers of virtual stages that the degrees of a group allow, ascending; not all need be legal under every
        ZeRO stage and recomputation."""
        read, rules = self._virtual_rules
        key = tuple([getattr(group, name) for name in read])
        found = self._virtual.get(key)
        if found is None:
            of, legal = self._case, []
            for vpp in sorted(self._virtual_sizes(group)):
                layout = group.with_field("vpp", vpp)
                case = Case(of.model, of.workload, of.implementation, layout, of.world_size, of.cluster)
                if all(rule.holds(case) for rule in rules):
                    legal.append(vpp)
            found = self._virtual[key] = tuple(legal)
        return found

    def _pinned(self, name: str, values: list[int]) -> list[int]:
        pins = getattr(self.pins, name)
        return values if pins is None else [v for v in values if v in pins]

    def _divisors(self, name: str, n: int) -> list[int]:
        return self._pinned(name, divisors(n))

    def _pipeline_sizes(self, layout: Layout) -> list[int]:
        most = self.model.num_layers + 2
        return [pp for pp in self._divisors("pp", self.world // (layout.tp * layout.cp)) if pp <= most]

    def _data_sizes(self, layout: Layout) -> list[int]:
        return self._pinned("dp", [self.world // (layout.tp * layout.cp * layout.pp)])

    def _placements(self, layout: Layout) -> tuple[Placement, ...]:
        """The orders of the kinds of nodes, the listed one first; each gives the stages other cards to stand on."""
        given = self.pins.placement
        return placements(self.cluster, layout.pp) if given is None else (given,)

    def _sequence_parallel(self, layout: Layout) -> list[bool]:
        """On wherever it is legal, unless the user says otherwise; what is asked for is left to the rules."""
        pins = self.pins.sequence_parallel
        if pins is not None:
            return sorted(set(pins))
        if layout.tp == 1:
            return [False]
        return [self.workload.seq_length % (layout.tp * layout.cp) == 0]

    def _expert_sizes(self, layout: Layout) -> list[int]:
        if not self.model.is_moe:
            return self._pinned("ep", [1])
        return self._divisors("ep", layout.tp * layout.cp * layout.dp)

    def _expert_tensor_sizes(self, layout: Layout) -> list[int]:
        """Divisors of tp, Megatron's default among them; others only where they are pinned."""
        if not self.model.is_moe:
            return self._pinned("etp", [1])
        return self._divisors("etp", layout.tp) if self.pins.etp is None else sorted(set(self.pins.etp))

    def _micro_batches(self, layout: Layout) -> list[int]:
        """Powers of two, and whatever the user names."""
        each = self.workload.global_batch // layout.dp
        if self.pins.micro_batch is not None:
            return sorted(set(self.pins.micro_batch))
        return [2**i for i in range(max(0, each).bit_length()) if each % 2**i == 0]

    def _virtual_sizes(self, layout: Layout) -> list[int]:
        if layout.pp == 1:
            return self._pinned("vpp", [1])
        return self._pinned("vpp", list(range(1, (self.model.num_layers + 2) // layout.pp + 1)))

    def _zero_stages(self, layout: Layout) -> list[int]:
        """With nothing to shard over, the lowest stage that is allowed stands for all, but for ZeRO 3, whose frameworks
        keep other copies of the weights than Megatron does."""
        stages = self._pinned("zero", [0, 1, 2, 3])
        experts = self.model.is_moe and layout.edp > 1
        if layout.dp * layout.cp > 1 or experts:
            return stages
        return [zero for zero in stages if zero in (stages[0], 3)]

    def _replicas(self, layout: Layout) -> list[int]:
        """Under ZeRO 2 and 3: sharded over all ranks, or over those of a node (HSDP), unless the user says. Never with
        experts that have groups of their own, whose time is not modelled then."""
        apart = self.model.is_moe and layout.experts_apart
        if self.pins.hsdp_replicas is not None:
            return sorted({n for n in self.pins.hsdp_replicas if n == 1 or not apart})
        ranks, node = layout.dp * layout.cp, self.cluster.groups[0].gpus_per_node
        each = math.gcd(ranks, max(1, node // layout.tp))
        alone = layout.zero < 2 or apart or mixed(self.cluster) or each in (1, ranks)
        return [1] if alone else [1, ranks // each]

    def _recomputes(self, layout: Layout) -> list[Recompute]:
        allowed = self.pins.recompute or ("none", "selective", "full")
        modes: list[Recompute] = []
        if "none" in allowed:
            modes.append(NO_RECOMPUTE)
        if "selective" in allowed:
            sets = self.pins.recompute_modules
            # flash attention keeps no scores, so that nothing is as good as recomputing it; asked for, it is done
            named = SELECTIVE.modules in sets if sets is not None else "none" not in allowed
            known = [*self._selective, *([SELECTIVE] if named and SELECTIVE not in self._selective else [])]
            modes += [r for r in known if sets is None or r.modules in sets]
        if "full" in allowed:
            modes.append(FULL_BLOCK)
        return modes


def selective_sets(model: Model, implementation: Implementation) -> list[Recompute]:
    """Every set of modules that selective recomputation can name for this model and that drops something.

    `moe` covers `moe_act` and `shared_experts`, so they are not named together.
    """
    modules = recomputed_modules(model, implementation)
    sets = []
    for size in range(1, len(modules) + 1):
        for chosen in combinations(modules, size):
            if "moe" in chosen and ("moe_act" in chosen or "shared_experts" in chosen):
                continue
            sets.append(Recompute("selective", tuple(sorted(chosen))))
    return sets
