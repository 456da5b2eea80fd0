"""Reading Megatron-LM launches: every argument lands where Megatron would put it, its defaults included."""

from dataclasses import replace
from pathlib import Path

import pytest
from least import LEAST, launch

from planner.errors import InputError, NotModelled
from planner.interop.megatron.ignored import ignored
from planner.interop.megatron.known import HONOURED, NOT_ACCOUNTED, REFUSED
from planner.interop.megatron.launch import launch_from_text, launch_from_words, read_megatron
from planner.layout import NO_RECOMPUTE, Recompute
from planner.model import MLP, Attention, LatentAttention, MoE, Norm
from planner.rules import broken_rules
from planner.workload import Workload

DATA = Path(__file__).parents[1] / "data" / "launch"


def test_megatron_defaults_where_arguments_are_absent():
    """With the least arguments, everything is what validate_args makes of it: a tied, biased fp32 GPT with dropout."""
    got = launch("", world=8)
    (layer,) = got.model.layer_kinds
    assert layer.attention == Attention(4, 4, 16, qkv_bias=True, output_bias=True)
    assert layer.mlp == MLP(256, gated=False, bias=True)
    assert got.model.norm == Norm("LayerNorm", bias=True)
    assert (got.model.tied, got.model.position, got.model.learned_positions) == (True, "learned", 32)
    assert got.workload == Workload(32, 16, "fp32", "adamw")
    assert (got.layout.dp, got.layout.zero, got.layout.recompute) == (8, 0, NO_RECOMPUTE)
    i = got.implementation
    assert (i.hidden_dropout, i.attention_dropout, i.attention) == (0.1, 0.1, "auto")
    assert not (i.overlap_grad_reduce or i.overlap_param_gather or i.tp_comm_overlap or i.moe_grouped_gemm)
    assert (i.moe_dispatcher, i.moe_capacity_factor, i.cross_entropy, i.grad_reduce_bytes) == (
        "allgather",
        None,
        "unfused",
        4,
    )
    assert (got.unrecognised, got.not_accounted, got.problems) == ((), (), ())


def test_swiglu_without_a_width_is_two_thirds_in_whole_64s():
    """int(4 * 64 * 2/3 / 64) * 64 = 128, and a gated MLP without bias keeps its fused activation."""
    got = launch("--swiglu --disable-bias-linear")
    assert got.model.layer_kinds[0].mlp == MLP(128, gated=True, bias=False)
    assert got.implementation.bias_activation_fusion
    assert not launch("--disable-bias-linear").implementation.bias_activation_fusion


def test_a_quick_geglu_clamps_in_kernels_of_its_own():
    """A fused SwiGLU clamps within its kernel; unfused, all do it apart. Biases are the router's too."""
    experts = "--num-experts 4 --moe-ffn-hidden-size 64 --activation-func-clamp-value 7.0"
    for words, clamp in (
        ("--quick-geglu", 7.0),
        ("--swiglu", None),
        ("--swiglu --no-bias-swiglu-fusion", 7.0),
        ("", None),  # without a gate there is nothing to clamp
    ):
        got = launch(f"{experts} {words}")
        mlp = got.model.layer_kinds[0].mlp
        assert (mlp.expert.clamp, mlp.expert.bias, mlp.router_bias) == (clamp, True, True), words
        assert got.unrecognised == ()
    assert not launch(f"{experts} --swiglu --disable-bias-linear").model.layer_kinds[0].mlp.router_bias


def test_query_groups_need_their_flag():
    """--num-query-groups counts only with --group-query-attention, and the flag alone means one group."""
    assert launch("--num-query-groups 2").model.layer_kinds[0].attention.num_query_groups == 4
    assert "--num-query-groups" in launch("--num-query-groups 2").not_accounted[0]
    assert launch("--group-query-attention").model.layer_kinds[0].attention.num_query_groups == 1
    assert launch("--group-query-attention --num-query-groups 2").model.layer_kinds[0].attention.num_query_groups == 2


