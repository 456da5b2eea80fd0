"""How many copies of its tokens a rank routes to experts, and how many reach its own: counted once for all readers."""

from __future__ import annotations

import math

from planner.implementation import Implementation
from planner.model import MoE


def routed_copies(tokens: int, moe: MoE, implementation: Implementation) -> int:
    """Copies that one rank routes of its `tokens`: top_k of each; with a capacity factor no more than the capacity of
    every expert, and with padding just that (megatron/core/transformer/moe/moe_utils.py: get_capacity)."""
    wanted = tokens * moe.top_k
    if implementation.moe_capacity_factor is None:
        return wanted
    capacity = moe.num_experts * math.ceil(wanted / moe.num_experts * implementation.moe_capacity_factor)
    return capacity if implementation.moe_pad_to_capacity else min(capacity, wanted)


def received_copies(tokens: int, moe: MoE, implementation: Implementation, etp: int = 1) -> int:
    """Copies that a rank's experts compute: its share of what the expert-parallel group routes, gathered over `etp`
    ranks. Dropless routing multiplies with the imbalance of the busiest rank; a capacity bounds it."""
    copies = routed_copies(tokens, moe, implementation) * etp
    if implementation.moe_capacity_factor is not None:
        return copies
    return math.ceil(copies * implementation.moe_imbalance)
