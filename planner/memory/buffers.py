"""Buffers that belong to no piece: scratch that lives for the whole run, tables, inputs, gathered weights.

Sources: megatron/core/utils.py: GlobalMemoryBuffer; models/common/embeddings/rotary_pos_embedding.py;
torch.distributed.fsdp (fully_shard: one layer gathered ahead).
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.activations.shape import Shape
from planner.memory.form import Term
from planner.memory.moments import StageParts
from planner.memory.states import StateBytes
from planner.model import LatentAttention, Model
from planner.parameters import Weight, numel
from planner.workload import Workload

GATHERED_LAYERS = 2
"""Layers whose weights are whole at once under ZeRO 3: the one that computes and the one fetched ahead."""


def buffer_terms(
    model: Model, workload: Workload, impl: Implementation, layout: Layout, shape: Shape, parts: StageParts
) -> tuple[Term, ...]:
    """Buffers that are alive at every moment."""
    terms = [Term("buffers", "global memory buffer", _global_memory_buffer(model, impl, shape))]
    if model.rotary_dim:
        terms.append(Term("buffers", "rotary table", 4 * shape.seq * model.rotary_dim))
    return tuple(terms)


def _global_memory_buffer(model: Model, impl: Implementation, shape: Shape) -> int:
    """Megatron's own layers share one scratch buffer: the gathered input under sequence parallelism, or the attention
    scores' addend without flash attention, the larger (Transformer Engine's layers have none)."""
    if impl.layer_implementation != "local":
        return 0
    gathered = shape.full_stream if shape.sp > 1 else 0
    scores = 0
    if impl.attention == "unfused":
        heads = max(kind.attention.num_heads for kind in model.layer_kinds) // shape.tp
        scores = shape.element * heads * shape.seq * shape.seq * shape.batch
        if any(isinstance(kind.attention, LatentAttention) for kind in model.layer_kinds):
            gathered = max(gathered, 0)
    return max(gathered, scores)


def gather_terms(states: StateBytes, kind: int, weights: Sequence[Weight]) -> tuple[Term, ...]:
    """ZeRO 3: weights of the layer in turn and of the next, and the layer's whole gradient before it is scattered."""
    if not states.gathered:
        return ()
    elements = numel(tuple(weights))
    return (
        Term(
            "buffers",
            "gathered weights",
            GATHERED_LAYERS * states.gathered * elements,
            "if_layer",
            kind,
            0,
            "estimated",
        ),
        Term("buffers", "whole gradients of a layer", states.gathered * elements, "if_layer", kind, 0, "estimated"),
    )
