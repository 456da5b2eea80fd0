"""Options of the whole suite."""

from __future__ import annotations

import os

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
