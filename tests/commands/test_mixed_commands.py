"""Commands on clusters of several kinds of nodes: the placement is stated, chosen, printed and repeated."""

from __future__ import annotations

from pathlib import Path

import pytest

MIXED = "8xA100-80G+8xA100-40G"
CARDS = {"A100-80G": 85093711872, "A100-40G": 42294312960}
LAUNCH = (
    "TP=2; PP=4\n"
    "torchrun --nproc_per_node 8 --nnodes 2 pretrain_gpt.py --tensor-model-parallel-size $TP"
    " --pipeline-model-parallel-size $PP --num-layers 40 --hidden-size 5120 --num-attention-heads 40 --seq-length 2048"
    " --max-position-embeddings 2048 --micro-batch-size 1 --global-batch-size 256 --bf16 --use-distributed-optimizer"
    " --vocab-size 50257 --transformer-impl transformer_engine\n"
)


def memory(plan, *more):
    return plan("memory", "--model", "13b", "--seq-length", 2048, "--gpus", MIXED, *more)


def cards(answer):
    return [stage["card"] for stage in answer.data["memory"]["stages"]]


def test_each_stage_names_its_card_and_capacity(plan) -> None:
    """Stages carry their card and its own capacity, the layout its placement, each GPU its card."""
    answer = memory(plan, "--pp", 4, "--per-rank", "--json")
    stages = answer.data["memory"]["stages"]
    assert sorted(set(cards(answer))) == sorted(CARDS)
    assert all(stage["capacity_bytes"] == CARDS[stage["card"]] for stage in stages)
    assert all(s["headroom_bytes"] == s["capacity_bytes"] - s["total_bytes"] for s in stages)
    placement = answer.data["layout"]["placement"]
    assert [run["stages"] for run in placement] == [[0, 1], [2, 3]]
    ranks = answer.data["memory"]["ranks"]
    assert [rank["card"] for rank in ranks] == [stages[rank["stage"]]["card"] for rank in ranks]


def test_the_stated_order_is_kept_else_the_best_is_taken(plan) -> None:
    """--placement decides; without it the order that fits is taken: a long first stage goes to the larger card,
    whichever is listed first."""
    stated = ("--placement", "A100-40G,A100-80G")
    assert cards(memory(plan, "--pp", 2, *stated, "--json")) == ["A100-40G", "A100-80G"]
    for gpus in (MIXED, "8xA100-40G+8xA100-80G"):
        split = ("--tp", 2, "--zero", 0, "--stage-layers", "26,14", "--json")
        answer = plan("memory", "--model", "13b", "--seq-length", 2048, "--gpus", gpus, *split)
        assert cards(answer) == ["A100-80G", "A100-40G"]
        assert any("the best of 2 orders" in line for line in answer.data["inputs"]["defaults"])


def test_what_the_search_finds_is_what_memory_says(plan) -> None:
    """The chosen layout, given back to `plan memory` by its degrees alone, has the same stages on the same cards."""
    pins = ("--tp", 2, "--pp", 4, "--vpp", 1, "--recompute", "none", "--global-batch", 512)
    found = plan("--model", "13b", "--seq-length", 2048, "--gpus", MIXED, *pins, "--json").data
    best = found["plans"][0]
    layout = best["layout"]
    split = ",".join(map(str, layout["stage_layers"]))
    again = memory(
        plan, "--tp", 2, "--cp", layout["cp"], "--zero", layout["zero"], "--micro-batch", layout["micro_batch"],
        "--stage-layers", split, "--global-batch", 512, "--time", "--json",
    ).data  # fmt: skip
    assert again["layout"]["placement"] == layout["placement"]
    assert again["memory"]["stages"] == best["memory"]["stages"]
    assert again["step"]["seconds"] == best["step"]["seconds"]


def test_the_words_say_where_stages_stand(plan) -> None:
    """Placement, cards, capacities and the order of the nodes for a launch are in the text."""
    text = " ".join(memory(plan, "--pp", 4, "--placement", "A100-80G,A100-40G").out.split())
    assert "stages 0-1 on 8 x A100-80G, stages 2-3 on 8 x A100-40G" in text
    assert "79.2 GiB on A100-80G and 39.4 GiB on A100-40G" in text
    flags = memory(plan, "--pp", 4, "--placement", "A100-80G,A100-40G", "--flags", "megatron")
    assert "start the nodes in this order" in flags.err and "--placement" not in flags.out


def test_without_a_pipeline_the_smaller_card_limits_and_it_is_said(plan) -> None:
    """A stage on both cards: the smaller card's room, named among the assumptions."""
    answer = memory(plan, "--tp", 4, "--json")
    assert cards(answer) == ["A100-40G"]
    assert any("the A100-40G limits them" in line for line in answer.data["memory"]["assumptions"])


