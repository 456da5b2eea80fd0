"""Running a command line in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest

from planner.commands import run


class Answer(NamedTuple):
    code: int
    out: str
    err: str

    @property
    def data(self) -> Any:
        return json.loads(self.out)


Runner = Callable[..., Answer]


@pytest.fixture
def plan(capsys: pytest.CaptureFixture[str]) -> Runner:
    """`plan("memory", "--model", "13b")` gives exit code, standard output and standard error."""

    def run_plan(*arguments: object) -> Answer:
        capsys.readouterr()
        code = run([str(argument) for argument in arguments])
        out, err = capsys.readouterr()
        return Answer(code, out, err)

    return run_plan
