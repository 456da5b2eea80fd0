"""Bytes of weights, gradients and optimizer of each optimizer, precision and ZeRO stage."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LOCAL

from planner.errors import NotModelled
from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory import states
from planner.memory.states import (
    elements,
    extra_optimizer_bytes,
    fp8_copies,
    kept_in_half,
    split_by_group,
    state_bytes,
)
from planner.parameters import Weight
from planner.workload import Workload

QUICK = settings(derandomize=True, deadline=None, max_examples=80)
BF16 = Workload(8, 8)
ENGINE = Implementation()
FRAMEWORKS = ("fsdp2", "megatron_fsdp", "deepspeed")

MATRIX = Weight("mlp", "linear_fc1.weight", (64, 32))
EMBEDDING = Weight("embedding", "word_embeddings.weight", (1024, 32))
VECTOR = Weight("norms", "weight", (32,))
EXPERT = Weight("experts", "linear_fc1.weight", (64, 32), expert=True, count=4)


def total(zero, workload, impl, whole, shards):
    """Bytes on the GPU of `whole` elements of which `shards` are this rank's."""
    s = state_bytes(zero, workload, impl)
    kept, divided = (s.weights_whole, s.gradients_whole, s.optimizer_whole), (s.weights_sharded, s.gradients_sharded)
    return sum(kept) * whole + (sum(divided) + s.optimizer_sharded) * shards


@pytest.mark.parametrize(
    ("optimizer", "moments"), [("sgd", 0), ("sgd-momentum", 4), ("adamw", 8), ("muon", 4), ("adamw-8bit", 2)]
)
def test_moments_of_each_optimizer(optimizer, moments):
    """An fp32 master and no, one or two fp32 moments, or two of a byte."""
    assert state_bytes(0, replace(BF16, optimizer=optimizer), LOCAL).optimizer_whole == 4 + moments


def test_an_unknown_optimizer_is_refused_by_name():
    """What is not modelled is said, not guessed."""
    with pytest.raises(NotModelled, match="lion"):
        state_bytes(0, replace(BF16, optimizer="lion"), LOCAL)


@pytest.mark.parametrize(
    ("precision", "expected"), [("bf16", (2, 4, 12)), ("fp16", (2, 4, 12)), ("fp32", (4, 4, 8)), ("fp8", (2, 4, 12))]
)
def test_precisions(precision, expected):
    """Half precision keeps a master; fp32 weights are their own; fp8 alone changes no state."""
    s = state_bytes(0, replace(BF16, precision=precision), LOCAL)
    assert (s.weights_whole, s.gradients_whole, s.optimizer_whole) == expected


@pytest.mark.parametrize(
    ("zero", "precision", "gradient", "kept"),
    [(1, "bf16", 4, 6), (0, "bf16", 4, 6), (1, "bf16", 2, 2), (1, "fp16", 2, 2), (1, "fp16", 4, 4)],
)
def test_deepspeed_sums_bf16_gradients_beside_them(zero, precision, gradient, kept):
    """Its BF16 optimizer keeps both whole; the fp16 one, and sums in bf16, keep one. Megatron's adds into one."""
    workload = replace(BF16, precision=precision)
    own = replace(LOCAL, framework="megatron-deepspeed", grad_reduce_bytes=gradient)
    assert state_bytes(zero, workload, own).gradients_whole == kept
    assert state_bytes(zero, workload, replace(own, framework="megatron")).gradients_whole == gradient


def test_scales_of_eight_bit_moments():
    """A 4-byte scale for each 256 elements of both moments, of the shard where the optimizer is sharded."""
    workload = replace(BF16, optimizer="adamw-8bit")
    assert extra_optimizer_bytes([MATRIX], Layout(), workload, LOCAL) == 2 * 4 * 8  # 2048 elements
    assert extra_optimizer_bytes([MATRIX], Layout(dp=4, zero=1), workload, LOCAL) == 2 * 4 * 2
    assert extra_optimizer_bytes([MATRIX], Layout(), BF16, LOCAL) == 0


def test_muon_leaves_embeddings_and_vectors_to_adam():
    """They keep a second moment, divided like the rest."""
    muon = replace(BF16, optimizer="muon")
    weights = [MATRIX, EMBEDDING, VECTOR]
    assert extra_optimizer_bytes(weights, Layout(dp=4), muon, LOCAL) == 4 * (1024 * 32 + 32)
    assert extra_optimizer_bytes(weights, Layout(dp=4, zero=1), muon, LOCAL) == (1024 * 32 + 32)
    lion = replace(LOCAL, muon_scalar_optimizer="lion")  # keeps exp_avg alone (distrib_optimizer.py)
    assert extra_optimizer_bytes(weights, Layout(dp=4), muon, lion) == 0


