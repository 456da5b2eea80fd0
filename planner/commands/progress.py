"""One line on stderr that shows that a long search is alive: only on a terminal, only after a second."""

from __future__ import annotations

import os
import sys
import time
from types import TracebackType

PATIENCE_SECONDS = 1.0
INTERVAL_SECONDS = 0.1


class Progress:
    """Call it with what there is to say; it prints at most ten times a second and cleans up after itself."""

    def __init__(self, unit: str = "candidates") -> None:
        self._unit = unit
        self._started = self._printed = time.monotonic()
        self._width = 0
        self._live = sys.stderr is not None and sys.stderr.isatty() and os.environ.get("TERM") != "dumb"

    def __enter__(self) -> Progress:
        return self

    def __call__(self, done: int = 0, total: int = 0, note: str = "") -> None:
        """`done` of `total` candidates (or what `unit` names) judged (total 0: unknown)."""
        now = time.monotonic()
        if not self._live or now - self._started < PATIENCE_SECONDS or now - self._printed < INTERVAL_SECONDS:
            return
        self._printed = now
        text = f"searching: {done:,}" + (f" of {total:,} {self._unit}" if total else f" {self._unit}")
        text += f", {now - self._started:.0f} s" + (f", {note}" if note else "")
        sys.stderr.write("\r" + text.ljust(self._width))
        sys.stderr.flush()
        self._width = len(text)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._width:
            sys.stderr.write("\r" + " " * self._width + "\r")
            sys.stderr.flush()
