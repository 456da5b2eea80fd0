"""Work and communication that a step has counted, each by what makes it appear, disappear or change its size."""

from dataclasses import replace
from math import hypot

import pytest

from planner.catalog import load_model
from planner.errors import NotModelled
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, Chunk, Layout, Recompute
from planner.stages import balanced_split, even_split
from planner.timing.efficiency import efficiency
from planner.timing.step import Timing
from planner.timing.tails import optimizer_traffic_bytes
from planner.workload import Workload

MIXTRAL, LLAMA, DEEPSEEK = (load_model(name) for name in ("mixtral-8x7b", "llama-2-7b", "deepseek-v3"))
PRECISION_AWARE = {
    "precision_aware_optimizer": True, "main_grads_bytes": 2, "exp_avg_bytes": 2, "exp_avg_sq_bytes": 2
}  # fmt: skip


def step(model, gpus, batch, workload=None, implementation=None, **degrees):
    pp, vpp = degrees.get("pp", 1), degrees.get("vpp", 1)
    split = even_split if model.num_layers % (pp * vpp) == 0 else balanced_split
    layout = Layout(**{"stages": split(model, pp, vpp)} | degrees)
    asked = Workload(4096, batch, **(workload or {})), Implementation(**(implementation or {}))
    return Timing(model, *asked, parse_gpus(gpus)).step(layout)


def test_experts_that_are_padded_to_twice_their_share_compute_twice_as_much():
    """As the busiest rank of an imbalance of two does; a capacity of one has no busiest rank."""
    degrees = {"ep": 8, "dp": 16}

    def seconds(**implementation):
        return step(MIXTRAL, "16xH100-80G", 64, implementation=implementation, **degrees).seconds

    padded = seconds(moe_capacity_factor=2.0, moe_pad_to_capacity=True)
    assert padded == pytest.approx(seconds(moe_imbalance=2.0), rel=0.03)
    assert padded > 1.4 * seconds()
    assert seconds(moe_capacity_factor=1.0, moe_imbalance=1.5) == pytest.approx(seconds(), rel=0.01)


@pytest.mark.parametrize(
    ("change", "moved"),
    [
        # a copy's 4096 outputs: bias x probability, sum, concatenation; their gradients, multiplied and summed twice
        ({"bias": True}, 4096 * (12 + 16)),
        # its 14336 elements of each half: clamped, joined; compared, selected and joined again
        ({"clamp": 7.0}, 14336 * (16 + 30)),
    ],
)
def test_biases_and_clamps_of_experts_are_passes_of_their_own(change, moved):
    """16 384 tokens in two copies, through 32 layers, at the bandwidth that memory-bound kernels reach."""
    (kind,) = MIXTRAL.layer_kinds
    expert = replace(kind.mlp.expert, **change)
    other = replace(MIXTRAL, layer_kinds=(replace(kind, mlp=replace(kind.mlp, expert=expert)),))
    cluster = parse_gpus("16xH100-80G")
    plain, more = (step(model, "16xH100-80G", 64, ep=8, dp=16) for model in (MIXTRAL, other))
    bandwidth = cluster.card.memory_bytes_per_second * efficiency(cluster).memory
    grown = more.components["compute"] - plain.components["compute"]
    assert grown == pytest.approx(2 * 16384 * 32 * moved / bandwidth, rel=0.1)
    assert more.components["expert_parallel"] == plain.components["expert_parallel"]


def test_nothing_reduces_between_cards_on_pcie():
    """The in-switch all-reduce is the NVLink switches'; calibration may still say otherwise."""
    assert efficiency(parse_gpus("8xH100-80G")).scale_up_all_reduce
    assert efficiency(parse_gpus("8xH100-PCIE")).scale_up_all_reduce is None


def test_heads_of_multi_token_prediction_stand_with_the_loss():
    """A module that stands before the last stage leaves its head and loss there, and brings a copy of the embedding
    whose gradients the stages reduce."""
    gpus, cuts = "256xGB200", [15, 16, 16, 14]

    def made(mtp_stage):
        stages, start = [], 0
        for i, n in enumerate(cuts):
            chunk = Chunk(start, start + n, embedding=i == 0, mtp_layers=int(i == mtp_stage), loss=i == 3)
            stages.append((chunk,))
            start += n
        layout = Layout(pp=4, dp=64, ep=32, zero=1, stages=tuple(stages))
        return Timing(DEEPSEEK, Workload(4096, 2048), Implementation(), parse_gpus(gpus)).form(layout)

    away, together = made(2), made(3)
    module = away.stages[2].fixed_ns - together.stages[2].fixed_ns
    kept = away.stages[3].fixed_ns - away.stages[1].fixed_ns
    assert module > 0
    assert together.stages[3].fixed_ns - away.stages[3].fixed_ns == pytest.approx(module, rel=0.01)
    assert kept > 0.3 * module  # two heads and losses
    assert away.once_ns == together.once_ns > 50_000_000  # a copy on either stage, reduced with the first's


