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


def test_a_framework_or_an_exchange_that_this_layout_has_no_use_for_is_said(plan) -> None:
    """--sharded-by speaks of ZeRO 2 and 3: with ZeRO 1 the bytes are Megatron's, and the report says so. So with the
    exchange of context parallelism at CP 1."""
    asked = ("memory", "--model", "7b", "--gpus", "8xA100-80G", "--global-batch", "64")
    deepspeed = ("--sharded-by", "deepspeed")
    at_one = "--sharded-by deepspeed has no effect at ZeRO 1: Megatron's distributed optimizer shards there"
    with_it, without = (plan(*asked, *more, "--json").data["memory"] for more in (deepspeed, ()))
    assert with_it["stages"] == without["stages"]
    for more, said in (
        (deepspeed, at_one),
        ((*deepspeed, "--zero", "0"), "--sharded-by deepspeed has no effect at ZeRO 0: nothing is sharded there"),
        ((*deepspeed, "--zero", "2"), None),
        (("--cp-comm-type", "a2a"), "--cp-comm-type a2a has no effect at CP 1"),
        (("--cp-comm-type", "a2a", "--cp", "2"), None),
        ((), None),
    ):
        told = plan(*asked, *more, "-f", "markdown").out
        assert told.count("has no effect") == bool(said) and (said is None or said in told)
