"""A cluster as plain data: for reports, for plan files, and as a hash that tells whether a spec has changed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields
from typing import Any

from planner.cluster import Card, Cluster, NodeGroup


def describe(cluster: Cluster) -> dict[str, Any]:
    """What a report says of a cluster, JSON-able; `card` is the card as it was understood."""
    card, fabric = cluster.card, cluster.fabric
    return {
        "name": cluster.name,
        "gpus": cluster.gpus,
        "card": card.name,
        "nodes": sum(group.nodes for group in cluster.groups),
        "gpus_per_node": cluster.gpus_per_node,
        "capacity_bytes": cluster.capacity_bytes,
        "reserve_bytes": cluster.reserve_bytes,
        "groups": [_group(group) for group in cluster.groups],
        "network": {
            "kind": fabric.kind,
            "bytes_per_second_per_gpu": fabric.bytes_per_second_per_gpu,
            "latency_seconds": fabric.latency_seconds,
            "oversubscription": fabric.oversubscription,
            "nodes_per_leaf": fabric.nodes_per_leaf,
            "rail_optimised": fabric.rail_optimised,
        },
        "calibrated": bool(cluster.calibration),
        "source": cluster.source,
        "sha256": spec_hash(cluster),
    }


def _group(group: NodeGroup) -> dict[str, Any]:
    card = group.card
    own = group.network_bytes_per_second
    return {
        "card": card.name,
        "nodes": group.nodes,
        "gpus_per_node": group.gpus_per_node,
        "scale_up": card.scale_up,
        "scale_up_domain": group.domain,
        "scale_up_bytes_per_second": card.scale_up_bytes_per_second,
        "memory_bytes_per_second": card.memory_bytes_per_second,
        "sold_bytes": card.sold_bytes,
        "capacity_bytes": card.capacity_bytes,
        "reserve_bytes": card.reserve_bytes,
        "flops_per_second": dict(card.flops),
        **({"network_bytes_per_second": own} if own else {}),
    }


def describe_card(card: Card) -> dict[str, Any]:
    """Every figure of a card with its source, JSON-able."""
    plain = {f.name: getattr(card, f.name) for f in fields(card)}
    return plain | {"flops": dict(card.flops), "aliases": list(card.aliases), "sources": dict(card.sources)}


def spec_hash(cluster: Cluster) -> str:
    """SHA-256 [hex] of everything in the spec that a plan depends on: figures, not names of files or sources."""
    groups = []
    for group in cluster.groups:
        figures = describe_card(group.card)
        plain = {k: v for k, v in figures.items() if k not in ("aliases", "sources", "vendor")}
        own = [group.network_bytes_per_second] if group.network_bytes_per_second else []
        groups.append([plain, group.nodes, group.gpus_per_node, group.domain, *own])
    content = {
        "groups": groups,
        "fabric": asdict(cluster.fabric),
        "calibration": dict(cluster.calibration),
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()
