"""Following a launch script without running it: what is known is resolved, what is not is named."""

import os
from pathlib import Path
from textwrap import indent

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planner.errors import InputError
from planner.interop.megatron.launch import launch_from_text
from planner.interop.megatron.parse import UNRESOLVED
from planner.interop.megatron.shell import read_script
from planner.interop.megatron.sources import source_from_text

REST = " --num-attention-heads 4 --seq-length 32 --vocab-size 100 --micro-batch-size 2"


def words(script: str) -> list[str]:
    """The words of the last command of a script."""
    return [word.replace(UNRESOLVED, "?") for word in read_script(script, "s").commands[-1]]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("A=1\nrun --x $A ${A} \"$A\" '$A'", ["1", "1", "1", "$A"]),
        ("run --x ${A:-7} ${A-8} ${B:=9} $B", ["7", "8", "9", "9"]),
        ("A=2; run --x ${A:+set} ${C:+set}", ["set"]),
        ("A=3\nB=4\nrun --x $((A*B)) $((A * $B - 2)) $(( (A+B) / 2 )) $[A+1] $((2**5))", ["12", "10", "3", "4", "32"]),
        ("N=5\nrun --x $((N / 0)) $((7 % 4))", ["?$((N / 0))?", "3"]),
        ("A=(1 2 'three 3')\nrun --x \"${A[@]}\"", ["1", "2", "three 3"]),
        ("A=(1 2)\nA+=(3)\nrun --x ${A[@]} ${A[1]} ${#A[@]}", ["1", "2", "3", "2", "3"]),
        ('A=(1 2)\nrun --x "${A[*]}" ${A[*]} "p ${A[*]}s"', ["1 2", "1", "2", "p 1 2s"]),
        ("A='1 2'\nA+=' 3'\nrun --x $A \"$A\"", ["1", "2", "3", "1 2 3"]),
        ("run --x a \\\n  b # a comment\nA=1", ["a", "b"]),
        ("run --x a#b 'c # d'", ["a#b", "c # d"]),
        (
            "F=/a/b/c.tar.gz\nrun --x ${F##*/} ${F%.gz} ${F%%.*} ${F/a/z}",
            ["c.tar.gz", "/a/b/c.tar", "/a/b/c", "/z/b/c.tar.gz"],
        ),
        ("V=ab\nrun --x ${V^^} pre${V}post", ["AB", "preabpost"]),
        ('run --x $HOME/data $(nproc) `date` "$1"', ["?$HOME?/data", "?$(nproc)?", "?`date`?", "?$1?"]),
        ("export A=1 B=2\ndeclare -i C=3\nlocal D=4\nrun --x $A$B$C$D", ["1234"]),
        ("run --x 1 > log.txt 2>&1", ["1"]),
        ("let A=2+3\n((B=A*2))\nrun --x $A $B", ["5", "10"]),
        ("A=1\nif [ $A -eq 1 ]; then B=yes; else B=no; fi\nrun --x $B", ["yes"]),
        ('if [[ "$A" == "x" ]]; then B=1\nelif [ -z "$A" ]; then B=2\nelse B=3\nfi\nrun --x $B', ["2"]),
        ("if [ -f /etc/passwd ]; then B=1; else B=2; fi\nrun --x $B", ["2"]),
        ("A=4\nif [[ $A -gt 2 && $A -lt 5 ]]; then\n B=in\nfi\nrun --x $B", ["in"]),
        ("A=4\nif ((A > 8)); then B=1; else\n B=2; fi\nrun --x $B", ["2"]),
        ("A=b\ncase $A in a) B=1 ;; b|c) B=2 ;; *) B=3 ;; esac\nrun --x $B", ["2"]),
        (
            "while [ $# -gt 0 ]; do\n case $1 in\n  --tp)\n   B=$2; shift 2;;\n  -h|--help)\n   exit 0;;\n *) exit 1\n"
            " esac\ndone\nB=2\nrun --x $B",
            ["2"],
        ),
        ("A=--tp\ncase $A in\n --pp|--cp) B=1;;\n --tp) B=2;;\nesac\nrun --x $B", ["2"]),
        ('[ -z $A ] && B=1\n[ -n "$A" ] && B=2\n[[ -z $A ]] || B=3\nrun --x $B', ["1"]),
        ('[ -n "$A" ] && B=1 || B=2\n[ -z "$A" ] && C=3 || C=4\nrun --x $B $C', ["2", "3"]),
        ("[ -f x ] || B=1\ncd x || B=2\nrun --x $B", ["1"]),
        ("for i in 7; do\nrun --x $i\ndone", ["7"]),
        ("f() {\n run --x 1\n}\nf", None),
        ('eval "run --x 5"', ["5"]),
        ("CMD='run --x 6'\n$CMD", ["6"]),
    ],
)
def test_what_a_script_would_run(script, expected):
    """Each construct gives the words that bash would give, or a mark where only running it could tell."""
    if expected is None:
        assert ["run", "--x", "1"] in read_script(script, "s").commands
    else:
        assert words(script) == ["run", "--x", *expected]


