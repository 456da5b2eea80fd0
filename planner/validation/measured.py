"""How far off memory and step time were measured to be, for the card in question: what `--robust` guards against.

The figures are computed from the published runs that ship with the project, each time; none is written down here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from statistics import median

from planner.validation.memory import memory_runs
from planner.validation.step import Run, percentile, predicted_runs

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
def architectures() -> dict[str, str]:
    """Of every card, by name."""
    from planner.hardware.cards import card_names, load_card

    return {name: load_card(name).architecture for name in card_names()}


@lru_cache(maxsize=1)
def _memory_errors() -> tuple[tuple[str, float], ...]:
    """(card, measured / predicted - 1 of the stage that is worst, not below 0) of each run that is not a toy."""
    worst: dict[tuple[str, str, str], float] = {}
    for run in memory_runs():
        if not run.toy:
            key = (run.source, run.id, run.card)
            worst[key] = max(worst.get(key, 0.0), run.measured_bytes / run.predicted_bytes - 1)
    return tuple((card, error) for (_, _, card), error in worst.items())


@lru_cache(maxsize=1)
def _ranking_errors() -> tuple[tuple[str, float], ...]:
    """(card, error against the group's median error) of each run in a group of at least two layouts."""
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in predicted_runs():
        groups.setdefault(run.group, []).append(run)
    errors = []
    for members in groups.values():
        if len({run.layout for run in members}) > 1:
            shared = 1 + median(run.error for run in members)
            errors += [(run.card, abs((1 + run.error) / shared - 1)) for run in members]
    return tuple(errors)


def memory_error(architecture: str) -> Measured:
    """The p90 of under-prediction, measured / predicted - 1 (not below 0), of the fullest stage of each run. Toy models
    are left out: their peaks are workspaces and rounding."""
    return _larger(_memory_errors(), architecture)


def ranking_error(architecture: str) -> Measured:
    """The p90 of what layouts of one model on one cluster are off by against each other: an error that all of them
    share moves no layout past another, so each group's median error is taken out first. Groups with at least two
    layouts count."""
    return _larger(_ranking_errors(), architecture)


def _larger(errors: Sequence[tuple[str, float]], architecture: str) -> Measured:
    """The architecture's own p90; where it has few runs, the larger of its own and that of all cards."""
    own = [error for card, error in errors if architectures().get(card) == architecture]
    if len(own) >= ENOUGH:
        return Measured(percentile(own, P90), len(own), f"{architecture} cards")
    error = percentile([error for _, error in errors], P90)
    if own:
        error = max(error, percentile(own, P90))
    return Measured(error, len(errors), "all cards")
