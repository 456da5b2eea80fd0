"""What following a script guesses is said in the notes, where the launch depends on it, and `preset` decides it."""

import re

import pytest

from planner.errors import InputError, NotModelled
from planner.interop.megatron.launch import launch_from_text

ARGUMENTS = "--hidden-size 64 --num-attention-heads 4 --seq-length 32 --vocab-size 100 --micro-batch-size 2"
RUN = f"torchrun --nproc_per_node 8 t.py --num-layers $L {ARGUMENTS}"


@pytest.mark.parametrize(
    ("script", "note", "layers"),
    [
        (
            'if [[ "$SIZE" == 70b ]]; then L=80; else L=32; fi',
            '`[[ "$SIZE" == 70b ]]` counts as false, since $SIZE',
            32,
        ),
        ("SIZE=$1\nif [ $SIZE = big ]; then L=80; else L=32; fi", "--set 1=VALUE", 32),
        ("SIZE=${SIZE:-big}\nif [ $SIZE = big ]; then L=80; else L=32; fi", "counts as true, since $SIZE is not", 80),
        ("L=8\nif [ -d /data ]; then L=80; fi", "`[ -d /data ]` is not known and counts as false", 8),
        ("L=8\nif [ -d /data ]; then K=4; export L=$K; fi", "`[ -d /data ]` is not known", 8),
        ("K=8\nif [ -d /data ]; then K=80; fi\nL=$((K * 2))", "`[ -d /data ]` is not known", 16),
        ("L=8\n[ -d /data ] && L=80", "`[ -d /data ]` is not known", 8),
        ("L=8\n[[ -z $SIZE ]] && L=80", "`[[ -z $SIZE ]]` counts as true, since $SIZE is not set", 80),
        ("case $1 in big) L=80 ;; *) L=8 ;; esac", "`case $1` takes the branch `*`, since $1 is not set", 8),
        ("L=8\ncase $1 in big) L=80 ;; esac", "`case $1` takes no branch, since $1 is not set", 8),
        ("for L in 2 4 8; do echo $L; done", "the loop over L is read once, with 2, the first of its 3 values", 2),
        ("L=8\nwhile [ $# -gt 0 ]; do\n case $1 in -l) L=$2; shift ;; esac\ndone", "is not followed", 8),
        ("L=8\nsource env.sh", "source env.sh is not read", 8),
        ("L=8\n. env.sh", ". env.sh is not read", 8),
        ("L=8\nif [ $DEBUG = 1 ]; then\n torchrun t.py --x\n exit\nfi", "$DEBUG is not set", 8),
    ],
)
def test_a_guess_that_the_launch_depends_on_is_one_note(script, note, layers):
    """One sentence for each construct, with the line's words and, where an unset variable decided, how to set it."""
    got = launch_from_text(f"{script}\n{RUN}", "s")
    assert got.model.num_layers == layers
    assert len(got.notes) == 1 and note in got.notes[0]


def test_a_guess_around_the_launch_is_a_note():
    """A loop over runs and a branch that holds the launch."""
    notes = launch_from_text(f"L=2\nfor GBS in 256 512; do\n{RUN} --global-batch-size $GBS\ndone", "s").notes
    assert notes == ("the loop over GBS is read once, with 256, the first of its 2 values",)
    (note,) = launch_from_text(f"L=2\nif [ -d x ]; then\n{RUN} --bf16\nelse\n{RUN}\nfi", "s").notes
    assert "`[ -d x ]` is not known" in note


@pytest.mark.parametrize(
    "script",
    [
        "if [ ! -d logs ]; then mkdir logs; fi",
        "[ -z $LOG ] && LOG=log.txt",
        "for f in a b c; do rm $f; done",
        "if [ $# -lt 1 ]; then echo usage; exit 1; fi",
        "SIZE=big\nif [ $SIZE = big ]; then X=80; else X=32; fi",
        "SIZE=big\nif [ $SIZE = big ]; then L=2; else L=32; fi",
    ],
)
def test_what_the_launch_does_not_depend_on_is_no_note(script):
    """Directories that are made, logs, usage messages, conditions that the file decides, and what follows it."""
    assert launch_from_text(f"L=2\n{script}\n{RUN}", "s").notes == ()
    assert launch_from_text(f"L=2\n{RUN}\nsource env.sh\nfor i in 1 2; do L=$i; done", "s").notes == ()


