"""Memory-bound passes, counted by hand from the kernels of the frameworks."""

from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.timing.collectives import all_reduce_seconds, gather_seconds
from planner.timing.efficiency import efficiency
from planner.timing.ends import head_seconds, projection_seconds
from planner.timing.kernels import Device
from planner.timing.layer import layer_compute
from planner.timing.shard import shard_of
from planner.topology import group_links
from planner.workload import Workload

LLAMA, GPT, DEEPSEEK = (load_model(name) for name in ("llama-3-8b", "gpt3-175b", "deepseek-v3"))
TOKENS = 8192


def device(gpus):
    cluster = parse_gpus(gpus)
    return Device(cluster.card, efficiency(cluster))


def layer(model=LLAMA, gpus="8xH100-80G", precision="bf16", degrees=None, **implementation):
    given = Implementation(**implementation)
    workload = Workload(TOKENS, 64, precision)
    return layer_compute(device(gpus), model, model.layer_kinds[0], shard_of(Layout(**degrees or {})), workload, given)


def more_bytes(fused, apart, elements, gpus="8xH100-80G"):
    """(forward, backward) bytes for each element that the other takes longer, launches of kernels aside."""
    card = device(gpus)
    found = []
    for direction in ("forward", "backward"):
        kernels = sum(
            getattr(part, f"{direction}_kernels") * sign
            for compute, sign in ((apart, 1), (fused, -1))
            for part in (compute.attention, compute.mlp)
        )
        seconds = getattr(apart, direction) - getattr(fused, direction) - kernels * card.efficiency.kernel_seconds
        found.append(seconds * card.memory_bytes_per_second / elements)
    return tuple(found)


def test_an_addition_to_the_residual_stream_is_one_pass_where_nothing_is_dropped():
    """Without bias and dropout there is nothing to fuse."""
    assert layer(bias_dropout_fusion=False).forward == layer().forward
    assert layer(bias_dropout_fusion=False).backward == layer().backward


def test_bias_and_dropout_apart_are_passes_of_their_own():
    """Forward a bias is read and written (4 bytes) and dropout too (4, its mask counted in both), twice a layer;
    backward moves what it moves fused."""
    args = {"hidden_dropout": 0.1, "attention_dropout": 0.0}
    forward, backward = more_bytes(*(layer(GPT, **args, bias_dropout_fusion=on) for on in (True, False)), 1)
    hidden = TOKENS * GPT.hidden_size
    assert (forward / hidden, backward) == pytest.approx((2 * 8, 0), abs=1e-3)


def test_a_gated_activation_apart_is_two_kernels_and_four():
    """SiLU (4 bytes) and the product (6) against 6 in one; backward 26 against 10."""
    elements = TOKENS * LLAMA.layer_kinds[0].mlp.ffn_hidden_size
    fused, apart = (layer(bias_activation_fusion=on) for on in (True, False))
    assert more_bytes(fused, apart, elements) == pytest.approx((4, 16))
    assert apart.mlp.forward_kernels - fused.mlp.forward_kernels == 1
    assert apart.mlp.backward_kernels - fused.mlp.backward_kernels == 3


@pytest.mark.parametrize(
    ("precision", "implementation", "moved"),
    [
        # cast, mask, softmax and cast back: 6 + 8 + 8 + 6; their gradients 6 + 24 + 8 + 6
        ("bf16", {}, (28, 44)),
        # mask and softmax in two bytes: 4 + 4; backward 12 + 4
        ("bf16", {"attention_softmax_in_fp32": False}, (8, 16)),
    ],
)
def test_scores_that_no_fused_softmax_takes_are_passes_of_pytorch(precision, implementation, moved):
    """Against the fused kernel's 4 and 6 bytes for each score of 32 heads."""
    local = {"layer_implementation": "local", "attention": "unfused", **implementation}
    fused = layer(attention="unfused", precision=precision)  # Transformer Engine's takes up to 16,383 keys
    apart = layer(precision=precision, **local)  # Megatron-Core's up to 4,096
    scores = 32 * TOKENS**2
    difference = (moved[0] - 4, moved[1] - 6)
    assert more_bytes(fused, apart, scores) == pytest.approx(difference, abs=0.05)