@pytest.mark.parametrize(
    ("arguments", "zero", "replicas"),
    [
        ("--use-distributed-optimizer", 1, 1),
        ("--use-distributed-optimizer --num-distributed-optimizer-instances 2", 1, 1),
        ("--optimizer muon", 0, 1),
        ("--optimizer dist_muon", 1, 1),
        ("--use-megatron-fsdp", 3, 1),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy optim_grads", 2, 1),
        ("--use-megatron-fsdp --data-parallel-sharding-strategy no_shard", 0, 1),
        ("--use-megatron-fsdp --num-distributed-optimizer-instances 2", 3, 2),
        ("--use-torch-fsdp2", 3, 1),
        ("--use-torch-fsdp2 --num-distributed-optimizer-instances 2", 3, 1),
        ("--use-torch-fsdp2 --torch-fsdp2-no-reshard-after-forward", 2, 1),
        ("--deepspeed --zero-stage 2", 2, 1),
        ("--deepspeed --zero-stage 0 --fp16", 0, 1),
        ("--deepspeed --zero-stage 0 --bf16", 1, 1),
        ("--deepspeed --zero-stage 0 --bf16 --no-pipeline-parallel", 0, 1),
    ],
)
def test_what_is_sharded(arguments, zero, replicas):
    """The distributed optimizer is ZeRO 1, Megatron-FSDP shards as its strategy says and by default everything."""
    got = launch(arguments, world=8).layout
    assert (got.zero, got.hsdp_replicas) == (zero, replicas)


def test_replicas_that_torch_fsdp2_ignores_are_said():
    """Its mesh is the whole data-parallel group, however many instances the distributed optimizer would have."""
    got = launch("--use-torch-fsdp2 --num-distributed-optimizer-instances 2", world=8)
    assert got.not_accounted == (
        "--num-distributed-optimizer-instances 2: has no effect with --use-torch-fsdp2, which shards over all of data "
        "parallelism",
    )


@pytest.mark.parametrize(
    ("arguments", "recompute"),
    [
        ("--recompute-activations", Recompute("selective", ("core_attn",))),
        (
            "--recompute-granularity selective --recompute-modules moe_act mlp",
            Recompute("selective", ("mlp", "moe_act")),
        ),
        (
            "--recompute-granularity full --recompute-method block --recompute-num-layers 3",
            Recompute("full", (), "block", 3),
        ),
        ("--recompute-activations --recompute-modules [mlp,'moe_act']", Recompute("selective", ("mlp", "moe_act"))),
        ("--checkpoint-activations", Recompute("full")),
        ("--moe-layer-recompute", Recompute("selective", ("core_attn", "moe"))),
        # validate_args sets selective where --recompute-activations is given, before anything reads the granularity
        ("--recompute-granularity full --recompute-activations", Recompute("selective", ("core_attn",))),
    ],
)
def test_recompute(arguments, recompute):
    """Each spelling of recomputation, the older ones included; selective without modules is the core attention."""
    got = launch(arguments)
    assert (got.layout.recompute, got.problems) == (recompute, ())


@pytest.mark.parametrize("arguments", ["", "--recompute-activations"])
def test_activations_that_are_distributed_without_full_recompute_break_a_rule(arguments):
    """validate_args asserts "distributed recompute activations is only application to full recompute granularity"."""
    got = launch(f"--tensor-model-parallel-size 2 --distribute-saved-activations {arguments}", world=2)
    broken = broken_rules(got.model, got.workload, got.implementation, got.layout, 2)
    assert "recompute-distributed-activations" in {rule.id for rule in broken}
    whole = "--distribute-saved-activations --recompute-granularity full --recompute-method uniform"
    alone = launch(f"{whole} --recompute-num-layers 1", world=1)  # needs tp > 1
    broken = broken_rules(alone.model, alone.workload, alone.implementation, alone.layout, 1)
    assert "recompute-distributed-activations" in {rule.id for rule in broken}


def test_full_recompute_without_its_numbers_is_a_problem():
    """Megatron refuses full recompute without a method and a number of layers; the report still has a layout."""
    got = launch("--recompute-granularity full")
    assert [problem.id for problem in got.problems] == ["full-recompute-complete"]
    assert got.layout.recompute.num_layers is None


