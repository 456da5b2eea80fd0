"""Parameters of pieces and shards, by hand, and the counts that training logs print."""

from __future__ import annotations

import pytest

from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE, Norm
from planner.parameters import (
    Sharding,
    Weight,
    active_parameters,
    by_part,
    embedding_weights,
    final_norm_weights,
    head_weights,
    layer_weights,
    mtp_weights,
    numel,
    padded_vocab_size,
    parameters,
)
from planner.validation.parameters import rank_counts, validate_parameters

LAYER_NORM = Norm("LayerNorm", bias=True)


def model(layer: Layer, **changes) -> Model:
    """Two layers of width 4, vocabulary 8."""
    values = {
        "name": "tiny", "hidden_size": 4, "vocab_size": 8, "layer_kinds": (layer,), "pattern": (0, 0),
        "max_positions": 8,
    }  # fmt: skip
    return Model(**(values | changes))


LLAMA = Layer(Attention(4, 2, 2), MLP(8))
GPT = Layer(Attention(4, 4, 1, qkv_bias=True, output_bias=True), MLP(16, gated=False, bias=True))


def test_a_gpt_layer_is_12_h_squared_plus_13_h():
    """Korthikanti et al. 2022: 12 h^2 + 13 h with biases and LayerNorms."""
    assert numel(layer_weights(GPT, 4, LAYER_NORM)) == 12 * 16 + 13 * 4


def test_a_gpt_model_is_the_closed_form():
    """V h + s h + L (12 h^2 + 13 h) + 2 h, tied."""
    m = model(GPT, norm=LAYER_NORM, position="learned", learned_positions=8, tied=True)
    assert parameters(m) == 8 * 4 + 8 * 4 + 2 * (12 * 16 + 13 * 4) + 2 * 4


def test_a_llama_layer_by_hand():
    """qkv 16 x 4, projection 4 x 8, up and gate 16 x 4, down 4 x 8, two norms of 4."""
    assert by_part(layer_weights(LLAMA, 4, Norm())) == {"norms": 8, "attention": 64 + 32, "mlp": 64 + 32}


@pytest.mark.parametrize(("qk_norm", "expected"), [("none", 0), ("head", 4), ("full", 8 + 4), ("heads", 8 + 4)])
def test_qk_norms(qk_norm, expected):
    """One norm of 2 for q and one for k; or the whole projections of 8 and 4."""
    layer = Layer(Attention(4, 2, 2, qk_norm=qk_norm), MLP(8))
    assert by_part(layer_weights(layer, 4, Norm())).get("attention_norms", 0) == expected


def test_latent_attention_by_hand():
    """2 heads of 2 + 2, values of 2, latents of 4: down 4 x 4 and 6 x 4, up 8 x 4 and 8 x 4, projection 4 x 4."""
    layer = Layer(LatentAttention(2, 4, 2, 2, 2, 4), MLP(8))
    parts = by_part(layer_weights(layer, 4, Norm()))
    assert parts["attention"] == 16 + 24 + 32 + 32 + 16
    assert parts["attention_norms"] == 4 + 4


def test_latent_down_projections_are_whole_in_transformer_engine():
    """Megatron's local spec divides them over tensor parallel ranks, Transformer Engine's repeats them."""
    layer = Layer(LatentAttention(2, 4, 2, 2, 2, 4), MLP(8))
    local = numel(layer_weights(layer, 4, Norm(), Sharding(tp=2, mla_down_sharded=True)))
    repeated = numel(layer_weights(layer, 4, Norm(), Sharding(tp=2)))
    assert repeated - local == (16 + 24) // 2


def test_a_mixture_by_hand():
    """A router of 4 x 4, four experts of 96, a shared expert of 72 with its gate."""
    layer = Layer(Attention(4, 2, 2), MoE(4, 2, MLP(8), shared=MLP(6), shared_gate=True))
    parts = by_part(layer_weights(layer, 4, Norm()))
    assert (parts["router"], parts["experts"], parts["shared_experts"]) == (16, 4 * 96, 72 + 4)
    assert parameters(model(layer)) - active_parameters(model(layer)) == 2 * 2 * 96


