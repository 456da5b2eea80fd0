"""Rules about what tensor, sequence and context parallelism must divide."""

from __future__ import annotations

from dataclasses import replace

from planner.attention import BEFORE_FLASH, FLASH_PRECISIONS, heads_without_flash
from planner.model import MLP, Attention, LatentAttention
from planner.rules.rule import Case, Rule, close_to, dividing_sequences, divisors


def _heads(c: Case) -> list[int]:
    return sorted({a.num_heads for a in c.attentions})


def _common_divisors(values: list[int]) -> list[int]:
    return [d for d in divisors(values[0]) if all(v % d == 0 for v in values)] if values else [1]


def _numbers(values: list[int]) -> str:
    return " and ".join(map(str, values))


HEADS = Rule(
    "tensor-heads",
    "num_attention_heads must be divisible by tp",
    "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__",
    ("tp",),
    lambda c: all(n % c.layout.tp == 0 for n in _heads(c)),
    lambda c: f"num_attention_heads is {_numbers(_heads(c))} and tp is {c.layout.tp}",
    lambda c: _nearest_tp(c),
)


def _groups(c: Case) -> list[int]:
    return sorted({a.num_query_groups for a in c.attentions if isinstance(a, Attention)})


def _groups_fit(groups: int, tp: int) -> bool:
    return groups % tp == 0 or tp % groups == 0


QUERY_GROUPS = Rule(
    "tensor-query-groups",
    "num_query_groups must be a multiple or a divisor of tp",
    "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__; transformer/attention.py",
    ("tp",),
    lambda c: all(_groups_fit(g, c.layout.tp) for g in _groups(c)),
    lambda c: f"num_query_groups is {_numbers(_groups(c))} and tp is {c.layout.tp}",
    lambda c: _nearest_tp(c),
)


def _widths(c: Case) -> list[int]:
    """Feed-forward widths that tensor parallelism splits: dense MLPs and shared experts."""
    dense = {k.mlp.ffn_hidden_size for k in c.kinds if isinstance(k.mlp, MLP)}
    return sorted(dense | {e.shared.ffn_hidden_size for e in c.experts if e.shared})


FFN = Rule(
    "tensor-ffn",
    "ffn_hidden_size must be divisible by tp",
    "megatron/core/tensor_parallel/layers.py: ColumnParallelLinear (divide)",
    ("tp",),
    lambda c: all(w % c.layout.tp == 0 for w in _widths(c)),
    lambda c: f"ffn_hidden_size is {_numbers(_widths(c))} and tp is {c.layout.tp}",
    lambda c: _nearest_tp(c),
)


def _latent_ranks(c: Case) -> list[int]:
    """Latent ranks that tp splits: Megatron's local spec splits the down projections, Transformer Engine's does not."""
    if c.implementation.layer_implementation != "local":
        return []
    latent = [a for a in c.attentions if isinstance(a, LatentAttention)]
    return sorted({a.kv_lora_rank for a in latent} | {a.q_lora_rank for a in latent if a.q_lora_rank})


LATENT = Rule(
    "tensor-latent-rank",
    "the latent ranks of MLA must be divisible by tp where they are split",
    "megatron/core/models/gpt/gpt_layer_specs.py: get_gpt_layer_local_spec; transformer/multi_latent_attention.py",
    ("tp",),
    lambda c: all(r % c.layout.tp == 0 for r in _latent_ranks(c)),
    lambda c: f"the latent ranks are {_numbers(_latent_ranks(c))} and tp is {c.layout.tp}",
)
MTP = Rule(
    "tensor-mtp-projection",
    "hidden_size must be divisible by tp where a multi-token-prediction module projects to it",
    "megatron/core/transformer/multi_token_prediction.py: MultiTokenPredictionLayer (eh_proj)",
    ("tp",),
    lambda c: c.model.mtp_num_layers == 0 or c.model.hidden_size % c.layout.tp == 0,
    lambda c: f"hidden_size is {c.model.hidden_size} and tp is {c.layout.tp}",
)
_OF_THE_MODEL = (HEADS, QUERY_GROUPS, FFN, LATENT, MTP)
"""Rules that a model alone lays on tp."""


def _nearest_tp(c: Case) -> str:
    """The degrees next to this one that keep all of them, and where the number of GPUs is known divide it."""

    def keeps(tp: int) -> bool:
        other = replace(c, layout=replace(c.layout, tp=tp))
        return (c.world_size or tp) % tp == 0 and all(rule.holds(other) for rule in _OF_THE_MODEL)

    found = close_to(c.layout.tp, [d for d in _common_divisors(_heads(c)) if keeps(d)])
    return f"the nearest legal tp is {found}" if found else ""


SEQUENCE_NEEDS_TENSOR = Rule(
    "sequence-needs-tensor",
    "sequence parallelism needs tp > 1",
    "megatron/core/model_parallel_config.py: ModelParallelConfig.__post_init__",
    ("tp", "sequence_parallel"),
    lambda c: not c.layout.sequence_parallel or c.layout.tp > 1,
    lambda c: f"tp is {c.layout.tp}",
)


def _tp_comm_overlap(c: Case) -> bool:
    return not c.implementation.tp_comm_overlap or c.layout.tp == 1 or c.layout.sequence_parallel