def test_a_launch_is_judged_on_its_cards(plan, tmp_path: Path) -> None:
    """`plan check` on mixed GPUs: stages with cards, the order said, another order on demand."""
    file = tmp_path / "launch.sh"
    file.write_text(LAUNCH, encoding="utf-8")
    answer = plan("check", file, "--gpus", MIXED, "--json")
    assert answer.code == 0 and sorted(set(cards(answer))) == sorted(CARDS)
    assert any("the best of 2 orders" in line for line in answer.data["notes"])
    other = plan("check", file, "--gpus", MIXED, "--placement", "A100-80G,A100-40G", "--json")
    assert cards(other) == ["A100-80G", "A100-80G", "A100-40G", "A100-40G"]
    left_over = plan("check", file, "--gpus", "8xA100-80G+4xA100-40G")
    assert left_over.code == 5 and "no stage on 4 x A100-40G" in " ".join(left_over.out.split())


def test_a_cluster_file_of_mixed_nodes(plan, tmp_path: Path) -> None:
    """Groups of a file are kinds too, with ports of their own where they say so."""
    file = tmp_path / "mine.yaml"
    file.write_text(
        "groups:\n"
        "  - {card: H100-80G, nodes: 2, gpus_per_node: 8, network_bytes_per_second: 5.0e+10}\n"
        "  - {card: A100-80G, nodes: 1, gpus_per_node: 8}\n"
        "fabric: {kind: infiniband, bytes_per_second_per_gpu: 2.5e+10, latency_seconds: 5.0e-6}\n",
        encoding="utf-8",
    )
    answer = plan("memory", "--model", "13b", "--cluster", file, "--tp", 8, "--pp", 3, "--json")
    assert sorted(cards(answer)) == ["A100-80G", "H100-80G", "H100-80G"]
    assert answer.data["inputs"]["cluster"]["groups"][0]["network_bytes_per_second"] == 5e10


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("--gpus", MIXED, "--placement", "A100-40G"), "each of A100-80G, A100-40G once"),
        (("--gpus", "8xA100-80G", "--placement", "A100-80G"), "has just one, A100-80G"),
        (("--gpus", "1xA100-80G+1xA100-40G+1xH100-80G+1xH200-141G+1xH20-96G+1xL40S", "--pp", 6), "at most 5 kinds"),
    ],
)
def test_mistakes_are_one_sentence(plan, arguments, sentence) -> None:
    """A placement that names the wrong kinds, or too many kinds, is refused with what is right."""
    answer = plan("memory", "--model", "13b", *arguments)
    assert answer.code == 2 and sentence in answer.err


def test_why_nothing_fits_names_the_card(plan) -> None:
    """The facts name the card that overflows; the remedies are sums of cards that were solved."""
    pins = ("--tp", 1, "--pp", 2, "--zero", 0, "--recompute", "full")
    answer = plan("--model", "13b", "--seq-length", 2048, "--gpus", "1xA100-80G+1xA100-40G", *pins, "--json")
    assert answer.code == 3
    facts = {fact["id"]: fact["sentence"] for fact in answer.data["explanation"]["facts"]}
    assert "A100-40G offers" in facts["capacity"] or "A100-80G offers" in facts["capacity"]
    assert any("(on A100-" in sentence for sentence in facts.values())
    for hint in answer.data["explanation"]["hints"]:
        assert hint["plan"]["memory"]["fits"]


def test_a_search_says_whether_each_kind_pays_for_itself(plan) -> None:
    """What is left without a kind is what its own search says, at the same batch and with its own kernels."""
    shared = ("--model", "7b", "--seq-length", 2048, "--global-batch", 256)
    found = plan(*shared, "--gpus", "8xH100-80G+8xV100-32G")
    alone = plan(*shared, "--gpus", "8xH100-80G", "--json").data["plans"][0]["step"]["seconds"]
    data = plan(*shared, "--gpus", "8xH100-80G+8xV100-32G", "--json").data
    rows = {row["without"]: row for row in data["without"]}
    assert rows["V100-32G"]["step_seconds"] == alone < data["plans"][0]["step"]["seconds"]
    assert rows["V100-32G"]["changed"] == ["bf16", "flash attention"] and rows["H100-80G"]["changed"] == []
    said = " ".join(found.out.split())
    assert "Faster without V100-32G: 8 x H100-80G alone, with bf16 and flash attention, take" in said
    assert "Faster without H100" not in said


def test_a_pin_of_the_whole_cluster_is_not_asked_of_a_part(plan) -> None:
    """--dp and --placement hold for all GPUs; where a kind is all there is, nothing is said."""
    shared = ("--model", "7b", "--seq-length", 2048, "--global-batch", 256, "--json")
    for more in (
        ("--gpus", MIXED, "--dp", 4),
        ("--gpus", MIXED, "--placement", "A100-40G,A100-80G"),
        ("--gpus", "8xA100-80G"),
    ):
        assert "without" not in plan(*shared, *more).data


def test_a_placement_takes_the_names_that_cards_go_by(plan) -> None:
    """`H100` is H100-80G there as in --gpus."""
    question = ("memory", "--model", "7b", "--gpus", "8xA100-80G+8xH100-80G", "--pp", "2", "--zero", "1", "--json")
    short = plan(*question, "--placement", "H100,A100").data["layout"]
    assert short == plan(*question, "--placement", "H100-80G,A100-80G").data["layout"]
