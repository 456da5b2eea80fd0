"""The result of timing a layout: seconds of one step and what they are made of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepTime:
    """One training step. `components` sum to `seconds`."""

    step_ns: int
    components: dict[str, float]
    """Seconds: compute, recompute, tensor_parallel, context_parallel, expert_parallel, pipeline_bubble, pipeline_p2p,
    data_parallel, optimizer, ... (exposed time only)."""
    tokens_per_step: int
    gpus: int
    model_flops: int
    """FLOPs of forward and backward of the step on all GPUs, causal attention counted half, nothing recomputed."""
    hardware_flops: int
    """The same with what is recomputed."""
    peak_flops_per_gpu: float
    bubble_fraction: float
    lower_bound_seconds: float
    """Speed of light: model FLOPs at the card's peak."""
    relative_error: float | None = None
    """Median absolute error of this model of time on published measurements of this kind of card; None if unknown."""
    assumptions: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        return self.step_ns / 1e9

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.seconds

    @property
    def tokens_per_second_per_gpu(self) -> float:
        return self.tokens_per_second / self.gpus

    @property
    def model_tflops_per_gpu(self) -> float:
        return self.model_flops / self.seconds / self.gpus / 1e12

    @property
    def mfu(self) -> float:
        return self.model_flops / self.seconds / self.gpus / self.peak_flops_per_gpu

    @property
    def hfu(self) -> float:
        return self.hardware_flops / self.seconds / self.gpus / self.peak_flops_per_gpu
