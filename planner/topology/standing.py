"""What each pipeline stage of a layout stands on in a mixed cluster: its own nodes, and the links that it uses.

Ranks are those of `placement.place_ranks`: stage s is the run of tp x cp x dp ranks from s x tp x cp x dp on. A stage's
nodes, or the parts of nodes that it has, are a small cluster of their own, so its communicators are judged on their own
links (`links.group_links`), whatever stands elsewhere. Only pipeline hops and the tied embedding's reduction join two
stages; they are judged on the nodes of both, and the slower link decides.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import pairwise

from planner.cluster import Card, Cluster, NodeGroup
from planner.layout import Layout
from planner.topology.kinds import arranged, mixed, node_kinds
from planner.topology.links import StageNodes


@dataclass(frozen=True, eq=False, slots=True)
class Standing:
    """The nodes under every stage of a pipeline. Stages that stand alike, and exchange alike, share one object."""

    stages: tuple[StageNodes, ...]

    def cards(self, stage: int) -> tuple[Card, ...]:
        """The distinct cards of a stage, in the order of its ranks."""
        return tuple({id(group.card): group.card for group in self.stages[stage].groups}.values())


def standing(cluster: Cluster, layout: Layout) -> Standing:
    """What the stages of a layout stand on. A layout with more ranks than GPUs (which breaks a rule) finds the last
    GPUs under the stages that have none."""
    width = layout.tp * layout.cp * layout.dp
    return _standing(arranged(cluster, layout.placement), layout.pp, width, layout.vpp > 1)


@lru_cache(maxsize=4096)
def _standing(cluster: Cluster, pp: int, width: int, interleaved: bool) -> Standing:
    """Virtual stages also send from the last stage to the first."""

    def ranks(stage: int) -> tuple[int, int]:
        low = min(stage * width, cluster.gpus - 1)
        return low, max(low + 1, min(low + width, cluster.gpus))

    def both(stage: int, other: int) -> Cluster:
        (low, end), (first, last) = ranks(stage), ranks(other)
        return _under(cluster, [(low, last)] if end == first else [(low, end), (first, last)])

    hops = [both(stage, (stage + 1) % pp) for stage in range(pp)] if pp > 1 else []
    known: dict[tuple[object, ...], StageNodes] = {}
    stages = []
    for stage in range(pp):
        near: list[Cluster] = []
        if pp > 1:
            near += [hops[stage - 1]] if stage or interleaved else []
            near += [hops[stage]] if stage < pp - 1 or interleaved else []
        nodes = _under(cluster, [ranks(stage)])
        ends = hops[-1] if hops else None
        key = (nodes, *near)
        if key not in known:
            known[key] = StageNodes(
                nodes.name, nodes.groups, nodes.fabric, nodes.calibration, nodes.source, tuple(near), ends
            )
        stages.append(known[key])
    return Standing(tuple(stages))


def _under(cluster: Cluster, ranges: Iterable[tuple[int, int]]) -> Cluster:
    """The nodes, and parts of nodes, that hold these ranges of ranks."""
    groups: list[NodeGroup] = []
    leaves: set[int] = set()
    per_leaf = cluster.fabric.nodes_per_leaf
    for low, end in ranges:
        start = node = 0
        for group in cluster.groups:
            first, last = max(low, start) - start, min(end, start + group.gpus) - start
            if first < last:
                groups += _cut(group, first, last)
                if per_leaf:
                    size = group.gpus_per_node
                    leaves |= {(node + first // size) // per_leaf, (node + (last - 1) // size) // per_leaf}
            start, node = start + group.gpus, node + group.nodes
    return _sub_cluster(cluster, tuple(groups), per_leaf > 0 and len(leaves) == 1)


def _cut(group: NodeGroup, first: int, last: int) -> list[NodeGroup]:
    """GPUs [first, last) of a group: a part of a cell, whole cells, a part of a cell. A cell is a node, or a rack-scale
    domain where that is larger."""
    rack = group.domain > group.gpus_per_node
    cell = group.domain if rack else group.gpus_per_node
    cuts = [first]
    if -(-first // cell) * cell < last:
        cuts += [-(-first // cell) * cell, last // cell * cell]
    cuts = sorted({*cuts, last})
    pieces = []
    for low, end in pairwise(cuts):
        gpus = end - low
        if rack:
            size = group.gpus_per_node if gpus % group.gpus_per_node == 0 else gpus
            pieces.append(replace(group, nodes=gpus // size, gpus_per_node=size, domain_gpus=min(cell, gpus)))
        elif gpus % cell == 0:
            pieces.append(replace(group, nodes=gpus // cell))
        else:
            limit = min(group.domain_gpus, gpus)
            pieces.append(replace(group, nodes=1, gpus_per_node=gpus, domain_gpus=limit))
    return pieces


@lru_cache(maxsize=4096)
def _sub_cluster(cluster: Cluster, groups: tuple[NodeGroup, ...], one_leaf: bool) -> Cluster:
    """These nodes as a cluster, its fabric as fast as the slowest of their ports; without a spine under one leaf."""
    usual = cluster.fabric.bytes_per_second_per_gpu
    port = min(group.network_bytes_per_second or usual for group in groups)
    fabric = replace(
        cluster.fabric,
        bytes_per_second_per_gpu=port,
        nodes_per_leaf=0 if one_leaf else cluster.fabric.nodes_per_leaf,
    )
    return replace(cluster, groups=groups, fabric=fabric)


def spanning(layout: Layout, cluster: Cluster) -> list[tuple[str, tuple[str, ...]]]:
    """Stages whose ranks have different cards, in words (`all ranks`, `the ranks of stage 1`), and the cards."""
    if not mixed(cluster):
        return []
    under = standing(cluster, layout)
    found: dict[tuple[str, ...], list[int]] = {}
    for stage in range(layout.pp):
        names = tuple(card.name for card in under.cards(stage))
        if len(names) > 1:
            found.setdefault(names, []).append(stage)
    return [(_ranks_of(stages, layout.pp), names) for names, stages in found.items()]


def _ranks_of(stages: list[int], pp: int) -> str:
    if pp == 1:
        return "all ranks"
    return f"the ranks of stage{'' if len(stages) == 1 else 's'} {', '.join(map(str, stages))}"


@dataclass(frozen=True, slots=True)
class Run:
    """One kind of nodes in a layout's placement, and the stages that have ranks on it."""

    label: str
    card: str
    nodes: int
    gpus_per_node: int
    gpus: int
    stages: tuple[int, ...]


def placed_runs(layout: Layout, cluster: Cluster) -> tuple[Run, ...]:
    """The kinds of nodes in the order of the ranks, each with its stages; nothing on a cluster of one kind."""
    if not mixed(cluster):
        return ()
    kinds, width = node_kinds(cluster), layout.tp * layout.cp * layout.dp
    runs, start = [], 0
    for index in layout.placement or range(len(kinds)):
        kind = kinds[index]
        first, last = start // width, min(layout.pp - 1, (start + kind.gpus - 1) // width)
        stages = tuple(range(first, last + 1))
        runs.append(Run(kind.label, kind.card.name, kind.nodes, kind.gpus_per_node, kind.gpus, stages))
        start += kind.gpus
    return tuple(runs)
