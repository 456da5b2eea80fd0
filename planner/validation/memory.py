"""Peaks of memory against published measurements: `plan validate --what memory`.

Each run in `data/memory.json` is the Megatron-LM argument list that ran, the cards it ran on and the logged peak, by
pipeline stage; it goes through the reader and the accounting that `plan check` uses, so nothing here knows a
formula. Runs of frameworks that shard gradients and weights come from `memory_sharded`; their sources print reserved
memory. What cannot be predicted is counted with the reason.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from planner.errors import InputError, NotModelled
from planner.hardware import parse_gpus
from planner.interop.megatron.launch import launch_from_words
from planner.memory.accounting import make_accounting
from planner.memory.report import MemoryReport
from planner.validation.fits import Ran, ran
from planner.validation.memory_sharded import left_out as sharded_left_out
from planner.validation.memory_sharded import sharded_data, sharded_runs

DATA = Path(__file__).parent / "data" / "memory.json"
TOY_BYTES = 8 * 2**30
"""A measured peak below this is a toy model's: workspaces and rounding weigh as much as the model."""
TOY_SLACK_BYTES = 60 * 2**20
"""What a toy's peak may be off by and still count as right."""
RIGHT = 0.06
"""Relative error within which a prediction counts as right."""


@dataclass(frozen=True, slots=True)
class MemoryRun:
    """The peak of one pipeline stage of one measured run, and its prediction [bytes]."""

    id: str
    source: str
    card: str
    gpus: int
    stage: int
    measured_bytes: int
    predicted_bytes: int
    moment: str
    """When the prediction says the peak is."""

    @property
    def error(self) -> float:
        """Signed relative error."""
        return self.predicted_bytes / self.measured_bytes - 1

    @property
    def toy(self) -> bool:
        return self.measured_bytes < TOY_BYTES

    @property
    def right(self) -> bool:
        """Within 6 %, or for a toy within 60 MiB."""
        off = abs(self.predicted_bytes - self.measured_bytes)
        return off <= RIGHT * self.measured_bytes or (self.toy and off < TOY_SLACK_BYTES)


@dataclass(frozen=True, slots=True)
class MemoryRow:
    """Errors of the runs of one source on one kind of card; toys apart."""

    source: str
    card: str
    size: str
    """full, or toy: a measured peak below 8 GiB."""
    stages: int
    """Peaks compared: one for each stage that the source gives."""
    median_error: float
    """Median of the absolute relative errors."""
    p90_error: float
    worst_error: float
    """The largest error, signed."""
    worst: str
    """The run that it is of."""
    bias: float
    """Median of the signed relative errors."""
    right: int
    """Peaks predicted within 6 % (toys: or within 60 MiB)."""
    quantity: str = "allocated"
    """What the source prints: allocated, or reserved by PyTorch's allocator."""


@dataclass(frozen=True, slots=True)
class MemoryValidation:
    rows: tuple[MemoryRow, ...]
    left_out: Mapping[str, int]
    """Records that were not used, by reason."""
    sources: Mapping[str, str]
    """What each source is."""
    runs: tuple[MemoryRun, ...]
    sharded: tuple[MemoryRow, ...] = ()
    """Runs that shard gradients and weights (FSDP2, DeepSpeed ZeRO-3), by source and card."""
    sharded_runs: tuple[MemoryRun, ...] = ()
    sharded_left_out: Mapping[str, int] = field(default_factory=dict)
    ran: tuple[Ran, ...] = ()
    """Published runs whose step was timed: they fitted."""


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return data


def words_of(arguments: Mapping[str, Any]) -> list[str]:
    """A mapping of Megatron arguments as the words of a command line; true is a flag, false is left out."""
    words: list[str] = []
    for name, value in arguments.items():
        if value is False or value is None:
            continue
        words.append(f"--{name}")
        if value is not True:
            words += [str(v) for v in value] if isinstance(value, list) else [str(value)]
    return words


def predicted(run: Mapping[str, Any]) -> MemoryReport:
    """The memory of a recorded launch; NotModelled or InputError where it cannot be predicted."""
    launch = launch_from_words(words_of(run["args"]), run["id"], run["gpus"])
    if launch.problems:
        raise InputError(f"{run['id']}: {launch.problems[0].sentence}")
    cluster = parse_gpus(f"{run['gpus']}x{run['card']}")
    implementation = replace(launch.implementation, **run.get("implementation", {}))  # what no argument says
    accounting = make_accounting("exact", launch.model, launch.workload, implementation, cluster)
    return accounting.report(launch.layout)


def memory_runs(left_out: Counter[str] | None = None) -> Iterator[MemoryRun]:
    """Every measured peak with its prediction; what has none is counted in `left_out`, by reason."""
    for run in _data()["runs"]:
        try:
            report = predicted(run)
        except (NotModelled, InputError) as error:
            if left_out is not None:
                left_out[_reason(str(error), run["id"])] += 1
            continue
        for stage, measured in run["stages"].items():
            found = report.stages[int(stage)]
            yield MemoryRun(
                id=run["id"],
                source=run["source"],
                card=run["card"],
                gpus=run["gpus"],
                stage=found.stage,
                measured_bytes=measured,
                predicted_bytes=found.allocated_bytes,
                moment=found.moment,
            )


def _reason(sentence: str, name: str) -> str:
    """What a refusal says, without the record and the option that it says it of."""
    reason = sentence.removeprefix(f"{name}: ").rstrip(".")
    option, asks, rest = reason.partition(" asks for ")
    return rest if asks and option.startswith("--") else reason


def validate_memory() -> MemoryValidation:
    """Errors by source, card and size."""
    data = _data()
    left_out: Counter[str] = Counter(data["left_out"])
    runs = tuple(memory_runs(left_out))
    tables: dict[tuple[str, str, str], list[MemoryRun]] = {}
    for run in runs:
        tables.setdefault((run.source, run.card, "toy" if run.toy else "full"), []).append(run)
    rows = tuple(_row(key, members) for key, members in sorted(tables.items()))
    sources = {name: source["cite"] for name, source in data["sources"].items()}
    sharded = tuple(_sharded_runs())
    by_card: dict[tuple[str, str, str], list[MemoryRun]] = {}
    for run in sharded:
        by_card.setdefault((run.source, run.card, "full"), []).append(run)
    sources |= {name: str(cite) for name, cite in sharded_data()["sources"].items()}
    return MemoryValidation(
        rows,
        dict(left_out.most_common()),
        sources,
        runs,
        tuple(_row(key, members, "reserved") for key, members in sorted(by_card.items())),
        sharded,
        dict(sharded_left_out()),
        tuple(ran()),
    )


def _sharded_runs() -> Iterator[MemoryRun]:
    for run in sharded_runs():
        yield MemoryRun(
            id=run.id,
            source=run.source,
            card=run.card,
            gpus=run.gpus,
            stage=run.stage,
            measured_bytes=run.measured_bytes,
            predicted_bytes=run.predicted_bytes,
            moment=run.moment,
        )


def _row(key: tuple[str, str, str], members: Sequence[MemoryRun], quantity: str = "allocated") -> MemoryRow:
    errors = [run.error for run in members]
    furthest = max(members, key=lambda run: abs(run.error))
    return MemoryRow(
        *key,
        stages=len(members),
        median_error=median(map(abs, errors)),
        p90_error=sorted(map(abs, errors))[min(len(errors) - 1, int(0.9 * len(errors)))],
        worst_error=furthest.error,
        worst=furthest.id,
        bias=median(errors),
        right=sum(run.right for run in members),
        quantity=quantity,
    )