def test_the_gradient_of_an_output_is_gathered_in_8_bits_under_one_scale():
    """With a scale for each block both copies of the gradient are needed, with the tensor's own one."""
    degrees = {"tp": 8, "dp": 8, "sequence_parallel": True}

    def exchanged(recipe):
        workload, implementation = {"precision": "fp8"}, {"fp8_recipe": recipe}
        found = step(LLAMA, "64xH100-80G", 64, workload, implementation, **degrees)
        return found.components["tensor_parallel"]

    assert exchanged("delayed") == exchanged("tensorwise") < 0.95 * exchanged("blockwise")


def test_distributed_checkpoints_are_gathered_before_a_layer_is_rebuilt():
    """What memory they save costs one gather for each recomputed layer."""
    degrees = {"tp": 8, "dp": 1}
    plain, divided = (
        step(LLAMA, "8xA100-80G", 8, recompute=replace(FULL, distribute_saved_activations=on), **degrees)
        for on in (False, True)
    )
    assert divided.components["tensor_parallel"] > plain.components["tensor_parallel"]
    assert divided.seconds > plain.seconds


@pytest.mark.parametrize(
    ("zero", "optimizer", "precision", "implementation", "moved"),
    [
        (1, "adamw", "bf16", {}, 4 * 4 + 2 * (4 + 4 + 4) + 2),
        (1, "adamw-8bit", "bf16", {}, 4 * 4 + 2 * (4 + 1 + 1) + 2),
        (1, "sgd", "bf16", {}, 4 * 4 + 2 * 4 + 2),
        (1, "adamw", "bf16", {"grad_reduce_bytes": 2}, (2 + 4) + 4 * 4 + 2 * 12 + 2),
        (1, "adamw", "fp8", {"fp8_param_gather": True}, 4 * 4 + 2 * 12 + 1),
        (1, "adamw", "bf16", PRECISION_AWARE, 4 * 2 + 2 * (2 + 2 + 2) + 2 + 2),
        (0, "adamw", "bf16", PRECISION_AWARE, 4 * 2 + 2 * (4 + 2 + 2) + 2),
    ],
)
def test_the_optimizer_moves_what_the_memory_holds(zero, optimizer, precision, implementation, moved):
    """Four passes over the gradient, two over master weight and moments, one over the weight; half-precision gradients
    are copied to fp32 first, but not by the precision-aware optimizer, which reads the weight where it keeps the other
    half of the master."""
    workload = Workload(4096, 64, precision, optimizer)
    assert optimizer_traffic_bytes(zero, workload, Implementation(**implementation)) == moved


def test_gradients_are_scaled_before_they_are_reduced():
    """Each of 6.74e9 main gradients of 4 bytes is read and written once a step, at H100's 3.35 TB/s times the fraction
    that kernels reach; not on one rank, not where the reduction averages, not by DeepSpeed or in shards."""

    def seconds(dp=8, zero=1, **implementation):
        found = step(LLAMA, f"{dp}xH100-80G", dp, None, implementation, dp=dp, zero=zero)
        return found.components["optimizer"]

    bandwidth = 3.35e12 * efficiency(parse_gpus("8xH100-80G")).memory
    assert seconds() - seconds(prescales_gradients=False) == pytest.approx(8 * 6.74e9 / bandwidth, rel=0.01)
    assert seconds(dp=1) == seconds(dp=1, prescales_gradients=False)
    assert seconds(zero=2) == seconds(zero=2, prescales_gradients=False)
    assert seconds(framework="megatron-deepspeed") == seconds(prescales_gradients=False)


