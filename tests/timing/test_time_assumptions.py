"""What a predicted time says that it takes for granted."""

from __future__ import annotations

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.stages import even_split
from planner.timing.step import Timing
from planner.workload import Workload

MODEL = load_model("llama-2-13b")


def test_the_attention_kernels_that_the_time_needs_are_named():
    """Where a newer generation than FlashAttention 2 runs; not where the launch says which."""
    layout = Layout(tp=8, dp=8, stages=even_split(MODEL, 1))

    def named(gpus, **implementation):
        timing = Timing(MODEL, Workload(4096, 256), Implementation(**implementation), parse_gpus(gpus))
        return any("FlashAttention 3" in line for line in timing.step(layout).assumptions)

    assert named("64xH100-80G") and not named("64xA100-80G")
    assert not named("64xH100-80G", flash_attention_version=2) and not named("64xH100-80G", attention="unfused")