def test_another_number_of_gpus_than_the_launch_says():
    """Both numbers are in the note; the same number is none."""
    text = f"L=2\n{RUN}"
    assert launch_from_text(text, "s", 8).notes == ()
    (note,) = launch_from_text(text, "s", 16).notes
    assert "8 GPUs" in note and "16" in note
    (note,) = launch_from_text(f"#SBATCH -N 4\n#SBATCH --gpus-per-node=8\nL=2\nsrun {RUN[29:]}", "s", 16).notes
    assert "32 GPUs" in note


@pytest.mark.parametrize(
    ("script", "preset", "layers"),
    [
        ("L=${L:-4}", {"L": "6"}, 6),
        ("L=4", {"L": "6"}, 4),
        ("L=$1", {"1": "6"}, 6),
        ("L=${2:-3}", {"1": "6"}, 3),
        ("shift\nL=$1", {"1": "6", "2": "7"}, 7),
        ("L=$#", {"1": "6", "2": "7"}, 2),
        ("[ $# -eq 1 ] && L=$1", {"1": "6"}, 6),
        ("L=${11}", {"11": "5"}, 5),
        ("case $1 in big) L=80 ;; *) L=8 ;; esac", {"1": "big"}, 80),
        ("set_by=env", {"L": "9"}, 9),
    ],
)
def test_a_script_starts_with_the_variables_that_are_preset(script, preset, layers):
    """The environment and the positional parameters: defaults see them, assignments overwrite them."""
    got = launch_from_text(f"{script}\n{RUN}", "s", preset=preset)
    assert got.model.num_layers == layers
    assert [note for note in got.notes if "has no effect" not in note] == []


def test_the_environment_of_a_launch_can_be_preset():
    """The number of GPUs and what a YAML leaves open come from there too."""
    text = f"python t.py --num-layers 2 {ARGUMENTS}"
    assert launch_from_text(text, "s", preset={"WORLD_SIZE": "32"}).world_size == 32
    yaml = "num_layers: ${L}\n" + "".join(
        f"{name.strip()}: {value}\n" for name, value in (pair.split() for pair in ARGUMENTS.split("--") if pair.strip())
    )
    assert launch_from_text(yaml, "s.yaml", preset={"L": "7"}).model.num_layers == 7


@pytest.mark.parametrize(("script", "name"), [("L=$1", "1"), ("L=${2}", "2"), ("true", "L"), ("L=$K", "K")])
def test_what_only_the_caller_knows_is_asked_for(script, name):
    """The sentence says which option gives a value that decides the layout."""
    with pytest.raises(InputError, match=rf"--num-layers must be given .*`plan check --set {name}=VALUE` gives it"):
        launch_from_text(f"{script}\n{RUN}", "s")


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        ("deepspeed --num_gpus 8 train.py --deepspeed ds3.json --bf16", "plan check ds3.json --model M"),
        ("deepspeed train.py --deepspeed_config=conf/ds.json", "plan check conf/ds.json --model M"),
        ("torchrun --nproc_per_node 8 train.py --deepspeed ds3.json --lr 1", "plan check ds3.json --model M"),
        ("deepspeed --hostfile h train.py --ds $CONFIG", "plan check FILE.json --model M"),
        ('D=ds3.json\nsrun bash -c "deepspeed train.py --deepspeed $D --seed 1"', "plan check ds3.json --model M"),
    ],
)
def test_a_deepspeed_launch_without_a_model_is_named(command, shown):
    """Its JSON is what can be judged; no Megatron argument is asked for."""
    with pytest.raises(InputError, match=r"^s\.sh: this is a DeepSpeed launch without") as caught:
        launch_from_text(f"#!/bin/bash\n{command}", "s.sh")
    assert shown in str(caught.value) and "hidden-size" not in str(caught.value)


