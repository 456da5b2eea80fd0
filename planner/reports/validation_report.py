"""The report of `plan validate`: how far the predictions are from what others measured, table by table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import TYPE_CHECKING, Any

from planner.reports.blocks import Block, Heading, Items, Report, Table, Text
from planner.reports.body import VERSION
from planner.reports.filled import filled
from planner.units import percent, plural, size
from planner.validation.bands import error_bands
from planner.validation.fits import fit_rows

if TYPE_CHECKING:
    from planner.validation.bands import Band
    from planner.validation.fits import FitRow, Ran
    from planner.validation.memory import MemoryRow, MemoryValidation
    from planner.validation.parameters import ParameterValidation
    from planner.validation.ranking import Ranking
    from planner.validation.step import StepValidation

Section = tuple[str, dict[str, Any], list[Block], list[dict[str, Any]]]
"""Name, data, blocks and flat rows of one kind of measurement."""
SIGN = (
    "Errors are (predicted - measured) / measured: negative where too little is predicted, so a step too fast or too "
    "few bytes. Median and p90 are of absolute errors; worst and bias (the median) keep the sign."
)


def validation_report(sections: Sequence[Section]) -> Report:
    """The sections as one report."""
    data: dict[str, Any] = {"version": VERSION, **{name: body for name, body, _, _ in sections}}
    blocks = [Text(SIGN, "quiet"), *(block for _, _, parts, _ in sections for block in parts)]
    rows = [{"what": name, **row} for name, _, _, part in sections for row in part]
    return Report("Validation", data, tuple(blocks), rows)


def signed(fraction: float) -> str:
    return f"{fraction * 100:+.1f}%"


def left_out_blocks(left_out: Mapping[str, int]) -> list[Block]:
    """What was not used, and why: a table that hides them would look better than it is."""
    if not left_out:
        return []
    items = tuple(f"{plural(count, 'record')}: {reason}" for reason, count in left_out.items())
    return [Text("Left out:", "quiet"), Items(items)]


def sources_blocks(sources: Mapping[str, str]) -> list[Block]:
    return [Text("Sources:", "quiet"), Items(tuple(f"{name}: {cite}" for name, cite in sources.items()))]


def step_section(validation: StepValidation) -> Section:
    """Step times by source, card and precision."""
    worst: dict[tuple[str, str, str, str], float] = {}
    for run in validation.runs:
        key = (run.source, run.role, run.card, run.precision)
        worst[key] = max(worst.get(key, 0.0), run.error, key=abs)
    rows = [
        {**asdict(row), "worst_error": worst[(row.source, row.role, row.card, row.precision)]}
        for row in validation.rows
    ]
    table = Table(
        ("<source", "<card", "<precision", "<role", "runs", "median", "p90", "worst", "bias"),
        tuple(
            (
                r["source"],
                r["card"],
                r["precision"],
                r["role"],
                str(r["runs"]),
                percent(r["median_error"]),
                percent(r["p90_error"]),
                signed(r["worst_error"]),
                signed(r["bias"]),
            )
            for r in rows
        ),
        keys=4,
    )
    bands = error_bands(validation.runs)
    data = {
        "rows": rows,
        "rankings": [asdict(ranking) for ranking in validation.rankings],
        "bands": [asdict(band) for band in bands],
        "left_out": dict(validation.left_out),
        "sources": dict(validation.sources),
    }
    blocks: list[Block] = [Heading("Seconds of a step against published runs"), table]
    for role, meaning in (("fit", "sources in view while constants were chosen"), ("check", "sources kept aside")):
        errors = [abs(run.error) for run in validation.runs if run.role == role]
        if errors:
            blocks.append(Text(f"{role} ({meaning}): {plural(len(errors), 'run')}, median {percent(median(errors))}."))
    if validation.rankings:
        blocks.append(
            Text(
                f"Ranking of layouts: in {percent(validation.best_first, 0)} of {len(validation.rankings)} groups the "
                "layout ranked first is within 5 % of the fastest measured; mean rank correlation "
                f"{validation.mean_spearman:.2f}."
            )
        )
        blocks += ranking_blocks(validation.rankings)
    blocks += band_blocks(bands)
    blocks += left_out_blocks(validation.left_out)
    blocks += sources_blocks(validation.sources)
    return "step", data, blocks, rows


def ranking_blocks(rankings: Sequence[Ranking]) -> list[Block]:
    """How well the groups of three layouts or more are ordered; of two there is little to order."""
    groups = [ranking for ranking in rankings if ranking.layouts >= 3]
    if not groups:
        return []
    rows = []
    for ranking in groups:
        source, when, model, gpus, *_ = map(str, ranking.group)
        rows.append(
            (
                f"{source} {when}".rstrip(),
                model,
                gpus,
                str(ranking.layouts),
                percent(ranking.regret),
                f"{ranking.spearman:.2f}",
                f"{ranking.kendall:.2f}",
                percent(ranking.mape),
            )
        )
    header = ("<source", "<model", "<GPUs", "layouts", "regret", "Spearman", "Kendall", "mean error")
    said = "Regret is how much slower the layout ranked first was measured than the fastest."
    return [Text(said), Table(header, tuple(rows), keys=3)]


def band_blocks(bands: Sequence[Band]) -> list[Block]:
    """What other reports print as the error of a step time."""
    table = Table(
        ("<architecture", "<models", "runs", "sources", "half within", "nine in ten"),
        tuple(
            (
                band.architecture,
                "mixtures" if band.mixture else "dense",
                str(band.runs),
                str(band.sources),
                percent(band.median_error),
                percent(band.p90_error),
            )
            for band in bands
        ),
        keys=2,
    )
    return [Text("The error that reports state, where every source counts alike:"), table]


def memory_section(validation: MemoryValidation) -> Section:
    """Peaks of memory by source and card; toy models apart, then runs that shard gradients and weights."""
    errors = [abs(run.error) for run in validation.runs if not run.toy]
    right = sum(run.right for run in validation.runs)
    blocks: list[Block] = [
        Heading("Peak of allocated memory against published runs"),
        _memory_table(validation.rows),
        Text(
            f"{plural(len(errors), 'stage')} of full-size models: median {percent(median(errors))}; "
            f"{right} of {len(validation.runs)} peaks right (within 6%, a toy's within 60 MiB)."
        ),
        *left_out_blocks(validation.left_out),
    ]
    if validation.sharded:
        errors = [abs(run.error) for run in validation.sharded_runs]
        right = sum(run.right for run in validation.sharded_runs)
        blocks += [
            Heading("Peak of reserved memory against published runs that shard gradients and weights"),
            _memory_table(validation.sharded),
            Text(
                f"{plural(len(errors), 'run')} of FSDP2 and DeepSpeed ZeRO-3: median {percent(median(errors))}; "
                f"{right} within 6%."
            ),
            *left_out_blocks(validation.sharded_left_out),
        ]
    fits = fit_rows(validation.ran)
    blocks += _fit_blocks(validation.ran, fits)
    blocks += sources_blocks(validation.sources)
    rows = [asdict(row) for row in (*validation.rows, *validation.sharded)]
    left_out = Counter(validation.left_out) + Counter(validation.sharded_left_out)
    data = {
        "rows": rows,
        "fits": [asdict(row) for row in fits],
        "does_not_fit": [asdict(run) for run in validation.ran if not run.fits],
        "left_out": dict(left_out),
        "sources": dict(validation.sources),
    }
    return "memory", data, blocks, rows


def _fit_blocks(runs: Sequence[Ran], rows: Sequence[FitRow]) -> list[Block]:
    """Runs that were published, so that they fitted, and those that are predicted not to."""
    if not runs:
        return []
    table = Table(
        ("<source", "<card", "runs", "fit", "fullest"),
        tuple((r.source, r.card, str(r.runs), str(r.fit), percent(r.fullest, 0)) for r in rows),
        keys=2,
    )
    over = [run for run in runs if not run.fits]
    blocks: list[Block] = [
        Heading("Published runs that were timed, so that they fitted"),
        table,
        Text(
            f"{len(runs) - len(over)} of {plural(len(runs), 'run')} are predicted to fit, with the reserve. Their "
            "sources are those of the seconds of a step (`plan validate --what step`)." + (" Not so:" if over else "")
        ),
    ]
    if over:
        items = [
            f"{run.id}: over by {size(run.total_bytes - run.capacity_bytes)}, "
            f"{size(run.allocated_bytes)} allocated of {size(run.capacity_bytes)} on stage {run.stage} ({run.moment})"
            for run in over
        ]
        blocks.append(Items(tuple(items)))
    return blocks


def _memory_table(rows: Sequence[MemoryRow]) -> Table:
    return Table(
        ("<source", "<card", "<size", "stages", "median", "p90", "worst", "bias", "right", "<worst run"),
        tuple(
            (
                r.source,
                r.card,
                r.size,
                str(r.stages),
                percent(r.median_error),
                percent(r.p90_error),
                signed(r.worst_error),
                signed(r.bias),
                str(r.right),
                r.worst,
            )
            for r in rows
        ),
        keys=3,
    )


def parameters_section(validation: ParameterValidation) -> Section:
    """Parameter counts by family."""
    rows = [asdict(row) for row in validation.rows]
    table = filled(
        ("<family", "models", "exact", "<furthest off", "error"),
        tuple(
            (r.family, str(r.models), str(r.exact), r.worst, signed(r.worst_error) if r.worst else "")
            for r in validation.rows
        ),
    )
    models, exact = sum(r.models for r in validation.rows), sum(r.exact for r in validation.rows)
    left_out = _count("the source publishes no exact count", validation.without_count)
    data = {
        "rows": rows,
        "left_out": list(validation.without_count),
        "ranks_left_out": dict(validation.left_out),
        "sources": dict(validation.sources),
    }
    blocks: list[Block] = [
        Heading("Parameters against published counts"),
        table,
        Text(f"{exact} of {models} exact.", "good" if exact == models else "bad"),
        *left_out_blocks({**left_out, **validation.left_out}),
        *(sources_blocks(validation.sources) if validation.sources else ()),
    ]
    return "parameters", data, blocks, rows


def _count(reason: str, names: Iterable[str]) -> dict[str, int]:
    number = len(list(names))
    return {reason: number} if number else {}
