"""What one command says of a layout, the others say too, and every command that is printed can be run."""

import json
import shlex

import pytest


def next_commands(answer):
    """The commands under `Next` and of the hints of a report."""
    lines = [line.strip() for line in answer.out.splitlines()]
    return [shlex.split(line)[1:] for line in lines if line.startswith("plan ")]


def test_zero_3_on_one_gpu_is_part_of_the_search(plan):
    """FSDP2 keeps fewer copies of the weights than Megatron: a model of 4.5 B parameters fits one card with it alone,
    and what needs least memory on eight cards without data parallelism is found too."""
    found = plan("--model", "arcee-afm-4.5b", "--gpus", "1xA100-80G", "--json").data
    assert found["plans"][0]["layout"]["zero"] == 3
    least = plan("--model", "13b", "--gpus", "8xA100-80G", "--objective", "memory", "--json").data
    given = plan("memory", "--model", "13b", "--gpus", "8xA100-80G", "--tp", "8", "--zero", "3", "--recompute", "full",
                 "--json").data  # fmt: skip
    assert least["objective"]["value"] <= max(s["total_bytes"] for s in given["memory"]["stages"])


def test_selective_recomputation_that_is_asked_for_may_drop_nothing(plan):
    """core_attn is what `plan memory --recompute selective` means: pinned, the search is no slower than it."""
    shared = ("--model", "13b", "--gpus", "8xA100-80G", "--recompute", "selective", "--json")
    best = plan(*shared).data["plans"][0]
    one = plan("memory", *shared, "--tp", "1", "--cp", "2", "--pp", "2", "--zero", "1", "--time").data
    assert one["memory"]["fits"]
    assert best["step"]["seconds"] <= one["step"]["seconds"]
    assert best["layout"]["recompute"] == "selective"


def test_the_next_commands_of_fewer_gpus_ask_for_those(plan):
    """--objective gpus answers on fewer GPUs than were typed."""
    shared = ("--model", "13b", "--gpus", "8xA100-80G", "--objective", "gpus")
    seconds = plan(*shared, "--json").data["plans"][0]["step"]["seconds"]
    command = next_commands(plan(*shared))[0]
    assert command[command.index("--gpus") + 1] == "4xA100-80G"
    again = plan(*[word for word in command if word != "--detail"], "--time", "--json").data
    assert again["step"]["seconds"] == seconds


@pytest.mark.parametrize(("model", "flags"), [("gemma-2b", True), ("ernie-4.5-21b-a3b", False)])
def test_launch_arguments_are_offered_where_there_are_some(plan, model, flags):
    """ERNIE has a learned bias of its router and no others, for which Megatron-LM has no argument."""
    pins = ("--tp", "1", "--pp", "1", "--cp", "1", "--ep", "1", "--recompute", "full", "--micro-batch", "1")
    commands = next_commands(plan("--model", model, "--gpus", "8xH100-80G", *pins))
    assert any("--flags" in command for command in commands) is flags
    for command in commands:
        assert plan(*command).code == 0


def test_hints_keep_the_choice_of_sequence_parallelism(plan):
    """Without it a remedy would be another question."""
    refused = plan("--model", "13b", "--gpus", "4xA100-40G", "--tp", "2", "--no-sequence-parallel")
    commands = next_commands(refused)
    assert commands and all("--no-sequence-parallel" in command for command in commands)


def test_arguments_are_written_to_any_file_as_they_are(plan, tmp_path):
    """A DeepSpeed configuration is JSON, a launch a script; `plan check` reads both."""
    shared = ("--model", "13b", "--gpus", "8xA100-80G", "--tp", "1")
    config, script = tmp_path / "ds.json", tmp_path / "launch.sh"
    plan("memory", *shared, "--zero", "3", "--sharded-by", "deepspeed", "--flags", "deepspeed", "-o", str(config))
    assert json.loads(config.read_text())["zero_optimization"]["stage"] == 3
    assert plan("check", str(config), "--model", "13b", "--gpus", "8xA100-80G").code in (0, 1)
    plan("memory", *shared, "--zero", "1", "--flags", "megatron", "-o", str(script))
    assert "Keeps every rule" in plan("check", str(script), "--gpus", "8xA100-80G").out


def test_a_reserve_leaves_something_of_a_card(plan):
    """More than a card's memory is a mistake of units."""
    refused = plan("--model", "13b", "--gpus", "8xA100-80G", "--reserve", "90GiB")
    assert refused.code == 2 and "must be less than the memory of a GPU (79.2 GiB on A100-80G)" in refused.err


def test_mixtures_on_many_nodes_are_searched(plan):
    """Hybrid sharding of experts that have groups of their own is left out, not stumbled over."""
    pins = ("--pp", "1", "--vpp", "1", "--zero", "2,3", "--recompute", "full")
    assert plan("--model", "mixtral-8x7b", "--gpus", "64xH100-80G", *pins).code in (0, 3)


@pytest.mark.parametrize("rule", ["router-one-expert", "selective-recompute-counts", "tensor-heads"])
def test_every_rule_that_a_check_can_name_is_in_the_book(plan, rule):
    """Those that only a launch's words can break too."""
    assert plan("rules", rule).code == 0


def test_a_name_that_goes_on_is_meant_first(plan):
    """llama-3 is the beginning of llama-3-8b, not a misspelt llama-30b."""
    assert "did you mean llama-3-8b, llama-3-70b" in plan("--model", "llama-3", "--gpus", "8xH100").err


def test_reports_say_how_the_batch_is_cut(plan):
    """Global batch over micro-batch and data-parallel ranks."""
    shared = ("--model", "13b", "--gpus", "8xA100-80G", "--global-batch", "64")
    told = plan("memory", *shared, "--tp", "2", "--micro-batch", "1").out
    assert "16 microbatches a step" in " ".join(told.split())
