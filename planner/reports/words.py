"""Layouts, models and clusters in words: the reading that a user checks before believing any number."""

from __future__ import annotations

from typing import TYPE_CHECKING

from planner.reports.units import count, percent, plural, rate, size

if TYPE_CHECKING:
    from planner.cluster import Cluster
    from planner.commands.question import Question
    from planner.layout import Layout
    from planner.model import Attention, LatentAttention, Layer, Model

_LINKS = {
    "nvlink": "NVLink",
    "pcie": "PCIe",
    "xgmi": "Infinity Fabric",
    "hccs": "HCCS",
    "roce": "RoCE",
    "none": "no link",
}
_NETWORKS = {"infiniband": "InfiniBand", "ethernet": "Ethernet", "none": "no network"}


def layout_words(layout: Layout) -> str:
    """`TP 2 · PP 4 · DP 1 · ZeRO 1 · micro-batch 1`; degrees that are rarely used appear when they are."""
    words = [f"TP {layout.tp}"]
    if layout.cp > 1:
        words.append(f"CP {layout.cp}")
    words.append(f"PP {layout.pp}")
    if layout.vpp > 1:
        words.append(f"VPP {layout.vpp}")
    words.append(f"DP {layout.dp}")
    if layout.ep > 1 or layout.etp > 1:
        words.append(f"EP {layout.ep} x expert TP {layout.etp}")
    words += [f"ZeRO {layout.zero}", f"micro-batch {layout.micro_batch}"]
    if layout.recompute.granularity != "none":
        words.append(f"recompute {layout.recompute}")
    return " · ".join(words)


def split_words(layout: Layout) -> str:
    """The stage split, equal neighbours folded: `10 x 4 layers`, or chunk by chunk under virtual stages."""
    if not layout.stages:
        return "undecided"
    rows = ["+".join(str(chunk.num_layers) for chunk in stage) for stage in layout.stages]
    if len(set(rows)) == 1:
        return f"{rows[0]} layers on " + ("the only stage" if len(rows) == 1 else f"each of {len(rows)} stages")
    return ", ".join(f"{row}" if n == 1 else f"{n} x {row}" for row, n in _runs(rows)) + " layers"


def _runs(values: list[str]) -> list[tuple[str, int]]:
    runs: list[tuple[str, int]] = []
    for value in values:
        if runs and runs[-1][0] == value:
            runs[-1] = (value, runs[-1][1] + 1)
        else:
            runs.append((value, 1))
    return runs


def model_words(model: Model) -> str:
    """Name, parameters and shape of a model."""
    from planner.parameters import active_parameters, parameters

    total, active = parameters(model), active_parameters(model)
    words = [f"{model.name}: {count(total)} parameters"]
    if active != total:
        words[0] += f" ({count(active)} active)"
    words += [f"{model.num_layers} layers", f"hidden {model.hidden_size}", _attention_words(model.layer_kinds)]
    experts = next((kind.mlp for kind in model.layer_kinds if kind.kind == "moe"), None)
    if experts is not None:
        words.append(f"{experts.num_experts} experts, top {experts.top_k}")  # type: ignore[union-attr]
    words.append(f"vocabulary {model.vocab_size:,}")
    return ", ".join(words)


def _attention_words(kinds: tuple[Layer, ...]) -> str:
    from planner.model import LatentAttention

    attention: Attention | LatentAttention = kinds[0].attention
    if isinstance(attention, LatentAttention):
        return f"{attention.num_heads} heads (latent attention)"
    if attention.num_query_groups != attention.num_heads:
        return f"{attention.num_heads} heads in {attention.num_query_groups} groups"
    return f"{attention.num_heads} heads"


def cluster_words(cluster: Cluster) -> str:
    """GPUs, nodes and links of a cluster in full words."""
    groups = " + ".join(
        f"{group.gpus} x {group.card.name} ({plural(group.nodes, 'node')} of {group.gpus_per_node})"
        for group in cluster.groups
    )
    card = cluster.card
    words = [groups]
    if cluster.gpus > 1:
        words.append(f"{_LINKS[card.scale_up]} {rate(card.scale_up_bytes_per_second)}B/s")
    if sum(group.nodes for group in cluster.groups) > 1:
        network = rate(cluster.fabric.bytes_per_second_per_gpu)
        words.append(f"{_NETWORKS[cluster.fabric.kind]} {network}B/s a GPU")
    return ", ".join(words)


def memory_words(question: Question, capacity_bytes: int) -> str:
    """What a GPU offers and what is kept free of it."""
    if question.accounting == "rule-of-thumb":
        return f"{size(capacity_bytes)} a GPU as sold (decimal gigabytes), reserve {size(question.reserve_bytes)}"
    return f"{size(capacity_bytes)} a GPU, of which {size(question.reserve_bytes)} stay reserved"


_KERNELS = {
    "auto": "Transformer Engine's choice of attention",
    "flash": "flash attention",
    "fused": "cuDNN attention",
    "unfused": "unfused attention",
}


def workload_words(question: Question) -> str:
    """Sequence, batch and precision."""
    w = question.workload
    return (
        f"{w.global_batch:,} sequences of {w.seq_length:,} tokens a step ({w.tokens_per_step / 1e6:.2f} M tokens), "
        f"{w.precision}, {w.optimizer}, {_KERNELS[question.implementation.attention]}"
    )


def margin_words(fraction: float) -> str:
    """How far behind a layout is."""
    return "equally fast" if fraction < 5e-5 else f"{percent(fraction)} slower"
