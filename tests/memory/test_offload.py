"""What moves to the host: bytes freed on the GPU and taken there."""

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny import LOCAL, accounting, laid_out, model

from planner.errors import NotModelled
from planner.implementation import LEAST_OFFLOADED
from planner.interop.megatron.launch import launch_from_words
from planner.memory.form import Counts
from planner.memory.offload import (
    OFFLOAD_MODULES,
    activation_host_bytes,
    activation_offload,
    module_of,
    offloaded_bytes,
)
from planner.memory.states import state_bytes
from planner.memory.tape import Branch, Op, Saved
from planner.workload import Workload

QUICK = settings(derandomize=True, deadline=None, max_examples=40)
BF16 = Workload(8, 8)
LARGE = 2 * LEAST_OFFLOADED
TAPE = (
    Branch((Op("input_layernorm", saves=(Saved("x", LARGE),)), Op("core_attention", saves=(Saved("q", LARGE),))), 8),
    Op("expert fc1", saves=(Saved("tokens", LARGE), Saved("counts", 8))),
    Op("activation", saves=(Saved("up", 2 * LARGE),)),
)


def stage(impl, **layout):
    return accounting(model(), impl).report(laid_out(model(), **layout)).stages[0]


@pytest.mark.parametrize("fraction", [0.0, 0.5, 1.0])
def test_megatron_moves_a_part_of_the_optimizer(fraction):
    """12 bytes of each offloaded element leave the GPU; weights, gradients and moments take 16 on the host."""
    impl = replace(LOCAL, optimizer_offload_fraction=fraction)
    kept, moved = stage(LOCAL, dp=2, zero=1), stage(impl, dp=2, zero=1)
    freed = kept.components["optimizer"] - moved.components["optimizer"]
    assert freed == pytest.approx(fraction * 12 * moved.parameters / 2, abs=64)
    assert moved.host_bytes == pytest.approx(fraction * 16 * moved.parameters / 2, abs=64)


def test_deepspeed_moves_gradients_with_the_optimizer():
    """ZeRO 3 with both offloaded keeps no shard on the GPU."""
    impl = replace(LOCAL, sharded_framework="deepspeed", optimizer_offload_fraction=1.0, offload_parameters=True)
    s = state_bytes(3, BF16, impl)
    assert s.freed == (s.weights_sharded, s.gradients_sharded, s.optimizer_sharded)
    assert s.host_sharded == 4 + 4 + 8 + 4 + 2
    held = stage(replace(impl, gradient_accumulation_fusion=False), dp=4, zero=3)
    assert (held.components["weights"], held.components["gradients"], held.components["optimizer"]) == (0, 0, 0)


def test_fsdp2_moves_all_shards():
    """CPUOffloadPolicy takes weights, gradients and optimizer together."""
    s = state_bytes(3, BF16, replace(LOCAL, offload_parameters=True))
    assert (s.freed, s.host_sharded) == ((4, 4, 8), 16)


def test_what_no_framework_moves_is_refused():
    """Weights of ZeRO 1 and of Megatron-FSDP, whole weights of DeepSpeed's ZeRO 2, a part of FSDP2's shards."""
    with pytest.raises(NotModelled, match="zero 0 and 1"):
        state_bytes(1, BF16, replace(LOCAL, offload_parameters=True))
    with pytest.raises(NotModelled, match="Megatron-FSDP"):
        state_bytes(3, BF16, replace(LOCAL, offload_parameters=True, sharded_framework="megatron_fsdp"))
    with pytest.raises(NotModelled, match="DeepSpeed"):
        state_bytes(2, BF16, replace(LOCAL, offload_parameters=True, sharded_framework="deepspeed"))
    with pytest.raises(NotModelled, match="torch FSDP2"):
        state_bytes(3, BF16, replace(LOCAL, optimizer_offload_fraction=0.5))


