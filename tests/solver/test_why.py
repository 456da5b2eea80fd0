"""Why a layout was not chosen: the rule, the stage that overflows, or the seconds."""

from __future__ import annotations

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.solver.asked import Asked, asked
from planner.solver.candidates import Pins
from planner.solver.why import lost_by_part, same_choice, why
from planner.workload import Workload


def question(name: str = "13b", gpus: str = "8xA100-80G", pins: Pins | None = None) -> Asked:
    return asked(load_model(name), Workload(4096, 64), Implementation(), parse_gpus(gpus), pins=pins or Pins())


@pytest.mark.parametrize(
    ("given", "rule"),
    [
        (Pins(tp=(16,)), "world-size"),
        (Pins(tp=(3,)), "world-size"),
        (Pins(ep=(2,)), "expert-needs-experts"),
        (Pins(micro_batch=(3,)), "batch-divides"),
        (Pins(tp=(2,), pp=(2,), dp=(4,)), "world-size"),
        (Pins(pp=(1,), vpp=(2,)), "virtual-needs-pipeline"),
    ],
)
def test_a_broken_rule_is_named(given, rule):
    """Whatever is chosen for the rest, the rule is broken."""
    reason = why(question(), given)
    assert reason.broken and reason.plan is None and reason.overflowing is None
    assert rule in {b.id for b in reason.broken}
    assert reason.however


def test_an_overflow_is_the_leanest_variant():
    """Plain data parallelism cannot hold 13B: no variant of it has a lower peak than the one that is shown."""
    given = Pins(dp=(8,), zero=(0,), recompute=("none",))
    reason = why(question(), given)
    assert reason.overflowing is not None and not reason.overflowing.memory.fits
    peak = reason.overflowing.memory.peak_stage
    assert peak.headroom_bytes < 0 and peak.peak_component == "optimizer"
    assert same_choice(given, reason.overflowing.layout)
    # The same question with cards just large enough has an answer, and none a byte smaller.
    q = question()
    big = asked(q.model, q.workload, q.implementation, _with_capacity(q.cluster, peak.total_bytes), pins=given)
    small = asked(
        q.model, q.workload, q.implementation, _with_capacity(q.cluster, peak.total_bytes - 2**20), pins=given
    )
    assert big.search().plans and not small.search().plans


def _with_capacity(cluster, capacity_bytes):
    from dataclasses import replace

    groups = tuple(replace(g, card=replace(g.card, capacity_bytes=capacity_bytes)) for g in cluster.groups)
    return replace(cluster, groups=groups)


def test_lost_seconds_add_up():
    """The parts of the loss add up to the difference of the step times."""
    q = question()
    best = q.search().plans[0]
    reason = why(q, Pins(tp=(8,), pp=(1,)))
    assert reason.plan is not None
    lost = lost_by_part(reason.plan, best)
    assert sum(amount for _, amount in lost) == pytest.approx(reason.plan.step.seconds - best.step.seconds, abs=1e-6)
    assert reason.plan.step.step_ns >= best.step.step_ns
    assert same_choice(Pins(tp=(8,), pp=(1,)), reason.plan.layout)


def test_the_chosen_layout_is_recognised():
    """Asked about what it chose, it says so."""
    q = question()
    best = q.search().plans[0].layout
    assert same_choice(Pins(tp=(best.tp,), pp=(best.pp,)), best)
    assert not same_choice(Pins(tp=(best.tp * 2,)), best)


def test_the_users_own_pins_are_set_aside_and_named():
    """A pin that rules the layout out is the first reason; the answer is given without it."""
    reason = why(question(pins=Pins(tp=(2,))), Pins(tp=(4,)))
    assert reason.excluded == ("tp",)
    assert reason.plan is not None and reason.plan.layout.tp == 4
