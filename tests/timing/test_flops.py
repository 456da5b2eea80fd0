"""FLOPs that MFU counts, against the literature's formula."""

import pytest

from planner.catalog import load_model
from planner.timing.flops import layer_flops, model_flops


def test_gpt3_against_the_published_formula():
    """72 B L s h^2 (1 + s / 12h + V / 12hL): Korthikanti et al. 2022, with causal attention counted half."""
    model = load_model("gpt3-175b")
    batch, s, h, layers = 1536, 2048, model.hidden_size, model.num_layers
    expected = 72 * batch * layers * s * h * h * (1 + s / (12 * h) + model.vocab_size / (12 * h * layers))
    assert model_flops(model, s, batch) == pytest.approx(expected, rel=1e-6)


def test_a_mixture_counts_the_chosen_experts_only():
    """Mixtral has 8 experts and counts 2."""
    model = load_model("mixtral-8x7b")
    layer = model.layers[0]
    total, core = layer_flops(model, layer, 4096)
    h, f = model.hidden_size, layer.mlp.expert.ffn_hidden_size
    attention = 2 * h * h + 2 * h * 1024
    expected = 2 * 4096 * (attention + 2 * 3 * h * f + 8 * h)
    assert total - core == expected


def test_a_window_bounds_the_attention():
    """Twice the sequence doubles windowed attention's core and quadruples full attention's."""
    model = load_model("llama-2-7b")
    cores = [layer_flops(model, model.layers[0], s)[1] for s in (4096, 8192)]
    assert cores[1] == 4 * cores[0]
