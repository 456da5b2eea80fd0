"""Reports: one structure (`blocks.Report`), six formats that only render it."""

from __future__ import annotations

from planner.reports.blocks import Report

FORMATS = ("table", "json", "yaml", "csv", "markdown", "html")
EXTENSIONS = {
    ".txt": "table",
    ".json": "json",
    ".yaml": "yaml",
    ".yml": "yaml",
    ".csv": "csv",
    ".md": "markdown",
    ".markdown": "markdown",
    ".html": "html",
    ".htm": "html",
}


def render(report: Report, format: str, width: int = 100, colour: bool = False) -> str:
    """The report's text in one of FORMATS; `width` and `colour` matter to the table only."""
    if format == "table":
        from planner.reports import text

        return text.render(report, width, colour)
    if format == "markdown":
        from planner.reports import markdown

        return markdown.render(report)
    if format == "html":
        from planner.reports import html

        return html.render(report)
    from planner.reports import data

    return {"json": data.render_json, "yaml": data.render_yaml, "csv": data.render_csv}[format](report)
