"""What the search asks of an accounting and of a model of time; any object with these methods will do."""

from __future__ import annotations

from typing import Protocol

from planner.layout import Layout
from planner.memory.form import StageForm
from planner.memory.report import MemoryReport
from planner.timing.form import StepForm
from planner.timing.report import StepTime


class Accounting(Protocol):
    """Bytes of a layout. `form` and `stage_capacity_bytes` take layouts whose stages are still undecided."""

    def form(self, layout: Layout, stage_index: int, /) -> StageForm: ...

    def stage_capacity_bytes(self, layout: Layout, stage_index: int, /) -> int: ...

    def report(self, layout: Layout, /) -> MemoryReport: ...


class StepTiming(Protocol):
    """Nanoseconds of a layout. `form` takes layouts whose stages are still undecided."""

    def form(self, layout: Layout, /) -> StepForm: ...

    def step(self, layout: Layout, /) -> StepTime: ...
