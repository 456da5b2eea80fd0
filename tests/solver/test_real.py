"""The search against a brute force under the real accounting and model of time, on small random models and clusters."""

from __future__ import annotations

import random
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from brute import best_ns, degrees
from real import real_case
from validator import faults

from planner.solver.result import Status
from planner.solver.search import Search


def agrees(seed: int) -> Status:
    """The proved best step is that of every legal layout, split and recomputation tried one by one."""
    case = real_case(random.Random(seed))
    model, workload, implementation, cluster, accounting, timing = case
    result = Search(*case, top=3).run()
    layouts = degrees(cluster, model, workload, implementation, micro_batches=(1, 2, 4, 8))
    expected = best_ns(layouts, model, accounting, timing)
    assert result.status is (Status.INFEASIBLE if expected is None else Status.OPTIMAL), seed
    for plan in result.plans[:1]:
        assert plan.step.step_ns == expected, seed
    for plan in result.plans:
        assert faults(plan, model, workload, implementation, cluster, accounting, timing) == [], seed
    return result.status


def test_agrees_with_brute_force_under_the_real_accounting():
    """A few random instances, of which some fit and some do not."""
    assert {agrees(seed) for seed in range(6)} >= {Status.OPTIMAL}


@pytest.mark.slow
def test_agrees_with_brute_force_under_the_real_accounting_on_hundreds():
    """The same on 300 random instances: dense and of experts, all degrees, virtual stages, uneven splits."""
    found = [agrees(seed) for seed in range(1000, 1300)]
    assert found.count(Status.OPTIMAL) > 100 and found.count(Status.INFEASIBLE) > 10
