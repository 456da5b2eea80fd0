"""Measured runs beside what the planner says of the same launch: step time and memory of each stage."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from planner.calibration.log import MemoryRecord, TrainingLog, called
from planner.calibration.peaks import Peaks
from planner.calibration.summary import WARM_UP, Summary, summarise
from planner.cluster import Cluster
from planner.errors import InputError
from planner.interop.megatron.launch import MegatronLaunch
from planner.parameters import parameters
from planner.timing.factors import FACTORS, SUFFIX, factors_of
from planner.timing.step import Timing
from planner.units import plural

LIKELY = (0.3, 3.0)
"""Measured over predicted step time: beyond, the launch is not the one of the log."""


@dataclass(frozen=True, slots=True)
class MeasuredMemory:
    """The heaviest report of a stage's ranks, and what the accounting says of the stage [bytes] in the same phase."""

    stage: int
    record: MemoryRecord
    predicted_bytes: int
    phase: str
    """The phase of the run that the report belongs to (`planner.variations.phases`)."""

    @property
    def error(self) -> float:
        """(predicted - measured) / measured of the allocator's peak."""
        return self.predicted_bytes / self.record.max_allocated_bytes - 1

    @property
    def settled(self) -> bool:
        """Optimizer states exist from the end of the first step on: what is reserved after one iteration grows yet."""
        return self.record.iteration >= 2


@dataclass(frozen=True, slots=True)
class Run:
    """One log with its launch."""

    summary: Summary
    launch: MegatronLaunch
    gpus: int
    predicted_seconds: float
    memory: tuple[MeasuredMemory, ...]
    notes: tuple[str, ...]

    @property
    def error(self) -> float:
        """(predicted - measured) / measured of the step."""
        return self.predicted_seconds / self.summary.median_seconds - 1


def make_run(log: TrainingLog, launch: MegatronLaunch, cluster: Cluster, warm_up: int = WARM_UP) -> Run:
    """A log set beside its launch on the cluster. Raises InputError where the two contradict each other, and where the
    launch has no legal layout."""
    if launch.problems:
        problem = launch.problems[0]
        raise InputError(f"{log.name}: its launch breaks a rule of Megatron ({problem.id}): {problem.sentence}")
    if not launch.layout.stages:
        raise InputError(f"{log.name}: its launch has no split of the layers over the stages.")
    notes = [*_contradictions(log, launch), *launch.notes, *launch.not_accounted]
    notes += [f"not understood, and so not accounted for: {words}" for words in launch.unrecognised]
    if launch.layout.world_size > cluster.gpus:
        raise InputError(
            f"{log.name}: its launch runs on {plural(launch.layout.world_size, 'GPU')}, but the cluster has "
            f"{cluster.gpus}."
        )
    stated = any(log.batches)
    summary = summarise(log, warm_up, launch.workload.global_batch if stated else None)
    if summary.count < 5:
        notes.append(f"only {plural(summary.count, 'figure')} after warm-up: a longer log says more")
    seconds = predict(launch, cluster)
    ratio = summary.median_seconds / seconds
    if not LIKELY[0] <= ratio <= LIKELY[1]:
        raise InputError(
            f"{log.name}: its step takes {summary.median_seconds:.4g} s, but {seconds:.4g} s is predicted for the "
            "launch: the log must be of this launch on these GPUs."
        )
    return Run(summary, launch, launch.layout.world_size, seconds, _memory(log, launch, cluster), tuple(notes))


def predict(launch: MegatronLaunch, cluster: Cluster, factors: Mapping[str, float] | None = None) -> float:
    """Seconds of the launch's step; `factors` (ratios to those of the cluster's calibration) go on top of it."""
    on = with_factors(cluster, factors) if factors else cluster
    return Timing(launch.model, launch.workload, launch.implementation, on).step(launch.layout).seconds


def with_factors(cluster: Cluster, ratios: Mapping[str, float]) -> Cluster:
    """The cluster with its factors multiplied by `ratios`."""
    old = factors_of(cluster)
    new = {name + SUFFIX: getattr(old, name) * ratios.get(name, 1.0) for name in FACTORS}
    return replace(cluster, calibration={**cluster.calibration, **new})


def _contradictions(log: TrainingLog, launch: MegatronLaunch) -> list[str]:
    """Raises InputError where the log states other degrees than the launch; returns lesser doubts."""
    layout = launch.layout
    ours = {"world_size": layout.world_size, "tp": layout.tp, "cp": layout.cp, "pp": layout.pp, "dp": layout.dp}
    for name, stated in log.degrees.items():
        if ours[name] != stated:
            raise InputError(
                f"{log.name}: the log states {called(name)} = {stated}, but the launch has {ours[name]}: "
                "they must be the same job."
            )
    notes = []
    if log.parameters_billions:
        billions = parameters(launch.model) / 1e9
        if abs(log.parameters_billions / billions - 1) > 0.02:
            notes.append(
                f"the log counts {log.parameters_billions:g} billion parameters, the launch's model has {billions:.2f}"
            )
    if log.dropped:
        notes.append(f"{log.dropped} lines with impossible figures were left out")
    return notes


def _memory(log: TrainingLog, launch: MegatronLaunch, cluster: Cluster) -> tuple[MeasuredMemory, ...]:
    """The heaviest report of each stage; reports of ranks that the job does not have are left out."""
    heaviest: dict[int, MemoryRecord] = {}
    for rank, record in sorted(log.memory.items()):
        if rank >= launch.layout.world_size:
            continue
        stage = launch.stage_of(rank)
        known = heaviest.get(stage)
        if known is None or record.max_allocated_bytes > known.max_allocated_bytes:
            heaviest[stage] = record
    if not heaviest:
        return ()
    peaks = Peaks(launch, cluster)
    phases = {s: peaks.after(r.iteration, s) for s, r in sorted(heaviest.items())}
    return tuple(MeasuredMemory(s, heaviest[s], phase.peak_bytes, phase.name) for s, phase in phases.items())
