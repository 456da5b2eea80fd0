"""`plan search` and the default command: pins, ranking, what is printed next."""

from __future__ import annotations

import csv
import io
import json
import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from planner.question import DEFAULT_TOKENS, default_global_batch

QUICK = (
    "--model", "13b", "--gpus", "8xA100-80G", "--global-batch", "64", "--micro-batch", "1", "--vpp", "1",
    "--recompute", "none", "--zero", "1",
)  # fmt: skip
SOME_LAYERS = (
    "--model", "7b", "--gpus", "8xA100-80G", "--tp", "1", "--pp", "2", "--vpp", "1", "--zero", "1",
    "--micro-batch", "2", "--recompute", "full",
)  # fmt: skip


def test_search_is_the_default_command(plan) -> None:
    """`plan --model ...` and `plan search --model ...` print the same."""
    short, long = plan(*QUICK, "--tp", "2", "--json"), plan("search", *QUICK, "--tp", "2", "--json")
    first, second = short.data, long.data
    del first["meta"], second["meta"]
    assert first == second


def test_a_number_pins_and_a_list_restricts(plan) -> None:
    """Every plan keeps what was asked."""
    plans = plan(*QUICK, "--tp", "2,4", "--pp", "2", "--json").data["plans"]
    assert plans
    assert {p["layout"]["pp"] for p in plans} == {2}
    assert {p["layout"]["tp"] for p in plans} <= {2, 4}


def test_sequence_parallelism_that_is_asked_for_is_on(plan) -> None:
    """Every plan has it, so none has tp 1, where it cannot be; with tp 1 alone the rule is named."""
    plans = plan(*QUICK, "--sequence-parallel", "--top", "20", "--json").data["plans"]
    assert plans and all(p["layout"]["sequence_parallel"] and p["layout"]["tp"] > 1 for p in plans)
    assert any(p["layout"]["tp"] == 1 for p in plan(*QUICK, "--top", "20", "--json").data["plans"])
    refused = plan(*QUICK, "--sequence-parallel", "--tp", "1", "--json")
    assert refused.code == 3
    assert [fact["id"] for fact in refused.data["explanation"]["facts"]] == ["sequence-needs-tensor"]


def test_detail_says_what_each_plan_is_made_of(plan) -> None:
    """As data, in words for the chosen one, and as a spreadsheet's rows: a search itself counts totals only."""
    asked = (*QUICK, "--tp", "2", "--pp", "2", "--detail")
    plans = plan(*asked, "--json").data["plans"]
    rows = rows_of(plan(*asked, "--format", "csv").out)
    for place, found in enumerate(plans, start=1):
        for stage in found["memory"]["stages"]:
            assert stage["pieces"] and sum(term["bytes"] for term in stage["terms"]) == stage["total_bytes"]
            of_stage = [r for r in rows if (r["plan"], r["stage"]) == (str(place), str(stage["stage"]))]
            assert sum(int(row["bytes"]) for row in of_stage) == stage["total_bytes"]
    assert "Alive on stage 1 at its peak" in plan(*asked).out


def test_every_gpu_of_the_chosen_plan_is_a_row(plan) -> None:
    """Its place in its groups, not the plan's degrees, beside what its stage holds."""
    asked = (*QUICK, "--tp", "2", "--pp", "2", "--per-rank")
    ranks = plan(*asked, "--json").data["plans"][0]["memory"]["ranks"]
    rows = rows_of(plan(*asked, "--format", "csv").out)
    assert [{name: int(row[name]) for name in ranks[0]} for row in rows] == ranks
    assert {row["tp"] for row in rows} == {"0", "1"} and all(row["weights_bytes"] for row in rows)


def rows_of(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text)))


def test_plans_are_ranked_and_fit(plan) -> None:
    """Best first, and the objective is the first one's."""
    data = plan(*QUICK, "--top", "3", "--json").data
    seconds = [p["step"]["seconds"] for p in data["plans"]]
    assert seconds == sorted(seconds) and len(seconds) <= 3
    assert data["objective"]["value"] == seconds[0]
    assert all(p["memory"]["fits"] for p in data["plans"])


def test_the_stage_split_can_be_pinned(plan) -> None:
    """--stage-layers fixes the split, and pp with it."""
    layout = plan(*QUICK, "--tp", "2", "--stage-layers", "21,19", "--json").data["plans"][0]["layout"]
    assert layout["stage_layers"] == [21, 19] and layout["pp"] == 2


@pytest.mark.parametrize("asked", [(*QUICK, "--tp", "2"), SOME_LAYERS], ids=["none", "some"])
def test_the_next_commands_run_and_mean_the_same_layout(plan, asked) -> None:
    """What the report proposes to type reproduces the plan's layout, and its memory to the byte; with all layers kept
    and with some recomputed."""
    data = plan(*asked, "--json").data
    text = plan(*asked).out
    lines = text[text.index("\nNext\n") :].splitlines()
    command = next(line.strip() for line in lines if line.strip().endswith("--detail"))
    answer = plan(*shlex.split(command)[1:], "--json")
    best = data["plans"][0]
    assert answer.data["layout"] == best["layout"]
    assert [s["total_bytes"] for s in answer.data["memory"]["stages"]] == [
        s["total_bytes"] for s in best["memory"]["stages"]
    ]


