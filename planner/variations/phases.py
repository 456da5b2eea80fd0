"""The peak in each phase of a run: before the first step, in it, after it, and after a restart.

Adam's moments come with the first optimizer step (torch/optim/adam.py: _init_group; Transformer Engine's and Megatron's
wrap or do the same; DeepSpeed since 0.14, runtime/zero/stage_1_and_2.py and stage3.py), so a run that got through its
first step has not shown its peak yet, and one that loads a checkpoint has it from its first step on (NVIDIA/Megatron-LM
pull request 4638).
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.memory.form import COMPONENTS
from planner.variations.around import Around


@dataclass(frozen=True, slots=True)
class Phase:
    """One stage's fullest GPU in one phase."""

    name: str
    peak_bytes: int
    """Reserve included."""
    room_bytes: int
    """What is left of the card; negative where it does not fit."""

    @property
    def fits(self) -> bool:
        """Whether the card holds it."""
        return self.room_bytes >= 0


BUILT, FIRST, LATER = "model and optimizer built", "first step", "every later step, and all after a restart"
_GRADIENTS, _OPTIMIZER = COMPONENTS.index("gradients"), COMPONENTS.index("optimizer")


def stage_phases(around: Around) -> tuple[tuple[Phase, ...], ...]:
    """Phases in order, in each those of the stages in order; empty where something is not modelled. Spikes while the
    model is initialised and while a checkpoint is written or loaded are not modelled."""
    later = around.report()
    bare = None if around.question.workload.optimizer == "sgd" else around.optimizer("sgd")
    first, without, with_moments = around.report(workload=bare), around.always(bare), around.always()
    if later is None or first is None or without is None or with_moments is None:
        return ()
    lazy = around.layout.zero >= 2 and around.question.implementation.sharded_framework == "fsdp2"
    rows: list[list[Phase]] = [[], [], []]
    for i, stage in enumerate(later.stages):
        padding = first.stages[i].components["optimizer"] - without[i].values[_OPTIMIZER]
        gradients = without[i].values[_GRADIENTS] if lazy else 0  # FSDP2's come with the first backward
        built = without[i].total + padding - gradients
        # the moments come when activations have gone, and stand beside what the optimizer's step needs
        begun = max(first.stages[i].total_bytes, with_moments[i].total + padding + with_moments[i].step)
        for row, name, size in zip(rows, (BUILT, FIRST, LATER), (built, begun, stage.total_bytes), strict=True):
            row.append(Phase(name, size, stage.capacity_bytes - size))
    return tuple(tuple(row) for row in rows)


def phases(around: Around) -> tuple[Phase, ...]:
    """Phases in order, each of the stage with least room in it."""
    return tuple(min(row, key=lambda phase: (phase.room_bytes, phase.peak_bytes)) for row in stage_phases(around))
