"""The report as one self-contained HTML page: no script, no network, readable when printed."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from planner.reports.blocks import Bars, Block, Chart, Code, Command, Fields, Heading, Items, Report, Table, Text
from planner.units import gib

LONG_CELL = 28
"""Characters of a cell that may be broken into lines."""
MANY_COLUMNS = 14
"""A table with more is set smaller, so that it stays on the page."""
_PALETTE = ("#4269d0", "#97bbf5", "#6cc5b0", "#efb118", "#ff725c", "#a463f2", "#9c9c9c")
_STYLE = """
:root{color-scheme:light}
body{font:15px/1.5 system-ui,sans-serif;max-width:76rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b;background:#fff}
h1{font-size:1.5rem}h2{font-size:1.1rem;margin-top:2rem;border-bottom:1px solid #ccc}
table{border-collapse:collapse;font-variant-numeric:tabular-nums;display:block;overflow-x:auto}
th,td{padding:.2rem .6rem;border-bottom:1px solid #e4e4e4;text-align:right;white-space:nowrap}
th{border-bottom:2px solid #888;font-weight:600}
.l{text-align:left}tr.chosen td{font-weight:600;background:#eef3ff}
dl{display:grid;grid-template-columns:max-content 1fr;gap:.1rem 1rem}dt{font-weight:600}dd{margin:0}
.good{color:#116329;font-weight:600}.bad{color:#a40e26;font-weight:600}.quiet{color:#57606a}.title{font-weight:600}
pre,code{background:#f4f4f4;border-radius:3px}code{padding:.1rem .3rem}pre{padding:.6rem;overflow-x:auto}
svg{max-width:100%;height:auto;display:block;margin-top:.8rem}
.dense{font-size:.82rem}.dense th,.dense td{padding:.15rem .35rem}
td.w{white-space:normal;min-width:9rem}th{white-space:normal;vertical-align:bottom}h3{font-size:1rem;margin-top:1.6rem}
figure{margin:1rem 0;break-inside:avoid}figcaption{color:#57606a;font-size:.9rem}
@media print{body{margin:0;max-width:none}h2{break-after:avoid}table{display:table}table,svg{break-inside:avoid}}
""".strip()


def render(report: Report) -> str:
    """The report's HTML page."""
    body = "\n".join(line for block in report.body for line in _lines(block))
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width,initial-scale=1">\n'
        f"<title>{escape(report.title)}</title>\n<style>\n{_STYLE}\n</style>\n</head>\n<body>\n"
        f"<h1>{escape(report.title)}</h1>\n{body}\n</body>\n</html>\n"
    )


def _lines(block: Block) -> Iterator[str]:
    match block:
        case Heading(text):
            yield f"<h2>{escape(text)}</h2>"
        case Text(text, tone):
            yield f'<p class="{tone}">{escape(text)}</p>'
        case Fields(rows):
            yield "<dl>" + "".join(f"<dt>{escape(k)}</dt><dd>{escape(v)}</dd>" for k, v in rows) + "</dl>"
        case Items(items):
            yield "<ul>" + "".join(f"<li>{escape(item)}</li>" for item in items) + "</ul>"
        case Command(purpose, command):
            yield f"<p><code>{escape(command)}</code> {escape(purpose)}</p>"
        case Code(text):
            yield f"<pre>{escape(text)}</pre>"
        case Table():
            yield from _table(block)
        case Bars():
            yield _bars(block)
        case Chart(draw, alt, caption, title):
            if title:
                yield f"<h3>{escape(title)}</h3>"
            yield f'<figure role="group" aria-label="{escape(alt)}">{draw()}'
            yield f"<figcaption>{escape(caption)}</figcaption></figure>"


def _table(table: Table) -> Iterator[str]:
    def cell(tag: str, column: int, text: str) -> str:
        wide = " w" if len(text) > LONG_CELL else ""
        side = f' class="l{wide}"' if table.left(column) else ""
        return f"<{tag}{side}>{escape(text)}</{tag}>"

    columns = range(len(table.columns))
    dense = ' class="dense"' if len(table.columns) > MANY_COLUMNS else ""
    yield (
        f"<table{dense}><thead><tr>" + "".join(cell("th", c, table.title(c)) for c in columns) + "</tr></thead><tbody>"
    )
    for index, row in enumerate(table.rows):
        chosen = ' class="chosen"' if index == table.marked else ""
        yield f"<tr{chosen}>" + "".join(cell("td", c, row[c]) for c in columns) + "</tr>"
    yield "</tbody></table>"


def _bars(bars: Bars) -> str:
    """Horizontal stacked bars with the limit as a dashed line; each piece has a tooltip with its figure."""
    left, scale_width, row_height, bar_height = 110, 560, 26, 18
    longest = max([bars.limit, *(sum(amount for _, amount in parts) for _, parts in bars.rows)])
    scale = scale_width / (longest * 1.05)
    names = list(dict.fromkeys(name for _, parts in bars.rows for name, _ in parts))
    colour = {name: _PALETTE[i % len(_PALETTE)] for i, name in enumerate(names)}
    height = row_height * len(bars.rows) + 60
    out = [
        f'<svg viewBox="0 0 {left + scale_width + 90} {height}" width="{left + scale_width + 90}" height="{height}" '
        'role="img" aria-label="memory of each stage against its capacity" font-family="system-ui" font-size="12">'
    ]
    for index, (label, parts) in enumerate(bars.rows):
        y, x = 24 + index * row_height, float(left)
        out.append(f'<text x="{left - 8}" y="{y + 13}" text-anchor="end">{escape(label)}</text>')
        for name, amount in parts:
            if amount <= 0:
                continue
            wide = amount * scale
            out.append(
                f'<rect x="{x:.1f}" y="{y}" width="{wide:.1f}" height="{bar_height}" fill="{colour[name]}">'
                f"<title>{escape(name)} {gib(amount)} {bars.unit}</title></rect>"
            )
            x += wide
        out.append(f'<text x="{x + 6:.1f}" y="{y + 13}">{gib(sum(amount for _, amount in parts))}</text>')
    limit = left + bars.limit * scale
    bottom = 24 + row_height * len(bars.rows)
    out.append(
        f'<line x1="{limit:.1f}" x2="{limit:.1f}" y1="16" y2="{bottom}" stroke="#a40e26" stroke-dasharray="4 3"/>'
        f'<text x="{limit:.1f}" y="12" text-anchor="middle" fill="#a40e26">'
        f"capacity {gib(bars.limit)} {bars.unit}</text>"
    )
    x = float(left)
    for name in names:
        out.append(f'<rect x="{x:.0f}" y="{bottom + 12}" width="12" height="12" fill="{colour[name]}"/>')
        out.append(f'<text x="{x + 16:.0f}" y="{bottom + 22}">{escape(name)}</text>')
        x += 30 + 7 * len(name)
    return "".join([*out, "</svg>"])
