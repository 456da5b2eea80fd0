"""From a card's figures, as its file gives them, to a `Card`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from planner.cluster import Card
from planner.errors import InputError, nearest, unknown
from planner.hardware import specs

INTEGERS = (
    "sold_bytes",
    "capacity_bytes",
    "multiprocessors",
    "gpus_per_node",
    "scale_up_domain",
    "host_bytes_per_node",
)
RATES = (
    "memory_bytes_per_second",
    "scale_up_bytes_per_second",
    "pcie_bytes_per_second",
    "network_bytes_per_second",
)
PRECISIONS = ("fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8")
RESERVE = ("context", "collectives", "libraries", "fragmentation")
"""What lies outside the allocator's peak: CUDA context; NCCL; workspaces; reserved but not allocated."""
UNSOURCED = "the user's file"


def value_of(figure: Any) -> Any:
    """A figure is a number, or {value, source}."""
    return figure["value"] if isinstance(figure, Mapping) else figure


def source_of(figure: Any) -> str:
    """Where a figure comes from; a user's bare number is the user's own."""
    return str(figure.get("source", UNSOURCED)) if isinstance(figure, Mapping) else UNSOURCED


def card_from(data: Mapping[str, Any], base: Card | None = None) -> Card:
    """A Card from a mapping that has been validated: a built-in file, or a user's card over a `base`.

    Figures that are absent are the base's; `reserve_bytes` is one number or one for each item of RESERVE.
    """
    figures = {**data.get("figures", {})}
    fields: dict[str, Any] = {name: getattr(base, name) for name in Card.__dataclass_fields__} if base else {}
    sources = dict(base.sources) if base else {}
    for name in INTEGERS + RATES:
        if name in figures:
            fields[name] = (int if name in INTEGERS else float)(value_of(figures[name]))
            sources[name] = source_of(figures[name])
    for name in ("name", "vendor", "architecture", "scale_up", "scale_up_pairwise", "network", "time_note"):
        if name in data:
            fields[name] = data[name]
    fields["aliases"] = tuple(data.get("aliases", ()))
    if "flops" in data:
        fields["flops"] = dict(fields.get("flops", {})) | {k: float(value_of(v)) for k, v in data["flops"].items()}
        sources |= {f"flops.{k}": source_of(v) for k, v in data["flops"].items()}
    if "reserve_bytes" in data:
        reserve = data["reserve_bytes"]
        items = reserve if isinstance(reserve, Mapping) and "value" not in reserve else {"": reserve}
        sources = {k: v for k, v in sources.items() if not k.startswith("reserve_bytes")}
        fields["reserve_bytes"] = sum(int(value_of(item)) for item in items.values())
        sources |= {f"reserve_bytes.{k}".rstrip("."): source_of(v) for k, v in items.items()}
    return Card(**(fields | {"sources": sources}))


@lru_cache(maxsize=64)
def _load(path: str) -> Card:
    return card_from(specs.read(path))


def load_card(name: str) -> Card:
    """A built-in card by the name that people write, case and punctuation forgiven.

    Raises InputError with the nearest names when there is none.
    """
    if not isinstance(name, str) or not name.strip():
        raise InputError("a card's name is required, such as A100-80G; `plan gpus` lists them.")
    path = specs.find("cards", name) if len(name) <= 80 else None
    if path is None:
        raise unknown_card(name)
    return _load(path)


def unknown_card(name: str) -> InputError:
    """The error for a card that is not built in: names like it, or those that share its model number."""
    shown = name if len(name) <= 60 else name[:59] + "…"
    by_key = {**specs.aliases("cards"), **specs.stems("cards")}
    keys = nearest(specs.squash(shown), by_key, count=6)
    close = list(dict.fromkeys(_load(by_key[key]).name for key in keys))[:3]
    if not close:
        return unknown("card", shown, (), "plan gpus")
    return InputError(f"unknown card '{shown}': did you mean {', '.join(close)}? `plan gpus` lists them.")


def card_names() -> list[str]:
    """Every built-in card."""
    return list(specs.names("cards"))