def test_muon_orthogonalises_whole_matrices():
    """Five steps of 4 m^2 n + 2 m^3 FLOPs on every matrix, dealt out over data parallelism where states are divided;
    and one fp32 moment less than Adam's to read and write."""

    def optimizer(name, zero):
        found = step(LLAMA, "8xH100-80G", 64, {"optimizer": name}, dp=8, zero=zero)
        return found.components["optimizer"]

    h, inner = 4096, 11008
    qkv, out, up, down = (3 * h, h), (h, h), (2 * inner, h), (h, inner)
    flops = sum(5 * (4 * min(s) ** 2 * max(s) + 2 * min(s) ** 3) for s in (qkv, out, up, down)) * 32
    device = Timing(LLAMA, Workload(4096, 64), Implementation(), parse_gpus("8xH100-80G"))._coefficients.device
    moment = 8 * LLAMA.num_layers * sum(rows * columns for rows, columns in (qkv, out, up, down))
    seconds = flops / device.flops("bf16") - moment / device.memory_bytes_per_second
    for zero, ranks in ((0, 1), (1, 8)):
        extra = optimizer("muon", zero) - optimizer("adamw", zero)
        assert extra == pytest.approx(seconds / ranks, rel=0.03)


def test_weights_that_are_gathered_are_cast_to_8_bits_again():
    """Sharded weights have no fp8 copy to keep: ZeRO 3 casts for both passes, FSDP2's ZeRO 2 for one, ZeRO 1 and
    Megatron-FSDP's ZeRO 2, whose weights stay whole, not at all."""

    def compute(zero, framework):
        found = step(LLAMA, "64xH100-80G", 64, {"precision": "fp8"}, {"sharded_framework": framework}, dp=64, zero=zero)
        return found.components["compute"]

    none, kept, both = (compute(zero, "megatron_fsdp") for zero in (1, 2, 3))
    assert none == kept < both
    once, twice = (compute(zero, "fsdp2") for zero in (2, 3))
    assert both - none == pytest.approx(2 * (twice - once), rel=0.01)


def test_replicated_shards_of_the_optimizer_are_larger():
    """Four instances of the distributed optimizer update four times as much each, sixteen sixteen times."""
    one, four, sixteen = (
        step(
            LLAMA, "64xH100-80G", 64, implementation={"num_distributed_optimizer_instances": n}, dp=64, zero=1
        ).components["optimizer"]
        for n in (1, 4, 16)
    )
    assert sixteen - four == pytest.approx(4 * (four - one), rel=0.01)
    assert four > one


def test_experts_divided_and_hybrid_sharded_have_no_time():
    """Their groups are not modelled, and a time that ignored them would be off by tens of per cent."""
    with pytest.raises(NotModelled, match="HSDP"):
        step(MIXTRAL, "64xH100-80G", 64, dp=64, ep=8, zero=3, hsdp_replicas=8)


@pytest.mark.parametrize(
    ("module", "parts", "operations"),
    [
        ("core_attn", {"context_parallel"}, "repeats the attention core alone"),
        ("mlp", {"tensor_parallel"}, "gathers and scatters around its products"),
    ],
)
def test_a_recomputed_module_communicates_again(module, parts, operations):
    """What a module exchanges forward it exchanges again in the backward pass."""
    degrees = {"tp": 4, "cp": 2, "dp": 2, "sequence_parallel": True}
    plain, again = (
        step(LLAMA, "16xH100-80G", 16, **degrees, recompute=r).components
        for r in (NO_RECOMPUTE, Recompute("selective", (module,)))
    )
    grown = {name for name in ("tensor_parallel", "context_parallel") if again.get(name, 0) > plain.get(name, 0)}
    assert grown == parts, operations
    assert again["recompute"] > 0


def test_a_recomputed_mixture_routes_and_dispatches_again():
    """All of its forward pass, exchanges included: between the experts' work alone and a whole recomputed layer."""

    def parts(recompute):
        return step(MIXTRAL, "16xH100-80G", 64, ep=8, dp=16, recompute=recompute)

    plain, act, moe, full = (
        parts(r) for r in (NO_RECOMPUTE, Recompute("selective", ("moe_act",)), Recompute("selective", ("moe",)), FULL)
    )
    exchanged = plain.components["expert_parallel"]
    assert moe.components["expert_parallel"] == pytest.approx(1.5 * exchanged, rel=0.01)
    assert act.components["expert_parallel"] == exchanged
    assert plain.seconds < act.seconds < moe.seconds < full.seconds
    assert plain.hfu / plain.mfu == pytest.approx(1) and act.hfu / act.mfu == pytest.approx(1)
    assert 1.2 < moe.hfu / moe.mfu < full.hfu / full.mfu < 4 / 3


