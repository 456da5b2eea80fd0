"""Amounts as people write them: tokens, durations, counts of GPUs, prices. Each parser returns a value or raises
InputError with one sentence."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from math import isfinite

from planner.errors import InputError

TOKENS = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "t": 10**12}
SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 7 * 86_400, "y": 365 * 86_400}
MOST_TOKENS = 10**18
MOST_COUNTS = 64
"""Counts of GPUs in one sweep."""
MOST_GPUS = 1_000_000

_NUMBER = r"([0-9]{1,18}(?:\.[0-9]{1,9})?(?:e[0-9]{1,2})?)"


def parse_tokens(text: str) -> int:
    """`15T`, `300B`, `2.5e12`, `1_000_000`: tokens."""
    match = re.fullmatch(rf"{_NUMBER}\s*([kmbt]?)(?:\s*tokens?)?", _plain(text).replace(",", ""))
    amount = round(float(match[1]) * TOKENS[match[2]]) if match else 0
    if not 1 <= amount <= MOST_TOKENS:
        raise InputError(f"a number of tokens such as 15T, 300B or 2.5e12 is required, but '{_short(text)}' was given.")
    return amount


def parse_duration(text: str) -> float:
    """`30d`, `12h`, `6w`, `1.5y`: seconds. A unit is required, as a bare number could be hours as well as days."""
    match = re.fullmatch(rf"{_NUMBER}\s*(s|m|h|d|w|y)[a-z]*", _plain(text))
    value = float(match[1]) * SECONDS[match[2]] if match else 0.0
    if not 0 < value < 1e12:
        raise InputError(
            f"a duration with its unit such as 30d, 12h or 6w is required, but '{_short(text)}' was given."
        )
    return value


def parse_fraction(text: str) -> float:
    """`0.95` or `95%`: a share greater than 0 and at most 1."""
    return _share(text, above_zero=True)


def parse_error(text: str) -> float:
    """`0.08` or `8%`: a relative error of at least 0 and less than 1."""
    value = _share(text, above_zero=False)
    if value >= 1:
        raise InputError(f"an error of less than 100% such as 8% or 0.08 is required, but '{_short(text)}' was given.")
    return value


def _share(text: str, above_zero: bool) -> float:
    match = re.fullmatch(rf"{_NUMBER}\s*(%?)", _plain(text))
    value = float(match[1]) / (100 if match[2] else 1) if match else -1.0
    if not 0 <= value <= 1 or (above_zero and value == 0):
        raise InputError(f"a share such as 0.95 or 95% is required, but '{_short(text)}' was given.")
    return value


def parse_counts(text: str) -> tuple[int, ...]:
    """`64,128,256`: counts of GPUs, ascending, without repetitions."""
    items = [item.strip() for item in text.split(",")]
    if not all(re.fullmatch(r"[0-9]{1,7}", item) and 1 <= int(item) <= MOST_GPUS for item in items):
        raise InputError(f"counts of GPUs such as 64,128,256 are required, but '{_short(text)}' was given.")
    counts = tuple(sorted({int(item) for item in items}))
    if len(counts) > MOST_COUNTS:
        raise InputError(f"at most {MOST_COUNTS} counts of GPUs are swept at once, but {len(counts)} were given.")
    return counts


def parse_range(text: str) -> tuple[int, ...]:
    """`64-1024`: 64 and its doublings up to 1024; the end is always included."""
    match = re.fullmatch(r"\s*([0-9]{1,7})\s*(?:-|\.\.)\s*([0-9]{1,7})\s*", text)
    first, last = (int(match[1]), int(match[2])) if match else (0, 0)
    if not 1 <= first <= last <= MOST_GPUS:
        raise InputError(f"a range of GPUs such as 64-1024 is required, but '{_short(text)}' was given.")
    counts = []
    while first < last:
        counts.append(first)
        first *= 2
    return (*counts, last)


@dataclass(frozen=True, slots=True)
class Prices:
    """The price of one GPU for one hour, for every card or by the card's name; `currency` is as it was written."""

    currency: str = ""
    every: float | None = None
    by_card: Mapping[str, float] | None = None

    def of(self, card: str) -> float | None:
        """The price of an hour of this card; None where none was given."""
        return self.every if self.by_card is None else self.by_card.get(card)


def parse_prices(text: str) -> Prices:
    """`2.5`, `$2.5`, or `A100-80G=1.8,H100-80G=3.2` with cards by any name that is understood."""
    from planner.hardware import load_card

    prices: dict[str, float] = {}
    currencies = set()
    items = [item.strip() for item in text.split(",")]
    for item in items:
        name, equals, figure = item.rpartition("=")
        match = re.fullmatch(rf"([$€£]?)\s*{_NUMBER}\s*([a-zA-Z]{{3}})?", figure.strip())
        value = float(match[2]) if match else -1.0
        if match is None or not isfinite(value) or value <= 0 or bool(equals) != (len(items) > 1 or "=" in text):
            raise InputError(
                "a price of one GPU-hour such as 2.5, or one for each card such as A100-80G=1.8,H100-80G=3.2, "
                f"is required, but '{_short(text)}' was given."
            )
        currencies.add(match[1] or (match[3] or "").upper())
        key = load_card(name).name if equals else ""
        if key in prices:
            raise InputError(f"one price for each card is required, but {key} has two in '{_short(text)}'.")
        prices[key] = value
    if len(currencies) > 1:
        raise InputError(f"prices must be in one currency, but '{_short(text)}' has several.")
    currency = currencies.pop()
    return Prices(currency, prices[""]) if "" in prices else Prices(currency, by_card=prices)


def _plain(text: str) -> str:
    return text.strip().lower().replace("_", "")


def _short(text: str) -> str:
    return text if len(text) <= 60 else text[:59] + "…"
