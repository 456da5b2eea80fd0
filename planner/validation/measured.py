"""How far off memory and step time were measured to be, for the card in question: what `--robust` guards against.

The figures are computed from the published runs that ship with the project, each time; none is written down here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from planner.validation.memory import memory_runs
from planner.validation.step import percentile, predicted_runs

P90 = 0.9
ENOUGH = 5
"""With fewer runs on an architecture its own figure is not trusted alone."""


@dataclass(frozen=True, slots=True)
class Measured:
    """An error in 9 of 10 published runs at most, as a fraction; what it is of, and over how many runs."""

    error: float
    runs: int
    of: str


@lru_cache(maxsize=1)
def _architectures() -> dict[str, str]:
    from planner.hardware.cards import card_names, load_card

    return {name: load_card(name).architecture for name in card_names()}


def memory_error(architecture: str) -> Measured:
    """The p90 of under-prediction, measured / predicted - 1 (not below 0), of the fullest stage of each run. Toy models
    are left out: their peaks are workspaces and rounding."""
    worst: dict[tuple[str, str, str], float] = {}
    for run in memory_runs():
        if not run.toy:
            key = (run.source, run.id, run.card)
            worst[key] = max(worst.get(key, 0.0), run.measured_bytes / run.predicted_bytes - 1)
    own = [error for (_, _, card), error in worst.items() if _architectures().get(card) == architecture]
    return _larger(own, list(worst.values()), architecture)


def ranking_error(architecture: str) -> Measured:
    """The p90 of what layouts of one model on one cluster are off by against each other: an error that all of them
    share moves no layout past another, so each group's median error is taken out first. Groups with at least two
    layouts count."""
    groups: dict[tuple[object, ...], list[tuple[object, float]]] = {}
    cards: dict[tuple[object, ...], str] = {}
    for run in predicted_runs():
        groups.setdefault(run.group, []).append((run.layout, run.error))
        cards[run.group] = run.card
    own: list[float] = []
    every: list[float] = []
    for group, members in groups.items():
        if len({layout for layout, _ in members}) < 2:
            continue
        shared = 1 + median(error for _, error in members)
        off = [abs((1 + error) / shared - 1) for _, error in members]
        every += off
        if _architectures().get(cards[group]) == architecture:
            own += off
    return _larger(own, every, architecture)


def _larger(own: Sequence[float], every: Sequence[float], architecture: str) -> Measured:
    """The architecture's own p90; where it has few runs, the larger of its own and that of all cards."""
    if len(own) >= ENOUGH:
        return Measured(percentile(own, P90), len(own), f"{architecture} cards")
    error = percentile(every, P90)
    if own:
        error = max(error, percentile(own, P90))
    return Measured(error, len(every), "all cards")
