"""`plan validate`: published measurements against our predictions."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import click

from planner.commands.options import output_options
from planner.commands.output import choose_format, emit
from planner.commands.types import Choice

if TYPE_CHECKING:
    from planner.reports.validation_report import Section


def _parameters() -> Section:
    from planner.reports.validation_report import parameters_section
    from planner.validation.parameters import validate_parameters

    return parameters_section(validate_parameters())


def _step() -> Section:
    from planner.reports.validation_report import step_section
    from planner.validation.step import validate_step

    return step_section(validate_step())


def _memory() -> Section:
    from planner.reports.validation_report import memory_section
    from planner.validation.memory import validate_memory

    return memory_section(validate_memory())


SECTIONS: dict[str, Callable[[], Section]] = {"parameters": _parameters, "memory": _memory, "step": _step}


@click.command(short_help="Published measurements against our predictions.")
@click.option("--what", type=Choice(list(SECTIONS)), multiple=True, help="Which measurements; may be repeated. [all]")
@output_options()
def validate(what: tuple[str, ...], format: str | None, output: Path | None) -> int:
    """Reruns the published measurements that ship with the project and prints the error, source by source.

    Rows say how many records, the median, the 90th percentile and the worst error, and what was left out and why.
    """
    from planner.reports.validation_report import validation_report

    format = choose_format(format, output)
    emit(validation_report([SECTIONS[name]() for name in SECTIONS if not what or name in what]), format, output)
    return 0
