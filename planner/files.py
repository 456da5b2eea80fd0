"""Reading the files that users name: small, text, and never trusted.

Every way in which a file can be wrong is one InputError sentence that starts with its path. YAML is parsed with the
safe loader, without tags, and with aliases for a bounded number of values only: a few hundred bytes of aliases can
stand for gigabytes.
"""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import yaml

from planner.errors import InputError

MAX_BYTES = 4 * 2**20
"""The largest known config.json has tens of kilobytes, a launch script less."""
MAX_DEPTH = 40
"""Nested mappings and lists; the deepest known config.json has five levels."""
MAX_ALIASED = 100_000
"""Values that the aliases of a YAML may stand for; Megatron-LM's own files repeat a hundred arguments a few times."""

# The C loader is six times faster; a PyYAML built without libyaml has just the Python one.
SafeLoader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def read_text(path: str | Path, max_bytes: int = MAX_BYTES) -> str:
    """The text of a user's file. Raises InputError unless it is a readable UTF-8 file of at most `max_bytes`."""
    try:
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise InputError(f"{path}: a file is required, but this is a directory.")
        if not stat.S_ISREG(mode) and not _is_piped(path, mode):
            raise InputError(f"{path}: a regular file is required, but this is a device, socket or pipe.")
        with open(path, "rb") as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file.") from None
    except (OSError, ValueError) as error:  # ValueError: a null byte in the path
        raise InputError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}.") from None
    if len(data) > max_bytes:
        raise InputError(f"{path}: at most {max_bytes} bytes are read, but the file is larger.")
    if not data.strip():
        raise InputError(f"{path}: the file is empty.")
    if b"\0" in data:
        raise InputError(f"{path}: a text file is required, but this is binary.")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: a UTF-8 text file is required, but byte {error.start} is not UTF-8.") from None


def read_mapping(path: str | Path) -> dict[str, Any]:
    """The mapping in a user's YAML or JSON file. Raises InputError where `read_text` does, and unless the file holds
    exactly one mapping with text keys, without tags, at most MAX_DEPTH levels deep."""
    return parse_mapping(read_text(path), str(path))


def parse_mapping(text: str, name: str) -> dict[str, Any]:
    """The mapping in YAML or JSON text; `name` begins every error. Its suffix or the first character tells JSON."""
    suffix = Path(name).suffix.lower()
    is_json = suffix == ".json" or (suffix not in (".yaml", ".yml") and text.lstrip().startswith(("{", "[")))
    value = parse_json(text, name) if is_json else parse_yaml(text, name)
    if not isinstance(value, dict):
        raise InputError(f"{name}: a mapping of names to values is required, but this is {_kind(value)}.")
    wrong = next((key for key in value if not isinstance(key, str)), None)
    if wrong is not None:
        raise InputError(f"{name}: every key must be text, but one is {_shorten(repr(wrong))}.")
    return value


