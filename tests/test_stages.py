"""The stage split: Megatron's own ways of writing one, and what each refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.errors import InputError, RuleBroken
from planner.layout import Chunk, Layout
from planner.model import MLP, Attention, Layer, Model
from planner.stages import (
    balanced_split,
    even_split,
    layout_string,
    split_from_counts,
    split_from_layout_string,
    uneven_split,
    usual_split,
)

LAYER = Layer(Attention(4, 4, 2), MLP(32))


def model(layers: int, mtp: int = 0) -> Model:
    return Model("tiny", 8, 64, (LAYER,), (0,) * layers, mtp_num_layers=mtp)


def counts(stages):
    return [[chunk.num_layers for chunk in stage] for stage in stages]


def test_even_split_interleaves_chunks_in_model_order():
    """Chunk k of stage s is slice k * pp + s: 8 layers on 2 stages of 2 chunks, as Megatron's comment draws it."""
    stages = even_split(model(8), 2, 2)
    assert stages == (
        (Chunk(0, 2, embedding=True), Chunk(4, 6)),
        (Chunk(2, 4), Chunk(6, 8, loss=True)),
    )
    assert Layout(pp=2, vpp=2, stages=stages).stage_layers == [[2, 2], [2, 2]]


def test_mtp_modules_stand_with_the_loss():
    """Without a layout string every multi-token-prediction module is in the last chunk of the last stage."""
    stages = even_split(model(4, mtp=2), 2)
    assert [chunk.mtp_layers for stage in stages for chunk in stage] == [0, 2]


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "options", "expected"),
    [
        (30, 4, 1, {"first": 7, "last": 7}, [[7], [8], [8], [7]]),
        (9, 4, 1, {"last": 3}, [[2], [2], [2], [3]]),
        (13, 2, 1, {"first": 9, "last": 4}, [[9], [4]]),
        (14, 3, 2, {"first": 2, "last": 4}, [[1, 1], [4, 4], [2, 2]]),
        (6, 4, 1, {"account_for_embedding": True, "account_for_loss": True}, [[1], [2], [2], [1]]),
        (6, 4, 2, {"account_for_embedding": True, "account_for_loss": True}, [[0, 1], [1, 1], [1, 1], [1, 0]]),
        (5, 1, 1, {"account_for_loss": True}, [[5]]),
    ],
)
def test_uneven_split_builds_what_megatron_builds(layers, pp, vpp, options, expected):
    """Each option gives the counts that get_num_layers_to_build computes, worked by hand."""
    assert counts(uneven_split(model(layers), pp, vpp, **options)) == expected


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "options", "numbers"),
    [
        (30, 4, 1, {}, ("30", "4")),
        (32, 4, 3, {}, ("8", "3")),
        (30, 3, 1, {"first": 16, "last": 16}, ("16", "-2")),
        (30, 1, 1, {"first": 10, "last": 10}, ("30", "10")),
        (30, 2, 1, {"first": 10, "last": 10}, ("10", "30")),
        (30, 3, 1, {"first": 0}, ("1", "0")),
        (31, 4, 1, {"account_for_loss": True, "account_for_embedding": True}, ("33", "4")),
        (30, 4, 1, {"first": 6, "account_for_loss": True}, ("6",)),
    ],
)
def test_a_split_that_breaks_a_rule_says_both_numbers(layers, pp, vpp, options, numbers):
    """The holes of Megatron's own check (parts that do not sum, negative middles) are refused with the numbers."""
    with pytest.raises(RuleBroken) as error:
        uneven_split(model(layers), pp, vpp, **options)
    assert all(number in str(error.value) for number in numbers)


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "expected"),
    [
        (70, 12, 1, [[5]] + [[6]] * 10 + [[5]]),
        (61, 4, 1, [[15], [16], [16], [14]]),
        (7, 1, 1, [[7]]),
        (5, 2, 1, [[3], [2]]),
        (8, 3, 2, [[0, 2], [2, 2], [2, 0]]),
    ],
)
def test_balanced_split_counts_embedding_and_loss(layers, pp, vpp, expected):
    """Where layers do not divide, the embedding and the loss take the place of one layer each (BLOOM: 5, 6 ..., 5)."""
    assert counts(balanced_split(model(layers), pp, vpp)) == expected