def test_flags_alone_are_printed_and_read_back(plan, tmp_path) -> None:
    """`plan ... --flags megatron > launch.sh` is a file that `plan check` reads as the same layout."""
    answer = plan(*QUICK, "--tp", "2", "--flags", "megatron")
    assert answer.out.startswith("--")
    path = tmp_path / "launch.sh"
    path.write_text(answer.out)
    checked = plan("check", path, "--gpus", "8xA100-80G", "--json").data
    wanted = plan(*QUICK, "--tp", "2", "--json").data["plans"][0]
    assert checked["rules"] == [] and checked["unrecognised"] == []
    assert checked["layout"] == wanted["layout"]
    assert checked["memory"]["stages"] == wanted["memory"]["stages"]


def test_flags_of_deepspeed_are_a_config(plan) -> None:
    """The JSON holds the batch identity that DeepSpeed asserts, and notes go to stderr."""
    answer = plan(*QUICK, "--tp", "1", "--cp", "1", "--pp", "4", "--flags", "deepspeed")
    config = json.loads(answer.out)
    assert (
        config["train_batch_size"]
        == config["train_micro_batch_size_per_gpu"] * config["gradient_accumulation_steps"] * 2
    )
    assert "PipelineModule(num_stages=4)" in answer.err


@pytest.mark.parametrize(
    ("seq_length", "gpus", "batch"),
    [(4096, 8, 1024), (2048, 64, 2048), (8192, 1, 512), (4096, 24, 768), (4096, 40, 1280), (4096, 88, 1056)],
)
def test_the_default_batch(seq_length: int, gpus: int, batch: int) -> None:
    """1024 sequences of 4096 on any power of two; else the GPUs' odd part and the most factors of two that leave it
    about 4 million tokens: 3 x 256, 5 x 256, but 11 x 96, as 11 x 64 and 11 x 128 are too far off."""
    assert default_global_batch(seq_length, gpus) == batch


@given(st.integers(1, 2**20), st.integers(1, 5000))
def test_the_default_batch_is_about_four_million_tokens(seq_length: int, gpus: int) -> None:
    """From three quarters to four thirds of 4 Mi tokens where a batch of that size exists, and never empty; the odd
    part divides it."""
    batch = default_global_batch(seq_length, gpus)
    odd = gpus // (gpus & -gpus)
    assert batch >= 1 and batch % odd == 0
    target = max(1, DEFAULT_TOKENS // seq_length)
    if odd * 2 <= target:
        assert 3 * target <= 4 * batch and 3 * batch <= 4 * target


@pytest.mark.parametrize("gpus", [24, 40, 48, 56, 72, 96, 640, 768, 1536, 3072, 5120, 6144, 7168])
def test_the_default_batch_divides_over_stages_and_ranks(gpus: int) -> None:
    """At TP 8 each data-parallel rank has a whole number of microbatches for every stage, however the rest is shared
    out: what Megatron asks for before stages may be virtual (validate_args: microbatches divisible by PP)."""
    assert default_global_batch(4096, gpus) % (gpus // 8) == 0


def test_progress_shows_only_on_a_terminal_and_after_a_while(monkeypatch, capsys) -> None:
    """Nothing in a pipe; on a terminal one line that is wiped at the end."""
    import sys

    from planner.commands import progress

    monkeypatch.setattr(progress, "PATIENCE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "INTERVAL_SECONDS", 0.0)
    with progress.Progress() as show:
        show(1, 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    with progress.Progress() as show:
        show(1, 10, "3 solved")
    err = capsys.readouterr().err
    assert "searching: 1 of 10 candidates" in err and "3 solved" in err
    assert err.endswith("\r") and err.split("\r")[-2].strip() == ""


def test_unlike_layers_that_fit_one_a_stage_are_found(plan, tmp_path) -> None:
    """Four dense layers in front of four of experts on eight stages: the first stage has room for two, but then one of
    experts lands where a microbatch more is in flight. What `plan memory` says fits, the search must not refute."""
    model = tmp_path / "m8.yaml"
    model.write_text(
        "{hidden_size: 4096, num_layers: 8, num_attention_heads: 32, num_query_groups: 8, ffn_hidden_size: 8192,"
        " vocab_size: 32000, max_positions: 4096,"
        " moe: {num_experts: 16, top_k: 4, ffn_hidden_size: 4096, first_dense_layers: 4}}"
    )
    asked = ("--model", model, "--gpus", "8xA100-80G", "--seq-length", "4096", "--global-batch", "64", "--pp", "8",
             "--micro-batch", "2", "--recompute", "none", "--reserve", "57.7GiB")  # fmt: skip
    one_each = plan("memory", *asked, "--stage-layers", "1,1,1,1,1,1,1,1", "--json").data
    found = plan(*asked, "--json")
    assert one_each["memory"]["fits"] and found.code == 0
    assert found.data["plans"][0]["layout"]["stage_layers"] == [1] * 8
