"""`plan gpus`: cards and clusters."""

from __future__ import annotations

from pathlib import Path

import click

from planner.commands.options import output_options
from planner.commands.output import choose_format, emit
from planner.errors import unknown


@click.command(short_help="Known cards and clusters.")
@click.argument("names", nargs=-1, metavar="[TEXT]...")
@output_options()
def gpus(names: tuple[str, ...], format: str | None, output: Path | None) -> int:
    """The cards and clusters that are known; TEXT keeps those whose name contains it."""
    from planner.hardware import card_names, cluster_names, load_card, load_cluster
    from planner.reports.listings import gpus_report

    format = choose_format(format, output)

    def kept(name: str) -> bool:
        return not names or any(text.lower() in name.lower() for text in names)

    cards = [load_card(name) for name in card_names() if kept(name)]
    clusters = [load_cluster(name) for name in cluster_names() if kept(name)]
    if not cards and not clusters:
        raise unknown("card or cluster", names[0], [*card_names(), *cluster_names()], "plan gpus")
    emit(gpus_report(cards, clusters), format, output)
    return 0
