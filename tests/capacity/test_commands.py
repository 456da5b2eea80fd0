"""`plan capacity` and `plan compare` from the command line."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from planner.commands import run


class Answer(NamedTuple):
    code: int
    out: str
    err: str


Plan = Callable[..., Answer]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Plan:
    def run_plan(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        return Answer(code, *capsys.readouterr())

    return run_plan


SMALL = ("capacity", "--model", "7b", "--gpu", "A100-80G", "--tokens", "300B", "--workers", 1, "--quick", "--tp", 1)


def test_a_real_review(plan: Plan) -> None:
    """Found: exit code 0, the recommended plan is the search's own, and its days follow from its step."""
    answer = plan(*SMALL, "--counts", "8", "--goodput", "1", "--json")
    assert answer.code == 0, answer.err
    data = json.loads(answer.out)
    (side,) = data["sides"]
    point = next(p for p in side["counts"] if p["gpus"] == 8)
    searched = json.loads(plan("--model", "7b", "--gpus", "8xA100-80G", "--tp", 1, "--top", 1, "--json").out)
    assert point["plan"] == searched["plans"][0]
    steps = -(-300 * 10**9 // (4096 * 1024))
    assert point["training"]["days"] == pytest.approx(steps * point["plan"]["step"]["seconds"] / 86_400)


def test_a_tight_recommendation_is_said(plan: Plan) -> None:
    """Where plan's own report warns, the review does in the same words, beside the answer and in the plan's section;
    where that does not, neither does this."""
    own = " ".join(plan("--model", "7b", "--gpus", "32xA100-80G", "--tp", 1, "--top", 1).out.split())
    review = " ".join(plan(*SMALL, "--counts", "32").out.split())
    words = "Memory is tight. A larger --reserve finds a layout that leaves more free."
    assert own.count(words) == 1 and review.count(words) == 2
    assert f"free on the fullest GPU. {words}" in review
    (side,) = json.loads(plan(*SMALL, "--counts", "32", "--json").out)["sides"]
    assert side["recommended"]["memory_is_tight"] is True
    roomy = plan(*SMALL, "--counts", "8", "--reserve", "8GiB")
    assert "Memory is tight" not in roomy.out


def test_what_to_run_next_is_the_reviewed_plan(plan: Plan) -> None:
    """The command of the recommended plan names the model and every pin as they were typed, and finds that plan."""
    shared = (*SMALL, "--counts", "8", "--zero", "1", "--recompute", "none,full")
    data = json.loads(plan(*shared, "--json").out)
    point = next(p for p in data["sides"][0]["counts"] if p["gpus"] == 8)
    seconds = point["plan"]["step"]["seconds"]
    lines = [line.strip() for line in plan(*shared).out.splitlines()]
    (command,) = [line for line in lines if line.startswith("plan --model")]
    assert command == "plan --model 7b --gpus 8xA100-80G --tp 1 --zero 1 --recompute none,full --detail"
    found = json.loads(plan(*command.split()[1:-1], "--json").out)
    assert found["plans"][0]["step"]["seconds"] == seconds


def test_no_command_where_nothing_is_recommended(plan: Plan) -> None:
    """No count meets the deadline: no empty heading."""
    assert "Next" not in plan(*SMALL, "--counts", "8", "--deadline", "1d").out


def test_two_reviews_are_byte_identical(plan: Plan) -> None:
    """All but `meta`, whatever the number of processes."""

    def read(workers: int) -> dict[str, Any]:
        arguments = [*SMALL, "--counts", "4,8", "--json"]
        arguments[arguments.index("--workers") + 1] = workers
        data: dict[str, Any] = json.loads(plan(*arguments).out)
        del data["meta"]
        return data

    assert read(1) == read(2)


def test_more_gpus_with_an_odd_factor_train_sooner(plan: Plan) -> None:
    """6,144 cards beat 4,096 and lose to 8,192: their batch takes stages and ranks alike, so none has fewer virtual
    stages for want of microbatches (with 1,056 sequences, 11 x 96, they were slower than 4,096)."""
    arguments = ("capacity", "--model", "70b", "--gpu", "A100-80G", "--tokens", "15T", "--counts", "4096,6144,8192")
    (side,) = json.loads(plan(*arguments, "--quick", "--workers", 1, "--json").out)["sides"]
    days = [point["training"]["days"] for point in side["counts"] if point["gpus"] >= 4096]
    assert len(days) == 3 and days[0] > days[1] > days[2]


def test_every_workload_of_the_question_is_said(plan: Plan) -> None:
    """A count's odd factor changes its batch, a card without bf16 the precision and the kernels: each stands with the
    counts and cards that it is of. Where all are alike there is one line without them."""
    asked = ("capacity", "--model", "gpt2", "--tokens", "3B", "--quick", "--workers", 1)
    cards = plan(*asked, "--gpu", "A100-80G,V100-32G", "--counts", "8,24").out
    lines = re.findall(r"^workload  (.*(?:\n {10}.*)*)", cards, re.MULTILINE)
    said = [" ".join(line.split()) for line in lines]
    assert len(said) == 4
    assert "bf16, adamw, flash attention (on " in said[0] and said[0].endswith("8 GPUs of A100-80G)")
    assert said[1].endswith("(on 24 GPUs of A100-80G)")
    assert "fp16, adamw, unfused attention (on " in said[2] and said[2].endswith("8 GPUs of V100-32G)")
    (alone,) = re.findall(r"^workload  .*", plan(*asked, "--gpu", "A100-80G", "--counts", "8").out, re.MULTILINE)
    assert alone.endswith("flash attention")


def test_proven_infeasible_is_3(plan: Plan) -> None:
    """70b on at most two GPUs: every count refuted, the reason named."""
    answer = plan(
        "capacity", "--model", "70b", "--gpu", "A100-80G", "--tokens", "1T", "--counts", "1,2", "--workers", 1
    )
    assert answer.code == 3
    assert "proven not to fit" in answer.out and "states" in answer.out


def test_a_range_doubles(plan: Plan) -> None:
    """--gpus-range 4-8 is --counts 4,8."""
    data = json.loads(plan(*SMALL, "--gpus-range", "4-8", "--json").out)
    assert data["inputs"]["counts"] == [4, 8]


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("--counts", "8", "--gpus-range", "8-16"), "--counts"),
        (("--counts", "eight"), "64,128,256"),
        (("--deadline", "30"), "30d"),
        (("--tokens", "lots"), "15T"),
        (("--gpu-hour-price", "H100=2"), "A100-80G"),
        (("--gpu", "A100-80G,A100-80GB"), "once"),
        (("--gpu", "Z9000"), "unknown card"),
        (("--goodput", "0"), "0.95"),
        (("--scheduler", "tcp://127.0.0.1:9"), "--scheduler"),
        (("--model", "13c"), "unknown model"),
    ],
)
def test_bad_input_is_one_sentence(plan: Plan, arguments: tuple[str, ...], word: str) -> None:
    """Exit code 2, nothing on standard output, no traceback."""
    answer = plan(*SMALL, *arguments)
    assert answer.code == 2
    assert answer.out == ""
    assert word in answer.err and "Traceback" not in answer.err


