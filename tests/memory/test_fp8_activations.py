"""What linear layers keep in 8 bits, counted by hand: 8 tokens of width 4, feed-forward width 8."""

from dataclasses import replace

import pytest
from tiny import LATENT, LLAMA, LOCAL, MIXTURE, TE, accounting, laid_out, model, saved, shape

from planner.hardware import parse_gpus
from planner.memory.activations.fp8 import quantized_bytes
from planner.memory.exact import ExactAccounting
from planner.model import MLP
from planner.parameters import Sharding, layer_weights
from planner.workload import Workload

RECIPES = ("delayed", "tensorwise", "blockwise", "mxfp8")


def changed(layer, recipe, **options):
    """(kept in bf16 only, kept in fp8 only): tensors that differ."""
    at = options.pop("at", {})
    bf16, fp8 = (saved(layer, shape(fp8=kind, **at), TE, **options) for kind in ("", recipe))
    return {k: v for k, v in bf16.items() if k not in fp8}, {k: v for k, v in fp8.items() if k not in bf16}


@pytest.mark.parametrize("recipe", RECIPES)
def test_scales(recipe):
    """One fp32 for a tensor; one for 128 elements; one byte for 32: of 300 elements 1, 3 and 10 scales."""
    expected = {"delayed": 304, "tensorwise": 304, "blockwise": 300 + 3 * 4, "mxfp8": 300 + 10}
    assert quantized_bytes(recipe, 300) == expected[recipe]


def test_a_dense_layer_with_delayed_scaling():
    """The inputs of the four linear layers take a byte an element and a scale; attention's output stays in bf16 beside
    the projection's copy."""
    gone, new = changed(LLAMA, "delayed")
    assert gone == {"attention input": 2 * 32, "mlp input": 2 * 32, "linear_fc2 input": 2 * 64}
    assert new == {
        "attention input in fp8 for linear_qkv": 32 + 4,
        "attention output in fp8 for linear_proj": 64 + 4,
        "mlp input in fp8 for linear_fc1": 32 + 4,
        "linear_fc2 input in fp8 for linear_fc2": 64 + 4,
    }


@pytest.mark.parametrize("recipe", RECIPES[1:])
def test_the_output_projection_shares_attention_s_output(recipe):
    """All recipes but delayed scaling keep attention's output once, in bf16."""
    _, new = changed(LLAMA, recipe)
    assert "attention output in fp8 for linear_proj" not in new and len(new) == 3


def test_latent_attention_keeps_a_copy_for_each_down_projection():
    """Both down projections quantize the same input; both up projections their own latent, 4 and 2 wide."""
    gone, new = changed(LATENT, "tensorwise")
    assert gone["attention input"] == 2 * 32
    assert {k: v for k, v in new.items() if "linear_fc" not in k} == {
        "attention input in fp8 for linear_q_down_proj": 32 + 4,
        "attention input in fp8 for linear_kv_down_proj": 32 + 4,
        "normalised query latent in fp8 for linear_q_up_proj": 8 * LATENT.attention.q_lora_rank + 4,
        "normalised key-value latent in fp8 for linear_kv_up_proj": 8 * LATENT.attention.kv_lora_rank + 4,
    }


def test_experts_keep_dispatched_tokens_in_fp8_and_the_router_its_input_in_bf16():
    """16 token copies of width 4, 16 x 8 activations; the shared expert keeps a copy beside the router's input."""
    layer = replace(MIXTURE, mlp=replace(MIXTURE.mlp, shared=MLP(8)))
    gone, new = changed(layer, "mxfp8")
    assert "mlp input" not in gone
    assert new["dispatched tokens in fp8 for expert fc1"] == 64 + 2
    assert new["expert fc2 input in fp8 for expert fc2"] == 128 + 4
    assert new["mlp input in fp8 for shared expert linear_fc1"] == 32 + 1


