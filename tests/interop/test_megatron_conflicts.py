"""Arguments that Megatron-LM refuses together: a launch that breaks only this refusal, and a neighbour that runs."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from planner.catalog import load_model
from planner.implementation import Implementation
from planner.interop.megatron.conflicts import CONFLICTS
from planner.interop.megatron.launch import MegatronLaunch, launch_from_words, read_megatron
from planner.interop.megatron.write import megatron_arguments
from planner.layout import Layout, Recompute
from planner.rules import broken_rules
from planner.stages import even_split
from planner.workload import Workload

DATA = Path(__file__).parents[1] / "data" / "launch"
LEAST = (
    "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --vocab-size 100 --micro-batch-size 1 "
    "--global-batch-size 32 --bf16 --untie-embeddings-and-output-weights"
)
ROPE = "--position-embedding-type rope"
FSDP2 = "--use-torch-fsdp2"
FUSED_OFF = "--no-gradient-accumulation-fusion"
PP2 = "--pipeline-model-parallel-size 2"
PP4 = "--pipeline-model-parallel-size 4"
AWARE = "--use-distributed-optimizer --use-precision-aware-optimizer"
GATHER = "--use-distributed-optimizer --overlap-param-gather"
MIXTURE = "--num-experts 4"
EXPERTS = "--num-experts 4 --moe-router-topk 1"
SELECTIVE = "--recompute-granularity selective"


def launch(arguments: str) -> MegatronLaunch:
    return launch_from_words(f"{LEAST} {arguments}".split(), "here", 8)


def broken(got: MegatronLaunch) -> list[str]:
    """What reading found and what the book of rules says, by id."""
    rules = broken_rules(got.model, got.workload, got.implementation, got.layout, got.world_size)
    return [problem.id for problem in got.problems] + [rule.id for rule in rules]


# id: a launch that is refused, its neighbour, what the report says was given
EXAMPLES = {
    "max-position-embeddings": (
        f"{ROPE} --max-position-embeddings 16",
        f"{ROPE} --max-position-embeddings 32",
        "--max-position-embeddings is 16 and --seq-length 32",
    ),
    "optimizer-cpu-offload": (
        "--use-distributed-optimizer --optimizer-cpu-offload",
        f"{AWARE} --optimizer-cpu-offload",
        "it is absent",
    ),
    "precision-aware-states": (
        "--use-distributed-optimizer --exp-avg-dtype bf16 --exp-avg-sq-dtype fp32",
        f"{AWARE} --exp-avg-dtype bf16 --exp-avg-sq-dtype fp32",
        "--exp-avg-dtype bf16 is given",
    ),
    "tensor-overlap-one-rank": (
        "--tp-comm-overlap",
        "--tp-comm-overlap --tensor-model-parallel-size 2 --sequence-parallel",
        "tp is 1",
    ),
    "fsdp2-distributed-optimizer": (
        f"{FSDP2} {FUSED_OFF} --use-distributed-optimizer",
        f"{FSDP2} {FUSED_OFF}",
        "both are given",
    ),
    "fsdp2-gradient-fusion": (FSDP2, f"{FSDP2} {FUSED_OFF}", "it is absent"),
    "overlap-param-gather-shards": (
        f"{FSDP2} {FUSED_OFF} --overlap-param-gather --overlap-grad-reduce",
        f"{GATHER} --overlap-grad-reduce",
        "neither is given",
    ),
    "overlap-param-gather-reduce": (GATHER, f"{GATHER} --overlap-grad-reduce", "it is absent"),
    "virtual-stages-overlap": (
        f"{PP2} --num-virtual-stages-per-pipeline-rank 2 --no-overlap-p2p-communication",
        f"{PP4} --num-virtual-stages-per-pipeline-rank 2 --no-overlap-p2p-communication",
        "pp is 2 and vpp is 2",
    ),
    "virtual-stages-uneven": (
        f"{PP2} --num-layers-per-virtual-pipeline-stage 2 --decoder-first-pipeline-num-layers 4",
        f"{PP2} --num-virtual-stages-per-pipeline-rank 2 --decoder-first-pipeline-num-layers 4",
        "--decoder-first-pipeline-num-layers 4 is given",
    ),
    "pipeline-layout-alone": (
        f"{PP2} --pipeline-model-parallel-layout Et*4|t*4L --decoder-last-pipeline-num-layers 4 "
        "--account-for-loss-in-pipeline-split",
        f"{PP2} --pipeline-model-parallel-layout Et*4|t*4L",
        "--decoder-last-pipeline-num-layers 4 and --account-for-loss-in-pipeline-split are given",
    ),
    "selective-recompute-counts": (
        f"{SELECTIVE} --recompute-method uniform --recompute-num-layers 1",
        SELECTIVE,
        "--recompute-method uniform and --recompute-num-layers 1 are given",
    ),
    "router-one-expert": (EXPERTS, f"{EXPERTS} --moe-router-pre-softmax", "it is absent"),
    "mtp-positions": (
        "--mtp-num-layers 1 --position-embedding-type yarn",
        f"--mtp-num-layers 1 {ROPE}",
        "--position-embedding-type is yarn",
    ),
    "deterministic-loss-fusion": (
        "--deterministic-mode --cross-entropy-loss-fusion",
        "--deterministic-mode --cross-entropy-fusion-impl native",
        "both are given",
    ),
    "shared-expert-bias": (
        f"{MIXTURE} --no-bias-dropout-fusion --moe-shared-expert-intermediate-size 64",
        f"{MIXTURE} --disable-bias-linear --moe-shared-expert-intermediate-size 64",
        "it is absent",
    ),
    "no-position-embedding": (
        "--no-position-embedding",
        "--no-position-embedding --use-rotary-position-embeddings",
        "the type is not rope",
    ),
    "main-gradients-in-fp32": (
        f"{AWARE} --main-grads-dtype bf16 --accumulate-allreduce-grads-in-fp32",
        f"{AWARE} --main-grads-dtype bf16",
        "--main-grads-dtype bf16 is given",
    ),
    "swiglu-alone": ("--swiglu --squared-relu --quick-geglu", "--swiglu", "--squared-relu and --quick-geglu are given"),
    "squared-relu-fusion": ("--squared-relu", "--squared-relu --no-bias-gelu-fusion", "it is absent"),
    "offloaded-modules-engine": (
        "--fine-grained-activation-offloading --offload-modules core_attn --transformer-impl local",
        "--fine-grained-activation-offloading --offload-modules core_attn",
        "layers are local",
    ),
    "graph-checks-gradients": (
        "--cuda-graph-impl full_iteration",
        "--cuda-graph-impl full_iteration --no-check-for-nan-in-loss-and-grad",
        "it is absent",
    ),
    "batch-schedule-alone": ("--step-batch-size-schedule 0:32", "", "--global-batch-size is given"),
    "hierarchical-context-sizes": (
        "--context-parallel-size 4 --cp-comm-type a2a+p2p",
        "--context-parallel-size 4 --cp-comm-type a2a+p2p --hierarchical-context-parallel-sizes 2 2",
        "it is absent",
    ),
    "batch-ramp": (
        "--global-batch-size 32 --rampup-batch-size 16 3 1000",
        "--global-batch-size 32 --rampup-batch-size 16 16 1000",
        "the ramp is from 16 by 3 to 32",
    ),
}


def test_every_refusal_has_its_pair():
    """Ids are unique, a source names the file and the function, and the sentence has no full stop of its own."""
    ids = [conflict.id for conflict in CONFLICTS]
    assert len(set(ids)) == len(ids) and set(ids) == set(EXAMPLES)
    for conflict in CONFLICTS:
        assert ".py: " in conflict.source and not conflict.sentence.endswith(".")


@pytest.mark.parametrize("name", EXAMPLES)
def test_refusal_breaks_alone(name):
    """The refused launch breaks nothing else and says what was given; its neighbour breaks nothing."""
    bad, good, given = EXAMPLES[name]
    got = launch(bad)
    assert broken(got) == [name]
    assert got.problems[0].given == given
    assert broken(launch(good)) == []


@pytest.mark.parametrize("name", [name for name in EXAMPLES if name != "batch-ramp"])
def test_other_programs_are_not_judged_by_megatron_lm(name):
    """Megatron-DeepSpeed has its own checks, so nothing here is said about its launches; the ramp's it has too."""
    assert [problem for problem in launch(f"{EXAMPLES[name][0]} --deepspeed").problems if problem.id == name] == []


