"""The search against a brute force over every layout, and every plan against the independent validator."""

from __future__ import annotations

import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent))

from brute import best_ns, degrees
from fakes import FakeAccounting, FakeTiming, Weights, toy_cluster, toy_model
from validator import faults

from planner.implementation import Implementation
from planner.solver.candidates import Pins, Space
from planner.solver.result import Status
from planner.solver.search import RUNNER_UP_EFFORT, Search
from planner.solver.search import degrees as identity
from planner.workload import Workload

IMPLEMENTATION = Implementation()
PHASES = (Phase.explicit, Phase.reuse, Phase.generate)
"""Without shrinking: a brute force is too slow to be repeated hundreds of times."""


def instance(pattern, gpus, batch, weights):
    """(model, workload, implementation, cluster, accounting, timing)."""
    model, workload = toy_model(pattern), Workload(16, batch)
    accounting, timing = FakeAccounting(model, workload, weights), FakeTiming(model, workload, weights)
    implementation = replace(IMPLEMENTATION, schedule="zb-h1") if weights.filled_ns else IMPLEMENTATION
    return model, workload, implementation, toy_cluster(gpus), accounting, timing


WEIGHTS = st.builds(
    Weights,
    state=st.tuples(st.integers(1, 200), st.integers(1, 400)),
    activation=st.tuples(st.integers(5, 100), st.integers(5, 100)),
    kept=st.integers(0, 5),
    transient=st.tuples(st.integers(0, 100), st.integers(0, 100)),
    embedding=st.integers(0, 200),
    head=st.integers(0, 200),
    capacity=st.integers(100, 1500),
    layer_ns=st.tuples(st.integers(1, 3000), st.integers(1, 3000)),
    recompute_ns=st.tuples(st.integers(0, 1000), st.integers(0, 1000)),
    embedding_ns=st.integers(0, 2000),
    head_ns=st.integers(0, 2000),
    tail_ns=st.integers(0, 2000),
    hidden_ns=st.integers(0, 4000),
    slow_tp=st.integers(0, 300),
    padding=st.integers(0, 3),
    filled_ns=st.one_of(st.just(0), st.integers(0, 4000)),
)
PATTERNS = st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple)
MANY = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck), phases=PHASES)


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow], phases=PHASES)
@given(PATTERNS, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 6]), WEIGHTS)
def test_agrees_with_brute_force(pattern, gpus, batch, weights):
    """The best plan is the best of every layout and split tried one by one, or both find none; every plan is sound."""
    model, workload, implementation, cluster, accounting, timing = case = instance(pattern, gpus, batch, weights)
    result = Search(*case, top=3).run()
    expected = best_ns(degrees(cluster, model, workload, implementation), model, accounting, timing)
    if expected is None:
        assert result.status is Status.INFEASIBLE and result.plans == ()
        return
    assert result.status is Status.OPTIMAL
    assert result.plans[0].step.step_ns == expected
    assert result.value == result.lower_bound == pytest.approx(expected / 1e9)
    for plan in result.plans:
        assert faults(plan, model, workload, implementation, cluster, accounting, timing) == []
    times = [plan.step.step_ns for plan in result.plans]
    assert times == sorted(times)
    assert len({identity(plan.layout) for plan in result.plans}) == len(result.plans)


def test_a_stage_that_holds_no_number_of_layers_is_no_error():
    """Where virtual stages leave a stage no number of layers that fits, the problem has no split, and others may."""
    weights = Weights(
        state=(2, 125), activation=(5, 24), kept=0, transient=(1, 14), embedding=15, head=41, capacity=100,
        layer_ns=(378, 1512), recompute_ns=(20, 343), embedding_ns=140, head_ns=1156, hop_ns=40, tail_ns=416,
        hidden_ns=521, slow_tp=0, padding=0,
    )  # fmt: skip
    model, workload, implementation, cluster, accounting, timing = case = instance((0, 1, 0, 0), 2, 4, weights)
    result = Search(*case, top=1).run()
    expected = best_ns(degrees(cluster, model, workload, implementation), model, accounting, timing)
    assert (result.plans[0].step.step_ns if result.plans else None) == expected


