"""Charts by matplotlib as SVG elements to stand in a page: the same input gives the same bytes, text stays text.

Matplotlib is imported only when something is drawn. Colours are told apart in grey, too: bars have edges, lines have
marks and labels.
"""

from __future__ import annotations

import io
import re
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from planner.memory.form import COMPONENTS
from planner.reports.sections import fold, stage_name
from planner.units import GIB

if TYPE_CHECKING:
    from planner.memory.report import MemoryReport

PALETTE = ("#4269d0", "#97bbf5", "#6cc5b0", "#efb118", "#ff725c", "#a463f2", "#9c9c9c")
LIMIT = "#a40e26"
MARKS = ("o", "s", "^", "D", "v", "P", "X")
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text: selectable, searchable, small
    "svg.hashsalt": "planner",  # identifiers from the content instead of random ones
    "font.family": "sans-serif",
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e4e4e4",
    "legend.frameon": False,
}


@dataclass(frozen=True, slots=True)
class Curve:
    """A line of (GPUs, value), with the GPUs to be marked and named."""

    name: str
    points: tuple[tuple[int, float], ...]
    marked: tuple[tuple[int, str], ...] = ()


def figure(width: float, height: float, rows: int = 1, columns: int = 1, **ratios: Any) -> tuple[Any, Any]:
    """A figure and its axes [inches], drawn without a display."""
    import matplotlib as mpl
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    with mpl.rc_context(_STYLE):
        made = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(made)
        return made, made.subplots(rows, columns, **ratios)


def svg(made: Any, name: str, alt: str) -> str:
    """The figure's SVG element, with `name` in front of every identifier, so that several can stand in one page."""
    import matplotlib as mpl

    buffer = io.StringIO()
    with mpl.rc_context(_STYLE):
        made.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    text = buffer.getvalue()
    text = text[text.index("<svg") :].strip()
    text = re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'((?:xlink:)?href="#)', rf"\g<1>{name}-", text)
    text = text.replace("url(#", f"url(#{name}-")
    # Names in the viewer's own fonts: nothing is fetched.
    text = text.replace("'DejaVu Sans'", "'DejaVu Sans', Verdana, Arial, sans-serif")
    head, rest = text.split(">", 1)
    return f'{head} role="img" aria-label="{escape(alt)}"><title>{escape(alt)}</title>{rest}'


def memory_bars(report: MemoryReport, name: str, alt: str) -> str:
    """One stacked bar for each stage (alike neighbours as one) against the capacity of its card."""
    groups = fold(report.stages)
    made, axes = figure(9, 1.5 + 0.42 * len(groups))
    labels = [f"{stage_name(folded)}, {stage.layers} layers" for folded, stage in groups]
    places = range(len(groups))
    left = [0.0] * len(groups)
    for index, part in enumerate(COMPONENTS):
        amounts = [stage.components[part] / GIB for _, stage in groups]
        if not any(amounts):
            continue
        hatch = "///" if part == "reserve" else None
        axes.barh(
            places,
            amounts,
            0.7,
            left=left,
            color=PALETTE[index],
            edgecolor="#333",
            linewidth=0.5,
            hatch=hatch,
            label=part,
        )
        left = [a + b for a, b in zip(left, amounts, strict=True)]
    capacity = [stage.capacity_bytes / GIB for _, stage in groups]
    longest = max([*left, *capacity])
    for place, (_, stage) in zip(places, groups, strict=True):
        free = stage.headroom_bytes / GIB
        word = f"{free:,.1f} free" if free >= 0 else f"over by {-free:,.1f}"
        axes.text(longest * 1.02, place, word, va="center")
        axes.plot(
            [stage.capacity_bytes / GIB] * 2, [place - 0.5, place + 0.5], color=LIMIT, linestyle="--", linewidth=1.5
        )
    axes.plot([], [], color=LIMIT, linestyle="--", label=f"capacity ({min(capacity):,.1f})")
    axes.set_yticks(list(places), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, longest * 1.16)
    axes.set_xlabel("GiB on one GPU at the stage's peak")
    axes.grid(visible=False, axis="y")
    made.legend(loc="outside lower center", ncols=4, frameon=False)
    return svg(made, name, alt)


