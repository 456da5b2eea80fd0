"""Floating-point operations of a step: what MFU and HFU count.

Model FLOPs are those of the forward and backward pass, two for each multiply-add, causal attention counted half,
nothing recomputed (Korthikanti et al. 2022, arXiv:2205.05198, appendix A, which counts attention whole); hardware
FLOPs add what is recomputed. Norms, activations and the loss are not counted, nor is padding of the vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache

from planner.layout import OPERATIONS
from planner.memory.activations.selective_ops import kept_products
from planner.model import Attention, Layer, Model, MoE
from planner.parameters import layer_weights
from planner.timing.kernels import attended_pairs


@lru_cache(maxsize=1024)
def layer_flops(model: Model, layer: Layer, seq: int) -> tuple[int, int]:
    """Forward FLOPs of one layer for one sequence: (all, of which the attention core)."""
    macs = sum(macs for _, _, macs in _products(model, layer))
    a = layer.attention
    if isinstance(a, Attention):
        width, window = 2 * a.head_dim, a.window
    else:
        width, window = a.qk_dim + a.v_head_dim, None
    core = round(2 * a.num_heads * width * attended_pairs(seq, window))
    return 2 * macs * seq + core, core


@lru_cache(maxsize=1024)
def repeated_flops(model: Model, layer: Layer, seq: int, modules: frozenset[str]) -> int:
    """Forward FLOPs of one layer for one sequence that selective recomputation of `modules` repeats. A module runs
    again as a whole (megatron/core/transformer/mlp.py, moe/moe_layer.py: checkpoint); norms and activation functions
    have no products."""
    whole, core = layer_flops(model, layer, seq)
    if OPERATIONS in modules:
        kept = sum(out * width for out, width in kept_products(layer, model.hidden_size))
        return whole - core - 2 * seq * kept
    parts = {part for module in modules for part in _PARTS.get(module, ())}
    macs = sum(
        macs
        for part, name, macs in _products(model, layer)
        if part in parts or ("mla_up_proj" in modules and "up_proj" in name)
    )
    return 2 * macs * seq + (core if "core_attn" in modules else 0)


_PARTS = {"mlp": ("mlp",), "moe": ("router", "experts", "shared_experts"), "shared_experts": ("shared_experts",)}
"""What each recomputed module holds, by the parts of its weights."""


def _products(model: Model, layer: Layer) -> Iterator[tuple[str, str, int]]:
    """(part, name, multiply-adds for a token) of each matrix of a layer; of experts as many as a token goes to."""
    for w in layer_weights(layer, model.hidden_size, model.norm):
        if len(w.shape) == 2:
            count = layer.mlp.top_k if w.part == "experts" and isinstance(layer.mlp, MoE) else w.count
            yield w.part, w.name, count * w.shape[0] * w.shape[1]


def head_flops(model: Model, seq: int) -> int:
    """Forward FLOPs of the head for one sequence."""
    width = model.embedding_width or model.hidden_size
    extra = width * model.hidden_size if width != model.hidden_size else 0
    return 2 * seq * (model.vocab_size * width + extra)


def mtp_flops(model: Model, seq: int) -> int:
    """Forward FLOPs of all multi-token-prediction modules for one sequence: projection, layer and head of each."""
    if not model.mtp_num_layers:
        return 0
    h = model.hidden_size
    one = 4 * h * h * seq + layer_flops(model, model.mtp_layer, seq)[0] + head_flops(model, seq)
    return model.mtp_num_layers * one


def model_flops(model: Model, seq: int, sequences: int) -> int:
    """Forward and backward of so many sequences; backward is twice forward."""
    forward = sum(layer_flops(model, layer, seq)[0] for layer in model.layers)
    forward += head_flops(model, seq) + mtp_flops(model, seq)
    return 3 * forward * sequences