def saved(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


@pytest.fixture
def before(plan: Plan, tmp_path: Path) -> Path:
    arguments = ("memory", "--model", "7b", "--gpus", "8xA100-80G", "--pp", 4, "--json")
    return saved(tmp_path / "before.json", plan(*arguments).out)


@pytest.fixture
def after(plan: Plan, tmp_path: Path) -> Path:
    arguments = ("memory", "--model", "7b", "--gpus", "8xA100-80G", "--pp", 2, "--tp", 2, "--json")
    return saved(tmp_path / "after.json", plan(*arguments).out)


def test_compare_says_what_changed(plan: Plan, before: Path, after: Path) -> None:
    """The layout's differing fields only; stages that one side lacks are null; differences add up."""
    data = json.loads(plan("compare", before, after, "--json").out)
    changed = {change["name"]: change for change in data["layout"]}
    assert set(changed) == {"tp", "pp", "stage_layers", "sequence_parallel"}
    assert (changed["pp"]["before"], changed["pp"]["after"], changed["pp"]["change"]) == (4, 2, -2)
    assert changed["sequence_parallel"]["change"] is None
    assert not data["same"] and data["inputs"] == []
    assert [stage["after"] is None for stage in data["stages"]] == [False, False, True, True]
    parts = {c["name"]: c["change"] for c in data["peak"]}
    total = parts.pop("total_bytes")
    assert total == -parts.pop("headroom_bytes") == sum(parts.values())


def test_compare_with_itself(plan: Plan, before: Path) -> None:
    """Nothing changed is said, in data and in words."""
    assert json.loads(plan("compare", before, before, "--json").out)["same"] is True
    assert "the same" in plan("compare", before, before).out
    assert "| stage |" in plan("compare", before, before, "-f", "markdown").out


def test_compare_reads_standard_input(plan: Plan, before: Path, after: Path) -> None:
    """`-` is one of the two plans, never both."""
    program = [sys.executable, "-c", "from planner.commands import main; main()", "compare", "--json"]

    def piped(*names: object) -> str:
        text = after.read_text(encoding="utf-8")
        return subprocess.run([*program, *map(str, names)], input=text, capture_output=True, text=True).stdout

    named = json.loads(plan("compare", before, after, "--json").out)
    data = json.loads(piped(before, "-"))
    assert data.pop("after") == "standard input" and named.pop("after") == str(after)
    assert data == named
    assert json.loads(piped("-", after))["same"]
    both = plan("compare", "-", "-")
    assert both.code == 2 and "one plan at most" in both.err


def test_compare_takes_searches(plan: Plan, before: Path, tmp_path: Path) -> None:
    """A search's first plan stands for it, with its step."""
    arguments = ("--model", "7b", "--gpus", "8xA100-80G", "--tp", 1, "--pp", "1,2", "--top", 2, "--json")
    search = saved(tmp_path / "search.json", plan(*arguments).out)
    data = json.loads(plan("compare", search, search, "--json").out)
    assert data["same"] and data["step"][0]["name"] == "seconds"
    assert plan("compare", before, search).code == 0


def timed(plan: Plan, path: Path, *arguments: object) -> Path:
    """A memory report with its step."""
    shared = ("memory", "--model", "7b", "--time", "--json")
    return saved(path, plan(*shared, *arguments).out)


def test_compare_goes_by_tokens(plan: Plan, tmp_path: Path) -> None:
    """Twice the batch takes twice as long a step, which is not half as fast."""
    one = timed(plan, tmp_path / "one.json", "--gpus", "8xA100-80G", "--global-batch", 512)
    two = timed(plan, tmp_path / "two.json", "--gpus", "8xA100-80G", "--global-batch", 1024)
    changes = {c["name"]: c for c in json.loads(plan("compare", one, two, "--json").out)["step"]}
    assert changes["seconds"]["after"] / changes["seconds"]["before"] > 1.9
    tokens = changes["tokens_per_second"]
    ratio = tokens["after"] / tokens["before"]
    assert 0.95 < ratio < 1.1
    assert tokens["after"] == pytest.approx(8 * changes["tokens_per_second_per_gpu"]["after"])
    text = " ".join(plan("compare", one, two).out.split())
    assert f"{ratio:.3f} times as fast by tokens a second" in text
    assert "2.10 M tokens before and 4.19 M after" in text
    assert "global batch" in text and "global_batch" not in text and "GPU-seconds" not in text


def test_compare_says_what_a_token_costs(plan: Plan, tmp_path: Path) -> None:
    """On twice the GPUs tokens come faster and cost more GPU-seconds; the same model is no remark."""
    one = timed(plan, tmp_path / "one.json", "--gpus", "8xA100-80G")
    two = timed(plan, tmp_path / "two.json", "--gpus", "16xA100-80G", "--tp", 2)
    cost = {c["name"]: c for c in json.loads(plan("compare", one, two, "--json").out)["step"]}[
        "gpu_seconds_per_million_tokens"
    ]
    step = json.loads(two.read_text(encoding="utf-8"))["step"]
    assert cost["after"] == pytest.approx(16 * 1e6 / step["tokens_per_second"]) and cost["change"] > 0
    text = " ".join(plan("compare", one, two).out.split())
    assert "GPU-seconds for each token, on 16 GPUs instead of 8" in text
    assert "GPU-seconds per million tokens" in text and "other work" not in text


@pytest.mark.parametrize(
    ("other", "what"), [(("--model", "13b"), "another model"), (("--seq-length", 8192), "another length")]
)
def test_compare_says_where_tokens_are_other_work(
    plan: Plan, tmp_path: Path, other: tuple[Any, ...], what: str
) -> None:
    """A token of another model or of longer sequences is not the same work."""
    one = timed(plan, tmp_path / "one.json", "--gpus", "8xA100-80G", "--tp", 2)
    two = timed(plan, tmp_path / "two.json", "--gpus", "8xA100-80G", "--tp", 2, *other)
    text = " ".join(plan("compare", one, two).out.split())
    assert what in text and "MFU" in text


def test_compare_speaks_in_words(plan: Plan, before: Path, tmp_path: Path) -> None:
    """No key of the JSON stands in the report."""
    arguments = ("memory", "--model", "7b", "--gpus", "8xH100-80G", "--tp", 2, "--reserve", "6GiB", "--json")
    text = plan("compare", before, saved(tmp_path / "other.json", plan(*arguments).out)).out
    shown = text[text.index("Question") :]  # after the names of the files
    assert "_" not in shown and "memory of a GPU" in shown and "sequence parallelism" in shown


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("hello", "not JSON"),
        ("[]", "something else"),
        ('{"version": 2}', "version 2"),
        ('{"version": 1, "status": "infeasible", "plans": []}', "infeasible"),
        ('{"version": 1, "sides": []}', "capacity review"),
        ('{"version": 1, "models": []}', "no inputs"),
        ('{"version": 1, "inputs": {}, "layout": {}, "memory": {"stages": [1]}}', "not whole"),
        ("[" * 100_000, "not JSON"),
    ],
)
def test_compare_refuses_other_files(plan: Plan, before: Path, tmp_path: Path, text: str, word: str) -> None:
    """A file that is no plan of this version is one sentence and exit code 2."""
    answer = plan("compare", before, saved(tmp_path / "other.json", text))
    assert answer.code == 2
    assert word in answer.err and "Traceback" not in answer.err
    assert plan("compare", before, tmp_path / "absent.json").code == 2


@pytest.mark.parametrize("wrong", [None, 0, "fast", float("inf"), True])
def test_compare_refuses_half_a_step(plan: Plan, tmp_path: Path, wrong: object) -> None:
    """A step without a rate that can be is one sentence, not a traceback."""
    good = timed(plan, tmp_path / "good.json", "--gpus", "8xA100-80G")
    data = json.loads(good.read_text(encoding="utf-8"))
    data["step"]["tokens_per_second"] = wrong
    answer = plan("compare", good, saved(tmp_path / "bad.json", json.dumps(data)))
    assert answer.code == 2 and "the step in" in answer.err
