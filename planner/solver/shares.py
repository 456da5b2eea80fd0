"""An argument why nothing fits wants a split to speak of: layers shared out over stages of unequal memory."""

from __future__ import annotations

from collections.abc import Sequence


def shared_out(layers: int, rooms: Sequence[float]) -> list[int]:
    """Layers of each stage in proportion to how many it has room for; the largest remainders take one more. A stage
    without room has none; with no room at all they are shared out evenly."""
    rooms = [max(0.0, room) for room in rooms]
    total = sum(rooms)
    if total <= 0:
        rooms, total = [1.0] * len(rooms), float(len(rooms))
    ideal = [layers * room / total for room in rooms]
    counts = [int(share) for share in ideal]
    order = sorted(range(len(rooms)), key=lambda i: (counts[i] - ideal[i], i))
    for i in order[: layers - sum(counts)]:
        counts[i] += 1
    return counts