def test_fused_rotary_positions_of_latent_attention_move_less():
    """Without the fusion the heads are split and joined again, and the rotary part passes through memory by itself:
    at least 128 heads of 512 elements instead of 576 half-wide ones, read and written, each way."""
    degrees = {"ep": 32, "pp": 8, "dp": 32}
    fused, apart = (
        step(DEEPSEEK, "256xGB200", 256, implementation={"rope_fusion": on}, **degrees) for on in (True, False)
    )
    cluster = parse_gpus("256xGB200")
    bandwidth = cluster.card.memory_bytes_per_second * efficiency(cluster).memory
    least = 8 * 7 * 4096 * 128 * (2 * 2 * 512 - 2 * 576) * 2 / bandwidth  # 8 microbatches, 7 layers a stage at least
    assert apart.components["compute"] - fused.components["compute"] > least


def test_a_step_that_waits_for_its_host_is_known_less_well():
    """Issuing kernels is known to 40 %, which the published runs hardly show: its share weighs in the error bar."""
    narrow = load_model("qwen3-30b-a3b")
    quick, slow = (step(narrow, "16xH100-80G", 128, ep=8, dp=16, micro_batch=m) for m in (8, 1))
    assert slow.components["launch"] / slow.seconds > 10 * quick.components.get("launch", 0) / quick.seconds
    share = slow.components["launch"] / slow.seconds
    assert slow.relative_error == pytest.approx(hypot((1 - share) * quick.relative_error, 0.4 * share))
    assert slow.relative_error > 1.4 * quick.relative_error
    assert any("--cuda-graphs" in line for line in slow.assumptions)
    assert not any("--cuda-graphs" in line for line in quick.assumptions)


def test_groups_that_leave_the_scale_up_links_are_named():
    """Experts over 16 GPUs of nodes of 8; over 8 they stay inside."""
    within, across = (step(MIXTRAL, "16xH100-80G", 64, ep=ep, dp=16) for ep in (4, 8))
    assert not any("reach beyond" in line for line in (*within.assumptions, *across.assumptions))
    wide = step(DEEPSEEK, "32xH100-80G", 64, ep=32, dp=32)
    assert any("expert-parallel groups of 32 reach beyond 8 GPUs" in line for line in wide.assumptions)


def shared_groups(groups, **degrees):
    """Llama-2-7B with so many query groups, 8 tensor-parallel ranks to a node of H100."""
    (kind,) = LLAMA.layer_kinds
    grouped = replace(kind, attention=replace(kind.attention, num_query_groups=groups))
    model = replace(LLAMA, layer_kinds=(grouped,))
    return step(model, "16xH100-80G", 16, tp=8, sequence_parallel=True, **degrees)


def test_ranks_that_share_a_group_gather_the_projection():
    """Two ranks to a group: 2 bytes of 4096 tokens by 4096 + 2 x 512 columns are gathered, and their gradients reduced,
    in each of 32 layers and for each of 8 microbatches; 7/8 of them over NVLink at 0.81 of 450 GB/s, and 63
    microseconds of launch and seven steps."""
    (apart, shared) = (shared_groups(groups, dp=2) for groups in (8, 4))
    once = 2 * 4096 * (4096 + 2 * 512) * 7 / 8 / (0.81 * 450e9) + 63e-6
    grown = shared.components["tensor_parallel"] - apart.components["tensor_parallel"]
    assert grown == pytest.approx(2 * once * 32 * 8, rel=0.02)


@pytest.mark.parametrize("exchange", ["p2p", "a2a", "allgather"])
def test_context_parallel_ranks_exchange_whole_heads(exchange):
    """A rank of eight holds one key head of four groups as of eight, and passes on as much."""
    shared, apart = (
        shared_groups(groups, cp=2, implementation={"cp_comm_type": exchange}).components["context_parallel"]
        for groups in (4, 8)
    )
    assert (
        shared
        == apart
        < shared_groups(32, cp=2, implementation={"cp_comm_type": exchange}).components["context_parallel"]
    )


def test_both_directions_of_dualpipe_hide_their_gradients():
    """A rank reduces the gradients of two stages, each behind the last microbatch of its own direction."""
    layout = Layout(tp=4, pp=4, dp=4, zero=1)

    def tails(schedule):
        form = Timing(LLAMA, Workload(4096, 64), Implementation(schedule=schedule), parse_gpus("64xH100-80G")).form(
            layout
        )
        return {tail.name: tail.layer_ns[0] for tail in form.stages[0].tails}

    one, two = tails("1f1b"), tails("dualpipe")
    for name in ("grad_reduce", "param_gather"):
        assert two[name] == pytest.approx(2 * one[name], abs=2)
