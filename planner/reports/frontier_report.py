"""The frontier of memory against step time: table, chart, what each step changes and costs, the cheapest knob."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from planner.reports import body
from planner.reports.blocks import Block, Chart, Heading, Items, Table, Text
from planner.reports.search_report import Section
from planner.reports.words import layout_words
from planner.units import gib, percent, seconds, size

if TYPE_CHECKING:
    from planner.question import Question
    from planner.solver.frontier import Frontier, Point, Trade, Turned
    from planner.solver.result import Plan


def frontier_section(question: Question, found: Frontier) -> Section:
    """What `--pareto` adds to a search."""
    return Section("pareto", _data(question, found), tuple(_blocks(found)), _rows(found))


def _data(question: Question, found: Frontier) -> dict[str, Any]:
    batch = question.workload.global_batch

    def plan_body(plan: Plan) -> dict[str, Any]:
        return {
            "layout": body.layout(plan.layout, batch),
            "memory": body.memory(plan.memory),
            "step": body.step(plan.step),
        }

    trades: list[Trade | None] = [None, *found.trades]
    return {
        "complete": found.complete,
        "step_bytes": found.step_bytes,
        "points": [
            {
                "headroom_bytes": point.headroom_bytes,
                "peak_bytes": point.plan.memory.peak_stage.total_bytes,
                "step_seconds": point.plan.step.seconds,
                "required_headroom_bytes": point.kept_free_bytes,
                "proved": point.proved,
                "change": _trade_body(trade),
                **plan_body(point.plan),
            }
            for point, trade in zip(found.points, trades, strict=True)
        ],
        "knobs": [
            {
                "knob": turned.knob,
                "change": _trade_body(turned.trade),
                "plan": None if turned.plan is None else plan_body(turned.plan),
            }
            for turned in found.knobs
        ],
    }


def _trade_body(trade: Trade | None) -> dict[str, Any] | None:
    """What changed since the point before (null for the first), and its price."""
    if trade is None:
        return None
    return {
        "changed": list(trade.changed),
        "freed_bytes": trade.freed_bytes,
        "seconds": trade.seconds,
        "seconds_per_gib": trade.seconds_per_gib,
    }


def _rows(found: Frontier) -> list[dict[str, Any]]:
    """One flat row for each point."""
    rows = []
    trades: list[Trade | None] = [None, *found.trades]
    for number, (point, trade) in enumerate(zip(found.points, trades, strict=True), start=1):
        layout = point.plan.layout
        names = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "zero", "micro_batch")
        rows.append(
            {
                "point": number,
                "headroom_bytes": point.headroom_bytes,
                "peak_bytes": point.plan.memory.peak_stage.total_bytes,
                "step_seconds": point.plan.step.seconds,
                "proved": point.proved,
                **{name: getattr(layout, name) for name in names},
                "recompute": layout.recompute.granularity,
                "freed_bytes": "" if trade is None else trade.freed_bytes,
                "seconds_paid": "" if trade is None else trade.seconds,
                "seconds_per_gib": "" if trade is None else trade.seconds_per_gib,
                "changed": "" if trade is None else " ".join(trade.changed),
            }
        )
    return rows


def _blocks(found: Frontier) -> list[Block]:
    blocks: list[Block] = [
        Heading("Memory against time: the fastest layout for every amount left free"),
        _points_table(found),
        Text(_proof(found), "quiet"),
        _chart(found),
    ]
    if found.knobs:
        blocks += [Heading("Which knob buys memory most cheaply, turned alone from the fastest layout")]
        blocks += [_knobs_table(found), Items(tuple(_lessons(found)))]
    return blocks


def _proof(found: Frontier) -> str:
    step = size(found.step_bytes)
    if found.complete:
        return (
            "Proved: with as much left free as a point leaves, nothing is faster, and nothing leaves more than the "
            f"last. Layouts whose free memory differs by less than {step} are not told apart."
        )
    unproved = sum(not point.proved for point in found.points)
    said = f"{unproved} of these points are not proved" if unproved else "these points are proved, but more may follow"
    return f"The time limit came first: {said}. Layouts that differ by less than {step} are not told apart."


def _points_table(found: Frontier) -> Table:
    """A point a line: what is left free, the step, and what the last GiB cost."""
    points = found.points
    shown = [
        (title, name)
        for title, name in (("TP", "tp"), ("CP", "cp"), ("PP", "pp"), ("VPP", "vpp"), ("EP", "ep"), ("DP", "dp"))
        if name in ("tp", "pp", "dp") or any(getattr(p.plan.layout, name) > 1 for p in points)
    ]
    trades: list[Trade | None] = [None, *found.trades]
    best = points[0].plan.step.seconds
    rows = tuple(
        (
            str(number),
            gib(p.headroom_bytes),
            seconds(p.plan.step.seconds) + ("" if p.proved else "?"),
            f"+{percent(p.plan.step.seconds / best - 1)}" if number > 1 else "",
            "" if trade is None else seconds(trade.seconds_per_gib),
            *(str(getattr(p.plan.layout, name)) for _, name in shown),
            str(p.plan.layout.zero),
            str(p.plan.layout.micro_batch),
            p.plan.layout.recompute.granularity,
            "" if trade is None else _changed(trade),
        )
        for number, (p, trade) in enumerate(zip(points, trades, strict=True), start=1)
    )
    titles = [title for title, _ in shown]
    columns = ("#", "free GiB", "step", "behind", "per GiB", *titles, "ZeRO", "MB", "<recompute", "<changed")
    return Table(columns, rows, keys=3)


def _changed(trade: Trade) -> str:
    return ", ".join(name.replace("_", "-") for name in trade.changed)


def _knobs_table(found: Frontier) -> Table:
    rows = tuple(
        (t.knob, "frees nothing by itself", "", "", "")
        if t.plan is None or t.trade is None
        else (
            t.knob,
            _turn(found.points[0], t),
            gib(t.trade.freed_bytes),
            seconds(t.trade.seconds),
            seconds(t.trade.seconds_per_gib),
        )
        for t in found.knobs
    )
    return Table(("<knob", "<turned to", "frees GiB", "costs", "per GiB"), rows)


def _turn(fastest: Point, turned: Turned) -> str:
    """What the knob was turned from and to."""
    assert turned.plan is not None
    before, after = fastest.plan.layout, turned.plan.layout
    name = turned.knob.replace("-", "_")
    if name == "recompute":
        return f"{before.recompute} -> {after.recompute}"
    return f"{getattr(before, name)} -> {getattr(after, name)}"


def _lessons(found: Frontier) -> list[str]:
    """The cheapest knob, and the cheapest and dearest steps of the frontier."""
    said = []
    cheapest = next((t for t in found.knobs if t.trade is not None), None)
    if cheapest is not None and cheapest.trade is not None:
        said.append(
            f"Turned alone, {cheapest.knob} is the cheapest: {size(cheapest.trade.freed_bytes)} for "
            f"{seconds(cheapest.trade.seconds)} a step ({seconds(cheapest.trade.seconds_per_gib)} a GiB)."
        )
    trades = found.trades
    if trades:
        best = min(range(len(trades)), key=lambda i: trades[i].seconds_per_gib)
        said.append(
            f"Of all together, the step from {best + 1} to {best + 2} is the cheapest: "
            f"{size(trades[best].freed_bytes)} for {seconds(trades[best].seconds)} "
            f"({layout_words(found.points[best + 1].plan.layout)})."
        )
    if cheapest is None:
        said.append("No knob by itself frees a step of memory: several must be turned together.")
    return said


def _chart(found: Frontier) -> Chart:
    from planner.reports.charts import frontier_steps

    points = [(p.headroom_bytes, p.plan.step.seconds) for p in found.points]
    alt = "Step time against memory left free on the fullest GPU: " + "; ".join(
        f"{size(free)} free, {seconds(step)}" for free, step in points
    )
    labels = [str(number) for number in range(1, len(points) + 1)]
    return Chart(
        partial(frontier_steps, points, labels, "frontier", alt),
        alt,
        "Each numbered mark is a layout of the table. Along a level line nothing is faster with that much left free; "
        "where the line rises steeply, memory is dear.",
        "Step time against memory left free",
    )
