"""What stands before and after the layers: embedding, final norm, head and loss.

Source: megatron/core/models/common/embeddings/language_model_embedding.py, tensor_parallel/{layers,cross_entropy}.py,
fusions/fused_cross_entropy.py, models/gpt/gpt_model.py.
"""

from __future__ import annotations

from planner.implementation import Implementation
from planner.memory.activations.shape import Shape
from planner.memory.activations.shared_ops import norm_statistics
from planner.model import Norm


def embedding_saved(shape: Shape) -> dict[str, int]:
    """The dropout mask; under tensor parallelism the mask of foreign tokens (bool) and the masked ids (int64)."""
    saved = {}
    if shape.hidden_dropout:
        saved["embedding dropout mask"] = shape.tokens * shape.hidden // shape.sp
    if shape.tp > 1:
        saved["vocabulary mask and masked ids"] = 9 * shape.tokens
    return saved


def final_norm_saved(shape: Shape, norm: Norm) -> dict[str, int]:
    """The norm's input and statistics."""
    return {"final norm input": shape.stream, "final norm statistics": norm_statistics(shape, norm)}


def chunk_rows(tokens: int, vocab: int, hidden: int) -> int:
    """Tokens that Liger's loss takes at a time: as many as have hidden x tokens logits, to a power of two
    (ops/fused_linear_cross_entropy.py: chunk_size)."""
    rows = -(-tokens // -(-vocab // hidden))
    return min(tokens, 1 << (rows - 1).bit_length())


def head_saved(shape: Shape) -> dict[str, int]:
    """The output layer's input."""
    return {"output layer input": shape.stream}


def loss_saved(shape: Shape, impl: Implementation, vocab_shard: int) -> dict[str, int]:
    """What the cross entropy keeps: fp32 softmax over this rank's part of the vocabulary, the target mask and ids.
    Transformer Engine's keeps the gradient in the logits' own storage and type, torch.compile's the logits; Liger's has
    the gradients of the head's input and weight already (ops/fused_linear_cross_entropy.py)."""
    cells = shape.tokens * vocab_shard
    if impl.cross_entropy == "te":
        return {"logits gradient": shape.element * cells}
    if impl.cross_entropy == "compiled":
        return {"logits": shape.element * cells, "log-sum-exp": 4 * shape.tokens}
    if impl.cross_entropy == "liger":
        weight = shape.element * vocab_shard * shape.hidden
        return {"gradient of the head's input": shape.full_stream, "gradient of the head's weight": weight}
    if impl.cross_entropy == "torch":
        return {"fp32 log-softmax": 4 * cells, "targets": 8 * shape.tokens}
    return {"fp32 softmax": 4 * cells, "target mask and ids": 9 * shape.tokens}


def loss_scratch(shape: Shape, impl: Implementation, vocab_shard: int) -> tuple[int, int]:
    """(logits or their gradient in half precision, further logits) that the loss needs for a moment over what it keeps.

    torch: nll_loss and log_softmax make an fp32 gradient each; over tensor parallel ranks the shifted logits, their
    exponential and a sum stand beside it (torch/distributed/tensor/parallel/loss.py).
    liger: one chunk's logits (`chunk_rows`).
    """
    cells = shape.tokens * vocab_shard
    half = shape.element * cells
    kind = impl.cross_entropy
    if kind == "te":
        return 0, 0
    if kind == "native":
        return half, 4 * cells
    if kind == "torch":
        return half, (12 if shape.tp > 1 else 8) * cells - half
    if kind == "liger":
        return 0, shape.element * chunk_rows(shape.tokens, vocab_shard, shape.hidden) * vocab_shard
    return half, 0
