"""The way back: what is written as Megatron arguments is read to the same objects."""

from dataclasses import fields, replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.catalog import load_model
from planner.errors import InputError, NotModelled
from planner.implementation import Implementation
from planner.interop.megatron.launch import MegatronLaunch, launch_from_words
from planner.interop.megatron.write import megatron_arguments
from planner.layout import Layout, Recompute
from planner.model import MLP, Attention, Layer, Model, Norm
from planner.stages import even_split, split_from_counts
from planner.workload import Workload

LLAMA = Model("l", 64, 100, (Layer(Attention(4, 2, 16), MLP(128)),), (0,) * 8, max_positions=32)
STEP = Workload(32, 16)


def facts(model: Model) -> dict:
    """What a model is, without its name and origin (models compare by identity)."""
    return {f.name: getattr(model, f.name) for f in fields(model) if f.name not in ("name", "source", "aliases")}


def again(got, world=None):
    words = megatron_arguments(got.model, got.workload, got.implementation, got.layout)
    return launch_from_words(words, "back", world or got.world_size)


FLAGS = """
--swiglu --quick-geglu --disable-bias-linear --add-qkv-bias --qk-layernorm --untie-embeddings-and-output-weights
--recompute-activations --use-distributed-optimizer --overlap-grad-reduce --no-masked-softmax-fusion
--no-bias-dropout-fusion --no-rope-fusion --cross-entropy-loss-fusion --no-gradient-accumulation-fusion
--calculate-per-token-loss --sequence-parallel --deterministic-mode --ddp-pad-buckets-for-high-nccl-busbw
--no-create-attention-mask-in-dataloader --defer-embedding-wgrad-compute
--no-bias-gelu-fusion --no-bias-swiglu-fusion --use-precision-aware-optimizer --tp-comm-overlap
--fp32-residual-connection --optimizer-cpu-offload --group-query-attention --overlap-param-gather
--no-use-layer-wise-param-layout --fine-grained-activation-offloading
"""
MOE_FLAGS = """
--moe-grouped-gemm --moe-permute-fusion --moe-pad-expert-input-to-capacity --moe-shared-expert-overlap
--moe-shared-expert-gate --overlap-moe-expert-parallel-comm
"""
CHOICES = {
    "--position-embedding-type": ["rope", "learned_absolute", "none"],
    "--normalization": ["RMSNorm", "LayerNorm"],
    "--hidden-dropout": ["0.0", "0.1"],
    "--cuda-graph-impl": ["none", "local", "transformer_engine", "full_iteration"],
    "--cuda-graph-scope": ["attn", "moe_router,attn"],
    "--attention-backend": ["auto", "flash", "fused", "unfused"],
    "--transformer-impl": ["local", "transformer_engine"],
    "--tensor-model-parallel-size": ["1", "2", "4"],
    "--pipeline-model-parallel-size": ["1", "2"],
    "--context-parallel-size": ["1", "2"],
    "--num-virtual-stages-per-pipeline-rank": ["1", "2"],
    "--decoder-first-pipeline-num-layers": ["2"],
    "--pipeline-model-parallel-layout": ["Et*3|t*5L", "Et*3|t|t|t*3L"],
    "--num-query-groups": ["1", "2", "4"],
    "--kv-channels": ["8", "32"],
    "--window-size": ["15,0"],
    "--window-attn-skip-freq": ["2"],
    "--softmax-type": ["learnable"],
    "--num-distributed-optimizer-instances": ["2"],
    "--optimizer": ["adam", "sgd", "muon"],
    "--exp-avg-dtype": ["bf16", "fp8"],
    "--main-params-dtype": ["fp16"],
    "--rotary-percent": ["0.5"],
    "--make-vocab-size-divisible-by": ["1", "64"],
    "--microbatch-group-size-per-virtual-pipeline-stage": ["3"],
    "--ddp-bucket-size": ["1000"],
    "--wgrad-deferral-limit": ["2"],
    "--data-parallel-sharding-strategy": ["optim", "optim_grads", "no_shard"],
    "--max-position-embeddings": ["16", "64"],
    "--offload-modules": ["core_attn"],
    "--activation-offload-fraction": ["0.5"],
    "--min-offloaded-tensor-size": ["1"],
    "--muon-scalar-optimizer": ["adam", "lion"],
}
MOE_CHOICES = {
    "--moe-layer-freq": ["2", "([0]*3+[1]*5)"],
    "--moe-router-topk": ["1", "4"],
    "--moe-ffn-hidden-size": ["48"],
    "--moe-shared-expert-intermediate-size": ["96"],
    "--moe-token-dispatcher-type": ["allgather", "alltoall", "flex"],
    "--moe-expert-capacity-factor": ["1.0", "1.5"],
    "--flash-attention-version": ["2"],
    "--activation-func-clamp-value": ["7.0"],
    "--glu-linear-offset": ["1.0"],
    "--moe-router-dtype": ["fp32"],
    "--moe-router-score-function": ["softmax", "sigmoid"],
    "--expert-model-parallel-size": ["2"],
    "--expert-tensor-parallel-size": ["1"],
    "--mtp-num-layers": ["1"],
}
PRECISIONS = [
    [],
    ["--bf16"],
    ["--bf16", "--grad-reduce-in-bf16"],
    ["--fp16"],
    ["--fp16", "--accumulate-allreduce-grads-in-fp32"],
    ["--bf16", "--fp8-format", "hybrid", "--fp8-param-gather"],
    ["--bf16", "--use-megatron-fsdp"],
    ["--bf16", "--use-megatron-fsdp", "--megatron-fsdp-main-grads-dtype", "fp32"],
    ["--bf16", "--use-torch-fsdp2"],
]
LATENT = ["--multi-latent-attention", "--q-lora-rank", "24", "--kv-lora-rank", "16"]
LEAST = "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --vocab-size 100 --micro-batch-size 1"


