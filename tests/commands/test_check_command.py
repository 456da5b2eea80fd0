"""`plan check`: scripts, argument files and DeepSpeed configs, one or many."""

from __future__ import annotations

import json

import pytest

ARGUMENTS = """WORLD_SIZE=16
--num-layers 40 --hidden-size 5120 --num-attention-heads 40 --ffn-hidden-size 13824 --swiglu --disable-bias-linear
--seq-length 4096 --max-position-embeddings 4096 --vocab-size 32000 --position-embedding-type rope
--normalization RMSNorm --untie-embeddings-and-output-weights --micro-batch-size 1 --global-batch-size 128 --bf16
--tensor-model-parallel-size 2 --pipeline-model-parallel-size 2 --sequence-parallel --use-distributed-optimizer
"""


@pytest.fixture
def launch(tmp_path):
    path = tmp_path / "llama.sh"
    path.write_text(ARGUMENTS)
    return path


def test_the_body_keeps_the_contract(plan, launch) -> None:
    """One file is one object with the contract's keys; the launch says its own world size."""
    data = plan("check", launch, "--gpu", "H100", "--json").data
    assert data.keys() >= {"file", "model", "layout", "rules", "unrecognised", "memory", "step"}
    assert data["file"] == str(launch)
    assert data["model"]["parameters"] == 13_015_864_320
    assert data["layout"]["dp"] == 4
    assert data["inputs"]["cluster"]["gpus"] == 16
    assert data["rules"] == [] and data["unrecognised"] == []


def test_a_launch_and_the_same_layout_by_options_agree(plan, launch) -> None:
    """The bytes of a launch are those of `plan memory` with the same degrees: one accounting."""
    checked = plan("check", launch, "--gpu", "H100-80G", "--json").data["memory"]
    given = plan(
        "memory", "--model", "13b", "--gpus", "16xH100-80G", "--tp", "2", "--pp", "2", "--global-batch", "128", "--json"
    ).data["memory"]
    for stage, wanted in zip(checked["stages"], given["stages"], strict=True):
        assert stage["parameters"] == wanted["parameters"]
        assert stage["components"]["optimizer"] == wanted["components"]["optimizer"]


def test_the_gpus_on_the_command_line_go_first(plan, launch) -> None:
    """--gpus replaces what the launch says."""
    assert plan("check", launch, "--gpus", "8xH100", "--json").data["layout"]["dp"] == 2


def test_the_nodes_of_the_launch_are_those_that_it_is_timed_on(plan, launch) -> None:
    """16 GPUs in four nodes of four: tensor parallelism over eight leaves a node, as with --gpus 4x4xH100."""
    text = ARGUMENTS.replace("--pipeline-model-parallel-size 2", "")
    text = text.replace("parallel-size 2", "parallel-size 8")
    launch.write_text(text.replace("WORLD_SIZE=16", "NNODES=4\nGPUS_PER_NODE=4"))
    own = plan("check", launch, "--gpu", "H100", "--json").data
    stated = plan("check", launch, "--gpus", "4x4xH100", "--json").data
    usual = plan("check", launch, "--gpus", "16xH100", "--json").data
    assert own["inputs"]["cluster"]["gpus_per_node"] == 4
    assert own["step"] == stated["step"] and own["memory"] == stated["memory"] == usual["memory"]
    assert own["step"]["components"]["tensor_parallel"] > 1.5 * usual["step"]["components"]["tensor_parallel"]


def test_a_vocabulary_that_the_launch_leaves_to_a_file(plan, launch) -> None:
    """The error names the option that gives it; the answer is then that of the launch with --vocab-size in it. A launch
    that says its vocabulary keeps it, and the option is told of."""
    own = plan("check", launch, "--gpu", "H100", "--json").data
    ignored = plan("check", launch, "--gpu", "H100", "--vocab-size", "64000", "--json").data
    assert ignored["memory"] == own["memory"]
    assert "--vocab-size 64000 is not taken: the launch says a vocabulary of 32000 itself" in ignored["notes"]
    by_file = "--tokenizer-type HuggingFaceTokenizer --tokenizer-model ./mine"
    launch.write_text(ARGUMENTS.replace("--vocab-size 32000", by_file))
    refused = plan("check", launch, "--gpu", "H100")
    assert refused.code == 2 and "give it to `plan check --vocab-size N`" in refused.err
    given = plan("check", launch, "--gpu", "H100", "--vocab-size", "32000", "--json").data
    assert (given["model"], given["memory"], given["notes"]) == (own["model"], own["memory"], own["notes"])


def test_a_vocabulary_is_no_option_of_a_deepspeed_json(plan, tmp_path) -> None:
    """Its --model has one."""
    config = tmp_path / "ds.json"
    config.write_text('{"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}}')
    asked = ("check", config, "--model", "7b", "--gpus", "8xA100-80G", "--vocab-size", "32000")
    assert plan(*asked).code == 2 and "--model says the vocabulary" in plan(*asked).err


def test_variables_that_a_script_starts_with(plan, tmp_path) -> None:
    """--set gives the environment and the positional parameters; the error of a launch that needs one names it."""
    script = tmp_path / "run.sh"
    script.write_text(
        "TP=$1\n" + "torchrun t.py " + " ".join(ARGUMENTS.split()[1:]) + " --tensor-model-parallel-size $TP"
    )
    assert "--set 1=VALUE" in plan("check", script, "--gpus", "16xH100").err
    data = plan("check", script, "--gpus", "16xH100", "--set", "1=8", "--set", "X=a=b", "--json").data
    assert data["layout"]["tp"] == 8
    assert data["notes"] == ["--set X=a=b has no effect: the file names no variable X"]
    for wrong in ("TP", "=4", "0=4", "T-P=4", "é=1"):
        answer = plan("check", script, "--gpus", "16xH100", "--set", wrong)
        assert answer.code == 2 and f"'{wrong}' was given" in answer.err