@pytest.mark.parametrize(
    ("layers", "pp", "vpp", "expected"),
    [
        (32, 4, 1, [[8], [8], [8], [8]]),
        (31, 4, 1, [[7], [9], [8], [7]]),
        (61, 16, 1, [[3]] + [[4]] * 14 + [[2]]),
        (126, 8, 2, [[7, 8]] + [[8, 8]] * 6 + [[8, 7]]),
    ],
)
def test_the_usual_split_is_even_where_it_can_be(layers, pp, vpp, expected):
    """What validation scores is what a launch is read as; 126 layers on 8 x 2 slices as torchtitan's
    generate_split_points has them: 7, fourteen times 8, 7."""
    assert counts(usual_split(model(layers), pp, vpp)) == expected


@given(st.integers(1, 40), st.integers(1, 8), st.integers(1, 3))
def test_balanced_split_always_holds_every_layer(layers, pp, vpp):
    """Any number of layers is split, as evenly as possible, or refused because the chunks are too many."""
    try:
        stages = balanced_split(model(layers), pp, vpp)
    except RuleBroken:
        assert pp * vpp > layers + 2
        return
    held = [chunk.num_layers + chunk.embedding + chunk.loss for stage in stages for chunk in stage]
    assert sum(held) == layers + 2
    assert max(held) - min(held) <= 1


def test_counts_must_sum_to_the_layers_and_hold_something():
    """A wrong sum, an empty middle stage and ragged chunks are each refused."""
    for wrong in ([4, 5], [4, 0, 4], [[4], [2, 2]], [], [[]], [9, -1]):
        with pytest.raises(InputError):
            split_from_counts(model(8), wrong)


def test_layout_string_with_standalone_mtp_and_loss():
    """The form DeepSeek-V3 is trained with: MTP and loss in parts of their own, commas and groups unrolled."""
    stages = split_from_layout_string(model(61, mtp=1), "Et*3|(tt|)*29,m|L", pp=16)
    assert len(stages) == 16
    assert stages[0] == (Chunk(0, 3, embedding=True), Chunk(33, 35))
    assert stages[14] == (Chunk(29, 31), Chunk(61, 61, mtp_layers=1))
    assert stages[15] == (Chunk(31, 33), Chunk(61, 61, loss=True))


@pytest.mark.parametrize(
    "text",
    [
        "tt|ttL",
        "Ett|tt",
        "Ett|ttx",
        "Ett||ttL",
        "Ett|ttt|L",
        "Ett|tL",
        "E(tt|tt",
        "Etmt|tL",
        "(t)*99999999999",
        "t*999999999999999999999999",
        "t*000000000999999999999",
        "Ett|ttL*" + "9" * 5000,
        "",
        "EEtt|ttL",
    ],
)
def test_wrong_layout_strings_are_refused(text):
    """Wrong order, wrong counts, empty parts, unknown symbols and bombs raise InputError and nothing else."""
    with pytest.raises(InputError):
        split_from_layout_string(model(4), text, pp=2)


@given(st.lists(st.lists(st.integers(1, 5), min_size=1, max_size=3), min_size=1, max_size=5), st.integers(0, 2))
def test_layout_string_reads_back(rows, mtp):
    """Any split, written as a layout string and read again, is the same split."""
    width = min(map(len, rows))
    rows = [row[:width] for row in rows]
    tiny = model(sum(map(sum, rows)), mtp)
    stages = split_from_counts(tiny, rows)
    if mtp and len(rows) == 1 and width > 1:
        return  # virtual chunks on one stage: Megatron keeps MTP off the first rank's earlier chunks only
    assert split_from_layout_string(tiny, layout_string(stages), len(rows), width) == stages


@given(st.text(alphabet="EtmL|*(),0123456789 ", max_size=40), st.integers(-1, 4))
def test_any_text_is_a_split_or_an_input_error(text, pp):
    """No layout string raises anything but InputError."""
    try:
        stages = split_from_layout_string(model(4), text, pp)
    except InputError:
        return
    assert sum(chunk.num_layers for stage in stages for chunk in stage) == 4
