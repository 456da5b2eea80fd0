"""Amounts as people write them."""

from __future__ import annotations

import pytest

from planner.capacity import quantities
from planner.errors import InputError


@pytest.mark.parametrize(
    ("text", "tokens"),
    [("15T", 15 * 10**12), ("300B", 3 * 10**11), ("2.5e12", 25 * 10**11), ("1_000_000", 10**6), ("1.5 t", 15 * 10**11)],
)
def test_tokens(text: str, tokens: int) -> None:
    """Decimal letters, exponents and underscores all mean what they say."""
    assert quantities.parse_tokens(text) == tokens


@pytest.mark.parametrize(
    ("text", "seconds"), [("30d", 2_592_000), ("12h", 43_200), ("2w", 1_209_600), ("90 days", 7_776_000)]
)
def test_durations(text: str, seconds: float) -> None:
    """A unit is a letter or the word that begins with it."""
    assert quantities.parse_duration(text) == seconds


def test_counts_and_ranges() -> None:
    """Counts come sorted and once; a range doubles and keeps its end."""
    assert quantities.parse_counts("128, 64,64") == (64, 128)
    assert quantities.parse_range("64-300") == (64, 128, 256, 300)
    assert quantities.parse_range("8-8") == (8,)


def test_prices() -> None:
    """One price is every card's; named ones are found by the card's own name."""
    assert quantities.parse_prices("$2.5").of("anything") == 2.5
    assert quantities.parse_prices("$2.5").currency == "$"
    named = quantities.parse_prices("a100-80gb=1.8,H100=3.2")
    assert named.of("A100-80G") == 1.8
    assert named.of("H100-80G") == 3.2
    assert named.of("V100-32G") is None


def test_shares_and_errors() -> None:
    """A percentage and a fraction are the same."""
    assert quantities.parse_fraction("95%") == quantities.parse_fraction("0.95") == 0.95
    assert quantities.parse_error("0") == 0


@pytest.mark.parametrize(
    ("parse", "text"),
    [
        ("tokens", "many"), ("tokens", "0"), ("tokens", "-3T"), ("tokens", "9e99"), ("tokens", "15Q"), ("tokens", ""),
        ("duration", "30"), ("duration", "0d"), ("duration", "soon"), ("duration", "1e99y"),
        ("counts", "8,x"), ("counts", "0"), ("counts", "8,"), ("counts", ",".join(map(str, range(1, 100)))),
        ("range", "64"), ("range", "64-8"), ("range", "0-8"),
        ("prices", "free"), ("prices", "0"), ("prices", "1,2"), ("prices", "A100-80G=1,2"),
        ("prices", "A100=1,A100-80GB=2"), ("prices", "Z9000=1"), ("prices", "A100-80G=$1,H100=€2"),
        ("fraction", "0"), ("fraction", "1.5"), ("fraction", "x"), ("error", "100%"), ("error", "-1%"),
    ],
)  # fmt: skip
def test_junk_is_one_sentence(parse: str, text: str) -> None:
    """What cannot be read is refused by a sentence that names what was given."""
    with pytest.raises(InputError) as error:
        getattr(quantities, f"parse_{parse}")(text)
    assert "\n" not in str(error.value)
    assert str(error.value).endswith(".")
