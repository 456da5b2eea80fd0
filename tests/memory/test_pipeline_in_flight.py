"""Microbatches in flight: the shapes of the schedules, and what Megatron's real schedules hold."""

import json
from fractions import Fraction
from pathlib import Path

import pytest

from planner.memory.in_flight import moments_in_flight, peak_in_flight, representative, warmup

RECORDS = json.loads((Path(__file__).parents[1] / "data" / "memory" / "in_flight.json").read_text())["records"]


def test_one_stage_holds_one_microbatch():
    """Without a pipeline backward follows forward at once, however many microbatches there are."""
    assert peak_in_flight(1, 0, 1, 64) == 1


@pytest.mark.parametrize(("m", "expected"), [(1, [1, 1, 1, 1]), (2, [2, 2, 2, 1]), (8, [4, 3, 2, 1])])
def test_one_forward_one_backward(m, expected):
    """min(m, p - i): the first of four stages holds four microbatches, the last one."""
    assert [peak_in_flight(4, i, 1, m) for i in range(4)] == expected


def test_interleaving_holds_more_than_a_pipeline_full():
    """1 + (p - 1) / (p v) of a full pipeline on the first stage (Narayanan et al. 2021), in units of a chunk."""
    assert peak_in_flight(4, 0, 2, 8) == Fraction(11, 2)
    assert peak_in_flight(4, 0, 2, 8) / 4 == 1 + Fraction(3, 4 * 2)


def test_a_larger_group_of_microbatches_warms_up_longer():
    """(v - 1) x group chunks more; overlapped expert communication one more."""
    assert warmup(4, 0, 2, 16, group=8) - warmup(4, 0, 2, 16) == 4
    assert warmup(4, 0, 2, 16, extra=1) - warmup(4, 0, 2, 16) == 1


def test_few_microbatches_bound_what_is_in_flight():
    """With 4 microbatches of 2 chunks no more than 8 chunks exist."""
    assert peak_in_flight(4, 0, 2, 4) == Fraction(8, 2)


@pytest.mark.parametrize("r", RECORDS, ids=lambda r: f"p{r['pp']}v{r['vpp']}m{r['microbatches']}g{r['group']}")
def test_every_rank_of_a_real_schedule(r):
    """The most chunks in flight on each pipeline rank equal what Megatron's schedules hold."""
    found = [peak_in_flight(r["pp"], i, r["vpp"], r["microbatches"], r["group"]) * r["vpp"] for i in range(r["pp"])]
    assert found == r["chunks"]


@pytest.mark.parametrize("r", RECORDS, ids=lambda r: f"p{r['pp']}v{r['vpp']}m{r['microbatches']}g{r['group']}")
def test_no_moment_holds_more_than_the_peak_and_one_holds_it(r):
    """The states before a backward reach the peak and never exceed it."""
    for stage, chunks in enumerate(r["chunks"]):
        states = moments_in_flight(r["pp"], stage, r["vpp"], r["microbatches"], r["group"])
        assert max(sum(s.microbatches) for s in states) == chunks
        assert all(len(s.microbatches) == r["vpp"] and s.microbatches[s.chunk] >= 1 for s in states)


@pytest.mark.parametrize("group", [None, 3, 9])
@pytest.mark.parametrize(("pp", "vpp"), [(2, 2), (4, 3), (8, 8)])
def test_a_long_step_is_represented_by_a_short_one(pp, vpp, group):
    """A stage comes into the same states, whatever is left over for the last group of microbatches."""
    for m in (1, 7, 24, 40, 41, 96, 101):
        few = representative(pp, vpp, m, group)
        assert few <= min(m, 7 * (group or pp))
        for stage in range(pp):
            found = moments_in_flight(pp, stage, vpp, few, group)
            assert set(found) == set(moments_in_flight(pp, stage, vpp, m, group)), (m, stage)


def test_whole_groups_leave_no_smaller_one():
    """288 microbatches on 8 stages are 36 groups of 8: whatever is in flight, the first chunk has at least 8 and at
    most two groups of it."""
    few = representative(8, 8, 288)
    states = moments_in_flight(8, 0, 8, few)
    assert few % 8 == 0
    assert {state.microbatches[0] for state in states} <= set(range(8, 17))
    assert min(state.microbatches[0] for state in states if sum(state.microbatches) == 71) == 15
