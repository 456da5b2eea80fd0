"""What keeping states or activations on the host costs: transfers over PCIe, and the optimizer step of the node's
processors."""

from __future__ import annotations

from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.pieces import layer_cost, modules_of, shape_of, sharding_of
from planner.model import Layer, Model
from planner.timing.kernels import Device
from planner.workload import Workload

HOST_ADAM_SECONDS = 0.26e-9
"""Vectorised Adam on the two processors of a node, for each parameter of the node: DeepSpeed's CPU-Adam takes 0.22,
0.51, 1.03, 2.41 and 2.57 s for 1, 2, 4, 8 and 10 billion parameters on a DGX-2 (Ren et al. 2021, ZeRO-Offload,
arXiv:2101.06840, table 4). Hosts with more memory bandwidth are faster: an upper estimate there."""
PCIE_FRACTION = 0.8
"""Of the PCIe slot's rate that pinned copies reach (DGX-2 and DGX A100: 12 to 13 of 16, 24 to 26 of 32 GB/s)."""
WEIGHT = 2
"""Bytes of a weight on its way back."""


def copy_seconds(device: Device) -> float:
    """Seconds for one byte between a GPU and its host."""
    return 1 / (PCIE_FRACTION * device.card.pcie_bytes_per_second)


def host_step_seconds(device: Device, implementation: Implementation, ranks_per_node: int) -> float:
    """Seconds for each parameter that a rank has on the host: its gradient goes down, is applied among those of all
    ranks of the node, and the weight comes back. Megatron's HybridDeviceOptimizer and DeepSpeed's offload_optimizer
    can overlap these three; here they follow each other."""
    copied = implementation.grad_reduce_bytes + WEIGHT
    return copied * copy_seconds(device) + ranks_per_node * HOST_ADAM_SECONDS


def activation_copy_seconds(
    device: Device, model: Model, layer: Layer, workload: Workload, implementation: Implementation, layout: Layout
) -> float:
    """Seconds that the activations of a layer and microbatch take to the host, and as many back, on streams of their
    own. Chosen modules travel beside the layer that they belong to; those of the first n of L whole layers are spread
    over the passes of all (Transformer Engine, pytorch/cpu_offload.py: AsyncDoubleBufferGroupOffloadHandler), so that
    each layer's pass stands beside n / L of one's."""
    whole = implementation.offload_activation_layers
    if not (whole or implementation.offload_modules):
        return 0.0
    shape, sharding = shape_of(model, workload, implementation, layout), sharding_of(implementation, layout)
    cost = layer_cost(model, implementation, layer, shape, sharding, modules_of(layout))
    sent = cost.saved_bytes * whole / model.num_layers if whole else cost.offloaded_bytes
    return sent * copy_seconds(device)