def test_experts_are_divided_by_ep_and_etp_and_the_rest_by_tp():
    """With tp 2, ep 4, etp 1: one whole expert, half an attention, the router and the norms whole."""
    layer = Layer(Attention(4, 2, 2), MoE(4, 2, MLP(8)))
    parts = by_part(layer_weights(layer, 4, Norm(), Sharding(tp=2, ep=4, etp=1)))
    assert parts == {"norms": 8, "attention": 48, "router": 16, "experts": 96}


def test_output_biases_are_whole_on_every_rank():
    """With tp 2 the QKV and up biases are halved, those of row-parallel linears are not."""
    shard = {w.name: w.numel for w in layer_weights(GPT, 4, LAYER_NORM, Sharding(tp=2))}
    assert (shard["linear_qkv.bias"], shard["linear_proj.bias"]) == (6, 4)
    assert (shard["linear_fc1.bias"], shard["linear_fc2.bias"]) == (8, 4)


def test_more_query_groups_than_ranks_are_not_needed():
    """Megatron divides keys and values evenly even where there are fewer groups than ranks: h (q + 2 kv) / t."""
    layer = Layer(Attention(8, 1, 4), MLP(8))
    qkv = next(w for w in layer_weights(layer, 4, Norm(), Sharding(tp=8)) if w.name == "linear_qkv.weight")
    assert qkv.numel == 4 * (32 + 2 * 4) // 8


@pytest.mark.parametrize(
    ("vocab", "tp", "expected"), [(50257, 1, 50304), (50257, 2, 50432), (50257, 8, 51200), (128256, 8, 129024)]
)
def test_vocabulary_padding(vocab, tp, expected):
    """To a multiple of 128 x tp."""
    assert padded_vocab_size(vocab, tp) == expected


def test_tied_heads_have_no_tensor_but_the_copy_on_the_last_stage():
    """Untied: 8 x 4; tied: nothing; tied with a pipeline: a copy."""
    untied, tied = model(LLAMA), model(LLAMA, tied=True)
    assert numel(head_weights(untied)) == 32
    assert numel(head_weights(tied)) == 0
    assert numel(head_weights(tied, tied_copy=True)) == 32
    assert numel(embedding_weights(tied, tp=2, divisible_by=8)) == 8 * 4


def test_positions_and_embedding_norm():
    """A learned table is whole on every rank; BLOOM's norm follows the embedding."""
    m = model(GPT, norm=LAYER_NORM, position="learned", learned_positions=10, embedding_norm=True)
    assert by_part(embedding_weights(m, tp=2)) == {"embedding": 16, "position_embedding": 40, "norms": 8}
    assert numel(final_norm_weights(m)) == 8


def test_a_multi_token_prediction_module():
    """Two norms, a projection of both inputs, a layer of the last kind, a final norm."""
    assert numel(mtp_weights(model(LLAMA))) == 8 + 4 * 8 + numel(layer_weights(LLAMA, 4, Norm())) + 4


def test_a_weight_counts_all_its_like():
    """`count` tensors of one shape."""
    assert Weight("mlp", "w", (2, 3), count=4).numel == 24


def test_a_given_count_is_taken_as_it_is():
    """`13b-rule-of-thumb` has exactly 13 billion."""
    assert parameters(model(LLAMA, given_parameters=13)) == 13


def test_published_counts_of_ranks_are_exact():
    """Every rank that a training log prints: dense, grouped, tied, biased, with experts."""
    counts = list(rank_counts())
    assert len(counts) > 70
    assert not [c for c in counts if c.published != c.counted]


def test_the_validation_lists_families_and_sources():
    """Rows of the catalogue's families, then of the ranks' sources, each with its citation."""
    validation = validate_parameters()
    ranks = [row for row in validation.rows if row.family.startswith("ranks: ")]
    assert {row.family.removeprefix("ranks: ") for row in ranks} == set(validation.sources)
    assert sum(row.models for row in ranks) == len(list(rank_counts()))
    assert all(row.exact <= row.models for row in validation.rows)
    assert validation.left_out
