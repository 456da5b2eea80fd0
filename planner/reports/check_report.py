"""The report of `plan check`: for each launch the rules that it breaks, whether it fits, and where the peak is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from planner.reports import body
from planner.reports.blocks import Block, Heading, Items, Report, Text
from planner.reports.sections import assumptions, detail_blocks, memory_blocks, stage_rows, step_blocks, understood
from planner.reports.units import plural
from planner.reports.words import layout_words, split_words

if TYPE_CHECKING:
    from planner.commands.question import Question
    from planner.layout import Layout
    from planner.memory.report import MemoryReport
    from planner.timing.report import StepTime


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

    @property
    def passed(self) -> bool:
        """It keeps every rule and fits."""
        return not self.error and not self.broken and self.memory is not None and self.memory.fits


def check_report(answers: Sequence[Checked], detail: bool = False) -> Report:
    """One answer is a mapping, several are a list in the order of the files."""
    bodies = [_body(answer, detail) for answer in answers]
    blocks = [block for answer in answers for block in _blocks(answer, detail)]
    if len(answers) > 1:
        blocks += _total(answers)
    rows = [row for answer in answers for row in _rows(answer)]
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
        "layout": body.layout(answer.layout, answer.question.workload.global_batch),
        "rules": [
            {"id": b.id, "sentence": b.sentence, "source": b.source, "given": b.given, "nearest": b.nearest}
            for b in answer.broken
        ],
        "unrecognised": list(answer.unrecognised),
        "notes": list(answer.notes),
        "memory": body.memory(answer.memory, detail) if answer.memory else None,
        "step": body.step(answer.step) if answer.step else None,
    }


def _blocks(answer: Checked, detail: bool) -> Iterator[Block]:
    yield Text(answer.file, "title")
    if answer.error or answer.question is None or answer.layout is None:
        yield Text(f"× not judged: {answer.error}", "bad")
        return
    memory = answer.memory
    yield understood(answer.question, memory.capacity_bytes if memory else answer.question.cluster.capacity_bytes)
    yield Text(f"Layout: {layout_words(answer.layout)} · {split_words(answer.layout)}", "title")
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


def _total(answers: Sequence[Checked]) -> Iterator[Block]:
    unread = sum(bool(answer.error) for answer in answers)
    passed = sum(answer.passed for answer in answers)
    failed = len(answers) - unread - passed
    yield Heading("Total")
    tone = "good" if passed == len(answers) else "bad"
    yield Text(f"{plural(passed, 'launch', 'launches')} passed, {failed} failed, {unread} not judged.", tone)  # type: ignore[arg-type]


def _rows(answer: Checked) -> list[dict[str, Any]]:
    """A row for each stage, or one that says why there is none."""
    shared = {"file": answer.file, "error": answer.error, "broken_rules": " ".join(b.id for b in answer.broken)}
    if answer.memory is None:
        return [shared]
    seconds = answer.step.seconds if answer.step else ""
    return stage_rows(answer.memory, **shared, step_seconds=seconds)
