"""`plan memory --detail`: the layout with one thing changed is what the command says of the changed layout."""

from __future__ import annotations

import pytest

DENSE = ("memory", "--model", "13b", "--gpus", "8xA100-80G", "--json")
MIXTURE = ("memory", "--model", "mixtral-8x7b", "--gpus", "64xH100-80G", "--pp", 2, "--ep", 8, "--etp", 1, "--json")


def peak(data: dict) -> int:
    return max(stage["total_bytes"] for stage in data["memory"]["stages"])


def test_detail_says_what_other_recomputation_would_make_of_the_layout(plan) -> None:
    """Each setting is what the command says of the layout with it; the given one is marked, and there but once."""
    shared = (*DENSE, "--time")
    settings = plan(*shared, "--detail").data["recompute_settings"]
    assert [s["recompute"] for s in settings if s["given"]] == ["none"]
    assert {s["recompute"] for s in settings} >= {"none", "selective (mlp)", "full"}
    for setting in settings:
        if setting["recompute"] == "selective (mlp)":
            alone = plan(*shared, "--recompute", "selective", "--recompute-modules", "mlp").data
        elif setting["recompute"] == "full":
            alone = plan(*shared, "--recompute", "full").data
        else:
            continue
        assert setting["peak_bytes"] == max(stage["total_bytes"] for stage in alone["memory"]["stages"])
        assert setting["fits"] == alone["memory"]["fits"]
        assert setting["step_seconds"] == alone["step"]["seconds"]
        assert setting["repeated_flops"] == pytest.approx(alone["step"]["hfu"] / alone["step"]["mfu"] - 1)
    assert "recompute_settings" not in plan(*DENSE, "--accounting", "rule-of-thumb", "--detail").data


def test_detail_says_what_more_on_the_host_would_make_of_the_layout(plan) -> None:
    """Half of the optimizer, all of it, and activations: each as the option says, with the host's memory of a node."""
    shared = (*DENSE, "--recompute", "none")
    settings = {s["offloaded"]: s for s in plan(*shared, "--detail").data["offload_settings"]}
    assert settings["nothing"]["given"] and settings["nothing"]["host_bytes_per_node"] == 0
    for what, words in (
        ("half of the optimizer", ("--offload-optimizer", 0.5)),
        ("the optimizer", ("--offload-optimizer", 1)),
        ("activations of half of the layers", ("--offload-layers", 20)),
    ):
        alone = plan(*shared, *words, "--time").data
        assert settings[what]["peak_bytes"] == peak(alone)
        assert settings[what]["host_bytes_per_node"] == 8 * alone["memory"]["stages"][0]["host_bytes"] > 0
        assert settings[what]["step_seconds"] == alone["step"]["seconds"]
    given = plan(*shared, "--offload-optimizer", 0.25, "--detail").data["offload_settings"]
    assert [s["offloaded"] for s in given if s["given"]] == ["as given"]


def test_detail_says_what_other_cross_entropies_would_make_of_the_layout(plan) -> None:
    """Each is what --cross-entropy says; Megatron's three where Megatron shards, its own and others' under FSDP2."""
    shared = (*DENSE, "--tp", 8, "--global-batch", 64)
    settings = {s["cross_entropy"]: s for s in plan(*shared, "--detail").data["loss_settings"]}
    assert list(settings) == ["unfused", "native", "te"] and settings["unfused"]["given"]
    vocabulary_shard, tokens = 32768 // 8, 4096  # padded to a multiple of 128 x 8
    numbers_of_a_token = (
        settings["te"]["loss_bytes"] - 2 * vocabulary_shard * tokens
    )  # the gradient in the logits' place
    assert 0 <= numbers_of_a_token <= 32 * tokens
    wide = (*DENSE, "--model", "llama-3.1-8b", "--zero", 3, "--recompute", "full")
    settings = {s["cross_entropy"]: s for s in plan(*wide, "--detail").data["loss_settings"]}
    assert list(settings) == ["unfused", "native", "te", "torch", "compiled", "liger"]
    for kind, setting in settings.items():
        alone = plan(*wide, "--cross-entropy", kind, "--time").data
        assert setting["peak_bytes"] == peak(alone) and setting["step_seconds"] == alone["step"]["seconds"]
        assert alone["inputs"]["implementation"]["cross_entropy"] == kind
    assert settings["liger"]["loss_bytes"] < settings["te"]["loss_bytes"] < settings["torch"]["loss_bytes"]
    assert settings["te"]["peak_bytes"] < settings["torch"]["peak_bytes"]


