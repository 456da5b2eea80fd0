"""The book of rules: every rule has a source, a case that breaks exactly it, and one that keeps it."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from planner.cluster import Card, Cluster, Fabric, NodeGroup
from planner.errors import RuleBroken
from planner.implementation import Implementation
from planner.layout import NO_RECOMPUTE, Chunk, Layout, Recompute
from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE
from planner.rules import RULES, broken_rules, check
from planner.stages import even_split
from planner.workload import Workload

DENSE = Model("dense", 64, 1000, (Layer(Attention(8, 2, 8), MLP(96)),), (0,) * 8)
MHA = Model("mha", 320, 1000, (Layer(Attention(40, 40, 8), MLP(880)),), (0,) * 40)
MQA = replace(MHA, name="mqa", layer_kinds=(Layer(Attention(40, 1, 8), MLP(880)),))
LEARNED = replace(DENSE, name="learned", position="learned", learned_positions=128, max_positions=128, tied=True)
LATENT = Model("latent", 64, 1000, (Layer(LatentAttention(8, 36, 8, 8, 8), MLP(96)),), (0,) * 8)
MTP = replace(DENSE, name="mtp", hidden_size=36, mtp_num_layers=1)
EXPERTS = Model("moe", 64, 1000, (Layer(Attention(8, 8, 8), MoE(12, 2, MLP(24))),), (0,) * 8)
SHARED = Model("shared", 64, 1000, (Layer(Attention(8, 8, 8), MoE(12, 2, MLP(24), shared=MLP(24))),), (0,) * 8)
BIASED = Model("biased", 64, 1000, (Layer(Attention(8, 8, 8), MoE(12, 2, MLP(24, bias=True))),), (0,) * 8)
IMPLEMENTATION = Implementation()
WORKLOAD = Workload(96, 48)
FP8 = Workload(96, 48, "fp8")


def card(architecture: str = "ampere", **flops: float) -> Card:
    """A card that computes in the given precisions only."""
    return Card("card", "v", architecture, 10**9, 10**9, 0, 1e9, flops, "nvlink", 1e9, 1e9, 8, 8, 1e9)


def cluster(architecture: str = "ampere", **flops: float) -> Cluster:
    return Cluster("cluster", (NodeGroup(card(architecture, **flops), 1, 8),), Fabric())


def case(model=DENSE, workload=WORKLOAD, implementation=IMPLEMENTATION, world=None, cluster=None, **layout):
    """Arguments of `broken_rules`."""
    return model, workload, implementation, Layout(**layout), world, cluster


def graphs(model, *captured, recompute=NO_RECOMPUTE, **implementation):
    """The case of a model with CUDA graphs of `captured`."""
    chosen = Implementation(cuda_graphs=captured, **implementation)
    return case(model, implementation=chosen, recompute=recompute)


FUSED = Implementation(attention="fused")
A2A = Implementation(attention="fused", cp_comm_type="a2a")
SLIDING = replace(DENSE, name="sliding", layer_kinds=(Layer(Attention(8, 4, 8, window=32), MLP(96)),))
SINKS = replace(DENSE, name="sinks", layer_kinds=(Layer(Attention(8, 4, 8, sinks=True), MLP(96)),))
NO_BIAS_DROPOUT = Implementation(bias_dropout_fusion=False)
UNFUSED = Implementation(attention="unfused")
WIDE = replace(DENSE, name="wide", layer_kinds=(Layer(Attention(8, 2, 264), MLP(96)),))
EP_OVERLAP = Implementation(overlap_moe_expert_parallel_comm=True)
SELECTIVE_MLA = Recompute("selective", ("mla_up_proj",))
HALF = ((Chunk(0, 4, embedding=True),), (Chunk(4, 7, loss=True),))

EXAMPLES = {
    "degrees-positive": (case(pp=0), case()),
    "zero-stage": (case(zero=7), case(zero=1)),
    "world-size": (case(world=8, dp=4), case(world=8, dp=8)),
    "expert-world-size": (case(EXPERTS, ep=2, dp=3), case(EXPERTS, ep=2, dp=4)),
    "batch-divides": (case(dp=5), case(dp=6)),
    "distributed-optimizer-instances": (
        case(implementation=Implementation(num_distributed_optimizer_instances=2), dp=3),
        case(implementation=Implementation(num_distributed_optimizer_instances=2), dp=4),
    ),
    "hsdp-divides": (case(dp=4, zero=3, hsdp_replicas=3), case(dp=4, zero=3, hsdp_replicas=2)),
    "hsdp-needs-zero": (case(dp=4, zero=1, hsdp_replicas=2), case(dp=4, zero=2, hsdp_replicas=2)),
    "tensor-heads": (case(MQA, tp=16), case(MQA, tp=8)),
    "tensor-query-groups": (
        case(replace(MHA, layer_kinds=(Layer(Attention(12, 3, 8), MLP(96)),)), tp=2),
        case(replace(MHA, layer_kinds=(Layer(Attention(12, 3, 8), MLP(96)),)), tp=6),
    ),
    "tensor-ffn": (case(replace(DENSE, layer_kinds=(Layer(Attention(8, 8, 8), MLP(98)),)), tp=4), case(tp=4)),
    "tensor-latent-rank": (case(LATENT, implementation=Implementation("local"), tp=8), case(LATENT, tp=8)),
    "tensor-mtp-projection": (case(MTP, tp=8), case(MTP, tp=4)),
    "sequence-needs-tensor": (case(sequence_parallel=True), case(tp=2, sequence_parallel=True)),
    "tensor-overlap-needs-sequence": (
        case(implementation=Implementation(tp_comm_overlap=True), tp=2),
        case(implementation=Implementation(tp_comm_overlap=True), tp=2, sequence_parallel=True),
    ),
    "tensor-loss": (
        case(implementation=Implementation(cross_entropy="liger"), tp=2),
        case(implementation=Implementation(cross_entropy="liger")),
    ),
    "sequence-divides": (
        case(workload=Workload(98, 48), tp=4, sequence_parallel=True),
        case(workload=Workload(98, 48), tp=4),
    ),
    "context-divides": (case(cp=5), case(cp=4)),
    "context-needs-fused-attention": (case(implementation=UNFUSED, cp=2), case(cp=2)),
    "device-connections": (
        case(implementation=Implementation(device_max_connections=8), cluster=cluster(bf16=1.0), tp=2),
        case(implementation=Implementation(device_max_connections=8), cluster=cluster("blackwell", bf16=1.0), tp=2),
    ),
    "context-window": (
        case(SLIDING, implementation=FUSED, cp=2, dp=2),
        case(SLIDING, implementation=Implementation(attention="fused", cp_comm_type="allgather"), cp=2, dp=2),
    ),
    "context-sinks": (
        case(SINKS, implementation=Implementation(attention="fused", cp_comm_type="allgather"), cp=2, dp=2),
        case(SINKS, implementation=A2A, cp=2, dp=2),
    ),
    "context-heads": (case(SINKS, implementation=A2A, tp=2, cp=4), case(SINKS, implementation=A2A, tp=2, cp=2)),
    "attention-sinks": (case(SINKS), case(SINKS, implementation=FUSED)),
    "graph-modules": (graphs(DENSE, "moe_router"), graphs(EXPERTS, "moe_router")),
    "graph-shapes": (graphs(EXPERTS, "moe"), graphs(EXPERTS, "moe", moe_capacity_factor=1.0, moe_pad_to_capacity=True)),
    "graph-recompute": (
        graphs(EXPERTS, "moe_router", recompute=Recompute("selective", ("moe",))),
        graphs(EXPERTS, "attn", recompute=Recompute("selective", ("moe",))),
    ),
    "graph-dropout": (
        graphs(DENSE, "attn", recompute=Recompute("selective", ("core_attn",)), attention_dropout=0.1),
        graphs(DENSE, "attn", recompute=Recompute("selective", ("core_attn",)), attention_dropout=0.0),
    ),
    "graph-offload": (
        graphs(DENSE, "attn", offload_activation_layers=2),
        graphs(DENSE, "iteration", offload_activation_layers=2),
    ),
    "fp8-recipe-card": (
        case(
            workload=Workload(96, 48, "fp8"),
            implementation=Implementation(fp8_recipe="mxfp8"),
            cluster=cluster("hopper", bf16=1.0, fp8=2.0),
        ),
        case(
            workload=Workload(96, 48, "fp8"),
            implementation=Implementation(fp8_recipe="mxfp8"),
            cluster=cluster("blackwell", bf16=1.0, fp8=2.0),
        ),
    ),
    "fsdp-connections": (
        case(implementation=Implementation(device_max_connections=1), dp=2, zero=3),
        case(implementation=Implementation(device_max_connections=8), dp=2, zero=3),
    ),
    "flash-attention-heads": (
        case(WIDE, implementation=Implementation(attention="flash")),
        case(WIDE, implementation=UNFUSED),
    ),
    "flash-attention-precision": (
        case(workload=Workload(96, 48, "fp32"), implementation=Implementation(attention="flash")),
        case(workload=Workload(96, 48, "fp32"), implementation=Implementation(attention="auto")),
    ),
    "flash-attention-card": (
        case(cluster=cluster("volta", bf16=1e12), implementation=Implementation(attention="flash")),
        case(cluster=cluster("volta", bf16=1e12), implementation=Implementation(attention="auto")),
    ),
    "sequence-positions": (case(LEARNED, workload=Workload(256, 48)), case(LEARNED, workload=Workload(128, 48))),
    "pipeline-layers": (case(pp=12), case(pp=8)),
    "pipeline-split": (case(pp=2, stages=HALF), case(pp=2, stages=even_split(DENSE, 2))),
    "virtual-needs-pipeline": (case(vpp=2), case(pp=2, vpp=2)),
    "virtual-microbatches": (case(pp=5, vpp=2), case(pp=4, vpp=2)),
    "schedule-virtual": (case(implementation=Implementation(schedule="zb-h1"), pp=2, vpp=2), case(pp=2, vpp=2)),
    "schedule-dualpipe": (
        case(implementation=Implementation(schedule="dualpipe"), pp=3),
        case(implementation=Implementation(schedule="dualpipe"), pp=4),
    ),
    "offload-layers": (
        case(implementation=Implementation(offload_activation_layers=2), pp=2),
        case(implementation=Implementation(offload_activation_layers=2)),
    ),
    "pipeline-deferred-gradients": (
        case(implementation=Implementation(deferred_embedding_wgrads=2)),
        case(implementation=Implementation(deferred_embedding_wgrads=2), pp=2),
    ),
    "expert-needs-experts": (case(ep=2, dp=2), case(EXPERTS, ep=2, dp=2)),
    "expert-divides": (case(EXPERTS, ep=8, dp=8), case(EXPERTS, ep=4, dp=8)),
    "expert-ffn": (case(EXPERTS, etp=16, dp=16), case(EXPERTS, etp=8, dp=8)),
    "expert-bias": (
        case(BIASED, implementation=NO_BIAS_DROPOUT, etp=2, dp=2),
        case(BIASED, implementation=NO_BIAS_DROPOUT, dp=2),
    ),
    "expert-bias-dropout": (
        case(BIASED, dp=2),
        case(BIASED, implementation=NO_BIAS_DROPOUT, dp=2),
    ),
    "expert-needs-sequence": (case(EXPERTS, tp=2), case(EXPERTS, tp=2, sequence_parallel=True)),
    "expert-overlap": (
        case(EXPERTS, implementation=EP_OVERLAP, dp=2),
        case(EXPERTS, implementation=EP_OVERLAP, ep=2, dp=2),
    ),
    "expert-shared-overlap": (
        case(SHARED, implementation=Implementation(moe_shared_expert_overlap=True, moe_dispatcher="allgather")),
        case(SHARED, implementation=Implementation(moe_shared_expert_overlap=True)),
    ),
    "expert-padding": (
        case(EXPERTS, implementation=Implementation(moe_pad_to_capacity=True)),
        case(EXPERTS, implementation=Implementation(moe_pad_to_capacity=True, moe_capacity_factor=1.0)),
    ),
    "recompute-layers": (
        case(pp=2, recompute=Recompute("full", stage_layers=(1,))),
        case(pp=2, recompute=Recompute("full", method="block", stage_layers=(1, 0))),
    ),
    "recompute-modules": (
        case(recompute=Recompute("selective", ("everything",))),
        case(recompute=Recompute("selective", ("mlp",))),
    ),
    "recompute-prerequisites": (case(recompute=SELECTIVE_MLA), case(LATENT, recompute=SELECTIVE_MLA)),
    "recompute-fp8-delayed": (
        case(workload=FP8, recompute=Recompute("selective", ("layernorm",))),
        case(
            workload=FP8,
            implementation=Implementation(fp8_recipe="blockwise"),
            recompute=Recompute("selective", ("layernorm",)),
        ),
    ),
    "offload-attention-projection": (
        case(implementation=Implementation(offload_modules=("attn_proj",))),
        case(implementation=Implementation(offload_modules=("attn_proj", "core_attn"))),
    ),
    "recompute-distributed-activations": (
        case(recompute=Recompute("full", distribute_saved_activations=True)),
        case(tp=2, recompute=Recompute("full", distribute_saved_activations=True)),
    ),
    "zero-pipeline": (case(pp=2, zero=2), case(zero=2)),
    "fsdp2-experts": (case(EXPERTS, ep=2, dp=2, zero=3), case(EXPERTS, dp=2, zero=3)),
    "fsdp2-untied": (case(LEARNED, zero=2, dp=2), case(zero=2, dp=2)),
    "fsdp2-fp16": (case(workload=Workload(96, 48, "fp16"), zero=2, dp=2), case(zero=2, dp=2)),
    "deepspeed-zero3-experts": (
        case(EXPERTS, implementation=Implementation(sharded_framework="deepspeed"), dp=2, ep=2, zero=3),
        case(EXPERTS, implementation=Implementation(sharded_framework="deepspeed"), dp=2, zero=3),
    ),
    "mics-stage": (
        case(implementation=Implementation(sharded_framework="deepspeed"), dp=4, zero=2, hsdp_replicas=2),
        case(implementation=Implementation(sharded_framework="deepspeed"), dp=4, zero=3, hsdp_replicas=2),
    ),
    "offload-optimizer": (
        case(implementation=Implementation(optimizer_offload_fraction=1.0), dp=2),
        case(implementation=Implementation(optimizer_offload_fraction=1.0), dp=2, zero=1),
    ),
    "deepspeed-offload-ratio": (
        case(implementation=Implementation(sharded_framework="deepspeed", optimizer_offload_fraction=0.5), zero=2),
        case(implementation=Implementation(sharded_framework="deepspeed", optimizer_offload_fraction=0.5), zero=3),
    ),
    "fsdp-optimizer": (
        case(workload=Workload(96, 48, optimizer="muon"), zero=3),
        case(workload=Workload(96, 48, optimizer="muon"), zero=1),
    ),
    "precision-aware-optimizer": (
        case(implementation=Implementation(precision_aware_optimizer=True)),
        case(implementation=Implementation(precision_aware_optimizer=True), zero=1),
    ),
    "fp8-param-gather": (
        case(workload=FP8, implementation=Implementation(fp8_param_gather=True)),
        case(workload=FP8, implementation=Implementation(fp8_param_gather=True), zero=1),
    ),
    "fp8-param-precision": (
        case(implementation=Implementation(fp8_param_gather=True), zero=1),
        case(workload=FP8, implementation=Implementation(fp8_param_gather=True), zero=1),
    ),
    "precision-card": (case(cluster=cluster(fp16=1e12)), case(cluster=cluster(bf16=1e12))),
}


def test_megatrons_own_graphs_go_with_a_recomputed_mixture():
    """TransformerConfig.__post_init__ refuses moe recompute around moe_router "with: --cuda-graph-impl
    transformer_engine" only."""
    words = ("moe_router", "moe_preprocess")
    refused = graphs(EXPERTS, *words, recompute=Recompute("selective", ("moe",)))
    taken = graphs(EXPERTS, *words, recompute=Recompute("selective", ("moe",)), cuda_graph_impl="local")
    assert [rule.id for rule in broken_rules(*refused)] == ["graph-recompute"]
    assert broken_rules(*taken) == []


