"""Published layouts of large runs, under the same model of memory and time: the search is never worse than they are."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, Layout, Recompute
from planner.memory.accounting import make_accounting
from planner.rules import broken_rules
from planner.solver.search import search
from planner.stages import split_from_counts
from planner.timing.step import Timing
from planner.workload import Workload


@dataclass(frozen=True)
class Run:
    """A published run: what was trained on what, and how it was laid out."""

    model: str
    gpus: str
    seq_length: int
    global_batch: int
    layout: Layout
    stage_layers: tuple = ()


RUNS = [
    # Narayanan et al. 2021 (arXiv:2104.04473), table 1, last row; full recomputation
    Run("megatron-1t", "3072xA100-80G", 2048, 3072, Layout(8, 1, 64, 1, 1, 1, 6, 0, 1, False, FULL), (2,) * 64),
    # Korthikanti et al. 2022 (arXiv:2205.05198), table 3: 175B, sequence parallelism, selective recomputation
    Run("gpt3-175b", "64xA100-80G", 2048, 64, Layout(8, 1, 8, 3, 1, 1, 1, 0, 1, True, NO_RECOMPUTE), ((4,) * 3,) * 8),
    # Llama 3 herd (arXiv:2407.21783), table 4, first row: tp 8, cp 1, pp 16, dp 128
    Run("llama-3.1-405b", "16384xH100-80G", 8192, 2048, Layout(8, 1, 16, 1, 1, 1, 128, 1, 1, True, NO_RECOMPUTE),
        (7, *(8,) * 14, 7)),
    # DeepSeek-V3 (arXiv:2412.19437), section 3.1: pp 16, ep 64 over 8 nodes, ZeRO-1, no tensor parallelism;
    # section 3.2.3: norms and up-projections of the latent attention are recomputed
    Run("deepseek-v3", "2048xH800-80G", 4096, 15360,
        Layout(1, 1, 16, 1, 64, 1, 128, 1, 1, False, Recompute("selective", ("layernorm", "mla_up_proj"))),
        (*(4,) * 15, 1)),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("run", RUNS, ids=lambda run: run.model)
def test_never_worse_than_the_published_layout(run):
    """The published layout is legal here, and the proved optimum is at least as fast; where it fits as published, it
    was among the candidates."""
    model, cluster = load_model(run.model), parse_gpus(run.gpus)
    workload, implementation = Workload(run.seq_length, run.global_batch), Implementation()
    rows = [list(row) if isinstance(row, tuple) else [row] for row in run.stage_layers]
    layout = replace(run.layout, stages=split_from_counts(model, rows))
    assert broken_rules(model, workload, implementation, layout, cluster.gpus, cluster) == []
    published_ns = Timing(model, workload, implementation, cluster).step(layout).step_ns
    fits = make_accounting("exact", model, workload, implementation, cluster).report(layout).fits
    result = search(model, workload, implementation, cluster, top=1)
    assert result.status == "optimal"
    assert result.plans[0].step.step_ns <= published_ns or not fits