def test_a_cross_entropy_is_launched_or_refused_by_name(plan) -> None:
    """Megatron-LM has arguments for its own; Liger's needs the whole vocabulary; a search says which it was."""
    words = plan(
        "memory", "--model", "13b", "--gpus", "8xA100-80G", "--tp", 2, "--cross-entropy", "te", "--flags", "megatron"
    )
    assert "--cross-entropy-fusion-impl te" in words.out
    other = plan(
        "memory", "--model", "13b", "--gpus", "8xA100-80G", "--cross-entropy", "compiled", "--flags", "megatron"
    )
    assert other.code == 2 and "no argument for the compiled cross entropy" in other.err
    split = plan("memory", "--model", "13b", "--gpus", "8xA100-80G", "--tp", 2, "--cross-entropy", "liger")
    assert split.code == 2 and "tp is 2" in split.err
    found = plan("--model", "7b", "--gpus", "8xH100-80G", "--cross-entropy", "liger")
    assert "liger cross entropy" in " ".join(found.out.split()) and "--cross-entropy liger" in found.out


def test_limits_are_the_largest_that_fit(plan) -> None:
    """One unit more does not, for the sequence, the micro-batch and the imbalance."""
    shared = (*MIXTURE, "--global-batch", 1024)
    limits = plan(*shared, "--detail").data["limits"]
    unit, longest = limits["seq_unit"], limits["seq_length"]
    assert unit == 128 and longest % unit == 0
    assert plan(*shared, "--seq-length", longest).data["memory"]["fits"]
    assert not plan(*shared, "--seq-length", longest + unit).data["memory"]["fits"]
    assert plan(*shared, "--micro-batch", limits["micro_batch"]).data["memory"]["fits"]
    assert not plan(*shared, "--micro-batch", 2 * limits["micro_batch"]).data["memory"]["fits"]
    assert plan(*shared, "--moe-imbalance", limits["moe_imbalance"]).data["memory"]["fits"]
    assert not plan(*shared, "--moe-imbalance", round(limits["moe_imbalance"] + 0.01, 2)).data["memory"]["fits"]


def test_nothing_fits_where_states_alone_are_too_much(plan) -> None:
    """13B on one card: no sequence is short enough, and that is what is said."""
    limits = plan("memory", "--model", "13b", "--gpus", "1xA100-80G", "--json", "--detail").data["limits"]
    assert limits == {
        "seq_length": None,
        "seq_unit": 128,
        "seq_ended_by": "memory",
        "micro_batch": None,
        "moe_imbalance": None,
    }


def test_learned_positions_end_the_sequence(plan) -> None:
    """A model with 2048 learned positions has no longer sequence, however much room there is."""
    shared = ("memory", "--model", "gpt3-175b", "--gpus", "64xB300", "--tp", 8, "--pp", 8, "--json", "--detail")
    limits = plan(*shared).data["limits"]
    assert limits["seq_length"] == 2048 and "position table" in limits["seq_ended_by"]


