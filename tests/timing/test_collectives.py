"""Collectives against hand-worked costs."""

import pytest

from planner.hardware import parse_gpus
from planner.layout import Layout
from planner.timing.collectives import (
    all_reduce_seconds,
    all_to_all_seconds,
    dispatch_seconds,
    exposed_seconds,
    gather_seconds,
    send_seconds,
)
from planner.timing.efficiency import AMPERE, HOPPER
from planner.topology import group_links

GIB = float(2**30)


def links(gpus: int, **degrees):
    return group_links(Layout(**degrees), parse_gpus(f"{gpus}xH100-80G"))


def test_gather_in_a_node_moves_seven_eighths_over_nvlink():
    """1 GiB over 8 GPUs: 7/8 of it at 450 GB/s times the library's fraction, and microseconds of latency."""
    link = links(8, tp=8)["tp"]
    expected = GIB * 7 / 8 / (450e9 * HOPPER.scale_up)
    assert gather_seconds(link, GIB, HOPPER) == pytest.approx(expected, rel=0.03)


def test_all_reduce_is_a_scatter_and_a_gather():
    """Across nodes an all-reduce moves twice what a gather moves."""
    link = links(64, dp=64)["dp_cp"]
    assert all_reduce_seconds(link, GIB, HOPPER) == pytest.approx(2 * gather_seconds(link, GIB, HOPPER), rel=0.02)


def test_switches_that_reduce_speed_up_the_all_reduce():
    """Inside a node of H100 it takes less than two gathers, inside one of A100 exactly as long."""
    link = links(8, tp=8)["tp"]
    assert all_reduce_seconds(link, GIB, HOPPER) < 1.8 * gather_seconds(link, GIB, HOPPER)
    assert all_reduce_seconds(link, GIB, AMPERE) == pytest.approx(2 * gather_seconds(link, GIB, AMPERE), rel=0.02)


@pytest.mark.parametrize(
    ("gpus", "mebibytes", "microseconds"),
    [(8, 16, 231.0), (8, 64, 578.3), (8, 256, 2151), (4, 16, 176.8), (4, 64, 541.9), (2, 16, 129.4), (2, 64, 404.4)],
)
def test_all_reduces_on_a100_take_what_was_measured(gpus, mebibytes, microseconds):
    """Within 15 % of NCCL's times on NVLink-connected A100 (VIA-Research/vTrain trace/a100/AR_GPU*_1M_1024M_LUT)."""
    link = group_links(Layout(tp=gpus), parse_gpus(f"{gpus}xA100-80G"))["tp"]
    assert all_reduce_seconds(link, mebibytes * 2.0**20, AMPERE) == pytest.approx(microseconds * 1e-6, rel=0.15)


@pytest.mark.parametrize(
    ("gpus", "mebibytes", "bus_gigabytes_per_second"),
    [(8, 32, 275.8), (8, 128, 401.9), (8, 1024, 463.6), (8, 16384, 482.3), (4, 8192, 363.3)],
)
def test_all_reduces_on_hopper_reach_the_bus_bandwidth_that_was_measured(gpus, mebibytes, bus_gigabytes_per_second):
    """Within 10 % of 8 x H200, whose links are H100's: in the switch among 8, in a ring among 4
    (stas00/ml-engineering network/README.md)."""
    link, size = links(gpus, tp=gpus)["tp"], mebibytes * 2.0**20
    bus = 2 * (gpus - 1) / gpus * size / all_reduce_seconds(link, size, HOPPER)
    assert bus == pytest.approx(bus_gigabytes_per_second * 1e9, rel=0.10)


def test_a_ring_over_nodes_uses_the_ports_of_all_its_members():
    """Data parallel over 64 GPUs enters each node through 8 ports; with tensor parallel 8, through one."""
    wide = gather_seconds(links(64, dp=64)["dp_cp"], GIB, HOPPER)
    narrow = gather_seconds(links(64, tp=8, dp=8)["dp_cp"], GIB, HOPPER)
    assert 6 < narrow / wide < 9


