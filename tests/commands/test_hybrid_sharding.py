"""Hybrid sharding (HSDP): in the search's space, pinned, and in the commands that name a layout."""

from __future__ import annotations

QUESTION = ("--model", "llama-3.1-8b", "--gpus", "64xH100-80G", "--zero", "3", "--tp", "1", "--pp", "1")


def test_pinned_replicas_are_those_of_every_plan(plan) -> None:
    """More replicas hold more, and the command under the plan repeats them."""
    answer = plan(*QUESTION, "--hsdp-replicas", "8", "--json")
    assert answer.code == 0
    for found in answer.data["plans"]:
        assert found["layout"]["hsdp_replicas"] == 8
    free = plan(*QUESTION, "--json").data
    assert free["objective"]["value"] <= answer.data["objective"]["value"]
    text = plan(*QUESTION, "--hsdp-replicas", "8").out
    assert "ZeRO 3 in 8 replicas" in text and "--zero 3 --hsdp-replicas 8" in text


def test_more_replicas_hold_more(plan) -> None:
    """The states of one GPU grow with the number of replicas."""
    sizes = []
    for replicas in ("1", "2", "8"):
        body = plan("memory", *QUESTION[:8], "--hsdp-replicas", replicas, "--json").data
        sizes.append(max(stage["total_bytes"] for stage in body["memory"]["stages"]))
    assert sizes == sorted(set(sizes))


def test_without_sharding_there_is_nothing_to_replicate(plan) -> None:
    """ZeRO 1 with replicas of shards is refused by the rule's name."""
    answer = plan("memory", "--model", "llama-3.1-8b", "--gpus", "64xH100-80G", "--zero", "1", "--hsdp-replicas", "8")
    assert answer.code == 2 and "hsdp-needs-zero" in answer.err
