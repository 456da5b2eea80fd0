"""Llama and the dense families that differ from it in biases, norms, heads and windows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from planner.interop.huggingface.family import LAYER_NORM, LAYER_NORM_WITHOUT_BIAS, Family, head_dim
from planner.interop.huggingface.fields import Fields
from planner.model import Norm, QKNorm

ATTENTION_BIAS = partial(Family, qkv_bias="attention_bias", output_bias="attention_bias")
"""Families whose `attention_bias` gives all four projections a bias."""


def always(fields: Fields, index: int) -> bool:
    """Every layer slides (Mistral)."""
    return True


def every(period: str, default: int) -> Callable[[Fields, int], bool]:
    """Every `period`-th layer sees everything, the others slide (Gemma 3, Cohere 2)."""

    def slides(fields: Fields, index: int) -> bool:
        return (index + 1) % (fields.optional(period, "layers") or default) != 0

    return slides


def _upper_layers(fields: Fields, index: int) -> bool:
    """Qwen2: off by default; if on, the layers from max_window_layers up slide."""
    return fields.flag("use_sliding_window") and index >= fields.count("max_window_layers")


def _all_but_every_fourth(fields: Fields, index: int) -> bool:
    """The first of each four layers sees everything (CWM, Granite SWA)."""
    return index % 4 != 0


def _even_layers(fields: Fields, index: int) -> bool:
    return index % 2 == 0


def chosen(key: str, norm: QKNorm) -> Callable[[Fields], QKNorm]:
    """A query and key norm that a truth value turns on."""
    return lambda fields: norm if fields.flag(key) else "none"


def _one_or_two(fields: Fields) -> int:
    return 1 if fields.flag("use_parallel_residual") else 2


def _post_norm(fields: Fields) -> int:
    return 4 if fields.flag("use_post_norm") else 2


def _square_output(fields: Fields) -> str | None:
    """Helium's output projection is hidden x hidden, whatever head_dim says."""
    heads = fields.size("num_attention_heads", "heads")
    square = heads * head_dim(fields, heads) == fields.size("hidden_size", "hidden")
    return None if square else "num_attention_heads x head_dim must be hidden_size in this family"


def _bitnet_norms(fields: Fields) -> tuple[int, ...]:
    return (fields.size("hidden_size", "hidden"), fields.size("intermediate_size", "ffn"))


LLAMA = ATTENTION_BIAS(mlp_bias="mlp_bias")
QWEN2 = Family(qkv_bias=True, slides=_upper_layers)
QWEN3 = ATTENTION_BIAS(qk_norm="head", slides=_upper_layers)
MISTRAL = Family(slides=always)
GLM4 = Family(norms=4, qkv_bias="attention_bias", rotary=lambda fields: fields.number("partial_rotary_factor", 0.5))

FAMILIES = {
    "llama": LLAMA,
    "internlm3": LLAMA,
    "iquestcoder": LLAMA,
    "granite": LLAMA,
    "helium": Family(qkv_bias="attention_bias", mlp_bias="mlp_bias", refuse=_square_output),
    "smollm3": LLAMA,
    "minicpm": LLAMA,
    "Yi": LLAMA,
    "aquila": LLAMA,
    "mistral": MISTRAL,
    "ministral": MISTRAL,
    "ministral3": MISTRAL,
    "qwen2": QWEN2,
    "qwen2_vl": QWEN2,
    "qwen2_vl_text": QWEN2,
    "qwen2_5_vl": QWEN2,
    "qwen2_5_vl_text": QWEN2,
    "qwen3": QWEN3,
    "qwen3_vl_text": QWEN3,
    "phi3": Family(slides=always, dropout="resid_pdrop"),
    "gemma": ATTENTION_BIAS(),
    "gemma2": ATTENTION_BIAS(norms=4, slides=_even_layers),
    "gemma3_text": ATTENTION_BIAS(norms=4, qk_norm="head", slides=every("sliding_window_pattern", 6)),
    "vaultgemma": ATTENTION_BIAS(slides=_even_layers),
    "cohere": ATTENTION_BIAS(
        norm=LAYER_NORM_WITHOUT_BIAS, norms=1, parallel=True, qk_norm=chosen("use_qk_norm", "heads")
    ),
    "cohere2": ATTENTION_BIAS(
        norm=LAYER_NORM_WITHOUT_BIAS, norms=1, parallel=True, slides=every("sliding_window_pattern", 4)
    ),
    "olmo": ATTENTION_BIAS(norm=Norm("LayerNorm", weight=False)),
    "olmo2": ATTENTION_BIAS(qk_norm="full"),
    "olmo3": ATTENTION_BIAS(qk_norm="full", slides=every("sliding_window_pattern", 4)),
    "stablelm": Family(
        norm=LAYER_NORM,
        norms=_one_or_two,
        parallel="use_parallel_residual",
        qkv_bias="use_qkv_bias",
        qk_norm=chosen("qk_layernorm", "heads"),
    ),
    "nemotron": ATTENTION_BIAS(norm=LAYER_NORM, gated=False, mlp_bias="mlp_bias"),
    "glm": Family(qkv_bias="attention_bias", rotary=lambda fields: fields.number("partial_rotary_factor", 0.5)),
    "glm4": GLM4,
    "glm4v_text": replace(GLM4, qkv_bias=True),
    "exaone4": Family(qk_norm="head", slides=every("sliding_window_pattern", 4)),
    "ernie4_5": Family(qkv_bias="use_bias", output_bias="use_bias", mlp_bias="use_bias"),
    "hunyuan_v1_dense": ATTENTION_BIAS(qk_norm="head"),
    "hyperclovax": ATTENTION_BIAS(mlp_bias="mlp_bias", norms=_post_norm),
    "seed_oss": Family(
        qkv_bias="attention_bias",
        output_bias="attention_out_bias",
        mlp_bias="mlp_bias",
        dropout="residual_dropout",
    ),
    "arcee": ATTENTION_BIAS(gated=False, mlp_bias="mlp_bias"),
    "apertus": ATTENTION_BIAS(qk_norm="head", gated=False, activation_parameters=2),
    "bitnet": ATTENTION_BIAS(sub_norms=_bitnet_norms),
    "nanochat": ATTENTION_BIAS(norm=Norm("RMSNorm", weight=False), gated=False),
    "cwm": Family(mlp_bias="mlp_bias", slides=_all_but_every_fourth),
    "granite_swa": ATTENTION_BIAS(mlp_bias="mlp_bias", sinks=True, slides=_all_but_every_fourth),
}