@pytest.mark.parametrize(
    ("layer", "gone"),
    [
        (LATENT, ("attention input",)),
        (MIXTURE, ("expert fc2 input",)),
        (replace(LLAMA, parallel=True, norms=1), ("attention input",)),
    ],
)
def test_what_is_recomputed_is_not_kept_in_fp8_either(layer, gone):
    """With recomputed norms their outputs are kept in no form; with recomputed activations neither."""
    modules = frozenset({"layernorm", "moe_act"})
    every = saved(layer, shape(fp8="tensorwise"), TE)
    kept = saved(layer, shape(fp8="tensorwise"), TE, modules=modules)
    for name in gone:
        assert any(key.startswith(name) for key in every)
        assert not any(key.startswith(name) for key in kept)


def test_sequence_parallelism_divides_the_copies():
    """The column-parallel layers keep their share of the tokens."""
    _, new = changed(LLAMA, "tensorwise", at={"tp": 2, "sequence_parallel": True})
    assert new["attention input in fp8 for linear_qkv"] == 16 + 4


def test_the_accounting_counts_fp8_for_transformer_engine_only():
    """fp8 keeps less with Transformer Engine, the same with local layers; the term says it is estimated."""
    m = model(layers=2)
    for impl, smaller in ((TE, True), (LOCAL, False)):
        found = {p: accounting(m, impl, precision=p).report(laid_out(m), detail=True) for p in ("bf16", "fp8")}
        layer = {p: next(x for x in r.stages[0].pieces if x.kind == "dense") for p, r in found.items()}
        assert (layer["fp8"].saved_bytes_per_microbatch < layer["bf16"].saved_bytes_per_microbatch) is smaller
        rows = {row[1]: row[3] for row in found["fp8"].stages[0].terms if row[0] == "activations"}
        assert rows["layers"] == ("estimated" if smaller else "exact")
        assert any("in fp8" in note for note in found["fp8"].assumptions) is smaller


def test_fp8_parameters_change_no_activation():
    """Gathering parameters in fp8 is about weights: what is kept for the backward pass is the same."""
    m = model(layers=2)
    reports = [
        accounting(m, replace(TE, fp8_param_gather=gather), precision="fp8").report(laid_out(m, dp=2, zero=1))
        for gather in (False, True)
    ]
    assert len({r.stages[0].components["activations"] for r in reports}) == 1
    assert reports[0].stages[0].components["weights"] > reports[1].stages[0].components["weights"]


@pytest.mark.parametrize(
    ("card", "recipe", "copies"),
    [
        ("H100-80G", "tensorwise", 2),
        ("B200", "tensorwise", 1),
        ("B200", "delayed", 1),
        ("B200", "mxfp8", 2),
        ("RTXPRO6000", "tensorwise", 2),
    ],
)
def test_one_copy_of_a_weight_serves_both_products_where_they_take_any_layout(card, recipe, copies):
    """On Blackwell's cards with NVLink, under one scale for a tensor; a gradient's second copy is saved too."""
    m = model(layers=2)
    reports = {
        p: ExactAccounting(m, Workload(8, 8, p), replace(TE, fp8_recipe=recipe), parse_gpus(f"1x{card}")).report(
            laid_out(m), detail=True
        )
        for p in ("bf16", "fp8")
    }
    stage = reports["fp8"].stages[0]
    linear = sum(w.numel for w in weights_of(m) if len(w.shape) >= 2)
    more = stage.components["weights"] - reports["bf16"].stages[0].components["weights"]
    scales = sum(copies * w.numel // 32 for w in weights_of(m) if len(w.shape) >= 2) if recipe == "mxfp8" else 0
    assert more == m.num_layers * (copies * linear + scales)
    told = "row-wise and column-wise" if copies == 2 else "one for both products"
    assert any(told in note for note in reports["fp8"].assumptions)


def weights_of(m):
    """The tensors of the only kind of layer, whole."""
    return layer_weights(m.layer_kinds[0], m.hidden_size, m.norm, Sharding(1, 1, 1, False))
