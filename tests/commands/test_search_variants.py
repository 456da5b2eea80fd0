"""`plan search --objective/--pareto/--robust/--why`: what is asked, exit codes, and what contradicts itself."""

from __future__ import annotations

import csv
import io

import pytest

SMALL = ("--model", "7b", "--gpus", "4xA100-80G", "--global-batch", "64")
FAST = (*SMALL, "--micro-batch", "1", "--vpp", "1", "--recompute", "none,full")


def test_the_default_objective_is_told_with_unit_and_proof(plan) -> None:
    """Keys are added to the contract's objective, and what was pinned stands among the inputs."""
    data = plan(*FAST, "--tp", "2,4", "--json").data
    assert data["objective"]["unit"] == "seconds" and data["objective"]["proved"] is True
    choices = data["inputs"]["choices"]
    assert choices["pinned"] == {"vpp": 1, "micro_batch": 1}
    assert choices["restricted"] == {"tp": [2, 4], "recompute": ["none", "full"]}
    assert not {"pareto", "robust", "why", "counts"} & data.keys()


def test_the_frontier_begins_at_the_fastest(plan) -> None:
    """The first point is the first plan; each later one is slower and leaves more; CSV has one line a point."""
    answer = plan(*FAST, "--pareto", "--pareto-step", "8GiB", "--json")
    assert answer.code == 0
    data = answer.data
    points = data["pareto"]["points"]
    assert data["pareto"]["complete"] and data["pareto"]["step_bytes"] == 8 * 2**30
    assert points[0]["layout"] == data["plans"][0]["layout"]
    assert [p["step_seconds"] for p in points] == sorted(p["step_seconds"] for p in points)
    assert [p["headroom_bytes"] for p in points] == sorted(p["headroom_bytes"] for p in points)
    assert all(p["proved"] for p in points)
    rows = list(csv.DictReader(io.StringIO(plan(*FAST, "--pareto", "--pareto-step", "8GiB", "--format", "csv").out)))
    assert [int(row["headroom_bytes"]) for row in rows] == [p["headroom_bytes"] for p in points]


def test_least_memory_is_the_end_of_the_frontier(plan) -> None:
    """--objective memory and the last point of the frontier agree to the byte."""
    memory = plan(*FAST, "--objective", "memory", "--json").data
    points = plan(*FAST, "--pareto", "--pareto-step", "16GiB", "--json").data["pareto"]["points"]
    assert memory["objective"]["name"] == "peak_bytes" and memory["objective"]["proved"]
    assert memory["objective"]["value"] == memory["objective"]["lower_bound"] == points[-1]["peak_bytes"]
    peaks = [max(s["total_bytes"] for s in p["memory"]["stages"]) for p in memory["plans"]]
    assert peaks == sorted(peaks)


def test_fewest_gpus(plan) -> None:
    """7B needs two cards: one is refuted, and the plan is for two, whatever number was given."""
    data = plan("--model", "7b", "--gpus", "8xA100-80G", "--objective", "gpus", "--json").data
    refuted = {c["gpus"] for c in data["counts"] if c["status"] == "infeasible"}
    assert data["objective"]["name"] == "gpus" and data["objective"]["proved"]
    assert data["objective"]["value"] == data["inputs"]["cluster"]["gpus"] == max(c["gpus"] for c in data["counts"])
    assert all(gpus < data["objective"]["value"] for gpus in refuted)
    assert plan("--model", "70b", "--gpus", "1xA100-80G", "--objective", "gpus", "--json").code == 3


def test_the_cheapest_token(plan) -> None:
    """The chosen count has the least cost of all that were judged; a price turns GPU-seconds into money."""
    data = plan(*SMALL, "--objective", "cost", "--gpu-hour-price", "$3.6", "--json").data
    costs = {c["gpus"]: c["cost_per_million_tokens"] for c in data["counts"] if c["cost_per_million_tokens"]}
    assert data["objective"]["value"] == min(costs.values()) == costs[data["inputs"]["cluster"]["gpus"]]
    best = next(c for c in data["counts"] if c["gpus"] == data["inputs"]["cluster"]["gpus"])
    assert best["cost_per_million_tokens"] == pytest.approx(best["gpu_seconds_per_token"] * 10**6 * 3.6 / 3600)
    tokens = data["inputs"]["workload"]["global_batch"] * data["inputs"]["workload"]["seq_length"]
    assert best["gpu_seconds_per_token"] == pytest.approx(best["gpus"] * best["step_seconds"] / tokens)
    unpriced = plan(*SMALL, "--objective", "cost", "--json").data
    assert unpriced["objective"]["unit"] == "GPU-seconds per token"
    assert unpriced["objective"]["value"] == pytest.approx(best["gpu_seconds_per_token"])