@st.composite
def launches(draw):
    """A launch from any combination of the arguments above."""
    moe = draw(st.booleans())
    flags = draw(
        st.lists(st.sampled_from([*FLAGS.split(), *(MOE_FLAGS.split() if moe else [])]), max_size=8, unique=True)
    )
    choices = CHOICES | (MOE_CHOICES if moe else {})
    names = draw(st.lists(st.sampled_from(sorted(choices)), max_size=8, unique=True))
    words = [*LEAST.split(), *flags, *draw(st.sampled_from(PRECISIONS))]
    words += ["--num-experts", "4"] if moe else []
    words += LATENT if draw(st.booleans()) else []
    for name in names:
        words += [name, draw(st.sampled_from(choices[name]))]
    return words


@settings(max_examples=200, deadline=None)
@given(launches())
def test_arguments_read_and_written_are_the_same_objects(words):
    """Arguments -> objects -> arguments -> the same objects, over random launches that Megatron could be given."""
    got = launch_from_words(words, "there", 32)
    try:
        back = again(got)
    except NotModelled as error:
        assert "Megatron-LM has no argument for" in str(error)
        return
    if not any(problem.id == "stage-split" for problem in got.problems):
        assert back.layout == got.layout
    assert facts(back.model) == facts(accepted_model(got))
    assert back.workload == got.workload
    assert back.implementation == accepted(got)
    assert back.unrecognised == ()
    assert {problem.id for problem in back.problems} <= {problem.id for problem in got.problems}


def accepted_model(got: MegatronLaunch) -> Model:
    """The model with positions for the whole sequence, without which Megatron refuses the launch."""
    positions = max(got.model.max_positions, got.workload.seq_length)
    return got.model if got.model.position == "learned" else replace(got.model, max_positions=positions)


def accepted(got: MegatronLaunch) -> Implementation:
    """The implementation of a launch where Megatron takes it. It refuses to overlap the gather where nothing is sharded
    or the reduction does not overlap, or tensor parallelism where there is none, torch FSDP2 with either that or fused
    gradients, and an optimizer on the host that is not the precision-aware one."""
    ours = got.implementation
    if got.layout.tp == 1:
        ours = replace(ours, tp_comm_overlap=False)
    fsdp2 = got.layout.zero == 3 and ours.sharded_framework == "fsdp2"
    if got.layout.zero == 0 or fsdp2 or not ours.overlap_grad_reduce:
        ours = replace(ours, overlap_param_gather=False)
    if fsdp2:
        ours = replace(ours, gradient_accumulation_fusion=False)
    return replace(ours, precision_aware_optimizer=True) if ours.optimizer_offload_fraction else ours


def test_a_plan_of_the_planner_is_written():
    """The defaults of our own objects (a Llama on flash attention with overlap) read back to themselves."""
    layout = Layout(tp=2, pp=2, dp=2, zero=1, sequence_parallel=True, stages=split_from_counts(LLAMA, [3, 5]))
    words = megatron_arguments(LLAMA, STEP, Implementation(), layout)
    assert words[words.index("--pipeline-model-parallel-layout") + 1] == "Et*3|t*5L"
    back = launch_from_words(words, "back", 8)
    assert (back.layout, back.workload) == (layout, STEP)
    assert facts(back.model) == facts(LLAMA)
    assert (back.implementation.overlap_grad_reduce, back.implementation.hidden_dropout) == (True, 0.0)


def test_an_even_split_needs_no_layout_string():
    """An even split is Megatron's own, with or without virtual stages."""
    layout = Layout(pp=2, vpp=2, stages=split_from_counts(LLAMA, [[2, 2], [2, 2]]))
    words = megatron_arguments(LLAMA, STEP, Implementation(), layout)
    assert "--pipeline-model-parallel-layout" not in words
    assert launch_from_words(words, "back", 2).layout == layout


