"""Numbers of virtual stages and what each can do at best, before anything is timed: the more there are the smaller the
bubble, but chunks of whole layers may leave some stage with many more than its share."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

from planner.solver.problem import chunked_totals, even_chunk


class Virtual(NamedTuple):
    """A number of virtual stages, and the fewest layers of the stage that holds most."""

    vpp: int
    layers: int


@lru_cache(maxsize=4096)
def longest_stage(layers: int, pp: int, vpp: int) -> int | None:
    """The fewest layers that the stage with most of them can hold; None where stages of equal chunks cannot share out
    so many layers."""
    if vpp == 1 or pp == 1:
        return -(-layers // pp)
    even = even_chunk(layers, pp, vpp)
    ends, inner = chunked_totals(even, vpp, True), chunked_totals(even, vpp, False)
    for most in sorted({*ends, *inner}):
        between = [n for n in inner if n <= most]
        if pp > 2 and not between:
            continue
        least, up = ((pp - 2) * between[0], (pp - 2) * between[-1]) if pp > 2 else (0, 0)
        wanted = {layers - a - b for a in ends for b in ends if max(a, b) <= most}
        if any(least <= left <= up and (left - least) % vpp == 0 for left in wanted):
            return most
    return None


@lru_cache(maxsize=4096)
def best_virtual(layers: int, pp: int, sizes: Sequence[int]) -> tuple[Virtual, ...]:
    """Of these numbers of virtual stages those that could be best, most first: any other has a larger bubble and no
    shorter longest stage."""
    found: list[Virtual] = []
    for vpp in sorted(sizes, reverse=True):
        longest = longest_stage(layers, pp, vpp)
        if longest is not None and (not found or longest < found[-1].layers):
            found.append(Virtual(vpp, longest))
    return tuple(found)
