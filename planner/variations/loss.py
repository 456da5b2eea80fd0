"""What each way to compute the loss makes of a layout: the logits on the last stage, the peak, the step's time."""

from __future__ import annotations

from dataclasses import dataclass, replace

from planner.implementation import CrossEntropy
from planner.variations.around import Around

MEGATRON: tuple[CrossEntropy, ...] = ("unfused", "native", "te")
OTHERS: tuple[CrossEntropy, ...] = ("torch", "compiled", "liger")
"""Without arguments of Megatron-LM: FSDP2's and DeepSpeed's models bring their own loss."""


@dataclass(frozen=True, slots=True)
class Loss:
    """One cross entropy on the layout, all else as it is."""

    cross_entropy: CrossEntropy
    given: bool
    """It is the layout's own."""
    loss_bytes: int
    """Logits, their copies and their gradient on the last stage while the loss is computed."""
    peak_bytes: int
    """Of the fullest GPU, the reserve included."""
    fits: bool
    step_seconds: float | None


def loss_settings(around: Around) -> tuple[Loss, ...]:
    """The layout with each cross entropy that its framework has. Those that break a rule are left out."""
    own = around.question.implementation
    others = around.layout.zero >= 2 and own.sharded_framework != "megatron_fsdp"
    rows = []
    for kind in dict.fromkeys((*MEGATRON, *(OTHERS if others else ()), own.cross_entropy)):
        implementation = replace(own, cross_entropy=kind)
        if kind != own.cross_entropy and not around.legal(implementation=implementation):
            continue
        report = around.report(implementation=implementation, detail=True)
        if report is None:
            continue
        peak = report.peak_stage
        pieces = [piece for stage in report.stages for piece in stage.pieces if piece.kind == "loss"]
        held = max(piece.saved_bytes_per_microbatch + piece.transient_bytes for piece in pieces)
        step = around.step(implementation=implementation)
        seconds = None if step is None else step.seconds
        rows.append(Loss(kind, kind == own.cross_entropy, held, peak.total_bytes, peak.fits, seconds))
    return tuple(rows)
