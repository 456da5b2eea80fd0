"""What the user pinned and what is left to the search."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

from planner.layout import Granularity


@dataclass(frozen=True, slots=True)
class Pins:
    """The allowed values of each choice: None leaves it free, one value pins it, several restrict it.

    `sequence_parallel` None switches it on wherever tp > 1 and the sequence divides. `stage_layers` fixes the stage
    split. `recompute` names granularities: under "full" the search decides how many layers each stage recomputes.
    `placement` fixes the order of a mixed cluster's kinds of nodes.
    """

    tp: tuple[int, ...] | None = None
    cp: tuple[int, ...] | None = None
    pp: tuple[int, ...] | None = None
    vpp: tuple[int, ...] | None = None
    ep: tuple[int, ...] | None = None
    etp: tuple[int, ...] | None = None
    dp: tuple[int, ...] | None = None
    zero: tuple[int, ...] | None = None
    micro_batch: tuple[int, ...] | None = None
    recompute: tuple[Granularity, ...] | None = None
    sequence_parallel: tuple[bool, ...] | None = None
    stage_layers: Sequence[int] | Sequence[Sequence[int]] | None = None
    placement: tuple[int, ...] | None = None
    hsdp_replicas: tuple[int, ...] | None = None
    recompute_modules: tuple[tuple[str, ...], ...] | None = None
    """The sets of modules that selective recomputation may name."""

    @property
    def pinned(self) -> tuple[str, ...]:
        """Names of the choices that are not free."""
        return tuple(f.name for f in fields(self) if getattr(self, f.name) is not None)


FREE = Pins()