@pytest.mark.parametrize(
    "arguments",
    [
        "--use-megatron-fsdp --overlap-param-gather",
        "--use-custom-fsdp --overlap-param-gather",
        "--optimizer dist_muon --overlap-param-gather --overlap-grad-reduce",
        f"{EXPERTS} --moe-router-score-function sigmoid",
        f"{EXPERTS} --moe-router-load-balancing-type sinkhorn",
        "--moe-router-topk 1",
        f"{SELECTIVE} --recompute-modules core_attn",
        "--recompute-granularity full --recompute-method uniform --recompute-num-layers 1",
        "--moe-layer-recompute --recompute-num-layers 1",
        f"{PP2} --account-for-loss-in-pipeline-split --account-for-embedding-in-pipeline-split "
        "--num-layers-per-virtual-pipeline-stage 5",
        f"{PP2} --no-overlap-p2p-communication",
        "--main-grads-dtype fp32 --main-params-dtype fp32 --exp-avg-dtype fp32",
        "--squared-relu --disable-bias-linear",
        f"{MIXTURE} --no-bias-dropout-fusion --moe-shared-expert-intermediate-size 0",
        "--cuda-graph-impl local --cuda-graph-modules attn",
    ],
)
def test_what_only_looks_refused(arguments):
    """Other arguments do what a refusal asks for, or the argument in question does nothing."""
    assert launch(arguments).problems == ()


