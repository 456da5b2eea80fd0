"""Mixtures of experts, latent attention and the edges of a model: bytes kept, at sizes that a pencil can check."""

from dataclasses import replace

from tiny import LATENT, LLAMA, LOCAL, MIXTURE, TE, saved, shape

from planner.memory.activations.edges import embedding_saved, final_norm_saved, head_saved, loss_saved
from planner.model import MLP, Layer, MoE, Norm

MOE = MIXTURE.mlp


def test_a_mixture_tensor_by_tensor():
    """8 tokens to 2 of 4 experts of width 8: 16 token copies, dropless and balanced."""
    kept = saved(MIXTURE, shape())
    dense = saved(LLAMA, shape())
    assert {k: v for k, v in kept.items() if k not in dense} == {
        "routing": 8 * (4 + 2 * (8 + 4)),  # a bool for each expert, an index and an fp32 score for each choice
        "permutation": 16 * 16,
        "dispatched tokens": 2 * 16 * 4,
        "expert fc1 output": 2 * 16 * 16,
        "expert fc2 input": 2 * 16 * 8,
        "expert probabilities": 2 * 16,
    }


def test_more_expert_ranks_do_not_change_what_a_rank_computes():
    """Each rank routes its own tokens to all experts and computes as many of everybody's."""
    assert saved(MIXTURE, shape(ep=1)) == saved(MIXTURE, shape(ep=4))


def test_a_sigmoid_router_keeps_all_scores_and_their_sum():
    """4 fp32 scores and one fp32 sum a token."""
    layer = replace(MIXTURE, mlp=replace(MOE, score_function="sigmoid"))
    assert saved(layer, shape())["routing"] - saved(MIXTURE, shape())["routing"] == 8 * (4 * 4 + 4)


def test_fp32_routing_keeps_fp32_probabilities():
    """4 bytes for each token copy instead of 2."""
    assert saved(MIXTURE, shape(), replace(LOCAL, moe_router_fp32=True))["expert probabilities"] == 4 * 16


def test_a_shared_expert_is_an_mlp_beside_the_others():
    """It reads the same input, kept once, and keeps its own two inner tensors."""
    layer = replace(MIXTURE, mlp=replace(MOE, shared=MLP(6)))
    kept = saved(layer, shape())
    assert {k: v for k, v in kept.items() if k not in saved(MIXTURE, shape())} == {
        "shared expert linear_fc1 output": 2 * 8 * 12,
        "shared expert linear_fc2 input": 2 * 8 * 6,
    }


def test_recomputing_the_mixture_or_its_activation():
    """`moe` keeps the layer's input alone; `moe_act` lets the activation's output go."""
    kept = saved(MIXTURE, shape())
    assert set(kept) - set(saved(MIXTURE, shape(), modules=frozenset({"moe"}))) == {
        "routing",
        "permutation",
        "dispatched tokens",
        "expert fc1 output",
        "expert fc2 input",
        "expert probabilities",
    }
    assert set(kept) - set(saved(MIXTURE, shape(), modules=frozenset({"moe_act"}))) == {"expert fc2 input"}


def test_unfused_weighting_keeps_the_unweighted_activation():
    """A GELU expert has no kernel that multiplies with the routing probability: both factors are kept."""
    layer = Layer(MIXTURE.attention, MoE(4, 2, MLP(8, gated=False)))
    assert saved(layer, shape())["unweighted activation"] == 2 * 16 * 8
    assert "unweighted activation" not in saved(MIXTURE, shape())


def test_a_clamped_activation_keeps_both_halves_twice():
    """Clamps of their own keep what they clamp, the fused kernel what they made: 16 copies of 2 x 8 elements. Unfused,
    the gate alone is made for the activation. Recomputed, the up projection's output is all that stays."""
    expert = replace(MOE.expert, clamp=7.0)
    layer = replace(MIXTURE, mlp=replace(MOE, expert=expert))
    kept = saved(layer, shape())
    assert {k: v for k, v in kept.items() if k not in saved(MIXTURE, shape())} == {"clamped halves": 2 * 16 * 16}
    unfused = replace(LOCAL, bias_activation_fusion=False)
    assert saved(layer, shape(), unfused)["clamped halves"] == 2 * 16 * 8
    for implementation in (LOCAL, unfused):
        again = saved(layer, shape(), implementation, modules=frozenset({"moe_act"}))
        assert again["expert fc1 output"] == kept["expert fc1 output"]
        assert not set(again) & {"clamped halves", "silu output and linear half", "expert fc2 input"}


def test_biases_of_experts_keep_nothing():
    """The sums of output and weighted bias, and then their concatenation, stand beside the output for a moment only."""
    layer = replace(MIXTURE, mlp=replace(MOE, expert=replace(MOE.expert, bias=True)))
    assert saved(layer, shape()) == saved(MIXTURE, shape())


