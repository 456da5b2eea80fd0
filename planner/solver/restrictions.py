"""What the search does not look at, in words: the proof of a plan holds within these limits.

Each is kept by the code that is named beside it; `docs/search.md` says more.
"""

from __future__ import annotations

from collections.abc import Iterator

from planner.implementation import Implementation
from planner.model import Model
from planner.solver.space import Pins


def restrictions(model: Model, implementation: Implementation, pins: Pins) -> tuple[str, ...]:
    """One sentence on what was searched, as far as it matters for this model and what the user left free."""
    return ("searched: " + "; ".join(_parts(model, implementation, pins)),)


def _parts(model: Model, implementation: Implementation, pins: Pins) -> Iterator[str]:
    if pins.micro_batch is None:  # Space._micro_batches
        yield "micro-batches that are powers of two"
    if pins.sequence_parallel is None:  # Space._sequence_parallel
        yield "sequence parallelism wherever it is legal"
    if pins.etp is None and model.is_moe:  # Space._expert_tensor_sizes
        yield "tensor parallelism of experts that divides TP"
    if pins.recompute is None or "full" in pins.recompute:  # FULL_BLOCK, SplitVariables._redone_slices
        yield "whole layers recomputed from a stage's first on"
    if pins.stage_layers is None and pins.vpp != (1,):  # chunked_totals, SplitVariables._equal_chunks
        yield "virtual chunks of equal length in each stage, the model's first and last may hold fewer"
    if model.mtp_num_layers:  # planner.stages.split_from_counts
        yield "multi-token prediction beside the loss"
    if not implementation.optimizer_offload_fraction:  # planner.solver.allowed
        yield "no offloading"
    if pins.hsdp_replicas is None:  # Space._replicas
        yield "hybrid sharding within a node only"
    yield "padding of buckets counted at its bound"  # Refiner.problem
