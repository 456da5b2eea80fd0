"""Step times on clusters of several kinds of nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.cluster import NodeGroup
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout, Recompute
from planner.rules import broken_rules
from planner.solver.bounds import time_bound
from planner.stages import balanced_split
from planner.timing.step import Timing
from planner.topology.kinds import placements
from planner.workload import Workload

MODEL, WORKLOAD, IMPLEMENTATION = load_model("13b"), Workload(2048, 768), Implementation()


def timing(cluster):
    return Timing(MODEL, WORKLOAD, IMPLEMENTATION, cluster)


def test_equal_kinds_are_timed_as_one():
    """Two kinds that differ in name only give the form of one kind, where the only hop leaves the node in both."""
    plain = parse_gpus("16xA100-80G")
    group = plain.groups[0]
    twin = NodeGroup(replace(group.card, name="twin"), 1, 8)
    mixed = replace(plain, groups=(NodeGroup(group.card, 1, 8), twin))
    for layout in (Layout(tp=4, pp=2, dp=2, zero=1), Layout(tp=8, pp=2), Layout(tp=2, pp=2, dp=4, zero=3)):
        one, two = timing(plain).form(layout), timing(mixed).form(layout)
        assert two.mixed and replace(two, mixed=False) == one


def test_each_stage_is_timed_on_its_own_card():
    """A layer takes as long on a stage as on a cluster of that stage's card alone."""
    cluster = parse_gpus("8xH100-80G+8xA100-80G")
    layout = Layout(tp=2, pp=4, dp=2, zero=1, sequence_parallel=True)
    fast, slow = (timing(parse_gpus(f"16x{card}-80G")).form(layout).stages[0] for card in ("H100", "A100"))
    stages = timing(cluster).form(layout).stages
    assert [s.layer_ns for s in stages] == [fast.layer_ns, fast.layer_ns, slow.layer_ns, slow.layer_ns]
    turned = timing(cluster).form(replace(layout, placement=(1, 0))).stages
    assert [s.layer_ns for s in turned] == [slow.layer_ns, slow.layer_ns, fast.layer_ns, fast.layer_ns]


def test_a_stage_on_two_cards_waits_for_the_slower():
    """Without a pipeline the layers take as long as on the slower card alone, and the assumptions say so."""
    layout = Layout(tp=2, dp=8, zero=1, sequence_parallel=True)
    both = timing(parse_gpus("8xH100-80G+8xA100-80G"))
    slow = timing(parse_gpus("16xA100-80G"))
    assert both.form(layout).stages[0].layer_ns == slow.form(layout).stages[0].layer_ns
    step = both.step(replace(layout, stages=balanced_split(MODEL, 1)))
    assert any("wait for the slowest card" in line for line in step.assumptions)
    assert not any(
        "slowest card" in line for line in slow.step(replace(layout, stages=balanced_split(MODEL, 1))).assumptions
    )


@pytest.mark.parametrize("gpus", ["8xH100-80G+8xA100-80G", "8xA100-80G+4xA100-80G", "8xH100-80G+8xA100-80G+8xA100-40G"])
def test_components_sum_to_the_step(gpus):
    """The parts of a step, taken from its slowest stage's own card, sum to the step; no split beats the lower bound."""
    cluster = parse_gpus(gpus)
    timer = timing(cluster)
    tried = 0
    for pp in (1, 2, 3, 4, 6):
        for vpp in (1, 2):
            for placement in placements(cluster, pp):
                if cluster.gpus % (2 * pp):
                    continue
                layout = Layout(
                    tp=2,
                    pp=pp,
                    vpp=vpp,
                    dp=cluster.gpus // (2 * pp),
                    zero=1,
                    sequence_parallel=True,
                    recompute=Recompute("selective", ("layernorm",)),
                    placement=placement,
                )
                if broken_rules(MODEL, WORKLOAD, IMPLEMENTATION, layout, cluster.gpus, cluster):
                    continue
                whole = replace(layout, stages=balanced_split(MODEL, pp, vpp))
                step = timer.step(whole)
                assert sum(step.components.values()) == pytest.approx(step.seconds, rel=1e-6)
                assert time_bound(timer.form(layout), MODEL.kind_counts) <= step.step_ns
                tried += 1
    assert tried >= 4
