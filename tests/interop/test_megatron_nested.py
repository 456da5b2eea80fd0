"""Megatron-LM's own nested YAML is read as the arguments that its fields mean; references are resolved or named."""

import pytest
import yaml

from planner.errors import InputError
from planner.interop.megatron.launch import launch_from_text
from planner.model import MLP, Attention, Norm

# The fields of examples/gpt3/gpt_config.yaml that decide something, and a few that do not.
LANGUAGE_MODEL = """
num_layers: 4
hidden_size: 64
num_attention_heads: 4
num_query_groups: null
ffn_hidden_size: null
hidden_dropout: 0.0
attention_dropout: 0.0
layernorm_epsilon: 1.e-5
layernorm_zero_centered_gamma: True
add_bias_linear: False
bias_activation_fusion: False
gated_linear_unit: False
activation_func: swiglu
num_moe_experts: null
window_size: null
init_method: null
bias_swiglu_fusion: True
memory_efficient_layer_norm: False
bias_dropout_fusion: True
apply_rope_fusion: True
recompute_granularity: null
fp8: null
fp8_wgrad: True
normalization: LayerNorm
moe_token_dropping: False
"""
MODEL_PARALLEL = """
tensor_model_parallel_size: 2
pipeline_model_parallel_size: 1
virtual_pipeline_model_parallel_size: null
sequence_parallel: True
bf16: True
params_dtype: null
gradient_accumulation_fusion: True
tp_comm_atomic_ag: True
overlap_p2p_comm: False
batch_p2p_comm: True
cpu_offloading: False
cpu_offloading_num_layers: 2
cpu_offloading_weights: False
"""
TRAINING = """
micro_batch_size: 2
global_batch_size: 16
seq_length: 32
max_position_embeddings: 32
vocab_size: 100
position_embedding_type: rope
untie_embeddings_and_output_weights: True
use_distributed_optimizer: False
swiglu: True
align_param_gather: False
empty_unused_memory_level: 0
profile_ranks: [0]
"""


def read(language="", parallel="", training="", world=8, preset=None):
    """A file with some lines replaced or added; a value of `absent` takes the line away."""
    sections = []
    for text, change in ((LANGUAGE_MODEL, language), (MODEL_PARALLEL, parallel), (TRAINING, training)):
        held = yaml.safe_load(text) | (yaml.safe_load(change) or {})
        sections.append({key: value for key, value in held.items() if value != "absent"})
    mapping = {"language_model": sections[0], "model_parallel": sections[1], **sections[2]}
    return launch_from_text(yaml.safe_dump(mapping, sort_keys=False), "gpt.yaml", world, preset=preset)


def test_sections_are_merged_and_fields_are_arguments():
    """The example's form: a gated MLP without biases, by fields that no argument is called by."""
    got = read()
    (layer,) = got.model.layer_kinds
    assert layer.attention == Attention(4, 4, 16)
    assert layer.mlp == MLP(128, gated=True, bias=False)
    assert (got.model.norm, got.model.position, got.model.tied) == (Norm("LayerNorm", bias=True), "rope", False)
    assert (got.layout.tp, got.layout.dp, got.layout.sequence_parallel, got.layout.zero) == (2, 4, True, 0)
    assert got.workload.precision == "bf16" and got.workload.global_batch == 16
    assert got.implementation.bias_activation_fusion and got.implementation.offload_activation_layers == 0
    assert (got.unrecognised, got.not_accounted, got.notes) == ((), (), ())


def test_fields_that_are_false_or_have_another_name():
    """True by default, switched off by an argument; and fields that arguments call otherwise."""
    i = read(
        "{add_bias_linear: True, bias_swiglu_fusion: False, bias_dropout_fusion: False, apply_rope_fusion: False}",
        "{gradient_accumulation_fusion: False, cpu_offloading: True}",
    ).implementation
    assert not (i.bias_activation_fusion or i.bias_dropout_fusion or i.rope_fusion or i.gradient_accumulation_fusion)
    assert i.offload_activation_layers == 2
    got = read("{num_moe_experts: 8, moe_router_topk: 4, moe_ffn_hidden_size: 32, num_query_groups: 2, fp8: hybrid}")
    (layer,) = got.model.layer_kinds
    assert (layer.mlp.num_experts, layer.mlp.top_k, layer.attention.num_query_groups) == (8, 4, 2)
    assert got.workload.precision == "fp8"
    assert read("window_size: [15, 0]").model.layer_kinds[0].attention.window == 16
    got = read("{num_layers_in_first_pipeline_stage: 1}", "{pipeline_model_parallel_size: 2}")
    assert [stage[0].num_layers for stage in got.layout.stages] == [1, 3]


