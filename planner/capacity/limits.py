"""How far the recommended number of GPUs reaches: the longest sequence and the largest micro-batch that fit.

Each is asked twice: with the degrees of the recommended plan kept (virtual stages, ZeRO, recomputation and the split
are chosen again), and with any layout.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from planner.solver.result import Plan

if TYPE_CHECKING:
    from planner.capacity.case import Case, Rounds
    from planner.capacity.scenario import Scenario
    from planner.layout import Layout

WAVE = 4
MOST_TOKENS = 2**24
EIGHTHS = 8
LEANEST: dict[str, tuple[int | str, ...]] = {"micro_batch": (1,), "vpp": (1,), "recompute": ("full",)}
"""What takes least memory: one sequence at a time, no virtual stages, as many layers recomputed as it takes."""


@dataclass(frozen=True, slots=True)
class Limit:
    """The largest value found to fit, and the smallest larger one that was judged."""

    name: str
    """sequence or micro_batch."""
    degrees: str
    """kept: those of the recommended plan; any: every layout."""
    value: int
    plan: Plan
    proved: bool
    """Whether the plan is proved to be the fastest; else its time may differ from run to run and is not reported."""
    next_value: int | None
    """The next larger value that was judged and did not fit; None where everything that was asked fits."""
    next_status: str | None
    """`infeasible` is a proof; `unknown` and `failed` are not."""
    note: str


Ask = Callable[[int], "Scenario"]


def longest_sequence(case: Case, gpus: int, kept: bool) -> Rounds[Limit]:
    """By doubling from the question's length, then to an eighth. With degrees kept a step has as many sequences as
    before, else as many tokens."""
    question, plan = case.questions[gpus], case.known[gpus].plan
    assert plan is not None
    start = question.workload.seq_length

    def scenario(length: int) -> Scenario:
        what = f"{gpus} GPUs, sequences of {length} tokens"
        if not kept:
            return case.existence(what, case.question(gpus, seq_length=length), **LEANEST)
        longer = replace(question, workload=replace(question.workload, seq_length=length))
        return case.existence(what + ", degrees kept", longer, **LEANEST, **degrees(plan.layout))

    def finer(best: int) -> list[int]:
        return [best + k * best // EIGHTHS for k in range(1, EIGHTHS)] if best % EIGHTHS == 0 else []

    note = "to an eighth; a step keeps its " + ("sequences" if kept else "tokens")
    return (yield from _climb("sequence", kept, start, plan, MOST_TOKENS, scenario, finer, note))


def largest_micro_batch(case: Case, gpus: int, kept: bool) -> Rounds[Limit]:
    """Powers of two times the plan's own micro-batch. `note` says where the user pinned it."""
    question, plan = case.questions[gpus], case.known[gpus].plan
    assert plan is not None
    start = plan.layout.micro_batch
    most = question.workload.global_batch if case.pins.micro_batch is None else start
    pins = degrees(plan.layout) if kept else {}

    def scenario(size: int) -> Scenario:
        what = f"{gpus} GPUs, micro-batch {size}" + (", degrees kept" if kept else "")
        return case.existence(what, question, **{**LEANEST, "micro_batch": (size,)}, **pins)

    note = "pinned" if case.pins.micro_batch else "by doubling; it must divide the batch"
    return (yield from _climb("micro_batch", kept, start, plan, most, scenario, lambda best: [], note))


def degrees(layout: Layout) -> dict[str, tuple[int, ...]]:
    """The degrees of a layout as pins."""
    return {name: (getattr(layout, name),) for name in ("tp", "cp", "pp", "ep", "etp", "dp")}


def _climb(
    name: str,
    kept: bool,
    start: int,
    plan: Plan,
    most: int,
    scenario: Ask,
    finer: Callable[[int], list[int]],
    note: str,
) -> Rounds[Limit]:
    """Double from `start`, which fits, up to `most`, several at once, until one does not fit; then the finer values
    between the last two."""
    best, proved = start, True
    above: tuple[int, str] | None = None
    doublings = []
    while start * 2 <= most:
        start *= 2
        doublings.append(start)
    waves = [doublings[i : i + WAVE] for i in range(0, len(doublings), WAVE)]
    while waves:
        wave = waves.pop(0)
        outcomes = yield [scenario(value) for value in wave]
        for value, outcome in zip(wave, outcomes, strict=True):
            if outcome.plan is None:
                # The first value that does not fit ends the climb; once more between it and the best, finely.
                waves = [] if above is not None else [finer(best)] if finer(best) else []
                above = (value, outcome.word)
                break
            best, plan, proved = value, outcome.plan, outcome.word == "optimal"
        else:
            if above is not None:
                break
    next_value, next_status = above if above is not None else (None, None)
    return Limit(name, "kept" if kept else "any", best, plan, proved, next_value, next_status, note)
