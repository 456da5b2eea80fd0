"""How `plan compare` names fields and values: JSON keeps the keys, people read words."""

from __future__ import annotations

from typing import Any

from planner.units import size

LABELS = {
    "capacity_bytes": "memory of a GPU",
    "seq_length": "sequence length",
    "global_batch": "global batch",
    "cross_entropy": "cross entropy",
    "cp_comm_type": "context-parallel exchange",
    "tp_comm_overlap": "tensor-parallel overlap",
    "overlap_moe_expert_parallel_comm": "expert-parallel overlap",
    "moe_imbalance": "imbalance of the experts",
    "sharded_by": "sharded by",
    "fp8_recipe": "fp8 recipe",
    "fp8_param_gather": "weights gathered in fp8",
    "reserve_bytes": "reserve",
    **{degree: degree.upper() for degree in ("tp", "cp", "pp", "vpp", "ep", "etp", "dp")},
    "zero": "ZeRO",
    "micro_batch": "micro-batch",
    "num_microbatches": "microbatches a step",
    "sequence_parallel": "sequence parallelism",
    "recompute": "recomputation",
    "stage_layers": "layers of each stage",
    "recompute_modules": "recomputed modules",
    "recompute_method": "method of recomputation",
    "recompute_num_layers": "recomputed layers",
    "recompute_stage_layers": "recomputed layers of each stage",
    "hsdp_replicas": "replicas of the shards",
    "placement": "nodes in order",
    "tokens_per_second": "tokens/s",
    "tokens_per_second_per_gpu": "tokens/s a GPU",
    "mfu": "MFU",
    "gpu_seconds_per_million_tokens": "GPU-seconds per million tokens",
}
"""Keys of the JSON that are no words of a person's."""


def label(name: str) -> str:
    """The words for a key; a key of a later version as well as it goes."""
    return LABELS.get(name, name.replace("_", " "))


def word(name: str, value: Any) -> str:
    """A value of a question or a layout."""
    if value is None:
        return ""
    if isinstance(value, bool):
        return "on" if value else "off"
    if name.endswith("_bytes") and isinstance(value, int):
        return size(value)
    if isinstance(value, list):
        return ",".join("+".join(map(str, v)) if isinstance(v, list) else _one(v) for v in value)
    return str(value)


def _one(value: Any) -> str:
    """An entry of a list; of a placement, the nodes that it stands for."""
    if isinstance(value, dict):
        return f"{value.get('nodes')}x{value.get('gpus_per_node')}x{value.get('card')}"
    return str(value)
