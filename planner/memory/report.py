"""The result of a memory accounting: bytes of every pipeline stage, and where the peak is."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

from planner.memory.form import COMPONENTS, Component


@dataclass(frozen=True, slots=True)
class Piece:
    """One kind of piece on a stage: parameters and bytes of a single one on one rank."""

    kind: str
    """embedding, dense, moe, mtp, final_norm, head or loss."""
    count: int
    parameters: int
    saved_bytes_per_microbatch: int
    transient_bytes: int
    parameters_by_part: dict[str, int]
    saved_by_tensor: tuple[tuple[str, int], ...] = ()
    """Name and bytes of each tensor kept for the backward pass."""


@dataclass(frozen=True, slots=True)
class StageMemory:
    """One pipeline stage: what each of its ranks holds at the stage's peak [bytes]."""

    stage: int
    ranks: int
    layers: int
    parameters: int
    in_flight_microbatches: Fraction
    """In whole-stage units: chunks in flight / vpp."""
    moment: str
    """When the peak is: forward, loss, backward, recompute, optimizer step."""
    components: dict[Component, int]
    capacity_bytes: int
    rule_of_thumb_bytes: int
    host_bytes: int = 0
    """Host memory that one rank's offloaded tensors take."""
    pieces: tuple[Piece, ...] = ()
    terms: tuple[tuple[str, str, int, str], ...] = ()
    """(component, name, bytes, certainty) of each term at the peak."""
    card: str = ""
    """On a mixed cluster: the card of the stage, or of its ranks with least room; else empty."""

    @property
    def total_bytes(self) -> int:
        return sum(self.components.values())

    @property
    def allocated_bytes(self) -> int:
        return self.total_bytes - self.components["reserve"]

    @property
    def headroom_bytes(self) -> int:
        return self.capacity_bytes - self.total_bytes

    @property
    def fits(self) -> bool:
        return self.headroom_bytes >= 0

    @property
    def peak_component(self) -> Component:
        return max(COMPONENTS, key=lambda c: self.components[c])


@dataclass(frozen=True, slots=True)
class MemoryReport:
    """Every stage of a layout."""

    accounting: str
    capacity_bytes: int
    stages: tuple[StageMemory, ...]
    assumptions: tuple[str, ...] = ()
    host_bytes_per_node: int = 0
    """Host memory that a node's ranks take together, each as much as the one that takes most."""
    host_capacity_bytes: int = 0
    """What a node has; 0 where it is not known."""

    @property
    def gpus_fit(self) -> bool:
        return all(stage.fits for stage in self.stages)

    @property
    def host_fits(self) -> bool:
        """Unknown room is taken to be enough, and said."""
        return not self.host_capacity_bytes or self.host_bytes_per_node <= self.host_capacity_bytes

    @property
    def fits(self) -> bool:
        return self.gpus_fit and self.host_fits

    @property
    def peak_stage(self) -> StageMemory:
        """The stage with least headroom; the first of equals."""
        return min(self.stages, key=lambda stage: (stage.headroom_bytes, stage.stage))
