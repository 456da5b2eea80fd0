"""Offloading to the host takes the time that its copies and its optimizer step take."""

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.accounting import make_accounting
from planner.parameters import parameters
from planner.stages import even_split
from planner.timing.host import HOST_ADAM_SECONDS, PCIE_FRACTION
from planner.timing.step import Timing
from planner.workload import Workload

MODEL = load_model("llama-2-7b")
PARAMETERS = parameters(MODEL)


def step(gpus, zero, **implementation):
    dp = parse_gpus(gpus).gpus
    timing = Timing(MODEL, Workload(4096, 64), Implementation(**implementation), parse_gpus(gpus))
    return timing.step(Layout(dp=dp, zero=zero, stages=even_split(MODEL, 1)))


def test_offloaded_optimizer_steps_on_the_host():
    """One GPU's parameters take what ZeRO-Offload measured for as many, and six bytes each over PCIe at 32 GB/s."""
    card = parse_gpus("1xA100-80G").card
    away = step("1xA100-80G", 0, optimizer_offload_fraction=1.0).components["optimizer"]
    adam = PARAMETERS * HOST_ADAM_SECONDS
    copies = PARAMETERS * 6 / (PCIE_FRACTION * card.pcie_bytes_per_second)
    assert 1.5 < adam < 2.0  # between the 1.03 s of 4 billion and the 2.41 s of 8 billion
    assert away >= adam + copies and away < 1.05 * (adam + copies)


def test_a_node_s_ranks_share_its_processors():
    """Eight shards of an eighth on one host step no faster than the whole on it; on two hosts they do."""
    one, eight, two_hosts = (
        step(gpus, 1, optimizer_offload_fraction=1.0).components["optimizer"]
        for gpus in ("1xA100-80G", "8xA100-80G", "2x4xA100-80G")
    )
    assert PARAMETERS * HOST_ADAM_SECONDS < eight < one
    assert two_hosts < 0.6 * eight


def test_half_offloaded_takes_between():
    """The part on the GPU is updated there."""
    none, half, full = (step("8xA100-80G", 1, optimizer_offload_fraction=f).seconds for f in (0.0, 0.5, 1.0))
    assert none < half < full


def test_weights_on_the_host_are_copied_for_each_gather():
    """ZeRO 3 with its weights on the host is slower by at most two copies of the shard a microbatch."""
    here = step("8xA100-80G", 3)
    away = step("8xA100-80G", 3, offload_parameters=True)
    card = parse_gpus("8xA100-80G").card
    copies = 8 * 2 * PARAMETERS / 8 * 2 / (PCIE_FRACTION * card.pcie_bytes_per_second)
    assert here.seconds <= away.seconds <= here.seconds + copies
    assert away.components["data_parallel"] > here.components["data_parallel"]


def test_activations_that_travel_longer_than_their_layers_compute_show():
    """All layers but one of 7B at 4096 tokens: what they keep goes over PCIe once each way beside the passes of all
    layers; one layer's hide entirely. Nothing else changes."""
    accounting = make_accounting("exact", MODEL, Workload(4096, 64), Implementation(), parse_gpus("8xA100-80G"))
    layout = Layout(dp=8, zero=1, stages=even_split(MODEL, 1))
    (cost,), _ = accounting.pieces(layout)
    here, one, most = (step("8xA100-80G", 1, offload_activation_layers=n) for n in (0, 1, 31))
    assert one.seconds == here.seconds and "offload" not in one.components
    card = parse_gpus("8xA100-80G").card
    each_way = 31 * cost.saved_bytes / (PCIE_FRACTION * card.pcie_bytes_per_second)
    forward = here.components["compute"] / 8 / 3
    assert each_way - forward < most.components["offload"] / 8 < each_way  # 8 microbatches; the head's share apart
    assert most.seconds == pytest.approx(here.seconds + most.components["offload"])
