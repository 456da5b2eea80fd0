"""What a shell word expands to, for the expansions that can be known without running anything.

Variables and their defaults, arrays, arithmetic. A command substitution, and a variable that the file does not set,
stay unresolved: their text is kept between UNRESOLVED marks, so that whoever needs the value can name them.
Source: POSIX.1-2017 Shell Command Language, section 2.6; bash(1) for arrays and $(( )).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from fnmatch import translate

from planner.errors import InputError
from planner.interop.megatron.parse import LARGEST, UNRESOLVED

Value = str | list[str]
Variables = dict[str, Value]

MAX_TEXT = 200_000
"""Characters that expansions of one file may grow to: variables that double one another are refused."""

_PARAMETER = re.compile(
    r"(?P<count>#)?(?P<name>[A-Za-z_]\w*|\d+|[@*#?$!-])(?:\[(?P<index>[^\]]*)\])?"
    r"(?P<operator>:?[-=+?]|%%?|##?|//?|\^\^?|,,?)?(?P<word>.*)",
    re.DOTALL,
)
_NAME = re.compile(r"[A-Za-z_]\w*|[0-9@*#?$!-]")
RUN = {"": re.compile(r"[^'\"\\$`]+"), '"': re.compile(r"[^\"\\$`]+"), "'": re.compile(r"[^']+")}
"""Text without anything special, outside quotes and inside either kind."""
_TOKEN = re.compile(r"\s*(?:(\d+)|([A-Za-z_]\w*)|(\*\*|==|!=|<=|>=|&&|\|\||[-+*/%()<>!?:]))")


def mark(text: str) -> str:
    """Text that stays unresolved."""
    return f"{UNRESOLVED}{text.replace(UNRESOLVED, '')}{UNRESOLVED}"


def closing(text: str, start: int) -> int:
    """Index just after the bracket that closes the one at `start`, quotes respected; the end where there is none."""
    pairs = {"(": ")", "{": "}", "[": "]"}
    close, open_ = pairs[text[start]], text[start]
    depth, position, quote = 0, start, ""
    while position < len(text):
        c = text[position]
        if c == "\\":
            position += 1
        elif quote:
            quote = "" if c == quote else quote
        elif c in "'\"" and open_ != "[":
            quote = c
        elif c == open_:
            depth += 1
        elif c == close:
            depth -= 1
            if not depth:
                return position + 1
        position += 1
    return len(text)


class Expander:
    """Expands words under a set of variables."""

    def __init__(self, variables: Variables, source: str):
        self.variables = variables
        self.source = source
        self._grown = 0
        self.consulted: set[str] = set()
        """Names whose values were asked for, whether they are set or not; whoever reads it clears it."""

    def expand_at(self, text: str, position: int, depth: int) -> tuple[Value, int]:
        """The value of the expansion that begins with the `$` or backquote at `position`, and where it ends."""
        if depth > 20:
            raise InputError(f"{self.source}: expansions are nested more than 20 deep.")
        if text[position] == "`":
            end = text.find("`", position + 1) + 1 or len(text)
            return mark(text[position:end]), end
        following = text[position + 1 : position + 2]
        if text.startswith("$((", position):
            end = closing(text, position + 1)
            inner = text[position + 3 : end - 2] if text[end - 2 : end] == "))" else ""
            value = self.arithmetic(inner, depth + 1)
            return (mark(text[position:end]) if value is None else str(value)), end
        if following == "(":
            end = closing(text, position + 1)
            return mark(text[position:end]), end
        if following == "[":
            end = closing(text, position + 1)
            value = self.arithmetic(text[position + 2 : end - 1], depth + 1)
            return (mark(text[position:end]) if value is None else str(value)), end
        if following == "{":
            end = closing(text, position + 1)
            return self._grow(self._parameter(text[position + 2 : end - 1], depth)), end
        found = _NAME.match(text, position + 1)
        if not found:
            return "$", position + 1
        return self._grow(self._variable(found[0])), found.end()

    def _grow(self, value: Value) -> Value:
        self._grown += len(value) if isinstance(value, str) else sum(map(len, value))
        if self._grown > MAX_TEXT:
            raise InputError(f"{self.source}: the variables expand to more than {MAX_TEXT} characters.")
        return value

    def _variable(self, name: str) -> Value:
        self.consulted.add(name)
        value = self.variables.get(name)
        if value is None:
            return [] if name in "@*" else mark("$" + name)
        return value[0] if isinstance(value, list) and value else value

    def _parameter(self, inner: str, depth: int) -> Value:
        """The value of ${inner}."""
        found = _PARAMETER.fullmatch(inner)
        if not found:
            return mark("${" + inner + "}")
        name, index, operator, word = found["name"], found["index"], found["operator"], found["word"]
        self.consulted.add(name)
        value = self.variables.get(name)
        if found["count"]:
            return str(len(value)) if value is not None else mark("${" + inner + "}")
        if index is not None:
            value = self._element(value, index, depth)
        elif isinstance(value, list) and name not in "@*":
            value = value[0] if value else ""
        if not operator:
            if value is None:
                return [] if name in "@*" or index in ("@", "*") else mark("${" + inner + "}")
            return value if not word else mark("${" + inner + "}")
        empty = value is None or (operator.startswith(":") and not value)
        if operator[-1] in "-=":
            result = self.text(word, depth + 1) if empty or value is None else value
            if operator[-1] == "=" and empty:
                self.variables[name] = result
            return result
        if operator[-1] == "+":
            return "" if empty else self.text(word, depth + 1)
        if value is None or isinstance(value, list) or UNRESOLVED in value:
            return mark("${" + inner + "}")
        return value if operator[-1] == "?" else self._edit(value, operator, self.text(word, depth + 1))

    def _element(self, value: Value | None, index: str, depth: int) -> Value | None:
        if index in ("@", "*") or value is None:
            return value
        items = value if isinstance(value, list) else [value]
        number = self.arithmetic(index, depth + 1)
        return items[number] if number is not None and -len(items) <= number < len(items) else None

    @staticmethod
    def _edit(value: str, operator: str, word: str) -> str:
        """${x%suffix}, ${x#prefix}, ${x/a/b}, ${x^^} and ${x,,}, with simple patterns."""
        if operator[0] in "^,":
            return value.upper() if operator[0] == "^" else value.lower()
        if operator[0] == "/":
            old, _, new = word.partition("/")
            return value.replace(old, new, -1 if operator == "//" else 1) if old else value
        if len(value) > 4096 or len(word) > 256 or word.count("*") > 4:
            return mark(value)
        matches: Callable[[str], object] = re.compile(translate(word)).match
        if operator[0] == "%":
            cuts = range(len(value) + 1) if operator == "%%" else range(len(value), -1, -1)
            return next((value[:cut] for cut in cuts if matches(value[cut:])), value)
        cuts = range(len(value), -1, -1) if operator == "##" else range(len(value) + 1)
        return next((value[cut:] for cut in cuts if matches(value[:cut])), value)

    def text(self, word: str, depth: int = 0) -> str:
        """A word's text, quotes removed and expansions joined by blanks: one field, whatever it holds."""
        out: list[str] = []
        position, quote = 0, ""
        while position < len(word):
            c = word[position]
            if c == "\\" and quote != "'" and position + 1 < len(word):
                following = word[position + 1]
                keep = quote and following not in '$`"\\\n'
                out.append(("\\" + following) if keep else following.replace("\n", ""))
                position += 2
            elif c in "'\"" and (not quote or quote == c):
                quote = "" if quote else c
                position += 1
            elif c in "$`" and quote != "'":
                value, position = self.expand_at(word, position, depth)
                out.append(" ".join(value) if isinstance(value, list) else value)
            else:
                found = RUN[quote].match(word, position)
                out.append(found[0] if found else c)
                position = found.end() if found else position + 1
        return "".join(out)

    def arithmetic(self, expression: str, depth: int = 0) -> int | None:
        """The whole number that an arithmetic expression gives, None where it cannot be known."""
        text = self.text(expression, depth) if re.search(r"[$`'\"\\]", expression) else expression
        if UNRESOLVED in text or len(text) > 1000:
            return None
        tokens: list[str] = []
        position = 0
        text = text.strip()
        while position < len(text):
            found = _TOKEN.match(text, position)
            if not found:
                return None
            tokens.append(found[0].strip())
            position = found.end()
        try:
            value, rest = self._sum(tokens, 0, depth)
        except (IndexError, ValueError, ZeroDivisionError, RecursionError):
            return None
        return value if rest == len(tokens) else None

    def _sum(self, tokens: list[str], at: int, depth: int) -> tuple[int, int]:
        value, at = self._product(tokens, at, depth)
        while at < len(tokens) and tokens[at] in "+-":
            other, following = self._product(tokens, at + 1, depth)
            value, at = (value + other if tokens[at] == "+" else value - other), following
        return value, at

    def _product(self, tokens: list[str], at: int, depth: int) -> tuple[int, int]:
        value, at = self._atom(tokens, at, depth)
        while at < len(tokens) and tokens[at] in ("*", "/", "%", "**"):
            operator = tokens[at]
            other, at = self._atom(tokens, at + 1, depth)
            if operator == "*":
                value *= other
            elif operator == "**":
                value = value**other if 0 <= other <= 60 and abs(value) <= 1000 else LARGEST + 1
            else:  # the shell rounds toward zero
                quotient = abs(value) // abs(other) * (1 if (value < 0) == (other < 0) else -1)
                value = quotient if operator == "/" else value - quotient * other
            if abs(value) > LARGEST:
                raise ValueError
        return value, at

    def _atom(self, tokens: list[str], at: int, depth: int) -> tuple[int, int]:
        token = tokens[at]
        if depth > 100:
            raise ValueError
        if token == "(":
            value, at = self._sum(tokens, at + 1, depth + 1)
            if tokens[at] != ")":
                raise ValueError
            return value, at + 1
        if token in "+-":
            value, at = self._atom(tokens, at + 1, depth + 1)
            return (-value if token == "-" else value), at
        if token.isdigit():
            return _bounded(token), at + 1
        self.consulted.add(token)
        held = self.variables.get(token)
        if not isinstance(held, str):
            raise ValueError
        stripped = held.strip()
        if stripped.lstrip("-").isdigit():
            return _bounded(stripped), at + 1
        if depth > 20:
            raise ValueError
        inner = self.arithmetic(stripped, depth + 5) if stripped and stripped != token else None
        if inner is None:
            raise ValueError
        return inner, at + 1


def _bounded(digits: str) -> int:
    if len(digits) > 16:
        raise ValueError
    return int(digits)
