"""The steady step time of a log: warm-up discarded, then statistics that a few slow iterations cannot move."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from statistics import median, quantiles

from planner.calibration.log import TrainingLog
from planner.errors import InputError

WARM_UP = 10
"""Iterations discarded after every start: compilation, autotuning, first allocations, cold file caches. Never more than
half of the run."""
FENCE = 3.0
"""Outliers lie more than this many interquartile ranges outside the quartiles (Tukey's outer fences)."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Seconds of one iteration of a log in steady state."""

    name: str
    count: int
    """Logged figures that were used; each may be the mean over a logging interval."""
    first: int
    last: int
    """Iterations that they span; 0 where the log does not number them."""
    median_seconds: float
    lower_quartile_seconds: float
    upper_quartile_seconds: float
    outliers: int
    warm_up: int
    """Figures discarded at the start of the log and after each restart."""
    other_batch: int
    """Figures discarded because their global batch is another (a batch ramp)."""
    global_batch: int
    """0 where the log does not say it."""
    tflops_per_gpu: float | None
    """Median of what the log itself states, on its own count of FLOPs."""

    @property
    def spread(self) -> float:
        """Interquartile range over the median."""
        return (self.upper_quartile_seconds - self.lower_quartile_seconds) / self.median_seconds

    @property
    def provenance(self) -> str:
        """What was measured, in words."""
        where = f"iterations {self.first} to {self.last}" if self.last else "iterations"
        odd = f", {self.outliers} outlier{'s' * (self.outliers > 1)}" if self.outliers else ""
        return (
            f"{self.name}: {where} ({self.count} logged), median {self.median_seconds:.4g} s, "
            f"interquartile range {self.spread * 100:.1f} %{odd}"
        )


def summarise(log: TrainingLog, warm_up: int = WARM_UP, global_batch: int | None = None) -> Summary:
    """The steady state of a log, for one global batch: the given one, else the log's most frequent.

    Raises InputError where the log states global batches and none is the given one.
    """
    stated = Counter(b for b in log.batches if b)
    wanted = global_batch if global_batch is not None else (stated.most_common(1)[0][0] if stated else 0)
    if stated and wanted not in stated:
        said = ", ".join(str(b) for b, _ in stated.most_common(3))
        raise InputError(f"{log.name}: the launch has a global batch of {wanted}, but the log says {said}.")
    kept = [i for i, b in enumerate(log.batches) if b in (0, wanted)]
    segments: list[list[int]] = []
    for i in kept:
        if not segments or (log.iterations[i] and log.iterations[i] <= log.iterations[segments[-1][-1]]):
            segments.append([])  # the job was restarted
        segments[-1].append(i)
    steady = [i for segment in segments for i in segment[_discarded(log, segment, warm_up) :]]
    seconds = [log.seconds[i] for i in steady]
    middle = median(seconds)
    low, _, high = quantiles(seconds, n=4, method="inclusive") if len(seconds) > 1 else (middle,) * 3
    reach = FENCE * (high - low) + 1e-3 * middle
    numbers = [log.iterations[i] for i in steady if log.iterations[i]]
    stated_tflops = [log.tflops[i] for i in steady if log.tflops[i]]
    return Summary(
        name=log.name,
        count=len(seconds),
        first=min(numbers, default=0),
        last=max(numbers, default=0),
        median_seconds=middle,
        lower_quartile_seconds=low,
        upper_quartile_seconds=high,
        outliers=sum(not low - reach <= s <= high + reach for s in seconds),
        warm_up=len(kept) - len(steady),
        other_batch=len(log.seconds) - len(kept),
        global_batch=wanted if stated else 0,
        tflops_per_gpu=median(stated_tflops) if stated_tflops else None,
    )


def _discarded(log: TrainingLog, segment: list[int], warm_up: int) -> int:
    """How many of the first figures of a run are warm-up. A figure that covers a logging interval is discarded when
    the interval begins within it: with `--log-interval 100` just the first."""
    if warm_up == 0:
        return 0
    numbers = [log.iterations[i] for i in segment]
    interval = max(1, numbers[1] - numbers[0]) if len(segment) > 1 else 1
    return min(-(-warm_up // interval), len(segment) // 2)
