"""Timing calls on a GPU: warm-up, CUDA events, quartiles over repetitions. `torch` is passed in, never imported."""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import quantiles
from typing import Any

from planner.calibration.recording import Sample

WARM_UP_SECONDS = 0.15
"""Clocks and power settle, libraries choose their kernels."""
LEAST_WARM_UPS = 3
REPETITIONS = 20
LEAST_BATCH_SECONDS = 2e-4
"""Calls between two events: so many that an event's resolution (half a microsecond) does not matter."""
MOST_BATCH = 1000


def measure_call(
    torch: Any,
    call: Callable[[], object],
    repetitions: int = REPETITIONS,
    warm_up_seconds: float = WARM_UP_SECONDS,
    host_clock: Callable[[], float] = time.perf_counter,
) -> Sample:
    """Seconds of one call on the device: `repetitions` measurements after a warm-up, each between two CUDA events and
    of enough calls in a row to be measured well."""
    started, warm = host_clock(), 0
    while warm < LEAST_WARM_UPS or (host_clock() - started < warm_up_seconds and warm < MOST_BATCH):
        call()
        torch.cuda.synchronize()
        warm += 1
    once = _between(torch, call, 1)
    batch = max(1, min(MOST_BATCH, round(LEAST_BATCH_SECONDS / max(once, 1e-7))))
    return _sample([_between(torch, call, batch) / batch for _ in range(max(2, repetitions))])


def measure_together(torch: Any, call: Callable[[], object], repetitions: int = REPETITIONS, batch: int = 5) -> Sample:
    """As measure_call, but with a number of calls that no clock decides: ranks that disagreed on how many collectives
    to start would wait for each other forever."""
    for _ in range(LEAST_WARM_UPS):
        _between(torch, call, batch)
    return _sample([_between(torch, call, batch) / batch for _ in range(max(2, repetitions))])


def _sample(found: list[float]) -> Sample:
    low, middle, high = quantiles(found, n=4, method="inclusive")
    return Sample(middle, low, high, len(found))


def _between(torch: Any, call: Callable[[], object], count: int) -> float:
    """Device seconds of `count` calls."""
    first, last = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    torch.cuda.synchronize()
    first.record()
    for _ in range(count):
        call()
    last.record()
    torch.cuda.synchronize()
    return float(first.elapsed_time(last)) / 1000
