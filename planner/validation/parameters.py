"""Parameter counts against published ones: `plan validate --what parameters`.

Whole models against what the catalogue's sources publish; ranks of a layout, stage by stage, against what training logs
print (`data/memory_parameters.json`, read as `plan check` reads a launch).
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data" / "memory_parameters.json"


@dataclass(frozen=True, slots=True)
class ParameterRow:
    """The models of one family of the catalogue, or the ranks that one source prints."""

    family: str
    models: int
    """Counts compared."""
    exact: int
    worst: str
    """The one that is furthest off; empty where all are exact."""
    worst_error: float
    """Its signed relative error."""


@dataclass(frozen=True, slots=True)
class ParameterValidation:
    rows: tuple[ParameterRow, ...]
    without_count: tuple[str, ...]
    """Models whose source publishes no exact count."""
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Published counts of ranks that were not used, by reason."""
    sources: Mapping[str, str] = field(default_factory=dict)
    """What each source of ranks' counts is."""


@dataclass(frozen=True, slots=True)
class RankCount:
    """Parameters of one rank of a pipeline stage, published and ours."""

    id: str
    source: str
    stage: int
    published: int
    counted: int

    @property
    def error(self) -> float:
        """Signed relative error."""
        return self.counted / self.published - 1


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return data


def rank_counts() -> Iterator[RankCount]:
    """Every published count of a rank with ours."""
    from planner.hardware import parse_gpus
    from planner.interop.megatron.launch import launch_from_words
    from planner.memory.accounting import make_accounting
    from planner.validation.memory import words_of

    for run in _data()["runs"]:
        launch = launch_from_words(words_of(run["args"]), run["id"], run["gpus"])
        cluster = parse_gpus(f"{run['gpus']}xH100-80G")
        exact = make_accounting("exact", launch.model, launch.workload, launch.implementation, cluster)
        stages = exact.report(launch.layout).stages
        for stage, published in run["parameters"].items():
            yield RankCount(run["id"], run["source"], int(stage), published, stages[int(stage)].parameters)


def validate_parameters() -> ParameterValidation:
    """Every model of the catalogue whose entry states a published count, derived from its shape; then every
    published count of a rank."""
    from planner.catalog import entries, raw_entries

    stated = {name: entry.get("parameters") for name, entry in raw_entries().items()}
    families: dict[str, list[tuple[str, float]]] = {}
    missing = []
    for entry in entries():
        published = stated[entry.name]
        if not isinstance(published, int):
            missing.append(entry.name)
            continue
        families.setdefault(entry.family, []).append((entry.name, entry.parameters / published - 1))
    ranks: dict[str, list[tuple[str, float]]] = {}
    for count in rank_counts():
        ranks.setdefault(f"ranks: {count.source}", []).append((count.id, count.error))
    rows = [_row(name, errors) for table in (families, ranks) for name, errors in sorted(table.items())]
    return ParameterValidation(tuple(rows), tuple(missing), _data()["left_out"], _data()["sources"])


def _row(family: str, errors: list[tuple[str, float]]) -> ParameterRow:
    name, error = max(errors, key=lambda item: abs(item[1]))
    return ParameterRow(family, len(errors), sum(e == 0 for _, e in errors), name if error else "", error)