def test_the_robust_choice(plan) -> None:
    """The chosen plan survives the error of memory; the fastest is beside it with the price."""
    answer = plan(*FAST, "--robust", "--json")
    robust = answer.data["robust"]
    assert answer.code == 0
    assert robust["chosen"]["layout"] == answer.data["plans"][0]["layout"]
    assert robust["chosen"]["survives_memory_error"]
    assert robust["price_seconds"] == pytest.approx(
        robust["chosen"]["step_seconds"] - robust["fastest"]["step_seconds"]
    )
    stage = answer.data["plans"][0]["memory"]["stages"][answer.data["plans"][0]["memory"]["peak_stage"]]
    grown = stage["allocated_bytes"] * (1 + robust["memory_error"]["p90"]) + stage["components"]["reserve"]
    assert grown <= answer.data["plans"][0]["memory"]["capacity_bytes"] + 1


@pytest.mark.parametrize(
    ("spec", "verdict"),
    [
        ("tp=8", "breaks_rules"),
        ("tp=4,pp=1", "slower"),
        ("dp=4,zero=0,recompute=none", "overflows"),
        ("sequence-parallel=off,tp=2", None),
        ("TP=4, micro_batch=1", None),
    ],
)
def test_why_not(plan, spec: str, verdict: str | None) -> None:
    """Every answer is exit code 0 with its verdict."""
    answer = plan(*SMALL, "--why", spec, "--json")
    assert answer.code == 0
    assert answer.data["why"]["verdict"] == verdict or verdict is None
    assert answer.data["why"]["verdict"] in (
        "chosen", "slower", "equal", "faster", "overflows", "breaks_rules", "unknown",
    )  # fmt: skip
    assert plan(*SMALL, "--why", spec).code == 0


def test_why_is_answered_where_nothing_fits(plan) -> None:
    """An infeasible question stays exit code 3, with the answer in it."""
    answer = plan("--model", "70b", "--gpus", "1xA100-80G", "--why", "recompute=full", "--json")
    assert answer.code == 3
    assert answer.data["why"]["verdict"] == "overflows"
    assert answer.data["why"]["overflow"]["over_bytes"] > 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--why", "tp"), "choices such as"),
        (("--why", ""), "choices such as"),
        (("--why", "tpp=8"), "Did you mean tp?"),
        (("--why", "tp=0"), "at least 1"),
        (("--why", "tp=x"), "whole number"),
        (("--why", "tp=1,tp=2"), "twice"),
        (("--why", "zero=7"), "one of 0, 1, 2, 3"),
        (("--why", "sequence-parallel=maybe"), "on or off"),
        (("--objective", "speed"), "one of step-time, memory, gpus, cost"),
        (("--objective", "memory", "--robust"), "at a time"),
        (("--pareto", "--why", "tp=2"), "at a time"),
        (("--gpu-hour-price", "2"), "--objective cost"),
        (("--pareto-step", "1GiB"), "needs --pareto"),
        (("--pareto", "--pareto-step", "3B"), "at least 1MiB"),
        (("--pareto", "--flags", "megatron"), "--flags prints"),
        (("--objective", "cost", "--gpu-hour-price", "H100=2"), "must price A100-80G"),
    ],
)
def test_one_sentence_for_what_is_wrong(plan, arguments: tuple[str, ...], words: str) -> None:
    """Exit code 2, and the sentence says what is required."""
    answer = plan(*SMALL, *arguments)
    assert answer.code == 2 and words in answer.err and "Traceback" not in answer.err


def test_kinds_of_cards_have_no_count(plan) -> None:
    """A smaller number of two kinds of cards is no cluster of its own."""
    answer = plan("--model", "7b", "--gpus", "8xA100-80G+8xH100-80G", "--objective", "gpus")
    assert answer.code == 2 and "GPUs of one kind" in answer.err
