"""The robust choice: regret in closed form against scenarios tried one by one, and what is guarded against."""

from __future__ import annotations

from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.solver.asked import asked
from planner.solver.limited import grown_limit_bytes
from planner.solver.robust import WIDTH, Errors, regret_seconds, robust
from planner.validation.measured import memory_error, ranking_error
from planner.workload import Workload

PARTS = st.dictionaries(st.sampled_from("abc"), st.floats(0, 100), max_size=3)


@given(PARTS, PARTS, st.floats(0, 0.9))
def test_regret_is_the_worst_of_all_corners(ours, theirs, error):
    """The closed form is the largest loss over every combination of parts that are off by the error either way."""
    names = sorted({*ours, *theirs})
    worst = max(
        sum((1 + sign * error) * (ours.get(n, 0.0) - theirs.get(n, 0.0)) for n, sign in zip(names, signs, strict=True))
        for signs in product((-1, 1), repeat=len(names))
    )
    assert regret_seconds(ours, theirs, error) == pytest.approx(worst, abs=1e-9)


def question(gpus: str = "8xA100-80G"):
    return asked(load_model("13b"), Workload(4096, 64), Implementation(), parse_gpus(gpus))


def test_the_choice_survives_and_loses_least():
    """It fits when memory grows by the error, no survivor has a smaller worst regret, and its price is the difference
    to the fastest."""
    errors = Errors(memory=0.05, time=0.15)
    found = robust(question(), errors)
    assert found is not None and found.chosen is not None
    stage = found.chosen.plan.memory.peak_stage
    reserve = stage.components["reserve"]
    assert stage.total_bytes <= grown_limit_bytes(stage.capacity_bytes, reserve, errors.memory)
    assert stage.allocated_bytes * 1.05 + reserve <= stage.capacity_bytes
    assert found.chosen.regret_seconds == min(j.regret_seconds for j in found.judged)
    assert found.price_seconds == found.chosen.plan.step.seconds - found.fastest.plan.step.seconds >= 0
    assert found.result.plans[0] is found.chosen.plan
    assert found.result.value == found.chosen.regret_seconds >= found.result.lower_bound


def test_without_errors_it_is_the_fastest():
    """With nothing to guard against, the fastest layout loses nothing."""
    found = robust(question(), Errors(0.0, 0.0))
    assert found is not None and found.chosen is not None
    assert found.chosen.plan.layout == found.fastest.plan.layout
    assert found.chosen.regret_seconds == 0 and found.price_seconds == 0


def test_nothing_may_survive():
    """Where only a full card holds the model, the error of memory leaves nothing, and that is said."""
    found = robust(question("4xA100-80G"), Errors(memory=0.9, time=0.1))
    assert found is not None and found.chosen is None and not found.result.plans
    assert not found.fastest.survives


def test_rivals_are_near_the_fastest():
    """Nobody slower by more than the stated share of the error is compared."""
    found = robust(question(), Errors(memory=0.0, time=0.2))
    assert found is not None
    limit = found.fastest.plan.step.seconds * (1 + WIDTH * 0.2)
    assert all(j.plan.step.seconds <= limit + 1e-9 for j in found.judged)


def test_errors_are_measured():
    """The errors are those of the runs that ship with the project: positive, below one, with their number."""
    for architecture in ("ampere", "hopper", "blackwell"):
        for measured in (memory_error(architecture), ranking_error(architecture)):
            assert 0 < measured.error < 1 and measured.runs >= 5
    assert ranking_error("ampere").of == "ampere cards"
    assert memory_error("never heard of").of == "all cards"
