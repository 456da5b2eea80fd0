"""The fewest GPUs that hold a model: a ladder of counts up to the first that fits, then the counts of whole nodes below
it. Every smaller count that is named was refuted by the solver, not assumed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from planner.capacity.case import Case, Rounds

WAVE = 4
"""Counts judged at once. Fixed, so that what is judged does not depend on the machine."""
MOST_PROBED = 2**17


@dataclass(frozen=True, slots=True)
class Fewest:
    """The smallest count found to fit (None: none does, up to the largest judged) and the smaller ones judged."""

    gpus: int | None
    judged: tuple[int, ...]
    """Counts below `gpus` (or all, where none fits), ascending."""
    proved: bool
    """Every count in `judged` was proven infeasible."""
    largest: int
    """The largest count that was judged."""


def ladder(per_node: int, most: int = MOST_PROBED) -> list[int]:
    """Every even share of a node, then nodes by doubling: 1, 2, 4, 8, 16, 32, ..."""
    counts = [gpus for gpus in range(1, per_node + 1) if per_node % gpus == 0]
    while counts[-1] * 2 <= most:
        counts.append(counts[-1] * 2)
    return counts


def between(low: int, high: int, per_node: int) -> list[int]:
    """Counts strictly between two, in whole nodes (within one node every one is on the ladder)."""
    first = (low // per_node + 1) * per_node
    return list(range(first, high, per_node))


def fewest(case: Case, most: int = MOST_PROBED) -> Rounds[Fewest]:
    """Climb the ladder up to `most` GPUs, then search below the first count that fits."""
    rungs = [gpus for gpus in ladder(case.card.gpus_per_node, max(1, most)) if gpus <= most]
    found: int | None = None
    for start in range(0, len(rungs), WAVE):
        wave = rungs[start : start + WAVE]
        outcomes = yield from case.judge(wave)
        found = next((gpus for gpus, outcome in zip(wave, outcomes, strict=True) if outcome.fits), None)
        if found is not None:
            break
    if found is not None:
        below = [gpus for gpus in case.known if gpus < found]
        candidates = between(max(below, default=0), found, case.card.gpus_per_node)
        while candidates:
            wave = _spread(candidates)
            outcomes = yield from case.judge(wave)
            fitting = [gpus for gpus, outcome in zip(wave, outcomes, strict=True) if outcome.fits]
            found = min([found, *fitting])
            floor = max((gpus for gpus in wave if gpus < found), default=0)
            candidates = [gpus for gpus in candidates if floor < gpus < found and gpus not in case.known]
    judged = tuple(sorted(gpus for gpus in case.known if found is None or gpus < found))
    proved = all(case.known[gpus].refuted for gpus in judged)
    return Fewest(found, judged, proved, max(case.known, default=0))


def _spread(candidates: list[int]) -> list[int]:
    """All of a few candidates, or WAVE of many at even distances."""
    n = len(candidates)
    if n <= WAVE:
        return candidates
    return [candidates[(k + 1) * n // (WAVE + 1)] for k in range(WAVE)]
