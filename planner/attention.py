"""Which attention kernel runs, and which softmax where the scores are stored."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.implementation import AttentionKernel, Implementation
from planner.model import Attention, LatentAttention, Model

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.workload import Precision

BEFORE_FLASH = ("volta", "turing")
"""Architectures without flash and cuDNN attention: compute capability below 8.0."""
FLASH_PRECISIONS = ("bf16", "fp16", "fp8")
"""Workloads whose attention flash and cuDNN compute; fp8's is in bf16. They take nothing wider (Transformer Engine,
pytorch/attention/dot_product_attention/utils.py: get_attention_backend, "Filter: Data type"; Dao-AILab/flash-attention,
csrc/flash_attn/flash_api.cpp: "FlashAttention only support fp16 and bf16 data type")."""
WIDEST_FLASH_HEAD = 256
HEAD_ALIGNMENT = 8
LONGEST_FUSED_SOFTMAX = 4096
"""Keys that Megatron-Core's own masked softmax takes (megatron/core/fusions/fused_softmax.py)."""
LONGEST_ENGINE_SOFTMAX = 16383
"""Keys that Transformer Engine's takes (pytorch/attention/dot_product_attention/softmax.py)."""


def head_widths(attention: Attention | LatentAttention) -> tuple[int, int]:
    """Width of a head's queries and keys, and of its values."""
    if isinstance(attention, LatentAttention):
        return attention.qk_dim, attention.v_head_dim
    return attention.head_dim, attention.head_dim


def scoring_heads(attention: Attention | LatentAttention, tp: int, cp: int) -> int:
    """Heads whose scores a rank computes, each of whole sequences: scores that are stored go with an all-to-all between
    context-parallel ranks (Ulysses), which gives each a part of the heads."""
    return max(1, attention.num_heads // tp // cp)


def rank_key_width(attention: Attention, tp: int) -> int:
    """Width of the keys on a tensor-parallel rank: its share of the groups, at least one whole group; the values are as
    wide (megatron/core/transformer/attention.py: num_query_groups_per_partition)."""
    return max(attention.key_width // tp, attention.head_dim)


def core_widths(attention: Attention | LatentAttention, tp: int) -> tuple[float, float, float]:
    """Width of the queries, of the keys and values together, and of the outputs on a tensor-parallel rank."""
    query, output = (attention.num_heads * width / tp for width in head_widths(attention))
    if isinstance(attention, LatentAttention):
        return query, query + output, output
    return query, 2.0 * rank_key_width(attention, tp), output


def gathered_projection_width(attention: Attention | LatentAttention, tp: int) -> int:
    """Width of the joint query, key and value projection where it is gathered over tensor parallelism and sliced again:
    ranks that share a group each need the whole group (megatron/core/transformer/attention.py:
    get_query_key_value_tensors, num_query_groups < world_size); else 0."""
    if isinstance(attention, LatentAttention) or attention.num_query_groups >= tp:
        return 0
    return attention.query_width + 2 * attention.key_width


def has_sinks(attention: Attention | LatentAttention) -> bool:
    """Whether the softmax has a learned sink for each head."""
    return isinstance(attention, Attention) and attention.sinks


def heads_without_flash(model: Model, implementation: Implementation) -> list[int]:
    """Widths of heads that no flash kernel takes: wider than 256 or, in Transformer Engine, no multiple of 8 (pytorch/
    attention/dot_product_attention/utils.py: get_attention_backend); the kernels' own package pads the latter."""
    engine = implementation.layer_implementation == "transformer_engine"

    def unserved(width: int) -> bool:
        return width > WIDEST_FLASH_HEAD or (engine and width % HEAD_ALIGNMENT != 0)

    widths = {width for kind in model.layer_kinds for width in head_widths(kind.attention)}
    return sorted(filter(unserved, widths))


def attention_on(
    implementation: Implementation, architecture: str, model: Model, precision: Precision
) -> AttentionKernel:
    """The kernel that `auto` means: cuDNN from Hopper on and for attention sinks, FlashAttention before, and on
    Blackwell in deterministic mode, where cuDNN has no deterministic backward (nor, on any card, one for sinks);
    unfused where neither runs (Transformer Engine, pytorch/attention/dot_product_attention/utils.py:
    get_attention_backend). A kernel that was named where none runs is counted as unfused too: rules say that the launch
    breaks (`flash-attention-card`, `flash-attention-heads`, `flash-attention-precision`), and its numbers are those of
    the launch that does not."""
    if architecture in BEFORE_FLASH or heads_without_flash(model, implementation) or precision not in FLASH_PRECISIONS:
        return "unfused"
    if implementation.attention != "auto":
        return implementation.attention
    if model.has_sinks:
        return "unfused" if implementation.deterministic else "fused"
    newer = architecture == "hopper" or (architecture == "blackwell" and not implementation.deterministic)
    return "fused" if newer else "flash"


def default_attention(model: Model, cluster: Cluster | None = None) -> tuple[AttentionKernel, str]:
    """The kernel of a question that names none, and why where it is not flash attention: what the model's heads and,
    where it is known, every card of the cluster can run."""
    old = sorted({g.card.name for g in cluster.groups if g.card.architecture in BEFORE_FLASH}) if cluster else []
    if old:
        return "unfused", f"flash attention needs Ampere or newer, which {', '.join(old)} is not"
    widths = heads_without_flash(model, Implementation())
    if widths:
        return "unfused", f"flash attention takes no heads of {' and '.join(map(str, widths))}, which {model.name} has"
    if model.has_sinks:
        return "fused", f"flash attention has no sinks, which {model.name} has"
    return "flash", ""


def fuses_softmax(implementation: Implementation, seq: int, batch_heads: int, sinks: bool, element: int) -> bool:
    """Whether stored scores of sequences of `seq` tokens, for so many heads times sequences on a rank, go through a
    fused scale, mask and softmax kernel; else PyTorch's runs in fp32. `element`: bytes of a score.

    Megatron-Core's kernel: fusions/fused_softmax.py: is_kernel_available (--no-masked-softmax-fusion turns it off);
    Transformer Engine's: pytorch/attention/dot_product_attention/softmax.py: FusedScaleMaskSoftmax, which only its own
    environment variable turns off. Both take scores of 16 bits; a column of sinks fits neither.
    """
    if sinks or element > 2 or batch_heads % 4:
        return False
    if implementation.layer_implementation == "transformer_engine":
        return 16 < seq <= LONGEST_ENGINE_SOFTMAX and seq % 8 == 0
    return implementation.masked_softmax_fusion and 16 < seq <= LONGEST_FUSED_SOFTMAX and seq % 4 == 0
