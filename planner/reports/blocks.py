"""What a report is made of. Commands build a `Report` once; every format only renders it.

`data` is the machine's reading (JSON, YAML), `rows` the one flat table of a spreadsheet (CSV), `blocks` what a person
reads (table, Markdown, HTML).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Tone = Literal["plain", "title", "good", "bad", "quiet", "hint"]


@dataclass(frozen=True, slots=True)
class Text:
    """A sentence or a paragraph. The tone is decoration: the words alone carry the meaning."""

    text: str
    tone: Tone = "plain"


@dataclass(frozen=True, slots=True)
class Heading:
    """The title of what follows."""

    text: str


@dataclass(frozen=True, slots=True)
class Fields:
    """Labels and what stands for each."""

    rows: tuple[tuple[str, str], ...]


@dataclass(frozen=True, slots=True)
class Items:
    """A list of sentences."""

    items: tuple[str, ...]
    mark: str = "-"


@dataclass(frozen=True, slots=True)
class Command:
    """A command line to copy, with what it does."""

    purpose: str
    command: str


@dataclass(frozen=True, slots=True)
class Code:
    """Lines to paste somewhere else."""

    text: str


@dataclass(frozen=True, slots=True)
class Table:
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


@dataclass(frozen=True, slots=True)
class Bars:
    """Stacked bars against a limit, for formats that can draw: (label, (part, amount) ...) for each bar [bytes]."""

    rows: tuple[tuple[str, tuple[tuple[str, int], ...]], ...]
    limit: int
    unit: str = "GiB"


Block = Text | Heading | Fields | Items | Command | Code | Table | Bars


@dataclass(frozen=True, slots=True)
class Report:
    """One answer in all its readings."""

    title: str
    data: Any
    blocks: tuple[Block, ...]
    rows: Sequence[Mapping[str, Any]] = field(default=())

    @property
    def body(self) -> tuple[Block, ...]:
        """The blocks without a first one that repeats the title, for formats that set the title themselves."""
        repeated = self.blocks and self.blocks[0] == Text(self.title, "title")
        return self.blocks[1:] if repeated else self.blocks
