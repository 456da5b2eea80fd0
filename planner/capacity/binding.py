"""What binds at a number of GPUs: a rule, the batch, the model's states, or the activations.

Where nothing fits, the solver's facts say so: a minimal set of memory parts, of which dropping any one would make room.
Activations are named where they are in that set, as they are the first that a user can change. Where a plan fits, the
accounting says what fills the fullest GPU.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from planner.units import size

if TYPE_CHECKING:
    from planner.capacity.case import Case, Rounds
    from planner.capacity.scenario import Outcome
    from planner.memory.report import StageMemory
    from planner.question import Question

Kind = Literal["states", "activations", "buffers", "batch", "rule", "unknown"]
GROUPS: dict[Kind, tuple[str, ...]] = {
    "states": ("weights", "gradients", "optimizer"),
    "activations": ("activations", "logits"),
    "buffers": ("buffers",),
}


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds, and how we know."""

    kind: Kind
    sentence: str


def fullest(stage: StageMemory) -> tuple[Kind, int]:
    """What takes most of a stage's memory: states, activations (with logits) or buffers, and its bytes."""
    amounts = {kind: sum(v for k, v in stage.components.items() if k in parts) for kind, parts in GROUPS.items()}
    kind = max(amounts, key=lambda k: amounts[k])
    return kind, amounts[kind]


def of_plan(outcome: Outcome) -> Binding:
    """What fills the fullest GPU of a plan that fits."""
    assert outcome.plan is not None
    stage = outcome.plan.memory.peak_stage
    kind, amount = fullest(stage)
    return Binding(
        kind,
        f"{kind} fill most of the fullest GPU ({size(amount)} of {size(stage.capacity_bytes)}, "
        f"{size(stage.headroom_bytes)} stay free)",
    )


def why_not(case: Case, gpus: int) -> Rounds[Binding]:
    """What keeps a count from holding the model: the solver's facts, and where no layout is legal, whether another
    batch would make one so (solved)."""
    outcome, question = case.known[gpus], case.questions[gpus]
    if not outcome.refuted:
        return Binding("unknown", outcome.error or "the time limit came before a plan or a proof")
    if outcome.candidates == 0:
        return (yield from _without_batch(case, gpus, question))
    (outcome,) = yield [replace(case.scenario(f"{gpus} GPUs, why not", question), explain=True)]
    if not outcome.refuted:
        return Binding("unknown", outcome.error or "the time limit came before an explanation")
    parts = {id for id, _ in outcome.facts}
    order: tuple[Kind, ...] = ("activations", "states", "buffers")
    kind: Kind = next((kind for kind in order if parts & set(GROUPS[kind])), "rule")
    return Binding(kind, "; ".join(sentence for _, sentence in outcome.facts))


def _without_batch(case: Case, gpus: int, question: Question) -> Rounds[Binding]:
    """No legal layout: is it the batch that does not divide, or a rule?"""
    batch = question.workload.global_batch
    free = replace(question, workload=replace(question.workload, global_batch=batch * gpus))
    (relaxed,) = yield [case.scenario(f"{gpus} GPUs, a batch that divides", free)]
    if relaxed.candidates:
        return Binding(
            "batch",
            f"no layout of {gpus} GPUs divides the global batch of {batch}; one of {batch * gpus} would do (solved)",
        )
    rules = tuple(broken_rules(case, question))
    named = "; without any one of these rules there would be one: " + ", ".join(rules) if rules else ""
    reasons = "; ".join(sentence for _, sentence in case.known[gpus].facts)
    return Binding("rule", (reasons or "no layout keeps the validity rules and what was pinned") + named)


def broken_rules(case: Case, question: Question) -> list[str]:
    """Ids of the rules of which any single one, left out, would make some layout legal."""
    from planner.rules import RULES
    from planner.solver.candidates import Space

    def legal_without(left_out: object) -> bool:
        rules = tuple(rule for rule in RULES if rule is not left_out)
        model, cluster, work = question.model, question.cluster, question.workload
        return next(iter(Space(model, work, question.implementation, cluster, case.pins, rules)), None) is not None

    return [rule.id for rule in RULES if legal_without(rule)]
