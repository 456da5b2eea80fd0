"""Families whose code lives beside their weights (`trust_remote_code`), checked against their published totals
(internlm and jais against the total in their names only)."""

from __future__ import annotations

from planner.interop.huggingface.family import LAYER_NORM, RMS, Family, check_groups
from planner.interop.huggingface.fields import Fields
from planner.interop.huggingface.llama import LLAMA
from planner.interop.huggingface.mixtures import after_dense, mixture, several
from planner.model import MLP, Attention, Norm, Position


def _chatglm_attention(fields: Fields) -> Attention:
    heads = fields.size("num_attention_heads", "heads")
    groups = fields.size("multi_query_group_num", "heads") if fields.flag("multi_query_attention") else heads
    linear = fields.flag("add_bias_linear")
    return Attention(
        heads,
        check_groups(fields, heads, groups),
        fields.optional("kv_channels", "hidden") or fields.size("hidden_size", "hidden") // heads,
        qkv_bias=fields.flag("add_qkv_bias") or linear,
        output_bias=linear,
    )


def _chatglm_norm(fields: Fields) -> Norm:
    return LAYER_NORM if fields.raw("rmsnorm") is False else RMS


def _qwen_mlp(fields: Fields) -> MLP:
    """Qwen 1 writes the width of both up projections together."""
    return MLP(fields.size("intermediate_size", "ffn") // 2)


def _alibi_unless_positions(fields: Fields) -> Position:
    """Baichuan-7B has rotary positions and max_position_embeddings, Baichuan-13B ALiBi and model_max_length."""
    return "rope" if "max_position_embeddings" in fields.config else "alibi"


def _jais_refused(fields: Fields) -> str | None:
    if fields.raw("activation_function") != "swiglu" or fields.raw("position_embedding_type") != "alibi":
        return "of the jais models only those with swiglu and alibi are modelled"
    return None


FAMILIES = {
    "internlm": Family(qkv_bias="bias", output_bias="bias"),
    "internlm2": Family(qkv_bias="bias", output_bias="bias"),
    "baichuan": Family(position=_alibi_unless_positions),
    "chatglm": Family(
        vocab="padded_vocab_size",
        ffn="ffn_hidden_size",
        positions="seq_length",
        norm=_chatglm_norm,
        attention=_chatglm_attention,
        mlp_bias="add_bias_linear",
        rotary=lambda fields: 0.5,
    ),
    "qwen": Family(qkv_bias=True, mlp=_qwen_mlp, positions="seq_length"),
    "exaone": LLAMA,
    "deepseek": Family(
        experts=mixture(
            "n_routed_experts",
            width="moe_intermediate_size",
            shared=several("n_shared_experts", "moe_intermediate_size"),
        ),
        is_sparse=after_dense("first_k_dense_replace"),
    ),
    "jais": Family(
        ffn="n_inner",
        ffn_multiple=4,
        positions="n_positions",
        norm=LAYER_NORM,
        qkv_bias=True,
        output_bias=True,
        mlp_bias=True,
        position="alibi",
        refuse=_jais_refused,
        dropout="resid_pdrop",
    ),
}
