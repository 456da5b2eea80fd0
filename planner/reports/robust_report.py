"""The robust choice: what it guards against, what it costs against the fastest, and what each layout could lose."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.reports import body
from planner.reports.blocks import Block, Heading, Items, Table, Text
from planner.reports.objective_words import signed
from planner.reports.search_report import Section
from planner.reports.words import layout_words
from planner.units import gib, percent, plural, seconds, size

if TYPE_CHECKING:
    from planner.question import Question
    from planner.solver.robust import Judged, Robust
    from planner.validation.measured import Measured

SHOWN = 8


def robust_section(question: Question, found: Robust, memory: Measured, time: Measured) -> Section:
    """What `--robust` adds to a search."""
    batch = question.workload.global_batch

    def judged(j: Judged) -> dict[str, Any]:
        return {
            "layout": body.layout(j.plan.layout, batch),
            "step_seconds": j.plan.step.seconds,
            "headroom_bytes": j.plan.memory.peak_stage.headroom_bytes,
            "worst_regret_seconds": j.regret_seconds,
            "worst_rival": None if j.rival is None else body.layout(j.rival.layout, batch),
            "survives_memory_error": j.survives,
        }

    data = {
        "memory_error": _error_body(memory),
        "ranking_error": _error_body(time),
        "compared": found.compared,
        "price_seconds": found.price_seconds if found.chosen else None,
        "fastest": judged(found.fastest),
        "chosen": judged(found.chosen) if found.chosen else None,
        "survivors": [judged(j) for j in found.judged],
    }
    return Section("robust", data, tuple(_blocks(found, memory, time)))


def _error_body(measured: Measured) -> dict[str, Any]:
    return {"p90": measured.error, "runs": measured.runs, "of": measured.of}


def _blocks(found: Robust, memory: Measured, time: Measured) -> list[Block]:
    blocks: list[Block] = [Heading("The robust choice"), Items(tuple(_lines(found, memory, time)))]
    if found.judged:
        shown = list(found.judged[:SHOWN])
        if all(j.plan.layout != found.fastest.plan.layout for j in shown):
            shown.append(found.fastest)
        blocks += [_table(shown, found)]
        blocks += [
            Text(
                "Free: GiB beside the reserve. Regret: what a layout loses at worst against another that fits, when "
                "each part of the step is off by "
                "its error, alike in both (docs/adr/0009-robust-choice.md).",
                "quiet",
            )
        ]
    return blocks


def _lines(found: Robust, memory: Measured, time: Measured) -> list[str]:
    lines = [
        f"Memory may take {percent(memory.error)} more than counted (9 of 10 published runs stay below that; "
        f"{plural(memory.runs, 'run')}, {memory.of}); layouts are off against each other by up to "
        f"{percent(time.error)} of a step's parts ({plural(time.runs, 'run')}, {time.of})."
    ]
    fastest, chosen = found.fastest, found.chosen
    if chosen is None:
        lines.append(
            f"No layout fits with that much more memory: the fastest that fits as counted is "
            f"{layout_words(fastest.plan.layout)}, {_free(fastest)}."
        )
        return lines
    if chosen.plan.layout == fastest.plan.layout:
        lines.append("The fastest layout is the robust one too: nothing is paid.")
    else:
        lines.append(
            f"It costs {seconds(found.price_seconds)} a step "
            f"({signed(found.price_seconds / fastest.plan.step.seconds)}) by prediction against the fastest, "
            f"{layout_words(fastest.plan.layout)}."
        )
        lines.append(
            f"That one leaves {_free(fastest)} and "
            + (
                f"could lose {seconds(fastest.regret_seconds)} a step at worst."
                if fastest.survives
                else "would not fit if memory took that much more."
            )
        )
    against = f", against {layout_words(chosen.rival.layout)}" if chosen.rival else ""
    lines.append(
        f"At worst it loses {seconds(chosen.regret_seconds)} a step "
        f"({percent(chosen.regret_seconds / chosen.plan.step.seconds)}){against}; it leaves {_free(chosen)}."
    )
    return lines


def _free(judged: Judged) -> str:
    return f"{size(judged.plan.memory.peak_stage.headroom_bytes)} free"


def _table(judged: list[Judged], found: Robust) -> Table:
    best = found.fastest.plan.step.seconds
    rows = tuple(
        (
            "-" if j is found.fastest else str(number),
            layout_words(j.plan.layout),
            seconds(j.plan.step.seconds),
            signed(j.plan.step.seconds / best - 1),
            gib(j.plan.memory.peak_stage.headroom_bytes),
            seconds(j.regret_seconds) if j.survives else "does not fit",
        )
        for number, j in enumerate(judged, start=1)
    )
    return Table(("#", "<layout", "step", "behind", "free", "regret"), rows, marked=0)
