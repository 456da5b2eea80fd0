"""Rules about context parallelism: what it divides, and which attention takes part in it."""

from __future__ import annotations

from planner.attention import FLASH_PRECISIONS
from planner.model import Attention
from planner.rules.rule import Case, Rule, close_to, dividing_sequences, divisors

_EXCHANGE = "TransformerEngine pytorch/attention/dot_product_attention/context_parallel.py: attn_forward_func_with_cp"


def _nearest_context(c: Case) -> str:
    """Degrees that divide the sequence and leave a whole number of data-parallel ranks, or another sequence."""
    halves, rest = max(1, c.workload.seq_length // c.sequence_parts), max(1, c.layout.tp * c.layout.pp)

    def divides(cp: int) -> bool:
        whole = c.world_size is None or c.world_size % (rest * cp) == 0
        return whole and (cp == 1 or c.workload.seq_length % (c.sequence_parts * cp) == 0)

    found = close_to(c.layout.cp, [d for d in divisors(halves) if divides(d)])
    legal = f"the nearest legal cp is {found}; " if found else ""
    return legal + dividing_sequences(c)


CONTEXT_DIVIDES = Rule(
    "context-divides",
    "with cp > 1, seq_length must be divisible by 2 x cp (by cp under Megatron-DeepSpeed)",
    "megatron/training/arguments.py: validate_args (context_parallel_size)",
    ("cp",),
    lambda c: c.layout.cp == 1 or c.workload.seq_length % (c.sequence_parts * c.layout.cp) == 0,
    lambda c: f"seq_length is {c.workload.seq_length} and cp is {c.layout.cp}",
    _nearest_context,
)


def _context_attention(c: Case) -> bool:
    if not c.megatron_lm:  # Ulysses surrounds any attention
        return True
    unfused = c.implementation.attention == "unfused" or c.workload.precision not in FLASH_PRECISIONS
    return c.layout.cp == 1 or (not unfused and c.implementation.layer_implementation == "transformer_engine")


CONTEXT_KERNEL = Rule(
    "context-needs-fused-attention",
    "context parallelism needs Transformer Engine's flash or fused attention",
    "megatron/core/transformer/dot_product_attention.py: DotProductAttention.__init__",
    ("cp",),
    _context_attention,
    lambda c: (
        f"cp is {c.layout.cp} with {c.implementation.layer_implementation} layers "
        f"and {c.implementation.attention} attention in {c.workload.precision}"
    ),
)


def _windows_fit(c: Case) -> bool:
    window = c.model.narrowest_window
    slides = window is not None and window < c.workload.seq_length
    return c.layout.cp == 1 or not slides or c.implementation.cp_comm_type in ("a2a", "allgather")


CONTEXT_WINDOW = Rule(
    "context-window",
    "context parallelism over sliding windows exchanges by a2a or allgather",
    _EXCHANGE,
    ("cp",),
    _windows_fit,
    lambda c: (
        f"cp is {c.layout.cp}, --cp-comm-type {c.implementation.cp_comm_type} and {c.model.name} has a window of "
        f"{c.model.narrowest_window} tokens"
    ),
)
CONTEXT_SINKS = Rule(
    "context-sinks",
    "context parallelism with attention sinks exchanges by a2a",
    _EXCHANGE,
    ("cp",),
    lambda c: c.layout.cp == 1 or not c.model.has_sinks or c.implementation.cp_comm_type == "a2a",
    lambda c: f"cp is {c.layout.cp}, --cp-comm-type {c.implementation.cp_comm_type} and {c.model.name} has sinks",
)


def _exchanged_heads(c: Case) -> list[int]:
    """Query heads and key heads on a rank; with fewer groups than tp each rank has one."""
    heads = {a.num_heads // c.layout.tp for a in c.attentions}
    groups = {max(1, a.num_query_groups // c.layout.tp) for a in c.attentions if isinstance(a, Attention)}
    return sorted(heads | groups)


CONTEXT_HEADS = Rule(
    "context-heads",
    "with the a2a exchange, query heads and query groups of a tensor-parallel rank must be divisible by cp",
    "TransformerEngine pytorch/attention/dot_product_attention/context_parallel.py: AttnFuncWithCPAndQKVOA2A",
    ("tp", "cp"),
    lambda c: (
        c.layout.cp == 1
        or c.implementation.cp_comm_type != "a2a"
        or all(heads % c.layout.cp == 0 for heads in _exchanged_heads(c))
    ),
    lambda c: f"cp is {c.layout.cp} and a rank has {' and '.join(map(str, _exchanged_heads(c)))}",
)
CONTEXT_RULES = (CONTEXT_DIVIDES, CONTEXT_KERNEL, CONTEXT_WINDOW, CONTEXT_SINKS, CONTEXT_HEADS)
