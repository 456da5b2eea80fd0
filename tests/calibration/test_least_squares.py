"""Figures that the data determines are found, the others keep their default."""

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.calibration.least_squares import fit

RATIO = st.floats(0.6, 1.6)


def residuals_of(truth, parts):
    """Observations that take sum of parts[i][j] / x[j]: rates divide times."""

    def predict(x):
        return [sum(p / f for p, f in zip(row, x, strict=True)) for row in parts]

    measured = predict(truth)
    return lambda x: [math.log(m / p) for m, p in zip(measured, predict(x), strict=True)]


@settings(max_examples=100, deadline=None)
@given(RATIO, RATIO)
def test_two_planted_figures_are_recovered_from_different_mixtures(a, b):
    """Observations that mix two figures in different shares determine both."""
    parts = [(9, 1), (5, 5), (2, 8)]
    found = fit(["a", "b"], [0.5, 0.5], residuals_of((a, b), parts), [0.001] * 3)
    assert [e.determined for e in found] == [True, True]
    assert [e.ratio for e in found] == pytest.approx([a, b], rel=2e-3)
    assert all(e.deviation < 0.01 for e in found)


@settings(max_examples=50, deadline=None)
@given(RATIO)
def test_one_mixture_cannot_separate_two_figures(a):
    """Equal mixtures move the figure with the larger part; the other keeps its default, and the deviation says that
    the two are tangled."""
    found = fit(["large", "small"], [0.1, 0.1], residuals_of((a, 1.0), [(6, 4)] * 5), [0.001] * 5)
    assert [e.determined for e in found] == [True, False]
    assert found[1].ratio == 1.0
    alone = fit(["large", "none"], [0.1, 0.1], residuals_of((a, 1.0), [(10, 0)] * 5), [0.001] * 5)
    assert found[0].deviation > 20 * alone[0].deviation


def test_what_plays_no_part_is_not_determined():
    """A figure that no observation depends on keeps its default and its whole deviation, alone or beside others."""
    found = fit(["idle"], [0.3], lambda x: [0.2, 0.2], [0.01, 0.01])
    assert (found[0].ratio, found[0].deviation, found[0].determined) == (1.0, 0.3, False)
    found = fit(["idle", "busy"], [0.3, 0.3], residuals_of((1, 0.8), [(0, 1)]), [0.01])
    assert [e.determined for e in found] == [False, True]
    assert found[1].ratio == pytest.approx(0.8, rel=0.01)
    assert fit([], [], lambda x: [], []) == ()


def test_a_noisy_observation_moves_little():
    """An observation as uncertain as the prior moves the figure half of the way [in its logarithm]."""
    found = fit(["a"], [0.1], lambda x: [0.1 + math.log(x[0])], [0.1])
    assert math.log(found[0].ratio) == pytest.approx(-0.05, abs=1e-4)
    assert found[0].deviation == pytest.approx(0.1 / math.sqrt(2), rel=1e-3)
