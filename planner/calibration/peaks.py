"""What the accounting says of a rank's allocator at the moment at which Megatron-LM reports it.

Megatron prints its memory lines once, after the first iteration that it logs (megatron/training/training.py:
training_log, report_memory_flag): with `--log-interval 1` after the first step, in which activations were gone before
Adam's moments came. The phases of a run are those of `plan memory --detail` (`planner.variations.phases`), here of each
stage. A run that goes on from a checkpoint counts its iterations from there, and has its moments from the start.
"""

from __future__ import annotations

from planner.cluster import Cluster
from planner.implementation import Implementation
from planner.interop.megatron.launch import MegatronLaunch
from planner.layout import Layout
from planner.memory.accounting import make_accounting
from planner.memory.report import StageMemory
from planner.question import Question
from planner.variations.around import Around
from planner.variations.phases import Phase, phases
from planner.workload import Workload


class OneStage(Around):
    """A layout of which only one stage is looked at."""

    def __init__(self, whole: Around, stage: int) -> None:
        super().__init__(whole.question, whole.accounting, whole.layout)
        self.stage = stage

    def peak(
        self,
        layout: Layout | None = None,
        workload: Workload | None = None,
        implementation: Implementation | None = None,
    ) -> StageMemory | None:
        """The stage, whatever room the others have. What is not modelled is refused before a log is looked at."""
        return self._accounting(workload, implementation).report(layout or self.layout).stages[self.stage]

    def always_bytes(self, workload: Workload | None = None) -> int | None:
        """What the stage holds whatever the moment."""
        accounting = self._accounting(workload, None)
        form, counts = accounting.form(self.layout, self.stage), accounting.counts(self.layout, self.stage)
        return form.always.values(counts)[0]


class Peaks:
    """Peaks of the allocator of a launch's stages [bytes], by phase; the reserve is not among them."""

    def __init__(self, launch: MegatronLaunch, cluster: Cluster) -> None:
        model, workload, implementation = launch.model, launch.workload, launch.implementation
        nothing = 0
        accounting = make_accounting("exact", model, workload, implementation, cluster, nothing)
        question = Question(model, cluster, workload, implementation, "exact", nothing, ())
        self._whole = Around(question, accounting, launch.layout)

    def after(self, iterations: int, stage: int) -> Phase:
        """The phase that a line `(after N iterations)` belongs to, with the stage's peak up to its end."""
        _, first, later = phases(OneStage(self._whole, stage))
        return first if iterations <= 1 else later
