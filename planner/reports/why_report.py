"""Why not this layout: the rules it breaks, the stage that overflows, or the seconds it loses and where."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from planner.reports import body
from planner.reports.blocks import Block, Heading, Items, Table, Text
from planner.reports.objective_words import choices_body, named
from planner.reports.search_report import Section
from planner.reports.sections import memory_blocks, peak_words
from planner.reports.words import layout_words, split_words
from planner.solver.why import lost_by_part, same_choice
from planner.units import percent, seconds, size

if TYPE_CHECKING:
    from planner.question import Question
    from planner.solver.result import Plan, SearchResult
    from planner.solver.why import Why


def why_section(question: Question, reason: Why, result: SearchResult) -> Section:
    """What `--why` adds to a search; `result` is the search it is compared with."""
    best = result.plans[0] if result.plans else None
    return Section("why", _data(question, reason, best), tuple(_blocks(reason, best)), alone=True)


def verdict(reason: Why, best: Plan | None) -> str:
    """chosen, slower, equal, faster, overflows, breaks_rules or unknown."""
    if reason.broken:
        return "breaks_rules"
    if reason.overflowing is not None:
        return "overflows"
    if reason.plan is None:
        return "unknown"
    if best is None:
        return "faster"
    if same_choice(reason.given, best.layout):
        return "chosen"
    lost = reason.plan.step.step_ns - best.step.step_ns
    return "slower" if lost > 0 else "equal" if lost == 0 else "faster"


def _data(question: Question, reason: Why, best: Plan | None) -> dict[str, Any]:
    batch = question.workload.global_batch
    shown = reason.plan or reason.overflowing
    overflow = None
    if reason.overflowing is not None:
        peak = reason.overflowing.memory.peak_stage
        overflow = {
            "stage": peak.stage,
            "over_bytes": -peak.headroom_bytes,
            "total_bytes": peak.total_bytes,
            "capacity_bytes": peak.capacity_bytes,
            "largest_component": peak.peak_component,
            "largest_component_bytes": peak.components[peak.peak_component],
            "moment": peak.moment,
        }
    compared = reason.plan is not None and best is not None
    lost = lost_by_part(reason.plan, best) if compared else []  # type: ignore[arg-type]
    return {
        "given": choices_body(reason.given)["pinned"],
        "verdict": verdict(reason, best),
        "proved": reason.proved,
        "excluded_by_your_pins": list(reason.excluded),
        "rules": [
            {"id": b.id, "sentence": b.sentence, "source": b.source, "given": b.given, "nearest": b.nearest}
            for b in reason.broken
        ],
        "rules_hold_for_every_completion": reason.however,
        "overflow": overflow,
        "lost_seconds": reason.plan.step.seconds - best.step.seconds if compared else None,  # type: ignore[union-attr]
        "lost_seconds_by_component": dict(lost),
        "layout": None if shown is None else body.layout(shown.layout, batch),
        "memory": None if shown is None else body.memory(shown.memory),
        "step": None if reason.plan is None else body.step(reason.plan.step),
    }


def _asked(reason: Why) -> str:
    return ", ".join(named(name, value) for name, value in choices_body(reason.given)["pinned"].items())


def _blocks(reason: Why, best: Plan | None) -> list[Block]:
    blocks: list[Block] = [Heading(f"Why not {_asked(reason)}")]
    if reason.excluded:
        options = ", ".join(f"--{name.replace('_', '-')}" for name in reason.excluded)
        blocks.append(Text(f"Your own {options} rules it out; without that:"))
    match verdict(reason, best):
        case "breaks_rules":
            whose = "However the rest is chosen, it breaks" if reason.however else "At best it breaks"
            rules = "this rule" if len(reason.broken) == 1 else "these rules"
            blocks.append(Text(f"{whose} {rules}:", "bad"))
            blocks.append(Items(tuple(f"{rule} [{rule.id}: {rule.source}]" for rule in reason.broken)))
        case "overflows":
            assert reason.overflowing is not None
            blocks += _overflow(reason.overflowing)
        case "unknown":
            blocks.append(Text("The time limit came before an answer; give it longer with --time-limit.", "bad"))
        case "chosen":
            blocks.append(Text("It was chosen: the fastest layout that fits is one of these.", "good"))
        case _:
            assert reason.plan is not None
            blocks += _slower(reason, reason.plan, best)
    return blocks


def _overflow(plan: Plan) -> list[Block]:
    peak = plan.memory.peak_stage
    where = f"stage {peak.stage}" if len(plan.memory.stages) > 1 else "every GPU"
    sentence = (
        f"It does not fit. Even the variant that needs least memory overflows: {where} holds {size(peak.total_bytes)} "
        f"of {size(peak.capacity_bytes)}, {size(-peak.headroom_bytes)} too much, during {peak.moment}; the largest "
        f"part is {peak.peak_component} ({size(peak.components[peak.peak_component])})."
    )
    which = f"That variant: {layout_words(plan.layout)}; {split_words(plan.layout)}."
    return [Text(sentence, "bad"), Text(which, "quiet"), *memory_blocks(plan.memory, verdict=False)]


def _slower(reason: Why, plan: Plan, best: Plan | None) -> list[Block]:
    which = Text(f"The best of them: {layout_words(plan.layout)}; {split_words(plan.layout)}.", "quiet")
    fits = Text(peak_words(plan.memory), "quiet")
    if best is None:
        return [Text(f"It fits: {seconds(plan.step.seconds)} a step.", "good"), which, fits]
    lost = plan.step.seconds - best.step.seconds
    if lost < 0:
        word = f"It is {seconds(-lost)} a step faster: your own pins keep the search from it."
    elif lost == 0:
        word = "It is as fast to the nanosecond; of equals the simpler one is chosen."
    else:
        word = f"It fits, but loses {seconds(lost)} a step ({percent(lost / best.step.seconds)}): "
        word += f"{seconds(plan.step.seconds)} instead of {seconds(best.step.seconds)}."
        error = best.step.relative_error
        if error is not None and lost / best.step.seconds < error:
            word += f" That is within the {percent(error, 0)} that this model of time is off by."
    blocks: list[Block] = [Text(word, "bad" if lost > 0 else "good"), which, fits]
    if not reason.proved:
        blocks.append(Text("The time limit came before the proof that nothing of these is faster.", "bad"))
    rows = tuple(
        (
            part.replace("_", " "),
            seconds(best.step.components.get(part, 0.0)),
            seconds(plan.step.components.get(part, 0.0)),
            ("-" if amount < 0 else "+") + seconds(abs(amount)),
        )
        for part, amount in lost_by_part(plan, best)
    )
    if rows:
        blocks.append(Heading("Where the seconds go"))
        blocks.append(Table(("<part", "chosen", "this one", "loses"), rows))
    return blocks