def test_an_argument_that_is_not_understood_is_named(plan, launch) -> None:
    """Never dropped in silence: in the JSON and in the text."""
    launch.write_text(ARGUMENTS + "--frobnicate-widgets 3\n")
    assert any(
        "frobnicate-widgets" in name for name in plan("check", launch, "--gpu", "H100", "--json").data["unrecognised"]
    )
    assert "frobnicate-widgets" in plan("check", launch, "--gpu", "H100").out


def test_a_broken_rule_has_id_sentence_source_and_numbers(plan, launch) -> None:
    """`rules` holds the broken ones only, with the function that would refuse the launch."""
    launch.write_text(ARGUMENTS.replace("--global-batch-size 128", "--global-batch-size 130"))
    answer = plan("check", launch, "--gpu", "H100", "--json")
    (rule,) = answer.data["rules"]
    assert rule["id"] == "batch-divides" and "130" in rule["given"]
    assert rule["source"].startswith("megatron/")
    assert "Breaks 1 rule" in plan("check", launch, "--gpu", "H100").out


def test_many_files_are_a_list_in_order(plan, launch, tmp_path) -> None:
    """A file that cannot be judged is an entry with an error and hides nothing."""
    empty = tmp_path / "empty.sh"
    empty.write_text("")
    answer = plan("check", launch, empty, launch, "--gpu", "H100", "--json")
    assert [entry["file"] for entry in answer.data] == [str(launch), str(empty), str(launch)]
    assert [("error" in entry) for entry in answer.data] == [False, True, False]
    assert str(empty) in answer.err


def test_many_files_are_a_line_each(plan, launch, tmp_path) -> None:
    """A person sees the verdict of each file and the count; --detail adds the full reports."""
    bad = tmp_path / "bad.sh"
    bad.write_text(ARGUMENTS.replace("--global-batch-size 128", "--global-batch-size 130"))
    absent = tmp_path / "absent.sh"
    text = plan("check", launch, bad, absent, "--gpu", "H100").out
    for path, verdict in ((launch, "passes"), (bad, "breaks rules"), (absent, "not judged")):
        assert verdict in next(line for line in text.splitlines() if line.startswith(str(path)))
    assert "1 launch passed, 1 failed, 1 not judged." in text
    assert "Memory of one GPU" not in text
    assert "Memory of one GPU" in plan("check", launch, bad, "--gpu", "H100", "--detail").out


def test_a_launch_that_does_not_say_its_world(plan, launch) -> None:
    """With just the card, the number of GPUs must come from somewhere; the sentence says where."""
    launch.write_text(ARGUMENTS.replace("WORLD_SIZE=16\n", ""))
    answer = plan("check", launch, "--gpu", "H100")
    assert answer.code == 2 and "--gpus such as 16xH100-80G is required" in answer.err


def test_one_launch_more_opens_one_file_more(plan, launch, work, tmp_path) -> None:
    """One process, one start-up: cards and models are read once for all launches (benchmarks/launches.py times it)."""
    files = []
    for i in range(20):
        files.append(tmp_path / f"{i}.sh")
        files[-1].write_text(ARGUMENTS.replace("--global-batch-size 128", f"--global-batch-size {128 * (i + 1)}"))
    plan("check", files[0], "--gpu", "H100", "--json")
    few, many = (work(lambda n=n: plan("check", *files[:n], "--gpu", "H100", "--json")) for n in (10, 20))
    assert len(many.result.data) == 20
    assert many.opened - few.opened == 10


def test_a_deepspeed_config_needs_a_model(plan, tmp_path) -> None:
    """A DeepSpeed JSON says neither the model nor the GPUs: both sentences name the option."""
    path = tmp_path / "ds.json"
    config = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 4,
        "bf16": {"enabled": True},
        "zero_optimization": {"stage": 3},
    }
    path.write_text(json.dumps(config))
    assert "--model is required" in plan("check", path, "--gpus", "8xA100").err
    assert "--gpus is required" in plan("check", path, "--model", "7b", "--gpu", "A100").err
    data = plan("check", path, "--model", "7b", "--gpus", "8xA100", "--json").data
    assert (data["layout"]["zero"], data["layout"]["dp"], data["layout"]["num_microbatches"]) == (3, 8, 4)


def test_a_misspelt_argument_is_named_with_what_was_meant(plan, tmp_path) -> None:
    """Megatron-LM's parser would end with it; the launch as it reads is judged, with the word before the verdict. An
    argument of the script's own looks like none."""
    path = tmp_path / "launch.sh"
    wrong = ARGUMENTS.replace("--tensor-model-parallel-size", "--tensor-model-parrallel-size")
    path.write_text(wrong.replace("--sequence-parallel ", "") + " --my-own 3")
    answer = plan("check", path, "--gpus", "16xA100-80G")
    assert "--tensor-model-parrallel-size: Megatron-LM knows --tensor-model-parallel-size" in answer.out
    assert answer.out.index("Probably misspelt") < answer.out.index("Not understood")
    assert "--tensor-model-parrallel-size is probably misspelt" in answer.err
    data = plan("check", path, "--gpus", "16xA100-80G", "--json").data
    assert data["misspelt"] == {"--tensor-model-parrallel-size": "--tensor-model-parallel-size"}
    assert data["unrecognised"] == ["--tensor-model-parrallel-size 2", "--my-own 3"]
