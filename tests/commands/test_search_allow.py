"""`plan search --allow`: what the search may use beside the defaults, each combination searched, the proof of all."""

from __future__ import annotations

FAST = ("--vpp", "1", "--recompute", "none,full", "--global-batch", "64")


def test_offloading_is_found_where_it_is_needed(plan) -> None:
    """13B does not fit two cards; with its optimizer on the host it does, and the answer says how and what it takes."""
    question = ("--model", "13b", "--gpus", "2xA100-80G", *FAST)
    assert plan(*question, "--json").code == 3
    answer = plan(*question, "--allow", "offload-optimizer,offload-parameters", "--json")
    data = answer.data
    settings = {tuple(s["uses"]): s for s in data["settings"]}
    assert answer.code == 0 and data["status"] == "optimal"
    assert settings[()]["status"] == "infeasible" and not settings[()]["chosen"]
    chosen = next(s for s in settings.values() if s["chosen"])
    fitting = [s["step_seconds"] for s in settings.values() if s["step_seconds"] is not None]
    assert chosen["step_seconds"] == min(fitting) == data["objective"]["value"] == data["objective"]["lower_bound"]
    memory = data["plans"][0]["memory"]
    assert all(stage["host_bytes"] > 0 for stage in memory["stages"])
    assert any("host memory a rank" in said for said in memory["assumptions"])
    assert not any("no offloading" in said for said in memory["assumptions"])


def test_the_next_command_repeats_the_choice(plan) -> None:
    """The command printed under the plan reports the same memory."""
    question = ("--model", "13b", "--gpus", "2xA100-80G", *FAST)
    text = plan(*question, "--allow", "offload-optimizer").out
    command = next(line.strip() for line in text.splitlines() if line.strip().startswith("plan memory"))
    assert "--offload-optimizer 1" in command
    said = plan(*question, "--allow", "offload-optimizer", "--json").data["plans"][0]["memory"]["stages"]
    again = plan(*command.split()[1:], "--json").data["memory"]["stages"]
    assert [s["total_bytes"] for s in again] == [s["total_bytes"] for s in said]


def test_a_narrower_precision_wins_where_the_card_has_it(plan) -> None:
    """fp8 halves the products of a Hopper card; an Ampere card has none: refused with the rule, as no layout was
    there to be proved not to fit."""
    hopper = plan("--model", "7b", "--gpus", "8xH100", *FAST, "--allow", "fp8", "--json").data
    assert [s["uses"] for s in hopper["settings"] if s["chosen"]] == [["fp8"]]
    assert hopper["inputs"]["workload"]["precision"] == "fp8"
    ampere = plan("--model", "7b", "--gpus", "8xA100-80G", *FAST, "--allow", "fp8", "--json").data
    assert [(s["uses"], s["status"]) for s in ampere["settings"]] == [([], "optimal"), (["fp8"], "refused")]
    assert "A100-80G computes no fp8" in ampere["settings"][1]["reason"]


def test_schedules_are_compared(plan) -> None:
    """Where a pipeline is pinned, zero-bubble's smaller bubble wins over 1F1B without virtual stages."""
    data = plan(
        "--model", "7b", "--gpus", "8xA100-80G", *FAST, "--pp", "8", "--micro-batch", "1", "--allow", "zb-h1", "--json"
    ).data
    step = {tuple(s["uses"]): s["step_seconds"] for s in data["settings"]}
    assert step[("zb-h1",)] < step[()]
    assert data["plans"][0]["step"]["seconds"] == step[("zb-h1",)]


def test_what_no_node_holds_is_refused(plan) -> None:
    """More host memory than a node of the card has is refused with both figures: each parameter's state is on
    some host."""
    question = ("--model", "llama-3.1-405b", "--gpus", "8xA100-80G", *FAST, "--allow", "offload-parameters")
    answer = plan(*question, "--json")
    refused = answer.data["settings"][-1]
    assert answer.code == 3 and refused["status"] == "refused" and "host memory a node" in refused["reason"]


def test_bad_words_are_refused(plan) -> None:
    """An unknown word and a second variant are one sentence each."""
    answer = plan("--model", "7b", "--gpus", "8xA100-80G", "--allow", "fp6")
    assert answer.code == 2 and "fp8" in answer.err
    both = plan("--model", "7b", "--gpus", "8xA100-80G", "--allow", "fp8", "--pareto")
    assert both.code == 2 and "at a time" in both.err
