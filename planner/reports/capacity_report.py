"""The capacity review for people: the question, the answer in a sentence, tables, charts, and what to distrust."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING

from planner.capacity.economics import DAY_SECONDS, HALVING
from planner.reports import capacity_data
from planner.reports.blocks import Block, Command, Fields, Heading, Items, Report, Text, Tone
from planner.reports.capacity_charts import review_charts, side_charts
from planner.reports.capacity_tables import (
    LAYOUTS,
    LIMITS,
    counts_table,
    limits_table,
    sensitivities_table,
    side_by_side,
)
from planner.reports.capacity_words import TIGHT_WORDS, days, gpu_hours, money
from planner.reports.search_report import is_tight
from planner.reports.words import layout_words, memory_words, model_words, split_words, workload_words
from planner.units import count, percent, plural, seconds, size

if TYPE_CHECKING:
    from planner.capacity.review import Point, Review, Side
    from planner.cluster import Card

NOT_MODELLED = (
    "Failures, restarts, checkpoints, evaluation and data loading, other than through the goodput.",
    "Queues, deliveries, and other jobs on the same network.",
    "Batch-size and sequence-length schedules: every step is like the one that was planned.",
    "Power, cooling, storage, network ports and staff: the cost is GPU-hours times their price, nothing else.",
    "Whether the model learns as well with another batch size: where a count changes it, its line says so.",
    "Allocator fragmentation and NCCL buffers other than through the reserve of each card.",
    "Counts between those listed: whole nodes are judged near the fewest GPUs and the deadline, doublings elsewhere.",
)


AS_NAMED: Mapping[str, str] = MappingProxyType({})


def capacity_report(review: Review, shared_options: str = "", typed: Mapping[str, str] = AS_NAMED) -> Report:
    """The review in all its readings; `shared_options` are what the user typed that `plan search` takes too, `typed`
    how each model was named."""
    terms = review.asked.terms
    models = ", ".join(model.name for model in review.asked.models)
    cards = ", ".join(card.name for card in review.asked.cards)
    title = f"Capacity review: {models} on {cards}"
    answers = [answer(side, review) for side in review.sides]
    if len(review.sides) > 1:
        answers.insert(0, best_words(review))
    assumed = _assumptions(review)
    blocks: list[Block] = [
        Text(title, "title"),
        Heading("The question"),
        Fields(tuple(_question(review))),
        Heading("The answer"),
        Text(answers[0], _tone(review)),
        *(Text(sentence) for sentence in answers[1:]),
    ]
    if review.failures:
        failures = tuple(f"{outcome.key}: {outcome.error}" for outcome in review.failures)
        blocks += [Heading("Scenarios that failed"), Items(failures)]
    blocks += [Heading("Side by side"), side_by_side(review), *review_charts(review)]
    for number, side in enumerate(review.sides):
        blocks += _side(side, review, number)
    blocks += [
        Heading("Assumptions"),
        Items(tuple(assumed)),
        Heading("What is not modelled"),
        Items(NOT_MODELLED),
        Heading("Versions"),
        Fields((*capacity_data.versions().items(), ("input hash", _hash(review)))),
        *_next(review, shared_options, typed),
    ]
    data = capacity_data.review_data(review, " ".join(answers), assumed, list(NOT_MODELLED))
    assert terms.tokens == data["inputs"]["tokens"]
    return Report(title, data, tuple(blocks), list(capacity_data.rows(review)))


def _tone(review: Review) -> Tone:
    return "good" if any(side.recommended for side in review.sides) else "bad"


def _hash(review: Review) -> str:
    return capacity_data.digest(capacity_data.inputs(review))


def _question(review: Review) -> Iterator[tuple[str, str]]:
    """What was asked, in full words."""
    asked, terms = review.asked, review.asked.terms
    for model in asked.models:
        yield "model", model_words(model)
    points = [point for side in review.sides for point in side.points]
    for card in asked.cards:
        question = next(point.question for point in points if point.question.cluster.card is card)
        price = terms.prices.of(card.name)
        rate = f", {money(price, terms.prices.currency)} a GPU-hour" if price is not None else ""
        capacity = card.capacity_bytes if question.accounting == "exact" else card.sold_bytes
        memory = memory_words(question, capacity)
        yield "card", f"{card.name}: {memory}; {card.gpus_per_node} a node{rate}"
    for model in asked.models:
        named = f"{model.name}: " if len(asked.models) > 1 else ""
        for words, where in _workloads([point for point in points if point.question.model == model]):
            yield "workload", f"{named}{words}{where}"
    yield "training", f"{count(terms.tokens)} tokens; {percent(terms.goodput, 0)} of the wall clock trains (goodput)"
    if terms.deadline_seconds is not None:
        yield "deadline", f"{days(terms.deadline_seconds / DAY_SECONDS)} days"
    yield (
        "counts",
        "GPUs " + ", ".join(f"{n:,}" for n in asked.counts)
        if asked.counts
        else ("the fewest GPUs that hold the model, and doublings as far as the knee and the deadline need"),
    )
    if asked.pins.pinned:
        yield "pinned", ", ".join(f"{name} {_pinned(getattr(asked.pins, name))}" for name in asked.pins.pinned)


def _workloads(points: Sequence[Point]) -> Iterator[tuple[str, str]]:
    """The workloads of one model in words; where there are several, on which cards or counts each is. A batch follows
    its count's odd factors, precision and kernels their card."""
    alike: dict[str, list[Point]] = {}
    for point in points:
        alike.setdefault(workload_words(point.question), []).append(point)
    if len(alike) == 1:
        yield next(iter(alike)), ""
        return

    def of_card(some: Sequence[Point], card: str) -> list[int]:
        return sorted({point.gpus for point in some if point.question.cluster.card.name == card})

    for words, some in alike.items():
        where = []
        for card in dict.fromkeys(point.question.cluster.card.name for point in some):
            here = of_card(some, card)
            counts = "" if here == of_card(points, card) else ", ".join(f"{n:,}" for n in here) + " GPUs of "
            where.append(f"{counts}{card}")
        yield words, f" (on {'; '.join(where)})"


