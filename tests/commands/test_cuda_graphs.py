"""--cuda-graphs: in a search, in what it says to run next, and refused where it cannot be."""

from __future__ import annotations

import pytest

MIXTURE = ("--model", "qwen3-30b-a3b", "--gpus", "8xB200", "--seq-length", "4096", "--global-batch", "256")
SCOPE = "attn,moe_router,moe_preprocess"


def test_a_search_with_graphs_is_never_slower(plan) -> None:
    """The same layouts are open (full recompute apart), each with less for the host to issue."""
    pins = ("--ep", "8", "--micro-batch", "1,2")
    without, graphed = plan(*MIXTURE, *pins, "--json"), plan(*MIXTURE, *pins, "--cuda-graphs", SCOPE, "--json")
    assert graphed.data["objective"]["value"] < without.data["objective"]["value"]
    assert graphed.data["inputs"]["implementation"]["cuda_graphs"] == SCOPE.split(",")
    assert all("full" not in str(p["layout"]["recompute"]) for p in graphed.data["plans"])


def test_what_was_asked_is_said_and_repeated(plan) -> None:
    """The report names the graphs, and that their buffers are not counted; its commands and arguments ask for them."""
    text = plan("memory", *MIXTURE, "--ep", "8", "--cuda-graphs", SCOPE).out
    words = " ".join(text.split())
    assert "CUDA graphs of attn, moe_router, moe_preprocess: their static buffers are not counted" in words
    assert f"--cuda-graphs {SCOPE}" in text
    flags = plan("memory", *MIXTURE, "--ep", "8", "--cuda-graphs", SCOPE, "--flags", "megatron").out
    assert "--cuda-graph-modules attn moe_router moe_preprocess" in " ".join(flags.replace("\\", " ").split())


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ("layer,attn", "must be layer, or iteration, or modules, but attn,layer was given"),
        ("heads", "one of attn, mlp, moe, moe_router, moe_preprocess, layer, iteration is required"),
        ("moe", "needs a capacity factor and padding to it"),
        ("moe_preprocess", "of moe_preprocess also moe_router"),
    ],
)
def test_what_cannot_be_captured_is_one_sentence(plan, given, sentence) -> None:
    """Words that are none, contradictions, and what Megatron's configuration refuses."""
    answer = plan("memory", *MIXTURE, "--ep", "8", "--cuda-graphs", given)
    assert answer.code == 2 and sentence in answer.err and "Traceback" not in answer.err
