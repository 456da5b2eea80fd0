"""The shortest paths that split a pipeline of one chunk a stage, against every split tried."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from test_fill import PATTERNS, every_split, problem_of

from planner.layout import NO_RECOMPUTE
from planner.solver import chained as module
from planner.solver.candidates import FULL_BLOCK
from planner.solver.chained import chained
from planner.solver.split import solve_split
from planner.timing.form import StageTime, Tail


def unlike(problem, rng):
    """The problem with few or many microbatches, a part of the bubble filled, and tails that differ by stage: some of
    them negative until a stage holds enough, as hidden reductions are."""

    def stage(time: StageTime) -> StageTime:
        tails = [Tail("optimizer", rng.randint(0, 500), tuple(rng.randint(0, 900) for _ in time.layer_ns))]
        tails.append(Tail("reduce", -rng.randint(0, 4000), tuple(rng.randint(0, 3000) for _ in time.layer_ns)))
        return replace(time, fixed_ns=time.fixed_ns + rng.randint(0, 2000), tails=tuple(tails))

    step = problem.step
    changed = replace(
        step,
        num_microbatches=rng.choice((1, 2, 3, 8, 40)),
        stages=tuple(map(stage, step.stages)),
        once_ns=rng.randint(0, 100),
        filled_ns=rng.choice((0, 0, rng.randint(0, 3000))),
    )
    return replace(problem, step=changed)


@pytest.mark.parametrize("pattern", PATTERNS, ids=lambda p: "".join(map(str, p)))
@pytest.mark.parametrize(
    ("recompute", "must"),
    [(NO_RECOMPUTE, False), (FULL_BLOCK, False), (FULL_BLOCK, True)],
    ids=["none", "may", "must"],
)
def test_the_fastest_split_is_found_and_proved(pattern, recompute, must):
    """The least time of all splits that fit is both the bound and the time of the split found, whose bytes and
    nanoseconds the problem confirms; below a cutoff that none keeps the bound is above it."""
    rng, fitting, refuted, started = random.Random(7), 0, 0, 0
    for _ in range(60):
        problem = replace(unlike(problem_of(pattern, recompute, rng), rng), must_recompute=must)
        splits = [s for s in every_split(problem) if problem.fits(s) and (not must or any(s.recomputed))]
        found = chained(problem)
        if not splits:
            assert found is None or found.bound_ns is None
            refuted += 1
            continue
        fitting += 1
        if found is None:  # no split to start from, which only what must be recomputed may take away
            assert must
            continue
        started += 1
        least = min(map(problem.step_ns, splits))
        assert found.bound_ns == found.step_ns == least == problem.step_ns(found.split)
        assert found.split in splits
        below = chained(problem, least - 1)
        assert below is not None and below.bound_ns >= least
    assert fitting > 3 and refuted > 3 and started > 0.7 * fitting


@pytest.mark.parametrize("paths", [0, 1, 2, 4])
def test_a_bound_holds_however_few_paths_there_are(paths, monkeypatch):
    """Cut short, the bound is no higher than the least time and the split one that fits; CP-SAT proves the rest."""
    monkeypatch.setattr(module, "PATHS", paths)
    rng, short = random.Random(3), 0
    for _ in range(60):
        problem = replace(unlike(problem_of((0, 0, 1, 0, 1), FULL_BLOCK, rng), rng), must_recompute=False)
        splits = [s for s in every_split(problem) if problem.fits(s)]
        found = chained(problem)
        if not splits:
            continue
        least = min(map(problem.step_ns, splits))
        assert found.bound_ns <= least <= found.step_ns == problem.step_ns(found.split)
        short += found.bound_ns < least
        solved = solve_split(problem)
        assert (solved.status, solved.step_ns) == ("optimal", least)
    assert short or paths == 4


def test_work_is_counted_and_limited(monkeypatch):
    """Two runs count the same work, and fewer paths never more."""
    rng = random.Random(5)
    problem = replace(unlike(problem_of((0, 1) * 2, FULL_BLOCK, rng), rng), must_recompute=False)
    while chained(problem) is None or chained(problem).bound_ns is None:
        problem = replace(unlike(problem_of((0, 1) * 2, FULL_BLOCK, rng), rng), must_recompute=False)
    whole = chained(problem)
    assert whole.work_seconds == chained(problem).work_seconds > 0
    monkeypatch.setattr(module, "PATHS", 1)
    assert chained(problem).work_seconds <= whole.work_seconds