def test_megatron_deepspeed_is_read_as_before():
    """A launch of it says its model, or misses arguments of Megatron's."""
    text = f"deepspeed --num_gpus 8 pretrain_gpt.py --num-layers 2 {ARGUMENTS} --deepspeed --zero-stage 1"
    assert launch_from_text(text, "s").model.num_layers == 2
    with pytest.raises(InputError, match="--hidden-size must be given"):
        launch_from_text("deepspeed pretrain_gpt.py --deepspeed --bf16 $MODEL_ARGS", "s")


@pytest.mark.parametrize(
    ("script", "sentence"),
    [
        ("examples/inference/gpt_dynamic_inference.py", "gpt_dynamic_inference.py does not train"),
        ("tools/run_text_generation_server.py", "run_text_generation_server.py does not train"),
        ("pretrain_mamba.py", "pretrain_mamba.py trains a model that is not modelled"),
        ("train_rl.py", "train_rl.py generates between its training steps"),
        ("train_generator.py", ""),
        ("finetune_export.py", ""),
    ],
)
def test_what_trains_no_decoder_is_refused_by_name(script, sentence):
    """Scripts for inference and tools take the same arguments; one's own training scripts may be called anything."""
    text = f"torchrun --nproc_per_node 8 {script} --num-layers 8 {ARGUMENTS}"
    if sentence:
        with pytest.raises(NotModelled, match=re.escape(sentence)):
            launch_from_text(text, "launch.sh")
    else:
        assert launch_from_text(text, "launch.sh").model.num_layers == 8


@pytest.mark.parametrize(
    ("script", "preset", "note"),
    [
        ("L=8", {"NOPE": "3"}, "--set NOPE=3 has no effect: the file names no variable NOPE"),
        ("L=8", {"L": "4"}, "--set L=4 has no effect: the file sets L to 8 itself"),
        ("L=${1:-8}", {"3": "x"}, "--set 3=x has no effect: the file uses no parameter $3"),
        ("L=$1", {"L": "4", "1": "8"}, "--set L=4 has no effect: the file sets L to 8 itself"),
        ("L=${L:-4}", {"L": "8"}, None),
        ("L=$((L * 2))", {"L": "4"}, None),
        ("L=${2}", {"1": "x", "2": "8"}, "--set 1=x has no effect"),
        ("L=8\necho $@", {"3": "x"}, None),
        ("L=8\nif [ $SIZE = big ]; then L=80; fi", {"SIZE": "small"}, None),
        ("L=8", {"CUDA_DEVICE_MAX_CONNECTIONS": "1"}, None),
    ],
)
def test_a_preset_without_effect_is_said(script, preset, note):
    """A name that the file never uses, or overwrites, changes nothing; what is read from the environment does."""
    got = launch_from_text(f"{script}\n{RUN}", "s", preset=preset)
    said = [text for text in got.notes if "has no effect" in text]
    assert got.model.num_layers == 8
    assert [text for text in said if note and text.startswith(note)] == said and bool(said) == bool(note)


def test_a_preset_of_a_yaml_without_effect_is_said():
    """The file's own ENV_VARS go before the preset."""
    text = "ENV_VARS: {L: 8}\nMODEL_ARGS: {--num-layers: $L, " + ", ".join(
        f"{name}: {value}" for name, value in zip(ARGUMENTS.split()[::2], ARGUMENTS.split()[1::2], strict=True)
    )
    notes = launch_from_text(text + "}", "a.yaml", 8, preset={"L": "4", "NOPE": "1"}).notes
    assert [note.split(":")[0] for note in notes] == ["--set L=4 has no effect", "--set NOPE=1 has no effect"]


def test_a_gpt_neox_configuration_is_named():
    """Its keys have dashes or underscores; it was refused for a mapping among Megatron's arguments."""
    for keys in ("pipe-parallel-size: 1\nmodel-parallel-size: 2", "pipe_parallel_size: 1\nmodel_parallel_size: 2"):
        with pytest.raises(InputError, match="this is GPT-NeoX's"):
            launch_from_text(f"{keys}\nnum-layers: 2\nzero_optimization: {{stage: 1}}\n", "neox.yml")
