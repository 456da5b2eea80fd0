"""What each setting of recomputation makes of a layout, as a table and as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.reports.blocks import Block, Heading, Table
from planner.units import gib, percent, seconds

if TYPE_CHECKING:
    from planner.recompute_settings import Setting


def recompute_body(settings: Sequence[Setting]) -> list[dict[str, Any]]:
    """An entry for each setting."""
    return [
        {
            "recompute": str(setting.recompute),
            "given": setting.given,
            "peak_bytes": setting.peak_bytes,
            "fits": setting.fits,
            "repeated_flops": setting.repeated,
            "step_seconds": setting.step_seconds,
        }
        for setting in settings
    ]


def recompute_blocks(settings: Sequence[Setting]) -> Iterator[Block]:
    """A row for each setting; the layout's own is marked."""
    own = next(i for i, setting in enumerate(settings) if setting.given)
    rows = [
        (
            str(setting.recompute),
            gib(setting.peak_bytes),
            _change(setting.peak_bytes - settings[own].peak_bytes) if i != own else "",
            "fits" if setting.fits else "too much",
            "" if setting.repeated is None else percent(setting.repeated),
            "" if setting.step_seconds is None else seconds(setting.step_seconds),
        )
        for i, setting in enumerate(settings)
    ]
    yield Heading("The same layout with other recomputation, GiB of the fullest GPU")
    yield Table(("<recompute", "peak", "change", "<verdict", "repeated FLOPs", "step"), tuple(rows), marked=own)


def _change(difference_bytes: int) -> str:
    return f"{'+' if difference_bytes > 0 else ''}{gib(difference_bytes)}"
