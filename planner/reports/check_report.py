"""The report of `plan check`: for each launch the rules that it breaks, whether it fits, and where the peak is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.reports import body
from planner.reports.blocks import Block, Heading, Items, Report, Table, Text, Tone
from planner.reports.rows import memory_rows
from planner.reports.sections import (
    assumptions,
    detail_blocks,
    memory_blocks,
    placed,
    step_blocks,
    understood,
)
from planner.reports.variations_report import variations_blocks, variations_body
from planner.reports.words import layout_line
from planner.units import gib, plural, seconds

if TYPE_CHECKING:
    from planner.layout import Layout
    from planner.memory.report import MemoryReport
    from planner.question import Question
    from planner.timing.report import StepTime
    from planner.variations import Variations


@dataclass(frozen=True, slots=True)
class Broken:
    """A rule that a launch breaks."""

    id: str
    sentence: str
    source: str
    given: str
    nearest: str = ""


@dataclass(frozen=True, slots=True)
class Checked:
    """The answer about one file. With `error` the file could not be judged and the rest is missing."""

    file: str
    error: str = ""
    question: Question | None = None
    layout: Layout | None = None
    broken: tuple[Broken, ...] = ()
    unrecognised: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    memory: MemoryReport | None = None
    step: StepTime | None = None
    variations: Variations | None = None
    """The launch with one thing changed, where its details were asked for."""

    @property
    def misspelt(self) -> dict[str, str]:
        """What is probably meant, by what was not understood."""
        from planner.interop.megatron.misspelt import misspelt

        return misspelt(self.unrecognised)

    @property
    def passed(self) -> bool:
        """It keeps every rule and fits."""
        return not self.error and not self.broken and self.memory is not None and self.memory.fits


def check_report(answers: Sequence[Checked], detail: bool = False) -> Report:
    """One answer is a mapping, several are a list in the order of the files. For a reader several are a line each, and
    `detail` puts their full reports first."""
    bodies = [_body(answer, detail) for answer in answers]
    full = answers if detail or len(answers) == 1 else ()
    blocks = [block for answer in full for block in _blocks(answer, detail)]
    if len(answers) > 1:
        blocks += [Heading("Launches, with GiB of one GPU at the peak"), _summary(answers), *_total(answers)]
    rows = [row for answer in answers for row in _rows(answer, detail)]
    title = f"Check of {answers[0].file}" if len(answers) == 1 else f"Check of {plural(len(answers), 'file')}"
    return Report(title, bodies[0] if len(bodies) == 1 else bodies, tuple(blocks), rows)


def _body(answer: Checked, detail: bool) -> dict[str, Any]:
    if answer.error or answer.question is None or answer.layout is None:
        return {"file": answer.file, "error": answer.error}
    inputs = body.inputs(answer.question)
    return {
        "version": body.VERSION,
        "file": answer.file,
        "model": inputs["model"],
        "inputs": inputs,
        "layout": body.layout(answer.layout, answer.question.workload.global_batch, answer.question.cluster),
        "rules": [
            {"id": b.id, "sentence": b.sentence, "source": b.source, "given": b.given, "nearest": b.nearest}
            for b in answer.broken
        ],
        "unrecognised": list(answer.unrecognised),
        "misspelt": answer.misspelt,
        "notes": list(answer.notes),
        "memory": body.memory(answer.memory, detail) if answer.memory else None,
        "step": body.step(answer.step) if answer.step else None,
        **variations_body(answer.variations),
    }


def _blocks(answer: Checked, detail: bool) -> Iterator[Block]:
    yield Text(answer.file, "title")
    if answer.error or answer.question is None or answer.layout is None:
        yield Text(f"× not judged: {answer.error}", "bad")
        return
    memory = answer.memory
    yield understood(answer.question, memory.capacity_bytes if memory else answer.question.cluster.capacity_bytes)
    yield Text(layout_line(answer.layout, answer.question.workload.global_batch), "title")
    yield from placed(answer.layout, answer.question.cluster)
    if answer.misspelt:
        yield Text("Probably misspelt:", "bad")
        yield Items(tuple(f"{given}: Megatron-LM knows {meant}" for given, meant in answer.misspelt.items()))
    if answer.broken:
        yield Text(f"× Breaks {plural(len(answer.broken), 'rule')}", "bad")
        yield Items(tuple(_broken_words(broken) for broken in answer.broken))
    else:
        yield Text("Keeps every rule.", "good")
    if answer.unrecognised:
        yield Text("Not understood, and so not accounted for:", "bad")
        yield Items(answer.unrecognised)
    if memory:
        yield from memory_blocks(memory)
        if detail:
            yield from detail_blocks(memory)
        yield from variations_blocks(answer.variations, memory)
    if answer.step:
        yield from step_blocks(answer.step)
    yield from assumptions(
        answer.question,
        answer.notes,
        memory.assumptions if memory else (),
        answer.step.assumptions if answer.step else (),
    )


def _broken_words(broken: Broken) -> str:
    nearest = f": {broken.nearest}" if broken.nearest else ""
    return f"{broken.sentence}, but {broken.given}{nearest} [{broken.id}] ({broken.source})"


def _summary(answers: Sequence[Checked]) -> Table:
    """One line for each file: the verdict, and why."""
    rows = []
    for answer in answers:
        peak = answer.memory.peak_stage if answer.memory else None
        rows.append(
            (
                answer.file,
                _verdict(answer),
                gib(peak.total_bytes) if peak else "",
                gib(peak.headroom_bytes) if peak else "",
                seconds(answer.step.seconds) if answer.step else "",
                " ".join([*(broken.id for broken in answer.broken), *answer.unrecognised])
                or answer.error.removeprefix(f"{answer.file}: "),
            )
        )
    return Table(("<file", "<verdict", "peak", "free", "step", "<broken rules, not understood"), tuple(rows))


def _verdict(answer: Checked) -> str:
    if answer.error:
        return "not judged"
    if answer.broken:
        return "breaks rules"
    return "passes" if answer.passed else "does not fit"


def _total(answers: Sequence[Checked]) -> Iterator[Block]:
    unread = sum(bool(answer.error) for answer in answers)
    passed = sum(answer.passed for answer in answers)
    failed = len(answers) - unread - passed
    tone: Tone = "good" if passed == len(answers) else "bad"
    yield Text(f"{plural(passed, 'launch', 'launches')} passed, {failed} failed, {unread} not judged.", tone)


def _rows(answer: Checked, detail: bool) -> list[dict[str, Any]]:
    """A row for each stage or term, or one that says why there is none."""
    shared = {"file": answer.file, "error": answer.error, "broken_rules": " ".join(b.id for b in answer.broken)}
    if answer.memory is None:
        return [shared]
    step = {"step_seconds": answer.step.seconds if answer.step else ""}
    return memory_rows(answer.memory, detail, beside=shared | step)
