"""What stands before and after the layers: embedding, final norm, head and loss.

Source: megatron/core/models/common/embeddings/language_model_embedding.py, tensor_parallel/{layers,cross_entropy}.py,
fusions/fused_cross_entropy.py, models/gpt/gpt_model.py.
"""

from __future__ import annotations

from planner.implementation import Implementation
from planner.memory.activations.shape import Shape


def embedding_saved(shape: Shape) -> dict[str, int]:
    """The dropout mask; under tensor parallelism the mask of foreign tokens (bool) and the masked ids (int64)."""
    saved = {}
    if shape.hidden_dropout:
        saved["embedding dropout mask"] = shape.tokens * shape.hidden // shape.sp
    if shape.tp > 1:
        saved["vocabulary mask and masked ids"] = 9 * shape.tokens
    return saved


def final_norm_saved(shape: Shape, norm_type: str) -> dict[str, int]:
    """The norm's input and fp32 statistics."""
    statistics = 8 if norm_type == "LayerNorm" else 4
    return {
        "final norm input": shape.stream,
        "final norm statistics": statistics * shape.tokens // shape.sp,
    }


def head_saved(shape: Shape) -> dict[str, int]:
    """The output layer's input."""
    return {"output layer input": shape.stream}


def loss_saved(shape: Shape, impl: Implementation, vocab_shard: int) -> dict[str, int]:
    """What the cross entropy keeps: fp32 softmax over this rank's part of the vocabulary, the target mask and ids.
    Transformer Engine's keeps the gradient in the logits' own storage and type."""
    cells = shape.tokens * vocab_shard
    if impl.cross_entropy == "te":
        return {"logits gradient": shape.element * cells}
    return {"fp32 softmax": 4 * cells, "target mask and ids": 9 * shape.tokens}