def test_an_all_reduce_among_many_nodes_climbs_a_tree():
    """1 MiB over 512 nodes of 8: nine levels and a chain of seven, up and down, and 92 % of a ring's bandwidth each
    way; a ring would take 1022 steps between nodes."""
    link = links(4096, dp=4096)["dp_cp"]
    steps = 2 * (9 * link.latency_seconds + 7 * link.intra_latency_seconds)
    bytes_moved = 2 * 2.0**20 / (0.92 * min(450e9 * HOPPER.scale_up, 8 * 50e9 * HOPPER.network))
    expected = steps + bytes_moved + HOPPER.collective_seconds
    assert all_reduce_seconds(link, 2.0**20, HOPPER) == pytest.approx(expected, rel=1e-9)


def test_all_to_all_across_nodes_is_bound_by_what_leaves_the_node():
    """Of 64 equal parts 56 leave the node, through one port for each GPU."""
    link = links(64, ep=64, dp=64)["ep"]
    expected = GIB * 56 / 64 / (50e9 * HOPPER.network * HOPPER.all_to_all)
    assert all_to_all_seconds(link, GIB, HOPPER) == pytest.approx(expected, rel=0.02)


def test_both_ways_out_of_a_card_on_pcie_are_one_slot():
    """Of 16 equal parts 7 stay in the node and 8 leave it: all 15 cross the slot's 31.5 GB/s, and 8 the port's
    25. NVLink cards send both at once."""
    pcie, nvlink = (group_links(Layout(ep=16, dp=16), parse_gpus(f"16x{card}"))["ep"] for card in ("L40S", "H100-80G"))
    slot = GIB * 15 / 16 / (31.5e9 * AMPERE.scale_up * AMPERE.all_to_all)
    port = GIB * 8 / 16 / (25e9 * AMPERE.network * AMPERE.all_to_all)
    assert all_to_all_seconds(pcie, GIB, AMPERE) == pytest.approx(max(slot, port), rel=0.02)
    assert slot > port
    alone = GIB * 8 / 16 / (50e9 * HOPPER.network * HOPPER.all_to_all)
    assert all_to_all_seconds(nvlink, GIB, HOPPER) == pytest.approx(alone, rel=0.02)


def test_a_dispatch_crosses_the_network_once_for_each_domain():
    """Over 8 nodes a GiB that reaches ranks, 7/8 of it forwarded over NVLink, crosses as the half that reaches nodes,
    of which 7/8 are others. Inside a node only the first counts."""
    far, near = links(64, ep=64, dp=64)["ep"], links(8, ep=8, dp=8)["ep"]
    network = 50e9 * HOPPER.network * HOPPER.dispatch
    assert dispatch_seconds(far, GIB, GIB / 2, HOPPER) == pytest.approx(GIB / 2 * 7 / 8 / network, rel=0.02)
    inside = GIB * 7 / 8 / (450e9 * HOPPER.scale_up * HOPPER.dispatch)
    assert dispatch_seconds(near, GIB, GIB / 2, HOPPER) == pytest.approx(inside, rel=0.03)


def test_small_messages_cost_their_latency():
    """A byte costs as much as a kilobyte, and never nothing."""
    link = links(16, pp=16)["pp"]
    assert 0 < send_seconds(link, 1.0, HOPPER) == pytest.approx(send_seconds(link, 1024.0, HOPPER), rel=0.01)


def test_a_group_of_one_communicates_nothing():
    """Every collective of a single rank is free."""
    link = links(8, dp=8)["tp"]
    for collective in (gather_seconds, all_reduce_seconds, all_to_all_seconds, send_seconds):
        assert collective(link, GIB, HOPPER) == 0
    assert dispatch_seconds(link, GIB, GIB, HOPPER) == 0


def test_hidden_communication_still_costs_the_tax():
    """Fully hidden: the tax; not hidden at all: everything; in between: the rest and the tax of what is hidden."""
    tax = HOPPER.overlap_tax
    assert exposed_seconds(1.0, 5.0, HOPPER) == pytest.approx(tax)
    assert exposed_seconds(1.0, 0.0, HOPPER) == 1.0
    assert exposed_seconds(1.0, 0.25, HOPPER) == pytest.approx(0.75 + 0.25 * tax)
