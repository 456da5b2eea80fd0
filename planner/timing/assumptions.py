"""What a step's time takes for granted, as sentences printed beside it."""

from __future__ import annotations

from collections.abc import Iterable

from planner.cluster import Cluster
from planner.implementation import Implementation
from planner.layout import Layout
from planner.model import Model
from planner.timing.efficiency import BY_ARCHITECTURE, FITTED
from planner.timing.kernels import linear_precision
from planner.topology import group_links

HOST_SHARE = 0.1
"""Of a step: with more, what to do about it is said."""

_FILLED = {
    "zb-h1": "ZB-H1 leaves a bubble of (pp - 1) (F + B - W)",
    "dualpipe": "DualPipe leaves a bubble of (pp / 2 - 1) (F + 2 (B + W) - 3 W)",
}


def host_bound(share: float) -> tuple[str, ...]:
    """What a step says that waits so much for its host."""
    if share <= HOST_SHARE:
        return ()
    return ("launch is the host issuing kernels one by one: --cuda-graphs, or a larger micro-batch, takes less",)


def crossing(layout: Layout, cluster: Cluster) -> tuple[str, ...]:
    """Groups that exchange in every layer and reach beyond the scale-up links, in words."""
    if len(cluster.groups) > 1 or layout.tp == layout.cp == layout.ep == 1:
        return ()
    links, domain = group_links(layout, cluster), cluster.groups[0].domain
    said = []
    for name, what in (("tp", "tensor-parallel"), ("cp", "context-parallel"), ("ep", "expert-parallel")):
        link = links[name]
        if link.domains > 1:
            said.append(f"{what} groups of {link.size} reach beyond {domain} GPUs that NVLink or its like joins")
    return tuple(said)


def exposed(layout: Layout, implementation: Implementation) -> tuple[str, ...]:
    """Exchanges that a launch could hide and this one does not, in words."""
    said = []
    if layout.tp > 1 and layout.sequence_parallel and not implementation.tp_comm_overlap:
        said.append("tensor-parallel exchanges wait for their products: --tp-comm-overlap hides a part of them")
    if layout.tp == 1 and implementation.tp_comm_overlap:
        said.append("--tp-comm-overlap has no effect at TP 1")
    if layout.ep > 1 and not implementation.overlap_moe_expert_parallel_comm:
        said.append("the experts' exchange is not hidden (--overlap-moe-expert-parallel-comm)")
    if (
        layout.ep > 1
        and implementation.overlap_moe_expert_parallel_comm
        and "iteration" not in implementation.cuda_graphs
    ):
        said.append(
            "what overlapping the experts' exchange costs the host is not modelled: published runs that do so without "
            "--cuda-graphs iteration took 1.1 to 2.7 times as long as predicted"
        )
    return tuple(said)


_NEWER = {"hopper": "FlashAttention 3 and cuDNN", "blackwell": "FlashAttention 4 and cuDNN"}


def _newest_attention(implementation: Implementation, architectures: Iterable[str]) -> list[str]:
    """Which kernels a launch must have for the time to hold: on H100 whole runs take up to 15 % longer with the older
    one (`docs/adr/0018`)."""
    if implementation.attention != "flash" or implementation.flash_attention_version:
        return []
    return [
        f"attention as {_NEWER[a]} compute it on {a} cards; with FlashAttention 2 attention takes "
        f"{1 / BY_ARCHITECTURE[a].older_attention:.1f} times as long"
        for a in architectures
        if a in _NEWER
    ]


def assumptions(model: Model, precision: str, implementation: Implementation, cluster: Cluster) -> tuple[str, ...]:
    """What the time takes for granted, in words."""
    said: list[str] = []
    architectures = dict.fromkeys(group.card.architecture for group in cluster.groups)
    if cluster.calibration:
        architectures = {}
        said = [f"efficiencies measured on {cluster.name}: {', '.join(sorted(map(str, cluster.calibration)))}"]
    for architecture in architectures:
        if architecture in FITTED:
            half, most = BY_ARCHITECTURE[architecture].errors(model.is_moe)
            kind = "mixtures of experts" if model.is_moe else "dense models"
            if half is None or most is None:
                within = f"hardly any of {kind}: how far off the time is has not been measured"
            else:
                within = f"those of {kind} predicted within {half:.0%} for half of them, {most:.0%} for nine in ten"
                within += ", where every source counts alike"
            said.append(f"efficiencies of {architecture} cards fitted to published runs, {within}")
        else:
            said.append(f"efficiencies of {architecture} cards reasoned from others: no published run was fitted")
    if not cluster.calibration:
        said += dict.fromkeys(group.card.time_note for group in cluster.groups if group.card.time_note)
    said += _newest_attention(implementation, architectures)
    if model.is_moe:
        balance = "evenly" if implementation.moe_imbalance == 1 else f"with imbalance {implementation.moe_imbalance:g}"
        said.append(f"tokens are routed {balance}")
    if implementation.optimizer_offload_fraction:
        said.append("the host's optimizer step as on a DGX-2, its copies over PCIe not overlapped")
    if implementation.schedule != "1f1b":
        said.append(
            f"{_FILLED[implementation.schedule]}: weight gradients of the layers, and no attention, fill the rest"
        )
    if implementation.schedule == "dualpipe":
        said.append("what DualPipe hides of the experts' exchange behind the other direction is not counted")
    if implementation.deferred_embedding_wgrads:
        said.append("products of deferred head gradients are timed in their places, not after the last microbatch")
    if precision == "fp32":
        said.append("activations travel and pass through memory in 16 bits, in time: fp32 takes longer")
    if precision == "fp8" and implementation.fp8_recipe == "blockwise":
        said.append(
            "fp8 with a scale for each block is timed as with one scale: a published run took 1.2 times as long"
        )
    if any(linear_precision(group.card, precision, implementation) == "tf32" for group in cluster.groups):
        said.append("linear layers run in TF32, as Transformer Engine asks for; the head and stored scores in fp32")
    if implementation.launch_blocking:
        said.append("CUDA_LAUNCH_BLOCKING: operations wait for one another, as BigScience's runs on A100 did")
    if implementation.offload_activation_layers or implementation.offload_modules:
        said.append("offloaded activations travel beside the passes of their layers, and show where they take longer")
    return tuple(said)
