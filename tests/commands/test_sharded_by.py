"""--sharded-by in a search: who shards at ZeRO 2 and 3 is counted, said, and written."""

from __future__ import annotations

ASKED = ("--model", "llama-2-7b", "--gpus", "8xA100-80G", "--seq-length", "2048", "--zero", "3", "--tp", "1",
         "--pp", "1", "--cp", "1", "--recompute", "none,full")  # fmt: skip


def test_each_framework_has_bytes_of_its_own(plan) -> None:
    """The search counts the one that is asked for, and its next commands ask for it again."""
    found = {
        name: plan(*ASKED, "--sharded-by", name, "--json").data for name in ("fsdp2", "megatron-fsdp", "deepspeed")
    }
    peaks = {data["plans"][0]["memory"]["stages"][0]["total_bytes"] for data in found.values()}
    assert len(peaks) == 3
    assert {data["inputs"]["implementation"]["sharded_by"] for data in found.values()} == {*found}
    assert "--sharded-by deepspeed" in plan(*ASKED, "--sharded-by", "deepspeed").out


def test_arguments_of_another_framework_than_the_one_counted(plan) -> None:
    """DeepSpeed's JSON of a plan that counts FSDP2 says so; Megatron has no argument for DeepSpeed's shards."""
    assert "--sharded-by deepspeed" in plan(*ASKED, "--flags", "deepspeed").err
    assert "--sharded-by" not in plan(*ASKED, "--sharded-by", "deepspeed", "--flags", "deepspeed").err
    refused = plan(*ASKED, "--sharded-by", "deepspeed", "--flags", "megatron")
    assert (refused.code, refused.out) == (2, "")
    assert "no argument for DeepSpeed's ZeRO 3" in " ".join(refused.err.split())
