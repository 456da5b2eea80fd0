"""Published runs whose step was timed, as settings that both accountings read: `data/step_time.json`.

The runs are facts of the sources that it cites. A field that a source does not print takes the framework's default, as
it would for a user who does not know it either; so an error here has the unknown in it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from planner.catalog import load_model
from planner.cluster import Cluster
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, OPERATIONS, SELECTIVE, Layout, Recompute, Stage
from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE, Norm
from planner.stages import split_from_counts, split_from_layout_string, usual_split
from planner.workload import Workload

DATA = Path(__file__).parent / "data" / "step_time.json"
RECOMPUTE = {
    "none": NO_RECOMPUTE,
    "selective": SELECTIVE,
    "selective_op": Recompute("selective", (OPERATIONS,)),
    "full": FULL,
}


class Setting(NamedTuple):
    """What ran, and on what."""

    model: Model
    workload: Workload
    implementation: Implementation
    cluster: Cluster
    layout: Layout


@lru_cache(maxsize=1)
def published_data() -> dict[str, Any]:
    data: dict[str, Any] = json.loads(DATA.read_text(encoding="utf-8"))
    return data


def _model(name: str, facts: Mapping[str, Any], seq: int) -> Model:
    """A model from the compact facts of the data file; moe is [experts, top-k, expert width, shared width, dense
    layers], mla the ranks and head widths of latent attention. Or one of the catalogue, by its name."""
    if "catalog" in facts:
        return load_model(facts["catalog"])
    heads, hidden, bias = facts["heads"], facts["hidden"], facts.get("bias", False)
    attention: Attention | LatentAttention
    if "mla" in facts:
        q_rank, kv_rank, qk, rope, v = facts["mla"]
        attention = LatentAttention(heads, kv_rank, qk, rope, v, q_rank)
    else:
        dim = facts.get("head_dim") or hidden // heads
        attention = Attention(heads, facts.get("kv_heads", heads), dim, bias, bias)
    gated = facts.get("gated", False)
    kinds: tuple[Layer, ...] = (Layer(attention, MLP(facts["ffn"], gated, bias)),)
    pattern = (0,) * facts["layers"]
    if "moe" in facts:
        experts, top_k, width, shared, dense = facts["moe"]
        moe = Layer(attention, MoE(experts, top_k, MLP(width, gated, bias), MLP(shared, gated) if shared else None))
        kinds = (kinds[0], moe) if dense else (moe,)
        pattern = tuple(int(dense > 0 and i >= dense) for i in range(facts["layers"]))
    norm = facts.get("norm", "RMSNorm")
    position = facts.get("position", "rope")
    return Model(
        name=name,
        hidden_size=hidden,
        vocab_size=facts["vocab"],
        layer_kinds=kinds,
        pattern=pattern,
        norm=Norm(norm, bias=norm == "LayerNorm"),
        max_positions=seq,
        position=position,
        learned_positions=seq if position == "learned" else 0,
        tied=facts.get("tied", False),
        dropout=facts.get("dropout", 0.0),
    )


def _cluster(gpus: str, network: float | None, memory: float | None = None) -> Cluster:
    """The cluster of a run, with what its source says of the network for each GPU and of the memory [bytes/s]."""
    cluster = parse_gpus(gpus)
    if memory is not None:
        groups = tuple(replace(g, card=replace(g.card, memory_bytes_per_second=memory)) for g in cluster.groups)
        cluster = replace(cluster, groups=groups)
    if network is not None:
        cluster = replace(cluster, fabric=replace(cluster.fabric, bytes_per_second_per_gpu=network))
    return cluster


def _recompute(given: str | list[str]) -> Recompute:
    """By name, or the modules of selective recomputation."""
    return RECOMPUTE[given] if isinstance(given, str) else Recompute("selective", tuple(given))


def _layout(run: Mapping[str, Any], model: Model, gpus: int) -> Layout:
    tp, cp, pp, vpp = (run.get(name, 1) for name in ("tp", "cp", "pp", "vpp"))
    return Layout(
        tp=tp,
        cp=cp,
        pp=pp,
        vpp=vpp,
        ep=run.get("ep", 1),
        etp=run.get("etp", 1),
        dp=gpus // (tp * cp * pp),
        zero=run.get("zero", 0),
        micro_batch=run["micro_batch"],
        sequence_parallel=run.get("sp", False),
        recompute=_recompute(run.get("recompute", "none")),
        stages=_stages(run, model, pp, vpp),
    )


def _stages(run: Mapping[str, Any], model: Model, pp: int, vpp: int) -> tuple[Stage, ...]:
    """The split as the source says, by layout string or by the layers of each stage; the usual where it does not."""
    if "pipeline_layout" in run:
        return split_from_layout_string(model, run["pipeline_layout"], pp, vpp)
    return split_from_counts(model, run["layers"]) if "layers" in run else usual_split(model, pp, vpp)


def _averages(run: Mapping[str, Any]) -> bool:
    """Whether a run's launch averages gradients in their reduction (average_in_collective): recipes of Megatron-Bridge
    (src/megatron/bridge/recipes/common.py), of NeMo since 2.0 (nemo/collections/llm/recipes), and MLPerf's Llama 3.1
    (NVIDIA/benchmarks/llama31_405b/implementations/*/pretrain.py)."""
    llama = run["source"] == "mlperf" and "Llama" in run["model"]
    return llama or run["source"] in ("mbridge", "mbridge-26.02", "dgxc")


def published_runs() -> Iterator[tuple[Mapping[str, Any], Setting]]:
    """Every run: its record (id, source, model, seconds, when, ...) and its setting."""
    data = published_data()
    models: dict[tuple[str, int], Model] = {}
    for run in data["runs"]:
        key = run["model"], run["seq"]
        if key not in models:
            models[key] = _model(run["model"], data["models"][run["model"]], run["seq"])
        model = models[key]
        cluster = _cluster(run["gpus"], run.get("network"), run.get("memory"))
        workload = Workload(run["seq"], run["batch"], run.get("precision", "bf16"), run.get("optimizer", "adamw"))
        chosen = {"prescales_gradients": not _averages(run)} | run.get("implementation", {})
        fields: dict[str, Any] = {name: tuple(v) if isinstance(v, list) else v for name, v in chosen.items()}
        implementation = Implementation(**fields)
        yield run, Setting(model, workload, implementation, cluster, _layout(run, model, cluster.gpus))