def test_conditions_that_are_not_known_are_noted():
    """A guess is never silent: the condition is quoted in the notes."""
    notes = read_script("if [ -f x ]; then A=1; fi\nfor i in 1 2; do B=$i; done\nsource env.sh", "s").notes()
    assert len(notes) == 3
    assert "-f x" in notes[0] and "loop over i" in notes[1] and "env.sh" in notes[2]


@pytest.mark.parametrize(
    ("launcher", "world"),
    [
        ("torchrun --nproc_per_node 8 --nnodes 4 pretrain_gpt.py", 32),
        ("torchrun --nproc-per-node=8 pretrain_gpt.py", 8),
        ("python -m torch.distributed.launch --nproc_per_node=2 --nnodes=2 pretrain_gpt.py", 4),
        ("python -u -m torch.distributed.run --nnodes 1:4 --nproc_per_node 8 pretrain_gpt.py", None),
        ("torchrun --nproc_per_node gpu pretrain_gpt.py", None),
        ("WORLD_SIZE=16\npython pretrain_gpt.py", 16),
        ("WORLD_SIZE=16 python pretrain_gpt.py", 16),
        ("NNODES=2\nGPUS_PER_NODE=8\nsrun python pretrain_gpt.py", 16),
        ("#SBATCH --nodes=4\n#SBATCH --gpus-per-node=8\nsrun python pretrain_gpt.py", 32),
        ("#SBATCH -N 2\n#SBATCH --gres=gpu:a100:4\nsrun python pretrain_gpt.py", 8),
        ("#SBATCH --nodes=4 # a comment -n 9\ntorchrun --nnodes $SLURM_NNODES --nproc_per_node 8 t.py", 32),
        ("#SBATCH -N 4\n#SBATCH -n 32\nexport WORLD_SIZE=$SLURM_NTASKS\nsrun python t.py", 32),
        ("#SBATCH -N 3\n#SBATCH --ntasks-per-node=4\nWORLD_SIZE=$SLURM_NTASKS\nsrun python t.py", 12),
        ("#SBATCH --nodes=2\n#SBATCH --gpus=16\ntorchrun --nnodes 2 --nproc_per_node $SLURM_GPUS_ON_NODE t.py", 16),
        ("#SBATCH --nodes=2-4\ntorchrun --nnodes $SLURM_NNODES --nproc_per_node 8 t.py", None),
        ("deepspeed --num_nodes 2 --num_gpus 8 pretrain_gpt.py", 16),
        ("deepspeed --hostfile hosts --num_gpus 8 pretrain_gpt.py", None),
        ("deepspeed --hostfile hosts --num_nodes 2 --num_gpus 8 pretrain_gpt.py", 16),
        ("deepspeed --include localhost:0,1,2 pretrain_gpt.py", 3),
        ("deepspeed --include=w0:0,1@w1:4,5 pretrain_gpt.py", 4),
        ("deepspeed --include=w0@w1:4,5 pretrain_gpt.py", None),
        ("mpirun --allow-run-as-root -np 16 python pretrain_gpt.py", 16),
        ("/usr/bin/mpiexec -n 4 python pretrain_gpt.py", 4),
        ("mpirun -np 2 torchrun --nnodes 2 --nproc_per_node 8 pretrain_gpt.py", 16),
        ("accelerate launch --num_machines 2 --num_processes 16 pretrain_gpt.py", 16),
        ("python pretrain_gpt.py", None),
    ],
)
def test_world_size_from_the_launcher(launcher, world):
    """torchrun's options, the environment's assignments and the batch header each tell the number of GPUs."""
    text = f"#!/bin/bash\n{launcher} --num-layers 2 --hidden-size 64 {REST}"
    assert launch_from_text(text, "s").world_size == world


