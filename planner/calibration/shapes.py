"""What the microbenchmark times: matrix products of a model's layers and sweeps, attention, copies, collectives.

Nothing here needs torch. A product is (m x k) by (k x n), as `timing.kernels.gemm_seconds` takes it.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from planner.model import LatentAttention, Model
from planner.parameters import Sharding, layer_weights

DEGREES = (1, 2, 4, 8)
SWEEP = (256, 512, 1024, 2048, 4096, 8192)
DEPTHS = (128, 256, 512, 1024, 2048, 4096, 8192)
COPIES = tuple(2**n for n in range(16, 31, 2))
"""Bytes of a tensor that is copied on the card."""
MESSAGES = tuple(2**n for n in range(14, 31, 2))
"""Bytes of a collective's whole tensor."""
COLLECTIVES = ("all_reduce", "all_gather", "reduce_scatter", "all_to_all")
MOST_PRODUCTS = 120


class Product(NamedTuple):
    """A matrix product; `use` is forward, dgrad, wgrad (of a layer) or sweep."""

    m: int
    n: int
    k: int
    use: str


class AttentionCase(NamedTuple):
    """Causal attention of `batch` sequences; both directions are timed."""

    batch: int
    seq: int
    heads: int
    qk_dim: int
    v_dim: int


def products(model: Model, tokens: int) -> list[Product]:
    """Each distinct product of a layer's linear maps on `tokens` rows, for every tensor-parallel degree that divides
    them, and the sweeps in size and depth. Expert weights are left out: their rows depend on the routing."""
    found = dict.fromkeys(_products(model, tokens))
    return list(found)[:MOST_PRODUCTS]


def _products(model: Model, tokens: int) -> Iterator[Product]:
    for size in SWEEP:
        yield Product(size, size, size, "sweep")
    for depth in DEPTHS:
        yield Product(8192, 8192, depth, "sweep")
    for tp in DEGREES:
        for layer in model.layer_kinds:
            if layer.attention.num_heads % tp:
                continue
            for weight in layer_weights(layer, model.hidden_size, model.norm, Sharding(tp=tp)):
                if len(weight.shape) != 2 or min(weight.shape) < 64 or weight.expert:
                    continue
                out, width = weight.shape
                yield Product(tokens, out, width, "forward")
                yield Product(tokens, width, out, "dgrad")
                yield Product(out, width, tokens, "wgrad")


def attentions(model: Model, tokens: int) -> list[AttentionCase]:
    """Attention of the model's heads, whole and on 8 tensor-parallel ranks, from short sequences to `tokens`."""
    a = model.layer_kinds[0].attention
    qk, v = (a.qk_dim, a.v_head_dim) if isinstance(a, LatentAttention) else (a.head_dim, a.head_dim)
    found = []
    for heads in dict.fromkeys((a.num_heads, max(1, a.num_heads // 8))):
        seq = 1024
        while seq <= max(1024, tokens):
            found.append(AttentionCase(max(1, tokens // seq), seq, heads, qk, v))
            seq *= 2
    return found
