"""Where a slice of the model can begin, and so which layers it can hold: what bounds a slice without knowing the split.

A slice is so many consecutive layers. With several kinds of layer its cost depends on where it begins, for which the
fewest and most layers of the slices before and after it leave a window: behind DeepSeek's three dense layers, say,
every slice is of experts alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from itertools import groupby

Counts = tuple[int, ...]
Window = tuple[int, int]
"""The earliest and the latest first layer of a slice."""
Runs = tuple[tuple[int, int], ...]
"""(kind, how many): the kinds of further layers, in the order in which they are taken."""


@lru_cache(maxsize=4096)
def windows(layers: int, fewest: Counts, most: int) -> tuple[Window, ...]:
    """The window of each slice in model order; `fewest` is of each slice, `most` of any."""
    found = []
    early, late = 0, 0
    behind_least, behind_most = sum(fewest), most * len(fewest)
    for least in fewest:
        # what the slice and those behind it can hold bounds its start from below, what they must hold from above
        found.append((max(early, layers - behind_most), max(0, min(late, layers - behind_least))))
        early, late = early + least, late + most
        behind_least, behind_most = behind_least - least, behind_most - most
    return tuple(found)


@lru_cache(maxsize=16384)
def possible(pattern: Counts, window: Window, most: int) -> Counts:
    """Kinds of layer that a slice of at most so many layers can hold."""
    return tuple(sorted(set(pattern[window[0] : window[1] + most]))) or (pattern[-1],)


def scattered(pattern: Counts, window: Window, behind: int, weights: Sequence[int]) -> Runs:
    """(weight, how many) of each further layer of a stage whose layers may come from anywhere between its earliest
    start and the `behind` layers that others must hold behind it, as with virtual stages: the lightest kinds first."""
    held = pattern[window[0] : len(pattern) - behind]
    return tuple(sorted((weights[kind], held.count(kind)) for kind in set(held)))


@lru_cache(maxsize=16384)
def leaning(pattern: Counts, window: Window, most: int, kind: int) -> Runs:
    """The kinds of a slice's layers when it begins where it holds most of `kind`, of two kinds: at every length no
    slice of the window holds more of it."""
    other = next(k for k in possible(pattern, window, most) if k != kind)
    is_kind = [0]
    for k in pattern:
        is_kind.append(is_kind[-1] + (k == kind))
    order, before = [], 0
    for n in range(1, most + 1):
        starts = range(min(window[0], len(pattern) - n), min(window[1], len(pattern) - n) + 1)
        held = max(before, *(is_kind[start + n] - is_kind[start] for start in starts))
        order.append(kind if held > before else other)
        before = min(held, before + 1)
    return tuple((k, len(list(alike))) for k, alike in groupby(order))


def cheapest(pattern: Counts, window: Window, most: int, weights: Sequence[int]) -> Runs:
    """(weight, how many) of each further layer of a slice, such that no slice of any length weighs less. `weights` are
    of each kind."""
    kinds = possible(pattern, window, most)
    if len(kinds) == 2 and weights[kinds[0]] != weights[kinds[1]]:
        lighter = min(kinds, key=lambda k: weights[k])
        return tuple((weights[k], many) for k, many in leaning(pattern, window, most, lighter))
    return ((min(weights[k] for k in kinds), most),)
