"""References in a YAML: `${env:X}` and `${oc.env:X,default}` to the environment, `${model_parallel.y}` to its own keys.

OmegaConf's notation, by which configurations are shared; Megatron-LM's own reader knows `${X}` of the environment
(megatron/training/yaml_arguments.py: env_constructor). Resolved as text: nothing is evaluated.
"""

from __future__ import annotations

import re
from typing import Any

from planner.errors import InputError
from planner.interop.megatron.expand import MAX_TEXT, Expander
from planner.interop.megatron.parse import readable

_REFERENCE = re.compile(
    r"\$\{\s*(?:(?:oc\.)?env:\s*(?P<variable>[A-Za-z_]\w*)\s*(?P<default>,[^{}$]*)?|(?P<key>[A-Za-z_][\w.-]*))\s*\}"
)
_WORDS: dict[str, bool | None] = {"true": True, "false": False, "null": None}
MAX_DEPTH = 20


class Interpolation:
    """Resolves the references of one file. What the environment does not set stays as `${X}`, for whoever needs it to
    name."""

    def __init__(self, mapping: dict[str, Any], expander: Expander, source: str):
        self._mapping, self._expander, self._source = mapping, expander, source
        self._grown = 0

    def resolve(self, value: Any, depth: int = 0) -> Any:
        """The value with its references resolved; a reference alone keeps the type of what it refers to."""
        if isinstance(value, dict):
            return {key: self.resolve(item, depth) for key, item in value.items()}
        if isinstance(value, list):
            return [self.resolve(item, depth) for item in value]
        if not isinstance(value, str) or "${" not in value:
            return value
        whole = _REFERENCE.fullmatch(value.strip())
        if whole:
            found = self._value(whole, depth)
            return _WORDS.get(found.lower(), found) if isinstance(found, str) else found
        return _REFERENCE.sub(lambda match: str(self._value(match, depth)), value)

    def _value(self, match: re.Match[str], depth: int) -> Any:
        variable, key = match["variable"], match["key"]
        if variable or key in self._expander.variables:
            found: Any = self._expander.variables.get(variable or key)
            if found is None:
                found = match["default"][1:].strip() if match["default"] else "${" + variable + "}"
        elif key not in self._mapping and "." not in key:
            return "${" + key + "}"
        else:
            found = self._at(key, match[0])
            if depth > MAX_DEPTH:
                raise InputError(f"{self._source}: {readable(match[0])} must refer to a value, but refers to itself.")
            found = self.resolve(found, depth + 1)
        self._grown += len(str(found)) + 1
        if self._grown > MAX_TEXT:
            raise InputError(f"{self._source}: the references expand to more than {MAX_TEXT} characters.")
        return found

    def _at(self, key: str, shown: str) -> Any:
        found: Any = self._mapping
        for part in key.split("."):
            if not isinstance(found, dict) or part not in found:
                raise InputError(f"{self._source}: {readable(shown)} must refer to a key of the file, but none is so.")
            found = found[part]
        if isinstance(found, dict):
            raise InputError(f"{self._source}: {readable(shown)} must refer to a value, but refers to a section.")
        return found
