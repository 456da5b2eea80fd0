"""The fields that a raw shell word becomes: expansions split at blanks, arrays item by item, quotes removed.

Source: POSIX.1-2017 Shell Command Language, section 2.6.5; bash(1), "Arrays".
"""

from __future__ import annotations

import re

from planner.interop.megatron.expand import RUN, Expander, Value, mark
from planner.interop.megatron.parse import UNRESOLVED

_SPECIAL = re.compile(r"[$`'\"\\]")
_JOINS = re.compile(r"\$(\*|\{\*|\{[A-Za-z_]\w*\[\*\])")
"""`$*` and `${A[*]}`: within double quotes one field, its items joined by blanks (bash(1), "Special Parameters")."""
_ITEMS = re.compile(r"\$(@|\{@|\{[A-Za-z_]\w*\[@\])")
_EXPANSION = re.compile(r"\$\{[^}]*\}|\$\([^)]*\)|`[^`]*`")


class Splitter:
    """Splits words under an expander's variables."""

    def __init__(self, expander: Expander):
        self._expander = expander

    def command_fields(self, word: str) -> list[str]:
        """The fields of a command's word. A quoted command line such as `bash -c "torchrun t.py ${A[@]} --x"` is one
        text: bash would cut it at the items of A and run the first piece, which is not what is meant."""
        quoted = word[:1] in ("'", '"') and _ITEMS.search(word)
        if quoted and any(c.isspace() for c in _EXPANSION.sub("", word)):
            return [self._expander.text(word)]
        return self.fields(word)

    def fields(self, word: str) -> list[str]:
        """The fields that a raw word expands to: unquoted expansions are split at blanks, "${A[@]}" gives its items."""
        if not _SPECIAL.search(word):
            return [word]
        out: list[str] = []
        current: list[str] | None = None
        position, quote, size = 0, "", len(word)
        while position < size:
            c = word[position]
            if c == "\\" and quote != "'":
                following = word[position + 1 : position + 2]
                keep = quote and following not in tuple('$`"\\\n')
                current = [*(current or []), ("\\" + following) if keep else following.replace("\n", "")]
                position += 2
            elif c in "'\"" and (not quote or quote == c):
                quote = "" if quote else c
                current = current or []
                position += 1
            elif c in "$`" and quote != "'":
                joins = quote and _JOINS.match(word, position)
                value, position = self._expander.expand_at(word, position, 0)
                if joins and isinstance(value, list):
                    value = " ".join(value)
                current = self._join(value, bool(quote), current, out)
            else:
                found = RUN[quote].match(word, position)
                text = found[0] if found else c
                current = [*(current or []), text]
                position += len(text)
        if current is not None:
            out.append("".join(current))
        return out

    @staticmethod
    def _join(value: Value, quoted: bool, current: list[str] | None, out: list[str]) -> list[str] | None:
        """Add an expansion to the field being built; returns the field that is still open."""
        if isinstance(value, list):
            parts = list(value) if quoted else [piece for item in value for piece in _split(item)]
        elif quoted:
            parts = [value]
        else:
            parts = _split(value)
            if parts and value[:1].isspace() and current:
                out.append("".join(current))
                current = None
        if not parts:
            return current
        opened = [*(current or []), parts[0]]
        for part in parts[1:]:
            out.append("".join(opened))
            opened = [part]
        return opened


def _split(text: str) -> list[str]:
    """Blank-separated pieces; an unresolved expansion is one piece."""
    if UNRESOLVED not in text:
        return text.split()
    pieces = text.split(UNRESOLVED)
    marked = [mark(piece.replace(" ", "\x01")) if number % 2 else piece for number, piece in enumerate(pieces)]
    return [piece.replace("\x01", " ") for piece in "".join(marked).split()]
