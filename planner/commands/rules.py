"""`plan rules`: the book of validity rules."""

from __future__ import annotations

from pathlib import Path

import click

from planner.commands.options import output_options
from planner.commands.output import choose_format, emit
from planner.errors import unknown


@click.command(short_help="Validity rules with their sources.")
@click.argument("names", nargs=-1, metavar="[TEXT]...")
@output_options()
def rules(names: tuple[str, ...], format: str | None, output: Path | None) -> int:
    """The rules that every layout and every launch must keep, and the function that enforces each; TEXT keeps ids that
    contain it."""
    from planner.interop.megatron.conflicts import CONFLICTS, Conflict
    from planner.reports.listings import rules_report
    from planner.rules import RULES, Rule

    format = choose_format(format, output)
    every: list[Rule | Conflict] = [*RULES, *CONFLICTS]
    kept = [rule for rule in every if not names or any(text.lower() in rule.id for text in names)]
    if not kept:
        raise unknown("rule", names[0], [rule.id for rule in every], "plan rules")
    emit(rules_report(kept), format, output)
    return 0