def test_a_mixture_with_dropout_is_not_recomputed_within_a_graph():
    """__post_init__: "hidden dropout is not supported with graphed MLP/MoE recomputation", of whole iterations too."""
    for captured in ("layer", "iteration"):
        static = {"moe_capacity_factor": 1.0, "moe_pad_to_capacity": True}
        given = graphs(EXPERTS, captured, recompute=Recompute("selective", ("moe",)), hidden_dropout=0.1, **static)
        assert [rule.id for rule in broken_rules(*given)] == ["graph-dropout"]


@pytest.mark.parametrize("zero", [0, 1, 2, 3])
def test_megatron_fsdp_has_its_conditions_whatever_it_shards(zero):
    """validate_args asserts them under use_megatron_fsdp before it looks at --data-parallel-sharding-strategy, and only
    warns of tp > 1 there; without Megatron-FSDP zero 0 and 1 are the distributed optimizer's."""
    own = {"sharded_framework": "megatron_fsdp"}
    muon = replace(WORKLOAD, optimizer="muon")
    assert ids(case(workload=muon, implementation=Implementation(**own), zero=zero)) == ["fsdp-optimizer"]
    one = Implementation(**own, device_max_connections=1)
    assert ids(case(implementation=one, zero=zero)) == ["fsdp-connections"]
    eight = Implementation(**own, device_max_connections=8)
    assert ids(case(implementation=eight, tp=2, zero=zero, cluster=cluster("hopper", bf16=1.0))) == []
    without = Implementation(device_max_connections=8)
    given = case(implementation=without, tp=2, zero=zero, cluster=cluster("hopper", bf16=1.0))
    assert ids(given) == (["device-connections"] if zero < 2 else [])


