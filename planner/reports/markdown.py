"""The report as GitHub-flavoured Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterator

from planner.reports.blocks import Bars, Block, Code, Command, Fields, Heading, Items, Report, Table, Text

_SPECIAL = re.compile(r"([\\`*_\[\]<>|])")


def render(report: Report) -> str:
    """The report's Markdown text."""
    parts = [f"# {_escape(report.title)}", *("\n".join(_lines(block)) for block in report.body)]
    return "\n\n".join(part for part in parts if part) + "\n"


def _escape(text: str) -> str:
    return _SPECIAL.sub(r"\\\1", text)


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Heading(text):
            yield f"## {_escape(text)}"
        case Text(text, tone):
            yield f"**{_escape(text)}**" if tone in ("title", "good", "bad") else _escape(text)
        case Fields(rows):
            yield from (f"- **{_escape(label)}**: {_escape(text)}" for label, text in rows)
        case Items(items):
            yield from (f"- {_escape(item)}" for item in items)
        case Command(purpose, command):
            yield f"- `{command}`: {_escape(purpose)}" if purpose else f"- `{command}`"
        case Code(text):
            yield f"```sh\n{text}\n```"
        case Table():
            yield from _table(block)
        case Bars():
            return


def _table(table: Table) -> Iterator[str]:
    columns = range(len(table.columns))
    yield "| " + " | ".join(_escape(table.title(c)) for c in columns) + " |"
    yield "|" + "|".join(":--" if table.left(c) else "--:" for c in columns) + "|"
    for index, row in enumerate(table.rows):
        cells = [_escape(cell) for cell in row]
        if index == table.marked:
            cells = [f"**{cell}**" if cell else cell for cell in cells]
        yield "| " + " | ".join(cells) + " |"
