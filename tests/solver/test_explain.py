"""Explanations: facts that alone are infeasible, each necessary, and hints that were solved."""

from __future__ import annotations

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.memory.accounting import make_accounting
from planner.solver.candidates import Pins, Space
from planner.solver.explain import facts, fits_with
from planner.solver.result import Status
from planner.solver.search import search
from planner.timing.step import Timing
from planner.workload import Workload

BY_HAND = ("13b-rule-of-thumb", "64xA100-80G", "rule-of-thumb",
           Pins(tp=(1,), cp=(1,), pp=(1,), zero=(0, 1), recompute=("none",), micro_batch=(1,)))  # fmt: skip
ONE_CARD = ("13b", "1xA100-80G", "exact", Pins())


@pytest.mark.parametrize("case", [BY_HAND, ONE_CARD], ids=["zero 1 by hand", "one card"])
def test_facts_are_infeasible_and_each_is_needed(case):
    """Counting only the parts that are named, nothing fits; without any one of them, something does."""
    name, gpus, accounting_name, pins = case
    model, cluster, workload = load_model(name), parse_gpus(gpus), Workload(4096, 1024)
    space = Space(model, workload, Implementation(), cluster, pins)
    accounting = make_accounting(accounting_name, model, workload, Implementation(), cluster)
    timing = Timing(model, workload, Implementation(), cluster)
    named = frozenset(f.id for f in facts(space, accounting, timing)) - {"capacity"}
    assert named and not fits_with(space, accounting, timing, named)
    for part in named:
        assert fits_with(space, accounting, timing, named - {part})


def test_every_hint_is_a_plan_that_fits():
    """Data parallelism with ZeRO 1 alone cannot hold 13B by hand; each remedy comes with its plan."""
    name, gpus, accounting, pins = BY_HAND
    result = search(load_model(name), Workload(4096, 1024), Implementation(), parse_gpus(gpus), accounting, pins)
    assert result.status is Status.INFEASIBLE and result.explanation is not None
    assert len(result.explanation.hints) >= 2
    for hint in result.explanation.hints:
        assert hint.plan.memory.fits and hint.command.startswith("plan --model")


def test_pins_that_break_a_rule_are_the_fact():
    """When the pinned degrees leave no legal layout, the fact is the rule that they break."""
    result = search(
        load_model("13b"), Workload(4096, 1024), Implementation(), parse_gpus("16xA100-80G"), pins=Pins(tp=(16,))
    )
    assert result.status is Status.INFEASIBLE and result.explanation is not None
    assert "tensor-heads" in {fact.id for fact in result.explanation.facts}
