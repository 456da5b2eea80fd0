"""Bad input: exit code 2, one sentence on stderr with the nearest valid value, nothing on stdout, no traceback."""

from __future__ import annotations

import pytest

TWO = ("--model", "13b", "--gpus", "8xA100-80G")


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (("--model", "lama-2-13b", "--gpus", "8xA100-80G"), "llama-2-13b"),
        (("--model", "13b", "--gpus", "8xA100-81G"), "did you mean A100-80G"),
        (("--model", "13b", "--gpus", "0xA100-80G"), "at least 1"),
        (("--model", "13b"), "--gpus"),
        (("--gpus", "8xA100-80G"), "--model"),
        (("--modle", "13b"), "Did you mean '--model'?"),
        (("memroy", "--model", "13b"), "Did you mean 'memory'?"),
        (("--model", "13b", "memory"), "memory"),
        ((*TWO, "--cluster", "hgx-a100-200g"), "both were given"),
        ((*TWO, "--zero", "7"), "one of 0, 1, 2, 3 is required"),
        ((*TWO, "--recompute", "ful"), "Did you mean full?"),
        ((*TWO, "--format", "jsn"), "Did you mean json?"),
        ((*TWO, "-f", "csv", "--json"), "but --format csv and --json were given"),
        ((*TWO, "--json", "-f", "html"), "but --format html and --json were given"),
        (("calibrate", "--from-log", "a.log", "--rows", "10", "--gpus", "8xA100"), "--rows is for --measure alone"),
        (("calibrate", "--from-log", "a.log", "--model", "7b", "--gpus", "8xA100"), "--model is for --measure alone"),
        (("calibrate", "--measure", "--warm-up", "3", "--gpus", "8xA100"), "--warm-up is for --from-log alone"),
        ((*TWO, "--precision", "bf61"), "Did you mean bf16?"),
        ((*TWO, "--tp", "2,x"), "whole number of at least 1"),
        ((*TWO, "--tp", "0"), "at least 1 is required, but 0 was given"),
        ((*TWO, "--seq-length", "-1"), "from 1 to"),
        ((*TWO, "--global-batch", "0"), "from 1 to"),
        ((*TWO, "--time-limit", "nan"), "greater than 0"),
        ((*TWO, "--reserve", "4GiBs"), "such as 4GiB"),
        ((*TWO, "--reserve", "40"), "an amount with its unit, such as 40GiB, is required, but '40' was given"),
        (("--model", "13b", "--gpus", "8xH100-80G+8xMI300X"), "GPUs of one vendor are required"),
        (
            ("check", "a.sh", "--gpus", "8xA100", "--pp", "2", "--model", "13b"),
            "--model and --pp can only be given for",
        ),
        ((*TWO, "--stage-layers", "10;10"), "10,10,10,10"),
        ((*TWO, "--stage-layers", "20,20", "--pp", "4"), "--stage-layers means pp 2, but --pp allows 4"),
        (("memory", *TWO, "--tp", "2,4"), "lists restrict `plan search`"),
        (("memory", *TWO, "--offload-optimizer", "nan"), "from 0 to 1 is required, but 'nan' was given"),
        (("memory", *TWO, "--offload-optimizer", "1.5"), "from 0 to 1 is required, but '1.5' was given"),
        (("memory", *TWO, "--recompute", "selective", "--recompute-modules", "core_attn,mpl"), "Did you mean mlp?"),
        (("memory", *TWO, "--offload-modules", "mlp_nrom"), "Did you mean mlp_norm?"),
        (("memory", *TWO, "--offload-modules", "xx"), "must be among attn_norm"),
        (
            ("memory", "--model", "13b", "--gpus", "8xA100-80G+8xH100", "--pp", "2", "--placement", "A100-80,H100"),
            "Did you mean A100-80G?",
        ),
        (("memory", *TWO, "--tp", "3"), "[world-size]"),
        (("memory", "--model", "13b", "--gpus", "64xA100-80G", "--pp", "64"), "[pipeline-layers]"),
        (("memory", *TWO, "--stage-layers", "20,10"), "must sum to num_layers (40)"),
        (("memory", *TWO, "--recompute-layers", "1"), "needs --recompute full"),
        (("memory", *TWO, "--recompute", "full", "--recompute-layers", "1,1"), "each of 1 stages"),
        (("memory", *TWO, "--dp", "3"), "world-size"),
        (("check", "absent.sh", "--gpus", "8xA100"), "no such file"),
        (("check", "absent.sh"), "exactly one of --gpus"),
        (("models", "zzzz"), "plan models"),
        (("rules", "tensr-heads"), "tensor-heads"),
    ],
)
def test_one_sentence(plan, arguments: tuple[str, ...], wanted: str) -> None:
    """The sentence says what is required or what was meant."""
    answer = plan(*arguments)
    assert answer.code == 2, answer
    assert wanted in answer.err
    assert "Traceback" not in answer.err
    assert [line for line in answer.err.splitlines() if line.startswith("Error: ")]


def test_a_binary_file_is_not_a_model(plan, tmp_path) -> None:
    """The sentence names the file and what it should have been."""
    path = tmp_path / "model.yaml"
    path.write_bytes(bytes(range(256)))
    answer = plan("--model", path, "--gpus", "8xA100-80G")
    assert answer.code == 2
    assert str(path) in answer.err and "text file is required" in answer.err


def test_a_broken_rule_is_named_with_its_id(plan) -> None:
    """40 heads do not divide over 16 GPUs: the rule's sentence, its numbers, the nearest legal values and the id."""
    answer = plan("memory", "--model", "13b", "--gpus", "16xA100-80G", "--tp", "16")
    assert answer.code == 2
    assert "num_attention_heads must be divisible by tp" in answer.err
    assert "[tensor-heads]" in answer.err
    assert answer.out == ""