def test_muon_without_the_even_layout_deals_a_rank_the_whole_embedding():
    """One rank holds the master and both moments of the largest tensor."""
    muon, weights = replace(BF16, optimizer="muon"), [EMBEDDING]
    layout = Layout(dp=4, zero=1)
    even = extra_optimizer_bytes(weights, layout, muon, LOCAL)
    dealt = extra_optimizer_bytes(weights, layout, muon, replace(LOCAL, layer_wise_param_layout=False))
    assert dealt - even == 12 * (1024 * 32 * 3 // 4)
    lion = replace(LOCAL, layer_wise_param_layout=False, muon_scalar_optimizer="lion")
    assert extra_optimizer_bytes(weights, layout, muon, lion) == 8 * (1024 * 32 * 3 // 4)


def test_the_precision_aware_optimizer_keeps_half_a_master():
    """Of an fp32 master only the 16 bits that the bf16 weight lacks; whole where the host updates a part."""
    aware = replace(LOCAL, precision_aware_optimizer=True)
    assert state_bytes(1, BF16, aware).optimizer_sharded == 2 + 8
    assert state_bytes(1, BF16, replace(aware, exp_avg_bytes=2, exp_avg_sq_bytes=1)).optimizer_sharded == 2 + 3
    assert state_bytes(1, BF16, replace(aware, optimizer_offload_fraction=0.5)).optimizer_sharded == 4 + 8
    assert state_bytes(1, replace(BF16, precision="fp16"), aware).optimizer_sharded == 4 + 8
    fp8 = replace(BF16, precision="fp8")
    assert state_bytes(1, fp8, aware).optimizer_sharded == 2 + 8  # delayed scaling
    assert state_bytes(1, fp8, replace(aware, fp8_recipe="tensorwise")).optimizer_sharded == 4 + 8
    assert state_bytes(1, fp8, replace(aware, fp8_param_gather=True)).optimizer_sharded == 4 + 8


def test_fp8_copies_of_linear_weights():
    """Row-wise and column-wise beside bf16 weights, column-wise alone beside fp8 ones; none of embeddings and norms."""
    fp8 = replace(BF16, precision="fp8")
    weights = [MATRIX, EMBEDDING, VECTOR]
    assert fp8_copies(weights, Layout(), fp8, ENGINE) == 2 * 2048
    assert fp8_copies(weights, Layout(), fp8, replace(ENGINE, fp8_param_gather=True)) == 2048
    scaled = replace(ENGINE, fp8_recipe="mxfp8")
    assert fp8_copies(weights, Layout(), fp8, scaled) == 2 * (2048 + 2048 // 32)
    assert fp8_copies(weights, Layout(), fp8, replace(scaled, fp8_param_gather=True)) == 2048 + 2 * 2048 // 32
    assert fp8_copies(weights, Layout(), BF16, ENGINE) == fp8_copies(weights, Layout(), fp8, LOCAL) == 0


def test_fp8_weights_leave_embeddings_and_vectors_in_half_precision():
    """--fp8-param-gather makes one byte of linear weights only."""
    fp8, gather = replace(BF16, precision="fp8"), replace(ENGINE, fp8_param_gather=True)
    assert state_bytes(1, fp8, gather).weights_whole == 1
    assert kept_in_half([MATRIX, EMBEDDING, VECTOR], fp8, gather) == (EMBEDDING, VECTOR)
    assert kept_in_half([MATRIX, EMBEDDING, VECTOR], fp8, ENGINE) == ()


@QUICK
@given(st.lists(st.sampled_from([MATRIX, EMBEDDING, VECTOR, EXPERT]), max_size=6), st.sampled_from([1, 2, 4, 8, 16]))
def test_shards_sum_to_the_whole(weights, dp):
    """The ranks' largest shards cover every element once, rounded up to the group."""
    layout = Layout(dp=dp, ep=2 if dp > 1 else 1, zero=1)
    dense, expert = split_by_group(weights, layout)
    whole, _ = elements(weights, layout, LOCAL)
    assert whole == dense + expert == sum(w.numel for w in weights)
    for count, experts in ((dense, False), (expert, True)):
        group = states.shard_group(layout, LOCAL, experts)
        assert count <= states.shard(count, group) * group < count + group


@QUICK
@given(
    st.sampled_from(FRAMEWORKS),
    st.sampled_from(["adamw", "adamw-8bit", "sgd", "sgd-momentum"]),
    st.sampled_from(["bf16", "fp32"]),
    st.integers(1, 10**6),
    st.sampled_from([2, 4, 64]),
)
def test_more_sharding_never_takes_more(framework, optimizer, precision, count, group):
    """States of ZeRO 0 >= 1 >= 2 >= 3 for every framework, once two ranks share."""
    impl = replace(LOCAL, sharded_framework=framework)
    workload = replace(BF16, optimizer=optimizer, precision=precision)
    whole = count * group
    sizes = [total(zero, workload, impl, whole, count) for zero in range(4)]
    assert sizes == sorted(sizes, reverse=True)


@QUICK
@given(st.sampled_from(FRAMEWORKS), st.sampled_from([1, 2, 3]), st.integers(1, 10**6), st.sampled_from([1, 2, 8]))
def test_a_larger_group_never_takes_more(framework, zero, count, group):
    """Twice the ranks, at most the same bytes on each."""
    impl = replace(LOCAL, sharded_framework=framework)

    def on_a_rank(ranks):
        return total(zero, BF16, impl, count, states.shard(count, ranks))

    assert on_a_rank(2 * group) <= on_a_rank(group)


def test_replicated_shards_of_hsdp():
    """Two replicas halve the ranks that share; shards double."""
    layout = Layout(dp=8, zero=3)
    assert elements([MATRIX], layout, LOCAL)[1] * 2 == elements([MATRIX], replace(layout, hsdp_replicas=2), LOCAL)[1]
