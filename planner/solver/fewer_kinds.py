"""A mixed cluster without one of its kinds of nodes: slow cards can cost a step more than they bring, as the kernels,
the precision and the slowest stage of all ranks follow theirs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from planner.cluster import Cluster
from planner.solver.result import SearchResult
from planner.topology.kinds import node_kinds


@dataclass(frozen=True, slots=True)
class Without:
    """The best that is left when one kind of nodes stays out, at the same batch."""

    label: str
    """The kind that stays out."""
    cluster: Cluster
    result: SearchResult
    changed: tuple[str, ...]
    """What of the kernels and the precision is another choice then, in words."""


def without_each(cluster: Cluster) -> tuple[tuple[str, Cluster], ...]:
    """Each kind of a mixed cluster, and the cluster without it."""
    kinds = node_kinds(cluster)
    rest = [tuple(group for kind in kinds if kind is not out for group in kind.groups) for out in kinds]
    return tuple((out.label, replace(cluster, groups=groups)) for out, groups in zip(kinds, rest, strict=True))


def fewer_kinds(
    cluster: Cluster, search: Callable[[Cluster], tuple[SearchResult, tuple[str, ...]]]
) -> tuple[Without, ...]:
    """One search without each kind, by a function that says what it had to choose otherwise."""
    return tuple(Without(label, rest, *search(rest)) for label, rest in without_each(cluster))
