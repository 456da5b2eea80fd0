"""Each exit code by its name."""

from __future__ import annotations

import pytest

from planner.commands.exits import MEANING, Exit
from planner.solver.result import SearchResult, Status

MEMORY = ("memory", "--model", "13b", "--gpus", "8xA100-80G", "--tp", "2")
QUICK = (
    "--model",
    "13b",
    "--gpus",
    "8xA100-80G",
    "--accounting",
    "rule-of-thumb",
    "--tp",
    "1",
    "--pp",
    "4",
    "--vpp",
    "1",
)
LAUNCH = """WORLD_SIZE=8
--num-layers 40 --hidden-size 5120 --num-attention-heads 40 --seq-length 4096 --max-position-embeddings 4096
--vocab-size 32000 --micro-batch-size 1 --global-batch-size 64 --bf16 --tensor-model-parallel-size {tp}
--use-distributed-optimizer --attention-backend flash
"""


def test_ok(plan) -> None:
    """A report, fitting or not, is 0: `plan memory` answers what a layout needs."""
    assert plan(*MEMORY).code == Exit.OK
    over = plan("memory", "--model", "70b", "--gpus", "8xA100-80G", "--json")
    assert over.code == Exit.OK
    assert over.data["memory"]["fits"] is False


def test_ok_of_a_search(plan) -> None:
    """A plan was found."""
    answer = plan(*QUICK, "--micro-batch", "1", "--recompute", "none", "--json")
    assert answer.code == Exit.OK
    assert answer.data["status"] == "optimal"


def test_bug(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """What we did not foresee is one sentence that asks for a report; PLAN_DEBUG=1 shows the traceback."""
    import planner.memory.accounting

    def broken(*arguments: object, **more: object) -> None:
        raise KeyError("surprise")

    monkeypatch.setattr(planner.memory.accounting, "make_accounting", broken)
    answer = plan(*MEMORY)
    assert answer.code == Exit.BUG
    assert "this is a bug in plan" in answer.err and "PLAN_DEBUG=1" in answer.err
    assert "Traceback" not in answer.err
    monkeypatch.setenv("PLAN_DEBUG", "1")
    with pytest.raises(KeyError):
        plan(*MEMORY)


def test_usage(plan) -> None:
    assert plan("memory", "--model", "13b", "--gpus", "8xA100-80G", "--tp", "x").code == Exit.USAGE


def test_infeasible(plan) -> None:
    """13 B parameters and their states on one GPU: proved that nothing fits."""
    answer = plan("--model", "13b", "--gpus", "1xA100-80G", "--micro-batch", "1", "--json")
    assert answer.code == Exit.INFEASIBLE
    assert answer.data["status"] == "infeasible"


def test_unknown(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """The time limit came first: neither a plan nor a proof."""
    import planner.solver.search

    result = SearchResult(Status.UNKNOWN, (), "step_seconds", None, 1.0)
    monkeypatch.setattr(planner.solver.search, "search", lambda *arguments, **more: result)
    answer = plan("--model", "13b", "--gpus", "8xA100-80G", "--json")
    assert answer.code == Exit.UNKNOWN
    assert answer.data["status"] == "unknown"


def test_a_plan_without_proof_is_ok_with_a_warning(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Found but not proved is 0; the warning stands on stderr, so that JSON stays JSON."""
    import dataclasses

    import planner.solver.search

    proved = planner.solver.search.search

    def unproved(*arguments, **more):
        return dataclasses.replace(proved(*arguments, **more), status=Status.FEASIBLE)

    monkeypatch.setattr(planner.solver.search, "search", unproved)
    answer = plan(*QUICK, "--micro-batch", "1", "--recompute", "none", "--json")
    assert answer.code == Exit.OK
    assert answer.data["status"] == "feasible"
    assert "Warning: the time limit came before the proof" in answer.err


def test_check_failed(plan, tmp_path) -> None:
    """A launch that breaks a rule is 5, one that keeps them and fits is 0."""
    good, bad = tmp_path / "good.sh", tmp_path / "bad.sh"
    good.write_text(LAUNCH.format(tp=2))
    bad.write_text(LAUNCH.format(tp=3))
    assert plan("check", good, "--gpu", "A100-80G").code == Exit.OK
    assert plan("check", bad, "--gpu", "A100-80G").code == Exit.CHECK_FAILED
    assert plan("check", good, bad, "--gpu", "A100-80G").code == Exit.CHECK_FAILED


def test_check_failed_because_it_does_not_fit(plan, tmp_path) -> None:
    """Legal but too large is 5 as well."""
    path = tmp_path / "large.sh"
    path.write_text(LAUNCH.format(tp=1).replace("WORLD_SIZE=8", "WORLD_SIZE=2"))
    answer = plan("check", path, "--gpu", "A100-80G", "--json")
    assert answer.code == Exit.CHECK_FAILED
    assert answer.data["rules"] == [] and answer.data["memory"]["fits"] is False


def test_a_file_that_cannot_be_judged_goes_first(plan, tmp_path) -> None:
    """2 says that an answer is missing, which matters more than a launch that fails; the other answers are there."""
    bad = tmp_path / "bad.sh"
    bad.write_text(LAUNCH.format(tp=3))
    answer = plan("check", tmp_path / "absent.sh", bad, "--gpu", "A100-80G", "--json")
    assert answer.code == Exit.USAGE
    absent, judged = answer.data
    assert "no such file" in absent["error"]
    assert [rule["id"] for rule in judged["rules"]]


def test_interrupted(plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ctrl-C leaves with the shell's own code, one word and no traceback."""
    import planner.solver.search

    def interrupt(*arguments: object, **more: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(planner.solver.search, "search", interrupt)
    answer = plan("--model", "13b", "--gpus", "8xA100-80G")
    assert answer.code == Exit.INTERRUPTED
    assert answer.err.strip() == "Interrupted."


def test_every_code_has_a_meaning() -> None:
    """The documentation's table is made of these."""
    assert set(MEANING) == set(Exit)