def ids(given) -> list[str]:
    """What a case breaks."""
    return [rule.id for rule in broken_rules(*given)]


def test_book_is_complete():
    """Ids are unique kebab-case, every rule names a file as its source and has its pair of examples here."""
    ids = [rule.id for rule in RULES]
    assert len(set(ids)) == len(ids) and set(ids) == set(EXAMPLES)
    for rule in RULES:
        assert rule.id == rule.id.lower() and " " not in rule.id
        assert ".py" in rule.source or "cluster_specs" in rule.source or "torch/" in rule.source
        assert rule.sentence and not rule.sentence.endswith(".")


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_breaks_alone(rule):
    """The bad example breaks exactly this rule, with numbers in its text; the good example breaks none."""
    bad, good = EXAMPLES[rule.id]
    broken = broken_rules(*bad)
    assert [b.id for b in broken] == [rule.id]
    assert broken[0].given and rule.sentence in str(broken[0])
    assert broken_rules(*good) == []


MEGATRON_LM = (
    "pipeline-deferred-gradients",
    "expert-shared-overlap",
    "expert-padding",
    "recompute-fp8-delayed",
    "offload-attention-projection",
    "fp8-param-precision",
)


@pytest.mark.parametrize("name", MEGATRON_LM)
def test_megatron_lms_own_checks_are_not_for_megatron_deepspeed(name):
    """What only Megatron-LM asserts is no rule of another program."""
    model, workload, implementation, *others = EXAMPLES[name][0]
    assert broken_rules(model, workload, replace(implementation, framework="megatron-deepspeed"), *others) == []


