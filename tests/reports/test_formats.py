"""Every format renders the same report, whole and deterministic."""

from __future__ import annotations

import csv
import html.parser
import io
import json

import pytest
import yaml

from planner.layout import Layout
from planner.memory.report import MemoryReport
from planner.reports import FORMATS, render
from planner.reports.blocks import Heading, Report, Table, Text
from planner.reports.memory_report import memory_report
from planner.reports.search_report import search_report
from planner.solver.result import SearchResult


@pytest.fixture
def report(question, layout: Layout, memory: MemoryReport) -> Report:
    return memory_report(question, layout, memory, None, detail=True)


@pytest.mark.parametrize("format", FORMATS)
def test_a_format_is_deterministic_and_ends_its_last_line(report: Report, format: str) -> None:
    """Rendering twice gives the same bytes, and a shell prompt starts on a line of its own."""
    text = render(report, format)
    assert text == render(report, format)
    assert text.endswith("\n")
    assert "\x1b" not in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_a_table_is_never_cut(report: Report, memory: MemoryReport, width: int) -> None:
    """At every width each number of each stage is there, no cell is shortened, and 80 columns are kept to."""
    text = render(report, "table", width=width)
    assert "…" not in text
    for component in ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "reserve"):
        assert component in text
    assert [line for line in text.splitlines() if line.startswith("headroom")]
    if width >= 80:
        assert max(map(len, text.splitlines())) <= width


def test_many_stages_become_lines_that_keep_to_the_width(question, layout: Layout, make_stage) -> None:
    """Twelve different stages are one line each, and the split table repeats the stage's name."""
    stages = tuple(make_stage(i, 10 + i) for i in range(12))
    text = render(memory_report(question, layout, MemoryReport("exact", 79 * 2**30, stages), None), "table", width=80)
    assert max(map(len, text.splitlines())) <= 80
    assert sum(line.split()[:1] == ["11"] for line in text.splitlines()) == 2


def test_colour_only_decorates(report: Report) -> None:
    """Taking the escapes out of the coloured report leaves the plain one."""
    import re

    coloured = render(report, "table", colour=True)
    assert "\x1b[" in coloured
    assert re.sub(r"\x1b\[[0-9]*m", "", coloured) == render(report, "table")


def test_yaml_and_json_hold_the_same(report: Report) -> None:
    """Both readings for programs are one data structure."""
    assert yaml.safe_load(render(report, "yaml")) == json.loads(render(report, "json"))


def test_csv_has_a_row_for_each_stage_in_bytes(question, layout: Layout, memory: MemoryReport) -> None:
    """A spreadsheet can add the components up to the total."""
    report = memory_report(question, layout, memory, None)
    rows = list(csv.DictReader(io.StringIO(render(report, "csv"))))
    assert [int(row["stage"]) for row in rows] == [0, 1, 2, 3]
    parts = ("weights", "gradients", "optimizer", "activations", "logits", "buffers", "reserve")
    for row, stage in zip(rows, memory.stages, strict=True):
        assert sum(int(row[f"{part}_bytes"]) for part in parts) == int(row["total_bytes"]) == stage.total_bytes


def test_csv_of_a_search_has_a_row_for_each_stage_of_each_plan(question, found: SearchResult) -> None:
    """The plan's degrees and time stand beside each of its stages."""
    rows = list(csv.DictReader(io.StringIO(render(search_report(question, found), "csv"))))
    assert [(row["plan"], row["stage"]) for row in rows] == [(str(p), str(s)) for p in (1, 2) for s in range(4)]
    assert float(rows[0]["step_seconds"]) == 50.0


def test_nan_is_refused_rather_than_written() -> None:
    """JSON has no NaN: a program that reads our answer must not meet one."""
    with pytest.raises(ValueError):
        render(Report("x", {"value": float("nan")}, ()), "json")


def test_markdown_escapes_what_would_be_markup() -> None:
    """A pipe in a cell does not open a new column."""
    text = render(Report("a|b", {}, (Table(("<name", "n"), (("x|y", "1"),)),)), "markdown")
    assert "| x\\|y | 1 |" in text


class _Page(html.parser.HTMLParser):
    """Collects what a page would load, and checks that tags close in order."""

    VOID = frozenset({"meta"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.loads: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        if tag not in self.VOID:
            self.open.append(tag)
        self.loads += [str(value) for name, value in attributes if name in ("src", "href", "action")]

    def handle_startendtag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        """A tag that closes itself has nothing to match."""

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_html_is_self_contained_and_well_formed(question, found: SearchResult) -> None:
    """The page loads nothing, runs nothing, closes every tag and draws each distinct stage against the capacity."""
    text = render(search_report(question, found), "html")
    page = _Page()
    page.feed(text)
    assert page.open == []
    assert page.loads == []
    assert "<script" not in text and "http" not in text and "@import" not in text
    assert text.count('text-anchor="end">stage') == 3
    assert "capacity 79.0 GiB" in text


def test_html_escapes_names() -> None:
    """A file name is text, not markup."""
    assert "<b>" not in render(Report("<b>", {}, (Text("<b>"),)), "html")


def test_a_table_is_narrowed_before_it_is_split() -> None:
    """One space between columns where that makes it fit, two where there is room, parts where there is none."""
    table = Table(("<name", "aaaa", "bbbb", "cccc"), (("row", "1", "2", "3"),))
    report = Report("", {}, (table,))
    wide, tight, split = (render(report, "table", width=width).splitlines() for width in (22, 19, 18))
    assert wide[0] == "name  aaaa  bbbb  cccc" and tight[0] == "name aaaa bbbb cccc"
    assert split[0] == "name  aaaa  bbbb" and "name  cccc" in split


def test_headings_keep_to_the_width() -> None:
    """A long one is broken between words, like any sentence."""
    lines = render(Report("", {}, (Heading("a long heading " * 10),)), "table", width=80).splitlines()
    assert len(lines) == 2 and max(map(len, lines)) <= 80