def test_a_launch_under_deepspeed_is_written():
    """Its partition method, embedding norm and ALiBi are Megatron-DeepSpeed's own; another split has no argument."""
    words = "--deepspeed --bf16 --position-embedding-type alibi --embed-layernorm --normalization LayerNorm"
    words = f"{LEAST} {words} --pipeline-model-parallel-size 3 --num-layers 10"
    for method, counts in (("type:transformer|embedding", [3, 4, 3]), ("type:transformer", [4, 3, 3])):
        got = launch_from_words([*words.split(), "--pp-partition-method", method], "there", 6)
        back = again(got)
        assert got.layout.stages == split_from_counts(got.model, counts)
        assert (back.layout, back.implementation) == (got.layout, got.implementation)
        assert facts(back.model) == facts(got.model)
    other = replace(got.layout, stages=split_from_counts(got.model, [2, 4, 4]))
    with pytest.raises(InputError, match="no argument for a split that none of DeepSpeed's"):
        megatron_arguments(got.model, got.workload, got.implementation, other)


@pytest.mark.parametrize("zero", [2, 3])
def test_the_framework_that_shards_is_the_one_written(zero):
    """FSDP2 keeps gathered weights at ZeRO 2, Megatron-FSDP is written where it is counted, DeepSpeed not at all."""
    layout = Layout(dp=8, zero=zero)
    for framework in ("fsdp2", "megatron_fsdp"):
        implementation = Implementation(sharded_framework=framework)
        back = launch_from_words(megatron_arguments(replace(LLAMA, tied=False), STEP, implementation, layout), "b", 8)
        assert (back.layout.zero, back.implementation.sharded_framework) == (zero, framework)
        assert back.problems == ()
    with pytest.raises(InputError, match=f"no argument for DeepSpeed's ZeRO {zero}"):
        megatron_arguments(LLAMA, STEP, Implementation(sharded_framework="deepspeed"), layout)


def test_what_megatrons_fsdp2_has_not_is_refused():
    """TorchFullyShardedDataParallel makes one mesh of the whole data-parallel group, without an offload policy."""
    untied, layout = replace(LLAMA, tied=False), Layout(dp=8, zero=3, hsdp_replicas=2)
    with pytest.raises(InputError, match="no argument for torch FSDP2 in 2 replicas, which Megatron-FSDP alone has"):
        megatron_arguments(untied, STEP, Implementation(), layout)
    words = megatron_arguments(untied, STEP, Implementation(sharded_framework="megatron_fsdp"), layout)
    assert launch_from_words(words, "b", 8).layout.hsdp_replicas == 2
    with pytest.raises(InputError, match="no argument for weights that wait on the host"):
        megatron_arguments(untied, STEP, Implementation(offload_parameters=True), Layout(dp=8, zero=3))


def test_stages_with_their_own_recompute_take_the_largest():
    """Megatron has one number of recomputed layers: the largest keeps every stage within its memory."""
    recompute = Recompute("full", (), "block", None, stage_layers=(3, 1))
    words = megatron_arguments(LLAMA, STEP, Implementation(), Layout(pp=2, recompute=recompute))
    assert words[words.index("--recompute-num-layers") + 1] == "3"


@pytest.mark.parametrize(
    "model",
    [
        replace(LLAMA, position="alibi"),
        replace(LLAMA, head_bias=True),
        replace(LLAMA, embedding_norm=True),
        replace(LLAMA, norm=Norm("LayerNorm")),
        replace(LLAMA, layer_kinds=(Layer(Attention(4, 4, 16), MLP(128), norms=4),)),
        replace(LLAMA, layer_kinds=(Layer(Attention(4, 4, 16, qk_norm="full"), MLP(128)),)),
        replace(LLAMA, layer_kinds=(Layer(Attention(4, 4, 16), MLP(128, bias=True)),)),
    ],
)
def test_what_megatron_cannot_say_is_refused(model):
    """A model that Megatron-LM has no argument for is refused rather than written as another one."""
    with pytest.raises(InputError, match="no argument for"):
        megatron_arguments(model, STEP, Implementation(), Layout())


def test_gpt_oss_is_written_and_read_back():
    """Its activation, sinks, windows and biases have arguments; quick-GEGLU is not written as SwiGLU."""
    model = load_model("gpt-oss-20b")
    layout = Layout(dp=8, ep=8, zero=1, stages=even_split(model, 1))
    words = megatron_arguments(model, STEP, Implementation(attention="fused", bias_dropout_fusion=False), layout)
    assert "--quick-geglu" in words and "--swiglu" not in words
    back = launch_from_words(words, "back", 8)
    assert facts(back.model) == facts(model) and not back.problems and not back.unrecognised
