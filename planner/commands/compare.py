"""`plan compare`: two saved plans, before, after and change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from planner.commands.options import output_options
from planner.commands.output import choose_format, emit
from planner.commands.types import STANDARD_INPUT
from planner.errors import InputError

MOST_BYTES = 256 * 2**20
"""A larger file is no plan."""


@click.command(short_help="Two saved plans: before, after, change.")
@click.argument("before", type=click.Path(path_type=Path))
@click.argument("after", type=click.Path(path_type=Path))
@output_options()
def compare(before: Path, after: Path, format: str | None, output: Path | None) -> int:
    """What differs between two saved plans: the question, the layout, the bytes of each stage, the time of a step.

    Which is faster goes by tokens a second, as steps of other batches are other work.

    BEFORE and AFTER are files written by `plan search --json` (its first plan counts) or `plan memory --json`; one of
    them may be - for standard input.

    \b
    Examples:
      plan compare before.json after.json
      plan --model 13b --gpus 8xH100-80G --json | plan compare before.json -
    """
    from planner.reports.compare_report import compare_report
    from planner.reports.compare_saved import read_saved

    format = choose_format(format, output)
    if str(before) == str(after) == "-":
        raise InputError("one plan at most is read from standard input, but both BEFORE and AFTER are -.")
    saved = [read_saved(_name(path), _load(path)) for path in (before, after)]
    emit(compare_report(*saved), format, output)
    return 0


def _name(path: Path) -> str:
    return "standard input" if str(path) == "-" else str(path)


def _load(path: Path) -> Any:
    """The JSON of a file or of standard input, or one sentence."""
    try:
        if str(path) == "-":
            return json.loads(Path(STANDARD_INPUT).read_text(encoding="utf-8"))
        if path.is_file() and path.stat().st_size > MOST_BYTES:
            raise InputError(f"a saved plan is required, but '{path}' has more than {MOST_BYTES // 2**20} MiB.")
        return json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputError(f"'{_name(path)}' cannot be read: {error.strerror or error}.") from None
    except (ValueError, RecursionError):
        raise InputError(f"a plan saved with --json is required, but '{_name(path)}' is not JSON.") from None
