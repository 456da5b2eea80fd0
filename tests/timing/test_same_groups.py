"""Time and memory divide parameters over the same ranks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.stages import even_split
from planner.timing.coefficients import Coefficients
from planner.timing.shard import shard_of
from planner.timing.step import Timing
from planner.workload import Workload


def components(model, gpus, implementation, optimizer="adamw", **degrees):
    m = load_model(model)
    cluster = parse_gpus(gpus)
    layout = Layout(dp=cluster.gpus, stages=even_split(m, 1), **degrees)
    workload = Workload(4096, cluster.gpus, optimizer=optimizer)
    return Timing(m, workload, implementation, cluster).step(layout).components


@pytest.mark.parametrize(("ep", "etp", "apart"), [(1, 1, False), (4, 1, True)])
def test_experts_of_every_rank_are_sharded_as_dense_weights_are(ep, etp, apart):
    """Without expert parallelism experts have no group of their own (`Layout.experts_apart`): replicas of a node's size
    gather them inside the node."""
    m, cluster = load_model("mixtral-8x7b"), parse_gpus("2x8xH100-80G")
    layout = Layout(dp=16, ep=ep, etp=etp, zero=3, stages=even_split(m, 1))
    coefficients = Coefficients(m, Workload(4096, 16), Implementation(), cluster)
    dense, expert = coefficients._layer_parameters(layout, shard_of(layout), 0)
    experts = 8 * 3 * 4096 * 14336 // ep
    assert expert == (experts if apart else 0)
    assert dense + expert == pytest.approx(experts + 42e6, rel=0.01)


def test_muon_deals_its_matrices_out_within_an_instance_of_the_optimizer():
    """Eight instances on 64 ranks: each rank orthogonalises eight times as many, which is most of its step."""
    one = components("llama-3-8b", "64xH100-80G", Implementation(), "muon", zero=1)
    many = replace(Implementation(), num_distributed_optimizer_instances=8)
    eight = components("llama-3-8b", "64xH100-80G", many, "muon", zero=1)
    assert eight["optimizer"] > 2.5 * one["optimizer"]


def test_weights_that_are_held_in_fp8_are_gathered_in_fp8():
    """Megatron-FSDP's ZeRO 3 with --fp8-param-gather: one byte a weight."""
    m, cluster = load_model("llama-3-8b"), parse_gpus("8x8xH100-80G")
    layout = Layout(dp=64, zero=3, stages=even_split(m, 1))
    of = []
    for gather in (False, True):
        impl = Implementation(sharded_framework="megatron_fsdp", fp8_param_gather=gather)
        of.append(Timing(m, Workload(512, 64, "fp8"), impl, cluster).step(layout).components["data_parallel"])
    assert of[1] < 0.9 * of[0]
