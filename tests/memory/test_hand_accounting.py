"""The rule of thumb, to the byte: the worked cases of 13 billion parameters on 80 GB cards."""

from dataclasses import replace
from fractions import Fraction

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, Layout
from planner.memory.rule_of_thumb import RuleOfThumb
from planner.stages import even_split
from planner.workload import Workload

N = 13 * 10**9
ACTIVATIONS = 40 * 4096 * 5120 * 40
GB80 = 80 * 10**9


def stages(batch=64, **degrees):
    """Totals of the stages of a layout, and whether they fit."""
    model = load_model("13b-rule-of-thumb")
    layout = Layout(**degrees)
    layout = replace(layout, stages=even_split(model, layout.pp, layout.vpp))
    hand = RuleOfThumb(model, Workload(4096, batch), Implementation(), parse_gpus("8xA100-80G"))
    report = hand.report(layout)
    assert report.capacity_bytes == GB80
    return [stage.total_bytes for stage in report.stages], report.fits


@pytest.mark.parametrize("d", [1, 2, 4, 8, 64, 1024])
def test_zero_1_alone_never_fits(d):
    """13 (6 + 12 / d) + 33.55 GB: the 78 GB that ZeRO-1 cannot divide leave no room."""
    totals, fits = stages(batch=1024, dp=d, zero=1)
    assert totals[0] == pytest.approx(N * 6 + N * 12 / d + ACTIVATIONS, abs=40)
    assert not fits


def test_four_stages_without_overlap():
    """58.5 + 8.39 = 66.89 GB on each of four stages with one microbatch."""
    totals, fits = stages(batch=1, pp=4)
    assert totals == [N * 18 // 4 + ACTIVATIONS // 4] * 4
    assert [round(t / 1e9, 2) for t in totals] == [66.89] * 4
    assert fits


def test_four_stages_1f1b():
    """92.05, 83.67, 75.28, 66.89 GB: the first two overflow."""
    totals, fits = stages(pp=4)
    assert totals == [N * 18 // 4 + (4 - i) * ACTIVATIONS // 4 for i in range(4)]
    assert [round(t / 1e9, 2) for t in totals] == [92.05, 83.67, 75.28, 66.89]
    assert not fits


def test_four_stages_and_two_replicas_fill_one_machine():
    """39 + 33.55 = 72.55, 64.17, 55.78, 47.39 GB with ZeRO-1 over two."""
    totals, fits = stages(pp=4, dp=2, zero=1)
    assert totals == [N * 6 // 4 + N * 12 // 8 + (4 - i) * ACTIVATIONS // 4 for i in range(4)]
    assert [round(t / 1e9, 2) for t in totals] == [72.55, 64.17, 55.78, 47.39]
    assert fits


def test_eight_stages():
    """29.25 + 33.55 = 62.80 GB on the first, 58.61 on the second."""
    totals, fits = stages(pp=8)
    assert totals == [N * 18 // 8 + (8 - i) * ACTIVATIONS // 8 for i in range(8)]
    assert [round(t / 1e9, 2) for t in totals[:2]] == [62.80, 58.61]
    assert fits


@pytest.mark.parametrize(("zero", "bytes_of"), [(0, 18), (1, 6 + 12 / 8), (2, 2 + 16 / 8), (3, 18 / 8)])
def test_what_each_zero_stage_divides(zero, bytes_of):
    """18, 6 + 12/d, 2 + 16/d and 18/d bytes a parameter."""
    assert stages(dp=8, zero=zero)[0][0] == N * bytes_of + ACTIVATIONS


def test_tensor_parallelism_divides_activations_only_with_sequence_parallelism():
    """By hand, tp alone leaves the activations whole; with sp, or cp, they are divided."""
    states = N * 18 // 4
    assert stages(tp=4)[0][0] == states + ACTIVATIONS
    assert stages(tp=4, sequence_parallel=True)[0][0] == states + ACTIVATIONS // 4
    assert stages(cp=4)[0][0] == N * 18 + ACTIVATIONS // 4


def test_full_recomputation_keeps_two_bytes_and_rebuilds_one_layer():
    """2 S H for each layer, and 40 S H for the one that is rebuilt."""
    assert stages(recompute=FULL)[0][0] == N * 18 + 2 * 4096 * 5120 * 40 + ACTIVATIONS // 40


def test_interleaving_holds_more_microbatches():
    """Two chunks on four stages: 11 of 8 chunks in flight, 1.375 times a full pipeline's activations."""
    first = stages(pp=4, vpp=2)[0][0]
    assert first == N * 18 // 4 + 11 * ACTIVATIONS // 8


def test_microbatches_of_a_group_are_reported_as_they_are_counted():
    """Groups of 8 over 4 stages of 5 chunks: 2 (p - 1) + (v - 1) 8 + 1 chunks are alive on the first stage."""
    model = load_model("13b-rule-of-thumb")
    layout = Layout(pp=4, vpp=5, dp=2, stages=even_split(model, 4, 5))
    impl = Implementation(microbatch_group_size=8)
    hand = RuleOfThumb(model, Workload(4096, 64), impl, parse_gpus("8xA100-80G"))
    assert hand.report(layout).stages[0].in_flight_microbatches == Fraction(2 * 3 + 4 * 8 + 1, 5)
