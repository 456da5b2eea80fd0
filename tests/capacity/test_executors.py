"""Where scenarios run: order, dying workers, a real Dask cluster."""

from __future__ import annotations

import os
import time

import pytest

from planner.capacity.executors import Cores, Dask
from planner.capacity.scenario import Outcome, Scenario, solve
from planner.errors import InputError
from planner.hardware import parse_gpus

from .conftest import toy_ask, toy_model


def scenario(name: str, gpus: int = 8) -> Scenario:
    return Scenario(name, toy_ask(toy_model(), parse_gpus(f"{gpus}xA100-80G")))


def late_or_dead(asked: Scenario) -> Outcome:
    """The first answers last; `die` takes its process with it."""
    if asked.key == "die":
        os._exit(9)
    time.sleep(0.3 if asked.key == "0" else 0)
    return Outcome(asked.key, None, error="none")


def raising(asked: Scenario) -> Outcome:
    if asked.key == "1":
        raise RuntimeError("the worker fell over")
    return Outcome(asked.key, None, error="none")


def test_results_keep_their_order() -> None:
    """Whoever is faster: outcomes come in the scenarios' order, and each is told once."""
    told = []
    with Cores(2, late_or_dead) as executor:
        outcomes = executor.run([scenario(str(i)) for i in range(5)], lambda: told.append(1))
    assert [outcome.key for outcome in outcomes] == ["0", "1", "2", "3", "4"]
    assert len(told) == 5


def test_a_dying_worker_costs_its_own_scenario() -> None:
    """The one that kills its process fails; those that shared the pool are solved again."""
    with Cores(2, late_or_dead) as executor:
        outcomes = executor.run([scenario(name) for name in ("0", "die", "2", "3")])
    assert ["died" in (outcome.error or "") for outcome in outcomes] == [False, True, False, False]


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
def test_quick_refusals_agree_with_the_search(gpus: int) -> None:
    """A count that is refused by its leanest layouts is the very one that the whole search proves infeasible."""
    from planner.catalog import load_model
    from planner.solver.search import search

    question = toy_ask(load_model("13b"), parse_gpus(f"{gpus}xA100-40G"))
    asked = (question.model, question.workload, question.implementation, question.cluster)
    whole = search(*asked, top=1, reserve_bytes=question.reserve_bytes)
    outcome = solve(Scenario("a", question, explain=True))
    assert outcome.status == whole.status
    assert outcome.candidates == whole.statistics["candidates"]
    assert bool(outcome.facts) == (not whole.plans)
    assert not solve(Scenario("a", question)).facts


def test_solving_never_raises() -> None:
    """A question that cannot be answered is a failed outcome with its sentence."""
    asked = scenario("fp8 on A100")
    object.__setattr__(asked.question, "accounting", "guess")
    outcome = solve(asked)
    assert outcome.status is None
    assert outcome.error is not None and "guess" in outcome.error


def test_one_process_and_two_agree() -> None:
    """The same plan, wherever it was found."""
    asked = [scenario("a", 8), scenario("b", 16)]
    with Cores(1) as one, Cores(2) as two:
        first, second = one.run(asked), two.run(asked)
    for a, b in zip(first, second, strict=True):
        assert a.plan is not None and b.plan is not None
        assert (a.plan.layout, a.plan.step.step_ns, a.status) == (b.plan.layout, b.plan.step.step_ns, b.status)


def test_an_unreachable_scheduler_is_one_sentence() -> None:
    """Nothing listens there, or Dask is not installed: both are said."""
    with pytest.raises(InputError, match="--scheduler"):
        Dask("tcp://127.0.0.1:9", timeout_seconds=1)


@pytest.mark.slow
def test_a_real_dask_cluster_solves_the_same() -> None:
    """Processes of a real LocalCluster give the plans that this process gives; a worker's exception is a failure."""
    distributed = pytest.importorskip("distributed")
    asked = [scenario("a", 8), scenario("b", 16)]
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, dashboard_address=None) as cluster:
        with Dask(cluster.scheduler_address) as executor:
            remote = executor.run(asked)
        with Dask(cluster.scheduler_address, raising) as executor:
            broken = executor.run([scenario("0"), scenario("1")])
    with Cores(1) as executor:
        here = executor.run(asked)
    assert [o.plan.step.step_ns for o in remote if o.plan] == [o.plan.step.step_ns for o in here if o.plan]
    assert [o.plan.layout for o in remote if o.plan] == [o.plan.layout for o in here if o.plan]
    assert "fell over" not in (broken[0].error or "")
    assert "fell over" in (broken[1].error or "")
