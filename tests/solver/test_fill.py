"""Stages filled one after the other, by which splits are proved impossible, against every split tried."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from brute import _compositions
from fakes import FakeAccounting, FakeTiming, Weights, toy_cluster, toy_model

from planner.implementation import Implementation
from planner.layout import NO_RECOMPUTE, Layout
from planner.solver.candidates import FULL_BLOCK, Space
from planner.solver.fill import Chain
from planner.solver.problem import Split
from planner.solver.refine import Refiner
from planner.workload import Workload

PATTERNS = [(0, 0, 1, 1), (0, 0, 0, 1, 1), (1, 1, 0, 0), (0, 1) * 2, (0, 0, 1, 0, 1), (0,) * 5]


def every_split(problem):
    """All splits that a pipeline without virtual stages may have, memory apart."""
    for sizes in _compositions(problem.layers, problem.pp):
        if any(n < problem.minimum(stage) for stage, n in enumerate(sizes)):
            continue
        for redone in product(*(range(n + 1 if problem.may_recompute else 1) for n in sizes)):
            yield Split(sizes, redone)


def slowest_ns(problem, split):
    """The time of the slowest stage."""
    held = [(tuple(map(sum, zip(*c.layers, strict=True))), c.recomputed[0]) for c in problem.counts(split)]
    return max(problem.step.microbatch_ns(stage, *both) for stage, both in enumerate(held))


def problem_of(pattern, recompute, rng):
    """A problem whose kinds of layer weigh very differently on cards that hardly hold them."""
    weights = Weights(
        state=(rng.randint(1, 30), rng.randint(1, 60)),
        activation=(rng.randint(1, 60), rng.randint(30, 150)),
        embedding=rng.randint(0, 30),
        head=rng.randint(0, 30),
        layer_ns=(rng.randint(1, 3000), rng.randint(1, 3000)),
        capacity=rng.randint(60, 450),
    )
    model, workload = toy_model(pattern), Workload(16, 8)
    accounting, timing = FakeAccounting(model, workload, weights), FakeTiming(model, workload, weights)
    space = Space(model, workload, Implementation(), toy_cluster(4), rules=())
    return Refiner(space, accounting, timing).problem(Layout(pp=rng.choice((1, 2, 3, 4, 4, 4)), recompute=recompute))


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: "".join(map(str, p)))
@pytest.mark.parametrize("recompute", [NO_RECOMPUTE, FULL_BLOCK], ids=["none", "full"])
def test_stages_hold_the_model_exactly_where_some_split_does(pattern, recompute):
    """The least slowest stage of all splits that fit is what the stages hold, and a nanosecond less is not; where no
    split fits they hold nothing."""
    rng, fitting, refuted = random.Random(11), 0, 0
    for _ in range(100):
        problem = replace(problem_of(pattern, recompute, rng), must_recompute=False)
        chain = Chain(problem)
        found = [slowest_ns(problem, split) for split in every_split(problem) if problem.fits(split)]
        if not found:
            assert not chain.holds(10 * problem.longest_stage_ns)
            refuted += 1
            continue
        assert chain.holds(min(found)) and not chain.holds(min(found) - 1)
        split = chain.fill(min(found))
        assert sum(split.slices) == problem.layers
        assert problem.fits(split) and slowest_ns(problem, split) == min(found)
        fitting += 1
    assert fitting > 5 and refuted > 3
