"""What the hardware is: cards, nodes of cards, and the fabric between the nodes.

Bandwidths are bytes per second in one direction for one GPU; floating-point rates are dense (no structured sparsity).
Where each figure comes from stands beside it in `cluster_specs/`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from planner.errors import InputError


@dataclass(frozen=True, eq=False)
class Card:
    """One kind of GPU or accelerator."""

    name: str
    vendor: str
    architecture: str
    """ampere, hopper, blackwell, ...: what efficiency curves are kept for."""
    sold_bytes: int
    """Memory as sold: `80 GB` is 80 * 10**9, the rule of thumb's capacity."""
    capacity_bytes: int
    """What the card gives a process (torch.cuda.mem_get_info total)."""
    reserve_bytes: int
    """Default reserve outside the allocator's tensors: CUDA context, NCCL, library workspaces, fragmentation."""
    memory_bytes_per_second: float
    flops: Mapping[str, float]
    """Dense FLOP/s by precision: fp32, tf32, fp16, bf16, fp8, fp4; absent where the card has none."""
    scale_up: Literal["nvlink", "pcie", "xgmi", "hccs", "roce", "none"]
    scale_up_bytes_per_second: float
    """GPU to GPU inside the scale-up domain (NVLink and its like), one direction, sum of a GPU's links."""
    pcie_bytes_per_second: float
    gpus_per_node: int
    scale_up_domain: int
    """GPUs that reach each other over the scale-up links: 8 in an HGX node, 72 in an NVL72 rack."""
    network_bytes_per_second: float
    """Network bandwidth of one GPU, one direction, in the vendor's reference node."""
    network: Literal["infiniband", "ethernet", "none"] = "infiniband"
    scale_up_pairwise: bool = False
    """The domain's GPUs are linked each with each, without a switch: a pair has its share of a GPU's links."""
    multiprocessors: int = 0
    host_bytes_per_node: int = 0
    aliases: tuple[str, ...] = ()
    sources: Mapping[str, str] = field(default_factory=dict)
    time_note: str = ""
    """What keeps this card's steps from the time that its figures promise, said beside every predicted step."""

    @property
    def spans_nodes(self) -> bool:
        """Whether the scale-up links join the GPUs of several nodes, as in a rack of NVL72. Measured against the node
        as it is sold: a chassis with half its GPUs joins none of its neighbour's."""
        return self.scale_up_domain > self.gpus_per_node

    @property
    def capability_bf16(self) -> bool:
        return "bf16" in self.flops


@dataclass(frozen=True, slots=True)
class NodeGroup:
    """Identical nodes: `nodes` of them with `gpus_per_node` cards each."""

    card: Card
    nodes: int
    gpus_per_node: int
    domain_gpus: int = 0
    """GPUs of one scale-up domain that the job uses; 0 is what the card and the node give (`domain`)."""
    network_bytes_per_second: float = 0.0
    """Injection bandwidth of one GPU of these nodes, one direction, where it is not the fabric's; 0 is the fabric's."""

    @property
    def gpus(self) -> int:
        return self.nodes * self.gpus_per_node

    @property
    def domain(self) -> int:
        """GPUs of one scale-up domain: a rack-scale domain spans nodes, any other ends with its node."""
        if self.domain_gpus:
            return self.domain_gpus
        if self.card.spans_nodes:
            return min(self.card.scale_up_domain, self.gpus)
        return min(self.card.scale_up_domain, self.gpus_per_node)


@dataclass(frozen=True, slots=True)
class Fabric:
    """The network between nodes."""

    kind: Literal["infiniband", "ethernet", "none"] = "infiniband"
    bytes_per_second_per_gpu: float = 25e9
    """Injection bandwidth of one GPU, one direction."""
    latency_seconds: float = 5e-6
    oversubscription: float = 1.0
    """Spine: leaf down-links over up-links (1 is non-blocking)."""
    nodes_per_leaf: int = 0
    """Nodes under one leaf switch (rail-optimised: one scalable unit); 0 is unknown, everything on one leaf."""
    rail_optimised: bool = True


@dataclass(frozen=True, eq=False)
class Cluster:
    """Groups of nodes on one fabric. Compared and hashed by identity."""

    name: str
    groups: tuple[NodeGroup, ...]
    fabric: Fabric
    calibration: Mapping[str, object] = field(default_factory=dict)
    """Measured efficiencies that replace the card's defaults (`plan calibrate` writes them)."""
    source: str = ""

    def __post_init__(self) -> None:
        vendors = {group.card.vendor: group.card.name for group in self.groups}
        if len(vendors) > 1:
            each = " and ".join(f"{name} ({vendor})" for vendor, name in vendors.items())
            raise InputError(
                f"GPUs of one vendor are required, whose library of collectives connects them, but was given {each}."
            )

    @property
    def gpus(self) -> int:
        return sum(group.gpus for group in self.groups)

    @property
    def card(self) -> Card:
        """The card of the first group; the only one unless it is mixed (`topology.kinds` has those of others)."""
        return self.groups[0].card

    @property
    def gpus_per_node(self) -> int:
        return self.groups[0].gpus_per_node

    @property
    def capacity_bytes(self) -> int:
        """What the smallest card gives a process; a stage's own capacity is the accounting's `stage_capacity_bytes`."""
        return min(group.card.capacity_bytes for group in self.groups)

    @property
    def reserve_bytes(self) -> int:
        return max(group.card.reserve_bytes for group in self.groups)
