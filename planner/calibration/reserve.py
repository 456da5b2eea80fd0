"""The memory reserve of a card as measured: what the allocator holds beyond what is counted, and the CUDA context."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from planner.calibration.recording import Recording
from planner.calibration.runs import Run
from planner.calibration.spec import reserve_items
from planner.cluster import Cluster
from planner.hardware.cards import value_of


@dataclass(frozen=True, slots=True)
class ReserveMeasured:
    """The items of a card's reserve, what was not measured kept as the cluster has it."""

    items: Mapping[str, object]

    @property
    def total_bytes(self) -> int:
        return sum(int(value_of(item)) for item in self.items.values())


def reserve_of(
    cluster: Cluster, runs: Sequence[Run] = (), recordings: Sequence[Recording] = ()
) -> tuple[ReserveMeasured | None, str]:
    """The reserve of the cluster's card as runs and recordings have it, or None and the reason.

    From logs, the peak of reserved memory less what we count as allocated (or what was, if that is less) takes the
    place of libraries and fragmentation; the context, which no log shows, is the microbenchmark's. What neither shows
    (NCCL's buffers) stays as the cluster has it: the sheet's, the user's own, or measured before.
    """
    items = reserve_items(cluster)
    if "context" not in items:
        return None, f"the reserve of {cluster.card.name} is not split into context, collectives and the rest"
    why = _from_logs(items, runs)
    contexts = [r for r in recordings if r.machine.context_bytes]
    if contexts:
        largest = max(contexts, key=lambda r: r.machine.context_bytes)
        source = f"plan calibrate --measure: {largest.name}, used on {largest.machine.name} beyond the allocator"
        items["context"] = {"value": largest.machine.context_bytes, "source": source}
    return (ReserveMeasured(items), "") if contexts or not why else (None, why)


def _from_logs(items: dict[str, object], runs: Sequence[Run]) -> str:
    """Replace libraries and fragmentation by the logs' own; the reason where they say nothing."""
    found = [
        (m.record.max_reserved_bytes - min(m.predicted_bytes, m.record.max_allocated_bytes), run, m)
        for run in runs
        for m in run.memory
        if m.settled and m.record.max_reserved_bytes is not None
    ]
    if not found:
        if any(run.memory for run in runs):
            return "memory was reported after the first iteration only, before optimizer states existed"
        return "no log reports memory"
    extra, run, m = max(found, key=lambda item: item[0])
    source = (
        f"plan calibrate: {run.summary.name}, rank {m.record.rank} after {m.record.iteration} iterations: max reserved "
        f"{m.record.max_reserved_bytes} less the smaller of what was allocated ({m.record.max_allocated_bytes}) and "
        f"what is predicted ({m.predicted_bytes})"
    )
    items.pop("libraries", None)
    items["fragmentation"] = {"value": max(0, extra), "source": source}
    return ""