@pytest.mark.parametrize(
    ("fields", "gated", "width", "note"),
    [
        ("activation_func: gelu", False, 256, "swiglu: True has no effect"),
        ("activation_func: squaredrelu", False, 256, "swiglu: True has no effect"),
        ("{activation_func: gelu, gated_linear_unit: True}", True, 256, "counted as --quick-geglu"),
        ("activation_func: absent", True, 128, ""),
    ],
)
def test_the_activation_function_goes_before_the_flags(fields, gated, width, note):
    """core_transformer_config_from_yaml reads activation_func; `swiglu` counts only where that is absent."""
    got = read(fields)
    mlp = got.model.layer_kinds[0].mlp
    assert (mlp.gated, mlp.ffn_hidden_size) == (gated, width)
    assert note in " ".join(got.notes) and bool(got.notes) == bool(note)


def test_what_is_not_understood_is_named():
    """In the words of the file, false ones and sections included; nothing is dropped."""
    got = read("{frobnicate: 3, new_fusion: False}", "{gizmo: [1, 2], nothing: null}", "training: {lr: 0.1}")
    assert set(got.unrecognised) == {"frobnicate: 3", "new_fusion: false", "gizmo: [1, 2]", 'training: {"lr": 0.1}'}


@pytest.mark.parametrize(
    ("language", "parallel", "training", "message"),
    [
        ("bf16: True", "", "", "bf16 must be given once, but also stands in model_parallel"),
        ("", "", "hidden_size: 8", "hidden_size must be given once, but also stands in language_model"),
        ("activation_func: silu", "", "", "activation_func must be one of swiglu, squaredrelu, gelu"),
        ("num_layers: absent", "", "", "--num-layers must be given"),
        ("num_layers: '${env:LAYERS}'", "", "", r"is \$\{LAYERS\}, .*--set LAYERS=VALUE"),
        ("num_layers: '${model_parallel.layers}'", "", "", r"\$\{model_parallel.layers\} must refer to a key"),
        ("num_layers: '${model_parallel}'", "", "", "refers to a section"),
        ("num_layers: '${language_model.num_layers}'", "", "", "refers to itself"),
    ],
)
def test_files_that_cannot_be_read_are_one_sentence(language, parallel, training, message):
    """What Megatron-LM refuses, and references that lead nowhere."""
    with pytest.raises(InputError, match=message) as caught:
        read(language, parallel, training)
    assert str(caught.value).startswith("gpt.yaml: ")


def test_references_are_resolved():
    """To the environment, with a default, and to other keys, whose type they keep."""
    got = read(
        "{num_layers: '${env:LAYERS}', ffn_hidden_size: '${oc.env:FFN,96}', "
        "add_bias_linear: '${use_distributed_optimizer}'}",
        "{tensor_model_parallel_size: '${TP}', bf16: '${env:BF16}'}",
        "micro_batch_size: '${model_parallel.pipeline_model_parallel_size}'",
        preset={"LAYERS": "6", "TP": "4", "BF16": "true"},
    )
    assert (got.model.num_layers, got.model.layer_kinds[0].mlp.ffn_hidden_size) == (6, 96)
    assert (got.layout.tp, got.layout.micro_batch, got.workload.precision) == (4, 1, "bf16")


def test_references_in_a_flat_file_and_bombs():
    """Flat files have references too; references that double one another end in a sentence."""
    least = "num_attention_heads: 4\nseq_length: 32\nvocab_size: 100\nmicro_batch_size: 2\nhidden_size: 64\n"
    assert launch_from_text(f"{least}num_layers: ${{num_attention_heads}}", "a.yaml").model.num_layers == 4
    bomb = "".join(f"k{i}: '${{k{i + 1}}}${{k{i + 1}}}${{k{i + 1}}}'\n" for i in range(18)) + "k18: xxxxxxxxxx\n"
    with pytest.raises(InputError, match="expand to more than"):
        launch_from_text(least + bomb, "a.yaml")
