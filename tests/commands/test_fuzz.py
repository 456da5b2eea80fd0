"""Whatever is typed, `plan memory` answers or refuses in one sentence: it never ends in a bug."""

from __future__ import annotations

import contextlib
import io
import json

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from planner.catalog import model_names
from planner.commands import run
from planner.commands.exits import Exit
from planner.hardware import card_names

OPTIONS = {
    "--tp": [1, 2, 3, 4, 8, 16],
    "--cp": [1, 2, 4],
    "--pp": [1, 2, 3, 4, 8],
    "--vpp": [1, 2, 3],
    "--ep": [1, 2, 4, 8],
    "--etp": [1, 2],
    "--zero": [0, 1, 2, 3],
    "--micro-batch": [1, 2, 7],
    "--recompute": ["none", "selective", "full"],
    "--seq-length": [1, 7, 2048, 131072],
    "--global-batch": [1, 64, 1024],
    "--precision": ["bf16", "fp16", "fp8"],
    "--optimizer": ["adamw", "adamw-8bit", "sgd", "sgd-momentum", "muon"],
    "--attention": ["flash", "unfused"],
    "--accounting": ["exact", "rule-of-thumb"],
    "--reserve": ["0", "4GiB", "200GiB"],
}


@st.composite
def command_lines(draw: st.DrawFn) -> list[str]:
    """A model, GPUs, and some of the options with some of their values."""
    gpus = draw(st.sampled_from([1, 2, 4, 8, 24, 64, 512]))
    words = ["--model", draw(st.sampled_from(model_names())), "--gpus", f"{gpus}x{draw(st.sampled_from(card_names()))}"]
    for name in draw(st.lists(st.sampled_from(sorted(OPTIONS)), unique=True, max_size=6)):
        words += [name, str(draw(st.sampled_from(OPTIONS[name])))]
    return words + draw(st.lists(st.sampled_from(["--detail", "--per-rank", "--time"]), unique=True))


@given(command_lines())
@settings(max_examples=300, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
def test_an_answer_or_a_sentence(arguments: list[str]) -> None:
    """Exit code 0 with JSON whose components add up, or 2 with a sentence on stderr and nothing on stdout."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = run(["memory", *arguments, "--json"])
    assert code in (Exit.OK, Exit.USAGE), err.getvalue()
    if code == Exit.USAGE:
        assert out.getvalue() == "" and "Error: " in err.getvalue()
        return
    for stage in json.loads(out.getvalue())["memory"]["stages"]:
        assert sum(stage["components"].values()) == stage["total_bytes"]
        assert all(amount >= 0 for amount in stage["components"].values())
        assert stage["headroom_bytes"] == stage["capacity_bytes"] - stage["total_bytes"]