def test_uneven_routing_and_more_ranks(plan) -> None:
    """Rows are what the options say; a dense model has no routing."""
    data = plan(*MIXTURE, "--global-batch", 1024, "--detail").data
    rows = {row["moe_imbalance"]: row for row in data["uneven_routing"]}
    assert list(rows) == [1, 1.25, 1.5, 2, 4] and rows[1]["given"]  # two copies of a token go to different experts
    alone = plan(*MIXTURE, "--global-batch", 1024, "--moe-imbalance", 1.5).data
    assert rows[1.5]["peak_bytes"] == peak(alone)
    ranks = {row["dp"]: row for row in data["data_parallel"]}
    assert list(ranks) == [32, 64, 128, 256, 2048]
    twice = [word if word != "64xH100-80G" else "128xH100-80G" for word in MIXTURE]
    assert ranks[64]["peak_bytes"] == peak(plan(*twice, "--global-batch", 2048).data)
    assert plan(*DENSE, "--detail").data["uneven_routing"] == []


def test_the_first_step_has_no_moments_yet(plan) -> None:
    """Adam's two fp32 moments, divided over the 8 ranks, come with the first optimizer step; SGD has none."""
    data = plan(*DENSE, "--detail").data
    built, first, later = (phase["peak_bytes"] for phase in data["phases"])
    moments = 8 * data["memory"]["stages"][0]["parameters"] / 8
    assert later == peak(data)
    assert later - first == pytest.approx(moments, rel=0.001)
    assert built < first
    plain = plan(*DENSE, "--recompute", "full", "--optimizer", "sgd", "--detail").data["phases"]
    assert plain[1]["peak_bytes"] == plain[2]["peak_bytes"]


def test_gradients_of_fsdp2_come_with_the_first_backward(plan) -> None:
    """What is built is the fp32 shards and buffers; the first step adds gradients, the later ones moments."""
    data = plan(*DENSE, "--zero", 3, "--detail").data
    built, first, later = (phase["peak_bytes"] for phase in data["phases"])
    held = data["memory"]["stages"][0]["components"]
    assert held["weights"] + held["reserve"] <= built < held["weights"] + held["reserve"] + held["gradients"]
    assert later - first == pytest.approx(held["optimizer"], rel=0.001)


def test_phases_on_a_mixed_cluster_are_judged_stage_by_stage(plan) -> None:
    """Every stage fits its own card, so every phase does, and none is smaller than the one before on its stage."""
    words = ("--gpus", "8xA100-80G+8xA100-40G", "--tp", 8, "--pp", 2, "--stage-layers", "34,14", "--seq-length", 1024)
    data = plan("memory", "--model", "codellama-34b", *words, "--detail", "--json").data
    assert data["memory"]["fits"] and all(phase["fits"] for phase in data["phases"])
    peaks = [row["peak_bytes"] for row in data["data_parallel"]]
    assert peaks == sorted(peaks, reverse=True)


def test_what_the_host_cannot_hold_does_not_fit(plan) -> None:
    """405B's states in the memory of one node of 8 A100, which has 2 TB: the GPUs hold the rest, the host does not."""
    words = ("--model", "405b", "--gpus", "8xA100-80G", "--zero", 3, "--sharded-by", "deepspeed", "--recompute", "full")
    offloaded = (*words, "--seq-length", 4096, "--offload-optimizer", 1, "--offload-parameters")
    memory = plan("memory", *offloaded, "--json").data["memory"]
    assert all(stage["fits"] for stage in memory["stages"]) and not memory["fits"] and memory["host_fits"] is False
    assert memory["host_bytes_per_node"] > memory["host_capacity_bytes_per_node"] > 0
    assert "Does not fit the host" in " ".join(plan("memory", *offloaded).out.split())


def test_the_tables_stand_in_the_report(plan) -> None:
    """Each under a heading, as text too; `plan check --detail` has them as well."""
    words = [word for word in MIXTURE if word != "--json"]
    text = plan(*words, "--detail").out
    for heading in (
        "The peak by phase",
        "with other recomputation",
        "with more on the host",
        "How far this layout reaches",
        "with uneven routing",
        "More data-parallel ranks",
    ):
        assert heading in text
    assert "longest sequence that fits" in text and "How far" not in plan(*words).out
