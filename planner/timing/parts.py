"""What the integers of a step are made of: parts by component, what stages share, and what a form depends on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

from planner.layout import Layout
from planner.model import Model
from planner.timing import tails
from planner.timing.form import StepForm, Tail, nanoseconds
from planner.timing.shard import Shard, recomputed_modules
from planner.timing.split import ends
from planner.timing.traffic import Links

Parts = dict[str, int]
"""Nanoseconds by component."""


@dataclass(frozen=True, slots=True)
class LayerParts:
    """One layer of a kind for one microbatch, by component; and the seconds that hide data-parallel traffic."""

    normal: Parts
    recompute: Parts
    forward: float
    backward: float
    weight_gradients: float
    """Of backward: what a schedule may put off."""
    normal_ns: int
    recompute_ns: int


@dataclass(frozen=True, slots=True)
class Timed:
    """A form with what its integers are made of. Stages alike share their StageTime and parts."""

    form: StepForm
    fixed: tuple[Parts, ...]
    layers: tuple[LayerParts, ...]
    once: Parts
    stage_layers: tuple[tuple[LayerParts, ...], ...] = ()
    """[stage][kind] where stages stand on different cards; else empty, and `layers` are those of every stage."""


class End(NamedTuple):
    """What a stage has beside its layers and its sends, whatever the number of virtual stages."""

    fixed: Parts
    """Once a microbatch; without the wait for the slowest rank, which is of all that the stage does."""
    fixed_ns: int
    alone_ns: int
    """All of it with that wait: on the one chunk that has it."""
    tails: tuple[Tail | tails.Hidden, ...]
    """What its parameters cost after the pipeline, or in it where nothing hides them."""


@dataclass(frozen=True, slots=True)
class Common:
    """What the forms of a layout share whatever its number of virtual stages; [kind] where a tuple."""

    shard: Shard
    links: Links
    wait: float
    """Share by which all passes take longer, because every rank waits for the slowest."""
    layers: tuple[LayerParts, ...]
    layer_ns: tuple[int, ...]
    recompute_ns: tuple[int, ...]
    parameters: tuple[tuple[int, int], ...]
    rates: tails.Rates
    ends: dict[tuple[bool, ...], End]
    """By what the stage holds; filled as it is asked for."""


class Role(NamedTuple):
    """What a stage has beside its layers."""

    embedding: bool
    mtp: bool
    loss: bool
    neighbours: int
    """Stages with which it exchanges activations."""


def delayed(layer: LayerParts, wait: float) -> LayerParts:
    """A layer whose passes take longer by a share, because every rank waits for the slowest."""
    if not wait:
        return layer
    normal = {**layer.normal, "stragglers": nanoseconds(wait * 1e-9 * layer.normal_ns)}
    again = {**layer.recompute, "stragglers": nanoseconds(wait * 1e-9 * layer.recompute_ns)}
    totals = layer.normal_ns + normal["stragglers"], layer.recompute_ns + again["stragglers"]
    return replace(layer, normal=normal, recompute=again, normal_ns=totals[0], recompute_ns=totals[1])


def form_key(model: Model, layout: Layout) -> tuple[object, ...]:
    """All of a layout that its form depends on, but for what its stages stand on."""
    return (
        layout.tp,
        layout.cp,
        layout.pp,
        layout.vpp,
        layout.ep,
        layout.etp,
        layout.dp,
        layout.zero,
        layout.micro_batch,
        layout.sequence_parallel,
        layout.hsdp_replicas,
        recomputed_modules(layout),
        layout.recompute.distribute_saved_activations,
        layout.recompute.granularity == "full" if model.mtp_num_layers else None,
        ends(model, layout),
    )
