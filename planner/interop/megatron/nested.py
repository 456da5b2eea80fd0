"""Megatron-LM's own nested YAML (`--yaml-cfg`): sections of configuration fields beside arguments, as flat arguments.

`language_model` holds fields of TransformerConfig, `model_parallel` of ModelParallelConfig; the rest are arguments by
their attribute names. Where a field is no argument's name, it is mapped to the argument that sets it.

Source: megatron/training/yaml_arguments.py: load_yaml, validate_yaml, core_transformer_config_from_yaml;
examples/gpt3/gpt_config.yaml (until its removal in 2026); the fields of core/transformer/transformer_config.py and
core/model_parallel_config.py.
"""

from __future__ import annotations

import json
from typing import Any

from planner.errors import InputError
from planner.interop.megatron.parse import known_kinds, readable

SECTIONS = ("language_model", "model_parallel")

_RENAMED = {
    "num_moe_experts": "num-experts",
    "layernorm_epsilon": "norm-epsilon",
    "layernorm_zero_centered_gamma": "apply-layernorm-1p",
    "fp8": "fp8-format",
    "fp8_param": "fp8-param-gather",
    "fp4": "fp4-format",
    "num_layers_in_first_pipeline_stage": "decoder-first-pipeline-num-layers",
    "num_layers_in_last_pipeline_stage": "decoder-last-pipeline-num-layers",
    "microbatch_group_size_per_vp_stage": "microbatch-group-size-per-virtual-pipeline-stage",
}
_FALSE = {
    "add_bias_linear": "disable-bias-linear",
    "bias_swiglu_fusion": "no-bias-swiglu-fusion",
    "masked_softmax_fusion": "no-masked-softmax-fusion",
    "bias_dropout_fusion": "no-bias-dropout-fusion",
    "apply_rope_fusion": "no-rope-fusion",
    "persist_layer_norm": "no-persist-layer-norm",
    "gradient_accumulation_fusion": "no-gradient-accumulation-fusion",
    "clone_scatter_output_in_embedding": "disable-clone-scatter-output-in-embedding",
    "fp8_wgrad": "no-fp8-wgrad",
    "perform_initialization": "no-initialization",
    "tp_comm_overlap_ag": "disable-tp-comm-overlap-ag",
    "tp_comm_overlap_rs": "disable-tp-comm-overlap-rs",
    "tp_comm_split_ag": "disable-tp-comm-split-ag",
    "tp_comm_split_rs": "disable-tp-comm-split-rs",
    "tp_comm_bulk_wgrad": "disable-tp-comm-bulk-wgrad",
    "tp_comm_bulk_dgrad": "disable-tp-comm-bulk-dgrad",
    "check_for_nan_in_loss_and_grad": "no-check-for-nan-in-loss-and-grad",
    "align_grad_reduce": "no-align-grad-reduce",
    "align_param_gather": "no-align-param-gather",
    "manual_gc_eval": "disable-manual-gc-eval",
    "log_loss_scale_to_tensorboard": "no-log-loss-scale-to-tensorboard",
    "enable_one_logger": "no-one-logger",
}
"""Fields that are true unless an argument says otherwise, and that argument."""
_NO_EFFECT = """
    init_method output_layer_init_method embedding_init_method params_dtype pipeline_dtype autocast_dtype timers
    finalize_model_grads_func grad_scale_func no_sync_func grad_sync_func param_sync_func deallocate_pipeline_outputs
    batch_p2p_comm batch_p2p_sync variable_seq_lengths tp_comm_atomic_ag tp_comm_atomic_rs barrier_with_L1_time
    _cpu_offloading_context add_position_embedding bert_binary_head
"""
"""Initial values, and what the launch sets itself whatever the file says."""
_OFF = """
    memory_efficient_layer_norm moe_token_dropping use_legacy_models standalone_embedding_stage enable_autocast
    fused_single_qkv_rope use_kitchen fp8_dot_product_attention fp8_multi_head_attention tp_only_amax_red
    heterogeneous_block_specs hetereogenous_dist_checkpoint use_te_rng_tracker use_inference_optimized_layers
    disable_parameter_transpose_cache cuda_graph_retain_backward_graph activation_func_fp8_input_store
    cpu_offloading_double_buffering tp_comm_overlap_disable_qkv tp_comm_overlap_disable_fc1
"""
"""Fields without an argument that are off by default: nothing where they are false."""


def is_nested(mapping: dict[str, Any]) -> bool:
    return any(isinstance(mapping.get(section), dict) for section in SECTIONS)


