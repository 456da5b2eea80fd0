"""The error band that reports print with a step time, from the published runs: every source counts alike.

The constants in `planner/timing/efficiency.py` are these figures, rounded to whole per cents, so that a report need
not read the runs; a test compares them (`docs/adr/0018`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from planner.validation.measured import ENOUGH, architectures
from planner.validation.step import Run


@dataclass(frozen=True, slots=True)
class Band:
    """Absolute relative errors of one architecture's runs of dense models, or of mixtures."""

    architecture: str
    mixture: bool
    runs: int
    sources: int
    median_error: float
    p90_error: float


def weighted_quantile(values: Sequence[tuple[float, float]], fraction: float) -> float:
    """The least value such that those up to it have the fraction of all the weight; of (value, weight) pairs."""
    wanted = fraction * sum(weight for _, weight in values) - 1e-12
    reached = 0.0
    for value, weight in sorted(values):
        reached += weight
        if reached >= wanted:
            return value
    raise ValueError("a quantile needs at least one value.")


def weighted_errors(runs: Sequence[Run]) -> list[tuple[float, float]]:
    """(absolute relative error, weight) of each run: all of a source's runs together weigh 1, or a fifth of it a run
    where they are fewer than 5, so that no single log decides."""
    of_source = Counter(run.source for run in runs)
    return [(abs(run.error), 1 / max(of_source[run.source], ENOUGH)) for run in runs]


def error_band(runs: Sequence[Run], architecture: str, mixture: bool) -> Band | None:
    """The median and the 90th percentile on the sources that no constant was fitted to (role check); where those of all
    sources are larger, as where a kind of run was only fitted to, those. None for fewer than 5 runs."""
    own = [run for run in runs if architectures().get(run.card) == architecture and run.mixture == mixture]
    if len(own) < ENOUGH:
        return None
    kept_aside = [run for run in own if run.role == "check"]
    weighted = [weighted_errors(part) for part in (kept_aside, own) if part]
    half, most = (max(weighted_quantile(errors, fraction) for errors in weighted) for fraction in (0.5, 0.9))
    return Band(architecture, mixture, len(own), len({run.source for run in own}), half, most)


def error_bands(runs: Sequence[Run]) -> tuple[Band, ...]:
    """Of every architecture with runs enough, dense models before mixtures."""
    found = sorted({architectures()[run.card] for run in runs})
    bands = (error_band(runs, architecture, mixture) for mixture in (False, True) for architecture in found)
    return tuple(band for band in bands if band)
