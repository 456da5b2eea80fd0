"""What a report is made of. Commands build a `Report` once; every format only renders it.

`data` is the machine's reading (JSON, YAML), `rows` the one flat table of a spreadsheet (CSV), `blocks` what a person
reads (table, Markdown, HTML).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

Tone = Literal["plain", "title", "good", "bad", "quiet", "hint"]


class Text(NamedTuple):
    """A sentence or a paragraph. The tone is decoration: the words alone carry the meaning."""

    text: str
    tone: Tone = "plain"


class Heading(NamedTuple):
    """The title of what follows."""

    text: str


class Fields(NamedTuple):
    """Labels and what stands for each."""

    rows: tuple[tuple[str, str], ...]


class Items(NamedTuple):
    """A list of sentences."""

    items: tuple[str, ...]
    mark: str = "-"


class Command(NamedTuple):
    """A command line to copy, with what it does."""

    purpose: str
    command: str


class Code(NamedTuple):
    """Lines to paste somewhere else."""

    text: str


class Table(NamedTuple):
    """Rows of formatted cells. Columns whose name begins with `<` are aligned left, all others right.

    The first `keys` columns say what a row is about: they are repeated where a narrow terminal splits the table.
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: int = 1
    marked: int | None = None
    """The row that was chosen."""

    def title(self, column: int) -> str:
        return self.columns[column].removeprefix("<")

    def left(self, column: int) -> bool:
        return self.columns[column].startswith("<")


class Bars(NamedTuple):
    """Stacked bars against a limit, for formats that can draw: (label, (part, amount) ...) for each bar [bytes]."""

    rows: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    limit: int
    unit: str = "GiB"


class Chart(NamedTuple):
    """A drawing for formats that can show one. `draw` gives its SVG element and is called by those formats only, as
    drawing costs a second; `alt` says in words what it shows."""

    draw: Callable[[], str]
    alt: str
    caption: str
    title: str = ""


Block = Text | Heading | Fields | Items | Command | Code | Table | Bars | Chart


class Report(NamedTuple):
    """One answer in all its readings."""

    title: str
    data: Any
    blocks: tuple[Block, ...]
    rows: Sequence[Mapping[str, Any]] = ()

    @property
    def body(self) -> tuple[Block, ...]:
        """The blocks without a first one that repeats the title, for formats that set the title themselves."""
        repeated = self.blocks and self.blocks[0] == Text(self.title, "title")
        return self.blocks[1:] if repeated else self.blocks