def flattened(mapping: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str], list[str]]:
    """Arguments by name, what is not understood, and what was taken otherwise than it stands, as notes. Raises
    InputError where Megatron-LM would refuse the file's form."""
    fields, strange = _merged(mapping, source)
    notes: list[str] = []
    arguments = _activation(fields, notes, source) | _offloading(fields) | _attention(fields) | _stages(fields, notes)
    no_effect, off = _NO_EFFECT.split(), _OFF.split()
    for key, value in fields.items():
        name = _RENAMED.get(key, key.replace("_", "-"))
        if value is None or key in no_effect or (value is False and key in off):
            continue
        if key in _FALSE:
            arguments |= {_FALSE[key]: True} if value is False else {}
        elif name not in known_kinds() or isinstance(value, dict):
            strange.append(readable(f"{key.lstrip('-')}: {json.dumps(value, default=str)}"))
        elif name == "window-size" and isinstance(value, list):
            arguments[name] = ",".join(map(str, value))
        else:
            arguments[name] = value
    return arguments, strange, notes


def _merged(mapping: dict[str, Any], source: str) -> tuple[dict[str, Any], list[str]]:
    """All fields together: Megatron-LM merges the sections into one namespace, which takes each name once."""
    fields = {key: value for key, value in mapping.items() if key not in SECTIONS}
    strange = []
    for section in SECTIONS:
        held = mapping.get(section)
        if not isinstance(held, dict):
            strange += [] if held is None else [readable(f"{section}: {held}")]
            continue
        for key, value in held.items():
            if key in fields:
                raise InputError(f"{source}: {readable(str(key))} must be given once, but also stands in {section}.")
            fields[str(key)] = value
    return fields, strange


def _activation(fields: dict[str, Any], notes: list[str], source: str) -> dict[str, Any]:
    """The arguments of `activation_func`, which goes before `swiglu` and its like
    (core_transformer_config_from_yaml)."""
    if "activation_func" not in fields:
        return {}
    given, gated = fields.pop("activation_func"), fields.pop("gated_linear_unit", None)
    if given not in ("swiglu", "squaredrelu", "gelu"):
        raise InputError(
            f"{source}: activation_func must be one of swiglu, squaredrelu, gelu, but was given {readable(str(given))}."
        )
    for key, meant in (("swiglu", "swiglu"), ("squared_relu", "squaredrelu"), ("openai_gelu", "gelu")):
        if fields.pop(key, None) is True and meant != given:
            notes.append(f"{key}: True has no effect beside activation_func: {given}")
    if given == "swiglu":
        fields.pop("bias_activation_fusion", None)  # bias_swiglu_fusion decides
        return {"swiglu": True}
    if gated is True:
        notes.append(f"gated_linear_unit: True with {given} is counted as --quick-geglu")
    unfused: dict[str, Any] = {}
    fused = fields.pop("bias_activation_fusion", None)
    if fused is not True or (given == "gelu" and fields.get("add_bias_linear") is not False):
        unfused = {"no-bias-gelu-fusion": True}
    squared = {"squared-relu": True} if given == "squaredrelu" else {}
    return unfused | squared | ({"quick-geglu": True} if gated is True else {})


def _offloading(fields: dict[str, Any]) -> dict[str, Any]:
    """Layers whose activations wait on the host, where `cpu_offloading` is on."""
    layers = fields.pop("cpu_offloading_num_layers", None)
    if fields.pop("cpu_offloading", None) is True:
        if fields.get("cpu_offloading_activations") is True:
            del fields["cpu_offloading_activations"]
        if fields.get("cpu_offloading_weights") is False:
            del fields["cpu_offloading_weights"]
        return {"cpu-offloading-num-layers": layers} if layers else {}
    fields.pop("cpu_offloading_activations", None)
    fields.pop("cpu_offloading_weights", None)
    return {}


def _attention(fields: dict[str, Any]) -> dict[str, Any]:
    """`num_query_groups` is the field that the layers read, with or without `group_query_attention`."""
    fields.pop("group_query_attention", None)
    groups = fields.pop("num_query_groups", None)
    return {} if groups is None else {"group-query-attention": True, "num-query-groups": groups}


def _stages(fields: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """Virtual stages come from `num_layers_per_virtual_pipeline_stage` alone (validate_yaml). Goes by the way over what
    is written out but without effect: the alignment of gathers that do not overlap, a cache that is not emptied."""
    interleaved = fields.get("num_layers_per_virtual_pipeline_stage") is not None
    if fields.pop("virtual_pipeline_model_parallel_size", None) is not None:
        notes.append(
            "virtual_pipeline_model_parallel_size has no effect: num_layers_per_virtual_pipeline_stage decides"
        )
    if not fields.get("overlap_param_gather"):
        fields.pop("align_param_gather", None)
    if fields.get("empty_unused_memory_level") == 0:
        del fields["empty_unused_memory_level"]
    overlaps = fields.pop("overlap_p2p_comm", None)
    return {"no-overlap-p2p-communication": True} if interleaved and overlaps is False else {}
