"""What of a model's shape decides how it can be laid out: widths, key-value heads, and the tensor-parallel sizes that
the rules allow."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from planner.attention import default_attention
from planner.implementation import Implementation
from planner.layout import Layout
from planner.model import MLP, Attention, LatentAttention, Model, MoE
from planner.reports.blocks import Table
from planner.reports.filled import filled
from planner.rules import broken_rules
from planner.workload import Workload

LARGEST_TP = 64
"""The largest power of two in an NVLink domain of 72, the largest one there is."""
NOTE = (
    f"Legal TP: sizes up to {LARGEST_TP} that break no rule at the training context, with sequence parallelism and "
    "whole experts (ETP 1). Where TP exceeds the KV heads (num_query_groups), each is copied to several ranks, whose "
    "keys and values shrink no further."
)
"""megatron/core/transformer/attention.py: get_query_key_value_tensors gathers the projection and takes a group."""


def shape(model: Model) -> dict[str, Any]:
    """JSON-able; lists, ascending, for layers of several kinds may differ."""
    attentions = [layer.attention for layer in model.layer_kinds]
    groups = {a.num_query_groups for a in attentions if isinstance(a, Attention)}
    dense = {layer.mlp.ffn_hidden_size for layer in model.layer_kinds if isinstance(layer.mlp, MLP)}
    experts = [layer.mlp for layer in model.layer_kinds if isinstance(layer.mlp, MoE)]
    legal = legal_tp(model)
    return {
        "num_query_groups": sorted(groups),
        "latent_attention": any(isinstance(a, LatentAttention) for a in attentions),
        "ffn_hidden_size": sorted(dense),
        "num_experts": sorted({e.num_experts for e in experts}),
        "moe_ffn_hidden_size": sorted({e.expert.ffn_hidden_size for e in experts}),
        "moe_shared_expert_ffn_hidden_size": sorted({e.shared.ffn_hidden_size for e in experts if e.shared}),
        "legal_tp": legal,
        "legal_tp_replicating_key_value_heads": [tp for tp in legal if groups and tp > min(groups)],
    }


def legal_tp(model: Model) -> list[int]:
    """Tensor-parallel sizes up to LARGEST_TP that break no rule at the model's training context, with sequence
    parallelism, which mixtures need, and the choices that `planner.question.ask` makes for the model."""
    kernel, _ = default_attention(model)
    implementation = Implementation(attention=kernel, bias_dropout_fusion=not model.has_expert_biases)
    workload = Workload(model.max_positions, global_batch=1)

    def legal(tp: int) -> bool:
        return not broken_rules(model, workload, implementation, Layout(tp=tp, sequence_parallel=tp > 1))

    return [tp for tp in range(1, LARGEST_TP + 1) if legal(tp)]


def shapes_table(models: Sequence[Model], shapes: Sequence[dict[str, Any]]) -> Table:
    """One line for each model."""
    rows = [
        (
            model.name,
            _numbers(s["num_query_groups"]) or "latent",
            _numbers(s["ffn_hidden_size"]),
            _numbers(s["num_experts"]),
            _numbers(s["moe_ffn_hidden_size"]),
            _numbers(s["moe_shared_expert_ffn_hidden_size"]),
            f"{model.max_positions:,}",
            _legal(s),
        )
        for model, s in zip(models, shapes, strict=True)
    ]
    columns = (
        "<model",
        "KV heads",
        "FFN",
        "experts",
        "expert FFN",
        "shared FFN",
        "training context",
        "<legal TP",
    )
    return filled(columns, rows)


def _legal(shape: dict[str, Any]) -> str:
    """The sizes, those at which key-value heads are copied apart."""
    copied = shape["legal_tp_replicating_key_value_heads"]
    whole = _numbers([tp for tp in shape["legal_tp"] if tp not in copied])
    verb = "replicates" if len(copied) == 1 else "replicate"
    return f"{whole}; {_numbers(copied)} {verb} KV heads" if copied else whole


def _numbers(values: Sequence[int]) -> str:
    return ", ".join(map(str, values))
