"""Schedules as graphs against the closed form that the solver uses."""

import random
from itertools import pairwise

import networkx as nx
import pytest

from planner.errors import InputError
from planner.timing.bubble import filled_ns
from planner.timing.form import StageTime, StepForm
from planner.timing.parts import LayerParts
from planner.timing.schedule import Operation, bars, makespan_ns, schedule_graph, schedule_orders, text_chart


def makespan(schedule, pp, microbatches, vpp, stages):
    """Makespan when stage i takes stages[i] = (forward, backward, weight gradients apart) ns for all its chunks."""

    def duration(op: Operation) -> int:
        return stages[op.slice % pp]["FBW".index(op.kind)] // vpp

    orders = schedule_orders(schedule, pp, microbatches, vpp, duration)
    graph = schedule_graph(orders, pp * vpp, duration)
    assert nx.is_directed_acyclic_graph(graph)
    return makespan_ns(graph)


def layer(forward, inputs, weights):
    """A layer that takes so many ns for each."""
    whole = forward + inputs + weights
    return LayerParts({}, {}, forward * 1e-9, (inputs + weights) * 1e-9, weights * 1e-9, whole, 0)


def closed_form(schedule, pp, microbatches, vpp, stages):
    whole = [sum(stage) for stage in stages]
    split = schedule in ("zb-h1", "dualpipe")
    filled = filled_ns(schedule, pp, [layer(*stage) for stage in stages], [1] * pp) if split else 0
    form = StepForm(microbatches, vpp, tuple(StageTime(w, (), ()) for w in whole), filled_ns=filled)
    return form.pipeline_ns([form.microbatch_ns(i, (), ()) for i in range(pp)])


@pytest.mark.parametrize(
    ("pp", "microbatches", "vpp"),
    [(1, 5, 1), (2, 2, 1), (4, 8, 1), (8, 64, 1), (4, 8, 2), (8, 16, 4), (2, 2, 3), (4, 4, 2), (4, 32, 5)],
)
def test_the_critical_path_of_equal_stages_is_the_closed_form(pp, microbatches, vpp):
    """1F1B and interleaved: m t + (p - 1) t / v exactly."""
    stages = [(1200, 2400)] * pp
    schedule = "interleaved" if vpp > 1 else "1f1b"
    assert makespan(schedule, pp, microbatches, vpp, stages) == closed_form(schedule, pp, microbatches, vpp, stages)


def test_uneven_stages_finish_before_the_closed_form_and_within_an_eighth_of_it():
    """With stages that differ by up to half, the closed form is an upper bound, at most 13 % high."""
    rng = random.Random(1)
    for _ in range(120):
        pp = rng.choice([2, 4, 8])
        microbatches = pp * rng.choice([1, 2, 4, 8])
        vpp = rng.choice([1, 2, 4])
        stages = [(12 * f, 24 * f) for f in (rng.randint(66, 100) for _ in range(pp))]
        schedule = "interleaved" if vpp > 1 else "1f1b"
        exact = makespan(schedule, pp, microbatches, vpp, stages)
        assert exact <= closed_form(schedule, pp, microbatches, vpp, stages) <= 1.13 * exact


@pytest.mark.parametrize(("pp", "microbatches"), [(2, 8), (4, 4), (4, 16), (8, 32)])
@pytest.mark.parametrize(
    ("stage", "left"),
    [
        ((100, 100, 100), 100),  # a third of 1F1B's
        ((100, 140, 60), 180),  # attention makes B longer than W
        ((100, 240, 60), 280),  # so does full recomputation
        ((100, 90, 120), 100),  # W longer than B delays the next stage's gradients
    ],
)
def test_weight_gradients_fill_the_bubble(pp, microbatches, stage, left):
    """ZB-H1's critical path has a bubble of (p - 1)(F + B - W) exactly, as table 2 of arXiv:2401.10241 says; the closed
    form is the same."""
    exact = makespan("zb-h1", pp, microbatches, 1, [stage] * pp)
    assert exact == microbatches * sum(stage) + (pp - 1) * left
    assert exact == closed_form("zb-h1", pp, microbatches, 1, [stage] * pp)


def test_uneven_stages_of_zero_bubble_are_near_their_closed_form():
    """With stages that differ by up to half, within 12 % of the graph, and never less than the slowest stage's work."""
    rng = random.Random(1)
    for _ in range(120):
        pp = rng.choice([2, 4, 8])
        microbatches = pp * rng.choice([1, 2, 4, 8])
        stages = [(12 * n, 15 * n, 9 * n) for n in (rng.randint(66, 100) for _ in range(pp))]
        exact, form = (of("zb-h1", pp, microbatches, 1, stages) for of in (makespan, closed_form))
        assert form == pytest.approx(exact, rel=0.12)
        assert form >= microbatches * max(map(sum, stages))


def test_the_bidirectional_schedule_is_no_slower_than_its_closed_form():
    """Feeding from both ends leaves (p / 2 - 1)(F + 2 (B + W) - 3 W): with F = B = W two thirds of a stage's pass where
    1F1B leaves three; the simulated order leaves no more."""
    stages = [(1000, 1000, 1000)] * 4
    form = closed_form("dualpipe", 4, 16, 1, stages)
    assert form == 16 * 3000 + 2000
    assert makespan("dualpipe", 4, 16, 1, stages) <= form


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
