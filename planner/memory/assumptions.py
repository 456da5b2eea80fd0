"""What a memory figure takes for granted, as sentences printed beside it."""

from __future__ import annotations

from planner.cluster import Cluster
from planner.implementation import Implementation
from planner.layout import Layout
from planner.model import Model
from planner.workload import Workload


def assumptions(
    model: Model,
    workload: Workload,
    impl: Implementation,
    layout: Layout,
    cluster: Cluster,
    reserve_bytes: int,
) -> tuple[str, ...]:
    """The sentences that hold for this layout."""
    half = {"bf16": "bf16", "fp16": "fp16", "fp8": "bf16 (fp8 matrix products)", "fp32": "fp32"}[workload.precision]
    gradients = "fp32" if impl.grad_reduce_bytes == 4 else "bf16"
    notes = [f"{half} weights and activations, {gradients} main gradients, {workload.optimizer} with fp32 states"]
    spec = (
        "Transformer Engine layers" if impl.layer_implementation == "transformer_engine" else "Megatron's local layers"
    )
    kernel = {
        "flash": "flash attention",
        "fused": "cuDNN attention",
        "unfused": "unfused attention (scores are stored)",
    }
    notes.append(f"{spec}, {kernel[impl.attention]}")
    dropout = model.dropout if impl.hidden_dropout is None else impl.hidden_dropout
    if dropout:
        notes.append(f"dropout {dropout:g}: its masks are kept for the backward pass")
    if model.is_moe:
        if impl.moe_capacity_factor is None:
            factor = impl.moe_imbalance
            load = "balanced" if factor == 1 else f"the busiest rank gets {factor:g} x the mean"
            notes.append(f"dropless routing, {load}")
        else:
            notes.append(f"experts take at most {impl.moe_capacity_factor:g} x their even share of tokens")
    if layout.zero == 1:
        notes.append("optimizer state divided over data-parallel ranks (Megatron's distributed optimizer)")
    if layout.zero >= 2:
        names = {"fsdp2": "PyTorch FSDP2", "megatron_fsdp": "Megatron-FSDP", "deepspeed": "DeepSpeed"}
        notes.append(f"ZeRO-{layout.zero} as in {names[impl.sharded_framework]}; gathered layers are estimated")
    reserve = f"reserve {reserve_bytes / 2**30:.1f} GiB outside the allocator"
    notes.append(f"{reserve}: CUDA context, NCCL, library workspaces, fragmentation")
    return (*notes, *model.notes)