TENSOR_OVERLAP = Rule(
    "tensor-overlap-needs-sequence",
    "overlapping tensor-parallel communication needs sequence parallelism",
    "megatron/training/arguments.py: validate_args (tp_comm_overlap)",
    ("tp", "sequence_parallel"),
    _tp_comm_overlap,
    lambda c: f"tp is {c.layout.tp} without sequence parallelism",
)
WHOLE_VOCABULARY = Rule(
    "tensor-loss",
    "a loss that is fused with the head (liger) needs the whole vocabulary on each GPU: tp 1",
    "Liger-Kernel, ops/fused_linear_cross_entropy.py: fused_linear_cross_entropy_forward",
    ("tp",),
    lambda c: c.implementation.cross_entropy != "liger" or c.layout.tp == 1,
    lambda c: f"tp is {c.layout.tp}",
)
SEQUENCE_DIVIDES = Rule(
    "sequence-divides",
    "under sequence parallelism, seq_length / cp must be divisible by tp",
    "megatron/core/tensor_parallel/mappings.py: _split_along_first_dim (found only while running)",
    ("tp", "cp", "sequence_parallel"),
    lambda c: not c.layout.sequence_parallel or c.workload.seq_length % (c.layout.tp * c.layout.cp) == 0,
    lambda c: f"seq_length is {c.workload.seq_length}, cp is {c.layout.cp} and tp is {c.layout.tp}",
    dividing_sequences,
)


def _without_flash(c: Case) -> list[str]:
    if c.cluster is None or c.implementation.attention in ("auto", "unfused"):
        return []
    return sorted({g.card.name for g in c.cluster.groups if g.card.architecture in BEFORE_FLASH})


FLASH_CARD = Rule(
    "flash-attention-card",
    "flash and cuDNN attention need compute capability 8.0 (Ampere) or newer",
    "TransformerEngine pytorch/attention/dot_product_attention/utils.py: get_attention_backend",
    (),
    lambda c: not _without_flash(c),
    lambda c: f"attention is {c.implementation.attention} and {', '.join(_without_flash(c))} has no kernel for it",
    lambda c: "unfused would do",
)
FLASH_HEADS = Rule(
    "flash-attention-heads",
    "flash and cuDNN attention take heads of up to 256 and, in Transformer Engine, multiples of 8",
    "TransformerEngine pytorch/attention/dot_product_attention/utils.py: get_attention_backend",
    (),
    lambda c: c.implementation.attention in ("auto", "unfused") or not heads_without_flash(c.model, c.implementation),
    lambda c: (
        f"attention is {c.implementation.attention} and {c.model.name} has heads of "
        f"{' and '.join(map(str, heads_without_flash(c.model, c.implementation)))}"
    ),
    lambda c: "unfused would do",
)
FLASH_PRECISION = Rule(
    "flash-attention-precision",
    "flash and cuDNN attention compute in 16 bits or fewer",
    "TransformerEngine pytorch/attention/dot_product_attention/utils.py: get_attention_backend (qkv_dtype)",
    (),
    lambda c: c.implementation.attention in ("auto", "unfused") or c.workload.precision in FLASH_PRECISIONS,
    lambda c: f"attention is {c.implementation.attention} and the precision is {c.workload.precision}",
    lambda c: "unfused would do",
)
BEFORE_BLACKWELL = ("volta", "turing", "ampere", "ada", "hopper")


def _one_connection(c: Case) -> bool:
    """Whether Megatron's check of the variable passes, as far as the launch and the cards are known."""
    given, layout, i = c.implementation.device_max_connections, c.layout, c.implementation
    if given in (None, 1) or max(layout.tp, layout.cp) == 1 or c.fsdp or i.framework != "megatron":
        return True
    older = c.cluster is not None and any(g.card.architecture in BEFORE_BLACKWELL for g in c.cluster.groups)
    return i.overlap_moe_expert_parallel_comm or not older


ONE_CONNECTION = Rule(
    "device-connections",
    "before Blackwell, tp > 1 and cp > 1 need CUDA_DEVICE_MAX_CONNECTIONS=1",
    "megatron/training/arguments.py: validate_args",
    ("tp", "cp", "zero"),
    _one_connection,
    lambda c: f"it is {c.implementation.device_max_connections}, tp is {c.layout.tp} and cp is {c.layout.cp}",
)
SINKS = Rule(
    "attention-sinks",
    "attention sinks need cuDNN or unfused attention",
    "TransformerEngine pytorch/attention/dot_product_attention/utils.py: get_attention_backend (softmax_type)",
    (),
    lambda c: not c.model.has_sinks or c.implementation.attention != "flash",
    lambda c: f"attention is flash and {c.model.name} has sinks",
    lambda c: "fused would do",
)
POSITIONS = Rule(
    "sequence-positions",
    "seq_length must not exceed the learned position table",
    "megatron/training/arguments.py: validate_args (max_position_embeddings)",
    (),
    lambda c: c.model.position != "learned" or c.workload.seq_length <= c.model.learned_positions,
    lambda c: f"seq_length is {c.workload.seq_length} and the table has {c.model.learned_positions} rows",
    lambda c: f"the longest sequence is {c.model.learned_positions}",
)

TENSOR_RULES = (
    HEADS,
    QUERY_GROUPS,
    FFN,
    LATENT,
    MTP,
    SEQUENCE_NEEDS_TENSOR,
    TENSOR_OVERLAP,
    WHOLE_VOCABULARY,
    SEQUENCE_DIVIDES,
    FLASH_CARD,
    FLASH_HEADS,
    FLASH_PRECISION,
    ONE_CONNECTION,
    SINKS,
    POSITIONS,
)
