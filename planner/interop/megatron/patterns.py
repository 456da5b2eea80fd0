"""Which layers have experts or a window: `--moe-layer-freq 2`, `--moe-layer-freq "([0]*3+[1]*58)"`.

Source: megatron/training/arguments.py: moe_freq_type, _eval_pattern (which evaluates the text as Python; here a grammar
of numbers, lists, + and * reads it).
"""

from __future__ import annotations

import re

from planner.errors import InputError
from planner.interop.megatron.parse import LARGEST, UNRESOLVED, readable

MAX_LAYERS = 10_000


def frequency(text: str, name: str, layers: int, source: str, first: bool) -> list[int]:
    """One 0 or 1 for each layer from an integer or a list expression such as `([0]*3+[1]*58)`.

    An integer N selects (`first`) layers 0, N, 2N, ..., or else every layer except the Nth, 2Nth, ... counted from 1.
    """
    bare = text.strip().strip("'\"").replace(" ", "")
    if bare.isascii() and bare.isdigit() and int(bare[:9]) > 0:
        step = int(bare[:9])
        return [int(i % step == 0) if first else int((i + 1) % step != 0) for i in range(layers)]
    values = _list_expression(bare)
    if values is None or UNRESOLVED in bare:
        raise InputError(
            f"{source}: --{name} must be a whole number or a list such as ([0]*3+[1]*58), "
            f"but was given '{readable(text)}'."
        )
    if len(values) != layers or set(values) - {0, 1}:
        raise InputError(
            f"{source}: --{name} must have one 0 or 1 for each of the {layers} layers, but has {len(values)} entries."
        )
    return values


def _list_expression(text: str) -> list[int] | None:
    """The list that an expression of list displays, +, * and parentheses gives (arguments.py: _eval_pattern)."""
    tokens = re.findall(r"\d+|[][()+*,]", text)
    if "".join(tokens) != text or len(tokens) > 4 * MAX_LAYERS:
        return None
    try:
        value, rest = _sum(tokens, 0, 0)
    except (IndexError, ValueError):
        return None
    return value if rest == len(tokens) and isinstance(value, list) else None


def _sum(tokens: list[str], at: int, depth: int) -> tuple[list[int] | int, int]:
    value, at = _product(tokens, at, depth)
    while at < len(tokens) and tokens[at] == "+":
        other, at = _product(tokens, at + 1, depth)
        if isinstance(value, list) != isinstance(other, list):
            raise ValueError
        value = value + other  # type: ignore[operator]
    return value, at


def _product(tokens: list[str], at: int, depth: int) -> tuple[list[int] | int, int]:
    value, at = _atom(tokens, at, depth)
    while at < len(tokens) and tokens[at] == "*":
        other, at = _atom(tokens, at + 1, depth)
        if isinstance(value, int) and isinstance(other, list):
            value, other = other, value
        if isinstance(other, list) or abs(other) * (len(value) if isinstance(value, list) else abs(value)) > LARGEST:
            raise ValueError
        if isinstance(value, list) and len(value) * other > MAX_LAYERS:
            raise ValueError
        value = value * other
    return value, at


def _atom(tokens: list[str], at: int, depth: int) -> tuple[list[int] | int, int]:
    if depth > 50:
        raise ValueError
    if tokens[at] == "(":
        value, at = _sum(tokens, at + 1, depth + 1)
        if tokens[at] != ")":
            raise ValueError
        return value, at + 1
    if tokens[at] == "[":
        items: list[int] = []
        at += 1
        while tokens[at] != "]":
            item, at = _sum(tokens, at, depth + 1)
            if not isinstance(item, int):
                raise ValueError
            items.append(item)
            if tokens[at] == ",":
                at += 1
        return items, at + 1
    if len(tokens[at]) > 15:
        raise ValueError
    return int(tokens[at]), at + 1
