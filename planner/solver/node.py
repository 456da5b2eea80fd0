"""A part of the space under search, and the order in which parts are looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum

from planner.layout import Layout
from planner.solver.problem import SplitProblem


class Level(IntEnum):
    """How much of a node's layout is decided."""

    FLOOR = 0
    GROUP = 1
    RECOMPUTE = 2
    FILLED = 3
    VIRTUAL = 4
    SOLVE = 5


@dataclass(slots=True, order=True)
class Node:
    """A part of the space; nothing below it is faster than `bound_ns`. Ordered by bound, then by simplicity."""

    bound_ns: int
    key: tuple
    level: Level
    layout: Layout = field(compare=False)
    problem: SplitProblem | None = field(default=None, compare=False)
    slowest_ns: int = field(default=0, compare=False)
    """No stage of any split below is faster than its slowest one must be: this."""
    modes: tuple[Layout, ...] = field(default=(), compare=False)
    """The node's group and ZeRO stage under every legal recomputation."""
    virtual: tuple[tuple[int, Layout], ...] = field(default=(), compare=False)
    """Layouts with other numbers of virtual stages that are still to be looked at, the least bound [ns] first."""
    tried: int = field(default=0, compare=False)
    """How often its split was solved for, each time with more effort."""


def simplicity(layout: Layout) -> tuple:
    """Of equally fast layouts the one that is simpler to run comes first."""
    r = layout.recompute
    rank = ("none", "selective", "full").index(r.granularity)
    size, experts = layout.tp * layout.cp * layout.pp, layout.ep * layout.etp
    degrees = (size, experts, layout.micro_batch, layout.pp, layout.cp, layout.tp, layout.etp)
    last = (layout.sequence_parallel, r.modules, layout.placement)
    return (rank, len(r.modules), layout.vpp, layout.zero, layout.hsdp_replicas, *degrees, *last)