def _pinned(values: object) -> str:
    return ",".join(map(str, values)) if isinstance(values, tuple | list) else str(values)


def answer(side: Side, review: Review) -> str:
    """One side in a sentence or two."""
    point = side.recommended
    least = _least(side)
    if point is None or point.outcome.plan is None or point.training is None:
        return f"{side.name}: no recommendation, as {side.reason}. {least}"
    run, found, terms = point.training, point.outcome.plan, review.asked.terms
    cost = f" at a cost of {money(run.cost, terms.prices.currency)}" if run.cost is not None else ""
    proof = "proved optimal" if point.outcome.word == "optimal" else "found, not proved optimal"
    tight = f" {TIGHT_WORDS}" if is_tight(found) else ""
    return (
        f"{side.name}: {plural(point.gpus, 'GPU')} {'trains' if point.gpus == 1 else 'train'} {count(terms.tokens)} "
        f"tokens in {days(run.days)} days, {gpu_hours(run.gpu_hours)} GPU-hours{cost} ({side.reason}). The layout is "
        f"{layout_words(found.layout)}, {proof}, with {size(found.memory.peak_stage.headroom_bytes)} free on the "
        f"fullest GPU.{tight} {least}"
    )


def _least(side: Side) -> str:
    fewest = side.fewest
    if fewest.gpus is None:
        proof = "proved" if fewest.proved else "not proved"
        return f"No number of GPUs up to {fewest.largest:,} that was judged holds the model ({proof})."
    if not fewest.judged:
        return f"{plural(fewest.gpus, 'GPU')} can hold it."
    smaller = ", ".join(f"{n:,}" for n in fewest.judged[-6:])
    one = len(fewest.judged) == 1
    proof = f"{'was' if one else 'were'} proven too few" if fewest.proved else "gave no plan, not all of them proven"
    return f"It takes at least {plural(fewest.gpus, 'GPU')}: {smaller} {proof}."


