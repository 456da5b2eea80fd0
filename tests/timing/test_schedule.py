"""Schedules as graphs against the closed form that the solver uses."""

import random
from itertools import pairwise

import networkx as nx
import pytest

from planner.errors import InputError
from planner.timing.form import StageTime, StepForm
from planner.timing.schedule import Operation, bars, makespan_ns, schedule_graph, schedule_orders, text_chart


def makespan(schedule, pp, microbatches, vpp, stages, split_backward=False):
    """Makespan when stage i takes stages[i] = (forward, backward) ns for all of its chunks together."""

    def duration(op: Operation) -> int:
        forward, backward = stages[op.slice % pp]
        if split_backward:
            return {"F": forward, "B": backward // 2, "W": backward - backward // 2}[op.kind]
        return (forward if op.kind == "F" else backward) // vpp

    orders = schedule_orders(schedule, pp, microbatches, vpp, duration)
    graph = schedule_graph(orders, pp * vpp, duration)
    assert nx.is_directed_acyclic_graph(graph)
    return makespan_ns(graph)


def closed_form(pp, microbatches, divisor, stages):
    form = StepForm(microbatches, divisor, tuple(StageTime(f + b, (), ()) for f, b in stages))
    return form.pipeline_ns([form.microbatch_ns(i, (), ()) for i in range(pp)])


@pytest.mark.parametrize(
    ("pp", "microbatches", "vpp"),
    [(1, 5, 1), (2, 2, 1), (4, 8, 1), (8, 64, 1), (4, 8, 2), (8, 16, 4), (2, 2, 3), (4, 4, 2), (4, 32, 5)],
)
def test_the_critical_path_of_equal_stages_is_the_closed_form(pp, microbatches, vpp):
    """1F1B and interleaved: m t + (p - 1) t / v exactly."""
    stages = [(1200, 2400)] * pp
    schedule = "interleaved" if vpp > 1 else "1f1b"
    assert makespan(schedule, pp, microbatches, vpp, stages) == closed_form(pp, microbatches, vpp, stages)


def test_uneven_stages_finish_before_the_closed_form_and_within_an_eighth_of_it():
    """With stages that differ by up to half, the closed form is an upper bound, at most 13 % high."""
    rng = random.Random(1)
    for _ in range(120):
        pp = rng.choice([2, 4, 8])
        microbatches = pp * rng.choice([1, 2, 4, 8])
        vpp = rng.choice([1, 2, 4])
        stages = [(12 * f, 24 * f) for f in (rng.randint(66, 100) for _ in range(pp))]
        exact = makespan("interleaved" if vpp > 1 else "1f1b", pp, microbatches, vpp, stages)
        assert exact <= closed_form(pp, microbatches, vpp, stages) <= 1.13 * exact


@pytest.mark.parametrize(("pp", "microbatches"), [(2, 8), (4, 8), (4, 16), (8, 32)])
def test_splitting_the_backward_pass_shortens_the_bubble_to_a_third(pp, microbatches):
    """ZB-H1 simulated is within 8 % of the closed form with a third of the bubble, and faster than 1F1B."""
    stages = [(1000, 2000)] * pp
    exact = makespan("zb-h1", pp, microbatches, 1, stages, split_backward=True)
    assert exact == pytest.approx(closed_form(pp, microbatches, 3, stages), rel=0.08)
    assert exact < closed_form(pp, microbatches, 1, stages)


def test_the_bidirectional_schedule_is_no_slower_than_its_closed_form():
    """Feeding from both ends leaves no more than a third of 1F1B's bubble."""
    stages = [(1000, 2000)] * 4
    assert makespan("dualpipe", 4, 16, 1, stages, split_backward=True) <= closed_form(4, 16, 3, stages)


def test_every_operation_runs_once_on_the_device_that_holds_it():
    """4 stages, 8 microbatches, 2 chunks: 2 x 8 x 8 operations, and a device only holds slices i mod 4."""
    orders = schedule_orders("interleaved", 4, 8, 2)
    operations = [op for order in orders for op in order]
    assert len(operations) == len(set(operations)) == 2 * 8 * 8
    assert all(op.slice % 4 == device for device, order in enumerate(orders) for op in order)


def test_interleaving_needs_a_multiple_of_the_stages():
    """6 microbatches over 4 stages are refused with what is required and what was given."""
    with pytest.raises(InputError, match=r"divisible by pp \(4\), but has 6"):
        schedule_orders("interleaved", 4, 6, 2)


def test_a_chart_shows_the_warm_up_and_the_bubble():
    """Two stages, two microbatches, forward and backward alike: device 0 waits for the last stage, device 1 for it."""
    orders = schedule_orders("1f1b", 2, 2)
    graph = schedule_graph(orders, 2, lambda op: 10)
    assert text_chart(graph, columns=6) == "01.a.b\n.0a1b."
    drawn = bars(graph)
    assert max(bar.end for bar in drawn) == makespan_ns(graph) == 60
    assert all(a.end <= b.start for a, b in pairwise(drawn) if a.device == b.device)
