"""Reading Megatron-LM launches: every argument lands where Megatron would put it, its defaults included."""

from dataclasses import replace
from pathlib import Path

import pytest

from planner.errors import InputError, NotModelled
from planner.interop.megatron.ignored import ignored
from planner.interop.megatron.known import HONOURED, NOT_ACCOUNTED, REFUSED
from planner.interop.megatron.launch import launch_from_text, launch_from_words, read_megatron
from planner.interop.megatron.write import megatron_arguments
from planner.layout import NO_RECOMPUTE, Recompute
from planner.model import MLP, Attention, LatentAttention, MoE, Norm
from planner.parameters import parameters
from planner.rules import broken_rules
from planner.workload import Workload

DATA = Path(__file__).parents[1] / "data" / "launch"
LEAST = "--num-layers 4 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --vocab-size 100 --micro-batch-size 2"


def launch(arguments: str, world: int | None = None):
    return launch_from_words(f"{LEAST} {arguments}".split(), "here", world)


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
    ("arguments", "precision", "gradient_bytes"),
    [
        ("--bf16", "bf16", 4),
        ("--bf16 --grad-reduce-in-bf16", "bf16", 2),
        ("--bf16 --use-precision-aware-optimizer --main-grads-dtype bf16", "bf16", 2),
        ("--fp16", "fp16", 2),
        ("--fp16 --accumulate-allreduce-grads-in-fp32", "fp16", 4),
        ("--bf16 --fp8-format hybrid", "fp8", 4),
        ("--bf16 --use-megatron-fsdp", "bf16", 2),
        ("--bf16 --use-megatron-fsdp --megatron-fsdp-main-grads-dtype fp32", "bf16", 4),
    ],
)
def test_precision_of_weights_and_gradients(arguments, precision, gradient_bytes):
    """bf16 implies fp32 main gradients, fp16 does not, Megatron-FSDP keeps the weights' type."""
    got = launch(arguments)
    assert (got.workload.precision, got.implementation.grad_reduce_bytes) == (precision, gradient_bytes)


@pytest.mark.parametrize(
    ("arguments", "kernel"),
    [
        ("", "auto"),
        ("--use-flash-attn", "flash"),
        ("--attention-backend fused", "fused"),
        ("--attention-backend unfused", "unfused"),
        ("--transformer-impl local", "unfused"),
        ("--transformer-impl local --use-flash-attn", "flash"),
        ("--transformer-impl local --attention-backend flash", "flash"),
        ("--spec local", "unfused"),
    ],
)
def test_attention_kernel(arguments, kernel):
    """Transformer Engine picks a kernel by the card, Megatron's own module is unfused unless told otherwise."""
    assert launch(arguments).implementation.attention == kernel


def test_deterministic_mode_switches_fusions_off():
    """determinism.py forces cross-entropy fusion and tensor-parallel overlap off."""
    on = launch("--cross-entropy-loss-fusion --tp-comm-overlap").implementation
    off = launch("--cross-entropy-loss-fusion --tp-comm-overlap --deterministic-mode").implementation
    assert (on.cross_entropy, on.tp_comm_overlap) == ("native", True)
    assert (off.cross_entropy, off.tp_comm_overlap, off.deterministic) == ("unfused", False, True)


def test_the_dataloader_mask_and_deferred_gradients():
    """Megatron's loader makes a mask unless told not to; a deferral without limit defers every microbatch."""
    plain = launch("--wgrad-deferral-limit 2").implementation
    assert (plain.attention_mask_in_dataloader, plain.deferred_embedding_wgrads) == (True, 0)
    given = launch("--no-create-attention-mask-in-dataloader --defer-embedding-wgrad-compute").implementation
    assert not given.attention_mask_in_dataloader and given.deferred_embedding_wgrads > 1000
    limited = launch("--defer-embedding-wgrad-compute --wgrad-deferral-limit 2").implementation
    assert limited.deferred_embedding_wgrads == 2


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


@pytest.mark.parametrize(
    ("layers", "pp", "arguments", "counts"),
    [
        (70, 12, "", [6] * 10 + [5] * 2),
        (70, 12, "--pp-partition-method 'type:transformer|embedding'", [5, *[6] * 10, 5]),
        (78, 12, "--pp-partition-method type:transformer", [7] * 6 + [6] * 6),
        (45, 7, "--pp-partition-method type:transformer|embedding", [6, 7, 7, 7, 7, 6, 5]),
        (
            45,
            7,
            "--pp-partition-method type:transformer|embedding --untie-embeddings-and-output-weights",
            [6, 7, 7, 7, 6, 6, 6],
        ),
        (5, 4, "--pp-partition-method type:transformer|embedding", [1, 2, 2, 0]),
    ],
)
def test_the_split_of_deepspeeds_pipeline(layers, pp, arguments, counts):
    """DeepSpeed shares out what its partition method counts, whether or not it divides. The splits are those of its
    partition_balanced (deepspeed/runtime/utils.py), run on the layer list of Megatron-DeepSpeed's GPTModelPipe."""
    words = f"--deepspeed --num-layers {layers} --pipeline-model-parallel-size {pp} {arguments}"
    got = launch(words, world=pp)
    assert [sum(chunk.num_layers for chunk in stage) for stage in got.layout.stages] == counts
    assert got.problems == ()


