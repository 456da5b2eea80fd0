"""What the figures of a cluster's file must have to do with each other, beyond what each may be (`schema`)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from planner.cluster import Cluster
from planner.errors import nearest
from planner.hardware.cards import PRECISIONS
from planner.units import plural, size


def contradictions(cluster: Cluster) -> list[str]:
    """Each mistake with its place, in the words of `schema`'s own."""
    return [*_reserves(cluster), *_domains(cluster), *_network(cluster), *_calibration(cluster)]


def _reserves(cluster: Cluster) -> Iterator[str]:
    for i, group in enumerate(cluster.groups):
        card = group.card
        if card.reserve_bytes >= card.capacity_bytes:
            yield (
                f"groups[{i}].card.reserve_bytes: must be less than the memory of {card.name} "
                f"({size(card.capacity_bytes)}), but {size(card.reserve_bytes)} was given"
            )


def _domains(cluster: Cluster) -> Iterator[str]:
    for i, group in enumerate(cluster.groups):
        if group.domain_gpus > group.gpus:
            yield (
                f"groups[{i}].domain_gpus: must be at most the group's {plural(group.gpus, 'GPU')}, but "
                f"{group.domain_gpus} was given"
            )


def _network(cluster: Cluster) -> Iterator[str]:
    fabric, groups = cluster.fabric, cluster.groups
    if fabric.kind == "none" and (len(groups) > 1 or groups[0].domain < groups[0].gpus):
        nodes = plural(sum(group.nodes for group in groups), "node")
        yield (
            "fabric.kind: must be infiniband or ethernet where GPUs are not all in one scale-up domain, but none was "
            f"given for {nodes} with domains of {groups[0].domain}"
        )
    if fabric.oversubscription > 1 and not fabric.nodes_per_leaf:
        yield (
            f"fabric.oversubscription: needs nodes_per_leaf, the nodes under one leaf switch, since it slows only what "
            f"leaves them, but {fabric.oversubscription:g} was given without it"
        )


def _calibration(cluster: Cluster) -> Iterator[str]:
    """Constants by precision and by card (`timing.factors.BY_NAME`); the empty name is every other card."""
    cards = dict.fromkeys(group.card.name for group in cluster.groups)
    for constant, known in (("gemm", PRECISIONS), ("sustained", tuple(cards))):
        given = cluster.calibration.get(constant)
        if not isinstance(given, Mapping) or "value" in given:
            continue  # what is no mapping is refused where it is read
        for key in map(str, given):
            if key not in (*known, *([""] if constant == "sustained" else [])):
                close = nearest(key, known)[:2] or known
                yield f"calibration.{constant}: unknown key '{key[:60]}', did you mean {' or '.join(close)}?"
