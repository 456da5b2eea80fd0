"""What the accounting says of a rank's allocator at the moment at which Megatron-LM reports it.

Megatron prints its memory lines once, after the first iteration that it logs (megatron/training/training.py:
training_log, report_memory_flag): with `--log-interval 1` after the first step, in which activations were gone before
Adam's moments came. The phases of a run are those of `plan memory --detail` (`planner.variations.phases`), here of each
stage. A run that goes on from a checkpoint counts its iterations from there, and has its moments from the start.
"""

from __future__ import annotations

from planner.cluster import Cluster
from planner.interop.megatron.launch import MegatronLaunch
from planner.question import Question, accounting_of
from planner.variations.around import Around
from planner.variations.phases import Phase, stage_phases


class Peaks:
    """Peaks of the allocator of a launch's stages [bytes], by phase; the reserve is not among them."""

    def __init__(self, launch: MegatronLaunch, cluster: Cluster) -> None:
        nothing = 0
        question = Question(launch.model, cluster, launch.workload, launch.implementation, "exact", nothing, ())
        accounting = accounting_of(question)
        accounting.report(launch.layout)  # what is not modelled is refused before a log is looked at
        self._phases = stage_phases(Around(question, accounting, launch.layout))

    def after(self, iterations: int, stage: int) -> Phase:
        """The phase that a line `(after N iterations)` belongs to, with the stage's peak up to its end."""
        _, first, later = self._phases
        return first[stage] if iterations <= 1 else later[stage]
