"""What a launch script would run, found by reading it: nothing is executed.

Assignments, arrays, `if`, `case` and `for` are followed as far as their values are known from the file. A condition
that is not known (a file's existence, a command's success) counts as false, a loop's body is read once, and every such
guess is noted.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fnmatch import fnmatchcase

from planner.errors import InputError
from planner.interop.megatron.expand import RUN, Expander, Value, Variables, mark
from planner.interop.megatron.launcher import batch_header, batch_variables
from planner.interop.megatron.lexer import Statement, statements
from planner.interop.megatron.parse import UNRESOLVED, readable

_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)(?:\[([^\]]*)\])?(\+?)=(.*)", re.DOTALL)
_SPECIAL = re.compile(r"[$`'\"\\]")
_JOINS = re.compile(r"\$(\*|\{\*|\{[A-Za-z_]\w*\[\*\])")
"""`$*` and `${A[*]}`: within double quotes one field, its items joined by blanks (bash(1), "Special Parameters")."""
_ITEMS = re.compile(r"\$(@|\{@|\{[A-Za-z_]\w*\[@\])")
_EXPANSION = re.compile(r"\$\{[^}]*\}|\$\([^)]*\)|`[^`]*`")
_DECLARE = {"export", "declare", "local", "readonly", "typeset"}
_OPENING = {"then", "do", "{", "!", "time", "else"}
MAX_STATEMENTS = 50_000


@dataclass(slots=True)
class Script:
    """The commands that a script would run, each as expanded words, and the variables at its end."""

    variables: Variables = field(default_factory=dict)
    commands: list[list[str]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    header: dict[str, str] = field(default_factory=dict)
    """Options of its `#SBATCH` lines."""


@dataclass(slots=True)
class _Frame:
    """An `if`, `case` or loop that is open."""

    kind: str
    active: bool
    matched: bool = False
    condition: list[Statement] | None = None
    subject: str = ""
    patterns: list[str] = field(default_factory=list)


def read_script(text: str, source: str) -> Script:
    """Follow a script's text. Raises InputError where it is absurdly large or nested."""
    reader = _Reader(source)
    reader.script.header = batch_header(text)
    reader.script.variables |= batch_variables(reader.script.header)
    reader.run(text)
    return reader.script


