"""Where an answer goes: standard output or a file that is complete or absent."""

from __future__ import annotations

import os
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from planner.atomic import write_atomically
from planner.errors import InputError
from planner.reports import EXTENSIONS, Report, render

if TYPE_CHECKING:
    from planner.layout import Layout
    from planner.question import Question

PIPE_WIDTH = 100
"""Columns of the table in a pipe or a file, where no terminal says a width; COLUMNS overrides it."""


class OutputFile(click.ParamType):
    """A path that can be written; refused before any work is done when it cannot."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        path = Path(value)
        if str(value) == "-":
            return None
        if path.is_dir():
            self.fail(f"a file is required, but '{value}' is a directory.", param, ctx)
        folder = path.resolve().parent
        if not folder.is_dir():
            self.fail(f"the folder of '{value}' must exist, but it does not.", param, ctx)
        target = path if path.exists() else folder
        if not os.access(target, os.W_OK) or (not _is_special(path) and not os.access(folder, os.W_OK)):
            self.fail(f"a path that can be written is required, but '{value}' cannot be.", param, ctx)
        return path


def choose_format(format: str | None, output: Path | None) -> str:
    """The format asked for, else what the file's extension says, else the table."""
    if format:
        return format
    if output is None or _is_special(output):
        return "table"
    if output.suffix.lower() not in EXTENSIONS:
        known = ", ".join(EXTENSIONS)
        raise InputError(f"a file name ending in one of {known} (or --format) is required, but '{output}' was given.")
    return EXTENSIONS[output.suffix.lower()]


def emit(report: Report, format: str, output: Path | None) -> None:
    """Print the report or write it to `output` (atomically), in a format of choose_format."""
    if output is None:
        if sys.stdout is None:  # `>&-`
            raise InputError("an open standard output or -o FILE is required, but standard output is closed.")
        sys.stdout.write(render(report, format, width=page_width(), colour=wants_colour()))
        return
    text = render(report, format, width=PIPE_WIDTH)
    if _is_special(output):
        output.write_text(text, encoding="utf-8")
        return
    write_atomically(output, text)
    click.echo(f"Wrote {output} ({format}).", err=True)


def emit_flags(framework: str, question: Question, layout: Layout, format: str, output: Path | None) -> None:
    """Print a framework's arguments; what they cannot say goes to stderr, so that the output can be pasted whole."""
    from planner.reports.flags import flags_report

    report, notes = flags_report(framework, question, layout)
    emit(report, format, output)
    for note in notes:
        click.echo(f"Note: {note}", err=True)


def page_width() -> int:
    """COLUMNS, else the terminal's width, else PIPE_WIDTH."""
    if not sys.stdout.isatty() and not os.environ.get("COLUMNS", "").isdigit():
        return PIPE_WIDTH
    return max(40, shutil.get_terminal_size((PIPE_WIDTH, 24)).columns)


def wants_colour() -> bool:
    """Only a terminal gets colour, and not when --no-color, NO_COLOR or TERM=dumb asks for none (no-color.org)."""
    context = click.get_current_context(silent=True)
    if context is not None and context.meta.get("planner.colourless"):
        return False
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def _is_special(path: Path) -> bool:
    """A device or a pipe such as /dev/stdout, which cannot be replaced by renaming."""
    return path.exists() and not path.is_file() and not path.is_dir()
