"""The contract's JSON bodies of the domain's objects. Integers are bytes, units stand in keys, keys are only added."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable

    from planner.cluster import Cluster
    from planner.layout import Layout
    from planner.memory.report import MemoryReport, Piece, StageMemory
    from planner.model import Model
    from planner.question import Question
    from planner.timing.report import StepTime
    from planner.workload import Workload

VERSION = 1
"""Of every JSON document; raised only if a key ever had to change its meaning."""


def inputs(question: Question) -> dict[str, Any]:
    """Everything that was asked, with the defaults filled in."""
    from planner.hardware import describe

    implementation = question.implementation
    return {
        "model": model(question.model),
        "cluster": describe(question.cluster),
        "workload": workload(question.workload),
        "implementation": {
            "attention": implementation.attention,
            "layer_implementation": implementation.layer_implementation,
            "cross_entropy": implementation.cross_entropy,
            "grad_reduce_bytes": implementation.grad_reduce_bytes,
            "cp_comm_type": implementation.cp_comm_type,
            "cuda_graphs": list(implementation.cuda_graphs),
            "tp_comm_overlap": implementation.tp_comm_overlap,
            "overlap_moe_expert_parallel_comm": implementation.overlap_moe_expert_parallel_comm,
            "moe_imbalance": implementation.moe_imbalance,
            "sharded_by": implementation.sharded_framework.replace("_", "-"),
            "fp8_recipe": implementation.fp8_recipe,
            "fp8_param_gather": implementation.fp8_param_gather,
            "schedule": implementation.schedule,
            "optimizer_offload_fraction": implementation.optimizer_offload_fraction,
            "offload_parameters": implementation.offload_parameters,
        },
        "accounting": question.accounting,
        "reserve_bytes": question.reserve_bytes,
        "defaults": list(question.defaults),
    }


def model(m: Model) -> dict[str, Any]:
    from planner.parameters import active_parameters, parameters

    return {
        "name": m.name,
        "parameters": parameters(m),
        "active_parameters": active_parameters(m),
        "num_layers": m.num_layers,
        "hidden_size": m.hidden_size,
        "num_heads": m.layer_kinds[0].attention.num_heads,
        "vocab_size": m.vocab_size,
        "max_positions": m.max_positions,
        "moe": m.is_moe,
    }


def workload(w: Workload) -> dict[str, Any]:
    return {
        "seq_length": w.seq_length,
        "global_batch": w.global_batch,
        "tokens_per_step": w.tokens_per_step,
        "precision": w.precision,
        "optimizer": w.optimizer,
    }


def layout(x: Layout, global_batch: int, cluster: Cluster | None = None) -> dict[str, Any]:
    """`layout` of the contract; on a mixed `cluster` with what its stages stand on."""
    body: dict[str, Any] = {
        "tp": x.tp,
        "cp": x.cp,
        "pp": x.pp,
        "vpp": x.vpp,
        "ep": x.ep,
        "etp": x.etp,
        "dp": x.dp,
        "zero": x.zero,
        "micro_batch": x.micro_batch,
        "num_microbatches": x.num_microbatches(global_batch),
        "sequence_parallel": x.sequence_parallel,
        "recompute": x.recompute.granularity,
        "stage_layers": x.stage_layers,
    }
    if x.recompute.granularity == "selective":
        body["recompute_modules"] = list(x.recompute.modules)
    if x.recompute.granularity == "full":
        body["recompute_method"] = x.recompute.method
        # where each stage has its own number, no one number says it
        body["recompute_num_layers"] = None if x.recompute.stage_layers else x.recompute.num_layers
        body["recompute_stage_layers"] = list(x.recompute.stage_layers)
    if x.hsdp_replicas > 1:
        body["hsdp_replicas"] = x.hsdp_replicas
    if cluster is not None and len(cluster.groups) > 1 and (placed := placement(x, cluster)):
        body["placement"] = placed
    return body


def placement(x: Layout, cluster: Cluster) -> list[dict[str, Any]]:
    """The kinds of nodes of a mixed cluster in the order of the ranks, each with the stages on it."""
    from planner.topology.standing import placed_runs

    return [
        {
            "kind": run.label,
            "card": run.card,
            "nodes": run.nodes,
            "gpus_per_node": run.gpus_per_node,
            "gpus": run.gpus,
            "stages": list(run.stages),
        }
        for run in placed_runs(x, cluster)
    ]


def memory(report: MemoryReport, detail: bool = False, ranks: Iterable[dict[str, Any]] | None = None) -> dict[str, Any]:
    """`memory` of the contract; `ranks` adds an entry for each GPU (`rank_entries`)."""
    peak = report.peak_stage
    body: dict[str, Any] = {
        "fits": report.fits,
        "peak_stage": peak.stage,
        "peak_component": peak.peak_component,
        "capacity_bytes": report.capacity_bytes,
        "accounting": report.accounting,
        "stages": [_stage(stage, detail) for stage in report.stages],
    }
    if report.host_bytes_per_node:
        body["host_bytes_per_node"] = report.host_bytes_per_node
        body["host_capacity_bytes_per_node"] = report.host_capacity_bytes or None
        body["host_fits"] = report.host_fits if report.host_capacity_bytes else None
    if ranks is not None:
        body["ranks"] = list(ranks)
    body["assumptions"] = list(report.assumptions)
    return body


def _stage(s: StageMemory, detail: bool) -> dict[str, Any]:
    in_flight = s.in_flight_microbatches
    body: dict[str, Any] = {
        "stage": s.stage,
        "ranks": s.ranks,
        "layers": s.layers,
        "parameters": s.parameters,
        "in_flight_microbatches": int(in_flight) if in_flight == int(in_flight) else float(in_flight),
        "peak_moment": s.moment,
        "components": dict(s.components),
        "allocated_bytes": s.allocated_bytes,
        "total_bytes": s.total_bytes,
        "headroom_bytes": s.headroom_bytes,
        "fits": s.fits,
        "rule_of_thumb_bytes": s.rule_of_thumb_bytes,
    }
    if s.capacity_bytes:
        body["capacity_bytes"] = s.capacity_bytes
    if s.card:
        body["card"] = s.card
    if s.host_bytes:
        body["host_bytes"] = s.host_bytes
    if detail:
        parts: dict[str, int] = {}
        for piece in s.pieces:
            for part, amount in piece.parameters_by_part.items():
                parts[part] = parts.get(part, 0) + amount * piece.count
        body["parameters_by_part"] = parts
        body["pieces"] = [_piece(piece) for piece in s.pieces]
        body["terms"] = [
            {"component": component, "name": name, "bytes": amount, "certainty": certainty}
            for component, name, amount, certainty in s.terms
        ]
    return body


def _piece(p: Piece) -> dict[str, Any]:
    return {
        "kind": p.kind,
        "count": p.count,
        "parameters": p.parameters,
        "saved_bytes_per_microbatch": p.saved_bytes_per_microbatch,
        "transient_bytes": p.transient_bytes,
        "parameters_by_part": dict(p.parameters_by_part),
        "saved_by_tensor": [{"name": name, "bytes": amount} for name, amount in p.saved_by_tensor],
    }


def step(s: StepTime) -> dict[str, Any]:
    return {
        "seconds": s.seconds,
        "components": dict(s.components),
        "tokens_per_second": s.tokens_per_second,
        "tokens_per_second_per_gpu": s.tokens_per_second_per_gpu,
        "model_tflops_per_gpu": s.model_tflops_per_gpu,
        "mfu": s.mfu,
        "hfu": s.hfu,
        "bubble_fraction": s.bubble_fraction,
        "lower_bound_seconds": s.lower_bound_seconds,
        "relative_error": s.relative_error,
        "assumptions": list(s.assumptions),
    }
