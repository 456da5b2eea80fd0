"""What each setting of activation recomputation makes of a layout: its peak, the work repeated, the step's time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

from planner.implementation import Implementation, recomputed_modules
from planner.layout import FULL, NO_RECOMPUTE, Layout, Recompute
from planner.model import Model
from planner.variations.around import Around


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


def recompute_settings(around: Around) -> tuple[Setting, ...]:
    """The layout with each setting that its rules allow: nothing, each module alone, half of the layers, all of them;
    and its own."""
    own = around.layout.recompute
    settings = _settings(around.question.model, around.question.implementation, around.layout)
    found = []
    for recompute in dict.fromkeys((*settings, own)):
        other = replace(around.layout, recompute=recompute)
        if recompute != own and not around.legal(other):
            continue
        peak = around.peak(other)
        if peak is None:
            continue
        step = around.step(other)
        repeated = None if step is None else step.hardware_flops / step.model_flops - 1
        seconds = None if step is None else step.seconds
        found.append(Setting(recompute, recompute == own, peak.total_bytes, peak.fits, repeated, seconds))
    return tuple(found)


def _settings(model: Model, implementation: Implementation, layout: Layout) -> Iterator[Recompute]:
    yield NO_RECOMPUTE
    for module in recomputed_modules(model, implementation):
        yield Recompute("selective", (module,))
    half = max(chunk.num_layers for stage in layout.stages for chunk in stage) // 2
    if half:
        yield Recompute("full", method="block", num_layers=half)
    yield FULL