@pytest.mark.parametrize(
    ("launcher", "per_node"),
    [
        ("torchrun --nproc_per_node 4 --nnodes 4 t.py", 4),
        ("NNODES=2\nGPUS_PER_NODE=16\nsrun python t.py", 16),
        ("WORLD_SIZE=32\nGPUS_PER_NODE=4\nsrun python t.py", 4),
        ("WORLD_SIZE=30\nGPUS_PER_NODE=4\nsrun python t.py", None),
        ("#SBATCH -N 3\n#SBATCH --ntasks-per-node=4\nWORLD_SIZE=$SLURM_NTASKS\nsrun python t.py", 4),
        ("#SBATCH -N 2\n#SBATCH --gres=gpu:a100:4\nsrun python t.py", 4),
        ("mpirun -np 16 python t.py", None),
        ("WORLD_SIZE=16\npython t.py", None),
        # one task a node, which starts the others itself, is not one GPU a node
        ("#SBATCH -N 8\n#SBATCH --ntasks-per-node=1\nWORLD_SIZE=64\npython t.py", 8),
        ("#SBATCH -N 8\n#SBATCH --ntasks-per-node=1\nsrun python t.py", None),
        ("#SBATCH -N 8\n#SBATCH --gpus-per-node=1\nsrun python t.py", 1),
    ],
)
def test_nodes_from_the_launcher(launcher, per_node):
    """GPUs of a node, where the launch tells them and they divide its GPUs; the caller's GPUs go before them."""
    text = f"#!/bin/bash\n{launcher} --num-layers 2 --hidden-size 64 {REST}"
    assert launch_from_text(text, "s").gpus_per_node == per_node
    assert launch_from_text(text, "s", world_size=8).gpus_per_node is None


def test_nested_commands_are_read():
    """Arguments inside `bash -c "..."` under srun are found."""
    text = (
        f'ARGS="--num-layers 2 --hidden-size 64 {REST}"\nsrun -l bash -c "torchrun --nproc_per_node 4 t.py ${{ARGS}}"'
    )
    got = launch_from_text(text, "s")
    assert (got.world_size, got.model.num_layers) == (4, 2)


@pytest.mark.parametrize(
    "command",
    [
        'srun bash -c "torchrun --nproc_per_node 4 t.py ${A[*]} ${B[*]}"',
        'srun bash -c "torchrun --nproc_per_node 4 t.py ${A[@]} ${B[@]}"',
        'srun bash -c "cd /x && torchrun --nproc_per_node 4 t.py ${A[@]} --bf16 ${B[*]} > log"',
        'srun bash -lc "\n  torchrun --nproc_per_node 4 t.py \\\n  ${A[@]} \\\n  ${B[@]}\n"',
        "srun bash -c 'torchrun --nproc_per_node 4 t.py '\"${A[*]} ${B[*]}\"",
        'srun bash -c "torchrun --nproc_per_node 4 t.py "${A[@]}" "${B[@]}""',
        'ssh node "torchrun --nproc_per_node 4 t.py ${A[@]} ${B[@]}"',
    ],
)
def test_arrays_within_a_quoted_command_line(command):
    """The last word of one array and the first of the next stay two words, whichever way the arrays are joined."""
    arrays = f"A=(--num-layers 2 --hidden-size 64)\nB=({REST})\n"
    got = launch_from_text(arrays + command, "s")
    assert (got.world_size, got.model.num_layers, got.model.hidden_size, got.layout.micro_batch) == (4, 2, 64, 2)
    assert got.unrecognised == ()


def test_the_training_command_is_chosen_among_others():
    """Preprocessing and evaluation commands with a few arguments do not win over the launch."""
    train = f"torchrun t.py --num-layers 2 --hidden-size 64 {REST}"
    text = f"python tools/preprocess.py --vocab-size 5\n{train}\necho --num-layers 9"
    assert launch_from_text(text, "s").model.vocab_size == 100


def test_what_a_script_prints_of_its_command_is_not_run():
    """`eval` ends a command at a #, `echo` does not."""
    words = f"torchrun t.py --num-layers 2 --hidden-size 64 {REST}"
    text = f'cmd="{words} #--swiglu --tensor-model-parallel-size 2"\necho $cmd\neval $cmd'
    assert launch_from_text(text, "s").layout.tp == 1
    assert launch_from_text(f"echo {words}", "s").model.num_layers == 2


