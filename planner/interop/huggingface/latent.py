"""Families with multi-head latent attention (DeepSeek-V2, arXiv:2405.04434), dense or with experts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Literal

from planner.interop.huggingface.family import Family
from planner.interop.huggingface.fields import Fields
from planner.interop.huggingface.mixtures import after_dense, mixture, several
from planner.model import LatentAttention, MoE


def _latent(fields: Fields) -> LatentAttention:
    heads = fields.size("num_attention_heads", "heads")
    # MiniCPM3's class derives the width of a value where the config leaves it out; the others have a default of 128.
    value_dim = fields.optional("v_head_dim", "hidden") or fields.size("hidden_size", "hidden") // heads
    return LatentAttention(
        num_heads=heads,
        kv_lora_rank=fields.size("kv_lora_rank", "hidden"),
        qk_head_dim=fields.size("qk_nope_head_dim", "hidden"),
        qk_pos_emb_head_dim=fields.size("qk_rope_head_dim", "hidden"),
        v_head_dim=value_dim,
        q_lora_rank=fields.optional("q_lora_rank", "hidden"),
        bias=fields.flag("attention_bias"),
    )


def _experts(score_function: Literal["softmax", "sigmoid"]) -> Callable[[Fields], MoE]:
    """Only DeepSeek-V2 has an mlp_bias; in the other configs it is absent and so false."""
    return mixture(
        "n_routed_experts",
        width="moe_intermediate_size",
        shared=several("n_shared_experts", "moe_intermediate_size"),
        shared_bias="mlp_bias",
        score_function=score_function,
    )


_DEEPSEEK_V2 = Family(
    attention=_latent, mlp_bias="mlp_bias", experts=_experts("softmax"), is_sparse=after_dense("first_k_dense_replace")
)
_DEEPSEEK_V3 = replace(_DEEPSEEK_V2, experts=_experts("sigmoid"))

FAMILIES = {
    "deepseek_v2": _DEEPSEEK_V2,
    "deepseek_v3": _DEEPSEEK_V3,
    "kimi_k2": _DEEPSEEK_V3,
    "glm4_moe_lite": Family(attention=_latent, experts=_experts("sigmoid"), is_sparse=lambda fields, index: index >= 1),
    "minicpm3": Family(attention=_latent, mlp_bias="mlp_bias"),
    "youtu": Family(attention=_latent),
}
