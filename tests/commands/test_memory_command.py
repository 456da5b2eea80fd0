"""`plan memory`: what is left out is filled in as the contract says, and the report repeats it."""

from __future__ import annotations

import json

import pytest

MEMORY = ("memory", "--model", "13b", "--gpus", "8xA100-80G", "--json")


def test_what_is_left_out(plan) -> None:
    """Degrees are 1, dp takes the other GPUs, ZeRO 1, micro-batch 1; sequence and batch are the practitioner's."""
    data = plan(*MEMORY).data
    layout = data["layout"]
    assert [layout[name] for name in ("tp", "cp", "pp", "vpp", "ep", "etp", "dp")] == [1, 1, 1, 1, 1, 1, 8]
    assert (layout["zero"], layout["micro_batch"], layout["recompute"]) == (1, 1, "none")
    assert layout["sequence_parallel"] is False
    assert (data["inputs"]["workload"]["seq_length"], data["inputs"]["workload"]["global_batch"]) == (4096, 1024)
    assert data["inputs"]["workload"]["precision"] == "bf16"
    assert any("sequence length 4096" in line for line in data["inputs"]["defaults"])


def test_sequence_parallelism_follows_tensor_parallelism(plan) -> None:
    """On where tp > 1, and it saves activations; --no-sequence-parallel switches it off."""
    on, off = plan(*MEMORY, "--tp", 2).data, plan(*MEMORY, "--tp", 2, "--no-sequence-parallel").data
    assert on["layout"]["sequence_parallel"] and not off["layout"]["sequence_parallel"]
    kept = [d["memory"]["stages"][0]["components"]["activations"] for d in (on, off)]
    assert kept[0] < kept[1]


def test_the_experts_follow_tensor_parallelism_as_in_megatron(plan) -> None:
    """expert_tensor_parallel_size is the tensor-parallel size unless it is given; a dense model has none."""
    mixtral = ("memory", "--model", "mixtral-8x7b", "--gpus", "16xH100-80G", "--tp", "2", "--json")
    assert plan(*mixtral).data["layout"]["etp"] == 2
    assert plan(*mixtral, "--ep", "8", "--etp", "1").data["layout"]["etp"] == 1
    assert plan(*MEMORY, "--tp", "2").data["layout"]["etp"] == 1


def test_an_uneven_split_is_given_by_stage(plan) -> None:
    """Four stages of their own sizes; pp follows from their number."""
    layout = plan(*MEMORY, "--stage-layers", "11,10,10,9").data["layout"]
    assert layout["pp"] == 4 and layout["stage_layers"] == [11, 10, 10, 9]


def test_a_split_that_does_not_divide_is_balanced_and_stated(plan) -> None:
    """40 layers on 3 stages: the embedding and the loss count as a layer each, and the report says so."""
    data = plan("memory", "--model", "13b", "--gpus", "6xA100-80G", "--pp", "3", "--json").data
    assert data["layout"]["stage_layers"] == [13, 14, 13]
    assert any(line.startswith("stage split Et*13|t*14|t*13L") for line in data["inputs"]["defaults"])


def test_virtual_chunks_are_given_by_stage(plan) -> None:
    """`11,9/10,10` is two stages of two chunks, reported as the contract says: a list for each stage."""
    layout = plan(*MEMORY, "--stage-layers", "11,9/10,10").data["layout"]
    assert (layout["pp"], layout["vpp"]) == (2, 2)
    assert layout["stage_layers"] == [[11, 9], [10, 10]]


def test_a_default_batch_is_rounded_to_the_layout(plan) -> None:
    """128 k tokens mean 32 sequences, which 64 data-parallel ranks do not divide: they get one each, and it is said."""
    data = plan("memory", "--model", "llama-3.1-8b", "--gpus", "64xH100-80G", "--seq-length", "131072", "--json").data
    assert data["inputs"]["workload"]["global_batch"] == 64
    assert any("the layout divides" in line for line in data["inputs"]["defaults"])


def test_a_given_batch_is_never_changed(plan) -> None:
    """What the user said breaks the rule instead."""
    answer = plan(*MEMORY, "--global-batch", "12")
    assert answer.code == 2 and "[batch-divides]" in answer.err


