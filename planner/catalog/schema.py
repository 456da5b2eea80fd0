"""The fields of a catalogue entry, for users' files: every mistake is found and named at once.

pydantic is imported here and this module only for users' files, because the built-in entries are validated by a test.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from planner.errors import InputError, nearest

Width = Field(ge=1, le=2**21)
Count = Field(ge=1, le=2**14)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class LatentFields(_Strict):
    """Multi-head latent attention."""

    kv_lora_rank: int = Width
    qk_head_dim: int = Width
    qk_pos_emb_head_dim: int = Width
    v_head_dim: int = Width
    q_lora_rank: int | None = Field(default=None, ge=1, le=2**21)
    latent_norms: bool = True
    bias: bool = False


class MoEFields(_Strict):
    """A mixture of experts in every layer, or in every `every`-th after `first_dense_layers`."""

    num_experts: int = Count
    top_k: int = Count
    ffn_hidden_size: int = Width
    shared_ffn_hidden_size: int | None = Field(default=None, ge=1, le=2**21)
    shared_gate: bool = False
    router_bias: bool = False
    score_function: Literal["softmax", "sigmoid"] = "softmax"
    gated_mlp: bool = True
    bias: bool = False
    quick_gelu: bool = False
    clamp: float | None = Field(default=None, gt=0, le=2**16)
    """The activation's inputs are clamped to this by kernels of their own (GPT-OSS)."""
    linear_offset: float = Field(default=0.0, ge=-(2**16), le=2**16)
    first_dense_layers: int = Field(default=0, ge=0, le=2**12)
    every: int = Field(default=1, ge=1, le=2**12)

    @model_validator(mode="after")
    def _top_k(self) -> MoEFields:
        if self.top_k > self.num_experts:
            raise ValueError(f"top_k must be at most num_experts ({self.num_experts}), but is {self.top_k}")
        return self


class ModelFields(_Strict):
    """One model. Sizes are features, layers, heads or tokens."""

    name: str | None = None
    aliases: list[str] = []
    source: str = ""
    parameters: int | None = Field(default=None, ge=1, le=2**60)
    """What the count must come to; checked."""
    given_parameters: int | None = Field(default=None, ge=1, le=2**60)
    hidden_size: int = Field(ge=1, le=2**18)
    num_layers: int = Field(ge=1, le=2**12)
    num_attention_heads: int = Field(ge=1, le=2**12)
    vocab_size: int = Field(ge=1, le=2**23)
    ffn_hidden_size: int | None = Field(default=None, ge=1, le=2**21)
    num_query_groups: int | None = Field(default=None, ge=1, le=2**12)
    head_dim: int | None = Field(default=None, ge=1, le=2**18)
    max_positions: int = Field(default=4096, ge=1, le=2**28)
    learned_positions: int | None = Field(default=None, ge=1, le=2**28)
    position: Literal["rope", "learned", "alibi", "none"] = "rope"
    rotary_percent: float = Field(default=1.0, gt=0, le=1)
    norm: Literal["RMSNorm", "LayerNorm"] = "RMSNorm"
    norm_bias: bool = False
    norm_weight: bool = True
    norms_per_layer: Literal[1, 2, 4] = 2
    parallel_layers: bool = False
    gated_mlp: bool = True
    mlp_bias: bool = False
    activation_parameters: int = Field(default=0, ge=0, le=16)
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: Literal["none", "head", "heads", "full"] = "none"
    attention_sinks: bool = False
    window: int | None = Field(default=None, ge=1, le=2**28)
    window_pattern: str = Field(default="w", pattern="^[wf]{1,512}$")
    """Repeated over the layers: w has the window, f attends to everything."""
    tied: bool = False
    head_bias: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    embedding_width: int | None = Field(default=None, ge=1, le=2**18)
    mtp_num_layers: int = Field(default=0, ge=0, le=16)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    mla: LatentFields | None = None
    moe: MoEFields | None = None

    @model_validator(mode="after")
    def _consistent(self) -> ModelFields:
        heads, groups = self.num_attention_heads, self.num_query_groups
        wrong = []
        if groups and heads % groups:
            wrong.append(f"num_attention_heads must be a multiple of num_query_groups ({groups}), but is {heads}")
        if not self.head_dim and not self.mla and self.hidden_size % heads:
            wrong.append(
                f"hidden_size must be a multiple of num_attention_heads ({heads}) where head_dim is not given, "
                f"but is {self.hidden_size}"
            )
        if self.ffn_hidden_size is None and (self.moe is None or self.moe.first_dense_layers or self.moe.every > 1):
            wrong.append("ffn_hidden_size is required, because a layer is dense")
        if wrong:
            raise ValueError("; ".join(wrong))
        return self


def validated(spec: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A user's entry, checked; only the fields that it gives. Raises InputError naming every wrong field."""
    try:
        fields = ModelFields.model_validate(dict(spec))
    except ValidationError as error:
        mistakes = [_mistake(item) for item in error.errors(include_url=False)]
        more = f"; and {len(mistakes) - 20} more" if len(mistakes) > 20 else ""
        raise InputError(f"{name}: {'; '.join(mistakes[:20])}{more}.") from None
    return fields.model_dump(exclude_unset=True, exclude_none=True)


def _mistake(item: Any) -> str:
    where = ".".join(str(part) for part in item["loc"])
    kind, given = item["type"], " ".join(repr(item.get("input")).split())[:60]
    if kind == "extra_forbidden":
        owner = MoEFields if where.startswith("moe.") else LatentFields if where.startswith("mla.") else ModelFields
        close = nearest(str(item["loc"][-1])[:60], owner.model_fields, count=1)
        return f"{where[:80]} is not a field" + (f" (did you mean {close[0]}?)" if close else "")
    if kind == "missing":
        return f"{where} is required"
    message = item["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
    return f"{where} {message}, but is {given}" if where and "but is" not in message else message