def test_a_partition_method_that_counts_something_else_is_said():
    """By parameters, or by a class that the model has not, decoder layers stand in; an unknown method is refused."""
    deepspeed = "--deepspeed --num-layers 5 --pipeline-model-parallel-size 2"
    got = launch(f"{deepspeed} --pp-partition-method parameters", world=2)
    assert got.not_accounted == ("--pp-partition-method parameters: stages are counted as type:transformer's",)
    with pytest.raises(InputError, match=r"--pp-partition-method must be .* but was given 'profile'"):
        launch(f"{deepspeed} --pp-partition-method profile", world=2)


def test_megatron_deepspeed_has_its_own_layers():
    """Its --transformer-impl is local and unfused unless asked otherwise; Megatron-LM's is Transformer Engine."""
    own = launch("--deepspeed --zero-stage 1").implementation
    assert (own.layer_implementation, own.attention, own.framework) == ("local", "unfused", "megatron-deepspeed")
    asked = launch("--deepspeed --transformer-impl transformer_engine --use-flash-attn-v2").implementation
    assert (asked.layer_implementation, asked.attention) == ("transformer_engine", "flash")


def test_megatron_deepspeed_spells_some_things_otherwise():
    """Norms in lower case, one expert for a dense model, more names for flash attention; its layers never fuse the
    accumulation of gradients."""
    got = launch("--deepspeed --normalization rmsnorm --num-experts 1 --topk 2 --use-flash-attn-triton")
    assert got.model.norm == Norm("RMSNorm") and not got.model.is_moe
    assert got.implementation.attention == "flash" and not got.implementation.gradient_accumulation_fusion
    assert got.unrecognised == ()
    with pytest.raises(InputError, match="must be LayerNorm or RMSNorm, but was given 'rmsnorm'"):
        launch("--normalization rmsnorm")


@pytest.mark.parametrize(
    ("arguments", "fp32"),
    [
        ("--deepspeed", True),
        ("--deepspeed --no-query-key-layer-scaling", False),
        ("--deepspeed --no-query-key-layer-scaling --attention-softmax-in-fp32", True),
        ("", True),
    ],
)
def test_the_precision_of_pytorchs_softmax(arguments, fp32):
    """Megatron-DeepSpeed scales by layers unless told not to, which takes fp32."""
    assert launch(arguments).implementation.attention_softmax_in_fp32 is fp32


def test_ulysses_is_context_parallelism_by_all_to_all():
    """It divides the data-parallel ranks, works around any attention, and comes back when it is written."""
    words = "--deepspeed --zero-stage 1 --ds-sequence-parallel-size 2 --num-layers 4"
    got = launch(words, world=8)
    assert (got.layout.cp, got.layout.dp, got.implementation.cp_comm_type) == (2, 4, "a2a")
    rules = broken_rules(got.model, got.workload, got.implementation, got.layout, 8)
    assert not any(rule.id.startswith("context") for rule in rules)
    written = megatron_arguments(got.model, got.workload, got.implementation, got.layout)
    assert "--ds-sequence-parallel-size" in written and "--context-parallel-size" not in written
    with pytest.raises(InputError, match="FPDT"):
        launch(f"{words} --ds-sequence-parallel-fpdt")


def test_bigsciences_model_arguments():
    """ALiBi has no positions to store, the embedding its own norm, and the vocabulary is padded to what is given."""
    plain = launch("--position-embedding-type none").model
    got = launch("--position-embedding-type alibi --embed-layernorm --pad-vocab-size-to 50432")
    assert (got.model.position, got.model.vocab_size) == ("alibi", 50432)
    assert got.implementation.vocab_divisible_by == 1 and got.unrecognised == ()
    grown = (50432 - plain.vocab_size) * plain.hidden_size + 2 * plain.hidden_size
    assert parameters(got.model) == parameters(plain) + grown


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
    ],
)
def test_recompute(arguments, recompute):
    """Each spelling of recomputation, the older ones included; selective without modules is the core attention."""
    got = launch(arguments)
    assert (got.layout.recompute, got.problems) == (recompute, ())


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
        "--position-embedding-type relative",
        "--optimizer lion",
        "--transformer-impl inference_optimized",
    ],
)
def test_other_models_are_refused_by_name(arguments):
    """What is not accounted for is refused by its argument's name rather than guessed."""
    with pytest.raises(NotModelled, match=arguments.split()[0]):
        launch(arguments)


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


@pytest.mark.parametrize(
    ("exports", "attention"),
    [
        ("", "auto"),
        ("NVTE_FUSED_ATTN=0", "flash"),
        ("NVTE_FLASH_ATTN=0", "fused"),
        ("NVTE_FLASH_ATTN=0 NVTE_FUSED_ATTN=0", "unfused"),
        ("NVTE_UNFUSED_ATTN=0", "auto"),
        ("NVTE_FLASH_ATTN=maybe", "auto"),
    ],
)
def test_transformer_engine_is_told_by_the_environment_which_kernels_it_may_take(exports, attention):
    """get_attention_backend takes none whose variable is 0; an argument goes before the environment."""
    script = "\n".join(f"export {word}" for word in exports.split()) + f"\ntorchrun pretrain_gpt.py {LEAST} --bf16"
    assert launch_from_text(script, "run.sh").implementation.attention == attention
    named = launch_from_text(script + " --attention-backend flash", "run.sh")
    assert named.implementation.attention == "flash"


