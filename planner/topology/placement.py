"""Which rank sits where, and who talks to whom: Megatron's order tp-cp-ep-dp-pp.

`megatron/core/parallel_state.py: RankGenerator, initialize_model_parallel`: tensor parallelism varies fastest, then
context, then data, then pipeline. The experts' generator uses the same order over expert-tensor, expert, expert-data
and pipeline, so the pipeline groups of both agree.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from planner.cluster import Cluster
from planner.errors import InputError
from planner.layout import Layout
from planner.topology.kinds import arranged


class Progression(NamedTuple):
    """One kind of communicator: `size` ranks, `stride` apart."""

    stride: int
    size: int

    def groups(self, world: int) -> Iterator[range]:
        """Every communicator of this kind, by rank: those that tile the world, or else the one pair per first rank."""
        block = self.stride * self.size
        if world % block:
            for first in range(world - self.stride):
                yield range(first, first + block, self.stride)
            return
        for start in range(0, world, block):
            for first in range(start, start + self.stride):
                yield range(first, first + block, self.stride)


@dataclass(frozen=True, slots=True)
class Place:
    """Where one rank is: the node and the GPU within it, and its coordinate along each dimension."""

    rank: int
    node: int
    gpu: int
    tp: int
    cp: int
    dp: int
    pp: int
    ep: int
    etp: int
    card: str


def communicators(layout: Layout) -> dict[str, Progression]:
    """Every kind of communicator of a layout.

    dp_cp is what reduces dense gradients, edp what reduces the experts' (`get_data_parallel_group(with_context_parallel
    =True)`, `get_expert_data_parallel_group`); etp_ep spans a token dispatcher's all-gather; embedding ties the first
    and the last stage; shard and replicate are what hsdp_replicas makes of dp_cp.
    """
    tp, cp, dp, pp, ep, etp = layout.tp, layout.cp, layout.dp, layout.pp, layout.ep, layout.etp
    if not layout.expert_layout_divides:
        raise InputError(
            f"tp x cp x dp ({tp * cp * dp}) must be divisible by etp x ep ({etp * ep}), for experts use the same GPUs."
        )
    stage = tp * cp * dp
    replicas = layout.hsdp_replicas
    sharded = max(1, dp * cp // replicas)
    return {
        "tp": Progression(1, tp),
        "cp": Progression(tp, cp),
        "tp_cp": Progression(1, tp * cp),
        "dp": Progression(tp * cp, dp),
        "dp_cp": Progression(tp, cp * dp),
        "shard": Progression(tp, sharded),
        "replicate": Progression(tp * sharded, replicas),
        "pp": Progression(stage, pp),
        "embedding": Progression(stage * (pp - 1), 2) if pp > 1 else Progression(stage, 1),
        "etp": Progression(1, etp),
        "ep": Progression(etp, ep),
        "etp_ep": Progression(1, etp * ep),
        "edp": Progression(etp * ep, layout.edp),
    }


def check_room(layout: Layout, cluster: Cluster) -> None:
    """Raise InputError when the layout wants more GPUs than the cluster has."""
    if layout.world_size > cluster.gpus:
        raise InputError(
            f"tp x cp x dp x pp ({layout.world_size}) must not exceed the {cluster.gpus} GPUs of {cluster.name}."
        )


def place_ranks(layout: Layout, cluster: Cluster) -> Iterator[Place]:
    """Every rank's place, in rank order. A generator: 100 000 ranks need no memory.

    Ranks fill nodes in the order in which the cluster lists them, or a mixed cluster's in the layout's placement, one
    process for each GPU (torchrun's order).
    """
    check_room(layout, cluster)
    cluster = arranged(cluster, layout.placement)
    tp, cp, dp, ep, etp = layout.tp, layout.cp, layout.dp, layout.ep, layout.etp
    world = layout.world_size
    rank = node = 0
    for group in cluster.groups:
        for _ in range(group.nodes):
            for gpu in range(group.gpus_per_node):
                if rank == world:
                    return
                yield Place(
                    rank,
                    node,
                    gpu,
                    tp=rank % tp,
                    cp=rank // tp % cp,
                    dp=rank // (tp * cp) % dp,
                    pp=rank // (tp * cp * dp),
                    ep=rank // etp % ep,
                    etp=rank % etp,
                    card=group.card.name,
                )
                rank += 1
            node += 1
