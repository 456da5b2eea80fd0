"""What ran must fit: the published runs whose step was timed, through the accounting of memory.

A run's source says nothing of its memory but that it had enough. So this finds a prediction that is too high, where
`memory` finds both kinds, on far more layouts, cards and frameworks.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from planner.memory.accounting import make_accounting
from planner.validation.published import published_runs


@dataclass(frozen=True, slots=True)
class Ran:
    """A run that fitted, and what is predicted of its fullest stage [bytes]."""

    id: str
    source: str
    card: str
    gpus: int
    stage: int
    moment: str
    allocated_bytes: int
    total_bytes: int
    """With the reserve."""
    capacity_bytes: int

    @property
    def fits(self) -> bool:
        return self.total_bytes <= self.capacity_bytes


@dataclass(frozen=True, slots=True)
class FitRow:
    """The runs of one source on one kind of card."""

    source: str
    card: str
    runs: int
    fit: int
    """Those that are predicted to fit."""
    fullest: float
    """The largest predicted total over the card's capacity."""


def ran() -> Iterator[Ran]:
    """Every published run with the prediction of its fullest stage."""
    for run, (model, workload, implementation, cluster, layout) in published_runs():
        report = make_accounting("exact", model, workload, implementation, cluster).report(layout)
        stage = report.peak_stage
        yield Ran(
            id=run["id"],
            source=run["source"],
            card=cluster.card.name,
            gpus=cluster.gpus,
            stage=stage.stage,
            moment=stage.moment,
            allocated_bytes=stage.allocated_bytes,
            total_bytes=stage.total_bytes,
            capacity_bytes=stage.capacity_bytes,
        )


def fit_rows(runs: tuple[Ran, ...]) -> tuple[FitRow, ...]:
    """By source and card."""
    tables: dict[tuple[str, str], list[Ran]] = {}
    for run in runs:
        tables.setdefault((run.source, run.card), []).append(run)
    return tuple(
        FitRow(
            *key,
            runs=len(members),
            fit=sum(run.fits for run in members),
            fullest=max(run.total_bytes / run.capacity_bytes for run in members),
        )
        for key, members in sorted(tables.items())
    )
