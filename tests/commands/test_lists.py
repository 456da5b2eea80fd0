"""`plan models`, `plan gpus`, `plan rules` and `plan validate`: what is known, with sources."""

from __future__ import annotations

import csv
import io

import pytest


def test_models(plan) -> None:
    """At least 60 models, exact counts, and the names that scripts count on."""
    listed = {m["name"]: m for m in plan("models", "--json").data["models"]}
    assert len(listed) >= 60
    assert listed["mixtral-8x7b"]["parameters"] == 46_702_792_704
    known = {name for m in listed.values() for name in (m["name"], *m["aliases"])}
    assert known >= {"7b", "13b", "70b", "175b", "gpt3-175b", "llama-3-8b", "deepseek-v3", "megatron-1t"}


def test_gpus(plan) -> None:
    """At least 30 cards and a dozen clusters, every card with sources."""
    data = plan("gpus", "--json").data
    assert len(data["cards"]) >= 30 and len(data["clusters"]) >= 12
    assert all(card["sources"] for card in data["cards"])


def test_rules(plan) -> None:
    """Each rule has an id, a sentence and a source."""
    rules = plan("rules", "--json").data["rules"]
    assert len({rule["id"] for rule in rules}) == len(rules) > 20
    assert all(rule["sentence"] and rule["source"] for rule in rules)


def test_a_text_filters(plan) -> None:
    """`plan gpus a100` keeps the cards and clusters with that in their name."""
    data = plan("gpus", "a100", "--json").data
    assert data["cards"] and all("a100" in card["name"].lower() for card in data["cards"])


def test_one_is_not_plural(plan) -> None:
    """One model, card or rule is named as one."""
    assert plan("models", "gpt-oss-120b").out.startswith("1 model\n")
    assert plan("gpus", "GB300").out.startswith("1 card (")
    assert plan("rules", "zero-stage").out.startswith("1 rule that")


def test_what_is_empty_is_left_out(plan) -> None:
    """No column without an entry, no table without a row; with entries both are there."""
    assert "also called" not in plan("models", "gpt-oss-120b").out
    assert "also called" in plan("models", "llama-2-70b").out
    card = plan("gpus", "H100-80G").out
    assert "clusters" not in card and "cluster " not in card and "bf16/s" in card
    assert "cards" not in plan("gpus", "eos").out
    assert "bf16/s" not in plan("gpus", "T4").out
    assert "furthest off" not in plan("validate", "--what", "parameters").out


def test_the_shape_of_a_model(plan) -> None:
    """Key-value heads, widths, context and legal tensor parallelism of the models that were asked for."""
    (dense,) = plan("models", "llama-2-70b", "--json").data["models"]
    assert (dense["num_query_groups"], dense["ffn_hidden_size"], dense["max_positions"]) == ([8], [28672], 4096)
    assert dense["legal_tp"] == [1, 2, 4, 8, 16, 32, 64]
    assert dense["legal_tp_replicating_key_value_heads"] == [16, 32, 64]
    out = plan("models", "llama-2-70b").out
    assert "1, 2, 4, 8; 16, 32, 64 replicate KV heads" in out and "28672" in out
    listed = {m["name"]: m for m in plan("models", "deepseek-v3", "gpt-oss-20b", "qwen2-0.5b", "--json").data["models"]}
    latent = listed["deepseek-v3"]
    assert latent["latent_attention"] and latent["num_query_groups"] == [] and latent["num_experts"] == [256]
    assert (latent["ffn_hidden_size"], latent["moe_ffn_hidden_size"]) == ([18432], [2048])
    assert listed["gpt-oss-20b"]["legal_tp"][0] == 1  # sinks take another kernel than the default
    assert listed["qwen2-0.5b"]["legal_tp"] == [1, 2]  # 14 heads, 2 key-value heads: not 7
    assert "legal_tp" not in plan("models", "--json").data["models"][0]


@pytest.mark.parametrize("name", ["llama-3-8b", "mixtral-8x7b", "qwen3-235b-a22b", "gpt-oss-120b", "deepseek-v2-lite"])
def test_a_legal_size_is_one_that_a_plan_takes(plan, name: str) -> None:
    """`plan memory` takes the largest legal size and refuses its double."""
    (model,) = plan("models", name, "--json").data["models"]
    largest = model["legal_tp"][-1]

    def code(tp: int) -> int:
        one_node = ("--gpus", f"1x{tp}xB200", "--tp", tp, "--sequence-parallel", "--zero", 0)
        return plan("memory", "--model", name, *one_node, *(("--etp", 1) if model["moe"] else ())).code

    assert code(largest) == 0
    assert largest == 64 or code(2 * largest) == 2


def test_a_rack_is_a_domain(plan) -> None:
    """Links that reach beyond a node say how far; the host's memory stands beside its node."""
    rack = plan("gpus", "GB200").out
    assert "nvlink 72" in rack and "connect 72 GPUs" in rack and "894" in rack
    node = plan("gpus", "H100-80G").out
    assert "nvlink 8" not in node and "1,863" in node
    assert "host" not in plan("gpus", "A30").out


def test_the_sign_of_errors_is_said_once(plan) -> None:
    """Before the tables of all kinds of measurement."""
    out = " ".join(plan("validate").out.split())
    assert out.startswith("Errors are (predicted - measured) / measured: negative where too little is predicted")
    assert out.count("(predicted - measured)") == 1


def test_validate(plan) -> None:
    """Rows by source with count, median, 90th percentile and worst, and what was left out and why."""
    data = plan("validate", "--what", "step", "--json").data
    assert set(data) == {"version", "step"}
    for row in data["step"]["rows"]:
        assert row["runs"] > 0 and abs(row["worst_error"]) >= row["p90_error"] - 1e-12 >= 0
    assert data["step"]["left_out"]


def test_validate_memory(plan) -> None:
    """Peaks by source and card, toys apart, with the reason for each record that is left out."""
    data = plan("validate", "--what", "memory", "--json").data["memory"]
    assert {row["size"] for row in data["rows"]} == {"full", "toy"}
    assert all(row["stages"] >= row["right"] >= 0 for row in data["rows"])
    assert data["left_out"] and data["sources"]


def test_what_may_be_repeated(plan) -> None:
    """Two kinds of measurement in one document, and without --what all of them."""
    assert set(plan("validate", "--what", "step", "--what", "parameters", "--json").data) == {
        "version", "step", "parameters",
    }  # fmt: skip
    assert set(plan("validate", "--json").data) == {"version", "parameters", "memory", "step"}


def test_validate_parameters(plan) -> None:
    """Every published count is met exactly."""
    rows = list(csv.DictReader(io.StringIO(plan("validate", "--what", "parameters", "--format", "csv").out)))
    assert rows and all(row["models"] == row["exact"] for row in rows)