def test_enumerates_what_the_rules_allow():
    """The staged enumeration gives exactly the layouts that plain enumeration under the rules gives."""
    model, workload, implementation, cluster, *_ = instance((0, 1), 4, 4, Weights())
    assert set(Space(model, workload, implementation, cluster)) == set(
        degrees(cluster, model, workload, implementation)
    )


def test_runners_up_are_the_best_of_their_degrees():
    """Each runner-up is what the search finds when its own degrees are pinned, and nothing better is skipped."""
    case = instance((0,) * 6, 8, 16, Weights(capacity=600))
    result = Search(*case, top=4).run()
    best = {}
    for layout in Space(*case[:4]):
        best.setdefault(identity(layout), layout)
    values = []
    for layout in best.values():
        pins = Pins(**{n: (getattr(layout, n),) for n in ("tp", "cp", "pp", "ep", "etp", "dp", "micro_batch")})
        pinned = Search(*case, pins=pins, top=1).run()
        values += [plan.step.step_ns for plan in pinned.plans]
    assert [plan.step.step_ns for plan in result.plans] == sorted(values)[:4]


def test_two_runs_agree():
    """The same question twice gives the same plans."""
    case = instance((0, 0, 1, 1, 1), 8, 16, Weights(capacity=700))
    assert Search(*case).run().plans == Search(*case).run().plans


def test_more_memory_never_hurts():
    """The best step never gets slower as the card grows."""
    times = []
    for capacity in (90, 120, 200, 300, 1000):
        result = Search(*instance((0, 0, 0, 0), 8, 8, Weights(capacity=capacity)), top=1).run()
        times.append(result.plans[0].step.step_ns if result.plans else float("inf"))
    assert times == sorted(times, reverse=True) and len(set(times)) > 1


def test_pinned_split_is_kept():
    """A split that the user gives is the split of every plan."""
    case = instance((0,) * 6, 4, 8, Weights(capacity=2000))
    result = Search(*case, pins=Pins(pp=(2,), vpp=(1,), stage_layers=(2, 4))).run()
    assert result.plans and all(plan.layout.stage_layers == [2, 4] for plan in result.plans)


def test_time_limit_gives_no_false_proof():
    """With no time at all nothing is claimed to be optimal, and the bound is one that the optimum keeps."""
    case = instance((0,) * 6, 4, 8, Weights(capacity=2000))
    result = Search(*case, time_limit_seconds=0.0).run()
    optimum = Search(*case).run().value
    assert result.status in (Status.UNKNOWN, Status.FEASIBLE)
    assert (result.lower_bound or 0.0) <= optimum <= (result.value or optimum)


@pytest.mark.parametrize("seconds", [0.02, 0.1, 0.3])
def test_time_limit_is_kept(seconds):
    """However short the limit, the search ends soon after it, and claims no more than it proved."""
    case = instance((0, 1, 1) * 8, 64, 64, Weights(capacity=900))
    started = time.monotonic()
    result = Search(*case, time_limit_seconds=seconds).run()
    assert time.monotonic() - started < seconds + 1.5
    assert result.status in (Status.UNKNOWN, Status.FEASIBLE) or result.lower_bound == result.value


@pytest.mark.slow
@MANY
@given(PATTERNS, st.sampled_from([1, 2, 4]), st.sampled_from([1, 2, 4, 6]), WEIGHTS)
def test_agrees_with_brute_force_on_hundreds(pattern, gpus, batch, weights):
    """The same on 300 random instances."""
    model, workload, implementation, cluster, accounting, timing = case = instance(pattern, gpus, batch, weights)
    result = Search(*case, top=1).run()
    expected = best_ns(degrees(cluster, model, workload, implementation), model, accounting, timing)
    assert [plan.step.step_ns for plan in result.plans] == ([] if expected is None else [expected])


def test_work_for_runners_up_grows_with_the_proof():
    """A fourth of what the best plan took, and never less than the fixed allowance."""
    for proof, more in ((400, RUNNER_UP_EFFORT), (40_000, 10_000)):
        search = Search(*instance((0, 0), 4, 8, Weights()))
        search.found = {(): SimpleNamespace(step_ns=10)}
        for spent, enough in ((0, False), (more, False), (more + 1, True)):
            search.refiner.statistics["effort"] = proof + spent
            assert search._worked_enough(11) is enough
            assert search.runners_up_proved is not enough
