"""Modules of multi-token prediction: what they hold beside the loss, and on a stage of their own before it."""

import pytest
from tiny import LLAMA, LOCAL, accounting, model

from planner.layout import FULL, NO_RECOMPUTE, Layout
from planner.memory.pieces import edge_costs, modules_of, shape_of, sharding_of
from planner.stages import split_from_layout_string
from planner.workload import Workload

MTP = model(layers=4, mtp_num_layers=1, tied=False)
BESIDE, BEFORE = "Ett|tt|mL", "Ett|ttm|L"


def reported(text, recompute=NO_RECOMPUTE, **degrees):
    layout = Layout(pp=3, recompute=recompute, stages=split_from_layout_string(MTP, text, 3), **degrees)
    return accounting(MTP).report(layout)


def edges(recompute=NO_RECOMPUTE):
    layout = Layout(pp=3, recompute=recompute)
    shape, modules = shape_of(MTP, Workload(8, 8), LOCAL, layout), modules_of(layout, mtp=True)
    return edge_costs(MTP, LOCAL, shape, sharding_of(LOCAL, layout), True, modules)


@pytest.mark.parametrize("component", ["weights", "gradients", "optimizer"])
@pytest.mark.parametrize("zero", [0, 1])
def test_its_states_move_with_it(component, zero):
    """A stage without the loss holds the module's states whole: what the last stage loses, the one before it gains."""
    beside, before = (reported(text, zero=zero, dp=2).stages for text in (BESIDE, BEFORE))
    moved = [a.components[component] - b.components[component] for a, b in zip(before, beside, strict=True)]
    assert moved[0] == 0 and moved[1] > 0
    assert moved[1] == pytest.approx(-moved[2], abs=12 * 2 * 128)  # buckets are padded on each stage


def test_its_activations_are_kept_for_every_microbatch_in_flight():
    """The stage before the last has two microbatches in flight, the last one has one; the loss stays there."""
    beside, before = (reported(text).stages for text in (BESIDE, BEFORE))
    module = edges().mtp_module
    assert before[1].components["activations"] - beside[1].components["activations"] == 2 * module
    assert beside[2].components["activations"] - before[2].components["activations"] == module


def test_full_recomputation_keeps_its_two_inputs():
    """MultiTokenPredictionLayer._checkpointed_forward: the hidden state and the embedding, 64 bytes each; its last norm
    stands outside and keeps its input and 8 statistics of 4 bytes."""
    assert edges(FULL).mtp_module == 2 * 64 + 64 + 4 * 8
    assert edges().mtp_module > edges(FULL).mtp_module
    assert edges().mtp_losses == edges(FULL).mtp_losses > 0


def test_without_modules_nothing_is_added():
    """A model without them has no such term."""
    plain = model(layers=4)
    layout = Layout(pp=2, stages=split_from_layout_string(plain, "Ett|ttL", 2))
    terms = [row for stage in accounting(plain).report(layout, detail=True).stages for row in stage.terms]
    assert not any("multi-token" in name for _, name, *_ in terms)
    assert plain.layer_kinds == (LLAMA,)
