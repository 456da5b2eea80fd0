"""The placement of a layout on a mixed cluster: what the user states (`--placement`), or the best order."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from planner.errors import InputError, NotModelled, PlannerError

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.layout import Layout
    from planner.question import Question
    from planner.topology.kinds import Placement


def placement_option() -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """--placement, for the commands that lay out stages."""
    return click.option(
        "--placement",
        metavar="CARD,...",
        help="On mixed GPUs: the kinds of nodes in the order of the ranks, first stage first. [the best order]",
    )


def stated(text: str | None, cluster: Cluster | None) -> Placement | None:
    """The order that the user states, None where none is. Raises InputError for one that does not name every kind."""
    if text is None:
        return None
    if cluster is None:
        raise InputError("--placement orders the kinds of nodes of --gpus or --cluster, but neither was given.")
    from planner.topology.kinds import placement_from

    return placement_from(cluster, tuple(label.strip() for label in text.split(",")))


def placement_argument(layout: Layout, cluster: Cluster) -> str:
    """The option that states a layout's placement; nothing where there is none."""
    if not layout.placement:
        return ""
    from planner.topology.kinds import placement_labels

    return " --placement " + shlex.quote(",".join(placement_labels(cluster, layout.placement)))


def placed(question: Question, layout: Layout, text: str | None = None) -> tuple[Layout, str]:
    """The layout on the order that was stated, else on the best: one that fits, or misses by least, then the fastest,
    then the listed one. And how it was chosen, in words; a cluster of one kind has neither."""
    cluster = question.cluster
    given = stated(text, cluster)
    if len(cluster.groups) == 1:
        return layout, ""
    from planner.topology.kinds import mixed, placement_labels, placements

    if not mixed(cluster):
        return layout, ""
    if given is not None:
        return replace(layout, placement=given), ""
    orders = [replace(layout, placement=order) for order in placements(cluster, layout.pp)]
    if len(orders) == 1:
        return orders[0], ""
    best = min(orders, key=_worth(question))
    named = ", then ".join(placement_labels(cluster, best.placement))
    return best, f"nodes in the order {named}: the best of {len(orders)} orders (--placement states another)"


def _worth(question: Question) -> Callable[[Layout], tuple[int, float]]:
    """(bytes by which a layout misses, nanoseconds of a step); what cannot be judged comes last."""
    from planner.question import accounting_of
    from planner.timing.step import Timing

    asked = question.model, question.workload, question.implementation, question.cluster
    accounting, timing = accounting_of(question), Timing(*asked)

    def worth(layout: Layout) -> tuple[int, float]:
        try:
            missing = max(0, -accounting.report(layout).peak_stage.headroom_bytes)
        except (PlannerError, ArithmeticError, ValueError, IndexError, AssertionError):
            return 2**62, 0.0  # a launch that breaks a rule may have no memory; the report says why
        try:
            return missing, timing.step(layout).step_ns
        except (NotModelled, InputError):
            return missing, 0.0

    return worth
