"""Tables without what would stand empty."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from planner.reports.blocks import Block, Heading, Table


def filled(columns: Sequence[str], rows: Sequence[tuple[str, ...]], keys: int = 1) -> Table:
    """The table with only those columns in which some row has something; its keys stay."""
    kept = [c for c in range(len(columns)) if c < keys or any(row[c] for row in rows)]
    return Table(tuple(columns[c] for c in kept), tuple(tuple(row[c] for c in kept) for row in rows), keys)


def listed(title: str, table: Table) -> Iterator[Block]:
    """The table under its title; nothing where it has no rows."""
    if table.rows:
        yield Heading(title)
        yield table
