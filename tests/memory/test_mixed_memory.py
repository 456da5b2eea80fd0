"""Memory on clusters of several kinds of nodes."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.accounting import make_accounting
from planner.stages import balanced_split
from planner.workload import Workload

MODEL, WORKLOAD = load_model("13b"), Workload(2048, 768)


def report(gpus, layout, name="exact", reserve=None):
    split = replace(layout, stages=balanced_split(MODEL, layout.pp))
    return make_accounting(name, MODEL, WORKLOAD, Implementation(), parse_gpus(gpus), reserve).report(split)


@pytest.mark.parametrize("name", ["exact", "rule-of-thumb"])
@pytest.mark.parametrize("cards", [("A100-80G", "A100-40G"), ("H100-80G", "A100-80G"), ("A100-40G", "V100-32G")])
def test_each_stage_is_counted_on_its_own_card(name, cards):
    """A stage holds what it holds on a cluster of its own card alone, reserve, kernels and capacity included."""
    layout = Layout(tp=2, pp=4, dp=2, zero=1, sequence_parallel=True)
    mixed = report(f"8x{cards[0]}+8x{cards[1]}", layout, name).stages
    alone = [report(f"16x{card}", layout, name).stages for card in cards]
    for i, stage in enumerate(mixed):
        assert stage.card == cards[i // 2]
        assert replace(stage, card="") == alone[i // 2][i]


def test_the_order_decides_which_card_a_stage_has():
    """The other placement gives the first stages the other card."""
    layout = Layout(tp=2, pp=4, dp=2, zero=1, sequence_parallel=True, placement=(1, 0))
    stages = report("8xA100-80G+8xA100-40G", layout).stages
    assert [stage.card for stage in stages] == ["A100-40G", "A100-40G", "A100-80G", "A100-80G"]
    assert stages[0].capacity_bytes < stages[3].capacity_bytes


def test_a_stage_on_two_cards_has_the_room_of_the_smaller():
    """Without a pipeline all ranks hold the same, so the smaller card's capacity and reserve count, and it is said."""
    found = report("8xA100-80G+8xA100-40G", Layout(tp=4, dp=4, zero=1, sequence_parallel=True))
    assert found.stages[0].card == "A100-40G"
    assert found.capacity_bytes == parse_gpus("8xA100-40G").capacity_bytes
    assert any("the A100-40G limits them" in line for line in found.assumptions)


def test_a_given_reserve_is_kept_on_every_card():
    """--reserve is that of all stages; the default is each card's own."""
    layout = Layout(tp=8, pp=2, sequence_parallel=True)
    given = report("8xA100-80G+8xA100-40G", layout, reserve=2**30)
    assert {stage.components["reserve"] for stage in given.stages} == {2**30}
    own = report("8xA100-80G+8xA100-40G", layout)
    cards = [parse_gpus(f"8x{name}").card for name in ("A100-80G", "A100-40G")]
    assert [stage.components["reserve"] for stage in own.stages] == [card.reserve_bytes for card in cards]


def test_what_differs_by_card_is_said_of_the_card():
    """Assumptions that hold on one card only carry its name; shared ones stand once."""
    cluster, auto = parse_gpus("8xH100-80G+8xA100-80G"), Implementation(attention="auto")
    split = Layout(tp=8, pp=2, sequence_parallel=True, stages=balanced_split(MODEL, 2))
    lines = make_accounting("exact", MODEL, WORKLOAD, auto, cluster).report(split).assumptions
    assert len(lines) == len(set(lines))
    own = {line.split(":")[0] for line in lines if line.startswith(("H100-80G: ", "A100-80G: "))}
    assert own == {"H100-80G", "A100-80G"}
