"""The whole text of two reports in every format: `pytest tests/reports --regenerate` writes them anew.

They are made of made-up numbers (conftest.py), so that they change when the reports change and at no other time.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from planner.reports import EXTENSIONS, FORMATS, render
from planner.reports.search_report import search_report
from planner.solver.result import SearchResult

GOLDEN = Path(__file__).parent / "golden"
EXTENSION = {format: extension for extension, format in reversed(EXTENSIONS.items())}


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("scenario", ["found", "impossible"])
def test_golden(
    question, found: SearchResult, impossible: SearchResult, scenario: str, format: str, regenerate
) -> None:
    """A change of a report is seen in review, in all its formats."""
    result = {"found": found, "impossible": impossible}[scenario]
    report = search_report(
        question, result, detail=True, per_rank=True, next_commands=lambda layout: (("what to try", "plan memory ..."),)
    )
    text = render(report, format, width=80)
    path = GOLDEN / f"{scenario}{EXTENSION[format]}"
    if regenerate:
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    assert text == path.read_text(encoding="utf-8")
