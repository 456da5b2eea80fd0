"""Arguments that Megatron-LM does not know and that look like one that it does: its parser would end with them
(megatron/training/arguments.py: parse_args), unless a script of one's own takes them."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import cache

from planner.interop.megatron.parse import known_kinds

SHORTEST = 6
"""Shorter names are like many others."""
LETTERS = 2
"""As many may be wrong."""


def misspelt(unrecognised: Iterable[str]) -> dict[str, str]:
    """What is probably meant, by what was written, among arguments with their values."""
    given = (text.split(" ")[0].partition("=")[0] for text in unrecognised)
    return {word: meant for word in given if word.startswith("--") and (meant := _meant(word))}


@cache
def _meant(word: str) -> str:
    name = word[2:].replace("_", "-")
    if len(name) < SHORTEST:
        return ""
    close = get_close_matches(name, known_kinds(), 1, 1 - LETTERS / len(name))
    return f"--{close[0]}" if close else ""
