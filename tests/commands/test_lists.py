"""`plan models`, `plan gpus`, `plan rules` and `plan validate`: what is known, with sources."""

from __future__ import annotations

import csv
import io


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
