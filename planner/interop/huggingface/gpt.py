"""GPT and its kin: LayerNorm with bias, two matrices in the MLP, learned, rotary or ALiBi positions."""

from __future__ import annotations

from functools import partial

from planner.interop.huggingface.family import LAYER_NORM, LAYER_NORM_WITHOUT_BIAS, Family, attention, check_groups
from planner.interop.huggingface.fields import Fields
from planner.model import MLP, Attention, Norm, Position, QKNorm

# GPT-2's names (n_embd, n_layer, n_head) reach the fields through the config classes' attribute maps.
GPT2 = partial(
    Family,
    ffn="n_inner",
    ffn_multiple=4,
    norm=LAYER_NORM,
    gated=False,
    mlp_bias=True,
    dropout="resid_pdrop",
)


def _rotary_dim(fields: Fields) -> float:
    """GPT-J and CodeGen give the rotated features rather than their share."""
    head = fields.size("hidden_size", "hidden") // fields.size("num_attention_heads", "heads")
    return min(1.0, (fields.optional("rotary_dim", "hidden") or head) / max(head, 1))


def _neox_rotary(fields: Fields) -> float:
    return fields.number("rotary_pct", 0.25)


def _bigcode_attention(fields: Fields) -> Attention:
    heads = fields.size("num_attention_heads", "heads")
    plain = attention(fields, Family(qkv_bias=True, output_bias=True, key_value_heads="num_attention_heads"))
    groups = 1 if fields.flag("multi_query") else heads
    return Attention(heads, groups, plain.head_dim, qkv_bias=True, output_bias=True)


def _neo_local(fields: Fields, index: int) -> bool:
    """GPT-Neo's attention_types: [[["global", "local"], 12]] repeats a pattern."""
    layers = [kind for pattern, times in fields.raw("attention_types") or [] for kind in list(pattern) * times]
    return index < len(layers) and layers[index] == "local"


def _neo_types(fields: Fields) -> str | None:
    types = fields.raw("attention_types") or []
    try:
        well = all(set(pattern) <= {"global", "local"} and 0 <= times <= 4096 for pattern, times in types)
    except (TypeError, ValueError):
        well = False
    return None if well else "attention_types must be a list of [[global or local, ...], times]"


def _opt_norm(fields: Fields) -> Norm:
    affine = fields.flag("layer_norm_elementwise_affine")
    return Norm("LayerNorm", bias=affine, weight=affine)


def _opt_final_norm(fields: Fields) -> bool:
    return fields.flag("do_layer_norm_before") and not fields.flag("_remove_final_layer_norm")


def _falcon_attention(fields: Fields) -> Attention:
    """Three layouts: new decoder (grouped), multi-query, multi-head."""
    heads = fields.size("num_attention_heads", "heads")
    if fields.flag("new_decoder_architecture"):
        groups = fields.optional("num_kv_heads", "heads") or heads
    else:
        groups = 1 if fields.flag("multi_query") else heads
    plain = attention(fields, Family(key_value_heads="num_attention_heads"))
    bias = fields.flag("bias")
    return Attention(heads, check_groups(fields, heads, groups), plain.head_dim, qkv_bias=bias, output_bias=bias)


def _falcon_norms(fields: Fields) -> int:
    if not fields.flag("parallel_attn"):
        return 2
    given = fields.optional("num_ln_in_parallel_attn", "layers")
    return (given or 1) if given or not fields.flag("new_decoder_architecture") else 2


def _alibi_or_rope(fields: Fields) -> Position:
    return "alibi" if fields.flag("alibi") else "rope"


def _mpt_refused(fields: Fields) -> str | None:
    attn = fields.child("attn_config")
    if attn.raw("attn_type") not in (None, "multihead_attention"):
        return "only attn_config.attn_type multihead_attention is modelled"
    return None


def _mpt_position(fields: Fields) -> Position:
    return "alibi" if fields.child("attn_config").flag("alibi") else "none"


def _qk_layernorm(fields: Fields) -> QKNorm:
    return "head" if fields.flag("qk_layernorm") else "none"


def _mpt_mlp(fields: Fields) -> MLP:
    return MLP(fields.size("hidden_size", "hidden") * (fields.optional("expansion_ratio", "heads") or 4), gated=False)


