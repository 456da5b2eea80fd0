"""A layout with one thing about it changed, and how far it reaches, as tables and as data."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from planner.reports.blocks import Block, Heading, Items, Table
from planner.units import gib, percent, seconds

if TYPE_CHECKING:
    from planner.memory.megatron_estimate import MegatronEstimate
    from planner.memory.report import MemoryReport, StageMemory
    from planner.variations import Variations
    from planner.variations.limits import Changed, Limits
    from planner.variations.loss import Loss
    from planner.variations.offload import Offloaded
    from planner.variations.phases import Phase
    from planner.variations.recompute import Setting


def variations_body(variations: Variations | None) -> dict[str, Any]:
    """Entries beside `memory`; none where there are no variations."""
    if variations is None:
        return {}
    limits = variations.limits
    return {
        "phases": [{"phase": p.name, "peak_bytes": p.peak_bytes, "fits": p.fits} for p in variations.phases],
        "recompute_settings": [
            {
                "recompute": str(setting.recompute),
                "given": setting.given,
                "peak_bytes": setting.peak_bytes,
                "fits": setting.fits,
                "repeated_flops": setting.repeated,
                "step_seconds": setting.step_seconds,
            }
            for setting in variations.recompute
        ],
        "offload_settings": [
            {
                "offloaded": setting.what,
                "given": setting.given,
                "peak_bytes": setting.peak_bytes,
                "fits": setting.fits,
                "host_bytes_per_node": setting.host_bytes_per_node,
                "host_fits": setting.host_fits,
                "step_seconds": setting.step_seconds,
            }
            for setting in variations.offload
        ],
        "loss_settings": [
            {
                "cross_entropy": setting.cross_entropy,
                "given": setting.given,
                "loss_bytes": setting.loss_bytes,
                "peak_bytes": setting.peak_bytes,
                "fits": setting.fits,
                "step_seconds": setting.step_seconds,
            }
            for setting in variations.loss
        ],
        "limits": {
            "seq_length": limits.seq_length,
            "seq_unit": limits.seq_unit,
            "seq_ended_by": limits.seq_ended_by or "memory",
            "micro_batch": limits.micro_batch,
            "moe_imbalance": limits.imbalance,
        },
        "uneven_routing": [{"moe_imbalance": row.value, **_changed_body(row)} for row in variations.routing],
        "data_parallel": [{"dp": int(row.value), **_changed_body(row)} for row in variations.data_parallel],
        "megatron_estimate": _estimate_body(variations.megatron) if variations.megatron else None,
    }


def _estimate_body(estimate: MegatronEstimate) -> dict[str, Any]:
    return {
        "states_bytes": estimate.states_bytes,
        "states_bytes_before_core_0_19": estimate.states_bytes_before,
        "activation_bytes": estimate.activation_bytes,
        "total_bytes": estimate.total_bytes,
        "differences": list(estimate.differences),
    }


def _changed_body(row: Changed) -> dict[str, Any]:
    return {"given": row.given, "peak_bytes": row.peak_bytes, "fits": row.fits}


def variations_blocks(variations: Variations | None, memory: MemoryReport) -> Iterator[Block]:
    """What Megatron-LM would say of the layout, and a table for each thing that can be changed, the layout's own row
    marked."""
    if variations is None:
        return
    if variations.megatron:
        yield from _estimate_blocks(variations.megatron, memory.stages[0])
    if variations.phases:
        yield from _phase_blocks(variations.phases)
    yield from _recompute_blocks(variations.recompute)
    if len(variations.offload) > 1:
        yield from _offload_blocks(variations.offload)
    if len(variations.loss) > 1:
        yield from _loss_blocks(variations.loss)
    yield Heading("How far this layout reaches, all else as it is")
    yield Items(tuple(_reach(variations.limits)))
    if variations.routing:
        yield Heading("The same layout with uneven routing, GiB of the GPU with least room")
        yield _changes("busiest rank", [f"{row.value:g} x the mean" for row in variations.routing], variations.routing)
    if len(variations.data_parallel) > 1:
        yield Heading("More data-parallel ranks, each with its present work, GiB of the GPU with least room")
        rows = variations.data_parallel
        yield _changes("DP", [f"{int(row.value):,}" for row in rows], rows)


def _estimate_blocks(estimate: MegatronEstimate, first: StageMemory) -> Iterator[Block]:
    held = first.components
    states = sum(held[part] for part in ("weights", "gradients", "optimizer"))
    rest = first.allocated_bytes - states
    yield Heading("What Megatron-LM's own estimate says (report_theoretical_memory), GiB of a GPU of stage 0")
    rows = (
        ("weights, gradients, optimizer", gib(estimate.states_bytes), gib(states)),
        ("activations, logits, buffers", gib(estimate.activation_bytes), gib(rest)),
        ("total", gib(estimate.total_bytes), gib(first.allocated_bytes)),
    )
    yield Table(("<part", "Megatron-LM", "here"), rows)
    older = (
        f"releases before core 0.19 do not divide experts over EP: {gib(estimate.states_bytes_before)} GiB of states"
    )
    differs = estimate.states_bytes_before > 1.01 * estimate.states_bytes  # by more than its norms, divided by tp
    yield Items((*([older] if differs else []), *estimate.differences))


def _phase_blocks(phases: Sequence[Phase]) -> Iterator[Block]:
    yield Heading("The peak by phase, GiB of the GPU with least room")
    rows = tuple((phase.name, gib(phase.peak_bytes), _verdict(phase.fits)) for phase in phases)
    yield Table(("<phase", "peak", "<verdict"), rows)


def _recompute_blocks(settings: Sequence[Setting]) -> Iterator[Block]:
    own = next(i for i, setting in enumerate(settings) if setting.given)
    rows = [
        (
            str(setting.recompute),
            gib(setting.peak_bytes),
            _change(setting.peak_bytes, settings[own].peak_bytes, i == own),
            _verdict(setting.fits),
            "" if setting.repeated is None else percent(setting.repeated),
            "" if setting.step_seconds is None else seconds(setting.step_seconds),
        )
        for i, setting in enumerate(settings)
    ]
    yield Heading("The same layout with other recomputation, GiB of the GPU with least room")
    yield Table(("<recompute", "peak", "change", "<verdict", "repeated FLOPs", "step"), tuple(rows), marked=own)


def _offload_blocks(settings: Sequence[Offloaded]) -> Iterator[Block]:
    own = next(i for i, setting in enumerate(settings) if setting.given)
    rows = [
        (
            setting.what,
            gib(setting.peak_bytes),
            _change(setting.peak_bytes, settings[own].peak_bytes, i == own),
            _verdict(setting.fits),
            gib(setting.host_bytes_per_node) if setting.host_bytes_per_node else "",
            {True: "fits", False: "too much", None: "unknown"}[setting.host_fits]
            if setting.host_bytes_per_node
            else "",
            "" if setting.step_seconds is None else seconds(setting.step_seconds),
        )
        for i, setting in enumerate(settings)
    ]
    yield Heading("The same layout with more on the host, GiB of the GPU with least room and of a node's host memory")
    yield Table(("<on the host", "peak", "change", "<verdict", "host", "<there", "step"), tuple(rows), marked=own)


_LOSSES = {
    "unfused": "unfused",
    "native": "native (fused by torch.compile)",
    "te": "te (Transformer Engine's)",
    "torch": "torch (of fp32 logits)",
    "compiled": "compiled (torch.compile)",
    "liger": "liger (with the head, by chunks)",
}


def _loss_blocks(settings: Sequence[Loss]) -> Iterator[Block]:
    own = next(i for i, setting in enumerate(settings) if setting.given)
    rows = [
        (
            _LOSSES[setting.cross_entropy],
            gib(setting.loss_bytes),
            gib(setting.peak_bytes),
            _change(setting.peak_bytes, settings[own].peak_bytes, i == own),
            _verdict(setting.fits),
            "" if setting.step_seconds is None else seconds(setting.step_seconds),
        )
        for i, setting in enumerate(settings)
    ]
    yield Heading("The same layout with other cross entropies, GiB at the loss and of the GPU with least room")
    yield Table(("<cross entropy", "at the loss", "peak", "change", "<verdict", "step"), tuple(rows), marked=own)


def _reach(limits: Limits) -> Iterator[str]:
    unit = f"looked for in whole {limits.seq_unit:,}s, as many sequences a step"
    longest = f"{limits.seq_length:,} tokens" if limits.seq_length else f"none of {limits.seq_unit:,} tokens or more"
    ended = f"; a longer one breaks a rule: {limits.seq_ended_by}" if limits.seq_ended_by else ""
    yield f"longest sequence that fits: {longest} ({unit}){ended}"
    yield f"largest micro-batch that fits: {limits.micro_batch or 'none'}"
    if limits.imbalance is not None:
        yield f"most uneven routing that fits: the busiest rank gets {limits.imbalance:.2f} x the mean"


def _changes(name: str, keys: Sequence[str], rows: Sequence[Changed]) -> Table:
    own = next((i for i, row in enumerate(rows) if row.given), None)
    cells = [
        (
            key,
            gib(row.peak_bytes),
            "" if own is None else _change(row.peak_bytes, rows[own].peak_bytes, i == own),
            _verdict(row.fits),
        )
        for i, (key, row) in enumerate(zip(keys, rows, strict=True))
    ]
    return Table((name, "peak", "change", "<verdict"), tuple(cells), marked=own)


def _verdict(fits: bool) -> str:
    return "fits" if fits else "too much"


def _change(peak_bytes: int, own_bytes: int, is_own: bool) -> str:
    difference = peak_bytes - own_bytes
    return "" if is_own else f"{'+' if difference > 0 else ''}{gib(difference)}"
