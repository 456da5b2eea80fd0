"""Kinds of nodes in a mixed cluster, and the orders in which a launch may list them.

A kind is a card and a node size. Ranks fill nodes in the order in which the launch lists them (torchrun's NODE_RANK),
and a pipeline stage is a run of consecutive ranks (`placement.place_ranks`): so the order of the nodes decides which
stages stand on which kind. A placement is such an order, all nodes of a kind together; with stages as wide as
tp x cp x dp, a kind with a whole number of such widths gives a run of stages of its own. Where the numbers do not
divide, a stage stands on two kinds and has the memory of the smaller card and the speed of the slower.
"""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from functools import lru_cache
from itertools import permutations

from planner.cluster import Card, Cluster, NodeGroup
from planner.errors import InputError, nearest

MOST_KINDS = 5
"""Kinds whose every order is tried: 120 orders; a launch over more kinds has no published example."""

Placement = tuple[int, ...]
"""Kinds in the order of the ranks, by their place in `node_kinds`; empty is the order in which the cluster lists its
nodes (and all there is on a cluster of one kind)."""


@dataclass(frozen=True, eq=False, slots=True)
class NodeKind:
    """All nodes of a cluster that have the same card, as many of them, linked alike."""

    label: str
    """The card's name, with the node's GPUs where nodes of several sizes have the same card: `A100-80G/4`."""
    card: Card
    gpus_per_node: int
    groups: tuple[NodeGroup, ...]

    @property
    def gpus(self) -> int:
        return sum(group.gpus for group in self.groups)

    @property
    def nodes(self) -> int:
        return sum(group.nodes for group in self.groups)


def mixed(cluster: Cluster) -> bool:
    """Whether nodes differ in card or size."""
    return len(cluster.groups) > 1 and len(node_kinds(cluster)) > 1


@lru_cache(maxsize=256)
def node_kinds(cluster: Cluster) -> tuple[NodeKind, ...]:
    """The kinds of a cluster in the order in which it lists them first."""
    found: dict[tuple[object, ...], list[NodeGroup]] = {}
    for group in cluster.groups:
        key = (_figures(group.card), group.gpus_per_node, group.domain, group.network_bytes_per_second)
        found.setdefault(key, []).append(group)
    kinds = [(groups[0].card, groups[0].gpus_per_node, tuple(groups)) for groups in found.values()]
    labels = _labels([(card.name, size) for card, size, _ in kinds])
    return tuple(NodeKind(label, *kind) for label, kind in zip(labels, kinds, strict=True))


def _figures(card: Card) -> tuple[str, ...]:
    """What tells two cards apart: their figures, not where these come from."""
    return tuple(
        str(getattr(card, f.name)) for f in fields(card) if f.name not in ("aliases", "sources", "vendor", "flops")
    ) + tuple(f"{name} {rate}" for name, rate in sorted(card.flops.items()))


def _labels(kinds: list[tuple[str, int]]) -> list[str]:
    """The shortest names that tell the kinds apart."""
    names = [name for name, _ in kinds]
    labels = [name if names.count(name) == 1 else f"{name}/{size}" for name, size in kinds]
    return [label if labels.count(label) == 1 else f"{label}#{i + 1}" for i, label in enumerate(labels)]


@lru_cache(maxsize=1024)
def arranged(cluster: Cluster, placement: Placement) -> Cluster:
    """The cluster with its nodes in the order of a placement; the same object for the same order."""
    if not placement:
        return cluster
    kinds = node_kinds(cluster)
    groups = tuple(group for index in placement for group in kinds[index].groups)
    return cluster if groups == cluster.groups else replace(cluster, groups=groups)


@lru_cache(maxsize=256)
def placements(cluster: Cluster, pp: int) -> tuple[Placement, ...]:
    """Every order of the kinds that can matter to pp stages, the listed one first; on one kind just the empty one.

    Without a pipeline the only stage stands on all kinds, so an order matters only where nodes differ in size. Raises
    InputError for more than MOST_KINDS kinds.
    """
    if not mixed(cluster):
        return ((),)
    kinds = node_kinds(cluster)
    if len(kinds) > MOST_KINDS:
        raise InputError(
            f"{cluster.name}: every order of the kinds of nodes is tried, so at most {MOST_KINDS} kinds may be mixed, "
            f"but there are {len(kinds)}."
        )
    found: dict[tuple[object, ...], Placement] = {}
    for order in permutations(range(len(kinds))):
        sizes = tuple((group.gpus_per_node, group.domain, group.gpus) for i in order for group in kinds[i].groups)
        found.setdefault(order if pp > 1 else sizes, order)
    return tuple(found.values())


def placement_from(cluster: Cluster, labels: tuple[str, ...]) -> Placement:
    """The placement that lists the kinds by their labels, or by other names of their cards. Raises InputError unless
    each is named once."""
    known = [kind.label for kind in node_kinds(cluster)]
    lowered = [label.lower() for label in known]
    if len(known) == 1:
        raise InputError(f"--placement orders kinds of nodes, but {cluster.name} has just one, {known[0]}.")
    named = [_label(label, lowered) for label in labels]
    if sorted(named) != sorted(lowered):
        odd = next((label for label in named if label not in lowered), None)
        close = nearest(odd, lowered, 1) if odd else []
        hint = f" Did you mean {known[lowered.index(close[0])]}?" if close else ""
        given = ",".join(labels)
        raise InputError(f"--placement must name each of {', '.join(known)} once, but was given '{given}'.{hint}")
    return tuple(lowered.index(label) for label in named)


def _label(text: str, known: list[str]) -> str:
    """The label that another name of its card stands for, else the text itself."""
    from planner.hardware import load_card

    if text.lower() in known:
        return text.lower()
    try:
        card = load_card(text).name.lower()
    except InputError:
        return text.lower()
    return card if card in known else text.lower()


def placement_labels(cluster: Cluster, placement: Placement) -> tuple[str, ...]:
    """The labels of a placement, which `placement_from` reads."""
    kinds = node_kinds(cluster)
    return tuple(kinds[index].label for index in placement)