@pytest.mark.parametrize("positions", ["learned_absolute", "none", "yarn"])
def test_a_short_position_table_is_said_once(positions):
    """Megatron wants positions for the whole sequence whatever their type; a learned table has a rule of its own."""
    got = launch(f"--position-embedding-type {positions} --max-position-embeddings 16")
    assert broken(got) == ["sequence-positions" if positions == "learned_absolute" else "max-position-embeddings"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--multi-latent-attention --group-query-attention", "--group-query-attention: .* from core_r0.16 on"),
        ("--mtp-num-layers 1", "--mtp-num-layers: .* before core_r0.17"),
        (
            f"--mtp-num-layers 1 {ROPE} --recompute-granularity full --recompute-method uniform "
            "--recompute-num-layers 2",
            "--recompute-num-layers 2: .* from core_r0.14 on",
        ),
        ("--deterministic-mode --use-flash-attn", "--use-flash-attn: .* before core_r0.19"),
        (
            "--deterministic-mode --tp-comm-overlap --tensor-model-parallel-size 2 --sequence-parallel",
            "--tp-comm-overlap: .* from core_r0.19 on",
        ),
        (
            "--cross-entropy-loss-fusion --cross-entropy-fusion-impl te",
            "--cross-entropy-fusion-impl te: .* from core_r0.19 on",
        ),
        (
            f"{AWARE} --optimizer-cpu-offload --fp8-format hybrid --fp8-recipe blockwise --fp8-param-gather",
            "--optimizer-cpu-offload: .* from core_r0.14 on",
        ),
        (
            "--use-distributed-optimizer --fp8-format e4m3 --fp8-recipe mxfp8 --fp8-param-gather",
            "--fp8-param-gather: with mxfp8 it fails at the start",
        ),
        (
            f"{MIXTURE} --disable-bias-linear --recompute-activations --recompute-modules moe "
            "--fine-grained-activation-offloading --offload-modules moe_act core_attn",
            "--offload-modules moe_act: .* from core_r0.19 on",
        ),
    ],
)
def test_what_only_some_releases_refuse_is_a_note(arguments, words):
    """A launch that runs on one release is never called broken for another; the report says which refuse it."""
    got = launch(arguments)
    assert got.problems == ()
    assert any(re.match(words, note) for note in got.not_accounted)


