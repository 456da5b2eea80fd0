"""Seconds of collectives on a group's link: latency by steps and bandwidth by bytes.

Ring costs are those of Thakur, Rabenseifner and Gropp 2005 ("Optimization of collective communication operations in
MPICH") as NCCL uses them; the tree all-reduce is NCCL's own estimate (src/graph/tuning.cc: ncclTopoTuneModel) of the
double binary trees of Sanders, Speck and Traeff 2009; in-network reduction over NVLink (NVLS) where the architecture
has it.
"""

from __future__ import annotations

from functools import lru_cache
from math import log2

from planner.implementation import Implementation
from planner.timing.efficiency import SWITCHED_GPUS, Efficiency
from planner.topology import GroupLink

TREE_OF_RING = 0.92
"""What of a ring's bandwidth NCCL reckons with for the trees of an all-reduce (src/graph/tuning.cc: ncclTopoTuneModel,
`busBw * .92`). For messages of 512 MiB and more; below, NCCL takes off another 10 to 50 % by size, which is not counted
(treeCorrectionFactor): among few nodes it takes rings, among many the steps make the difference."""


def _rates(link: GroupLink, e: Efficiency) -> float:
    """Bytes per second that collectives reach through a ring."""
    return link.ring_bytes_per_second(e.scale_up, e.network)


def _ring_latency(link: GroupLink) -> float:
    between = link.domains if not link.inside else 0
    return (link.size - 1 - min(between, link.size - 1)) * link.intra_latency_seconds + min(
        between, link.size - 1
    ) * link.latency_seconds


@lru_cache(maxsize=65536)
def gather_seconds(link: GroupLink, whole_bytes: float, e: Efficiency) -> float:
    """All-gather to, or reduce-scatter of, `whole_bytes`: every rank passes on (n - 1) / n of it."""
    n = link.size
    if n <= 1 or whole_bytes <= 0:
        return 0.0
    return whole_bytes * (n - 1) / n / _rates(link, e) + _ring_latency(link) + e.collective_seconds


@lru_cache(maxsize=65536)
def all_reduce_seconds(link: GroupLink, whole_bytes: float, e: Efficiency) -> float:
    """All-reduce of `whole_bytes`: the better of ring and tree. A tree goes up and down its levels between domains, and
    along a chain inside each (src/graph/tuning.cc: 2 ((ranks / nodes - 1) intra + floor(log2 nodes) inter))."""
    n = link.size
    if n <= 1 or whole_bytes <= 0:
        return 0.0
    rate = _rates(link, e)
    if link.inside and e.scale_up_all_reduce and n > SWITCHED_GPUS:
        rate = link.intra_bytes_per_second * e.scale_up_all_reduce
    ring = 2 * whole_bytes * (n - 1) / n / rate + 2 * _ring_latency(link)
    levels, chain = link.domains.bit_length() - 1, link.ranks_per_domain - 1
    depth = 2 * (levels * link.latency_seconds + chain * link.intra_latency_seconds)
    tree = 2 * whole_bytes / (TREE_OF_RING * _rates(link, e)) + depth
    return (min(ring, tree) if not link.inside else ring) + e.collective_seconds


@lru_cache(maxsize=65536)
def all_to_all_seconds(link: GroupLink, rank_bytes: float, e: Efficiency) -> float:
    """Every rank sends `rank_bytes` in equal parts to all n ranks (itself included)."""
    n = link.size
    if n <= 1 or rank_bytes <= 0:
        return 0.0
    inside = link.ranks_per_domain - 1 if not link.inside else n - 1
    outside = n - 1 - inside
    part = rank_bytes / n
    return _exchange_seconds(link, inside * part, outside * part, e.all_to_all, e)


@lru_cache(maxsize=65536)
def dispatch_seconds(link: GroupLink, rank_bytes: float, domain_bytes: float, e: Efficiency) -> float:
    """Every rank sends its tokens to experts, or gets them back: `rank_bytes` once to each rank that a token reaches,
    of which `domain_bytes` cross to domains, one copy for each, and are forwarded inside (DeepEP). The sender's own
    rank and domain are among those reached."""
    n, domains = link.size, 1 if link.inside else link.domains
    if n <= 1 or rank_bytes <= 0:
        return 0.0
    inside = n if link.inside else link.ranks_per_domain
    near, far = rank_bytes * (inside - 1) / inside, domain_bytes * (domains - 1) / domains
    return _exchange_seconds(link, near, far, e.dispatch, e)


def _exchange_seconds(link: GroupLink, near_bytes: float, far_bytes: float, reached: float, e: Efficiency) -> float:
    """What a rank sends inside its domain and out of it at once. Links apart take as long as the slower; on PCIe both
    cross the card's one slot, so that it carries their sum. Sends to all peers are on their way together, so that their
    steps count as those of a tree: a choice between one and n - 1."""
    near_rate = link.intra_bytes_per_second * e.scale_up * reached
    far_rate = link.all_to_all_bytes_per_second * e.network * reached
    near = (near_bytes + (far_bytes if link.one_slot else 0.0)) / near_rate
    far = far_bytes / far_rate if far_bytes else 0.0
    return max(near, far) + link.latency_seconds * (1 + log2(link.size)) + e.collective_seconds


@lru_cache(maxsize=65536)
def send_seconds(link: GroupLink, sent_bytes: float, e: Efficiency) -> float:
    """A send to a neighbour of the group."""
    if link.size <= 1 or sent_bytes <= 0:
        return 0.0
    rate = link.intra_bytes_per_second * e.scale_up if link.inside else link.inter_bytes_per_second * e.network
    return sent_bytes / rate + link.latency_seconds + e.collective_seconds


def reduces_whole(implementation: Implementation, zero: int) -> bool:
    """Whether gradients that are kept in shards are all-reduced and then cut, twice the bytes of a reduce-scatter.

    DeepSpeed does at stages 1 and 2: by default it joins the ranks' slices into one bucket (deepspeed/runtime/zero/
    stage_1_and_2.py: average_tensor, use_multi_rank_bucket_allreduce; until 0.12 stage 1 had no other way, engine.py:
    _configure_zero_optimizer), and its bf16 optimizer too (engine.py: buffered_allreduce_fallback).
    """
    if zero == 1:
        return implementation.framework == "megatron-deepspeed"
    return zero == 2 and implementation.sharded_framework == "deepspeed"


def keeps_weights(implementation: Implementation, zero: int) -> bool:
    """Whether ZeRO 2 keeps the weights whole from one step to the next, so that they are gathered once a step, as at
    ZeRO 1: DeepSpeed does, and Megatron-FSDP (megatron/core/distributed/fsdp/src/megatron_fsdp/
    param_and_grad_buffer.py: is_model_weight_buffer_distributed is False under optim_grads). FSDP2 gathers them before
    each forward pass."""
    return zero == 2 and implementation.sharded_framework != "fsdp2"


def exposed_seconds(communication: float, hiding: float, e: Efficiency) -> float:
    """What `communication` costs while kernels of `hiding` seconds run beside it."""
    hidden = min(communication, max(0.0, hiding))
    return communication - hidden + e.overlap_tax * hidden
