"""Step times against published measurements: `plan validate --what step`."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from statistics import median

from planner.layout import Layout
from planner.timing.step import Timing
from planner.validation.published import published_data, published_runs
from planner.validation.ranking import Ranking, ranking


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run and its prediction."""

    id: str
    source: str
    role: str
    """fit: the constants were chosen with this source in view; check: they were not."""
    model: str
    card: str
    gpus: int
    precision: str
    layout: Layout
    measured_seconds: float
    predicted_seconds: float
    group: tuple[object, ...]
    """Runs of one group differ in layout alone."""
    mixture: bool = False
    """Of a mixture of experts."""

    @property
    def sharded(self) -> bool:
        """Weights are sharded over data parallelism (FSDP)."""
        return self.layout.zero >= 2

    @property
    def error(self) -> float:
        """Signed relative error."""
        return self.predicted_seconds / self.measured_seconds - 1


@dataclass(frozen=True, slots=True)
class StepRow:
    """Errors of the runs of one source on one kind of card."""

    source: str
    role: str
    card: str
    precision: str
    runs: int
    median_error: float
    """Median of the absolute relative errors."""
    p90_error: float
    bias: float
    """Median of the signed relative errors."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Errors of a kind of run over all of its sources."""

    label: str
    role: str
    runs: int
    median_error: float
    p90_error: float
    bias: float


@dataclass(frozen=True, slots=True)
class StepValidation:
    rows: tuple[StepRow, ...]
    rankings: tuple[Ranking, ...]
    """Where a source measured several layouts of one model on one cluster."""
    left_out: Mapping[str, int]
    """Records that were not used, by reason."""
    sources: Mapping[str, str]
    """What each source is."""
    runs: tuple[Run, ...]

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """What the project promises, on the sources that were fitted to and on those that were not."""
        found = []
        for label, belongs in KINDS.items():
            for role in ("fit", "check"):
                errors = [run.error for run in self.runs if run.role == role and belongs(run)]
                if errors:
                    sizes = [abs(error) for error in errors]
                    found.append(
                        Summary(label, role, len(sizes), median(sizes), percentile(sizes, 0.9), median(errors))
                    )
        return tuple(found)

    @property
    def best_first(self) -> float:
        """Share of the groups in which the layout ranked first is within 5 % of the best measured one."""
        return sum(r.regret <= 0.05 for r in self.rankings) / max(1, len(self.rankings))

    @property
    def mean_spearman(self) -> float:
        """Mean rank correlation of the groups with at least three layouts."""
        values = [r.spearman for r in self.rankings if r.layouts >= 3]
        return sum(values) / max(1, len(values))


KINDS: dict[str, Callable[[Run], bool]] = {
    "Megatron and NeMo on A100 and H100": lambda run: not run.sharded and run.card.startswith(("A100", "H100")),
    "Megatron and NeMo on Blackwell": lambda run: not run.sharded and run.card.startswith(("B", "G")),
    "fully sharded data parallel": lambda run: run.sharded,
}


def percentile(values: Iterable[float], fraction: float) -> float:
    """The value that a fraction of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


def predicted_runs() -> list[Run]:
    """Every measured run with its prediction."""
    roles = published_data()["sources"]
    runs = []
    for run, (model, workload, implementation, cluster, layout) in published_runs():
        step = Timing(model, workload, implementation, cluster).step(layout)
        release = run["id"].split("-")[1] if run["source"].startswith(("mbridge", "dgxc")) else run.get("when", "")
        runs.append(
            Run(
                id=run["id"],
                source=run["source"],
                role=roles[run["source"]]["role"],
                model=run["model"],
                card=cluster.card.name,
                gpus=cluster.gpus,
                precision=workload.precision,
                layout=layout,
                measured_seconds=run["seconds"],
                predicted_seconds=step.seconds,
                group=(run["source"], release, run["model"], run["gpus"], run["batch"], run["seq"], workload.precision),
                mixture=model.is_moe,
            )
        )
    return runs


def validate_step() -> StepValidation:
    """Errors by source, card and precision, and how well layouts of one model are ranked."""
    data = published_data()
    runs = predicted_runs()
    tables: dict[tuple[str, str, str, str], list[float]] = {}
    for run in runs:
        tables.setdefault((run.source, run.role, run.card, run.precision), []).append(run.error)
    rows = tuple(
        StepRow(
            *key,
            runs=len(errors),
            median_error=median(map(abs, errors)),
            p90_error=percentile(map(abs, errors), 0.9),
            bias=median(errors),
        )
        for key, errors in sorted(tables.items())
    )
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    rankings = tuple(
        r
        for key, members in groups.items()
        if (r := ranking(key, [(m.layout, m.predicted_seconds, m.measured_seconds) for m in members]))
    )
    sources = {name: source["cite"] for name, source in data["sources"].items()}
    return StepValidation(rows, rankings, data["left_out"], sources, tuple(runs))
