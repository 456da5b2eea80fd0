"""Days, GPU-hours, cost and the knee, by hand."""

from __future__ import annotations

import pytest

from planner.capacity.economics import Terms, knee, training
from planner.capacity.quantities import Prices


def test_a_run_by_hand() -> None:
    """4 steps of 300 for 1000 tokens; at 90 s and half a goodput 720 s; on 10 GPUs 2 GPU-hours; at 3 each 6."""
    terms = Terms(tokens=1000, goodput=0.5, prices=Prices(every=3.0), deadline_seconds=720.0)
    run = training(90.0, 300, 10, "A100-80G", terms)
    assert (run.steps, run.seconds, run.gpu_hours, run.cost, run.meets_deadline) == (4, 720.0, 2.0, 6.0, True)
    assert run.days == 720 / 86_400


def test_without_a_price_or_a_deadline_nothing_is_said_of_them() -> None:
    """Absent is None, not zero and not missed."""
    run = training(1.0, 1, 1, "A100-80G", Terms(tokens=5))
    assert run.cost is None and run.meets_deadline is None


@pytest.mark.parametrize(
    ("points", "expected"),
    [
        ([(8, 80.0), (16, 40.0), (32, 25.0)], 16),  # 40 / 25 = 1.6 per doubling
        ([(8, 80.0), (16, 60.0), (32, 10.0)], 8),  # the first step that falls short ends it
        ([(8, 80.0), (16, 40.0), (32, 20.0)], None),
        ([(8, 80.0), (32, 25.0)], 8),  # two doublings by 3.2 are 1.79 each
        ([(8, 80.0), (32, 24.0)], None),  # by 3.33: 1.83 each
        ([(8, 80.0)], None),
        ([], None),
    ],
)
def test_the_knee_is_where_doubling_stops_nearly_halving(points: list, expected: int | None) -> None:
    """1.8 for each doubling, also where counts are not doublings of each other."""
    assert knee(points) == expected
