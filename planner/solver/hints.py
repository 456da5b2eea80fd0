"""What would fit when nothing does; every remedy is solved before it is named."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice

from planner.cluster import Card, Cluster, NodeGroup
from planner.hardware.gpus import GPUS_OPTION, MOST_GPUS, on_reference_network, usual_nodes, with_nodes
from planner.solver.candidates import Pins, Space
from planner.solver.result import Hint, SearchResult
from planner.topology.kinds import mixed

Solve = Callable[[Cluster, Pins], SearchResult]
"""The fastest layout on another cluster or with other pins."""
DOUBLINGS = 7
MOST_HINTS = 4
FREED = (
    "recompute",
    "zero",
    "hsdp_replicas",
    "micro_batch",
    "stage_layers",
    "dp",
    "pp",
    "tp",
    "cp",
    "ep",
    "etp",
    "vpp",
    "sequence_parallel",
)
"""Pins that may be what stands in the way, the cheapest to give up first."""


def hints(space: Space, solve: Solve) -> tuple[Hint, ...]:
    """Up to four remedies: one pin given up, more GPUs, a larger card."""
    return tuple(islice(_solved(space, solve), MOST_HINTS))


def _solved(space: Space, solve: Solve) -> Iterator[Hint]:
    freed = False
    for name in FREED:
        if getattr(space.pins, name) is None:
            continue
        if name in ("pp", "vpp") and space.pins.stage_layers is not None:
            continue  # a split of so many stages and chunks is pinned
        pins = replace(space.pins, **{name: None})
        found = solve(space.cluster, pins).plans
        if found:
            freed = True
            given_up = Pins(**{name: getattr(space.pins, name)})
            yield Hint("pins", space.cluster, space.workload, pins, found[0], given_up)
            if name == "recompute":
                break
    if not freed and len(space.pins.pinned) > 1:
        found = solve(space.cluster, Pins()).plans
        if found:
            yield Hint("pins", space.cluster, space.workload, Pins(), found[0], given_up=space.pins)
    yield from _more_gpus(space, solve)
    yield from _larger_card(space, solve)


def _more_gpus(space: Space, solve: Solve) -> Iterator[Hint]:
    """Twice as many GPUs, until they hold the model or are more than any question may have."""
    cluster = space.cluster
    for _ in range(DOUBLINGS):
        if 2 * cluster.gpus > MOST_GPUS:
            return
        cluster = _doubled_nodes(cluster) if mixed(cluster) else _doubled(cluster)
        found = solve(cluster, space.pins).plans
        if found:
            yield Hint("gpus", cluster, space.workload, space.pins, found[0])
            return


def _doubled(cluster: Cluster) -> Cluster:
    """Twice the nodes; one node of which `--gpus` named a part is filled before there are more of them."""
    group, usual = cluster.groups[0], cluster.card.gpus_per_node
    if cluster.source != GPUS_OPTION or group.nodes > 1 or group.gpus >= usual:
        return with_nodes(cluster, 2 * group.nodes)
    gpus = 2 * group.gpus
    groups = (NodeGroup(group.card, 1, gpus),) if gpus <= usual else (NodeGroup(group.card, -(-gpus // usual), usual),)
    return on_reference_network(groups)


def _doubled_nodes(cluster: Cluster) -> Cluster:
    """Twice the nodes of every kind, on the network that `--gpus` gives them."""
    return on_reference_network(NodeGroup(g.card, 2 * g.nodes, g.gpus_per_node) for g in cluster.groups)


def _larger_card(space: Space, solve: Solve) -> Iterator[Hint]:
    """The same number of the smallest card that holds it, among cards of the same vendor with more memory, or with as
    much where ours do not compute in the precision, in its own nodes and on their network; on a mixed cluster in place
    of the cards that have less."""
    from planner.hardware.cards import card_names, load_card

    cluster, precision = space.cluster, space.workload.precision
    without = [group.card for group in cluster.groups if precision not in group.card.flops]
    here = min(without or (group.card for group in cluster.groups), key=lambda card: card.capacity_bytes)

    def replaces(card: Card) -> bool:
        as_large = bool(without) and card.sold_bytes >= here.sold_bytes
        able = card.vendor == here.vendor and precision in card.flops
        return able and (as_large or card.capacity_bytes > here.capacity_bytes)

    larger = filter(replaces, map(load_card, card_names()))
    ours = {group.card.name for group in cluster.groups}
    refuted = 0

    def order(card: Card) -> tuple[bool, int, bool, str]:
        return card.name not in ours, card.sold_bytes, card.scale_up != here.scale_up, card.name

    for card in sorted(larger, key=order):
        if card.capacity_bytes <= refuted:
            continue
        groups: list[NodeGroup] = []
        for group in cluster.groups:
            replaced = group.card in without or group.card.capacity_bytes < card.capacity_bytes
            groups += usual_nodes(card, group.gpus) if replaced else (group,)
        other = on_reference_network(groups)
        found = solve(other, space.pins).plans
        if found:
            yield Hint("card", other, space.workload, space.pins, found[0])
            return
        refuted = card.capacity_bytes
