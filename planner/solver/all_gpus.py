"""What no layout can do without: one copy of every model state, whatever divides it, and each GPU's reserve."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from planner.errors import NotModelled
from planner.layout import Layout
from planner.memory.form import Component
from planner.solver.candidates import Space
from planner.solver.interfaces import Accounting

ZERO_STAGES = (0, 1, 2, 3)
LeastHeld = Callable[[int, int], Mapping[Component, int]]
"""Of an accounting that knows it: bytes over all GPUs (their number comes second) that no layout under a ZeRO stage
holds less of."""


def too_much_for_all(space: Space, accounting: Accounting) -> bool:
    """Whether the states alone are more than all GPUs of the space hold, so that nothing fits. False where the
    accounting does not tell."""
    least_held: LeastHeld | None = getattr(accounting, "least_held", None)
    if least_held is None:
        return False
    room = space.world * accounting.stage_capacity_bytes(Layout(), 0)
    for zero in space.pins.zero or ZERO_STAGES:
        try:
            held = least_held(zero, space.world)
        except NotModelled:  # no layout has this stage then
            continue
        if sum(held.values()) <= room:
            return False
    return True
