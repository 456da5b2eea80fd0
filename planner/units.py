"""Numbers as people read them. Only the formats for people use these; data keeps bytes and seconds."""

from __future__ import annotations

GIB = 2**30


def gib(amount_bytes: int | float, decimals: int = 1) -> str:
    """Bytes in GiB (2**30) without the unit, which stands in the column's title."""
    text = f"{amount_bytes / GIB:,.{decimals}f}"
    return text.removeprefix("-") if float(text.replace(",", "")) == 0 else text


def size(amount_bytes: int | float) -> str:
    """Bytes in GiB with the unit."""
    return f"{gib(amount_bytes)} GiB"


def count(number: int | float) -> str:
    """A count in thousands (K), millions (M), billions (B) or trillions (T)."""
    for unit, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "K")):
        if number >= unit:
            return f"{number / unit:.2f} {letter}"
    return f"{number:,}" if isinstance(number, int) else f"{number:,.3g}"


def seconds(time_seconds: float) -> str:
    """Seconds, in milliseconds below one second."""
    if time_seconds < 1:
        return f"{time_seconds * 1000:.1f} ms"
    return f"{time_seconds:,.2f} s" if time_seconds < 100 else f"{time_seconds:,.1f} s"


def percent(fraction: float, decimals: int = 1) -> str:
    return f"{fraction * 100:.{decimals}f}%"


def rate(amount_per_second: float) -> str:
    """Bytes or floating-point operations a second, with a decimal prefix: 300 G, 312 T."""
    for unit, letter in ((1e15, "P"), (1e12, "T"), (1e9, "G"), (1e6, "M")):
        if amount_per_second >= unit:
            return f"{amount_per_second / unit:.4g} {letter}"
    return f"{amount_per_second:.4g} "


def plural(number: int, noun: str, nouns: str | None = None) -> str:
    """`1 node`, `2 nodes`."""
    return f"{number:,} {noun if number == 1 else nouns or noun + 's'}"
