"""The step: form, decomposition and bound agree, and respond to each choice as physics says."""

import random
import subprocess
import sys
from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.errors import InputError
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, SELECTIVE, Layout, Recompute
from planner.solver.bounds import time_bound
from planner.stages import split_from_counts
from planner.timing.split import stage_counts
from planner.timing.step import Timing
from planner.workload import Workload

MODELS = {name: load_model(name) for name in ("llama-2-13b", "llama-2-70b", "mixtral-8x7b", "deepseek-v3", "gpt3-175b")}


def timing(model="llama-2-70b", gpus="64xH100-80G", seq=4096, batch=256, precision="bf16", **implementation):
    return Timing(MODELS[model], Workload(seq, batch, precision), Implementation(**implementation), parse_gpus(gpus))


def even(model, pp, vpp=1, **degrees):
    m = MODELS[model]
    counts = [[m.num_layers // (pp * vpp)] * vpp for _ in range(pp)]
    return Layout(pp=pp, vpp=vpp, stages=split_from_counts(m, counts), **degrees)


def random_layout(rng, model, gpus):
    m = MODELS[model]
    while True:
        tp, pp, vpp = rng.choice([1, 2, 4, 8]), rng.choice([1, 2, 4, 8]), rng.choice([1, 2])
        if gpus % (tp * pp) or (pp == 1 and vpp > 1) or m.num_layers < pp * vpp:
            continue
        dp = gpus // (tp * pp)
        cuts = sorted(rng.sample(range(1, m.num_layers), pp * vpp - 1))
        sizes = [b - a for a, b in zip([0, *cuts], [*cuts, m.num_layers], strict=True)]
        counts = [sizes[i::pp] for i in range(pp)]
        kind = rng.choice(["none", "selective", "full", "block", "stages"])
        recompute = {
            "none": NO_RECOMPUTE,
            "selective": SELECTIVE,
            "full": FULL,
            "block": Recompute("full", method="block", num_layers=rng.randint(0, 3)),
            "stages": Recompute(
                "full", method="block", num_layers=None, stage_layers=tuple(rng.randint(0, sum(c)) for c in counts)
            ),
        }[kind]
        moe = m.is_moe
        return Layout(
            tp=tp,
            pp=pp,
            vpp=vpp,
            dp=dp,
            ep=rng.choice([e for e in (1, 2, 4, 8) if (tp * dp) % e == 0]) if moe else 1,
            zero=rng.choice([0, 1, 3]),
            micro_batch=rng.choice([1, 2]),
            sequence_parallel=tp > 1 and (moe or rng.random() < 0.5),
            recompute=recompute,
            stages=split_from_counts(m, counts),
        )


@pytest.mark.parametrize("model", ["llama-2-13b", "mixtral-8x7b", "deepseek-v3", "gpt3-175b"])
def test_step_is_the_form_and_its_parts_are_the_whole_and_nothing_beats_the_bound(model):
    """On random layouts: step_ns is what the form evaluates to, components sum to it, the bound is below it."""
    rng = random.Random(7)
    t = timing(model)
    for _ in range(60):
        layout = random_layout(rng, model, 64)
        step, form = t.step(layout), t.form(replace(layout, stages=()))
        assert step.step_ns == form.step_ns([held.counts for held in stage_counts(MODELS[model], layout)])
        assert sum(step.components.values()) == pytest.approx(step.seconds, rel=1e-9)
        assert all(value >= 0 for value in step.components.values())
        assert time_bound(form, MODELS[model].kind_counts) <= step.step_ns


def test_the_bound_is_tight_where_the_layers_divide():
    """For an even split of a model without heavy ends the bound is within 3 % of the step."""
    t = timing()
    layout = even("llama-2-70b", 4, tp=4, dp=4, micro_batch=1, zero=1)
    assert time_bound(t.form(layout), MODELS["llama-2-70b"].kind_counts) > 0.97 * t.step(layout).step_ns


def test_utilisation_times_peak_times_time_is_the_work():
    """MFU x peak x GPUs x seconds = model FLOPs; HFU adds a forward pass under full recomputation."""
    t = timing()
    step = t.step(even("llama-2-70b", 4, tp=4, dp=4, recompute=FULL))
    assert step.mfu * step.peak_flops_per_gpu * 64 * step.seconds == pytest.approx(step.model_flops)
    assert step.hfu / step.mfu == pytest.approx(4 / 3, rel=0.01)
    assert step.seconds > step.lower_bound_seconds


def test_recomputation_costs_time_in_the_order_of_its_work():
    """None is faster than selective, selective than full."""
    t = timing(attention="unfused")
    times = [t.step(even("llama-2-70b", 4, tp=4, dp=4, recompute=r)).seconds for r in (NO_RECOMPUTE, SELECTIVE, FULL)]
    assert times == sorted(times)
    assert 1.2 < times[2] / times[0] < 1.45


def test_saving_every_second_product_repeats_about_half_of_the_forward_pass():
    """torchtitan's policy by operation costs more than repeating the attention core, less than a full recomputation."""
    made = timing("llama-2-13b", gpus="8xH100-80G", batch=8)

    def again(recompute):
        return made.step(even("llama-2-13b", 1, tp=2, dp=4, recompute=recompute)).components["recompute"]

    by_operation, full = again(Recompute("selective", ("op",))), again(FULL)
    assert 0.3 * full < by_operation < 0.7 * full


def test_interleaving_shrinks_the_bubble_by_its_chunks():
    """Five chunks leave a fifth of the bubble of equal stages."""
    t = timing(batch=64)
    plain, chunked = (t.step(even("llama-2-70b", 4, v, tp=4, dp=4)) for v in (1, 5))
    ratio = chunked.components["pipeline_bubble"] / plain.components["pipeline_bubble"]
    assert ratio == pytest.approx(0.2, rel=0.1)


def bubble(schedule, seq, recompute=NO_RECOMPUTE):
    layout = even("llama-2-70b", 4, tp=4, dp=4, recompute=recompute)
    return timing(seq=seq, batch=64, schedule=schedule).step(layout).components["pipeline_bubble"]


def test_a_finer_schedule_shrinks_the_bubble_too():
    """ZB-H1 leaves a third of it where products are all that there is, and more the longer the attention, which has no
    weight gradients: at 32768 tokens, where half of the FLOPs are attention's, over half. It fills as much of a bubble
    that recomputation lengthens."""
    short, long = (bubble("zb-h1", seq) / bubble("1f1b", seq) for seq in (4096, 32768))
    assert 1 / 3 < short < 0.55 < long < 0.75
    plain, again = (bubble("1f1b", 4096, r) - bubble("zb-h1", 4096, r) for r in (NO_RECOMPUTE, FULL))
    assert plain == pytest.approx(again, rel=1e-6)
    assert bubble("dualpipe", 4096) < bubble("zb-h1", 4096)
    assert any(
        "(F + B - W)" in said for said in timing(schedule="zb-h1").step(even("llama-2-70b", 4, tp=4)).assumptions
    )


def test_tensor_parallelism_across_nodes_is_slower():
    """TP 16 spans two nodes of 8 and pays the network for every layer."""
    t = timing("llama-2-13b", batch=64)
    inside, across = (t.step(even("llama-2-13b", 1, tp=tp, dp=64 // tp)).seconds for tp in (8, 16))
    assert across > 1.3 * inside


def test_overlap_hides_data_parallel_traffic():
    """Without overlap the reduction and gather show in full; with it, the last bucket and the tax."""
    layout = even("llama-2-13b", 1, tp=2, dp=32, zero=1)
    hidden = timing("llama-2-13b", batch=64).step(layout)
    shown = timing("llama-2-13b", batch=64, overlap_grad_reduce=False, overlap_param_gather=False).step(layout)
    assert hidden.components["data_parallel"] < 0.5 * shown.components["data_parallel"]


def test_chunks_hide_more_of_the_gradients():
    """Interleaved, a chunk's gradients are reduced while a whole group of microbatches passes the other chunks."""
    plain, chunked = (
        timing(gpus="256xH100-80G", batch=64).step(even("llama-2-70b", 8, v, tp=8, dp=4, zero=1)) for v in (1, 5)
    )
    assert chunked.components["data_parallel"] < 0.7 * plain.components["data_parallel"]


def test_old_kernels_are_slower():
    """Stored attention scores, unfused activations and a second pass over the gradients each cost time."""
    layout = even("llama-2-13b", 1, tp=2, dp=32, zero=1)
    new = timing("llama-2-13b", batch=64).step(layout).seconds
    for old in (
        {"attention": "unfused"},
        {"bias_activation_fusion": False},
        {"gradient_accumulation_fusion": False},
        {"layer_implementation": "local"},
    ):
        assert timing("llama-2-13b", batch=64, **old).step(layout).seconds > new, old


def test_fp8_is_faster_than_bf16_where_there_is_fp8():
    """On H100 fp8 gains a fifth or more; on A100, which has none, nothing."""
    layout = even("llama-2-70b", 4, tp=4, dp=4)
    gain = {
        card: timing(gpus=f"64x{card}").step(layout).seconds
        / timing(gpus=f"64x{card}", precision="fp8").step(layout).seconds
        for card in ("H100-80G", "A100-80G")
    }
    assert gain["H100-80G"] > 1.2
    assert gain["A100-80G"] <= 1


def test_every_micro_batch_and_gpu_counts_once():
    """Twice the batch takes less than twice the step (bubble and optimizer are paid once), and more than 1.8 times."""
    layout = even("llama-2-70b", 4, tp=4, dp=4, zero=1)
    one, two = (timing(batch=b).step(layout).seconds for b in (256, 512))
    assert 1.8 < two / one < 2


def test_deepspeed_sends_between_stages_a_share_from_each_rank():
    """Without sequence parallelism Megatron-Core sends the whole activation from every tensor-parallel rank, DeepSpeed
    a tp-th, gathered inside the node; with it Megatron sends a tp-th too."""
    layout = even("gpt3-175b", 8, tp=8, dp=1)

    def sends(layout, **implementation):
        made = timing("gpt3-175b", seq=2048, batch=64, **implementation)
        return made.step(layout).components["pipeline_p2p"]

    whole, parts = sends(layout), sends(layout, framework="megatron-deepspeed")
    shared = sends(replace(layout, sequence_parallel=True))
    assert shared < parts < whole / 3
    alone = even("gpt3-175b", 8, tp=1, dp=8)
    assert sends(alone) == sends(alone, framework="megatron-deepspeed")


def test_biases_cost_their_gradients():
    """A linear layer's bias adds a pass over its output's gradient: slower, by less than 3 %."""
    model = MODELS["llama-2-13b"]
    kind = model.layer_kinds[0]
    biased = replace(
        model,
        layer_kinds=(
            replace(
                kind,
                attention=replace(kind.attention, qkv_bias=True, output_bias=True),
                mlp=replace(kind.mlp, bias=True),
            ),
        ),
    )
    layout = even("llama-2-13b", 1, tp=8, sequence_parallel=True)
    workload, cluster = Workload(4096, 8, "bf16"), parse_gpus("8xA100-80G")
    without, having = (
        Timing(m, workload, Implementation(), cluster).step(layout).components["compute"] for m in (model, biased)
    )
    assert 1.001 < having / without < 1.03


def test_experts_exchange_tokens():
    """Expert parallelism shows as its own component, more so across nodes."""
    t = timing("mixtral-8x7b")
    near = t.step(even("mixtral-8x7b", 1, dp=64, ep=8, zero=1)).components
    far = timing("mixtral-8x7b", moe_dispatcher="allgather").step(even("mixtral-8x7b", 1, dp=64, ep=8, zero=1))
    assert near["expert_parallel"] > 0
    assert far.components["expert_parallel"] > near["expert_parallel"]


def test_calibration_replaces_a_constant_and_unknown_names_are_refused():
    """A cluster's own measurement of fp8 matters; a misspelt one is an error that names the nearest."""
    layout = even("llama-2-70b", 4, tp=4, dp=4)
    cluster = parse_gpus("64xH100-80G")
    workload, model = Workload(4096, 256), MODELS["llama-2-70b"]
    slow = replace(cluster, calibration={"gemm": {"bf16": 0.35}})
    measured = Timing(model, workload, Implementation(), slow).step(layout).seconds
    assert measured > 1.5 * Timing(model, workload, Implementation(), cluster).step(layout).seconds
    with pytest.raises(InputError, match="memory"):
        Timing(model, workload, Implementation(), replace(cluster, calibration={"memmory": 0.5}))


def test_a_mixed_cluster_runs_at_the_pace_of_its_slowest_card():
    """Eight A100 beside eight H100 take as long as sixteen A100, give or take the links."""
    layout = even("llama-2-13b", 1, tp=2, dp=8, zero=1)
    mixed, slow, fast = (
        timing("llama-2-13b", gpus, batch=64).step(layout)
        for gpus in ("8xA100-80G+8xH100-80G", "16xA100-80G", "16xH100-80G")
    )
    assert mixed.seconds == pytest.approx(slow.seconds, rel=0.05)
    assert fast.seconds < 0.7 * mixed.seconds
    assert slow.peak_flops_per_gpu < mixed.peak_flops_per_gpu < fast.peak_flops_per_gpu


@pytest.mark.parametrize(("framework", "zero", "times"), [("megatron", 1, 1), ("megatron-deepspeed", 1, 2)])
def test_deepspeed_all_reduces_gradients_that_it_keeps_in_shards(framework, zero, times):
    """Beside the same gather of weights, stage 1 moves the gradients twice as often as a reduce-scatter does."""
    layout = even("llama-2-13b", 1, tp=8, dp=8, zero=zero)
    quiet = {"overlap_grad_reduce": False, "overlap_param_gather": False}
    seconds = timing("llama-2-13b", framework=framework, **quiet).step(layout).components
    plain = timing("llama-2-13b", **quiet).step(layout).components
    gradients, weights = 4, 2  # bytes of a parameter's
    expected = (times * gradients + weights) / (gradients + weights)
    assert seconds["data_parallel"] / plain["data_parallel"] == pytest.approx(expected, rel=0.05)


def test_deepspeeds_zero_2_gathers_weights_once():
    """They stay whole between steps: more microbatches reduce more often but gather no more; FSDP2 gathers for each."""
    quiet = {"overlap_grad_reduce": False, "overlap_param_gather": False}
    layouts = [even("llama-2-13b", 1, tp=8, dp=8, micro_batch=b, zero=2) for b in (4, 2)]
    few, many = (
        timing("llama-2-13b", sharded_framework="deepspeed", framework="megatron-deepspeed", **quiet).step(x).components
        for x in layouts
    )
    gradients, weights = 2 * 4, 2  # bytes: fp32 gradients are all-reduced
    assert many["data_parallel"] / few["data_parallel"] == pytest.approx(
        (16 * gradients + weights) / (8 * gradients + weights), rel=0.05
    )


def test_megatron_fsdps_zero_2_gathers_weights_once():
    """2 bytes of 13.0e9 / 8 parameters among 8 nodes, through a port of 50 GB/s each, whatever the microbatches: as at
    ZeRO 1. A microbatch waits for nothing that FSDP2 gathers."""
    t = timing("llama-2-13b", sharded_framework="megatron_fsdp", overlap_param_gather=False)

    def gather_ns(zero, micro_batch):
        layout = even("llama-2-13b", 1, tp=8, dp=8, micro_batch=micro_batch, zero=zero)
        [tail] = [tail for tail in t.form(layout).stages[0].tails if tail.name == "param_gather"]
        return tail.fixed_ns + 40 * tail.layer_ns[0]

    assert gather_ns(2, 4) == gather_ns(2, 2) == gather_ns(1, 4)
    assert gather_ns(2, 4) == pytest.approx(1e9 * 2 * 13.0e9 / 8 * 7 / 8 / (50e9 * 0.9), rel=0.02)
    layout = even("llama-2-13b", 1, tp=8, dp=8, micro_batch=1, zero=2)
    kept, gathered = (timing("llama-2-13b", sharded_framework=f).form(layout) for f in ("megatron_fsdp", "fsdp2"))
    assert kept.stages[0].layer_ns < gathered.stages[0].layer_ns


@pytest.mark.parametrize("framework", ["fsdp2", "megatron_fsdp"])
def test_replicas_of_shards_agree_beside_the_backward_pass(framework):
    """FSDP2 all-reduces between replicas in every backward pass, Megatron-FSDP in the last one: with twice the
    microbatches, what eight replicas cost more is twice as much with the one and no more with the other."""
    t = timing(sharded_framework=framework)

    def exposed(replicas, micro_batch):
        layout = even("llama-2-70b", 1, dp=64, zero=3, micro_batch=micro_batch, hsdp_replicas=replicas)
        seconds = t.step(layout).components
        return seconds["data_parallel"] + seconds.get("grad_reduce", 0.0)

    few, many = (exposed(8, b) - exposed(1, b) for b in (2, 1))
    assert few > 0
    if framework == "fsdp2":
        assert many / few == pytest.approx(2, rel=0.05)
    else:
        assert many <= few


def test_a_blocking_host_hides_nothing_and_shows_every_launch():
    """With CUDA_LAUNCH_BLOCKING communication costs what it does without overlap, and the host's time comes on top,
    once a layer and microbatch: half the microbatches, half of it."""
    few, many = (even("llama-2-13b", 1, tp=2, dp=32, micro_batch=b, zero=1) for b in (4, 2))
    quiet = timing("llama-2-13b", overlap_grad_reduce=False, overlap_param_gather=False).step(few).components
    got = timing("llama-2-13b", launch_blocking=True).step(few).components
    assert got["data_parallel"] == pytest.approx(quiet["data_parallel"], rel=0.02)
    assert got["tensor_parallel"] > quiet["tensor_parallel"]
    assert got["compute"] == quiet["compute"]
    assert "launch" not in quiet and got["launch"] > 0
    twice = timing("llama-2-13b", launch_blocking=True).step(many).components
    assert twice["launch"] == pytest.approx(2 * got["launch"], rel=1e-6)


def test_pricing_imports_no_heavy_library():
    """Start-up stays fast: the path from a layout to its time loads neither numpy nor networkx nor the solver."""
    code = (
        "import sys; import planner.timing.step; from planner.hardware import parse_gpus; parse_gpus('8xH100-80G');"
        "print([m for m in ('numpy', 'networkx', 'ortools', 'pandas', 'scipy') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_bad_input_is_one_sentence():
    """A batch too small for the layout, and a layout without stages, are refused with the numbers."""
    t = timing(batch=8)
    with pytest.raises(InputError, match=r"global batch \(8\) must be at least micro_batch x dp \(16\)"):
        t.form(Layout(tp=4, dp=16))
    with pytest.raises(InputError, match=r"timed on pp \(4\) stages, but was given 0"):
        t.step(Layout(tp=4, pp=4, dp=4))


def contexts(exchange, cp=4, tp=2, model="llama-2-70b"):
    """Components of a step under one exchange of context parallelism."""
    layout = even(model, 1, tp=tp, cp=cp, dp=64 // (tp * cp), zero=3, sequence_parallel=tp > 1)
    found = timing(model, "64xH100-80G", seq=32768, batch=64, cp_comm_type=exchange, attention="fused").step(layout)
    return found.components


def test_each_exchange_of_context_parallelism_has_its_own_cost():
    """A ring hides behind long sequences and pays the tax; an all-to-all and a gather show all of what they move. Both
    levels of a2a+p2p count as one ring."""
    ring, by_heads, gathered = (contexts(x)["context_parallel"] for x in ("p2p", "a2a", "allgather"))
    assert ring < by_heads and ring < gathered
    assert contexts("a2a+p2p") == contexts("p2p")


def test_grouped_queries_favour_the_gather_and_plain_ones_the_all_to_all():
    """A gather moves only keys and values, but those of all ranks; an all-to-all a rank's own, with the queries and the
    outputs. Of eight ranks with as many key heads as query heads the gather moves five times as much."""
    plain = [contexts(x, cp=8, tp=1, model="llama-2-13b")["context_parallel"] for x in ("a2a", "allgather")]
    grouped = [contexts(x, cp=8, tp=1)["context_parallel"] for x in ("a2a", "allgather")]
    assert 3 < plain[1] / plain[0] < 5.3
    assert grouped[1] / grouped[0] < 1


def test_without_context_parallelism_the_exchange_is_nothing():
    """One rank exchanges with nobody."""
    assert contexts("a2a", cp=1) == contexts("p2p", cp=1)
    assert "context_parallel" not in contexts("allgather", cp=1)
