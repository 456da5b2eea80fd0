"""How communicators fall into cells of the machine (scale-up domains, nodes, leaf switches), in closed form.

Every communicator of a layout is an arithmetic progression of ranks: `size` members, `stride` apart. The communicators
of one kind tile the world in blocks of stride x size consecutive ranks, `stride` interleaved communicators to a block.
A cell is a run of consecutive ranks. Where a cell overlaps a block in `o` ranks, o % stride of the block's
communicators have o // stride + 1 members there and the others o // stride. All that follows is this one remark, so
nothing here depends on the number of GPUs.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd


@dataclass(frozen=True, slots=True)
class CellShape:
    """Communicators of one kind against cells of one kind; the worst over all communicators and cells."""

    min_members: int
    """Fewest members in a cell, over the cells that hold a part of a communicator (`size` when none is split)."""
    cells: int
    """Most cells that one communicator touches."""
    crossing: int
    """Most communicators of one cell that have members outside it."""
    outbound_pairs: int
    """Most (member inside, member outside) pairs of one cell: the all-to-all messages that leave it."""


def whole(size: int) -> CellShape:
    """No communicator is split."""
    return CellShape(size, 1, 0, 0)


def _piece(overlap: int, stride: int, size: int) -> tuple[int, int, int]:
    """A cell's overlap with one block [ranks]: (fewest members of a split communicator, split communicators, pairs)."""
    fewest, crossing, pairs = size, 0, 0
    quotient, remainder = divmod(overlap, stride)
    for members, communicators in ((quotient, stride - remainder), (quotient + 1, remainder)):
        if 0 < members < size and communicators:
            fewest = min(fewest, members)
            crossing += communicators
            pairs += communicators * members * (size - members)
    return fewest, crossing, pairs


def _combine(cells: Iterable[tuple[int, ...]], stride: int, size: int) -> tuple[int, int, int]:
    """The worst of cells, each given by its overlaps with the blocks that it cuts."""
    fewest, most_crossing, most_pairs = size, 0, 0
    for overlaps in cells:
        crossing = pairs = 0
        for overlap in overlaps:
            members, split, messages = _piece(overlap, stride, size)
            fewest = min(fewest, members)
            crossing += split
            pairs += messages
        most_crossing, most_pairs = max(most_crossing, crossing), max(most_pairs, pairs)
    return fewest, most_crossing, most_pairs


def _span(cell: int, stride: int, size: int, starts: Iterable[int]) -> int:
    """Most cells that a communicator touches; `starts` are the positions of blocks within a cell [ranks]."""
    if stride >= cell:
        return size
    reach = stride * (size - 1)
    most = 1
    for start in starts:
        # The span grows with the first member's position in its cell: try the last offset before each cell's end.
        for offset in {stride - 1, min(stride - 1, cell - 1 - start)}:
            first = start + offset
            most = max(most, (first + reach) // cell - first // cell + 1)
    return most


def cell_shape(cell: int, world: int, stride: int, size: int) -> CellShape:
    """Communicators (stride, size) of a world [ranks] against cells of `cell` ranks, the last perhaps cut short.

    Constant time where cell and block divide one another; otherwise bounded by the cell's size, never by the world's.
    """
    block = stride * size
    if size == 1 or world <= cell or cell % block == 0:
        return whole(size)
    if block % cell == 0:
        fewest, crossing, pairs = _combine([(cell,)], stride, size)
        return CellShape(fewest, _span(cell, stride, size, [0]), crossing, pairs)
    blocks = world // block
    phases = cell // gcd(cell, block)
    starts = {j * block % cell for j in range(min(blocks, phases))}
    cuts: list[tuple[int, ...]]
    if block > cell:
        cuts = [(cell,)] if any(block - -start % cell >= cell for start in starts) else []
        cuts += [(start, cell - start) for start in starts if start]
        if world % cell:
            cuts.append((world % cell,))
    else:
        count = min(-(-world // cell), block // gcd(cell, block))
        cuts = [(-(i * cell) % block, min(i * cell + cell, world) % block) for i in range(count)]
    fewest, crossing, pairs = _combine(cuts, stride, size)
    return CellShape(fewest, _span(cell, stride, size, starts), crossing, pairs)


def cell_shape_by_counting(boundaries: list[int], world: int, stride: int, size: int) -> CellShape:
    """The same for cells of unequal sizes, by visiting every rank; `boundaries` are the cells' ends, ascending.

    For clusters whose nodes differ in size, which are small.
    """
    cell_of: list[int] = []
    for index, end in enumerate(boundaries):
        cell_of.extend([index] * (min(end, world) - len(cell_of)))
    block = stride * size
    fewest, most_cells = size, 1
    crossing = [0] * len(boundaries)
    pairs = [0] * len(boundaries)
    for start in range(0, world, block):
        for first in range(start, start + stride):
            members: dict[int, int] = {}
            for rank in range(first, first + block, stride):
                members[cell_of[rank]] = members.get(cell_of[rank], 0) + 1
            if len(members) == 1:
                continue
            most_cells = max(most_cells, len(members))
            for index, count in members.items():
                fewest = min(fewest, count)
                crossing[index] += 1
                pairs[index] += count * (size - count)
    return CellShape(fewest, most_cells, max(crossing), max(pairs))


def pair_shape(cells: Iterable[tuple[int, int]], world: int, stride: int) -> CellShape:
    """Pairs (i, i + stride) for each i below world - stride, the first pipeline stage with the last.

    `cells` are (first rank, end) of the cells that the two stages can touch, at least those where one begins or ends.
    """
    pairs = world - stride
    crossing = 0
    for low, end in cells:
        high = min(end, world)
        ahead, behind = max(0, min(high, pairs) - low), max(0, high - max(low, stride))
        inside = max(0, min(high - stride, pairs) - low)
        crossing = max(crossing, ahead + behind - 2 * inside)
    return CellShape(1, 2, crossing, crossing) if crossing else whole(2)