def test_experts_follow_the_tensor_size_and_the_pattern():
    """Expert tensor parallelism is tp unless given, an integer frequency N makes layers 0, N, 2N ... MoE layers."""
    got = launch("--num-experts 8 --moe-layer-freq 2 --tensor-model-parallel-size 2 --expert-model-parallel-size 2", 8)
    assert (got.layout.ep, got.layout.etp, got.layout.edp) == (2, 2, 2)
    assert [layer.kind for layer in got.model.layers] == ["moe", "dense", "moe", "dense"]
    moe = got.model.layers[0].mlp
    assert isinstance(moe, MoE)
    assert (moe.top_k, moe.expert) == (2, got.model.layers[1].mlp)
    assert launch("--tensor-model-parallel-size 2", 2).layout.etp == 1


def test_window_of_every_other_layer():
    """(left, right) = (127, 0) sees 128 tokens, and a skip frequency of 2 leaves layers 2 and 4 without a window."""
    got = launch("--window-size 127,0 --window-attn-skip-freq 2 --softmax-type learnable")
    assert [layer.attention.window for layer in got.model.layers] == [128, None, 128, None]
    assert all(layer.attention.sinks for layer in got.model.layers)


def test_a_script_with_variables_arrays_and_branches():
    """A whole shell script resolves to GPT-3 175B on 16 nodes without being run."""
    got = read_megatron(DATA / "gpt3_175b.sh")
    assert got.world_size == 128
    assert (got.model.num_layers, got.model.hidden_size, got.model.vocab_size) == (96, 12288, 50257)
    layout = got.layout
    assert (layout.tp, layout.pp, layout.vpp, layout.dp, layout.micro_batch) == (8, 16, 3, 1, 1)
    assert layout.sequence_parallel and layout.stage_layers == [[2, 2, 2]] * 16
    assert got.workload == Workload(2048, 1536, "fp16", "adamw")
    assert (got.unrecognised, got.problems) == ((), ())


def test_given_world_size_goes_before_the_file():
    """`--gpus` decides, whatever torchrun is told."""
    got = read_megatron(DATA / "gpt3_175b.sh", world_size=1024)
    assert (got.world_size, got.layout.dp) == (1024, 8)


def test_a_yaml_of_arguments():
    """Megatron CI's form: flags are true, false is absent, the layout string's backslashes are the shell's."""
    got = read_megatron(DATA / "deepseek.yaml")
    assert got.world_size == 16
    attention = got.model.layer_kinds[0].attention
    assert attention == LatentAttention(16, 512, 128, 64, 128, 1536, latent_norms=True)
    assert [layer.kind for layer in got.model.layers] == ["dense"] * 3 + ["moe"] * 12
    assert (got.layout.vpp, got.layout.dp, got.layout.ep, got.layout.etp) == (2, 2, 4, 1)
    assert got.layout.stage_layers == [[3, 2], [2, 2], [2, 2], [2, 0]]
    assert got.layout.stages[3][1].mtp_layers == 1 and got.layout.stages[3][1].loss
    assert got.layout.recompute.modules == ("mla_up_proj", "moe_act")
    assert (got.workload.precision, got.model.mtp_num_layers) == ("bf16", 1)
    assert (got.unrecognised, got.not_accounted, got.problems) == ((), (), ())


def test_a_flat_yaml():
    """Keys may be without dashes and with underscores."""
    text = "num_layers: 4\nhidden_size: 64\nnum_attention_heads: 4\nseq_length: 32\nvocab_size: 100\n"
    got = launch_from_text(text + "micro_batch_size: 2\nbf16: true\nswiglu: false\nWORLD_SIZE: 4\n", "flat.yaml")
    assert (got.world_size, got.workload.precision, got.workload.global_batch) == (4, "bf16", 8)


def test_an_argument_file_may_begin_with_assignments():
    """Plain argument files carry WORLD_SIZE above, and need neither backslashes nor quotes."""
    text = f"NNODES=2\nGPUS_PER_NODE=4\n# comment\n{LEAST}\n--mtp-num-layers 1 --position-embedding-type rope\n"
    got = launch_from_text(
        text + "--pipeline-model-parallel-size 2\n--pipeline-model-parallel-layout E(tt|)*2mL\n", "a"
    )
    assert got.world_size == 8
    assert [problem.id for problem in got.problems] == ["stage-split"]  # three parts on two stages
    got = launch_from_text(text + "--pipeline-model-parallel-size 2\n--pipeline-model-parallel-layout Ettt|tmL\n", "a")
    assert (got.layout.stage_layers, got.problems) == ([3, 1], ())


