"""`plan models`: the catalogue."""

from __future__ import annotations

from pathlib import Path

import click

from planner.commands.options import output_options
from planner.commands.output import choose_format, emit
from planner.errors import unknown


@click.command(short_help="Known models.")
@click.argument("names", nargs=-1, metavar="[TEXT]...")
@output_options()
def models(names: tuple[str, ...], format: str | None, output: Path | None) -> int:
    """The models of the catalogue with their exact parameter counts; TEXT keeps those whose name contains it, and adds
    their widths and the tensor-parallel sizes that the rules allow."""
    from planner.catalog import load_model, model_names
    from planner.reports.listings import models_report

    format = choose_format(format, output)
    known = [load_model(name) for name in model_names()]
    kept = [m for m in known if not names or any(_matches(text, (m.name, *m.aliases)) for text in names)]
    if not kept:
        raise unknown("model", names[0], [m.name for m in known], "plan models")
    emit(models_report(kept, shapes=bool(names)), format, output)
    return 0


def _matches(text: str, names: tuple[str, ...]) -> bool:
    return any(text.lower() in name.lower() for name in names)
