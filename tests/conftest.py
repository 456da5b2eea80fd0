"""Options of the whole suite."""

from __future__ import annotations

import os
import sys
import tracemalloc
from collections.abc import Callable
from types import FrameType
from typing import Any, NamedTuple

import pytest
from hypothesis import settings

settings.register_profile("reproducible", derandomize=True)


def pytest_configure(config: pytest.Config) -> None:
    """A commit passes or fails by what it changes: examples are drawn anew by the slow suite only, and nothing depends
    on the terminal."""
    if "not slow" in config.option.markexpr:
        settings.load_profile("reproducible")
    os.environ.pop("COLUMNS", None)  # outputs are those of a pipe, also in the workers of pytest-xdist


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--regenerate",
        action="store_true",
        help="write golden reports, docs/cli.md, docs/rules.md and the README's outputs anew instead of comparing them",
    )


@pytest.fixture
def regenerate(request: pytest.FixtureRequest) -> bool:
    return bool(request.config.getoption("--regenerate"))


class Work(NamedTuple):
    """What a call did, on any machine alike: functions called, files opened, and the most memory held at once."""

    calls: int
    opened: int
    peak_bytes: int
    result: Any


@pytest.fixture
def work() -> Callable[[Callable[[], Any]], Work]:
    """Counts what a function does instead of timing it: seconds are for benchmarks/. An exception is its result."""
    return count_work


def count_work(function: Callable[[], Any]) -> Work:
    calls = opened = 0

    def count(frame: FrameType, event: str, argument: Any) -> None:
        nonlocal calls, opened
        calls += event in ("call", "c_call")
        opened += event == "c_call" and argument is open

    before, tracing = sys.getprofile(), tracemalloc.is_tracing()
    tracemalloc.start()
    tracemalloc.reset_peak()
    held = tracemalloc.get_traced_memory()[0]
    sys.setprofile(count)
    try:
        result = function()
    except Exception as error:
        result = error
    finally:
        sys.setprofile(before)
        peak = tracemalloc.get_traced_memory()[1] - held
        if not tracing:
            tracemalloc.stop()
    return Work(calls, opened, peak, result)