def best_words(review: Review) -> str:
    """Which side answers the question best."""
    recommended = [(side, side.recommended) for side in review.sides if side.recommended is not None]
    runs = [(side, point, point.training) for side, point in recommended if point.training is not None]
    if len(review.asked.models) > 1 or len(runs) < 2:
        return f"{len(runs)} of {len(review.sides)} combinations of model and card have a recommendation."
    priced = all(run.cost is not None for _, _, run in runs)
    what = "cheapest" if priced else "least in GPU-hours"

    def key(entry: tuple) -> tuple:
        run = entry[2]
        return (run.cost if priced else run.gpu_hours, entry[1].gpus)

    (side, point, run), (other, _, second) = sorted(runs, key=key)[:2]
    ratio = (second.cost / run.cost) if priced and run.cost and second.cost else second.gpu_hours / run.gpu_hours
    return (
        f"{side.card.name} is {what}: {plural(point.gpus, 'GPU')} for {days(run.days)} days; "
        f"{other.card.name} takes {ratio:.2f} times as much."
    )


def _side(side: Side, review: Review, number: int) -> Iterator[Block]:
    """The section of one model on one card."""
    terms = review.asked.terms
    yield Heading(f"{side.name}: every count that was judged")
    yield counts_table(side, terms)
    batches = {p.question.workload.global_batch for p in side.fitting}
    if len(batches) > 1:
        yield Text("The batch differs where a count of GPUs has an odd factor that has to divide it.", "quiet")
    yield Fields(tuple(_notes(side)))
    refuted = tuple(f"{plural(p.gpus, 'GPU')}: {p.binding.sentence}" for p in side.points if not p.outcome.fits)
    if refuted:
        yield Heading(f"{side.name}: why other counts do not hold it")
        yield Items(refuted)
    point = side.recommended
    if point is None or point.outcome.plan is None:
        return
    yield Heading(f"{side.name}: the recommended {plural(point.gpus, 'GPU')}")
    yield Fields(tuple(_recommended(side, point)))
    yield from side_charts(side, point, f"s{number}")
    if side.limits:
        yield Heading(f"{side.name}: how far {plural(point.gpus, 'GPU')} reach")
        yield limits_table(side)
        yield Fields(
            tuple(
                (f"{LIMITS[limit.name]}, {LAYOUTS[limit.degrees]}", layout_words(limit.plan.layout))
                for limit in side.limits
                if limit.proved
            )
        )
    if side.sensitivities:
        yield Heading(f"{side.name}: what if")
        yield sensitivities_table(side, point, terms)
        yield Fields(
            tuple(
                (change.name.replace("_", " "), layout_words(change.outcome.plan.layout))
                for change in side.sensitivities
                if change.outcome is not None and change.outcome.plan is not None
            )
        )
        yield from _robust(side, terms.deadline_seconds, side.memory_error or 0)


def _notes(side: Side) -> Iterator[tuple[str, str]]:
    counts = ", ".join(f"{n:,}" for n in side.knee_counts)
    meaning = f"the last count up to which every doubling divides the days by at least {HALVING}"
    if side.knee_gpus is not None:
        yield "knee", f"{plural(side.knee_gpus, 'GPU')}, {meaning}; sought among {counts}"
    elif len(side.knee_counts) > 1:
        yield "knee", f"not reached up to {side.knee_counts[-1]:,} GPUs ({meaning})"
    if side.fewest.proved and side.fewest.gpus is not None:
        yield (
            "fewest",
            f"{plural(side.fewest.gpus, 'GPU')}: shares of a node, doublings of nodes and the whole nodes just below "
            "were searched, and each refusal is the solver's proof",
        )


