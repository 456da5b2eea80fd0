"""Step times against published measurements: `plan validate --what step`.

The runs in `data/step_time.json` are facts of the sources that it cites. A field that a source does not print takes the
framework's default, as it would for a user who does not know it either; so an error here has the unknown in it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import Any

from planner.catalog import load_model
from planner.cluster import Cluster
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, SELECTIVE, Layout, Recompute, Stage
from planner.memory.activations.selective_ops import OPERATIONS
from planner.model import MLP, Attention, LatentAttention, Layer, Model, MoE, Norm
from planner.stages import split_from_counts, split_from_layout_string
from planner.timing.step import Timing
from planner.validation.ranking import Ranking, ranking
from planner.workload import Workload

DATA = Path(__file__).parent / "data" / "step_time.json"
RECOMPUTE = {
    "none": NO_RECOMPUTE,
    "selective": SELECTIVE,
    "selective_op": Recompute("selective", (OPERATIONS,)),
    "full": FULL,
}


@dataclass(frozen=True, slots=True)
class Run:
    """One measured run and its prediction."""

    id: str
    source: str
    role: str
    """fit: the constants were chosen with this source in view; check: they were not."""
    model: str
    card: str
    gpus: int
    precision: str
    layout: Layout
    measured_seconds: float
    predicted_seconds: float
    group: tuple[object, ...]
    """Runs of one group differ in layout alone."""
    mixture: bool = False
    """Of a mixture of experts."""

    @property
    def sharded(self) -> bool:
        """Weights are sharded over data parallelism (FSDP)."""
        return self.layout.zero >= 2

    @property
    def error(self) -> float:
        """Signed relative error."""
        return self.predicted_seconds / self.measured_seconds - 1


@dataclass(frozen=True, slots=True)
class StepRow:
    """Errors of the runs of one source on one kind of card."""

    source: str
    role: str
    card: str
    precision: str
    runs: int
    median_error: float
    """Median of the absolute relative errors."""
    p90_error: float
    bias: float
    """Median of the signed relative errors."""


@dataclass(frozen=True, slots=True)
class Summary:
    """Errors of a kind of run over all of its sources."""

    label: str
    role: str
    runs: int
    median_error: float
    p90_error: float
    bias: float


@dataclass(frozen=True, slots=True)
class StepValidation:
    rows: tuple[StepRow, ...]
    rankings: tuple[Ranking, ...]
    """Where a source measured several layouts of one model on one cluster."""
    left_out: Mapping[str, int]
    """Records that were not used, by reason."""
    sources: Mapping[str, str]
    """What each source is."""
    runs: tuple[Run, ...]

    @property
    def summaries(self) -> tuple[Summary, ...]:
        """What the project promises, on the sources that were fitted to and on those that were not."""
        found = []
        for label, belongs in KINDS.items():
            for role in ("fit", "check"):
                errors = [run.error for run in self.runs if run.role == role and belongs(run)]
                if errors:
                    sizes = [abs(error) for error in errors]
                    found.append(
                        Summary(label, role, len(sizes), median(sizes), percentile(sizes, 0.9), median(errors))
                    )
        return tuple(found)

    @property
    def best_first(self) -> float:
        """Share of the groups in which the layout ranked first is within 5 % of the best measured one."""
        return sum(r.regret <= 0.05 for r in self.rankings) / max(1, len(self.rankings))

    @property
    def mean_spearman(self) -> float:
        """Mean rank correlation of the groups with at least three layouts."""
        values = [r.spearman for r in self.rankings if r.layouts >= 3]
        return sum(values) / max(1, len(values))


KINDS: dict[str, Callable[[Run], bool]] = {
    "Megatron and NeMo on A100 and H100": lambda run: not run.sharded and run.card.startswith(("A100", "H100")),
    "Megatron and NeMo on Blackwell": lambda run: not run.sharded and run.card.startswith(("B", "G")),
    "fully sharded data parallel": lambda run: run.sharded,
}


def percentile(values: Iterable[float], fraction: float) -> float:
    """The value that a fraction of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))]


