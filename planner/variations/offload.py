"""What moving states or activations to the host makes of a layout: room on the GPU, memory of the host, time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from planner.implementation import Implementation
from planner.variations.around import Around


@dataclass(frozen=True, slots=True)
class Offloaded:
    """One choice on the layout, all else as it is."""

    what: str
    given: bool
    """It is the layout's own."""
    peak_bytes: int
    """Of the fullest GPU, the reserve included."""
    fits: bool
    host_bytes_per_node: int
    """Pinned memory that the ranks of a node take together, each as much as the one that takes most."""
    step_seconds: float | None
    host_fits: bool | None = True
    """None where a node's memory is not known."""


NOTHING: dict[str, Any] = {
    "optimizer_offload_fraction": 0.0,
    "offload_parameters": False,
    "offload_activation_layers": 0,
    "offload_modules": (),
}


def offload_settings(around: Around) -> tuple[Offloaded, ...]:
    """Nothing, parts of the optimizer, the weights, activations of whole layers; and the layout's own choice. Those
    that break a rule or that no framework offers are left out."""
    own = around.question.implementation
    found: dict[Implementation, str] = {}
    for what, chosen in _choices(around):
        found.setdefault(replace(own, **NOTHING | chosen), what)
    found.setdefault(own, "as given")
    rows = []
    for implementation, what in found.items():
        if implementation != own and not around.legal(implementation=implementation):
            continue
        report = around.report(implementation=implementation)
        if report is None:
            continue
        peak, step = report.peak_stage, around.step(implementation=implementation)
        rows.append(
            Offloaded(
                what,
                implementation == own,
                peak.total_bytes,
                peak.fits,
                report.host_bytes_per_node,
                None if step is None else step.seconds,
                report.host_fits if report.host_capacity_bytes or not report.host_bytes_per_node else None,
            )
        )
    return tuple(rows)


def _choices(around: Around) -> Iterator[tuple[str, dict[str, Any]]]:
    layout, layers = around.layout, around.question.model.num_layers
    yield "nothing", {}
    if _takes_weights(around.question.implementation):
        yield "half of the optimizer", {"optimizer_offload_fraction": 0.5}
        yield "the optimizer", {"optimizer_offload_fraction": 1.0}
    if layout.zero == 3:
        yield "weights and optimizer", {"optimizer_offload_fraction": 1.0, "offload_parameters": True}
    if layout.pp == 1 and layers > 1:
        yield "activations of half of the layers", {"offload_activation_layers": layers // 2}
        yield "activations of all layers but one", {"offload_activation_layers": layers - 1}


def _takes_weights(implementation: Implementation) -> bool:
    """Newer Megatron-LM updates fp8 weights on the host under delayed scaling only (megatron/training/arguments.py:
    validate_args, optimizer_cpu_offload)."""
    return not implementation.fp8_param_gather or implementation.fp8_recipe == "delayed"
