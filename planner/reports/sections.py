"""Parts that several reports share: the question as understood, the memory of each stage, the time of a step."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.memory.form import COMPONENTS
from planner.reports.blocks import Bars, Block, Fields, Heading, Items, Table, Text
from planner.reports.words import cluster_words, memory_words, model_words, placement_words, workload_words
from planner.units import count, gib, percent, seconds, size

if TYPE_CHECKING:
    from collections.abc import Iterator

    from planner.cluster import Cluster
    from planner.layout import Layout
    from planner.memory.report import MemoryReport, StageMemory
    from planner.question import Question
    from planner.timing.report import StepTime

MOST_COLUMNS = 8
"""With more distinct stages than this, each stage is a line rather than a column."""


def understood(question: Question, capacity_bytes: int) -> Fields:
    """The question as it was read, in full words."""
    return Fields(
        (
            ("model", model_words(question.model)),
            ("cluster", cluster_words(question.cluster)),
            ("memory", memory_words(question, capacity_bytes)),
            ("workload", workload_words(question)),
        )
    )


def placed(layout: Layout, cluster: Cluster) -> Iterator[Block]:
    """What the stages stand on, where nodes differ."""
    words = placement_words(layout, cluster)
    if words:
        yield Text(words, "quiet")


def assumptions(question: Question | None, *more: tuple[str, ...]) -> Iterator[Block]:
    """Every default and assumption once, in order."""
    stated = question.defaults if question else ()
    lines = tuple(dict.fromkeys([*stated, *(line for lines in more for line in lines)]))
    if lines:
        yield Heading("Assumptions")
        yield Items(lines)


def fold(stages: tuple[StageMemory, ...]) -> list[tuple[str, StageMemory]]:
    """Neighbouring stages that are alike as one, with their name: `0`, `1-6`."""
    groups: list[list[StageMemory]] = []
    for stage in stages:
        if groups and _alike(groups[-1][0], stage):
            groups[-1].append(stage)
        else:
            groups.append([stage])
    return [(str(g[0].stage) if len(g) == 1 else f"{g[0].stage}-{g[-1].stage}", g[0]) for g in groups]


def stage_name(folded: str) -> str:
    """`stage 0`, `stages 1-6`."""
    return f"stages {folded}" if "-" in folded else f"stage {folded}"


def _alike(a: StageMemory, b: StageMemory) -> bool:
    return (
        a.components == b.components
        and a.card == b.card
        and (a.layers, a.parameters, a.in_flight_microbatches, a.moment, a.rule_of_thumb_bytes, a.capacity_bytes)
        == (b.layers, b.parameters, b.in_flight_microbatches, b.moment, b.rule_of_thumb_bytes, b.capacity_bytes)
    )  # fmt: skip


def memory_blocks(report: MemoryReport, verdict: bool = True) -> Iterator[Block]:
    """Table, verdict (unless it was given before) and bars of each stage's memory."""
    groups = fold(report.stages)
    yield Heading("Memory of one GPU on each pipeline stage, in GiB")
    yield (_by_column if len(groups) <= MOST_COLUMNS else _by_line)(groups)
    if verdict:
        yield Text(peak_words(report), "good" if report.fits else "bad")
    bars = tuple(
        (stage_name(name), tuple((part, stage.components[part]) for part in COMPONENTS)) for name, stage in groups
    )
    if not any(stage.card for _, stage in groups):
        yield Bars(bars, report.capacity_bytes)
        return
    for capacity in dict.fromkeys(stage.capacity_bytes for _, stage in groups):  # on a mixed cluster a drawing for each
        yield Bars(tuple(b for b, (_, s) in zip(bars, groups, strict=True) if s.capacity_bytes == capacity), capacity)


def peak_words(report: MemoryReport) -> str:
    """Whether it fits, and where and when memory is tightest."""
    peak = report.peak_stage
    largest = size(peak.components[peak.peak_component])
    alike = len(fold(report.stages)) == 1
    card = f" ({peak.card})" if peak.card else ""
    where = "" if len(report.stages) == 1 else "on every stage alike, " if alike else f"on stage {peak.stage}{card}, "
    verdict = (
        f"Fits with {size(peak.headroom_bytes)} free"
        if report.gpus_fit
        else f"Does not fit: over by {size(-peak.headroom_bytes)}"
    )
    if not report.host_fits:
        wanted, held = size(report.host_bytes_per_node), size(report.host_capacity_bytes)
        host = f"Does not fit the host: a node has {held} of memory and what is offloaded takes {wanted}. The GPUs: "
        verdict = host + verdict[0].lower() + verdict[1:]
    return f"{verdict} at the peak, {where}during {peak.moment}; the largest part is {peak.peak_component} ({largest})."