def test_no_kernel_left_is_one_sentence():
    """All three variables at 0 leave nothing to compute attention with."""
    script = f"NVTE_FLASH_ATTN=0 NVTE_FUSED_ATTN=0 NVTE_UNFUSED_ATTN=0 torchrun pretrain_gpt.py {LEAST}"
    with pytest.raises(InputError, match="one of NVTE_FLASH_ATTN, NVTE_FUSED_ATTN, NVTE_UNFUSED_ATTN must not be 0"):
        launch_from_text(script, "run.sh")


@pytest.mark.parametrize(
    ("text", "name", "blocking", "connections"),
    [
        (f"torchrun pretrain_gpt.py {LEAST}", "run.sh", False, None),
        (
            f"export CUDA_LAUNCH_BLOCKING=1 CUDA_DEVICE_MAX_CONNECTIONS=1\npython pretrain_gpt.py {LEAST}",
            "run.sh",
            True,
            1,
        ),
        (f"CUDA_LAUNCH_BLOCKING=0 CUDA_DEVICE_MAX_CONNECTIONS=32 python pretrain_gpt.py {LEAST}", "run.sh", False, 32),
        (f"export CUDA_LAUNCH_BLOCKING=$DEBUG\npython pretrain_gpt.py {LEAST}", "run.sh", False, None),
        (
            "ENV_VARS: {CUDA_LAUNCH_BLOCKING: 1, CUDA_DEVICE_MAX_CONNECTIONS: '1'}\n"
            "MODEL_ARGS: {--num-layers: 4, --num-attention-heads: 4, --micro-batch-size: 4, --hidden-size: 64, "
            "--seq-length: 32, --vocab-size: 100}",
            "run.yaml",
            True,
            1,
        ),
    ],
)
def test_what_the_environment_of_a_launch_changes(text, name, blocking, connections):
    """CUDA's variables are read from exports, before the command and in a YAML; an unknown value says nothing."""
    got = launch_from_text(text, name).implementation
    assert (got.launch_blocking, got.device_max_connections) == (blocking, connections)


@pytest.mark.parametrize(
    ("arguments", "graphs"),
    [
        ("", ()),
        ("--cuda-graph-impl none --cuda-graph-modules attn", ()),
        ("--cuda-graph-impl transformer_engine", ("layer",)),
        ("--cuda-graph-impl local --cuda-graph-scope full", ("layer",)),
        ("--cuda-graph-impl transformer_engine --cuda-graph-modules moe_router attn", ("attn", "moe_router")),
        ("--cuda-graph-impl transformer_engine --cuda-graph-modules attn,mlp", ("attn", "mlp")),
        ("--cuda-graph-impl local --cuda-graph-modules moe_router", ("moe_router", "moe_preprocess")),
        ("--cuda-graph-impl full_iteration", ("iteration",)),
        ("--cuda-graph-impl local --cuda-graph-scope full_iteration", ("iteration",)),
        ("--enable-cuda-graph", ("layer",)),
        ("--external-cuda-graph --cuda-graph-scope attn", ("attn",)),
    ],
)
def test_what_is_captured_as_cuda_graphs(arguments, graphs):
    """Names and defaults of transformer_config.py, with those of older releases."""
    assert launch(arguments).implementation.cuda_graphs == graphs


@pytest.mark.parametrize("arguments", ["--cuda-graph-impl both", "--cuda-graph-impl local --cuda-graph-modules head"])
def test_graphs_of_nothing_that_exists_are_one_sentence(arguments):
    """A word that Megatron does not know is answered with those that it does."""
    with pytest.raises(InputError, match=r"must be (one )?of .*, but was given"):
        launch(arguments)


@pytest.mark.parametrize(
    ("arguments", "exchange", "noted"),
    [
        ("", "p2p", False),
        ("--cp-comm-type a2a", "a2a", False),
        ("--cp-comm-type all_gather", "allgather", False),
        ("--cp-comm-type a2a+p2p", "a2a+p2p", False),
        ("--cp-comm-type p2p p2p a2a a2a", "p2p", True),
    ],
)
def test_how_context_parallel_ranks_exchange(arguments, exchange, noted):
    """One word for all layers; where they differ the first counts, and the report says so."""
    got = launch(arguments)
    assert got.implementation.cp_comm_type == exchange
    assert any("layers differ" in text for text in got.not_accounted) == noted


def test_an_unknown_exchange_is_one_sentence():
    """The words that there are stand in the sentence."""
    with pytest.raises(
        InputError, match=r"--cp-comm-type must be of p2p, a2a, allgather, a2a\+p2p, but was given 'nvl'"
    ):
        launch("--cp-comm-type nvl")
