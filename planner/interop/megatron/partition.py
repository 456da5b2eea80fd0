"""How DeepSpeed's pipeline divides layers over stages: Megatron-DeepSpeed's `--pp-partition-method`.

deepspeed/runtime/pipe/module.py: PipelineModule._partition_layers; runtime/utils.py: partition_balanced. Nothing needs
to divide: what counts is shared out as evenly as it can be, the first stages take what is left over, and what does not
count goes with its neighbours.
"""

from __future__ import annotations

from planner.layout import Stage
from planner.model import Model
from planner.stages import split_from_counts

DEFAULT = "type:transformer"


def by_type(model: Model, pp: int, *, embedding: bool) -> tuple[Stage, ...]:
    """The split by `type:transformer`, with `embedding` by `type:transformer|embedding`."""
    head = embedding and model.tied  # a tied head is a second EmbeddingPipe, an untied one has a class of its own
    whole, over = divmod(model.num_layers + embedding + head, pp)
    counts = [whole + (stage < over) for stage in range(pp)]
    counts[0] -= embedding
    counts[-1] -= head
    return split_from_counts(model, counts)


def partition_method(model: Model, pp: int, stages: tuple[Stage, ...]) -> str | None:
    """The method that gives these stages; None where none does."""
    methods = {DEFAULT: False, f"{DEFAULT}|embedding": True}
    return next((name for name, ends in methods.items() if by_type(model, pp, embedding=ends) == stages), None)
