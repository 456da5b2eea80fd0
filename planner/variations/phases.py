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
    """The GPU with least room in one phase."""

    name: str
    peak_bytes: int
    """Reserve included."""
    fits: bool


BUILT, FIRST, LATER = "model and optimizer built", "first step", "every later step, and all after a restart"
_GRADIENTS, _OPTIMIZER = COMPONENTS.index("gradients"), COMPONENTS.index("optimizer")


def phases(around: Around) -> tuple[Phase, ...]:
    """Phases in order. Spikes while the model is initialised and while a checkpoint is written or loaded are not
    modelled."""
    later = around.report()
    bare = None if around.question.workload.optimizer == "sgd" else around.optimizer("sgd")
    first, without, with_moments = around.report(workload=bare), around.always(bare), around.always()
    if later is None or first is None or without is None or with_moments is None:
        return ()
    lazy = around.layout.zero >= 2 and around.question.implementation.sharded_framework == "fsdp2"
    rows: list[tuple[str, list[int]]] = [(BUILT, []), (FIRST, []), (LATER, [])]
    for i, stage in enumerate(later.stages):
        padding = first.stages[i].components["optimizer"] - without[i].values[_OPTIMIZER]
        gradients = without[i].values[_GRADIENTS] if lazy else 0  # FSDP2's come with the first backward
        built = without[i].total + padding - gradients
        # the moments come when activations have gone, and stand beside what the optimizer's step needs
        begun = max(first.stages[i].total_bytes, with_moments[i].total + padding + with_moments[i].step)
        for (_, peaks), size in zip(rows, (built, begun, stage.total_bytes), strict=True):
            peaks.append(size)
    found = []
    for name, peaks in rows:
        room, peak = min((stage.capacity_bytes - p, p) for stage, p in zip(later.stages, peaks, strict=True))
        found.append(Phase(name, peak, room >= 0))
    return tuple(found)