def parse_json(text: str, name: str) -> Any:
    """The value of JSON text. Raises InputError when it is not JSON, too deep, or gives a key two values."""

    def mapping(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        value = dict(pairs)
        if len(value) < len(pairs):
            for key, given in pairs:
                if given != value[key]:
                    raise _twice(name, key)
        return value

    try:
        value = json.loads(text, object_pairs_hook=mapping)
    except json.JSONDecodeError as error:
        raise InputError(f"{name}: not valid JSON: {error.msg} in line {error.lineno}.") from None
    except RecursionError:
        raise _too_deep(name) from None
    except ValueError as error:  # an integer of more than 4300 digits
        problem = "a number has too many digits" if "integer string conversion" in str(error) else _shorten(str(error))
        raise InputError(f"{name}: not valid JSON: {problem}.") from None
    _check_depth(value, name)
    return value


def parse_yaml(text: str, name: str) -> Any:
    """The value of YAML text. Raises InputError when it is not YAML, has tags, gives a key two values, or is too deep
    or too large where its aliases are written out."""
    try:
        _check_yaml_events(text, name)
        return yaml.load(text, Loader=SafeLoader)
    except yaml.YAMLError as error:
        raise InputError(f"{name}: not valid YAML: {_yaml_problem(error)}.") from None
    except RecursionError:
        raise _too_deep(name) from None
    except (ValueError, OverflowError) as error:  # a date such as 2024-99-99, an integer of thousands of digits
        raise InputError(f"{name}: not valid YAML: {_shorten(str(error))}.") from None


class _Expansion:
    """How large and how deep a YAML document is where its aliases are written out, event by event."""

    def __init__(self) -> None:
        self.aliased = 0
        """Values that aliases stand for."""
        self.deepest = 0
        self.anchored: dict[str, tuple[int, int]] = {}
        """Values and levels of what stands behind an anchor and has ended."""
        self._open: list[tuple[str | None, int, int]] = []

    def begin(self, anchor: str | None) -> None:
        self._open.append((anchor, 1, 1))
        self.deepest = max(self.deepest, len(self._open))

    def end(self) -> None:
        self._add(*self._open.pop())

    def scalar(self, anchor: str | None) -> None:
        self._add(anchor, 1, 0)

    def repeat(self, anchor: str) -> None:
        values, levels = self.anchored[anchor]
        self.aliased += values
        self._add(None, values, levels)

    def _add(self, anchor: str | None, values: int, levels: int) -> None:
        if anchor is not None:
            self.anchored[anchor] = values, levels
        self.deepest = max(self.deepest, len(self._open) + levels)
        if self._open:
            around, held, deep = self._open[-1]
            self._open[-1] = around, held + values, max(deep, levels + 1)


class _Keys:
    """The keys of the mappings that are open, event by event: YAML lets the last of two alike win without a word."""

    def __init__(self) -> None:
        self._open: list[dict[str, str | None] | None] = []
        """Each mapping's keys with their values, None for one that is no scalar; None for a sequence."""
        self._key: list[str | None] = []
        """Of each mapping the key whose value comes next; None before a key."""

    def contradicted(self, event: yaml.Event) -> str | None:
        """The key to which this event gives another value than it had; a merge (`<<`) may stand again."""
        if isinstance(event, yaml.CollectionEndEvent):
            self._open.pop()
            self._key.pop()
        found = None
        if isinstance(event, yaml.ScalarEvent | yaml.AliasEvent | yaml.CollectionStartEvent) and self._open:
            found = self._node(event.value if isinstance(event, yaml.ScalarEvent) else None)
        if isinstance(event, yaml.CollectionStartEvent):
            self._open.append({} if isinstance(event, yaml.MappingStartEvent) else None)
            self._key.append(None)
        return found

    def _node(self, text: str | None) -> str | None:
        held, key = self._open[-1], self._key[-1]
        if held is None:
            return None
        if key is None:
            self._key[-1] = text or ""
            return None
        self._key[-1] = None
        known = key in held and key not in ("<<", "")
        same = held.setdefault(key, text) == text and text is not None
        return key if known and not same else None


def _check_yaml_events(text: str, name: str) -> None:
    """Refuse what could be built from a small file into a large or live object, before anything is built, and keys that
    are given twice with different values."""
    expansion, keys = _Expansion(), _Keys()
    for event in yaml.parse(text, Loader=SafeLoader):
        if (key := keys.contradicted(event)) is not None:
            raise _twice(name, key, _line(event))
        if getattr(event, "tag", None) is not None:
            raise InputError(f"{name}: tags (!) are not accepted, but line {_line(event)} has one.")
        anchor = getattr(event, "anchor", None)
        if isinstance(event, yaml.CollectionStartEvent):
            expansion.begin(anchor)
        elif isinstance(event, yaml.CollectionEndEvent):
            expansion.end()
        elif isinstance(event, yaml.ScalarEvent):
            expansion.scalar(anchor)
        elif isinstance(event, yaml.AliasEvent):
            if anchor not in expansion.anchored:
                raise InputError(
                    f"{name}: an alias (*) needs an anchor (&) before it, but line {_line(event)} has none."
                )
            expansion.repeat(anchor)
        if expansion.deepest > MAX_DEPTH:
            raise _too_deep(name)
        if expansion.aliased > MAX_ALIASED:
            raise InputError(
                f"{name}: anchors and aliases (&, *) may stand for at most {MAX_ALIASED} values, but they do for more."
            )


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 0


def _check_depth(value: Any, name: str) -> None:
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise _too_deep(name)
        nested = [list(item.values()) if isinstance(item, dict) else item for item in level]
        level = [child for item in nested if isinstance(item, list) for child in item if isinstance(child, dict | list)]


def _is_piped(path: str | Path, mode: int) -> bool:
    """`/dev/stdin` and the shell's `<(command)`; any other pipe may wait forever for a writer."""
    return stat.S_ISFIFO(mode) and str(path).startswith(("/dev/stdin", "/dev/fd/", "/proc/self/fd/"))


def _twice(name: str, key: str, line: int = 0) -> InputError:
    where = f", the second in line {line}" if line else ""
    return InputError(f"{name}: each key must have one value, but {_shorten(key)} is given two{where}.")


def _too_deep(name: str) -> InputError:
    return InputError(f"{name}: at most {MAX_DEPTH} nested levels are accepted, but the file has more.")


def _yaml_problem(error: yaml.YAMLError) -> str:
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error)
    mark = getattr(error, "problem_mark", None)
    return _shorten(str(problem)) + (f" in line {mark.line + 1}" if mark else "")


def _kind(value: Any) -> str:
    if value is None:
        return "empty"
    names = {list: "a list", str: "a piece of text", bool: "a truth value", int: "a number", float: "a number"}
    return names.get(type(value), f"a {type(value).__name__}")


def _shorten(text: str, length: int = 100) -> str:
    text = " ".join(text.split())
    return text if len(text) <= length else text[: length - 1] + "…"