@pytest.mark.parametrize(
    ("exchange", "forward", "backward"),
    [
        # outputs of 4 parts: one rescaled (2 elements), three added (3 each); gradients of queries as many, those of
        # keys and values half of each part but the last
        ("p2p", 11 * 4096, 11 * 4096 + 7 * 2048),
        # queries, keys, values and outputs copied before and after the exchange
        ("a2a", 4 * (4096 + 2048 + 4096), 4 * (4096 + 2048 + 4096)),
        # what was gathered in order, queries and outputs cut and joined
        ("allgather", 2 * 4 * 2048 + 4 * 4096, 8 * 4 * 2048 + 9 * 4096),
    ],
)
def test_context_parallel_attention_copies_what_it_exchanges(exchange, forward, backward):
    """Beside the attention itself, for Llama-3-8B's 32 heads and 8 groups of 128 over 4 ranks."""
    card, given = device("8xH100-80G"), Implementation(cp_comm_type=exchange)
    rate, times = card.card.memory_bytes_per_second, []
    for one in (10**18, rate):
        there = Device(replace(card.card, memory_bytes_per_second=one), card.efficiency)
        args = shard_of(Layout(cp=4)), Workload(TOKENS, 64), given
        compute = layer_compute(there, LLAMA, LLAMA.layer_kinds[0], *args)
        times.append((compute.core_forward, compute.core_backward))
    moved = [(b - a) * card.memory_bytes_per_second / (2 * TOKENS / 4) for a, b in zip(*times, strict=True)]
    assert moved == pytest.approx([forward, backward], rel=1e-3)


def head(kind, tokens=TOKENS, gpus="8xA100-80G", tp=1, **implementation):
    layout, cluster = Layout(tp=tp, sequence_parallel=tp > 1, dp=8 // tp), parse_gpus(gpus)
    given = Implementation(cross_entropy=kind, **implementation)
    return head_seconds(device(gpus), LLAMA, shard_of(layout), Workload(tokens, 8), given, group_links(layout, cluster))


def test_passes_of_the_unfused_loss_are_those_of_megatron():
    """52 bytes for each of 8192 x 128256 logits, where the compiled one moves 8."""
    seconds = head("unfused")[0] - head("compiled")[0]
    card = device("8xA100-80G")
    expected = TOKENS * 128_256 * (52 - 8) / card.memory_bytes_per_second + 22 * card.efficiency.kernel_seconds
    assert seconds == pytest.approx(expected)


@pytest.mark.parametrize(("tokens", "milliseconds"), [(4096, 121.4), (8192, 166.7), (16384, 277.1), (32768, 511.1)])
def test_ligers_loss_takes_what_was_measured(tokens, milliseconds):
    """Head and loss of 4096 x 128256 on A100-80G, forward and backward, within 15 % (linkedin/Liger-Kernel
    benchmark/data/all_benchmark_data.csv, fused_linear_cross_entropy, version 0.4.2)."""
    assert head("liger", tokens)[0] == pytest.approx(milliseconds / 1e3, rel=0.15)


def test_ranks_of_a_divided_vocabulary_exchange_three_numbers_for_each_token():
    """In three all-reduces, in two, or in one gather."""
    link, e = group_links(Layout(tp=8), parse_gpus("8xA100-80G"))["tp"], device("8xA100-80G").efficiency
    one, two = (all_reduce_seconds(link, 4.0 * n * TOKENS, e) for n in (1, 2))
    unfused, native, te = (head(kind, tp=8)[1] for kind in ("unfused", "native", "te"))
    assert unfused - native == pytest.approx(2 * one - two)
    assert native - te == pytest.approx(one + two - gather_seconds(link, 12.0 * 8 * TOKENS, e))


def test_the_projection_of_multi_token_prediction_joins_what_it_projects():
    """Three norms (2 and 3 elements each) and a join of two hidden states (4) are the passes around it; divided by
    columns over 8 ranks, its output is gathered, forward and backward."""
    layouts = Layout(dp=8), Layout(tp=8, sequence_parallel=True)
    cluster, card = parse_gpus("8xH100-80G"), device("8xH100-80G")
    found = []
    for one in layouts:
        args = card, DEEPSEEK, shard_of(one), Workload(4096, 8), Implementation(), group_links(one, cluster)
        found.append(projection_seconds(*args))
    (alone, none), (_, traffic) = found
    passes = 4096 * DEEPSEEK.hidden_size * 2 * (3 * 5 + 4) / card.memory_bytes_per_second
    assert none == 0 and passes < alone < passes + 1.3 * 6 * 4096 * 2 * DEEPSEEK.hidden_size**2 / card.flops("bf16")
    gathered = gather_seconds(
        group_links(layouts[1], cluster)["tp"], 4096.0 * 2 * DEEPSEEK.hidden_size, card.efficiency
    )
    assert traffic > 2 * gathered
