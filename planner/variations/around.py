"""One layout with something changed: what its fullest GPU then holds, and how long its step takes."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from planner.errors import NotModelled
from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.accounting import Accounting, make_accounting
from planner.memory.report import StageMemory
from planner.rules import broken_rules
from planner.timing.report import StepTime
from planner.timing.step import Timing
from planner.workload import Workload

if TYPE_CHECKING:
    from planner.question import Question


class Around:
    """A layout, `stages` set, under the question that it answers. Whatever is not given to a method is as it is; None
    comes back where the change breaks a rule or is not modelled."""

    def __init__(self, question: Question, accounting: Accounting, layout: Layout) -> None:
        self.question = question
        self.accounting = accounting
        self.layout = layout
        self._workload, self._implementation = question.workload, question.implementation
        self._timing = Timing(question.model, question.workload, question.implementation, question.cluster)

    def legal(
        self,
        layout: Layout | None = None,
        workload: Workload | None = None,
        implementation: Implementation | None = None,
        world_size: int | None = None,
    ) -> bool:
        """Whether it breaks no rule."""
        cluster = self.question.cluster
        return not broken_rules(
            self.question.model,
            workload or self._workload,
            implementation or self._implementation,
            layout or self.layout,
            world_size or cluster.gpus,
            cluster if world_size is None else None,
        )

    def peak(
        self,
        layout: Layout | None = None,
        workload: Workload | None = None,
        implementation: Implementation | None = None,
    ) -> StageMemory | None:
        """The stage with least room. Whether the change is legal is not asked."""
        try:
            return self._accounting(workload, implementation).report(layout or self.layout).peak_stage
        except NotModelled:
            return None

    def always_bytes(self, workload: Workload | None = None) -> int | None:
        """What the fullest stage holds whatever the moment: states, buffers and the reserve."""
        accounting = self._accounting(workload, None)
        try:
            stages = range(self.layout.pp)
            forms = [(accounting.form(self.layout, i), accounting.counts(self.layout, i)) for i in stages]
        except NotModelled:
            return None
        return max(form.always.values(counts)[0] for form, counts in forms)

    def step(self, layout: Layout | None = None, implementation: Implementation | None = None) -> StepTime | None:
        """The step's time."""
        timing = self._timing
        try:
            if implementation is not None:
                timing = Timing(self.question.model, self._workload, implementation, self.question.cluster)
            return timing.step(layout or self.layout)
        except NotModelled:
            return None

    def optimizer(self, name: str) -> Workload:
        """The workload under another optimizer."""
        return replace(self._workload, optimizer=name)  # type: ignore[arg-type]

    def _accounting(self, workload: Workload | None, implementation: Implementation | None) -> Accounting:
        if workload is None and implementation is None:
            return self.accounting
        q = self.question
        return make_accounting(
            q.accounting, q.model, workload or self._workload, implementation or self._implementation, q.cluster,
            q.reserve_bytes,
        )  # fmt: skip
