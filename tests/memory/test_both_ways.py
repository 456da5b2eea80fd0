"""DualPipe's memory: two stages' weights on a rank, pp + 1 microbatches on each (arXiv:2412.19437, table 2)."""

from dataclasses import replace
from fractions import Fraction

import pytest
from tiny import LOCAL, model, report

from planner.hardware import parse_gpus
from planner.memory.in_flight import both_ways_in_flight
from planner.solver.search import search
from planner.solver.space import Pins
from planner.workload import Workload

BOTH = replace(LOCAL, schedule="dualpipe")


@pytest.mark.parametrize(("pp", "m", "alive"), [(4, 8, 5), (8, 64, 9), (8, 4, 4)])
def test_microbatches_in_flight(pp, m, alive):
    """One more than stages, or all there are: 1F1B's on a stage and on the mirrored one are pp - i and i + 1."""
    (state,), most = both_ways_in_flight(pp, m)
    assert (state.microbatches, most) == ((alive,), Fraction(alive))


@pytest.mark.parametrize("zero", [0, 1])
def test_inner_stages_hold_twice_their_states(zero):
    """A stage between the ends has no edges: weights, gradients and optimizer double to the byte, buckets aside."""
    m = model(layers=8)
    once, twice = (report(m, impl, batch=16, pp=4, dp=2, zero=zero).stages[1] for impl in (LOCAL, BOTH))
    assert twice.parameters == 2 * once.parameters
    for name in ("weights", "gradients", "optimizer"):
        assert twice.components[name] == pytest.approx(2 * once.components[name], abs=12 * 2 * 128)


def test_every_rank_keeps_as_many_microbatches_and_the_ends_hold_embedding_and_loss():
    """The first rank's second stage is the last one."""
    m = model(layers=8, tied=False)
    once, twice = (report(m, impl, batch=16, pp=4, dp=2).stages for impl in (LOCAL, BOTH))
    assert {stage.in_flight_microbatches for stage in twice} == {5}
    edges = [sum(s.parameters for s in stages) - 4 * n * 2 * _layer(m) for stages, n in ((once, 1), (twice, 2))]
    assert edges[1] == 2 * edges[0]
    assert twice[0].components["logits"] == twice[3].components["logits"] > 0


def _layer(m):
    return (report(m, LOCAL, batch=16, pp=4, dp=2).stages[1].parameters) // 2


def test_the_search_and_the_report_agree():
    """What the solver promises of a split, the report repeats: a search asserts it of every plan."""
    found = search(model(layers=8), Workload(8, 32), BOTH, parse_gpus("8xA100-80G"), pins=Pins(pp=(4,)))
    assert {plan.layout.pp for plan in found.plans} == {4}
    assert all(stage.in_flight_microbatches == 5 for stage in found.plans[0].memory.stages)
