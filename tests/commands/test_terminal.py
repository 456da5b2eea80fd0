"""The program as a process: pipes, terminals, colour, start-up."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys

import pytest

MEMORY = ["memory", "--model", "13b", "--gpus", "8xA100-80G", "--tp", "2", "--pp", "2"]
PLAN = [sys.executable, "-c", "from planner.commands import main; main()"]
HEAVY = ("ortools", "networkx", "pydantic", "rich", "numpy", "pandas")


def environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if name not in ("NO_COLOR", "COLUMNS", "TERM")}
    return {**kept, "TERM": "xterm", **more}


def on_a_terminal(arguments: list[str], **variables: str) -> str:
    """What the program prints when its stdout is a terminal."""
    ours, theirs = pty.openpty()
    process = subprocess.Popen(PLAN + arguments, stdout=theirs, stderr=subprocess.DEVNULL, env=environment(**variables))
    os.close(theirs)
    printed = b""
    while True:
        try:
            part = os.read(ours, 65536)
        except OSError:
            break
        if not part:
            break
        printed += part
    os.close(ours)
    assert process.wait() == 0
    return printed.decode()


def test_a_pipe_gets_plain_text() -> None:
    """No escape codes and no cut cells in `plan ... | cat`."""
    done = subprocess.run(PLAN + MEMORY, capture_output=True, text=True, env=environment(), check=True)
    assert "\x1b" not in done.stdout and "…" not in done.stdout
    assert done.stderr == ""


def test_a_terminal_gets_colour_unless_it_asks_for_none() -> None:
    """NO_COLOR, TERM=dumb and --no-color are honoured on a terminal."""
    assert "\x1b[" in on_a_terminal(MEMORY)
    assert "\x1b" not in on_a_terminal(MEMORY, NO_COLOR="1")
    assert "\x1b" not in on_a_terminal(MEMORY, TERM="dumb")
    assert "\x1b" not in on_a_terminal([*MEMORY, "--no-color"])


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_of_any_width(columns: int) -> None:
    """At 80 columns no line is longer."""
    lines = on_a_terminal(MEMORY, COLUMNS=str(columns), NO_COLOR="1").replace("\r\n", "\n").splitlines()
    assert max(map(len, lines)) <= columns


def test_a_closed_pipe_is_silent() -> None:
    """`plan ... | head -1` ends without a word on stderr."""
    command = [*PLAN, "models", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment())
    assert process.stdout and process.stderr
    process.stdout.read(10)
    process.stdout.close()
    assert process.stderr.read() == b""
    process.wait()


def test_a_terminal_without_unicode_gets_an_answer() -> None:
    """An ASCII terminal sees question marks, not a traceback."""
    variables = environment(PYTHONIOENCODING="ascii", PYTHONUTF8="0")
    done = subprocess.run(PLAN + MEMORY, capture_output=True, text=True, env=variables)
    assert done.returncode == 0
    assert "headroom" in done.stdout


def test_a_launch_or_a_model_comes_from_a_pipe() -> None:
    """`-` is standard input, for FILE and for --model."""
    gpus = ["--gpus", "8xA100-80G", "--json"]
    arguments = subprocess.run([*PLAN, *MEMORY, "--flags", "megatron"], capture_output=True, text=True, check=True)
    piped = subprocess.run([*PLAN, "check", "-", *gpus], input=arguments.stdout, capture_output=True, text=True)
    given = subprocess.run([*PLAN, *MEMORY, "--json"], capture_output=True, text=True, check=True)
    assert piped.returncode == 0, piped.stderr
    assert json.loads(piped.stdout)["layout"] == json.loads(given.stdout)["layout"]

    config = {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_attention_heads": 32,
        "num_hidden_layers": 32,
        "vocab_size": 32000,
    }
    model = [*PLAN, "memory", "--model", "-", *gpus]
    read = subprocess.run(model, input=json.dumps(config), capture_output=True, text=True)
    assert read.returncode == 0, read.stderr
    assert json.loads(read.stdout)["inputs"]["model"]["parameters"] == 6_738_415_616


def test_a_shell_completes_commands_options_and_names() -> None:
    """The installed command completes itself: `--model llama-2-` offers the catalogue's names."""

    def offered(*words: str) -> list[str]:
        variables = environment(
            _PLAN_COMPLETE="bash_complete", COMP_WORDS=" ".join(["plan", *words]), COMP_CWORD=str(len(words))
        )
        done = subprocess.run(PLAN, capture_output=True, text=True, env=variables)
        return [line.partition(",")[2] for line in done.stdout.splitlines()]

    assert "memory" in offered("mem")
    assert "llama-2-13b" in offered("memory", "--model", "llama-2-")
    assert offered("memory", "--recompute", "sel") == ["selective"]


def test_a_full_disk_is_a_sentence() -> None:
    """An answer that cannot be written is said, not traced."""
    with open("/dev/full", "w") as full:
        done = subprocess.run([*PLAN, *MEMORY], stdout=full, stderr=subprocess.PIPE, text=True, env=environment())
    assert done.returncode == 2
    assert "could not be written" in done.stderr and "Traceback" not in done.stderr


def imported_by(arguments: list[str]) -> set[str]:
    """The heavy packages that a command line imports."""
    code = (
        "import sys, contextlib, io\n"
        "from planner.commands import run\n"
        "with contextlib.redirect_stdout(io.StringIO()):\n"
        f"    code = run({arguments!r})\n"
        f"print(code, *(name for name in {HEAVY!r} if name in sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    code, *names = done.stdout.split()
    assert code == "0", done.stderr
    return set(names)


@pytest.mark.parametrize(
    "arguments",
    [
        [*MEMORY, "--json"],
        MEMORY,
        ["--help"],
        ["search", "--help"],
        ["models"],
        ["gpus"],
        ["rules"],
        [*MEMORY, "--flags", "megatron"],
    ],
    ids=lambda arguments: " ".join(arguments[-2:]),
)
def test_nothing_heavy_is_imported_without_a_search(arguments: list[str]) -> None:
    """The solver costs half a second, which only a search may spend."""
    assert imported_by(arguments) == set()


@pytest.mark.parametrize(
    ("closed", "arguments", "code", "said"),
    [
        ("stdout", ["memory", "--model", "7b", "--gpus", "8xA100-80G"], 2, "standard output is closed"),
        ("stdout", ["memory", "--model", "7b"], 2, "--gpus"),
        ("stderr", ["memory", "--model", "7b", "--gpus", "8xA100-80G"], 0, ""),
        ("stderr", ["memory", "--model", "7b"], 2, ""),
    ],
)
def test_a_stream_that_the_caller_closed_is_no_bug(closed: str, arguments: list[str], code: int, said: str) -> None:
    """`plan ... >&-` and `2>&-`: one sentence where there is no answer to give, and the usual exit code."""
    close = {"stdout": ">&-", "stderr": "2>&-"}[closed]
    shell = ["bash", "-c", f'"$@" {close}', "bash", *PLAN, *arguments]
    done = subprocess.run(shell, capture_output=True, text=True, env=environment())
    assert done.returncode == code
    assert said in done.stderr and "bug" not in done.stderr
    assert bool(done.stdout) == (closed == "stderr" and code == 0)


def test_a_file_is_written_without_standard_output(tmp_path) -> None:
    """-o needs none."""
    path = tmp_path / "answer.json"
    shell = ["bash", "-c", '"$@" >&-', "bash", *PLAN, *MEMORY, "-o", str(path)]
    assert subprocess.run(shell, capture_output=True, env=environment()).returncode == 0
    assert json.loads(path.read_text())["memory"]["stages"]
