"""A family of models, declared: which keys of its config.json mean what, and how they become a Model.

A setting is a constant, the name of a truth value in the config, or a function of the config's fields. The tables in
gpt.py, llama.py, mixtures.py, latent.py and remote.py declare one Family for each `model_type`.

Sources: transformers/models/<model type>/{configuration,modeling}_<model type>.py, version 5.23; every family there was
checked by counting the parameters of the real classes (tests/data/models/hf_counts.json).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from planner.errors import InputError
from planner.interop.huggingface.fields import Fields
from planner.model import MLP, Attention, LatentAttention, MoE, Norm

Setting = bool | str | Callable[[Fields], bool]

RMS = Norm("RMSNorm")
LAYER_NORM = Norm("LayerNorm", bias=True)
LAYER_NORM_WITHOUT_BIAS = Norm("LayerNorm")


@dataclass(frozen=True)
class Family:
    """What one `model_type` means. Defaults are Llama's."""

    heads: str = "num_attention_heads"
    key_value_heads: str = "num_key_value_heads"
    ffn: str = "intermediate_size"
    ffn_multiple: int | None = None
    """Feed-forward width in hidden sizes where the config leaves it out."""
    vocab: str = "vocab_size"
    positions: str = "max_position_embeddings"
    norm: Norm | Callable[[Fields], Norm] = RMS
    norms: int | Callable[[Fields], int] = 2
    parallel: Setting = False
    qkv_bias: Setting = False
    output_bias: Setting = False
    qk_norm: Any = "none"
    """A QKNorm, or a function of the fields giving one."""
    sinks: bool = False
    gated: Setting = True
    mlp_bias: Setting = False
    activation_parameters: int = 0
    attention: Callable[[Fields], Attention | LatentAttention] | None = None
    """Builds the attention where the keys above do not say it."""
    mlp: Callable[[Fields], MLP] | None = None
    experts: Callable[[Fields], MoE] | None = None
    is_sparse: Callable[[Fields, int], bool] | None = None
    """Whether the layer at an index is a mixture of experts; without it all are, where there are experts."""
    slides: Callable[[Fields, int], bool] | None = None
    """Whether the layer at an index has sliding-window attention, where the config has no `layer_types`."""
    window: str = "sliding_window"
    position: Any = "rope"
    extra_positions: int = 0
    """Rows of the learned position table beyond the positions."""
    rotary: Callable[[Fields], float] = lambda fields: fields.number("partial_rotary_factor", 1.0)
    sub_norms: Callable[[Fields], tuple[int, ...]] | None = None
    head_bias: Setting = False
    embedding_norm: Setting = False
    final_norm: Setting = True
    embedding_width: str | None = None
    dropout: str = "hidden_dropout"
    refuse: Callable[[Fields], str | None] | None = None
    """What this config asks for that is not modelled."""


def resolve(fields: Fields, setting: Any) -> Any:
    """A setting's value: a function's result, else the constant."""
    return setting(fields) if callable(setting) else setting


def flag(fields: Fields, setting: Setting) -> bool:
    """A setting that is true or false."""
    return fields.flag(setting) if isinstance(setting, str) else bool(resolve(fields, setting))


def attention(fields: Fields, family: Family) -> Attention:
    """Multi-head, grouped-query or multi-query attention. Raises InputError when the heads do not divide."""
    heads = fields.size(family.heads, "heads")
    groups = fields.optional(family.key_value_heads, "heads") or heads
    return Attention(
        num_heads=heads,
        num_query_groups=check_groups(fields, heads, groups),
        head_dim=head_dim(fields, heads),
        qkv_bias=flag(fields, family.qkv_bias),
        output_bias=flag(fields, family.output_bias),
        qk_norm=resolve(fields, family.qk_norm),
        sinks=family.sinks,
    )


def head_dim(fields: Fields, heads: int) -> int:
    """Features of one head: given, else hidden size over heads."""
    given = fields.optional("head_dim", "hidden")
    if given is not None:
        return given
    hidden = fields.size("hidden_size", "hidden")
    if hidden % heads:
        raise InputError(
            f"{fields.name}: hidden_size must be a multiple of num_attention_heads ({heads}), but is {hidden}."
        )
    return hidden // heads


def check_groups(fields: Fields, heads: int, groups: int) -> int:
    """The key and value heads, if they divide the query heads. Raises InputError otherwise."""
    if heads % groups:
        raise InputError(
            f"{fields.name}: num_attention_heads must be a multiple of the key and value heads ({groups}), "
            f"but is {heads}."
        )
    return groups