def test_a_file_of_variables_is_read_as_one_launch():
    """A configuration that another script sources has no command: its variables' arguments are taken together."""
    text = f'MODEL="--num-layers 2 --hidden-size 64"\nREST=({REST})\n'
    assert launch_from_text(text, "s").model.num_layers == 2


def test_a_value_that_only_running_would_tell_is_named():
    """An argument that decides the layout and comes from outside is one sentence with the expansion in it."""
    with pytest.raises(InputError, match=r"--num-layers must be given in the file, but is \$\(wc -l < x\)"):
        launch_from_text(f"run t.py --num-layers $(wc -l < x) --hidden-size 64 {REST}", "s")
    got = launch_from_text(f'run t.py --num-layers 2 --hidden-size 64 {REST} --save $1 $EXTRA "$@"', "s")
    assert got.unrecognised == ("$EXTRA",)


def test_nothing_is_ever_run(tmp_path):
    """Command substitutions, redirections and code in the values leave no trace on the machine."""
    mark = tmp_path / "pwned"
    text = f"A=$(touch {mark})\nB=`touch {mark}`\ntouch {mark}\n: > {mark}\nrun --num-layers $((`touch {mark}`))\n"
    read_script(text + f"eval touch {mark}\n__import__('os').system('touch {mark}')", "s")
    assert not os.path.exists(mark)


@pytest.mark.parametrize(
    "text",
    [
        "A=xxxxxxxxxx\n" + "A=$A$A\n" * 40 + "run $A",
        "A=(1 2 3 4)\n" + "A+=(${A[@]} ${A[@]})\n" * 40,
        "run " + "$(" * 5000,
        "run $((" + "(" * 5000,
        "A=A\nB=$((A))\nrun --num-layers $((A+A))",
        "run ${A:-" * 200,
        "if " * 5000,
        "run --x " + "'" * 9999,
        "eval " * 500 + "x --num-layers 2",
        "case " * 300,
    ],
)
def test_bombs_end_quickly(text):
    """Doubling variables, bottomless brackets and endless nesting end in an InputError or in a harmless reading."""
    try:
        source_from_text(text, "s")
    except InputError as error:
        assert str(error).startswith("s: ")


PARTS = """
A=1 A=(1 2 ) run --num-layers $A ${A } ${A[@]} $(( )) ` " ' \\ ; && || if then else elif fi [ ] [[ ]] -z -eq case in
esac ;; for do done <<EOF EOF # ( ) { = += eval $( export :- % ## * while (( let local function é $ -- > 2>&1
"""
SHELL = st.lists(st.sampled_from([*PARTS.split(), "\n", " ", "\t"]), max_size=40).map(" ".join)


@settings(max_examples=300, deadline=None)
@given(st.one_of(SHELL, st.text(max_size=200)), st.sampled_from(["a.sh", "b.args", "c.yaml"]))
def test_any_text_is_a_launch_or_an_input_error(text, name):
    """Whatever the file holds, nothing but InputError comes out, with the file's name in front."""
    for body in (text, f"{text}\nrun --num-layers 2 --hidden-size 8 {REST} {text}"):
        try:
            launch_from_text(body, name)
        except InputError as error:
            assert str(error).startswith(name)


@settings(max_examples=200, deadline=None)
@given(st.lists(st.one_of(st.sampled_from(["--num-layers", "--moe-layer-freq", "--num-experts", "2", "([0]*3+", "-1",
    "--window-size", "--pipeline-model-parallel-layout", "Et|tL", "1e400", "nan", "--pipeline-model-parallel-size",
    "--context-parallel-size", "0", "--kv-channels", "--rotary-percent", "--fp8-format", "--num-query-groups",
    "--group-query-attention", "--recompute-granularity", "full", "--recompute-modules", "999999999999999999999",
    "--decoder-first-pipeline-num-layers", "--num-virtual-stages-per-pipeline-rank", "--optimizer", "adam"]),
    st.text(max_size=8)), max_size=16))  # fmt: skip
def test_any_argument_list_is_a_launch_or_an_input_error(extra):
    """No combination of arguments and values raises anything but InputError."""
    from planner.interop.megatron.launch import launch_from_words

    base = f"--num-layers 2 --hidden-size 8 {REST}".split()
    try:
        got = launch_from_words(base + extra, "here", 8)
    except InputError as error:
        assert str(error).startswith("here: ")
    else:
        assert got.layout.dp >= 1 and Path(got.model.name).name == got.model.name


