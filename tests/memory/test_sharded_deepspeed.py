"""What DeepSpeed's ZeRO stages hold besides their shards: sizes read in deepspeed/runtime/zero."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny import LOCAL, accounting, laid_out, model

from planner.implementation import DeepSpeedZero
from planner.layout import Layout
from planner.memory.deepspeed import deepspeed_steps, deepspeed_terms
from planner.memory.sharded_units import Units
from planner.memory.states import state_bytes
from planner.workload import Workload

BF16 = Workload(8, 8)
BUCKET = 7
DEEPSPEED = replace(
    LOCAL,
    sharded_framework="deepspeed",
    framework="megatron-deepspeed",
    grad_reduce_bytes=2,
    overlap_grad_reduce=False,
    ddp_bucket_elements=BUCKET,
    gradient_accumulation_fusion=False,
)
UNITS = Units(
    layers=(100,), embedding=30, head=20, stage_layers=4, chunks=1, kept=(0,), shards=(25,), root_shard=13, largest=40,
    accumulates=False,
)  # fmt: skip
SHARD = 2 * (25 + 13)
"""Gradients of a shard of one layer and the root in two bytes."""


def summed(terms):
    found = {}
    for term in terms:
        found[term.name] = found.get(term.name, 0) + term.bytes
    return found


def terms_of(zero, units=UNITS, layout=None, **choices):
    impl = replace(DEEPSPEED, **choices)
    return deepspeed_terms(state_bytes(zero, BF16, impl), impl, layout or Layout(dp=4, zero=zero), units)


def steps_of(zero, layout=None, shard=1000, **choices):
    impl = replace(DEEPSPEED, **choices)
    states = state_bytes(zero, BF16, impl)
    found = deepspeed_steps(states, impl, layout or Layout(dp=4, zero=zero), UNITS, shard)
    return {moment.name: summed(moment.terms) for moment in found}


def test_buckets():
    """One of 16-bit gradients, two where they overlap the backward; stage 3 holds its own throughout."""
    assert summed(terms_of(2).loss) == {"gradient buckets": 2 * BUCKET}
    assert summed(terms_of(2, overlap_grad_reduce=True).loss) == {"gradient buckets": 2 * 2 * BUCKET}
    assert summed(terms_of(3).always) == {"gradient bucket": 2 * BUCKET}


def test_the_shard_is_copied_out_of_the_bucket():
    """Beside the sums of the microbatches before, or beside whole gradients (copy_grads_in_partition)."""
    several = replace(UNITS, accumulates=True)
    assert "gradients of the shard" not in summed(terms_of(2).layers[0])
    assert summed(terms_of(2, several).layers[0])["gradients of the shard"] == SHARD
    assert summed(terms_of(1).layers[0])["gradients of the shard"] == SHARD


def test_a_step_flattens_and_casts_the_shard():
    """2 + 4 bytes of each element; fp32 gradients are flattened only. At stage 1 other ranks' gradients are gone."""
    assert steps_of(2) == {"optimizer step": {"fp32 copies": 6 * (25 + 13)}}
    assert steps_of(2, grad_reduce_bytes=4) == {"optimizer step": {"fp32 copies": 4 * (25 + 13)}}
    assert steps_of(1)["optimizer step"] == {
        "fp32 copies": 6 * (25 + 13),
        "reduced": -2 * (100 + 50),
        "gradients of the shard": SHARD,
    }


def test_a_pipeline_makes_its_bucket_after_the_last_backward():
    """reduce_gradients(pipeline_parallel=True)."""
    layout = Layout(dp=4, pp=2, zero=1)
    assert not terms_of(1, layout=layout).loss
    assert steps_of(1, layout)["gradient reduction"] == {
        "gradient buckets": 2 * BUCKET,
        "gradients of the shard": SHARD,
    }


def test_stage_three_steps_by_sub_groups():
    """A sub-group at a time is flattened and cast (_prepare_fp32_grad_for_sub_group)."""
    small = DeepSpeedZero(sub_group=300)
    assert steps_of(3, shard=1000, deepspeed_zero=small) == {"optimizer step": {"fp32 copies": 6 * 300}}
    assert steps_of(3, shard=200, deepspeed_zero=small) == {"optimizer step": {"fp32 copies": 6 * 200}}


@pytest.mark.parametrize("zero", [1, 2, 3])
def test_an_offloaded_optimizer_casts_nothing_on_the_gpu(zero):
    """Its gradients are on the host in fp32; stages 1 and 2 stage one tensor at a time."""
    assert steps_of(zero, optimizer_offload_fraction=1.0) == {}
    staged = summed(terms_of(zero, optimizer_offload_fraction=1.0).always)
    assert staged.get("staging of offloaded gradients", 0) == (2 * 40 if zero < 3 else 0)


@pytest.mark.parametrize(("zero", "batch", "bytes_each"), [(1, 4, 18), (2, 4, 18), (2, 8, 20), (3, 8, 18)])
def test_host_memory_of_an_offloaded_optimizer(zero, batch, bytes_each):
    """fp32 weights, gradients and two moments, the updated or reduced 16 bits, and at stages 1 and 2 sums of several
    microbatches and a buffer of the largest tensor."""
    impl = replace(DEEPSPEED, optimizer_offload_fraction=1.0)
    m = model()
    stage = accounting(m, impl, batch=batch).report(laid_out(m, dp=4, zero=zero)).stages[0]
    largest = 2 * (2 * 8 * 4) if zero < 3 else 0  # gate and up of the MLP
    assert stage.host_bytes == pytest.approx(bytes_each * stage.parameters / 4 + largest, rel=0.01)


@given(st.integers(1, 10**6), st.integers(0, 10**6), st.integers(0, 10**6), st.integers(0, 10**6))
def test_what_is_gathered_stays_within_its_limits(layer, reuse, prefetch, live):
    """No more than the layer or half the reuse distance, and what is fetched ahead within the live parameters."""
    sizes = DeepSpeedZero(prefetch=prefetch, reuse_distance=reuse, live=live)
    found = summed(terms_of(3, replace(UNITS, layers=(layer,)), deepspeed_zero=sizes).layers[0])["gathered weights"]
    now = max(layer, min(50 + 4 * layer, reuse // 2))
    assert 2 * now <= found <= 2 * max(now, min(now + prefetch, live))
