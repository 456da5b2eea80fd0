"""The peak in each phase of a run: before the first step, in it, after it, and after a restart.

Adam's moments come with the first optimizer step (torch/optim/adam.py: _init_group; Megatron-LM's optimizers wrap such
ones; DeepSpeed runs a step on zero gradients before training: runtime/zero/stage_1_and_2.py and stage3.py,
initialize_optimizer_states), so a run that got through its first step has not shown its peak yet, and a run that loads
a checkpoint has it from its first step on (NVIDIA/Megatron-LM pull request 4638).
"""

from __future__ import annotations

from dataclasses import dataclass

from planner.variations.around import Around


@dataclass(frozen=True, slots=True)
class Phase:
    """The fullest GPU in one phase."""

    name: str
    peak_bytes: int
    fits: bool


def phases(around: Around) -> tuple[Phase, ...]:
    """Phases in order, the reserve included. Loading and writing a checkpoint have peaks of their own that are not
    modelled."""
    question, layout = around.question, around.layout
    later = around.peak()
    if later is None:
        return ()
    deepspeed = layout.zero >= 2 and question.implementation.sharded_framework == "deepspeed"
    bare = None if deepspeed or question.workload.optimizer == "sgd" else around.optimizer("sgd")
    first, built, states = around.peak(workload=bare), around.always_bytes(bare), around.always_bytes()
    if first is None or built is None or states is None:
        return ()
    room = later.capacity_bytes
    begun = max(first.total_bytes, states)  # the moments come when activations have gone
    return (
        Phase("model and optimizer built", built, built <= room),
        Phase("first step", begun, begun <= room),
        Phase("every later step, and all after a restart", later.total_bytes, later.fits),
    )