def test_layers_that_do_not_divide_are_a_problem_with_an_assumed_split():
    """70 layers on 12 stages break Megatron's rule; the report goes on with 5, 6, ..., 6, 5 and says so."""
    got = launch_from_words(f"{LEAST} --num-layers 70 --pipeline-model-parallel-size 12".split(), "here", 12)
    assert got.layout.stage_layers == [5] + [6] * 10 + [5]
    (problem,) = got.problems
    assert "70" in problem.sentence and "12" in problem.sentence and "5, 6" in problem.given


def test_unknown_arguments_are_named_with_their_values():
    """What is in no table is never dropped: flags, values and stray words."""
    got = launch("--frobnicate 3 x --swiglu --no-such-flag --alpha=1 --train-iters 5 -1")
    assert got.unrecognised == ("--frobnicate 3 x", "--no-such-flag", "--alpha 1", "-1")
    assert launch("--moe-router-fusion --train-iters 5").not_accounted[0].startswith("--moe-router-fusion: ")


@pytest.mark.parametrize(
    "arguments",
    [
        "--hybrid-layer-pattern M-M*",
        "--is-hybrid-model",
        "--spec megatron.core.models.mamba.mamba_layer_specs mamba_stack_spec",
        "--experimental-attention-variant dsa",
        "--moe-latent-size 64",
        "--heterogeneous-layers-config-path x.json",
        "--fp4-format e2m1",
        "--tensor-parallel-num-weight-shards 2",
        "--bert-no-binary-head",
        "--vocab-file data/vocab.txt",
        "--img-h 336",
        "--patch-dim 14",
        "--model-provider llava_vlm",
        "--position-embedding-type relative",
        "--optimizer lion",
        "--transformer-impl inference_optimized",
    ],
)
def test_other_models_are_refused_by_name(arguments):
    """What is not accounted for is refused by its argument's name rather than guessed."""
    with pytest.raises(NotModelled, match=arguments.split()[0]):
        launch(arguments)


def test_defaults_of_what_is_refused_ask_for_nothing():
    """A list of all of Megatron's arguments holds --img-h 224 and its like (arguments.py: _add_vision_args)."""
    got = launch("--img-h 224 --img-w 224 --patch-dim 16 --tensor-parallel-num-weight-shards 1 --model-provider gpt")
    assert (got.unrecognised, got.not_accounted) == ((), ())
    assert launch("--vocab-file vocab.txt --tokenizer-type BertWordPieceCase").model.vocab_size == 100


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--num-layers four", "--num-layers must be a whole number, but was given 'four'"),
        ("--num-layers 0", "--num-layers must be at least 1, but was given 0"),
        ("--num-layers 1000000000", "at most 10000"),
        ("--num-layers", "--num-layers needs a value"),
        ("--hidden-dropout 1.5", "--hidden-dropout must be at least 0 and below 1"),
        ("--hidden-dropout nan", "--hidden-dropout must be"),
        ("--bf16 --fp16", "either --bf16 or --fp16"),
        ("--attention-backend fast", "auto, flash"),
        ("--num-experts 4 --moe-layer-freq [0,1]", "the 4 layers, but has 2"),
        ("--num-experts 4 --moe-layer-freq [0]*99999999999", "must be a whole number or a list"),
        ("--num-experts 4 --moe-router-topk 9", "between 1 and --num-experts (4)"),
        ("--window-size x", "--window-size must be"),
        ("--tensor-model-parallel-size -2", "at least 1"),
        ("--normalization BatchNorm", "LayerNorm or RMSNorm"),
        ("--mtp-num-layers 999999999999", "from 0 to 100"),
        ("--rotary-percent 7", "above 0 and at most 1"),
        ("--microbatch-group-size-per-virtual-pipeline-stage 0", "at least 1"),
        ("--zero-stage 9", "from 0 to 3"),
        ("--optimizer-cpu-offload --optimizer-offload-fraction 7", "from 0 to 1"),
        ("--step-batch-size-schedule soon", "like '0:384 200B:768'"),
    ],
)
def test_mistakes_are_one_sentence(arguments, words):
    """A wrong value is an InputError that names the argument, what is required and what was given."""
    with pytest.raises(InputError) as error:
        launch(arguments)
    assert words in str(error.value) and str(error.value).startswith("here: ")


