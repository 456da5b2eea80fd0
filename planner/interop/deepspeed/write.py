"""The planner's objects as a DeepSpeed configuration.

The pipeline degree, experts and the model itself are the training script's, not the configuration's.
"""

from __future__ import annotations

from typing import Any

from planner.errors import NotModelled
from planner.implementation import DeepSpeedZero, Implementation
from planner.layout import Layout
from planner.workload import Workload

_OPTIMIZERS: dict[str, dict[str, Any]] = {
    "adamw": {"type": "AdamW", "params": {}},
    "sgd": {"type": "SGD", "params": {}},
    "sgd-momentum": {"type": "SGD", "params": {"momentum": 0.9}},
    "muon": {"type": "Muon", "params": {}},
}


def deepspeed_config(workload: Workload, implementation: Implementation, layout: Layout) -> dict[str, Any]:
    """The configuration as a mapping for `json.dump`; `launch_from_config` reads it back. Raises NotModelled for what
    DeepSpeed's configuration cannot say."""
    for present, what in (
        (layout.cp > 1, "context parallelism"),
        (layout.vpp > 1, "virtual pipeline stages"),
        (layout.recompute.granularity == "selective", "selective recomputation"),
        (workload.precision == "fp8", "FP8 training"),
        (workload.optimizer not in _OPTIMIZERS, f"the optimizer {workload.optimizer}"),
    ):
        if present:
            raise NotModelled(f"a DeepSpeed configuration cannot ask for {what}.")
    steps = max(1, layout.num_microbatches(workload.global_batch))
    config: dict[str, Any] = {
        "train_batch_size": workload.global_batch,
        "train_micro_batch_size_per_gpu": layout.micro_batch,
        "gradient_accumulation_steps": steps,
        "optimizer": _OPTIMIZERS[workload.optimizer],
        "zero_optimization": _zero(implementation, layout),
    }
    if workload.precision in ("bf16", "fp16"):
        config[workload.precision] = {"enabled": True}
        if implementation.grad_reduce_bytes == 2:
            config["data_types"] = {"grad_accum_dtype": workload.precision}
    if layout.tp > 1:
        config["tensor_parallel"] = {"autotp_size": layout.tp}
    if layout.recompute.granularity == "full":
        config["activation_checkpointing"] = {"partition_activations": layout.recompute.distribute_saved_activations}
    return config


def _zero(implementation: Implementation, layout: Layout) -> dict[str, Any]:
    section: dict[str, Any] = {"stage": layout.zero, "overlap_comm": implementation.overlap_grad_reduce}
    if implementation.ddp_bucket_elements:
        section["reduce_bucket_size"] = implementation.ddp_bucket_elements
    if implementation.optimizer_offload_fraction:
        section["offload_optimizer"] = {"device": "cpu", "ratio": implementation.optimizer_offload_fraction}
    if implementation.offload_parameters:
        section["offload_param"] = {"device": "cpu"}
    if layout.zero == 3:
        section |= _stage_three(implementation)
    if layout.hsdp_replicas > 1:
        section["mics_shard_size"] = layout.dp // layout.hsdp_replicas
    return section


def _stage_three(implementation: Implementation) -> dict[str, int]:
    """Sizes that are not the defaults."""
    usual, sizes = DeepSpeedZero(), implementation.deepspeed_zero
    named = {
        "stage3_prefetch_bucket_size": (sizes.prefetch, usual.prefetch),
        "stage3_max_reuse_distance": (sizes.reuse_distance, usual.reuse_distance),
        "stage3_max_live_parameters": (sizes.live, usual.live),
        "sub_group_size": (sizes.sub_group, usual.sub_group),
    }
    return {key: size for key, (size, default) in named.items() if size != default}
