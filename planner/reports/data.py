"""The formats for programs: JSON and YAML of a report's data, CSV of its rows."""

from __future__ import annotations

import csv
import io
import json

from planner.reports.blocks import Report


def render_json(report: Report) -> str:
    """Deterministic JSON; NaN and infinity are refused rather than written."""
    return json.dumps(report.data, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def render_yaml(report: Report) -> str:
    import yaml

    # Through JSON, so that both formats hold the very same values and YAML sees only plain types.
    plain = json.loads(json.dumps(report.data, allow_nan=False))
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(plain, Dumper=dumper, sort_keys=False, allow_unicode=True, width=120))


def render_csv(report: Report) -> str:
    """One header and one line for each row; columns in the order in which they first appear."""
    columns = list(dict.fromkeys(key for row in report.rows for key in row))
    out = io.StringIO()
    writer = csv.DictWriter(out, columns, restval="", lineterminator="\n")
    if columns:
        writer.writeheader()
        writer.writerows(report.rows)
    return out.getvalue()
