"""Mixtures of experts with softmax attention of the usual kind; those with latent attention are in latent.py."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from types import MappingProxyType
from typing import Any, Literal

from planner.errors import InputError
from planner.interop.huggingface.family import (
    LAYER_NORM,
    LAYER_NORM_WITHOUT_BIAS,
    Family,
    check_groups,
    head_dim,
)
from planner.interop.huggingface.fields import Fields
from planner.interop.huggingface.llama import ATTENTION_BIAS, always, chosen, every
from planner.model import MLP, Attention, MoE


def mixture(
    experts: str = "num_local_experts",
    top_k: str = "num_experts_per_tok",
    width: str = "intermediate_size",
    shared: Callable[[Fields], int] = lambda fields: 0,
    bias: bool = False,
    shared_bias: str | None = None,
    router_bias: bool = False,
    shared_gate: bool = False,
    score_function: Literal["softmax", "sigmoid"] = "softmax",
    activation: Mapping[str, Any] = MappingProxyType({}),
) -> Callable[[Fields], MoE]:
    """A reader of gated experts of `width` features, with a shared expert of `shared(fields)` features (0: none)."""

    def read(fields: Fields) -> MoE:
        shared_width = shared(fields)
        moe = MoE(
            num_experts=fields.size(experts, "experts"),
            top_k=fields.size(top_k, "experts"),
            expert=MLP(fields.size(width, "ffn"), bias=bias, **activation),
            shared=MLP(shared_width, bias=bool(shared_bias and fields.flag(shared_bias))) if shared_width else None,
            shared_gate=shared_gate and bool(shared_width),
            router_bias=router_bias,
            score_function=score_function,
        )
        if moe.top_k > moe.num_experts:
            raise InputError(
                f"{fields.name}: {top_k} must be at most {experts} ({moe.num_experts}), but is {moe.top_k}."
            )
        return moe

    return read


def several(count: str, width: str) -> Callable[[Fields], int]:
    """`count` shared experts of `width` features each, kept as one MLP."""
    return lambda fields: fields.count(count, "experts") * fields.size(width, "ffn")


def after_dense(key: str) -> Callable[[Fields, int], bool]:
    """The first layers are dense."""
    return lambda fields, index: index >= fields.count(key)


def qwen_sparse(fields: Fields, index: int) -> bool:
    """Every decoder_sparse_step-th layer, less those of mlp_only_layers."""
    step = fields.optional("decoder_sparse_step", "layers") or 1
    return index not in (fields.items("mlp_only_layers") or []) and (index + 1) % step == 0


def _llama4_sparse(fields: Fields, index: int) -> bool:
    given = fields.items("moe_layers")
    if given is not None:
        return index in given
    return (index + 1) % (fields.optional("interleave_moe_layer_step", "layers") or 1) == 0


def _llama4_dense(fields: Fields) -> MLP:
    return MLP(fields.size("intermediate_size_mlp", "ffn"))


def _llama4_chunked(fields: Fields, index: int) -> bool:
    """Layers with rotary positions attend within chunks; every no_rope_layer_interval-th one to everything."""
    return (index + 1) % (fields.optional("no_rope_layer_interval", "layers") or 4) != 0


def _ernie_sparse(fields: Fields, index: int) -> bool:
    last = fields.raw("moe_layer_end_index")
    interval = fields.optional("moe_layer_interval", "layers") or 1
    return (
        (index + 1) % interval == 0
        and index >= fields.count("moe_layer_start_index")
        and (last in (None, -1) or index <= fields.count("moe_layer_end_index"))
    )


def _dbrx_attention(fields: Fields) -> Attention:
    heads = fields.size("num_attention_heads", "heads")
    groups = fields.child("attn_config").optional("kv_n_heads", "heads") or 1
    return Attention(heads, check_groups(fields, heads, groups), head_dim(fields, heads))


def _dbrx_experts(fields: Fields) -> MoE:
    return mixture("moe_num_experts", "moe_top_k", "ffn_hidden_size")(fields.child("ffn_config"))


_BY_LAYER = ("num_experts", "moe_topk")
"""What a Hunyuan config may write as a list with one entry for each layer."""


def _hunyuan_experts(fields: Fields) -> MoE:
    """transformers/models/hunyuan_v1_moe/modeling_hunyuan_v1_moe.py: HunYuanMoEV1Moe; one shared MLP, as wide as an
    expert, whatever num_shared_expert and moe_intermediate_size say."""
    lists = {key: value[0] for key in _BY_LAYER if isinstance(value := fields.raw(key), list) and value}
    alike = fields.with_values(lists)
    return mixture("num_experts", "moe_topk", shared=lambda f: f.size("intermediate_size", "ffn"))(alike)


def _hunyuan_refused(fields: Fields) -> str | None:
    differing = [key for key in _BY_LAYER if isinstance(v := fields.raw(key), list) and any(x != v[0] for x in v)]
    return f"{' and '.join(differing)} that differs from layer to layer is not modelled" if differing else None


_QWEN3_MOE = ATTENTION_BIAS(
    qk_norm="head",
    experts=mixture(width="moe_intermediate_size"),
    is_sparse=qwen_sparse,
)
_DEEPSEEK_LIKE = mixture(
    "n_routed_experts",
    width="moe_intermediate_size",
    shared=several("n_shared_experts", "moe_intermediate_size"),
    score_function="sigmoid",
)
_GLM4_MOE = Family(
    qkv_bias="attention_bias",
    qk_norm=chosen("use_qk_norm", "head"),
    experts=_DEEPSEEK_LIKE,
    is_sparse=after_dense("first_k_dense_replace"),
    rotary=lambda fields: fields.number("partial_rotary_factor", 0.5),
)

_GPT_OSS_ACTIVATION = MappingProxyType({"quick_gelu": True, "clamp": 7.0, "linear_offset": 1.0})
"""transformers/models/gpt_oss/modeling_gpt_oss.py: GptOssExperts (alpha, limit, and up + 1)."""

FAMILIES = {
    "mixtral": Family(experts=mixture(), slides=always),
    "minimax_m2": Family(experts=mixture(score_function="sigmoid"), qk_norm="full"),
    "phimoe": ATTENTION_BIAS(norm=LAYER_NORM, experts=mixture(), head_bias="lm_head_bias", slides=always),
    "granitemoe": ATTENTION_BIAS(experts=mixture()),
    "granitemoeshared": ATTENTION_BIAS(experts=mixture(shared=lambda f: f.count("shared_intermediate_size", "ffn"))),
    "gpt_oss": ATTENTION_BIAS(
        sinks=True,
        experts=mixture(bias=True, router_bias=True, activation=_GPT_OSS_ACTIVATION),
        slides=lambda fields, index: index % 2 == 0,
    ),
    "qwen2_moe": Family(
        qkv_bias="qkv_bias",
        experts=mixture(
            "num_experts",
            width="moe_intermediate_size",
            shared=lambda fields: fields.count("shared_expert_intermediate_size", "ffn"),
            shared_gate=True,
        ),
        is_sparse=qwen_sparse,
    ),
    "qwen3_moe": _QWEN3_MOE,
    "qwen3_vl_moe_text": _QWEN3_MOE,
    "olmoe": ATTENTION_BIAS(qk_norm="full", experts=mixture("num_experts")),
    "flex_olmo": ATTENTION_BIAS(qk_norm="full", experts=mixture("num_experts")),
    "dbrx": Family(
        norm=LAYER_NORM_WITHOUT_BIAS,
        attention=_dbrx_attention,
        experts=_dbrx_experts,
        positions="max_seq_len",
        dropout="resid_pdrop",
    ),
    "glm4_moe": _GLM4_MOE,
    "glm4v_moe_text": replace(_GLM4_MOE, qk_norm="none"),
    "solar_open": Family(qkv_bias="attention_bias", experts=_DEEPSEEK_LIKE),
    "dots1": ATTENTION_BIAS(qk_norm="head", experts=_DEEPSEEK_LIKE, is_sparse=after_dense("first_k_dense_replace")),
    "exaone_moe": Family(
        qk_norm="head",
        slides=every("sliding_window_pattern", 4),
        experts=mixture(
            "num_experts",
            width="moe_intermediate_size",
            shared=several("num_shared_experts", "moe_intermediate_size"),
            score_function="sigmoid",
        ),
        is_sparse=after_dense("first_k_dense_replace"),
    ),
    "llama4_text": ATTENTION_BIAS(
        experts=mixture(shared=lambda fields: fields.size("intermediate_size", "ffn"), score_function="sigmoid"),
        is_sparse=_llama4_sparse,
        mlp=_llama4_dense,
        slides=_llama4_chunked,
        window="attention_chunk_size",
    ),
    "ernie4_5_moe": Family(
        qkv_bias="use_bias",
        output_bias="use_bias",
        mlp_bias="use_bias",
        head_bias="use_bias",
        experts=mixture(
            "moe_num_experts",
            "moe_k",
            "moe_intermediate_size",
            shared=several("moe_num_shared_experts", "moe_intermediate_size"),
            shared_bias="use_bias",
            router_bias=True,
        ),
        is_sparse=_ernie_sparse,
    ),
    "hunyuan_v1_moe": ATTENTION_BIAS(qk_norm="head", experts=_hunyuan_experts, refuse=_hunyuan_refused),
}