def test_recompute_of_some_layers(plan) -> None:
    """Recomputing the first stage's layers alone frees activations there and nowhere else."""
    pipeline = (*MEMORY, "--pp", "2")
    none, some = plan(*pipeline).data, plan(*pipeline, "--recompute", "full", "--recompute-layers", "20,0").data

    def activations(data: dict) -> list[int]:
        return [stage["components"]["activations"] for stage in data["memory"]["stages"]]

    assert activations(some)[0] < activations(none)[0]
    assert activations(some)[1] == activations(none)[1]
    assert some["layout"]["recompute_stage_layers"] == [20, 0]


@pytest.mark.parametrize("text", ["6GiB", "6 gib", "6144MiB", "6442450944"])
def test_the_reserve_is_its_own_line(plan, text: str) -> None:
    """However it is written, six GiB are what each stage keeps free."""
    data = plan(*MEMORY, "--reserve", text).data
    assert data["memory"]["stages"][0]["components"]["reserve"] == 6 * 2**30
    assert data["inputs"]["reserve_bytes"] == 6 * 2**30


def test_per_rank_and_detail_add_keys(plan) -> None:
    """Both only add."""
    plain, more = plan(*MEMORY).data, plan(*MEMORY, "--per-rank", "--detail").data
    assert len(more["memory"]["ranks"]) == 8
    assert more["memory"]["stages"][0]["pieces"]
    del more["memory"]["ranks"]
    for key in (
        "phases",
        "recompute_settings",
        "offload_settings",
        "loss_settings",
        "limits",
        "uneven_routing",
        "data_parallel",
    ):
        del more[key]
    del more["megatron_estimate"]
    for stage in more["memory"]["stages"]:
        for key in ("pieces", "parameters_by_part", "terms"):
            del stage[key]
    assert more == plain


def test_both_accountings_drive_the_report(plan) -> None:
    """The hand accounting's total is the figure that the exact report prints beside its own."""
    exact = plan(*MEMORY, "--pp", "4").data["memory"]["stages"]
    by_hand = plan(*MEMORY, "--pp", "4", "--accounting", "rule-of-thumb").data["memory"]["stages"]
    assert [s["rule_of_thumb_bytes"] for s in exact] == [s["total_bytes"] for s in by_hand]


def test_time_is_asked_for(plan) -> None:
    """--time adds the step of the very same layout and changes nothing else."""
    without, timed = plan(*MEMORY, "--tp", 2).data, plan(*MEMORY, "--tp", 2, "--time").data
    assert without.pop("step") is None
    assert sum(timed["step"]["components"].values()) == pytest.approx(timed["step"]["seconds"], rel=1e-6)
    del timed["step"]
    assert timed == without


def test_two_runs_are_byte_identical(plan) -> None:
    """A report can be compared with diff."""
    assert plan(*MEMORY, "--detail").out == plan(*MEMORY, "--detail").out


@pytest.mark.parametrize("framework", ["megatron", "deepspeed"])
def test_arguments_of_a_layout_that_does_not_fit_come_with_a_word(plan, framework: str) -> None:
    """The arguments can be pasted whole; that the GPUs cannot hold them, and by how much, is on standard error."""
    layout = ("--model", "70b", "--gpus", "8xA100-80G", "--zero", "3")
    over = -plan("memory", *layout, "--json").data["memory"]["stages"][0]["headroom_bytes"]
    answer = plan("memory", *layout, "--flags", framework)
    assert answer.code == 0 and "fit" not in answer.out
    assert f"Note: does not fit: over by {over / 2**30:.1f} GiB at the peak" in answer.err
    fitting = plan("memory", "--model", "7b", "--gpus", "8xA100-80G", "--zero", "3", "--flags", framework)
    assert "does not fit" not in fitting.err


@pytest.mark.parametrize(("context", "said"), [(32_768, "the model's context"), (131_072, "--seq-length sets it")])
def test_a_long_context_of_a_file_is_kept_and_remarked(plan, tmp_path, context: int, said: str) -> None:
    """A config's positions are what the model reaches, not what it was trained on: kept, with how to change it."""
    sizes = {"hidden_size": 512, "num_hidden_layers": 4, "num_attention_heads": 8, "vocab_size": 1000}
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"model_type": "llama", **sizes, "max_position_embeddings": context}))
    inputs = plan("memory", "--model", path, "--gpus", "8xA100-80G", "--global-batch", "8", "--json").data["inputs"]
    assert inputs["workload"]["seq_length"] == context
    assert [line for line in inputs["defaults"] if said in line] == [inputs["defaults"][0]]
