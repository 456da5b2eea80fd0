"""The interleaved schedule where chunks of a stage take unequal time: what its closed form for equal ones leaves out.

Rank i takes microbatches through its chunks in groups of pp; once warm, each forward pass is followed by the backward
pass of another chunk (megatron/core/pipeline_parallel/schedules.py: forward_backward_pipelining_with_interleaving,
get_schedule_table). Count time in slots of one forward and one backward pass, rank i being i slots behind rank 0: then
what a pass waits for is always in the slot before, on the rank itself or on a neighbour (the last rank and the first
are neighbours too). In the q-th block of pp slots

    the first rank runs forward passes of chunk q and backward passes of chunk -q,
    the last rank forward passes of chunk q - 1 and backward passes of chunk -q - 1        (modulo v)

and the others change from the one to the other within the block. A chunk that takes longer is thus at work on the two
ranks at different times, and everything waits for it each time. The step is as long as the longest path through the
passes: along one rank, or from the first to the last and back where the other has more to do, which leaves out one pass
at each change. Of the ranks between, a path knows their totals (`planner.timing.form`) only.

All is written for numbers and for the unknowns of the constraint model alike: `largest` is `max`, or a new unknown that
is at least each of its arguments.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from operator import add, mul, sub
from typing import Any, NamedTuple

Time = Any
"""An integer, or an expression of the constraint model."""
Blocks = Sequence[tuple[Time, Time]]
"""(forward, backward) of the chunks that a rank is at in each block of slots."""
Largest = Callable[..., Time]

FORWARD_SHARE = 3
"""The forward pass is one third of a microbatch without what is recomputed: the backward pass computes two products for
each one."""


class ChunkTimes(NamedTuple):
    """One microbatch's passes through each chunk of a stage, in parts of a nanosecond: 1 / (3 v)."""

    forward: Sequence[Time]
    backward: Sequence[Time]


def parts_of_ns(vpp: int) -> int:
    """In how many parts times of chunks count a nanosecond, so that thirds of what v chunks share stay integers."""
    return FORWARD_SHARE * vpp


def chunk_times(normal: Sequence[Time], recompute: Sequence[Time], shared_ns: int) -> ChunkTimes:
    """Passes of chunks that take `normal[chunk]` [ns] and beside it an even part of `shared_ns`; what is recomputed
    belongs to the backward pass."""
    vpp = len(normal)
    parts = parts_of_ns(vpp)
    forward = [vpp * work + shared_ns for work in normal]
    again = [parts * work for work in recompute]
    return ChunkTimes(forward, [(FORWARD_SHARE - 1) * f + r for f, r in zip(forward, again, strict=True)])


def steady(stages: Sequence[ChunkTimes], largest: Largest = max) -> Time:
    """Twice the longest cycle through two ranks while a group of pp microbatches passes all chunks: no group follows
    the one before it faster. In the parts of its arguments."""
    pp = len(stages)
    around = _cycle(_early(stages[0]), _late(stages[-1]), pp, largest)
    if pp == 2:
        return around
    # a rank between stands for all of them
    return largest(
        around,
        _cycle(_late(stages[-1]), _late(stages[-2]), pp, largest, exact=True),
        _cycle(_early(stages[1]), _early(stages[0]), pp, largest),
    )


def even(stages: Sequence[ChunkTimes], slowest: Time) -> bool:
    """Whether no cycle is longer than what the slowest rank does itself (in the parts of its chunks): no chunk takes
    longer than its share, but for the model's first and last, which are at work in the same block."""
    first, last = stages[0], stages[-1]
    inner = {id(s): s for s in stages[1:-1]}.values()
    forward = max(*first.forward[1:], *last.forward[:-1], *[max(s.forward) for s in inner])
    backward = max(*first.backward[1:], *last.backward[:-1], *[max(s.backward) for s in inner])
    begins = max(first.forward[0], forward) + max(first.backward[0], backward)
    ends = max(last.forward[-1], forward) + max(last.backward[-1], backward)
    return slowest >= (len(first.forward) - 1) * (forward + backward) + max(begins, ends)


def _early(stage: ChunkTimes) -> Blocks:
    """The passes of the first rank, and nearly those of the ranks that follow it."""
    return [(stage.forward[q], stage.backward[-q]) for q in range(len(stage.forward))]


def _late(stage: ChunkTimes) -> Blocks:
    """The passes of the last rank, and nearly those of the ranks before it."""
    return [(stage.forward[q - 1], stage.backward[-q - 1]) for q in range(len(stage.forward))]


def _cycle(rank: Blocks, below: Blocks, pp: int, largest: Largest, exact: bool = False) -> Time:
    """Twice the longest cycle through a rank and the one before it in the ring: backward passes lead to the one before,
    forward passes from there.

    A rank begins a chunk's forward passes a slot later than the one before it, its backward passes a slot earlier, so
    that only one of the two keeps to the blocks: the rank if `exact`. Who comes to the other, or leaves it, has one
    pass there of the block before or after; of two ranks each is on both sides of the other.
    """
    blocks, (other, sign) = range(len(rank)), (below, -1) if exact else (rank, 0 if pp == 2 else 1)
    own, own_below = ([pp * (forward + backward) for forward, backward in each] for each in (rank, below))
    coming = [below[q - 1][1] + sign * (other[q][0] - other[q - 1][0]) for q in blocks]
    leaving = [below[q][0] + sign * (other[q - 1][1] - other[q][1]) for q in blocks]

    def path(here: Time, there: Time) -> tuple[Time, Time]:
        """The longest path to each after all blocks, from those to each after the first of them."""
        for q in blocks[1:]:
            here, there = (
                largest(here, there - coming[q]) + own[q],
                largest(there, here - leaving[q]) + own_below[q],
            )
        return here, there

    stays, leaves = path(own[0], own_below[0] - leaving[0])
    comes, stays_below = path(own[0] - coming[0], own_below[0])
    return largest(2 * stays, 2 * stays_below, leaves + comes)


def first_group(stages: Sequence[ChunkTimes], largest: Largest = max) -> Time:
    """pp microbatches alone: all their forward passes, then all backward ones, chunk after chunk. In the parts of its
    arguments."""
    pp, ids = len(stages), list(map(id, stages))
    one = dict(zip(ids, stages, strict=True))
    whole = {key: list(map(add, s.forward, s.backward)) for key, s in one.items()}
    near, then, far = whole[ids[0]], whole[ids[1]], whole[ids[-1]]
    alike = [ids.count(key) for key in whole]
    through = [sum(map(mul, alike, column)) for column in zip(*whole.values(), strict=True)]
    longest = _there_and_back(near, far, through, pp, largest)
    if pp == 2:
        return longest
    # the first stage may have less to do than all others
    rest = list(map(sub, through, near))
    return largest(longest, near[0] + _there_and_back(then, far, rest, pp, largest))


def _there_and_back(
    near: Sequence[Time], far: Sequence[Time], through: Sequence[Time], pp: int, largest: Largest
) -> Time:
    """The longest path of pp microbatches along a rank `near` the beginning, along the last one, or from rank to rank:
    one microbatch takes `through[chunk]` for all. The backward passes lead back where the forward ones came."""
    here = pp * near[0]
    there = through[0] + (pp - 1) * largest(near[0], far[0])
    for begins, ends, all_ranks in zip(near[1:], far[1:], through[1:], strict=True):
        here, there = (
            largest(here + pp * begins, there + ends),
            largest(there + pp * ends, here + all_ranks + (pp - 1) * largest(begins, ends)),
        )
    return largest(here, there)