def _flight(stage: StageMemory) -> str:
    return f"{float(stage.in_flight_microbatches):.4g}"


def _verdict(stage: StageMemory) -> str:
    return "fits" if stage.fits else "over"


def _by_column(groups: list[tuple[str, StageMemory]]) -> Table:
    """A sum to read downwards: one column for each stage."""
    stages = [stage for _, stage in groups]
    rows = [
        *([("card", *(s.card for s in stages))] if any(s.card for s in stages) else []),
        ("layers", *(str(s.layers) for s in stages)),
        ("parameters", *(count(s.parameters) for s in stages)),
        ("microbatches in flight", *(_flight(s) for s in stages)),
        *((part, *(gib(s.components[part]) for s in stages)) for part in COMPONENTS if part != "reserve"),
        ("allocated", *(gib(s.allocated_bytes) for s in stages)),
        ("reserve", *(gib(s.components["reserve"]) for s in stages)),
        ("total", *(gib(s.total_bytes) for s in stages)),
        ("capacity", *(gib(s.capacity_bytes) for s in stages)),
        ("headroom", *(gib(s.headroom_bytes) for s in stages)),
        ("verdict", *(_verdict(s) for s in stages)),
        ("by rule of thumb", *(gib(s.rule_of_thumb_bytes) for s in stages)),
    ]
    titles = [stage_name(name) for name, _ in groups]
    return Table(("<", *titles), tuple(rows))


def _by_line(groups: list[tuple[str, StageMemory]]) -> Table:
    """One line for each stage, when there are too many for columns."""
    mixed = any(s.card for _, s in groups)
    rows = tuple(
        (
            name,
            *([s.card] if mixed else []),
            str(s.layers),
            count(s.parameters),
            _flight(s),
            *(gib(s.components[part]) for part in COMPONENTS),
            gib(s.total_bytes),
            gib(s.headroom_bytes),
            _verdict(s),
            gib(s.rule_of_thumb_bytes),
        )
        for name, s in groups
    )
    titles = (
        "stage",
        *(["<card"] if mixed else []),
        "layers",
        "parameters",
        "in flight",
        *COMPONENTS,
        "total",
        "headroom",
        "verdict",
        "rule of thumb",
    )
    return Table(titles, rows)


def detail_blocks(report: MemoryReport) -> Iterator[Block]:
    """What each distinct stage is made of: pieces, and the terms that are alive at its peak."""
    for name, stage in fold(report.stages):
        if stage.pieces:
            yield Heading(f"Pieces of {stage_name(name)}")
            yield Table(
                ("<piece", "count", "parameters", "kept per microbatch MiB", "transient MiB"),
                tuple(
                    (
                        piece.kind,
                        str(piece.count),
                        f"{piece.parameters:,}",
                        f"{piece.saved_bytes_per_microbatch / 2**20:,.1f}",
                        f"{piece.transient_bytes / 2**20:,.1f}",
                    )
                    for piece in stage.pieces
                ),
            )
        if stage.terms:
            yield Heading(f"Alive on {stage_name(name)} at its peak ({stage.moment})")
            rows = tuple((part, term, gib(amount, 3), sure) for part, term, amount, sure in stage.terms if amount)
            yield Table(("<component", "<term", "GiB", "<certainty"), rows, keys=2)


def step_blocks(step: StepTime) -> Iterator[Block]:
    """Seconds of a step, what they are made of, and how sure they are."""
    error = f", give or take {percent(step.relative_error, 0)}" if step.relative_error is not None else ""
    unknown = "" if step.relative_error is not None else " How far off that is has not been measured on this card."
    yield Heading("Predicted time of one step")
    yield Text(
        f"{seconds(step.seconds)}{error}: {step.tokens_per_second:,.0f} tokens/s "
        f"({step.tokens_per_second_per_gpu:,.0f} a GPU), {step.model_tflops_per_gpu:,.0f} TFLOP/s a GPU, "
        f"MFU {percent(step.mfu)}, pipeline bubble {percent(step.bubble_fraction)}; "
        f"at the card's peak it would take {seconds(step.lower_bound_seconds)}.{unknown}"
    )
    shown = [(name, value) for name, value in step.components.items() if value > 0]
    yield Table(
        ("<part", "time", "share"),
        tuple((name.replace("_", " "), seconds(value), percent(value / step.seconds)) for name, value in shown),
    )