@pytest.mark.parametrize("file", sorted(DATA.iterdir()), ids=lambda file: file.name)
def test_launches_in_the_manner_of_megatron_are_accepted(file):
    """Scripts and YAMLs after Megatron-LM's own break nothing."""
    got = read_megatron(file)
    assert broken(got) == []
    assert got.not_accounted == ()


LLAMA = load_model("llama-2-7b")
MIXTRAL = load_model("mixtral-8x7b")
ONE_EXPERT = replace(MIXTRAL, layer_kinds=tuple(replace(k, mlp=replace(k.mlp, top_k=1)) for k in MIXTRAL.layer_kinds))
PLANS = {
    "zero 0": (LLAMA, Workload(4096, 64), Implementation(), Layout(dp=8)),
    "zero 2": (LLAMA, Workload(4096, 64), Implementation(), Layout(dp=8, zero=2)),
    "zero 3": (LLAMA, Workload(4096, 64), Implementation(), Layout(dp=8, zero=3)),
    "no overlap": (LLAMA, Workload(4096, 64), Implementation(overlap_grad_reduce=False), Layout(dp=8, zero=1)),
    "host": (LLAMA, Workload(4096, 64), Implementation(optimizer_offload_fraction=1.0), Layout(dp=8, zero=1)),
    "long": (LLAMA, Workload(32768, 64), Implementation(), Layout(tp=8, sequence_parallel=True)),
    "virtual": (LLAMA, Workload(4096, 64), Implementation(), Layout(pp=2, vpp=4, stages=even_split(LLAMA, 2, 4), dp=4)),
    "full": (LLAMA, Workload(4096, 64), Implementation(), Layout(dp=8, recompute=Recompute("full", num_layers=1))),
    "selective": (
        LLAMA,
        Workload(4096, 64),
        Implementation(),
        Layout(dp=8, recompute=Recompute("selective", ("mlp",))),
    ),
    "fp8": (LLAMA, Workload(4096, 64, "fp8"), Implementation(fp8_param_gather=True), Layout(dp=8, zero=1)),
    "one expert": (load_model("llama-4-scout"), Workload(8192, 64), Implementation(), Layout(ep=8, dp=8, zero=1)),
    "softmax of one": (ONE_EXPERT, Workload(4096, 64), Implementation(), Layout(ep=8, dp=8, zero=1)),
    "latent": (load_model("deepseek-v3"), Workload(4096, 64), Implementation(), Layout(ep=8, dp=8, zero=1)),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_the_planner_writes_is_accepted(name):
    """The planner's own arguments break nothing when they are read back."""
    model, workload, implementation, layout = PLANS[name]
    words = megatron_arguments(model, workload, implementation, layout)
    back = launch_from_words(words, "back", layout.world_size)
    assert broken(back) == []
    assert replace(back.layout, stages=layout.stages) == layout


def test_torch_fsdp2_is_written_as_megatron_takes_it():
    """It excludes fused gradients and --overlap-param-gather, which a ZeRO 1 plan is written with."""
    words = megatron_arguments(*PLANS["zero 3"])
    assert {"--use-torch-fsdp2", "--no-gradient-accumulation-fusion"} <= {*words}
    assert "--overlap-param-gather" not in words


@pytest.mark.parametrize(("model", "score"), [("deepseek-v3", "sigmoid"), ("mixtral-8x7b", None)])
def test_the_routers_scores_are_written(model, score):
    """DeepSeek-V3 scores experts with a sigmoid, Mixtral with Megatron's default, a softmax."""
    words = megatron_arguments(load_model(model), Workload(4096, 64), Implementation(), Layout())
    assert (words[words.index("--moe-router-score-function") + 1] if score else None) == score
    assert ("--moe-router-score-function" in words) == (score is not None)