class _Reader:
    def __init__(self, source: str):
        self.script = Script()
        self.source = source
        self.expander = Expander(self.script.variables, source)
        self.frames: list[_Frame] = []
        self.count = 0

    def run(self, text: str, depth: int = 0) -> None:
        if depth > 5:
            return
        skip = False
        for statement in statements(text):
            self.count += 1
            if self.count > MAX_STATEMENTS or len(self.frames) > 200:
                raise InputError(
                    f"{self.source}: at most {MAX_STATEMENTS} shell statements are read, but there are more."
                )
            words, operator = statement
            if skip and words:
                skip = operator in ("&&", "||")
                continue
            skip = self._statement(words, operator, depth)

    def _statement(self, words: list[str], operator: str, depth: int) -> bool:
        """Follow one statement; True where `&&` or `||` says that the next one does not run."""
        frame = self.frames[-1] if self.frames else None
        if frame and frame.kind == "case" and frame.condition is not None:
            return self._case_pattern(frame, words, operator)
        if frame and frame.kind == "if" and frame.condition is not None:
            if words and words[0] == "then":
                self._decide(frame)
            else:
                frame.condition.append(Statement(words, operator))
                return False
        while words and words[0] in _OPENING:
            if words[0] == "else" and frame and frame.kind == "if":
                frame.active, frame.matched = not frame.matched, True
            words = words[1:]
        if words and self._keyword(words, operator):
            return False
        skip = False
        if words and all(f.active for f in self.frames):
            skip = self._simple(words, operator, depth)
        if operator.startswith(";;") and frame and frame.kind == "case":
            frame.condition, frame.active = [], False
        return skip

    def _keyword(self, words: list[str], operator: str) -> bool:
        first = words[0]
        if first == "if":
            self.frames.append(_Frame("if", False, condition=[Statement(words[1:], operator)]))
        elif first == "elif" and self.frames and self.frames[-1].kind == "if":
            frame = self.frames[-1]
            frame.active, frame.condition = False, [Statement(words[1:], operator)]
        elif first in ("while", "until"):
            self.script.notes.append(f"a {first} loop is not followed")
            self.frames.append(_Frame("loop", False))
        elif first in ("for", "select"):
            self._for(words)
        elif first == "case":
            subject = self.expander.text(words[1]) if len(words) > 1 else ""
            self.frames.append(_Frame("case", False, condition=[], subject=subject))
            if "in" in words[3:] or len(words) > 3:  # `case $X in a) ...` on one line
                self._case_pattern(self.frames[-1], words[3:], operator)
        elif first in ("fi", "done", "esac"):
            if self.frames:
                self.frames.pop()
        elif first in ("function", "}", "[[", "[", "test"):
            return first in ("function", "}")
        else:
            return False
        return True

    def _for(self, words: list[str]) -> None:
        if not all(f.active for f in self.frames):
            self.frames.append(_Frame("loop", False))
            return
        items = [field for word in words[3:] for field in self.fields(word)] if len(words) > 3 else []
        if len(words) > 1 and words[1].isidentifier():
            self.script.variables[words[1]] = items[0] if items else mark("$" + words[1])
        if len(items) != 1:
            self.script.notes.append(
                f"the loop over {readable(words[1]) if len(words) > 1 else 'nothing'} is read once"
            )
        self.frames.append(_Frame("loop", True))

    def _case_pattern(self, frame: _Frame, words: list[str], operator: str) -> bool:
        if words and words[0] == "esac":
            self.frames.pop()
            return False
        if operator == "(" and not words:
            return False
        frame.patterns += [self.expander.text(word) for word in words]
        if operator == ")":
            known = UNRESOLVED not in frame.subject
            hit = any(p == "*" or (known and len(p) < 256 and fnmatchcase(frame.subject, p)) for p in frame.patterns)
            frame.active, frame.matched = hit and not frame.matched, frame.matched or hit
            frame.patterns, frame.condition = [], None
        return False

    def _decide(self, frame: _Frame) -> None:
        """Close an if's condition: the branch runs where it is known to be true and no earlier branch ran."""
        result: bool | None = None
        join = ""
        outer = all(f.active for f in self.frames[:-1])
        for statement in frame.condition or ():
            if not statement.words:
                continue
            value = self._test(statement.words) if outer else False
            if join == "&&":
                result = False if result is False or value is False else None if None in (result, value) else True
            elif join == "||":
                result = True if result or value else None if None in (result, value) else False
            else:
                result = value
            join = statement.operator
        if result is None and outer:
            shown = " ".join(word for statement in frame.condition or () for word in statement.words)
            self.script.notes.append(f"the condition `{readable(shown)}` is not known and counts as false")
        frame.active = bool(result) and not frame.matched
        frame.matched = frame.matched or frame.active
        frame.condition = None

    def _test(self, words: list[str]) -> bool | None:
        """The truth of `[ ... ]`, `[[ ... ]]`, `(( ... ))` and `test ...`; None where it cannot be known."""
        if words[0] == "!":
            inner = self._test(words[1:]) if len(words) > 1 else None
            return None if inner is None else not inner
        if words[0] == "((" and len(words) > 1:
            return self._compare_numbers(words[1])
        if words[0] in ("true", "false"):
            return words[0] == "true"
        bare = [w for w in words if w not in ("[", "]", "[[", "]]", "test")]
        if len(bare) == len(words) and len(words) not in (1, 3):
            return None
        parts = [self.expander.text(word) for word in bare]
        if any(word in ("-a", "-o", "-f", "-d", "-e", "-x", "-s", "-r", "=~") for word in bare):
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
            value = self.expander.arithmetic(expression)
            return None if value is None else value != 0
        return self._compare(found[0], found[1], found[2])

    def _compare(self, left: str, operator: str, right: str) -> bool | None:
        a, b = self.expander.arithmetic(left), self.expander.arithmetic(right)
        if a is None or b is None:
            return None
        results = {"-eq": a == b, "-ne": a != b, "-gt": a > b, "-lt": a < b, "-ge": a >= b, "-le": a <= b}
        results |= {"==": a == b, "!=": a != b, ">": a > b, "<": a < b, ">=": a >= b, "<=": a <= b}
        return results.get(operator)

    def _simple(self, words: list[str], operator: str, depth: int) -> bool:
        """Assignments take effect, other commands are kept."""
        first = words[0]
        if first in ("[", "[[", "test") or (first == "((" and operator in ("&&", "||")):
            truth = self._test(words)
            return operator in ("&&", "||") and (truth is None or truth == (operator == "||"))
        if first in ("((", "let"):
            for expression in words[1:]:
                name, equals, value = expression.partition("=")
                number = self.expander.arithmetic(value) if equals else None
                if name.strip().isidentifier():
                    self.script.variables[name.strip()] = mark(expression) if number is None else str(number)
            return False
        if first in _DECLARE:
            words = [word for word in words[1:] if not word.startswith("-")]
        position = 0
        while position < len(words) and self._assign(words[position]):
            position += 1
        if position == len(words) or first in _DECLARE:
            return False
        expanded = [field for word in words[position:] for field in self._command_fields(word)]
        if not expanded:
            return False
        if expanded[0] in ("source", "."):
            self.script.notes.append(f"{readable(' '.join(expanded))} is not read")
        elif expanded[0] == "eval":
            self.run(" ".join(expanded[1:]), depth + 1)
        else:
            self.script.commands.append(expanded)
            for word in expanded:
                if " --" in word and any(c.isspace() for c in word.strip()):
                    self.run(word, depth + 1)
        return False

    def _assign(self, word: str) -> bool:
        found = _ASSIGNMENT.fullmatch(word)
        if not found:
            return False
        name, index, plus, raw = found.groups()
        value: Value
        if raw.startswith("(") and raw.endswith(")"):
            inner = [w for s in statements(raw[1:-1]) for w in s.words]
            value = [field for w in inner for field in self.fields(w)]
        else:
            value = self.expander.text(raw)
        if index is not None:
            held = self.script.variables.get(name)
            value = [*(held if isinstance(held, list) else []), *([value] if isinstance(value, str) else value)]
        elif plus:
            held = self.script.variables.get(name, [] if isinstance(value, list) else "")
            if isinstance(held, list):
                value = held + (value if isinstance(value, list) else [value])
            else:
                value = held + value if isinstance(value, str) else [held, *value]
        if sum(map(len, value)) > 200_000:
            raise InputError(f"{self.source}: the variable {name} grows beyond 200000 characters.")
        self.script.variables[name] = value
        return True

    def _command_fields(self, word: str) -> list[str]:
        """The fields of a command's word. A quoted command line such as `bash -c "torchrun t.py ${A[@]} --x"` is one
        text: bash would cut it at the items of A and run the first piece, which is not what is meant."""
        quoted = word[:1] in ("'", '"') and _ITEMS.search(word)
        if quoted and any(c.isspace() for c in _EXPANSION.sub("", word)):
            return [self.expander.text(word)]
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
                value, position = self.expander.expand_at(word, position, 0)
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


def _bare_unset(text: str) -> bool:
    """An expansion of a plain variable that the file never sets: empty, as far as the file goes."""
    return text.startswith(UNRESOLVED + "$") and text.endswith(UNRESOLVED) and not text.startswith(UNRESOLVED + "$(")