def scaling(
    curves: Sequence[Curve], unit: str, name: str, alt: str, limit: tuple[float, str] | None = None, ideal: bool = True
) -> str:
    """Values against GPUs, both on logarithmic axes; `ideal` adds what halving with every doubling would give."""
    made, axes = figure(9, 4.6)
    for index, curve in enumerate(curves):
        xs, ys = [x for x, _ in curve.points], [y for _, y in curve.points]
        colour, mark = PALETTE[(0, 4, 2, 5, 3, 1)[index % 6]], MARKS[index % len(MARKS)]
        label = "; ".join([curve.name, *(f"{word} at {gpus:,}" for gpus, word in curve.marked)])
        axes.plot(xs, ys, color=colour, marker=mark, markersize=5, label=label)
        if ideal and len(xs) > 1:
            axes.plot(xs, [ys[0] * xs[0] / x for x in xs], color=colour, linestyle=":", linewidth=1)
        for gpus in dict.fromkeys(gpus for gpus, _ in curve.marked):
            value = dict(curve.points)[gpus]
            axes.plot([gpus], [value], marker="o", markersize=13, markerfacecolor="none", markeredgecolor=colour)
            # A falling line leaves room above and to the right of it.
            axes.annotate(f"{gpus:,}", (gpus, value), xytext=(9, 7), textcoords="offset points", color=colour)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    counts = sorted({x for curve in curves for x, _ in curve.points if x & (x - 1) == 0})
    axes.set_xticks(counts or sorted({x for curve in curves for x, _ in curve.points}))
    axes.minorticks_off()
    axes.xaxis.set_major_formatter(lambda x, _: f"{x:,.0f}")
    axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.10g}")
    values = [y for curve in curves for _, y in curve.points]
    axes.set_yticks(ticks(min(values), max([*values, limit[0]] if limit else values)))
    if limit:
        axes.axhline(limit[0], color=LIMIT, linestyle="--", linewidth=1.5, label=limit[1])
    axes.set_xlabel("GPUs")
    axes.set_ylabel(unit)
    if ideal:
        axes.plot([], [], color="#57606a", linestyle=":", label="if every doubling halved it")
    made.legend(loc="outside lower center", ncols=2, frameon=False)
    return svg(made, name, alt)


def frontier_steps(points: Sequence[tuple[int, float]], labels: Sequence[str], name: str, alt: str) -> str:
    """Step time against memory left free [(bytes, seconds), ascending]: stairs, since what leaves more than is asked
    for is still the fastest that leaves as much."""
    made, axes = figure(9, 4.2)
    xs, ys = [free / GIB for free, _ in points], [step for _, step in points]
    axes.step([0.0, *xs], [ys[0], *ys], where="pre", color=PALETTE[0], linewidth=1.5)
    axes.plot(xs, ys, linestyle="none", marker="o", markersize=6, color=PALETTE[0], markeredgecolor="#333")
    for x, y, label in zip(xs, ys, labels, strict=True):
        axes.annotate(label, (x, y), xytext=(-4, 7), textcoords="offset points", ha="right")
    if max(ys) > 3 * min(ys):
        axes.set_yscale("log")
        axes.minorticks_off()
        axes.yaxis.set_major_formatter(lambda y, _: f"{y:,.10g}")
        axes.set_yticks(ticks(min(ys), max(ys)))
    axes.set_xlim(0, max(xs) * 1.05 if max(xs) > 0 else 1)
    axes.margins(y=0.12)
    axes.set_xlabel("GiB left free on the fullest GPU, beside the reserve")
    axes.set_ylabel("seconds of a step")
    return svg(made, name, alt)


def ticks(low: float, high: float) -> list[float]:
    """1, 2 and 5 of each decade around the range; decades alone where it is wide."""
    from math import floor, log10

    decades = range(floor(log10(low)), floor(log10(high)) + 2)
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    found = [step * 10.0**decade for decade in decades for step in steps]
    inside = [value for value in found if low / 2.5 <= value <= high * 2.5]
    return inside or [low, high]
