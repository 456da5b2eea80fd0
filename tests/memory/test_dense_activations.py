"""What a dense layer keeps for backward, tensor by tensor, at sizes that a pencil can check."""

from dataclasses import replace

import pytest
from tiny import GPT, LATENT, LAYER_NORM, LLAMA, LOCAL, MIXTURE, TE, saved, shape

from planner.model import MLP, Attention, Layer

UNFUSED = replace(LOCAL, attention="unfused")


def test_a_llama_layer_tensor_by_tensor():
    """8 tokens, h 4, q 8, k and v 4, ffn 8, 2 bytes: every tensor of the layer and nothing else."""
    assert saved(LLAMA, shape(), rotary_dim=2) == {
        "layer input": 2 * 8 * 4,
        "input_layernorm statistics": 4 * 8,
        "attention input": 2 * 8 * 4,
        "qkv": 2 * 8 * (8 + 4 + 4),  # the values are a view of it
        "rope cos and sin": 2 * 2 * 2 * 8 * 2,  # cos and sin, for q and for k, 8 positions x 2 features
        "rotated query": 2 * 8 * 8,
        "rotated key": 2 * 8 * 4,
        "attention output": 2 * 8 * 8,
        "attention logsumexp": 4 * 8 * 4,
        "attention rng": 16,
        "attention residual": 2 * 8 * 4,
        "pre_mlp_layernorm statistics": 4 * 8,
        "mlp input": 2 * 8 * 4,
        "linear_fc1 output": 2 * 8 * 16,
        "linear_fc2 input": 2 * 8 * 8,
    }


@pytest.mark.parametrize(("tp", "sp"), [(1, 1), (2, 1), (2, 2)])
def test_a_llama_layer_in_closed_form(tp, sp):
    """(8h + 8) sb/S + (4q + 2kv + 2(q + 2kv) + 6f + 4a) sb/t + 8 s d + 16: what real modules keep."""
    layer = Layer(Attention(8, 4, 2), MLP(8))  # several query groups on each rank
    got = sum(saved(layer, shape(tp=tp, sequence_parallel=sp > 1), rotary_dim=2).values())
    q, kv, f, a = 16, 8, 8, 8
    assert got == (8 * 4 + 8) * 8 // sp + (4 * q + 2 * kv + 2 * (q + 2 * kv) + 6 * f + 4 * a) * 8 // tp + 8 * 8 * 2 + 16


def test_fused_rotary_embedding_keeps_no_tables():
    """The fused kernel reads the one table of the model."""
    fused = saved(LLAMA, shape(), replace(LOCAL, rope_fusion=True), rotary_dim=2)
    assert sum(saved(LLAMA, shape(), rotary_dim=2).values()) - sum(fused.values()) == 128


def test_without_rotary_embedding_the_query_is_a_copy_and_the_key_a_view():
    """With several grouped heads the reshape of the query copies it; keys and values stay inside the projection."""
    kept = saved(LLAMA, shape())
    assert kept["query"] == 128
    assert kept["qkv"] == 256
    assert "key" not in kept


@pytest.mark.parametrize(
    ("tp", "sp", "expected"),
    [
        (1, 1, 34 * 64 * 4 + 5 * 4 * 32 * 32 * 2 + 16 * 64),
        (2, 1, (10 + 12) * 64 * 4 + 5 * 4 * 32 * 32 + 16 * 64),
        (2, 2, 17 * 64 * 4 + 5 * 4 * 32 * 32 + 16 * 32),
    ],
)
def test_korthikanti_with_dropout(tp, sp, expected):
    """sbh(10 + 24/t) + 5 a s^2 b/t (Korthikanti et al. 2022, equation 2), and 16 sb of two LayerNorms' statistics."""
    at = shape(seq=32, batch=2, tp=tp, sequence_parallel=sp > 1, hidden_dropout=0.1, attention_dropout=0.1)
    assert sum(saved(GPT, at, UNFUSED, LAYER_NORM).values()) == expected


def test_without_dropout_the_masks_go():
    """2 sbh and 3 a s^2 b less: two hidden masks, the scores' mask and the dropped copy."""
    with_dropout = sum(
        saved(GPT, shape(seq=32, hidden_dropout=0.1, attention_dropout=0.1), UNFUSED, LAYER_NORM).values()
    )
    without = sum(saved(GPT, shape(seq=32), UNFUSED, LAYER_NORM).values())
    assert with_dropout - without == 2 * 32 * 4 + 3 * 4 * 32 * 32


@pytest.mark.parametrize(("dropout", "cells"), [(0.0, 6), (0.1, 7)])
def test_softmax_in_torch_keeps_fp32_and_the_mask(dropout, cells):
    """Without the fused kernel 4 bytes of fp32 softmax take the place of 2, and the causal mask s^2 is kept."""
    at = shape(seq=32, attention_dropout=dropout)
    kept = saved(GPT, at, replace(UNFUSED, masked_softmax_fusion=False), LAYER_NORM)
    quadratic = {k: v for k, v in kept.items() if "probab" in k or "mask" in k}
    assert sum(quadratic.values()) == cells * 4 * 32 * 32 + 32 * 32


@pytest.mark.parametrize(("seq", "fused"), [(16, False), (20, True), (4096, True), (4100, False)])
def test_the_fused_softmax_has_a_range(seq, fused):
    """Megatron's kernel takes 16 < s <= 4096; elsewhere torch's softmax is used and keeps fp32."""
    assert ("fp32 probabilities" not in saved(GPT, shape(seq=seq), UNFUSED)) == fused


