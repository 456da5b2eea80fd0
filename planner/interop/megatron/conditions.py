"""The truth of a shell's conditions, as far as the file tells it.

Source: POSIX.1-2017, utility `test`; bash(1), "Compound Commands" for [[ ]] and (( )).
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import fnmatchcase

from planner.interop.megatron.expand import Expander
from planner.interop.megatron.lexer import Statement
from planner.interop.megatron.parse import UNRESOLVED

_UNKNOWABLE = ("-a", "-o", "-f", "-d", "-e", "-x", "-s", "-r", "=~")


class Conditions:
    """Judges conditions under an expander's variables; None where the truth cannot be known."""

    def __init__(self, expander: Expander):
        self._expander = expander

    def judge(self, statements: Iterable[Statement]) -> bool | None:
        """The truth of commands joined by `&&` and `||`."""
        result: bool | None = None
        join = ""
        for statement in statements:
            if not statement.words:
                continue
            value = self.test(statement.words)
            if join == "&&":
                result = False if result is False or value is False else None if None in (result, value) else True
            elif join == "||":
                result = True if result or value else None if None in (result, value) else False
            else:
                result = value
            join = statement.operator
        return result

    def test(self, words: list[str]) -> bool | None:
        """The truth of `[ ... ]`, `[[ ... ]]`, `(( ... ))` and `test ...`."""
        if words[0] == "!":
            inner = self.test(words[1:]) if len(words) > 1 else None
            return None if inner is None else not inner
        if words[0] == "((" and len(words) > 1:
            return self._compare_numbers(words[1])
        if words[0] in ("true", "false"):
            return words[0] == "true"
        bare = [w for w in words if w not in ("[", "]", "[[", "]]", "test")]
        if len(bare) == len(words) and len(words) not in (1, 3):
            return None
        parts = [self._expander.text(word) for word in bare]
        if any(word in _UNKNOWABLE for word in bare):
            return None
        if len(parts) == 2 and bare[0] in ("-z", "-n"):
            held = "" if _bare_unset(parts[1]) else parts[1]
            return (not held) == (bare[0] == "-z")
        if len(parts) != 3:
            return None
        left, operator, right = ("" if _bare_unset(parts[0]) else parts[0]), bare[1], parts[2]
        if UNRESOLVED in left + right:
            return None
        if operator in ("=", "==", "!="):
            same = fnmatchcase(left, right) if words[0] == "[[" and len(right) < 256 else left == right
            return same == (operator != "!=")
        return self._compare(left, operator, right)

    def _compare_numbers(self, expression: str) -> bool | None:
        found = re.split(r"(==|!=|<=|>=|<|>)", expression, maxsplit=1)
        if len(found) != 3:
            value = self._expander.arithmetic(expression)
            return None if value is None else value != 0
        return self._compare(found[0], found[1], found[2])

    def _compare(self, left: str, operator: str, right: str) -> bool | None:
        a, b = self._expander.arithmetic(left), self._expander.arithmetic(right)
        if a is None or b is None:
            return None
        results = {"-eq": a == b, "-ne": a != b, "-gt": a > b, "-lt": a < b, "-ge": a >= b, "-le": a <= b}
        results |= {"==": a == b, "!=": a != b, ">": a > b, "<": a < b, ">=": a >= b, "<=": a <= b}
        return results.get(operator)


def _bare_unset(text: str) -> bool:
    """An expansion of a plain variable that the file never sets: empty, as far as the file goes."""
    return text.startswith(UNRESOLVED + "$") and text.endswith(UNRESOLVED) and not text.startswith(UNRESOLVED + "$(")
