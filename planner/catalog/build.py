"""From a catalogue entry (a flat mapping, see schema.py for its fields) to a Model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE, Norm


def build(spec: Mapping[str, Any], name: str) -> Model:
    """The model of a well-formed entry: a built-in one, which a test validates, or a user's after `validated`."""
    layers = int(spec["num_layers"])
    dense = _mlp(spec) if "ffn_hidden_size" in spec else None
    moe = spec.get("moe")
    experts = _experts(moe) if moe else None
    attention = _attention(spec)
    kinds: dict[Layer, int] = {}
    pattern = []
    for index in range(layers):
        mlp = experts if moe and _is_sparse(moe, index) else dense
        assert mlp is not None, "the schema requires ffn_hidden_size where a layer is dense"
        layer = Layer(
            attention=_windowed(spec, attention, index),
            mlp=mlp,
            norms=spec.get("norms_per_layer", 2),
            parallel=spec.get("parallel_layers", False),
        )
        pattern.append(kinds.setdefault(layer, len(kinds)))
    norm_type = spec.get("norm", "RMSNorm")
    positions = spec.get("max_positions", 4096)
    position = spec.get("position", "rope")
    width = spec.get("embedding_width")
    return Model(
        name=name,
        hidden_size=spec["hidden_size"],
        vocab_size=spec["vocab_size"],
        layer_kinds=tuple(kinds),
        pattern=tuple(pattern),
        norm=Norm(norm_type, spec.get("norm_bias", norm_type == "LayerNorm"), spec.get("norm_weight", True)),
        max_positions=positions,
        position=position,
        learned_positions=spec.get("learned_positions", positions) if position == "learned" else 0,
        rotary_percent=spec.get("rotary_percent", 1.0),
        tied=spec.get("tied", False),
        head_bias=spec.get("head_bias", False),
        final_norm=spec.get("final_norm", True),
        embedding_norm=spec.get("embedding_norm", False),
        embedding_width=width if width != spec["hidden_size"] else None,
        mtp_num_layers=spec.get("mtp_num_layers", 0),
        dropout=spec.get("dropout", 0.0),
        given_parameters=spec.get("given_parameters"),
        source=spec.get("source", ""),
        aliases=tuple(spec.get("aliases", ())),
    )


def _attention(spec: Mapping[str, Any]) -> Attention | LatentAttention:
    heads = spec["num_attention_heads"]
    latent = spec.get("mla")
    if latent:
        return LatentAttention(num_heads=heads, **latent)
    return Attention(
        num_heads=heads,
        num_query_groups=spec.get("num_query_groups") or heads,
        head_dim=spec.get("head_dim") or spec["hidden_size"] // heads,
        qkv_bias=spec.get("qkv_bias", False),
        output_bias=spec.get("output_bias", False),
        qk_norm=spec.get("qk_norm", "none"),
        sinks=spec.get("attention_sinks", False),
    )


def _windowed(
    spec: Mapping[str, Any], attention: Attention | LatentAttention, index: int
) -> Attention | LatentAttention:
    window = spec.get("window")
    if not window or isinstance(attention, LatentAttention):
        return attention
    pattern = spec.get("window_pattern", "w")
    return replace(attention, window=window) if pattern[index % len(pattern)] == "w" else attention


def _mlp(spec: Mapping[str, Any]) -> MLP:
    return MLP(
        spec["ffn_hidden_size"],
        gated=spec.get("gated_mlp", True),
        bias=spec.get("mlp_bias", False),
        activation_parameters=spec.get("activation_parameters", 0),
    )


def _experts(moe: Mapping[str, Any]) -> MoE:
    gated, bias = moe.get("gated_mlp", True), moe.get("bias", False)
    shared = moe.get("shared_ffn_hidden_size")
    return MoE(
        num_experts=moe["num_experts"],
        top_k=moe["top_k"],
        expert=MLP(
            moe["ffn_hidden_size"],
            gated=gated,
            bias=bias,
            quick_gelu=moe.get("quick_gelu", False),
            clamp=moe.get("clamp"),
            linear_offset=moe.get("linear_offset", 0.0),
        ),
        shared=MLP(shared, gated=gated, bias=bias) if shared else None,
        shared_gate=moe.get("shared_gate", False),
        router_bias=moe.get("router_bias", False),
        score_function=moe.get("score_function", "softmax"),
    )


def _is_sparse(moe: Mapping[str, Any], index: int) -> bool:
    return index >= moe.get("first_dense_layers", 0) and (index + 1) % moe.get("every", 1) == 0