@lru_cache(maxsize=1)
def _data() -> dict[str, Any]:
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


def balanced_counts(layers: int, pp: int, vpp: int) -> list[list[int]]:
    """Layers of each virtual chunk of each stage; where they do not divide, embedding and loss count as one layer each
    and the rest is spread evenly (how published configurations of 61 or 126 layers are split)."""
    chunks = pp * vpp
    if layers % chunks == 0:
        return [[layers // chunks] * vpp for _ in range(pp)]
    extra = 2 if pp > 1 else 0
    whole, rest = divmod(layers + extra, chunks)
    flat = [whole + (i * rest // chunks != (i + 1) * rest // chunks) for i in range(chunks)]
    if extra:
        flat[0] -= 1
        flat[-1] -= 1
    return [flat[stage::pp] for stage in range(pp)]


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
    """The split as the source says, by layout string or by the layers of each stage; balanced where it does not."""
    if "pipeline_layout" in run:
        return split_from_layout_string(model, run["pipeline_layout"], pp, vpp)
    counts = [[n] for n in run["layers"]] if "layers" in run else balanced_counts(model.num_layers, pp, vpp)
    return split_from_counts(model, counts)


def predicted_runs() -> list[Run]:
    """Every measured run with its prediction."""
    data = _data()
    models: dict[tuple[str, int], Model] = {}
    runs = []
    for run in data["runs"]:
        key = run["model"], run["seq"]
        if key not in models:
            models[key] = _model(run["model"], data["models"][run["model"]], run["seq"])
        model = models[key]
        cluster = _cluster(run["gpus"], run.get("network"), run.get("memory"))
        layout = _layout(run, model, cluster.gpus)
        workload = Workload(run["seq"], run["batch"], run.get("precision", "bf16"), run.get("optimizer", "adamw"))
        chosen = run.get("implementation", {})
        implementation = Implementation(**chosen | {"cuda_graphs": tuple(chosen.get("cuda_graphs", ()))})
        step = Timing(model, workload, implementation, cluster).step(layout)
        release = run["id"].split("-")[1] if run["source"].startswith(("mbridge", "dgxc")) else run.get("when", "")
        runs.append(
            Run(
                id=run["id"],
                source=run["source"],
                role=data["sources"][run["source"]]["role"],
                model=run["model"],
                card=cluster.card.name,
                gpus=cluster.gpus,
                precision=workload.precision,
                layout=layout,
                measured_seconds=run["seconds"],
                predicted_seconds=step.seconds,
                group=(run["source"], release, run["model"], run["gpus"], run["batch"], run["seq"], workload.precision),
                mixture=model.is_moe,
            )
        )
    return runs


def validate_step() -> StepValidation:
    """Errors by source, card and precision, and how well layouts of one model are ranked."""
    data = _data()
    runs = predicted_runs()
    tables: dict[tuple[str, str, str, str], list[float]] = {}
    for run in runs:
        tables.setdefault((run.source, run.role, run.card, run.precision), []).append(run.error)
    rows = tuple(
        StepRow(
            *key,
            runs=len(errors),
            median_error=median(map(abs, errors)),
            p90_error=percentile(map(abs, errors), 0.9),
            bias=median(errors),
        )
        for key, errors in sorted(tables.items())
    )
    groups: dict[tuple[object, ...], list[Run]] = {}
    for run in runs:
        groups.setdefault(run.group, []).append(run)
    rankings = tuple(
        r
        for key, members in groups.items()
        if (r := ranking(key, [(m.layout, m.predicted_seconds, m.measured_seconds) for m in members]))
    )
    sources = {name: source["cite"] for name, source in data["sources"].items()}
    return StepValidation(rows, rankings, data["left_out"], sources, tuple(runs))
