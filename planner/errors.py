"""Every way in which a question cannot be answered, and nothing else.

PlannerError                    what the command line turns into one sentence
├── InputError                  the user's input is invalid               exit code 2
│   ├── RuleBroken              a layout breaks a validity rule           exit code 2
│   └── NotModelled             legal, but outside what is accounted for  exit code 2
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class PlannerError(Exception):
    """A question that cannot be answered; its text is one sentence for the user."""


class InputError(PlannerError):
    """The input is invalid: says what is required, what was given, and the nearest valid value."""


class RuleBroken(InputError):
    """A layout breaks validity rules; `rules` holds the broken ones, each with what was given."""

    def __init__(self, sentence: str, rules: tuple = ()):
        super().__init__(sentence)
        self.rules = rules


class NotModelled(InputError):
    """Legal in some framework but not accounted for here: refused by name rather than guessed."""


def nearest(given: str, known: Iterable[str], count: int = 3) -> list[str]:
    """The known names closest to what was given, best first (empty when nothing is close): those that go on where it
    ends, the shortest first, then those that look alike."""
    names = sorted(known)
    longer = [name for name in names if len(given) > 2 and name.startswith(given)]
    longer.sort(key=lambda name: (name[len(given) :][:1].isalnum(), len(name)))
    alike = difflib.get_close_matches(given, names, n=count, cutoff=0.5)
    return list(dict.fromkeys([*longer, *alike]))[:count]


def unknown(what: str, given: str, known: Iterable[str], listed_by: str) -> InputError:
    """The error for a name that is not known, with the nearest known names."""
    close = nearest(given, known)
    hint = f"did you mean {', '.join(close)}? " if close else ""
    return InputError(f"unknown {what} '{given}': {hint}`{listed_by}` lists them.")