def test_latent_attention_tensor_by_tensor():
    """2 heads; latents of 4 for queries and 4 + 2 for keys and values; heads of 2 + 2 and values of 2."""
    kept = saved(LATENT, shape(), rotary_dim=2)
    dense = {"layer input", "input_layernorm statistics", "attention residual", "pre_mlp_layernorm statistics"}
    dense |= {"mlp input", "linear_fc1 output", "linear_fc2 input"}
    assert {k: v for k, v in kept.items() if k not in dense} == {
        "attention input": 64,
        "query latent": 2 * 8 * 4,
        "q_layernorm statistics": 4 * 8,
        "normalised query latent": 2 * 8 * 4,
        "key-value latent": 2 * 8 * (4 + 2),  # the rotary key is a view of it
        "kv_layernorm statistics": 4 * 8,
        "normalised key-value latent": 2 * 8 * 4,
        "rope cos and sin": 2 * 2 * 2 * 8 * 2,
        "query heads": 2 * 8 * 2 * 4,
        "key heads": 2 * 8 * 2 * 4,
        "value heads": 2 * 8 * 2 * 2,
        "attention output": 2 * 8 * 2 * 2,
        "attention logsumexp": 4 * 8 * 2,
        "attention rng": 16,
    }


def test_recomputed_up_projections_let_the_heads_go():
    """`mla_up_proj` rebuilds query, key and value heads from the latents: normalised by modules of their own in the
    local layers; in Transformer Engine's the norm is part of the projection and rebuilt with it."""
    normalised = {"normalised query latent", "normalised key-value latent"}
    for impl, kept in ((LOCAL, normalised), (TE, set())):
        lean = saved(LATENT, shape(), impl, rotary_dim=2, modules=frozenset({"mla_up_proj"}))
        assert not {"query heads", "key heads", "value heads"} & set(lean)
        assert {"query latent", "key-value latent"} <= set(lean)
        assert normalised & set(lean) == kept


def test_fewer_key_groups_than_tensor_parallel_ranks():
    """With 2 groups of width 2 on 4 ranks each rank has a whole group; the local layers keep the gathered projection,
    16 wide, of which theirs is a slice."""
    at = shape(tp=4)
    kept = saved(LLAMA, at, TE)
    assert (kept["query"], kept["key"], kept["value"]) == (2 * 8 * 2, 2 * 8 * 2, 2 * 8 * 2)
    assert saved(LLAMA, at, LOCAL)["qkv"] == 2 * 8 * (8 + 2 * 4)
    assert saved(LLAMA, shape(tp=2), TE)["key"] == 2 * 8 * 2


def test_a_gated_shared_expert_keeps_both_factors():
    """Its output, 8 tokens of width 4, and a sigmoid for each token; nothing where the module is recomputed."""
    shared = replace(MIXTURE, mlp=replace(MIXTURE.mlp, shared=MLP(8)))
    gated = replace(shared, mlp=replace(shared.mlp, shared_gate=True))
    plain, kept = saved(shared, shape()), saved(gated, shape())
    assert {k: v for k, v in kept.items() if k not in plain} == {
        "shared expert output": 64,
        "shared expert gate": 2 * 8,
    }
    modules = frozenset({"shared_experts"})
    assert saved(gated, shape(), modules=modules) == saved(shared, shape(), modules=modules)


def test_transformer_engine_shards_the_latents_and_the_local_layers_gather_them():
    """With tp 2 and sp, TE keeps half a query latent; the local spec keeps the whole storage that it sliced."""
    at = shape(tp=2, sequence_parallel=True)
    assert saved(LATENT, at, TE)["query latent"] == 32
    assert saved(LATENT, at, LOCAL)["query latent"] == 64


def test_the_embedding_keeps_masks_only():
    """Nothing on one rank without dropout; a one-byte dropout mask; 9 bytes a token of masked ids under tp."""
    assert embedding_saved(shape()) == {}
    assert sum(embedding_saved(shape(hidden_dropout=0.1)).values()) == 8 * 4
    assert sum(embedding_saved(shape(tp=2)).values()) == 9 * 8


def test_final_norm_and_head_keep_their_inputs():
    """2 sbh each, and 4 (RMSNorm) or 8 (LayerNorm) bytes of statistics a token, all divided by sp."""
    assert sum(final_norm_saved(shape(), Norm("RMSNorm")).values()) == 64 + 32
    assert sum(final_norm_saved(shape(), Norm("LayerNorm")).values()) == 64 + 64
    assert sum(head_saved(shape(tp=2, sequence_parallel=True)).values()) == 32


def test_the_loss_keeps_fp32_softmax_or_half_precision_gradients():
    """4 sbv/t + 9 sb of Megatron's cross entropy; Transformer Engine's keeps the gradient in the logits, 2 sbv/t."""
    assert sum(loss_saved(shape(), LOCAL, 16).values()) == 4 * 8 * 16 + 9 * 8
    assert sum(loss_saved(shape(), replace(LOCAL, cross_entropy="te"), 16).values()) == 2 * 8 * 16


def test_recomputed_shared_experts_keep_the_router_s_input_only():
    """Of the shared expert nothing is kept: it is rebuilt from the input that the router keeps anyway."""
    layer = replace(MIXTURE, mlp=replace(MOE, shared=MLP(8)))
    kept, lean = saved(layer, shape()), saved(layer, shape(), modules=frozenset({"shared_experts"}))
    gone = {k: v for k, v in kept.items() if k not in lean}
    assert gone == {"shared expert linear_fc1 output": 2 * 8 * 16, "shared expert linear_fc2 input": 2 * 8 * 8}
    assert lean["mlp input"] == 2 * 32
