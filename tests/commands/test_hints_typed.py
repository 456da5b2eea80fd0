"""The command line of a remedy repeats what the user asked for."""

from __future__ import annotations

import json


def test_a_remedy_keeps_the_model_file_and_the_options(plan, tmp_path) -> None:
    config = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 8192, "num_hidden_layers": 80,
        "num_attention_heads": 64, "num_key_value_heads": 8, "intermediate_size": 28672, "vocab_size": 128256,
        "max_position_embeddings": 8192, "tie_word_embeddings": False,
    }  # fmt: skip
    path = tmp_path / "my config.json"
    path.write_text(json.dumps(config))
    code, out, _ = plan("--model", str(path), "--gpus", "4xA100-80G", "--precision", "fp16", "--reserve", "6GiB")
    assert code == 3
    commands = [line.strip() for line in out.splitlines() if line.strip().startswith("plan --model")]
    assert commands
    for command in commands:
        assert f"--model '{path}'" in command or str(path) in command
        assert "--precision fp16" in command and "--reserve 6GiB" in command


def hints(answer) -> list[tuple[str, str]]:
    return [(hint["sentence"], hint["command"]) for hint in answer.data["explanation"]["hints"]]


def test_a_precision_that_the_card_has_not_is_remedied_by_one_it_has_and_by_a_card(plan) -> None:
    """Of fp8 on A100: bf16 on the same cards, and a card of the same size and links that has fp8. Both commands run."""
    fp8 = ("--precision", "fp8", "--fp8-recipe", "tensorwise", "--top", "1")
    refused = plan("--model", "7b", "--gpus", "8xA100-80G", *fp8, "--json")
    assert refused.code == 3
    (narrow, in_bf16), (card, on_card) = hints(refused)
    assert narrow.startswith("in bf16 it fits on the same 8 GPUs")
    assert "--precision bf16" in in_bf16 and "fp8" not in in_bf16
    assert card.startswith("8 H100-80G hold it") and "--precision fp8 --fp8-recipe tensorwise" in on_card
    assert plan(*in_bf16.split()[1:], "--top", "1").code == plan(*on_card.split()[1:], "--top", "1").code == 0


def test_a_batch_that_does_not_divide_is_remedied_by_the_nearest_and_by_the_pin(plan) -> None:
    """3 sequences over 2 ranks: 2 or 4 would divide, and without --dp one rank takes them all."""
    refused = plan("--model", "7b", "--gpus", "8xA100-80G", "--global-batch", "3", "--dp", "2", "--json")
    assert refused.code == 3
    (fact,) = refused.data["explanation"]["facts"]
    assert fact["id"] == "batch-divides" and fact["sentence"].endswith("global batch 2 or 4 would divide")
    (batch, with_batch), (freed, without_pin) = hints(refused)
    assert batch.startswith("a global batch of 2 fits") and "--global-batch 2 --dp 2" in with_batch
    assert freed.startswith("without --dp it fits") and "--dp" not in without_pin
    assert plan(*with_batch.split()[1:]).code == plan(*without_pin.split()[1:]).code == 0


def test_a_choice_of_sequence_parallelism_in_the_way_is_named_as_it_was_typed(plan) -> None:
    """One GPU has no tp > 1; without the choice 1.3B fits it."""
    refused = plan("--model", "gpt3-1.3b", "--gpus", "1xA100-80G", "--sequence-parallel", "--json")
    assert hints(refused)[0][0].startswith("without --sequence-parallel it fits on the same GPU:")


def test_a_remedy_keeps_the_network_that_it_was_solved_on(plan) -> None:
    """More nodes of a named cluster are named so; its command finds a layout on that network."""
    refused = plan("--model", "gpt3-175b", "--cluster", "polaris:4", "--global-batch", "512", "--json")
    assert refused.code == 3
    command = next(command for _, command in hints(refused) if "--cluster" in command)
    assert "--cluster polaris:32 " in command
    found = plan(*command.split()[1:], "--top", "1", "--json")
    assert found.code == 0
    assert found.data["inputs"]["cluster"]["network"]["bytes_per_second_per_gpu"] == 12.5e9
    pinned = ("--global-batch", "64", "--tp", "1", "--pp", "1")
    freed = hints(plan("--model", "gpt3-175b", "--cluster", "polaris", *pinned, "--json"))
    assert ["--cluster polaris " in command for sentence, command in freed if sentence.startswith("without")] == [True]


def test_no_remedy_has_more_gpus_than_a_question_may(plan) -> None:
    """Where even a million GPUs would not do, the answer is what stands in the way, not an error about their number."""
    pinned = ("--global-batch", "3", "--tp", "1", "--pp", "1", "--cp", "1", "--micro-batch", "1")
    refused = plan("--model", "13b", "--gpus", "16384xH100-80G", *pinned, "--json")
    assert refused.code == 3 and refused.data["status"] == "infeasible"
    assert refused.data["explanation"]["facts"]


def test_a_pinned_split_is_argued_with_and_kept_by_the_remedies(plan) -> None:
    """39 of 40 layers on one stage: what that stage holds is more than a card, by as much as is said, and less without
    any one part. Giving up the split fits; other remedies were solved with it and ask for it. All commands run."""
    asked = ("--model", "13b", "--gpus", "8xA100-40G", "--stage-layers", "39,1", "--top", "1")
    refused = plan(*asked, "--json")
    assert refused.code == 3
    *parts, capacity = refused.data["explanation"]["facts"]
    held = [fact["data"]["bytes"] for fact in parts]
    missing = sum(held) - capacity["data"]["bytes"]
    assert 0 < missing == capacity["data"]["missing_bytes"] and missing <= min(held)
    assert f"{missing / 2**30:.2f} GiB less than these together" in capacity["sentence"]
    (freed, without), *others = hints(refused)
    assert freed.startswith("without --stage-layers it fits on the same 8 GPUs")
    assert "--stage-layers" not in without and "--pp 2" in without
    assert others
    for _, command in others:
        assert command.endswith("--stage-layers 39,1")
    for command in (without, *(command for _, command in others)):
        assert plan(*command.split()[1:], "--top", "1").code == 0


def test_pinned_chunks_are_written_as_they_are_typed(plan) -> None:
    """A split of virtual chunks comes back as 18,2/18,2."""
    refused = plan("--model", "13b", "--gpus", "4xA100-40G", "--stage-layers", "18,2/18,2", "--top", "1", "--json")
    commands = [command for _, command in hints(refused)]
    assert commands and all(command.endswith("--stage-layers 18,2/18,2") for command in commands)
