"""Seconds that context parallelism exposes for one layer and microbatch, by how its ranks exchange keys and values.

Transformer Engine: pytorch/attention/dot_product_attention/context_parallel.py (AttnFuncWithCPAndKVP2P,
AttnFuncWithCPAndQKVOA2A, AttnFuncWithCPAndKVAllGather); what can be hidden is what transformer_config.py says of
`cp_comm_type`.
"""

from __future__ import annotations

from planner.attention import core_widths
from planner.implementation import Implementation
from planner.model import Layer
from planner.timing.collectives import all_to_all_seconds, exposed_seconds, gather_seconds, send_seconds
from planner.timing.efficiency import Efficiency
from planner.timing.layer import LayerCompute
from planner.timing.passes import HALF
from planner.timing.shard import Shard
from planner.timing.traffic import Links
from planner.workload import Workload


def layer_context_parallel(
    layer: Layer,
    compute: LayerCompute,
    shard: Shard,
    workload: Workload,
    implementation: Implementation,
    links: Links,
    e: Efficiency,
) -> tuple[float, float]:
    """(forward, backward).

    p2p: each of cp - 1 steps sends the keys and values (backward also their gradients) to the next rank, beside the
    attention of the step before. allgather: keys and values are gathered before either pass, their gradients reduced
    after it. a2a: queries, keys and values of all positions come for a cp-th of the heads, and the outputs go back;
    their gradients the same way. The hierarchical a2a+p2p counts as one ring.
    """
    if shard.cp == 1:
        return 0.0, 0.0
    a, link, tokens = layer.attention, links["cp"], HALF * shard.tokens(workload)
    query_width, key_value, output_width = core_widths(a, shard.tp)
    if implementation.cp_comm_type == "a2a":
        exchanged = all_to_all_seconds(link, tokens * (query_width + key_value), e)
        exchanged += all_to_all_seconds(link, tokens * output_width, e)
        return exchanged, exchanged
    if implementation.cp_comm_type == "allgather":
        gathered = gather_seconds(link, tokens * shard.cp * key_value, e)
        return gathered, 2 * gathered
    step = send_seconds(link, tokens * key_value, e)
    steps = shard.cp - 1
    forward = exposed_seconds(step * steps, compute.core_forward * steps / shard.cp, e)
    backward = exposed_seconds(2 * step * steps, compute.core_backward * steps / shard.cp, e)
    return forward, backward