_GPT2 = GPT2(qkv_bias=True, output_bias=True, position="learned", positions="n_positions")
_GPTJ = GPT2(norms=1, parallel=True, head_bias=True, rotary=_rotary_dim, positions="n_positions")
_FALCON = Family(
    attention=_falcon_attention,
    ffn="ffn_hidden_size",
    ffn_multiple=4,
    gated=False,
    mlp_bias="bias",
    norm=LAYER_NORM,
    norms=_falcon_norms,
    parallel="parallel_attn",
    position=_alibi_or_rope,
)

FAMILIES = {
    "gpt2": _GPT2,
    "gpt-sw3": _GPT2,
    "openai-gpt": GPT2(qkv_bias=True, output_bias=True, position="learned", positions="n_positions", final_norm=False),
    "gpt_bigcode": GPT2(attention=_bigcode_attention, position="learned", positions="n_positions"),
    "gpt_neo": GPT2(
        ffn="intermediate_size",
        heads="num_heads",
        key_value_heads="num_heads",
        output_bias=True,
        position="learned",
        slides=_neo_local,
        window="window_size",
        refuse=_neo_types,
        dropout="resid_dropout",
    ),
    "gptj": _GPTJ,
    "codegen": _GPTJ,
    "gpt_neox": Family(
        norm=LAYER_NORM,
        parallel="use_parallel_residual",
        qkv_bias="attention_bias",
        output_bias="attention_bias",
        gated=False,
        mlp_bias=True,
        rotary=_neox_rotary,
    ),
    "opt": Family(
        ffn="ffn_dim",
        norm=_opt_norm,
        qkv_bias="enable_bias",
        output_bias="enable_bias",
        gated=False,
        mlp_bias="enable_bias",
        position="learned",
        extra_positions=2,
        final_norm=_opt_final_norm,
        embedding_width="word_embed_proj_dim",
        dropout="dropout",
    ),
    "xglm": Family(
        ffn="ffn_dim",
        norm=LAYER_NORM,
        qkv_bias=True,
        output_bias=True,
        gated=False,
        mlp_bias=True,
        position="none",
        dropout="dropout",
    ),
    "biogpt": Family(
        norm=LAYER_NORM,
        qkv_bias=True,
        output_bias=True,
        gated=False,
        mlp_bias=True,
        position="learned",
        extra_positions=2,
        dropout="hidden_dropout_prob",
    ),
    "ctrl": GPT2(ffn="dff", qkv_bias=True, output_bias=True, position="none", positions="n_positions", head_bias=True),
    "bloom": Family(
        ffn="n_inner",
        ffn_multiple=4,
        positions="seq_length",
        norm=LAYER_NORM,
        qkv_bias=True,
        output_bias=True,
        gated=False,
        mlp_bias=True,
        position="alibi",
        embedding_norm=True,
    ),
    "falcon": _FALCON,
    "RefinedWeb": _FALCON,
    "RefinedWebModel": _FALCON,
    "mpt": Family(
        mlp=_mpt_mlp,
        positions="max_seq_len",
        norm=LAYER_NORM_WITHOUT_BIAS,
        position=_mpt_position,
        refuse=_mpt_refused,
        dropout="resid_pdrop",
    ),
    "phi": Family(
        norm=LAYER_NORM,
        norms=1,
        parallel=True,
        qkv_bias=True,
        output_bias=True,
        qk_norm=_qk_layernorm,
        gated=False,
        mlp_bias=True,
        head_bias=True,
        dropout="resid_pdrop",
    ),
    "persimmon": Family(
        norm=LAYER_NORM, qkv_bias=True, output_bias=True, qk_norm=_qk_layernorm, gated=False, mlp_bias=True
    ),
    "starcoder2": Family(
        norm=LAYER_NORM,
        qkv_bias="use_bias",
        output_bias="use_bias",
        gated=False,
        mlp_bias="use_bias",
        slides=lambda fields, index: True,
        dropout="residual_dropout",
    ),
    "jais2": Family(
        norm=LAYER_NORM, qkv_bias="attention_bias", output_bias="attention_bias", gated=False, mlp_bias="mlp_bias"
    ),
}