def _recommended(side: Side, point: Point) -> Iterator[tuple[str, str]]:
    plan, run = point.outcome.plan, point.training
    assert plan is not None and run is not None
    work = point.question.workload
    yield "why", side.reason
    yield "layout", layout_words(plan.layout)
    yield "stages", split_words(plan.layout)
    yield "batch", f"{work.global_batch:,} sequences of {work.seq_length:,} tokens, {work.precision}, {work.optimizer}"
    error = "" if plan.step.relative_error is None else f", give or take {percent(plan.step.relative_error, 0)}"
    yield "step", f"{seconds(plan.step.seconds)}{error}; MFU {percent(plan.step.mfu)}; {run.steps:,} steps"
    yield "memory", point.binding.sentence + (f". {TIGHT_WORDS}" if is_tight(plan) else "")
    bound = point.outcome.lower_bound_seconds
    if point.outcome.word == "optimal":
        yield "proof", "optimal: no layout that fits is faster under this model of time and memory"
    elif bound:
        yield "proof", f"none; no layout can take less than {seconds(bound)} a step"


def _robust(side: Side, deadline: float | None, memory_error: float) -> Iterator[Block]:
    """Which what-ifs break the recommendation."""
    broken = [c.sentence for c in side.sensitivities if c.outcome is not None and c.outcome.refuted]
    late = [c.sentence for c in side.sensitivities if c.training is not None and c.training.meets_deadline is False]
    point = side.recommended
    if point is not None and point.outcome.plan is not None:
        peak = point.outcome.plan.memory.peak_stage
        if peak.headroom_bytes < memory_error * peak.allocated_bytes:
            yield Text(
                f"The recommended layout itself leaves less than the {percent(memory_error, 0)} by which memory may be "
                "off: measure it early, or take the layout of that line.",
                "bad",
            )
    if broken:
        yield Text("Nothing fits any more with: " + "; ".join(broken) + ".", "bad")
    if deadline is not None:
        words = "; ".join(late) + "." if late else "none of these."
        yield Text("The deadline is missed with: " + words, "bad" if late else "plain")


def _assumptions(review: Review) -> list[str]:
    terms = review.asked.terms
    points = [side.recommended for side in review.sides if side.recommended is not None]
    points = points or [point for side in review.sides for point in side.points[:1]]
    lines = [f"{p.question.model.name}: {line}" for p in points for line in p.question.defaults]
    lines.append(
        f"goodput {percent(terms.goodput, 0)}: steps take {percent(terms.goodput, 0)} of the wall clock "
        "(Llama 3 reports more than 90 %, arXiv:2407.21783)"
    )
    lines.append("the global batch is the same at every step; the last, partial step counts as a whole one")
    for point in points:
        if point.outcome.plan is not None:
            lines += point.outcome.plan.memory.assumptions
            lines += point.outcome.plan.step.assumptions
            cluster = point.question.cluster
            lines.append(
                f"{point.question.cluster.card.name}: nodes of {cluster.gpus_per_node}, the vendor's reference network "
                f"({cluster.fabric.kind}, {cluster.fabric.bytes_per_second_per_gpu / 1e9:g} GB/s a GPU, non-blocking)"
            )
    if terms.memory_error is None and not review.asked.quick:
        lines += [_memory_error(side.card) for side in review.sides if side.sensitivities]
    return list(dict.fromkeys(lines))


def _memory_error(card: Card) -> str:
    from planner.validation.measured import memory_error

    found = memory_error(card.architecture)
    return (
        f"memory of {card.name} may be {percent(found.error)} more than counted: nine in ten published runs on "
        f"{found.of} ({found.runs}) stay within"
    )


def _next(review: Review, shared: str, models: Mapping[str, str]) -> Iterator[Block]:
    recommended = [(side, side.recommended) for side in review.sides if side.recommended]
    if recommended:
        yield Heading("Next")
    for side, point in recommended:
        model = shlex.quote(models.get(side.model.name, side.model.name))
        words = f"--model {model} --gpus {point.gpus}x{side.card.name} {shared}".strip()
        yield Command(f"the runners-up of {side.name}, and its memory in detail", f"plan {words} --detail")
