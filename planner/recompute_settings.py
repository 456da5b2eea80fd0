"""What each setting of activation recomputation makes of a given layout: its peak, the work repeated, the step's time.

`plan memory --detail` and `plan check --detail` print it, so that whoever is out of memory sees what each setting buys.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.errors import NotModelled
from planner.implementation import Implementation, recomputed_modules
from planner.layout import FULL, NO_RECOMPUTE, Layout, Recompute
from planner.memory.accounting import Accounting
from planner.model import Model
from planner.rules import broken_rules
from planner.timing.step import Timing

if TYPE_CHECKING:
    from planner.question import Question


@dataclass(frozen=True, slots=True)
class Setting:
    """One setting on the layout, all else as it is."""

    recompute: Recompute
    given: bool
    """It is the layout's own."""
    peak_bytes: int
    """Of the fullest GPU, the reserve included."""
    fits: bool
    repeated: float | None
    """FLOPs that are computed again, of the model's; None where time is not modelled."""
    step_seconds: float | None


def recompute_settings(question: Question, accounting: Accounting, layout: Layout) -> tuple[Setting, ...]:
    """The layout with each setting that its rules allow: nothing, each module alone, half of the layers, all of them;
    and its own. `layout.stages` must be set. Nothing by the rule of thumb, which knows no modules."""
    if question.accounting != "exact":
        return ()
    model, workload, implementation = question.model, question.workload, question.implementation
    cluster = question.cluster
    timing = Timing(model, workload, implementation, cluster)
    found = []
    for recompute in dict.fromkeys((*_settings(model, implementation, layout), layout.recompute)):
        other = replace(layout, recompute=recompute)
        given = recompute == layout.recompute
        if not given and broken_rules(model, workload, implementation, other, cluster.gpus, cluster):
            continue
        try:
            peak = accounting.report(other).peak_stage
        except NotModelled:
            continue
        repeated = seconds = None
        try:
            step = timing.step(other)
            repeated, seconds = step.hardware_flops / step.model_flops - 1, step.seconds
        except NotModelled:
            pass  # memory is modelled where time is not
        found.append(Setting(recompute, given, peak.total_bytes, peak.fits, repeated, seconds))
    return tuple(found)


def _settings(model: Model, implementation: Implementation, layout: Layout) -> Iterator[Recompute]:
    yield NO_RECOMPUTE
    for module in recomputed_modules(model, implementation):
        yield Recompute("selective", (module,))
    half = max(chunk.num_layers for stage in layout.stages for chunk in stage) // 2
    if half:
        yield Recompute("full", method="block", num_layers=half)
    yield FULL
