"""What following a launch script guessed, and which of it the launch depends on.

A guess matters where it stands around the launch, or before it and touches a variable that the launch uses: by itself,
through other variables, or because its name says the number of GPUs or is read from the environment.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from planner.interop.megatron.environment import READ
from planner.interop.megatron.launcher import WORLD_VARIABLES

_NAMES = re.compile(r"\$\{?[#!]?([A-Za-z_]\w*|\d+)")
_IDENTIFIERS = re.compile(r"[A-Za-z_]\w*")
_ASSIGNED = re.compile(r"([A-Za-z_]\w*)(?:\[[^\]]*\])?\+?=")
_DECLARES = {"export", "declare", "local", "readonly", "typeset", "let", "(("}
_ALWAYS_USED = {*READ, *WORLD_VARIABLES}
ANYTHING = "*"
"""Among the variables that a guess touches: it may touch all of them, or hold a launch of its own."""


@dataclass(slots=True)
class Guess:
    """One sentence about one construct, the variables that it assigns on any path, and the commands that the script had
    come to where the construct began and ended."""

    text: str
    start: int
    end: int
    touches: set[str] = field(default_factory=set)


@dataclass(slots=True)
class Guesses:
    """The guesses of one script, and what its variables and commands are made of."""

    found: list[Guess] = field(default_factory=list)
    made_of: dict[str, set[str]] = field(default_factory=dict)
    """The names in the words that each variable was assigned."""
    roots: dict[str, set[str]] = field(default_factory=dict)
    """Names that the script never sets, by the variable whose value depends on them."""

    def sentences(self, command: int | None = None, names: Iterable[str] = ()) -> list[str]:
        """Those that matter to the command of that number, which uses `names`; all where there is no such command."""
        used = self._used(names)
        return list(
            dict.fromkeys(
                guess.text
                for guess in self.found
                if command is None
                or guess.start <= command < guess.end
                or (guess.start <= command and (ANYTHING in guess.touches or guess.touches & used))
            )
        )

    def _used(self, names: Iterable[str]) -> set[str]:
        used: set[str] = set()
        waiting = [*names, *_ALWAYS_USED]
        while waiting:
            name = waiting.pop()
            if name not in used:
                used.add(name)
                waiting += self.made_of.get(name, ())
        return used

    def unset_behind(self, names: Iterable[str], known: Iterable[str]) -> list[str]:
        """Names that the script does not set among `names` and what they are made of, sorted."""
        known = set(known)
        return sorted({root for name in names for root in (self.roots.get(name, ()) if name in known else (name,))})


def names_in(words: Iterable[str]) -> set[str]:
    """Variables that raw words mention."""
    found: set[str] = set()
    for word in words:
        found.update(_NAMES.findall(word))
        if "((" in word or "$[" in word:
            found.update(_IDENTIFIERS.findall(word))
    return found


def touched_by(words: list[str]) -> set[str]:
    """Variables that a statement assigns; ANYTHING where it launches a program of its own."""
    if words[0] in ("let", "(("):
        return {name for word in words[1:] for name in _IDENTIFIERS.findall(word.partition("=")[0])}
    declares = words[0] in _DECLARES
    touched: set[str] = set()
    for word in words[declares:]:
        found = _ASSIGNED.match(word)
        if found:
            touched.add(found[1])
        elif not declares:
            launches = any(w == "torchrun" or (w.endswith(".py") and not w.startswith("-")) for w in words)
            return touched | ({ANYTHING} if launches else set())
    return touched


def unset_words(names: list[str]) -> str:
    """Why a condition was judged as it was, and how to say otherwise; nothing where every name is set."""
    names = [name for name in names if name.isidentifier() or name.isdigit()]
    if not names:
        return ""
    shown = " and ".join("$" + name for name in names[:3])
    verb = "is" if len(names) == 1 else "are"
    return f", since {shown} {verb} not set (`plan check --set {names[0]}=VALUE` sets it)"