def test_operations_belong_to_modules():
    """Every name of --offload-modules stands for operations of a tape."""
    names = ("input_layernorm", "linear_proj", "scores", "expert fc1", "pre_mlp_layernorm", "activation", "linear_qkv")
    assert tuple(sorted(module_of(name) for name in names)) == OFFLOAD_MODULES
    assert module_of("router") is None


def test_chosen_modules_send_what_they_keep():
    """Tensors of a million elements or more, of the chosen modules; an MLP's activation is no moe_act."""
    impl = replace(LOCAL, offload_modules=("core_attn", "expert_fc1", "moe_act"))
    assert offloaded_bytes(impl, TAPE, 2, experts=True) == 4 * LARGE
    assert offloaded_bytes(impl, TAPE, 2, experts=False) == 2 * LARGE
    assert offloaded_bytes(replace(impl, activation_offload_fraction=0.5), TAPE, 2, experts=True) == 2 * LARGE
    assert offloaded_bytes(LOCAL, TAPE, 2, experts=True) == 0
    # a tensor goes where it has as many elements: the 4 counts of 2 bytes, and none of 2 x 2^20 bytes beyond 2^20
    assert offloaded_bytes(replace(impl, least_offloaded_elements=4), TAPE, 2, experts=True) == 4 * LARGE + 8
    assert offloaded_bytes(replace(impl, least_offloaded_elements=2**20 + 1), TAPE, 2, experts=True) == 2 * LARGE


@QUICK
@given(st.sets(st.sampled_from(OFFLOAD_MODULES)), st.sampled_from(OFFLOAD_MODULES))
def test_more_modules_never_send_less(modules, another):
    """Offloading is monotone in the modules."""

    def sent(names):
        return offloaded_bytes(replace(LOCAL, offload_modules=tuple(sorted(names))), TAPE, 2, experts=True)

    assert sent(modules) <= sent(modules | {another}) <= sent(OFFLOAD_MODULES)


def test_layers_that_are_offloaded_leave_and_one_comes_back():
    """The first layers' activations are gone at the loss; one of them is back in a backward."""
    impl = replace(LOCAL, offload_activation_layers=2)
    moved = activation_offload(impl, (0, 1, 1), (10, 20), (0, 0))
    assert [t.bytes for t in moved.loss] == [-30]
    assert [sum(t.bytes for t in terms) for terms in moved.layers] == [-20, -10]
    assert activation_host_bytes(impl, (0, 1, 1), (10, 20), (0, 0), Counts(((1, 2),), ((0, 0),)), (1,)) == 30


def test_pinned_memory_of_every_microbatch_in_flight():
    """Two chunks with three and one microbatches alive."""
    counts = Counts(((1, 0), (0, 2)), ((0, 0), (0, 0)))
    assert activation_host_bytes(LOCAL, (0, 1), (0, 0), (5, 7), counts, (3, 1)) == 3 * 5 + 2 * 7


def test_offloading_layers_frees_the_gpu():
    """The peak falls by at most what those layers keep."""
    plain, moved = stage(LOCAL), stage(replace(LOCAL, offload_activation_layers=2))
    assert plain.allocated_bytes - moved.host_bytes <= moved.allocated_bytes < plain.allocated_bytes
    with pytest.raises(NotModelled, match="pp 1"):
        stage(replace(LOCAL, offload_activation_layers=2), pp=2)


def test_modules_are_read_from_a_launch():
    """--offload-modules counts with --fine-grained-activation-offloading only."""
    words = "--num-layers 2 --hidden-size 64 --num-attention-heads 4 --seq-length 64 --max-position-embeddings 64 "
    words += "--micro-batch-size 1 --vocab-size 128 --bf16 --offload-modules core_attn attn_proj"
    assert launch_from_words(words.split(), "test", 1).implementation.offload_modules == ()
    words += " --fine-grained-activation-offloading"
    assert launch_from_words(words.split(), "test", 1).implementation.offload_modules == ("attn_proj", "core_attn")