@pytest.mark.parametrize("missing", ["num-layers", "hidden-size", "num-attention-heads", "seq-length", "vocab-size"])
def test_what_determines_the_model_must_be_given(missing):
    """Without one of these there is no model; the sentence names it."""
    words = LEAST.split()
    at = words.index("--" + missing)
    with pytest.raises(InputError, match=missing):
        launch_from_words(words[:at] + words[at + 2 :], "here")


@pytest.mark.parametrize(
    ("tokenizer", "size"),
    [
        ("--tokenizer-type GPT2BPETokenizer", 50257),
        ("--vocab-file $VOCAB --merge-file merges.txt", 50257),
        ("--tokenizer-type Llama2Tokenizer --tokenizer-model x", 32000),
        ("--tokenizer-type HuggingFaceTokenizer --tokenizer-model meta-llama/Llama-3.1-8B", 128256),
        ("--tokenizer-type HuggingFaceTokenizer --tokenizer-model deepseek-ai/DeepSeek-V3", 128815),
        ("--tokenizer-type NullTokenizer --vocab-size 131072", 131072),
        ("--tokenizer-type SentencePieceTokenizer --padded-vocab-size 300", 300),
    ],
)
def test_vocabulary_of_tokenizers_that_are_the_same_everywhere(tokenizer, size):
    """The vocabulary may be left to a tokenizer whose size does not depend on the user's files."""
    text = LEAST.replace("--vocab-size 100", tokenizer)
    assert launch_from_text(text, "here").model.vocab_size == size


def test_vocabulary_from_elsewhere():
    """A tokenizer in a file of its own is refused unless the caller knows the vocabulary."""
    text = LEAST.replace("--vocab-size 100", "--tokenizer-type HuggingFaceTokenizer --tokenizer-model mine")
    with pytest.raises(InputError, match="HuggingFaceTokenizer mine"):
        launch_from_text(text, "here")
    assert launch_from_text(text, "here", vocab_size=512).model.vocab_size == 512


def test_world_that_does_not_divide_is_left_to_the_rules():
    """dp is rounded down and the world size kept, so that the rule can say what is wrong."""
    got = launch("--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2", world=10)
    assert (got.layout.dp, got.world_size, got.layout.world_size) == (2, 10, 8)
    assert launch("--tensor-model-parallel-size 8", world=2).layout.dp == 1


def test_one_argument_in_one_table():
    """No argument is both honoured and ignored, or in any two of the tables."""
    tables = [set(HONOURED), set(NOT_ACCOUNTED), set(REFUSED), set(ignored())]
    assert sum(map(len, tables)) == len(set().union(*tables))


def test_every_honoured_argument_is_read_somewhere():
    """An argument in the honoured table that no code looks at would be dropped in silence."""
    package = Path(launch_from_words.__code__.co_filename).parent
    code = "".join(f.read_text() for f in package.glob("*.py") if f.name not in ("known.py", "ignored.py", "write.py"))
    unread = [name for name in HONOURED if f'"{name}"' not in code]
    assert unread == []


def test_virtual_stages_in_each_spelling():
    """Layers per virtual stage and virtual stages per rank are two ways to say the same split."""
    one = launch("--num-layers 8 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 2", 2)
    two = launch("--num-layers 8 --pipeline-model-parallel-size 2 --num-virtual-stages-per-pipeline-rank 2", 2)
    assert one.layout == two.layout == replace(one.layout, vpp=2)
    both = launch(
        "--num-layers 8 --pipeline-model-parallel-size 2 --num-layers-per-virtual-pipeline-stage 3 "
        "--num-virtual-stages-per-pipeline-rank 2",
        2,
    )
    assert [problem.id for problem in both.problems] == ["one-virtual-pipeline-argument"]
