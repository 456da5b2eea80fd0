"""How many microbatches a pipeline stage holds for the backward pass, from the order of its schedule.

Source: megatron/core/pipeline_parallel/schedules.py: get_pp_rank_microbatches, get_schedule_table,
forward_backward_pipelining_{without,with}_interleaving.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

ROUNDS = 2
"""The interleaved order repeats every group x vpp steps: two rounds after the warm-up show every state."""


@dataclass(frozen=True, slots=True)
class InFlight:
    """A stage when the backward of `chunk` is about to start: microbatches alive of each virtual chunk, that one
    included."""

    chunk: int
    microbatches: tuple[int, ...]


def warmup(pp: int, stage: int, vpp: int, num_microbatches: int, group: int | None = None, extra: int = 0) -> int:
    """Forward passes (of chunks, when interleaved) before the first backward. `extra` is 1 where expert-parallel
    communication is overlapped with the neighbouring microbatch."""
    if vpp == 1:
        return min(num_microbatches, pp - stage - 1)
    return min(num_microbatches * vpp, 2 * (pp - stage - 1) + (vpp - 1) * (group or pp) + extra)


def representative(
    pp: int, vpp: int, num_microbatches: int, group: int | None = None, extra: int = 0, least: int = 0
) -> int:
    """The fewest microbatches that bring every stage into the states that `num_microbatches` do, or `least` if that is
    more, and never more than there are. Interleaved, as many are left over for the last, smaller group."""
    if vpp == 1:
        return min(num_microbatches, max(pp, least))
    group = group or pp
    first = 2 * (pp - 1) + (vpp - 1) * group + extra
    groups = max(-(-first // (group * vpp)) + ROUNDS, -(-least // group))
    return min(num_microbatches, groups * group + num_microbatches % group)


def peak_in_flight(
    pp: int, stage: int, vpp: int, num_microbatches: int, group: int | None = None, extra: int = 0
) -> Fraction:
    """Most microbatches alive on a stage, in whole-stage units: chunks in flight / vpp. One without a pipeline."""
    if pp == 1:
        return Fraction(1)
    chunks = min(num_microbatches * vpp, warmup(pp, stage, vpp, num_microbatches, group, extra) + 1)
    return Fraction(chunks, vpp)


@lru_cache(maxsize=65536)
def moments_in_flight(
    pp: int, stage: int, vpp: int, num_microbatches: int, group: int | None = None, extra: int = 0
) -> tuple[InFlight, ...]:
    """The states of a stage at the start of a backward that no other state of the same chunk exceeds in every chunk. In
    a virtual pipeline every step is followed: ask for `representative` microbatches."""
    if pp == 1:
        return (InFlight(0, (1,)),)
    if vpp == 1:
        return (InFlight(0, (min(num_microbatches, pp - stage),)),)
    first = warmup(pp, stage, vpp, num_microbatches, group, extra)
    order = _chunk_order(num_microbatches, vpp, group or pp)
    alive = [0] * vpp
    forwards = 0
    states: dict[int, set[tuple[int, ...]]] = {}
    for backward, step in enumerate(order):
        while forwards < min(len(order), backward + first + 1):
            alive[order[forwards]] += 1
            forwards += 1
        chunk = vpp - 1 - step
        states.setdefault(chunk, set()).add(tuple(alive))
        alive[chunk] -= 1
    return tuple(InFlight(chunk, v) for chunk, vectors in sorted(states.items()) for v in _largest(vectors))


def both_ways_in_flight(pp: int, num_microbatches: int) -> tuple[tuple[InFlight, ...], Fraction]:
    """DualPipe's state of every stage, and its microbatches: as many as 1F1B keeps on a stage and on the mirrored one
    (DeepSeek-V3 technical report, arXiv:2412.19437, table 2: PP + 1)."""
    alive = min(num_microbatches, pp + 1)
    return (InFlight(0, (alive,)),), Fraction(alive)


def _largest(vectors: set[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Those that no other exceeds in every entry. Only a vector of larger sum can exceed another, and in the steady
    state all sums are equal."""
    most = max(map(sum, vectors))
    top = [v for v in vectors if sum(v) == most]
    rest = [v for v in vectors if sum(v) < most]
    kept = [v for v in rest if not any(_exceeds(w, v) for w in (*top, *rest))]
    return sorted((*top, *kept))


def _exceeds(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return a != b and all(x >= y for x, y in zip(a, b, strict=True))


def for_equal_chunks(states: tuple[InFlight, ...], *heavier: int | None) -> tuple[InFlight, ...]:
    """The states that can be the peak where all chunks of the stage hold equal layers: what is alive then depends on
    the number of chunks in flight, and on how many of them are `heavier`: carry the embedding, the loss or modules of
    multi-token prediction."""
    edges = tuple(c for c in heavier if c is not None)
    groups: dict[int, dict[tuple[int, ...], InFlight]] = {}
    for state in states:
        group = state.chunk if state.chunk in edges else -1
        amounts = (sum(state.microbatches), *(state.microbatches[c] for c in edges))
        groups.setdefault(group, {}).setdefault(amounts, state)
    return tuple(found[amounts] for found in groups.values() for amounts in _largest(set(found)))


def _chunk_order(num_microbatches: int, vpp: int, group: int) -> list[int]:
    """The virtual chunk of each step: groups of microbatches, each through every chunk in turn."""
    order = []
    for start in range(0, num_microbatches, group):
        size = min(group, num_microbatches - start)
        for chunk in range(vpp):
            order += [chunk] * size
    return order