FIELDS = {
    "tp": 3, "cp": 5, "pp": 7, "vpp": 5, "ep": 5, "etp": 5, "dp": 11, "zero": 3, "micro_batch": 7,
    "sequence_parallel": True, "hsdp_replicas": 5, "recompute": Recompute("full", num_layers=0),
    "stages": ((Chunk(0, 1),),),
}  # fmt: skip


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.id)
def test_rule_reads_what_it_says(rule):
    """A field that a rule does not declare does not change its verdict, so that the enumerator may check it early."""
    from planner.rules.rule import Case

    for model, workload, implementation, layout, world, hardware in EXAMPLES[rule.id]:
        verdict = rule.holds(Case(model, workload, implementation, layout, world, hardware))
        for name in FIELDS.keys() - set(rule.reads):
            other = replace(layout, **{name: FIELDS[name]})
            assert rule.holds(Case(model, workload, implementation, other, world, hardware)) == verdict, name


def test_sixteen_way_tensor_parallelism_of_forty_heads():
    """The refusal of 40 heads over tp 16 names both numbers, the nearest legal degrees and the rule."""
    with pytest.raises(RuleBroken) as refused:
        check(*case(MHA, tp=16, world=16))
    assert str(refused.value) == (
        "num_attention_heads must be divisible by tp, but num_attention_heads is 40 and tp is 16: "
        "the nearest legal tp is 8 [tensor-heads]"
    )
    assert [b.id for b in refused.value.rules] == ["tensor-heads", "tensor-query-groups"]


