"""Parameter counts against those that the catalogue's sources publish: `plan validate --what parameters`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ParameterRow:
    """The models of one family of the catalogue."""

    family: str
    models: int
    exact: int
    worst: str
    """The model that is furthest off; empty where all are exact."""
    worst_error: float
    """Its signed relative error."""


@dataclass(frozen=True, slots=True)
class ParameterValidation:
    rows: tuple[ParameterRow, ...]
    without_count: tuple[str, ...]
    """Models whose source publishes no exact count."""


def validate_parameters() -> ParameterValidation:
    """Every model of the catalogue whose entry states a published count, derived from its shape and compared."""
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
    rows = []
    for family, errors in sorted(families.items()):
        name, error = max(errors, key=lambda item: abs(item[1]))
        rows.append(ParameterRow(family, len(errors), sum(e == 0 for _, e in errors), name if error else "", error))
    return ParameterValidation(tuple(rows), tuple(missing))
