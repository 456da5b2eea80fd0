"""What a predicted time says that it takes for granted."""

from __future__ import annotations

import re
from dataclasses import replace

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.stages import even_split
from planner.timing.step import Timing
from planner.validation.published import published_runs
from planner.validation.step import validate_step
from planner.workload import Workload

MODEL = load_model("llama-2-13b")
LAYOUT = Layout(tp=8, dp=8, stages=even_split(MODEL, 1))


def test_the_attention_kernels_that_the_time_needs_are_named():
    """Where a newer generation than FlashAttention 2 runs; not where the launch says which."""

    def named(gpus, **implementation):
        timing = Timing(MODEL, Workload(4096, 256), Implementation(**implementation), parse_gpus(gpus))
        return any("FlashAttention 3" in line for line in timing.step(LAYOUT).assumptions)

    assert named("64xH100-80G") and not named("64xA100-80G")
    assert not named("64xH100-80G", flash_attention_version=2) and not named("64xH100-80G", attention="unfused")


def test_a_gh200_says_that_its_cpu_shares_its_power():
    """By the share that the published runs took longer; not where the user's cluster was measured."""

    def said(cluster):
        return Timing(MODEL, Workload(4096, 256), Implementation(), cluster).step(LAYOUT).assumptions

    ours = parse_gpus("64xGH200-96G")
    note = next(line for line in said(ours) if "624 W" in line)
    low, high = map(int, re.findall(r"(\d+) to (\d+) %", note)[0])
    runs = [run for run in validate_step().runs if run.source == "swiss" and "300M" not in run.model]
    longer = [1 / (1 + run.error) - 1 for run in runs]
    assert (low, high) == (round(100 * min(longer)), round(100 * max(longer)))
    assert not any("624 W" in line for line in said(replace(ours, calibration={"step_seconds": 0.01})))
    assert not any("624 W" in line for line in said(parse_gpus("64xH100-80G")))


def longer(wanted) -> list[float]:
    """How many times longer than predicted the published runs took whose setting is `wanted`."""
    settings = {run["id"]: setting for run, setting in published_runs()}
    return [1 / (1 + run.error) for run in validate_step().runs if wanted(settings[run.id])]


def test_an_overlapped_exchange_that_the_host_issues_says_how_much_longer_others_took():
    """The experts' exchange hidden without a graph of the whole iteration; the range is that of the published runs."""
    model = load_model("qwen3-30b-a3b")
    layout = Layout(ep=8, dp=8, stages=even_split(model, 1))

    def said(**implementation):
        timing = Timing(model, Workload(4096, 64), Implementation(**implementation), parse_gpus("8xH100-80G"))
        return [line for line in timing.step(layout).assumptions if "costs the host is not modelled" in line]

    (line,) = said(overlap_moe_expert_parallel_comm=True)
    low, high = map(float, re.findall(r"(\d\.\d) to (\d\.\d) times", line)[0])
    times = longer(
        lambda s: s.implementation.overlap_moe_expert_parallel_comm and "iteration" not in s.implementation.cuda_graphs
    )
    assert len(times) == 7
    assert (low, high) == (round(min(times), 1), round(max(times), 1))
    assert not said() and not said(overlap_moe_expert_parallel_comm=True, cuda_graphs=("iteration",))


def test_blocks_of_fp8_say_that_they_are_timed_as_tensors():
    """Where fp8 runs with a scale for each block; by how much the one published run took longer."""

    def said(precision, recipe):
        implementation = Implementation(fp8_recipe=recipe)
        timing = Timing(MODEL, Workload(4096, 256, precision), implementation, parse_gpus("64xH100-80G"))
        return [line for line in timing.step(LAYOUT).assumptions if "for each block" in line]

    (line,) = said("fp8", "blockwise")
    (times,) = longer(lambda s: s.implementation.fp8_recipe == "blockwise")
    assert f"{times:.1f} times" in line
    assert not said("fp8", "tensorwise") and not said("bf16", "blockwise")