def test_the_nearest_degree_keeps_the_other_rules_too():
    """28 heads in 4 groups (Qwen2.5-7B) on 8 GPUs: 7 and 14 divide the heads, but neither the groups nor the GPUs."""
    model = replace(MHA, layer_kinds=(Layer(Attention(28, 4, 128), MLP(18944)),))
    with pytest.raises(RuleBroken, match=r"the nearest legal tp is 4 \[tensor-heads\]"):
        check(*case(model, tp=8, world=8))


@pytest.mark.parametrize(
    ("degrees", "seq_length", "rule", "degree", "values"),
    [
        ({"tp": 3, "dp": 2}, 96, "world-size", "tp", (2, 4)),
        ({"tp": 2, "pp": 3, "sequence_parallel": True}, 96, "world-size", "pp", (2, 4)),
        ({"cp": 8}, 104, "context-divides", "cp", (4,)),
        ({"cp": 2, "tp": 4, "sequence_parallel": True}, 90, "context-divides", "seq_length", (88, 96)),
        ({"tp": 8, "sequence_parallel": True}, 90, "sequence-divides", "seq_length", (88, 96)),
    ],
)
def test_what_is_proposed_keeps_the_rule(degrees, seq_length, rule, degree, values):
    """The nearest values on 8 GPUs are in the sentence, and each of them keeps the rule that was broken."""
    model = replace(DENSE, layer_kinds=(Layer(Attention(8, 8, 8), MLP(96)),))

    def broken(degrees, seq_length):
        share = degrees.get("tp", 1) * degrees.get("cp", 1) * degrees.get("pp", 1)
        asked = case(model, workload=Workload(seq_length, 48), world=8, **{"dp": max(1, 8 // share)} | degrees)
        return {b.id: b for b in broken_rules(*asked)}

    said = str(broken(degrees, seq_length)[rule])
    assert re.search(rf"{degree} (is )?{' or '.join(map(str, values))}\b", said.split(": ")[1])
    for value in values:
        fewer = {name: held for name, held in degrees.items() if name != "dp"}
        other = (degrees, value) if degree == "seq_length" else (fewer | {degree: value}, seq_length)
        assert rule not in broken(*other)
