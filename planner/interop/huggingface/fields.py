"""Typed, bounded reading of one config.json: what is absent takes its config class's default, what is wrong raises.

`defaults.json` holds, for each model type of transformers, the defaults of its config class and its attribute map
(names under which a value may also be written, such as `hidden_size` for GPT-2's `n_embd`). It was read off the
dataclass fields and `attribute_map` of the classes of transformers 5.23; what is null, false or never read here is
left out, and of a multimodal class only its tying is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from planner.errors import InputError

LIMITS = {
    "hidden": 2**18,
    "layers": 2**12,
    "heads": 2**12,
    "vocab": 2**23,
    "ffn": 2**21,
    "experts": 2**14,
    "positions": 2**28,
}
"""Far above any model ever published, far below what would not fit in memory or in 64-bit integers."""

# Names of older configs and of remote code, tried after the class's own attribute map.
SYNONYMS = {
    "hidden_size": ("n_embd", "n_embed", "d_model"),
    "num_hidden_layers": ("num_layers", "n_layer", "n_layers"),
    "num_attention_heads": ("n_head", "n_heads", "num_heads"),
    "num_kv_heads": ("n_head_kv",),
    "max_position_embeddings": ("model_max_length", "seq_length", "n_positions", "max_seq_len"),
}


@cache
def class_defaults() -> dict[str, dict[str, Any]]:
    """By model type: {"defaults": {key: value}, "aliases": {other name: key}} of its config class."""
    return json.loads(Path(__file__).with_name("defaults.json").read_text())


class Fields:
    """One config.json; `name` begins every error."""

    def __init__(self, config: Mapping[str, Any], model_type: str, name: str):
        known = class_defaults().get(model_type, {})
        self.config = config
        self.name = name
        self.defaults: Mapping[str, Any] = known.get("defaults", {})
        self.aliases: Mapping[str, str] = known.get("aliases", {})

    def raw(self, key: str) -> Any:
        """The value as written, else the class's default, else None."""
        names = self._written_as(key)
        for source in (self.config, self.defaults):
            for name in names:
                if name in source:
                    return source[name]
        return None

    def has(self, key: str) -> bool:
        """Whether the file itself gives a value."""
        return any(self.config.get(written) is not None for written in self._written_as(key))

    def size(self, key: str, limit: str) -> int:
        """A required integer from 1 to LIMITS[limit]."""
        value = self.optional(key, limit)
        if value is None:
            raise InputError(f"{self.name}: {key} is missing; an integer from 1 to {LIMITS[limit]} is required.")
        return value

    def optional(self, key: str, limit: str, least: int = 1) -> int | None:
        """An integer from `least` to LIMITS[limit], or None where it is absent or null."""
        value = self.raw(key)
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if value is None:
            return None
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= LIMITS[limit]:
            raise self.wrong(key, f"an integer from {least} to {LIMITS[limit]}", value)
        return value

    def count(self, key: str, limit: str = "layers") -> int:
        """An integer from 0, 0 where it is absent or null."""
        return self.optional(key, limit, least=0) or 0

    def flag(self, key: str) -> bool:
        """A truth value, false where it is absent or null."""
        value = self.raw(key)
        if value is None:
            return False
        if not isinstance(value, bool) and value not in (0, 1):
            raise self.wrong(key, "true or false", value)
        return bool(value)

    def number(self, key: str, default: float) -> float:
        """A number from 0 to 1000."""
        value = self.raw(key)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1000:
            raise self.wrong(key, "a number from 0 to 1000", value)
        return float(value)

    def items(self, key: str) -> list[Any] | None:
        """A list, or None where it is absent or null."""
        value = self.raw(key)
        if value is not None and not isinstance(value, list):
            raise self.wrong(key, "a list", value)
        return value

    def child(self, key: str) -> Fields:
        """A nested config; an absent one has just the class's defaults."""
        nested = self.config.get(key)
        if nested is not None and not isinstance(nested, Mapping):
            raise self.wrong(key, "a mapping", nested)
        fields = Fields(nested or {}, "", f"{self.name}: {key}")
        fields.defaults = self.defaults.get(key) or {}
        return fields

    def with_values(self, values: Mapping[str, Any]) -> Fields:
        """The same config with other values under these names."""
        fields = Fields({**self.config, **values}, "", self.name)
        fields.defaults, fields.aliases = self.defaults, self.aliases
        return fields

    def wrong(self, key: str, required: str, value: Any) -> InputError:
        """The error for a value that is not what is required."""
        text = " ".join(repr(value).split())
        return InputError(
            f"{self.name}: {key} must be {required}, but is {text if len(text) < 60 else text[:57] + '...'}."
        )

    def _written_as(self, key: str) -> list[str]:
        actual = self.aliases.get(key, key)
        others = [alias for alias, target in self.aliases.items() if target == actual]
        return [key, actual, *others, *SYNONYMS.get(key, ())]
