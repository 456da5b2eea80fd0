"""States under the distributed optimizer: shards, their groups, and what bucket padding adds."""

from dataclasses import replace

import pytest
from tiny import LOCAL, MIXTURE, accounting, laid_out, model

from planner.layout import Layout
from planner.memory.states import bucket_elements, padded_elements, shard, shard_group, split_by_group, state_bytes
from planner.parameters import Weight
from planner.workload import Workload

BF16 = Workload(8, 8)


def weight(numel, count=1, expert=False):
    return Weight("mlp", "w", (numel,), expert, count)


def test_eighteen_bytes_a_parameter():
    """2 + 4 + 12 replicated; the last 12 divided by the distributed optimizer."""
    replicated, distributed = state_bytes(0, BF16, LOCAL), state_bytes(1, BF16, LOCAL)
    assert (replicated.weights_whole, replicated.gradients_whole, replicated.optimizer_whole) == (2, 4, 12)
    assert (distributed.weights_whole, distributed.gradients_whole, distributed.optimizer_sharded) == (2, 4, 12)
    assert distributed.optimizer_whole == 0


def test_a_shard_is_rounded_up():
    """10 elements over 4 ranks: the largest shard has 3."""
    assert [shard(10, d) for d in (1, 2, 4, 10, 20)] == [10, 5, 3, 1, 1]


def test_dense_parameters_are_divided_over_dp_and_cp_experts_over_their_own_group():
    """dp 4 x cp 2 = 8 ranks share a dense parameter; with ep 4 two ranks share an expert (16 / (1 x 4) with tp 2)."""
    layout = Layout(tp=2, cp=2, dp=4, ep=4, etp=1)
    assert shard_group(layout, LOCAL, expert=False) == 8
    assert shard_group(layout, LOCAL, expert=True) == 4
    assert split_by_group((weight(3), weight(5, expert=True)), layout) == (3, 5)


def test_experts_are_dense_parameters_without_expert_parallelism():
    """With ep 1 everything is reduced over dp x cp."""
    layout = Layout(tp=2, dp=4, etp=2)
    assert split_by_group((weight(3), weight(5, expert=True)), layout) == (8, 0)
    assert shard_group(layout, LOCAL, expert=True) == 4


def test_experts_with_another_tensor_parallel_degree_have_groups_of_their_own():
    """tp 2, dp 4 and etp 1 make eight expert data-parallel ranks (use_expert_pgs in Megatron's linear layers)."""
    layout = Layout(tp=2, dp=4, etp=1)
    assert split_by_group((weight(3), weight(5, expert=True)), layout) == (3, 5)
    assert (shard_group(layout, LOCAL, expert=True), shard_group(layout, LOCAL, expert=False)) == (8, 4)


def test_a_group_of_optimizer_instances_shares_less():
    """Two instances of the distributed optimizer halve the group."""
    two = replace(LOCAL, num_distributed_optimizer_instances=2)
    assert shard_group(Layout(dp=8, zero=1), two, expert=False) == 4


@pytest.mark.parametrize(
    ("sizes", "group", "expected"),
    [
        ([128, 256], 2, 384),  # aligned already
        ([100], 2, 128),  # the end of the bucket, to lcm(2, 128)
        ([100, 100], 2, 256),  # the second starts at 128 and ends at 228
        ([70, 10], 1, 256),  # in reverse: 10 at 0, 70 at 64, ends at 134
        ([128], 3, 384),  # lcm(3, 128)
    ],
)
def test_padding_of_one_bucket(sizes, group, expected):
    """Each parameter starts at a multiple of 64, the bucket ends at a multiple of lcm(group, 128)."""
    assert padded_elements([weight(n) for n in sizes], group, None, False) == expected


def test_buckets_close_when_full_and_are_padded_each():
    """Buckets of 100 elements: every parameter of 100 fills one, padded to 128."""
    assert padded_elements([weight(100, count=3)], 1, 100, False) == 3 * 128
    assert padded_elements([weight(100, count=3)], 1, None, False) == 384  # 0, 128 and 256, to 356
    assert padded_elements([weight(100, count=3)], 1, 1000, False) == 384


def test_bus_bandwidth_padding():
    """--ddp-pad-buckets-for-high-nccl-busbw pads to 65536 elements."""
    assert padded_elements([weight(100)], 2, None, True) == 65536


def test_default_bucket_size():
    """max(40 million, 1 million x data-parallel size) where gradients are reduced while computing, else one bucket."""
    assert bucket_elements(LOCAL, 8) == 40_000_000
    assert bucket_elements(LOCAL, 64) == 64_000_000
    assert bucket_elements(replace(LOCAL, ddp_bucket_elements=7), 8) == 7
    assert bucket_elements(replace(LOCAL, overlap_grad_reduce=False), 8) is None


def test_padding_of_a_stage_by_hand():
    """One tiny model over 2 ranks: 6 bytes of each padded element and 12 of each element of half of them."""
    m = model(layers=1, vocab=64)
    exact = accounting(m, replace(LOCAL, overlap_grad_reduce=False))
    stage = exact.report(laid_out(m, dp=2, zero=1)).stages[0]
    # reversed: head 256, norm 4, layer: down 32, up 64, proj 32, qkv 64, two norms of 4; embedding 256
    starts = 0
    for size in (256, 4, 32, 64, 32, 64, 4, 4, 256):
        starts = -(-starts // 64) * 64 + size
    padded = -(-starts // 128) * 128
    states = sum(stage.components[c] for c in ("weights", "gradients", "optimizer"))
    assert states == 6 * padded + 12 * padded // 2


@pytest.mark.parametrize("ep", [1, 2])
def test_the_padding_stays_within_the_form_s_bound(ep):
    """What the report adds to the form is never more than the form says it may be."""
    m = model(MIXTURE, layers=4, vocab=64)
    exact = accounting(m)
    layout = laid_out(m, pp=2, dp=4, ep=ep, zero=1)
    for i, stage in enumerate(exact.report(layout).stages):
        form = exact.form(layout, i)
        added = stage.total_bytes - form.peak_bytes(exact.counts(layout, i))
        assert added <= form.padding_bytes
