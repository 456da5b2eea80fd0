"""Before, after, change of two saved plans or memory reports (`plan search --json`, `plan memory --json`)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from planner.memory.form import COMPONENTS
from planner.reports import body
from planner.reports.blocks import Block, Fields, Heading, Report, Table, Text
from planner.reports.compare_saved import Saved
from planner.reports.compare_words import label, word
from planner.units import count, gib, percent, plural, seconds, size

INPUTS = (
    ("model", ("model", "name")),
    ("GPUs", ("cluster", "gpus")),
    ("card", ("cluster", "card")),
    ("capacity_bytes", ("cluster", "capacity_bytes")),
    ("seq_length", ("workload", "seq_length")),
    ("global_batch", ("workload", "global_batch")),
    ("precision", ("workload", "precision")),
    ("optimizer", ("workload", "optimizer")),
    ("attention", ("implementation", "attention")),
    ("cross_entropy", ("implementation", "cross_entropy")),
    ("cp_comm_type", ("implementation", "cp_comm_type")),
    ("CUDA graphs", ("implementation", "cuda_graphs")),
    ("tp_comm_overlap", ("implementation", "tp_comm_overlap")),
    ("overlap_moe_expert_parallel_comm", ("implementation", "overlap_moe_expert_parallel_comm")),
    ("moe_imbalance", ("implementation", "moe_imbalance")),
    ("sharded_by", ("implementation", "sharded_by")),
    ("fp8_recipe", ("implementation", "fp8_recipe")),
    ("fp8_param_gather", ("implementation", "fp8_param_gather")),
    ("accounting", ("accounting",)),
    ("reserve_bytes", ("reserve_bytes",)),
)
OLDER: dict[str, Any] = {
    "cross_entropy": "unfused",
    "cp_comm_type": "p2p",
    "cuda_graphs": [],
    "tp_comm_overlap": False,
    "overlap_moe_expert_parallel_comm": False,
    "moe_imbalance": 1.0,
    "sharded_by": "fsdp2",
    "fp8_recipe": "delayed",
    "fp8_param_gather": False,
}
"""What held when a file was saved that does not say it."""


@dataclass(frozen=True, slots=True)
class Change:
    """One field before and after; `change` is the difference of two numbers."""

    what: str
    before: Any
    after: Any

    @property
    def change(self) -> int | float | None:
        a, b = self.before, self.after
        plain = all(isinstance(x, int | float) and not isinstance(x, bool) for x in (a, b))
        return b - a if plain else None

    def data(self) -> dict[str, Any]:
        return {"name": self.what, "before": self.before, "after": self.after, "change": self.change}


def compare_report(before: Saved, after: Saved) -> Report:
    """What differs between two plans."""
    inputs = [c for c in _inputs(before, after) if c.before != c.after]
    layout = [c for c in _fields(before.layout, after.layout) if c.before != c.after]
    peak = _memory(_peak(before), _peak(after))
    stages = _stages(before, after)
    step = _step(before, after)
    fits = Change("fits", before.memory["fits"], after.memory["fits"])
    data = {
        "version": body.VERSION,
        "before": before.name,
        "after": after.name,
        "same": not inputs and not layout and all(c.before == c.after for c in [*peak, *step]),
        "inputs": [c.data() for c in inputs],
        "layout": [c.data() for c in layout],
        "fits": fits.data(),
        "peak": [c.data() for c in peak],
        "stages": [
            {"stage": index, "before": a, "after": b, "change": b - a if a is not None and b is not None else None}
            for index, a, b in stages
        ],
        "step": [c.data() for c in step],
    }
    title = f"{before.name} -> {after.name}"
    blocks = (Text(title, "title"), *_blocks(before, after, inputs, layout, peak, stages, step))
    rows = [
        {"section": section, **change.data()}
        for section, changes in (("inputs", inputs), ("layout", layout), ("peak", peak), ("step", step))
        for change in changes
    ]
    return Report(title, data, blocks, rows)


def _inputs(before: Saved, after: Saved) -> Iterator[Change]:
    def at(data: Any, path: tuple[str, ...]) -> Any:
        for key in path:
            data = data.get(key, OLDER.get(key)) if isinstance(data, dict) else None
        return data

    for what, path in INPUTS:
        yield Change(what, at(before.inputs, path), at(after.inputs, path))


def _fields(before: dict[str, Any], after: dict[str, Any]) -> Iterator[Change]:
    for name in dict.fromkeys([*before, *after]):
        yield Change(name, before.get(name), after.get(name))


def _peak(saved: Saved) -> dict[str, Any]:
    stage: dict[str, Any] = next(
        (s for s in saved.memory["stages"] if s.get("stage") == saved.memory["peak_stage"]), saved.memory["stages"][0]
    )
    return stage


def _memory(a: dict[str, Any], b: dict[str, Any]) -> list[Change]:
    """The peak stages, part by part [bytes]."""
    parts = [Change(f"{p}_bytes", a["components"].get(p, 0), b["components"].get(p, 0)) for p in COMPONENTS]
    return [*parts, *(Change(name, a[name], b[name]) for name in ("total_bytes", "headroom_bytes"))]


def _stages(before: Saved, after: Saved) -> list[tuple[int, int | None, int | None]]:
    """(stage, bytes before, bytes after); None where a side has fewer stages."""
    a = [stage["total_bytes"] for stage in before.memory["stages"]]
    b = [stage["total_bytes"] for stage in after.memory["stages"]]
    longest = max(len(a), len(b))
    padded = (x + [None] * (longest - len(x)) for x in (a, b))
    return [(index, x, y) for index, (x, y) in enumerate(zip(*padded, strict=True))]


def _step(before: Saved, after: Saved) -> list[Change]:
    """The step and its components [seconds], and the work done in them; nothing where a side has no step."""
    a, b = before.step, after.step
    if not a or not b:
        return []
    names = dict.fromkeys([*a["components"], *b["components"]])
    parts = [Change(f"{n}_seconds", a["components"].get(n, 0.0), b["components"].get(n, 0.0)) for n in names]
    return [Change("seconds", a["seconds"], b["seconds"]), *parts, *_work(a, b)]


def _work(a: dict[str, Any], b: dict[str, Any]) -> list[Change]:
    """What two steps of different batches, models or GPUs can be compared by. GPU-seconds are what is paid for."""
    cost = [1e6 / step["tokens_per_second_per_gpu"] for step in (a, b)]
    return [
        Change("tokens_per_second", a["tokens_per_second"], b["tokens_per_second"]),
        Change("tokens_per_second_per_gpu", a["tokens_per_second_per_gpu"], b["tokens_per_second_per_gpu"]),
        Change("mfu", a.get("mfu"), b.get("mfu")),
        Change("gpu_seconds_per_million_tokens", *cost),
    ]


def _blocks(
    before: Saved,
    after: Saved,
    inputs: list[Change],
    layout: list[Change],
    peak: list[Change],
    stages: list[tuple[int, int | None, int | None]],
    step: list[Change],
) -> Iterator[Block]:
    yield Fields(tuple(_verdict(before, after, step)))
    for title, changes in (("Question", inputs), ("Layout", layout)):
        yield Heading(title)
        if not changes:
            yield Text("the same", "quiet")
            continue
        rows = tuple((label(c.what), word(c.what, c.before), word(c.what, c.after), _delta(c)) for c in changes)
        yield Table(("<what", "before", "after", "change"), rows)
    yield Heading("Memory of the fullest GPU, in GiB")
    named = ((c.what.removesuffix("_bytes"), c) for c in peak)
    yield Table(
        ("<part", "before", "after", "change"),
        tuple((n, gib(c.before), gib(c.after), _more(c.before, c.after)) for n, c in named),
    )
    if len(stages) > 1:
        yield Heading("Memory of each stage, in GiB")
        rows = tuple(
            (
                str(index),
                "" if a is None else gib(a),
                "" if b is None else gib(b),
                _more(a, b),
            )
            for index, a, b in stages
        )
        yield Table(("stage", "before", "after", "change"), rows)
    if step:
        yield Heading("Work done")
        yield _work_table(before, after, step)
        yield Heading("Time of one step")
        timed = [c for c in step if c.what == "seconds" or c.what.endswith("_seconds")]
        words = ("step" if c.what == "seconds" else label(c.what.removesuffix("_seconds")) for c in timed)
        yield Table(
            ("<part", "before", "after", "change"),
            tuple(
                (name, seconds(c.before), seconds(c.after), _signed(c.after - c.before))
                for name, c in zip(words, timed, strict=True)
            ),
        )
        if before.tokens_per_step != after.tokens_per_step:
            tokens = f"{count(before.tokens_per_step)} tokens before and {count(after.tokens_per_step)} after"
            yield Text(f"The steps do different work, {tokens}: their seconds do not say which is faster.", "quiet")


def _work_table(before: Saved, after: Saved, step: list[Change]) -> Table:
    """Tokens and the share of the peak; what a token costs where the number of GPUs differs."""
    rows = []
    for c in step:
        if c.what.startswith("tokens_per_second") or (
            c.what == "gpu_seconds_per_million_tokens" and before.gpus != after.gpus
        ):
            digits = 0 if c.what.startswith("tokens") else 1
            rows.append((label(c.what), f"{c.before:,.{digits}f}", f"{c.after:,.{digits}f}", _relative(c)))
        elif c.what == "mfu" and c.change is not None:
            points = "=" if c.change == 0 else f"{c.change * 100:+.1f} points"
            rows.append((label(c.what), percent(c.before), percent(c.after), points))
    return Table(("<work", "before", "after", "change"), tuple(rows))


def _verdict(before: Saved, after: Saved, step: list[Change]) -> Iterator[tuple[str, str]]:
    for side, saved in (("before", before), ("after", after)):
        free = _peak(saved)["headroom_bytes"]
        state = f"fits with {size(free)} free" if saved.memory["fits"] else f"over by {size(-free)}"
        time = f", {seconds(saved.step['seconds'])} a step" if saved.step else ""
        yield side, f"{saved.name}: {state}{time}"
    if step:
        yield "change", "; ".join(_speed(before, after, step))


def _speed(before: Saved, after: Saved, step: list[Change]) -> Iterator[str]:
    """How much faster, by tokens a second: seconds of a step depend on the batch. What makes even that unfair is named
    beside it."""
    by = {c.what: c for c in step}
    ratio = by["tokens_per_second"].after / by["tokens_per_second"].before
    yield f"{'equally fast' if ratio == 1 else f'{ratio:.3f} times as fast'} by tokens a second"
    if before.gpus != after.gpus:
        cost = by["gpu_seconds_per_million_tokens"]
        times = f"{cost.after / cost.before:.3f} times the GPU-seconds for each token"
        yield f"{times}, on {plural(after.gpus, 'GPU')} instead of {before.gpus:,}"
    differ = {c.what for c in _inputs(before, after) if c.before != c.after}
    if differ & {"model", "seq_length"}:
        what = "of another model" if "model" in differ else "in sequences of another length"
        yield f"tokens {what} are other work, so compare MFU too"


def _relative(c: Change) -> str:
    return "=" if c.before == c.after else f"{(c.after / c.before - 1) * 100:+.1f}%"


def _delta(c: Change) -> str:
    if c.change is None:
        return ""
    return f"{c.change / 2**30:+,.1f} GiB" if c.what.endswith("_bytes") else f"{c.change:+,}"


def _more(before: int | None, after: int | None) -> str:
    """The change in GiB; `=` where there is none."""
    if before is None or after is None:
        return ""
    return "=" if before == after else f"{(after - before) / 2**30:+,.1f}"


def _signed(amount: float) -> str:
    return "=" if amount == 0 else ("-" if amount < 0 else "+") + seconds(abs(amount))