def test_the_fused_softmax_works_on_fours_of_heads():
    """Two heads of one sequence on a rank are too few for the kernel; two heads of two sequences are not."""
    assert "fp32 probabilities" in saved(GPT, shape(seq=32, tp=2), UNFUSED)
    assert "fp32 probabilities" not in saved(GPT, shape(seq=32, tp=2, batch=2), UNFUSED)


def test_flash_attention_has_no_quadratic_term():
    """Doubling the sequence doubles what is kept, but for the 16 bytes of random state."""
    once, twice = (sum(saved(LLAMA, shape(seq=s), rotary_dim=2).values()) - 16 for s in (8, 16))
    assert twice == 2 * once


def test_unfused_attention_repeats_grouped_keys_and_values():
    """Each query head gets a key and a value of its own: 2 x 128 bytes in place of views."""
    kept = saved(LLAMA, shape(seq=32), UNFUSED)
    assert kept["repeated key"] == kept["repeated value"] == 2 * 32 * 8


def test_context_parallelism_divides_every_token():
    """Half the sequence on each rank keeps half the bytes, but for the 16 bytes of random state."""
    whole = sum(saved(LLAMA, shape(), rotary_dim=2).values())
    half = sum(saved(LLAMA, shape(seq=4, cp=2), rotary_dim=2).values())
    assert whole - 16 == 2 * (half - 16)


def test_unfused_swiglu_keeps_both_factors():
    """10 f a token instead of 6 f: silu's output and the linear half besides."""
    unfused = saved(LLAMA, shape(), replace(LOCAL, bias_activation_fusion=False))
    assert sum(unfused.values()) - sum(saved(LLAMA, shape()).values()) == 4 * 8 * 8


def test_gelu_keeps_its_input_and_the_next_linear_its_own():
    """4 f a token: one half-precision input each."""
    kept = saved(GPT, shape(), norm=LAYER_NORM)
    assert kept["linear_fc1 output"] == kept["linear_fc2 input"] == 2 * 8 * 16


def test_qk_norm_keeps_its_inputs_outputs_and_statistics():
    """A norm of each head of q and k: 4 bytes of statistics a head, and normalised copies."""
    layer = Layer(Attention(4, 2, 2, qk_norm="head"), MLP(8))
    kept = saved(layer, shape())
    assert kept["query norm statistics"] == 4 * 8 * 4
    assert kept["key norm statistics"] == 4 * 8 * 2
    assert kept["normalised query"] == 128
    assert kept["normalised key"] == 64


def test_transformer_engine_keeps_contiguous_heads():
    """Query, key and value as tensors of their own, the projection let go; two more outputs for batches of several."""
    kept = saved(LLAMA, shape(), TE)
    assert "qkv" not in kept
    assert (kept["query"], kept["key"], kept["value"]) == (128, 64, 64)
    assert "attention output of the kernel" not in kept
    assert saved(LLAMA, shape(batch=2), TE)["attention output of the kernel"] == 2 * 128
    assert "attention output of the kernel" not in saved(LLAMA, shape(batch=2), replace(TE, attention="fused"))
    ring, exchanged = (replace(TE, attention="fused", cp_comm_type=x) for x in ("p2p", "a2a"))
    assert "attention output of the kernel" not in saved(LLAMA, shape(cp=2), ring)
    assert saved(LLAMA, shape(cp=2), exchanged)["attention output of the kernel"] == 128
    assert "attention output of the kernel" not in saved(LLAMA, shape(), exchanged)


def test_selective_recomputation_of_the_core_attention():
    """The 5 a s^2 b go; q, k, v and the output stay."""
    at = shape(seq=32, attention_dropout=0.1)
    every = saved(GPT, at, UNFUSED, LAYER_NORM)
    lean = saved(GPT, at, UNFUSED, LAYER_NORM, modules=frozenset({"core_attn"}))
    assert sum(every.values()) - sum(lean.values()) == 5 * 4 * 32 * 32
    assert lean["attention output"] == 2 * 32 * 4


def test_recomputed_mlp_and_norms():
    """A recomputed MLP keeps its input only; recomputed norms keep their inputs, not outputs and statistics."""
    every = saved(LLAMA, shape())
    mlp = saved(LLAMA, shape(), modules=frozenset({"mlp"}))
    assert set(every) - set(mlp) == {"linear_fc1 output", "linear_fc2 input"}
    norms = saved(LLAMA, shape(), modules=frozenset({"layernorm"}))
    assert set(every) - set(norms) == {
        "attention input",
        "mlp input",
        "input_layernorm statistics",
        "pre_mlp_layernorm statistics",
    }


def test_transformer_engine_recomputes_the_norms_that_are_modules_only():
    """A norm that is fused with a projection is an identity for the layer (transformer_layer.py): only latent
    attention's first norm and that of a mixture of experts are rebuilt."""
    first = {"attention input", "input_layernorm statistics"}
    second = {"pre_mlp_layernorm statistics"}
    norms = frozenset({"layernorm"})
    for layer, gone in ((LLAMA, set()), (LATENT, first), (MIXTURE, second)):
        every, lean = saved(layer, shape(), TE), saved(layer, shape(), TE, modules=norms)
        assert {key for key in every if every[key] != lean.get(key)} - {"mlp input"} == gone


def test_fp32_doubles_what_is_half_precision():
    """Every tensor doubles but the statistics, which are fp32 already, and the 16 bytes of random state."""
    half, full = saved(LLAMA, shape()), saved(LLAMA, shape(element=4))
    already = {k for k in half if "statistics" in k or "logsumexp" in k or "rng" in k}
    assert all(full[k] == (half[k] if k in already else 2 * half[k]) for k in half)
