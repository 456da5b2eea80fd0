"""How well a predictor orders what was measured: regret of its choice and rank correlations."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from statistics import median


@dataclass(frozen=True, slots=True)
class Ranking:
    """One group of measured layouts that differ in nothing else."""

    group: tuple[object, ...]
    layouts: int
    regret: float
    """Measured time of the layout ranked first over the best measured time, less one."""
    spearman: float
    kendall: float
    mape: float
    """Mean absolute relative error."""


def ranks(values: Sequence[float]) -> list[float]:
    """Rank of each value; equal values share the mean of their ranks."""
    order = sorted(range(len(values)), key=values.__getitem__)
    result = [0.0] * len(values)
    start = 0
    while start < len(order):
        end = start
        while end + 1 < len(order) and values[order[end + 1]] == values[order[start]]:
            end += 1
        for position in order[start : end + 1]:
            result[position] = (start + end) / 2
        start = end + 1
    return result


def spearman(a: Sequence[float], b: Sequence[float]) -> float:
    """Rank correlation; 0 where one side does not vary."""
    x, y = ranks(a), ranks(b)
    mean = (len(x) - 1) / 2
    covariance = sum((p - mean) * (q - mean) for p, q in zip(x, y, strict=True))
    spread = sum((p - mean) ** 2 for p in x) * sum((q - mean) ** 2 for q in y)
    return covariance / spread**0.5 if spread else 0.0


def kendall(a: Sequence[float], b: Sequence[float]) -> float:
    """Kendall's tau-a: concordant less discordant pairs, over all pairs."""
    score = pairs = 0
    for i in range(len(a)):
        for j in range(i):
            product = (a[i] - a[j]) * (b[i] - b[j])
            score += (product > 0) - (product < 0)
            pairs += 1
    return score / pairs if pairs else 0.0


def ranking(group: tuple[object, ...], members: Sequence[tuple[Hashable, float, float]]) -> Ranking | None:
    """The ranking of (layout, predicted, measured) runs; None with fewer than two layouts. A layout that was measured
    several times counts once, by its median."""
    measured: dict[Hashable, list[float]] = {}
    predicted: dict[Hashable, float] = {}
    for layout, prediction, seconds in members:
        measured.setdefault(layout, []).append(seconds)
        predicted[layout] = prediction
    if len(measured) < 2:
        return None
    truth = [median(measured[layout]) for layout in measured]
    guess = [predicted[layout] for layout in measured]
    first = min(range(len(guess)), key=guess.__getitem__)
    return Ranking(
        group=group,
        layouts=len(guess),
        regret=truth[first] / min(truth) - 1,
        spearman=spearman(guess, truth),
        kendall=kendall(guess, truth),
        mape=sum(abs(g / t - 1) for g, t in zip(guess, truth, strict=True)) / len(guess),
    )