ARGUMENTS = "--num-layers 8 --hidden-size 64 --num-attention-heads 4 --seq-length 32 --vocab-size 9"
JOB = (
    "NODES=4\nTP=2\nARGS=(--tensor-model-parallel-size $TP --micro-batch-size 1 " + ARGUMENTS + ")\n"
    'CMD="\ncd /x;\nexport A=b;\npython /x/pretrain_gpt.py ${ARGS[@]}"\n'
)


@pytest.mark.parametrize(
    "submission",
    [
        'sbatch <<EOF\n{body}srun bash -c "${{CMD}}" 2>&1 | tee \\${{SLURM_JOB_ID}}.log\nEOF\n',
        "sbatch <<-END\n{body}\tsrun python pretrain_gpt.py ${{ARGS[@]}}\n\tEND\necho submitted\n",
        "cat <<EOF | sbatch\n{body}TP=8\nsrun python pretrain_gpt.py ${{ARGS[@]}}\nEOF\n",
        "sbatch <<EOF\n{body}T=2\nsrun python pretrain_gpt.py --tensor-model-parallel-size \\$T {rest}\nEOF\n",
        "ssh login bash <<EOF\n{body}srun python pretrain_gpt.py ${{ARGS[@]}}\nEOF\n",
    ],
)
def test_a_job_in_a_here_document_is_read(submission):
    """Whether it is submitted at once or written first: its launch, and its header with the script's variables."""
    body = indent(
        "#!/bin/bash\n#SBATCH --nodes=${NODES}\n#SBATCH --gpus-per-node=8\n", "\t" if "<<-" in submission else ""
    )
    found = source_from_text(JOB + submission.format(body=body, rest=ARGUMENTS), "job.sh")
    assert found.words[:2] == ["--tensor-model-parallel-size", "2"] and found.words[-2:] == ["--vocab-size", "9"]
    assert found.gpus.total == 32


def test_a_quoted_here_document_is_not_expanded():
    """What the job sets itself counts, not the wrapper's variable of that name; a backslash stays one."""
    job = 'TP=8\ncat > job.sh <<"EOF"\n#!/bin/bash\n#SBATCH --nodes=2 --gpus-per-node=8\nTP=2\n'
    launch = "python t.py --tensor-model-parallel-size ${TP} \\\n " + ARGUMENTS + "\nEOF\nsbatch job.sh\n"
    found = source_from_text(job + launch, "job.sh")
    assert found.words[1] == "2" and found.gpus.total == 16
    assert source_from_text((job + launch).replace('"', ""), "job.sh").words[1] == "8"


def test_other_here_documents_are_no_scripts():
    """A configuration that a launch writes for itself holds no commands."""
    text = "TP=2\ncat > ds.json <<EOF\nTP=4\n{}\nEOF\npython t.py --tensor-model-parallel-size $TP " + ARGUMENTS
    assert source_from_text(text, "launch.sh").words[1] == "2"


@pytest.mark.parametrize(
    ("name", "text", "framework"),
    [
        ("8b.toml", "[parallelism]\ntensor_parallel_degree = 2\n", "torchtitan"),
        ("nemo.yaml", "trainer: {num_nodes: 8}\nmodel: {tensor_model_parallel_size: 4}\n", "NeMo"),
        ("fsdp.yaml", "distributed_type: FSDP\nnum_processes: 8\n", "Accelerate"),
        ("mpt.yml", "max_seq_len: 2048\nfsdp_config: {sharding_strategy: FULL_SHARD}\n", "LLM Foundry"),
        ("lit.yaml", "out_dir: o\ntrain: {lr_warmup_steps: 1}\neval: {interval: 2}\n", "LitGPT"),
        ("lit.sh", "litgpt pretrain pythia-14m --config c.yaml\n", "LitGPT"),
        ("titan.sh", "torchrun -m torchtitan.train --job.config_file 8b.toml\n", "torchtitan"),
        ("nemo.sh", "python megatron_gpt_pretraining.py trainer.devices=8\n", "NeMo"),
        ("hf.sh", "accelerate launch run_clm.py --model_name_or_path m --bf16\n", "the Hugging Face Trainer"),
    ],
)
def test_launches_of_other_frameworks_are_refused_by_name(name, text, framework):
    """They hold no Megatron arguments; the sentence says whose they are and what to do."""
    with pytest.raises(InputError, match=f"{framework}'s: state its layout to `plan memory`"):
        source_from_text(text, name)
