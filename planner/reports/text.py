"""The report for a terminal, a pipe or a log: aligned plain text; colour only decorates, nothing is ever cut.

A table wider than the page is split into several that repeat its key columns; a cell is never shortened.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from planner.reports.blocks import Bars, Block, Code, Command, Fields, Heading, Items, Report, Table, Text

_ANSI = {"title": "1", "good": "32", "bad": "31", "quiet": "2", "hint": "36"}


def render(report: Report, width: int = 100, colour: bool = False) -> str:
    """The report's text at `width` columns; `colour` adds ANSI escapes."""
    parts: list[str] = []
    for block in report.blocks:
        lines = list(_lines(block, width, colour))
        if not lines:
            continue
        if parts and not _joins(block):
            parts.append("")
        parts += lines
    return "\n".join(line.rstrip() for line in parts) + "\n"


def _joins(block: Block) -> bool:
    """Commands and plain sentences stand directly under what they belong to."""
    return isinstance(block, Command | Items) or (isinstance(block, Text) and block.tone == "quiet")


def _paint(text: str, tone: str, colour: bool) -> str:
    return f"\x1b[{_ANSI[tone]}m{text}\x1b[0m" if colour and text and tone in _ANSI else text


def _lines(block: Block, width: int, colour: bool) -> Iterator[str]:
    match block:
        case Heading(text):
            yield from (_paint(line, "title", colour) for line in _wrap(text, width))
        case Text(text, tone):
            yield from (_paint(line, tone, colour) for line in _wrap(text, width))
        case Fields(rows):
            longest = max((len(label) for label, _ in rows), default=0)
            for label, text in rows:
                yield from _wrap(text, width, first=f"{label:<{longest}}  ", rest=" " * (longest + 2))
        case Items(items, mark):
            for item in items:
                yield from _wrap(item, width, first=f"  {mark} ", rest=" " * (len(mark) + 3))
        case Command(purpose, command):
            yield f"  {_paint(command, 'hint', colour)}"
            yield from _wrap(purpose, width, first="      ", rest="      ")
        case Code(text):
            yield from text.splitlines()
        case Table():
            yield from _table(block, width, colour)
        case Bars():
            return


def _wrap(text: str, width: int, first: str = "", rest: str = "") -> list[str]:
    return textwrap.wrap(
        text,
        max(width, len(first) + 20),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    )


def _table(table: Table, width: int, colour: bool) -> Iterator[str]:
    cells = [[table.title(c) for c in range(len(table.columns))], *table.rows]
    widths = [max(len(row[c]) for row in cells) for c in range(len(table.columns))]
    mark = 2 if table.marked is not None else 0
    room = width - mark
    gap = 1 if 0 <= room - sum(widths) - (len(widths) - 1) < len(widths) - 1 else 2  # narrow rather than in two parts
    for number, columns in enumerate(_blocks(widths, table.keys, room, gap)):
        if number:
            yield ""
        for index, row in enumerate(cells):
            line = (
                (gap * " ")
                .join(f"{row[c]:<{widths[c]}}" if table.left(c) else f"{row[c]:>{widths[c]}}" for c in columns)
                .rstrip()
            )
            chosen = table.marked is not None and index == table.marked + 1
            prefix = ("▸ " if chosen else "  ") if mark else ""
            yield prefix + _paint(line, "quiet" if index == 0 else "title" if chosen else "plain", colour)


def _blocks(widths: list[int], keys: int, width: int, gap: int) -> list[list[int]]:
    """The columns of each part of a split table; one part when everything fits."""
    parts: list[list[int]] = []
    current: list[int] = []
    for column in range(keys, len(widths)):
        wanted = [*range(keys), *current, column]
        if current and sum(widths[c] for c in wanted) + gap * (len(wanted) - 1) > width:
            parts.append([*range(keys), *current])
            current = []
        current.append(column)
    return [*parts, [*range(keys), *current]]
