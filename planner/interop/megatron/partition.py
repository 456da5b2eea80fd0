"""How DeepSpeed's pipeline divides layers over stages: Megatron-DeepSpeed's `--pp-partition-method`.

deepspeed/runtime/pipe/module.py: PipelineModule._partition_layers; runtime/utils.py: partition_balanced. Nothing needs
to divide: what counts is shared out as evenly as it can be, the first stages take what is left over, and what does not
count goes with its neighbours.
"""

from __future__ import annotations

from planner.errors import InputError
from planner.interop.megatron.parse import Arguments, readable
from planner.layout import Stage
from planner.model import Model
from planner.stages import split_from_counts

DEFAULT = "type:transformer"


def deepspeed_stages(args: Arguments, source: str, model: Model, pp: int) -> tuple[Stage, ...]:
    """The split of a launch under DeepSpeed's pipeline. `type:transformer` counts decoder layers; with `|embedding` the
    embedding and a tied head count as one each. Other methods count what is not known here: decoder layers stand in,
    and the report says so. Raises InputError where the method is none of DeepSpeed's."""
    method = str(args.get("pp-partition-method", DEFAULT)).strip("'\"").lower()
    kind, _, pattern = method.partition(":")
    if kind not in ("type", "uniform", "parameters"):
        known = "type:transformer, type:transformer|embedding, uniform or parameters"
        raise InputError(f"{source}: --pp-partition-method must be {known}, but was given '{readable(method)}'.")
    if kind != "type" or "transformer" not in pattern:
        args.not_accounted.append(f"--pp-partition-method {readable(method)}: stages are counted as {DEFAULT}'s")
    return by_type(model, pp, embedding=kind == "type" and "transformer" in pattern and "embed" in pattern)


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
