"""What a transformer is: a sequence of layers of a few kinds between an embedding and a head.

A model is described by its architecture alone. How it is computed is `implementation.py`, on what batch is
`workload.py`, over which GPUs is `layout.py`. Names are those of Megatron-Core's TransformerConfig.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property
from typing import Literal

NormType = Literal["RMSNorm", "LayerNorm"]
QKNorm = Literal["none", "head", "heads", "full"]
Position = Literal["rope", "learned", "alibi", "none"]


@dataclass(frozen=True, slots=True)
class Norm:
    """A normalisation: RMSNorm has a weight, LayerNorm a weight and a bias, a non-parametric one (OLMo) neither."""

    type: NormType = "RMSNorm"
    bias: bool = False
    weight: bool = True

    def parameters(self, width: int) -> int:
        """Parameters of a norm over `width` features."""
        return width * (self.weight + self.bias)


@dataclass(frozen=True, slots=True)
class Attention:
    """Softmax attention with `num_heads` query heads in `num_query_groups` groups of shared keys and values."""

    num_heads: int
    num_query_groups: int
    head_dim: int
    qkv_bias: bool = False
    output_bias: bool = False
    qk_norm: QKNorm = "none"
    """head: one norm of head_dim shared by all heads (Qwen3, Gemma 3); heads: head_dim weights for each head
    (Cohere R+); full: over the whole projection (OLMo 2)."""
    sinks: bool = False
    """One learned logit for each head (GPT-OSS)."""
    window: int | None = None
    """Sliding window in tokens; None attends to every earlier token."""

    @property
    def query_width(self) -> int:
        return self.num_heads * self.head_dim

    @property
    def key_width(self) -> int:
        """Width of the keys; the values are as wide."""
        return self.num_query_groups * self.head_dim


@dataclass(frozen=True, slots=True)
class LatentAttention:
    """Multi-head latent attention (DeepSeek-V2, arXiv:2405.04434): keys and values from a low-rank latent."""

    num_heads: int
    kv_lora_rank: int
    qk_head_dim: int
    qk_pos_emb_head_dim: int
    v_head_dim: int
    q_lora_rank: int | None = None
    """None projects the query from the hidden state directly (DeepSeek-V2-Lite)."""
    latent_norms: bool = True
    """A norm after each down projection (`qk_layernorm` in Megatron)."""
    bias: bool = False
    """Biases of the down projections and of the output projection (`attention_bias` of DeepSeek's config)."""

    @property
    def qk_dim(self) -> int:
        """Width of one query or key head: the part without and the part with rotary position."""
        return self.qk_head_dim + self.qk_pos_emb_head_dim


@dataclass(frozen=True, slots=True)
class MLP:
    """A feed-forward block; `gated` has a second up projection (SwiGLU, GeGLU)."""

    ffn_hidden_size: int
    gated: bool = True
    bias: bool = False
    activation_parameters: int = 0
    """Learned scalars of the activation function (xIELU in Apertus has two)."""
    quick_gelu: bool = False
    """Gated by x sigmoid(1.702 x) rather than by SiLU or GELU (GPT-OSS)."""
    clamp: float | None = None
    """Both halves of the up projection are clamped to this by kernels of their own before the activation (quick-GEGLU
    of GPT-OSS). The kernel of a fused SwiGLU clamps within, which changes nothing here."""
    linear_offset: float = 0.0
    """Added to the linear half (GPT-OSS)."""

    @property
    def clamped(self) -> bool:
        return self.clamp is not None


@dataclass(frozen=True, slots=True)
class MoE:
    """A mixture of experts: each token goes to `top_k` of `num_experts` MLPs, and to the shared one if there is one."""

    num_experts: int
    top_k: int
    expert: MLP
    shared: MLP | None = None
    shared_gate: bool = False
    """A learned gate of one output on the shared expert (Qwen2-MoE)."""
    router_bias: bool = False
    """A learned bias of the router (GPT-OSS). DeepSeek-V3's correction bias is a buffer, not a parameter; ERNIE 4.5
    keeps it as a parameter."""
    score_function: Literal["softmax", "sigmoid"] = "softmax"
    """How the router turns logits into scores; a sigmoid router (DeepSeek-V3) keeps all of them for backward."""


@dataclass(frozen=True, slots=True)
class Layer:
    """One kind of decoder layer: attention and an MLP or a mixture of experts, with their norms."""

    attention: Attention | LatentAttention
    mlp: MLP | MoE
    norms: int = 2
    """Norms of hidden width: 2 before attention and MLP; 1 where both share it; 4 with norms after each (Gemma 2)."""
    parallel: bool = False
    """Attention and MLP read the same input (GPT-J, Falcon)."""
    sub_norms: tuple[int, ...] = ()
    """Widths of further norms inside attention and MLP (BitNet, before both output projections)."""

    @property
    def kind(self) -> Literal["dense", "moe"]:
        return "moe" if isinstance(self.mlp, MoE) else "dense"


@dataclass(frozen=True, eq=False)
class Model:
    """A decoder-only transformer. Compared and hashed by identity, so that it is a cheap key of caches."""

    name: str
    hidden_size: int
    vocab_size: int
    layer_kinds: tuple[Layer, ...]
    pattern: tuple[int, ...]
    """For each decoder layer in order, its index in `layer_kinds`."""
    norm: Norm = Norm()
    max_positions: int = 4096
    """Training context in tokens."""
    position: Position = "rope"
    learned_positions: int = 0
    """Rows of the learned position table (OPT has 2 more than positions)."""
    rotary_percent: float = 1.0
    tied: bool = False
    """The head is the transposed embedding."""
    head_bias: bool = False
    final_norm: bool = True
    embedding_norm: bool = False
    """A norm after the embedding (BLOOM)."""
    embedding_width: int | None = None
    """Width of the token embedding where it differs from hidden_size and is projected (OPT-350M)."""
    mtp_num_layers: int = 0
    """Multi-token-prediction modules (DeepSeek-V3). They are extra to the published parameter count."""
    dropout: float = 0.0
    """Hidden and attention dropout that the model was trained with; it costs activation memory."""
    given_parameters: int | None = None
    """A parameter count that is given rather than derived (`13b-rule-of-thumb`)."""
    source: str = ""
    notes: tuple[str, ...] = ()
    """What was assumed or left out while reading the model, one sentence each, for the report's assumptions."""
    aliases: tuple[str, ...] = field(default=(), repr=False)

    @property
    def num_layers(self) -> int:
        return len(self.pattern)

    @cached_property
    def layers(self) -> tuple[Layer, ...]:
        """Every decoder layer, in order."""
        return tuple(self.layer_kinds[k] for k in self.pattern)

    @cached_property
    def kind_counts(self) -> tuple[int, ...]:
        """Decoder layers of each kind."""
        return tuple(self.pattern.count(k) for k in range(len(self.layer_kinds)))

    @property
    def mtp_layer(self) -> Layer:
        """The kind of layer inside each multi-token-prediction module: the last decoder layer's
        (megatron/core/models/gpt/gpt_layer_specs.py: get_gpt_mtp_block_spec)."""
        return self.layers[-1]

    @property
    def is_moe(self) -> bool:
        return any(layer.kind == "moe" for layer in self.layer_kinds)

    @property
    def has_expert_biases(self) -> bool:
        """Some layer's experts have biases."""
        return any(isinstance(k.mlp, MoE) and k.mlp.expert.bias for k in self.layer_kinds)

    @property
    def has_sinks(self) -> bool:
        """Some layer's attention has learned sinks."""
        return any(isinstance(k.attention, Attention) and k.attention.sinks for k in self.layer_kinds)

    @property
    def narrowest_window(self) -> int | None:
        """Tokens of the narrowest sliding window; None where every layer attends to all."""
        windows = [k.attention.window for k in self.layer_kinds if isinstance(k.attention, Attention)]
        return min((window for window in windows if window is not None), default=None)

    @property
    def rotary_dim(self) -> int:
        """Rotary features of one head (0 without rotary positions)."""
        if self.position != "rope":
            return 0
        attention = self.layer_kinds[0].attention
        if isinstance(attention, LatentAttention):
            return attention.qk_pos_emb_head_dim
        return int(attention.head_dim * self.rotary_percent)
