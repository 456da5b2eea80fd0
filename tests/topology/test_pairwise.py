"""Domains whose GPUs are linked each with each, without a switch."""

from __future__ import annotations

import pytest

from planner.hardware import parse_gpus
from planner.topology.links import group_link


@pytest.mark.parametrize(("members", "links"), [(2, 1), (4, 3), (8, 7)])
def test_a_group_has_its_own_links_only(members, links):
    """MI300X: 64 GB/s each way between any two of eight (AMD's platform data sheet)."""
    link = group_link(parse_gpus("8xMI300X"), 8, 1, members)
    assert link.intra_bytes_per_second == pytest.approx(links * 64e9)


def test_a_pair_of_a_quad_node():
    """Alps: 150 GB/s each way between any two of the four GH200 of a node (Fusco et al., arXiv:2408.11556)."""
    cluster = parse_gpus("2x4xGH200-96G")
    assert group_link(cluster, 8, 1, 2).intra_bytes_per_second == pytest.approx(150e9)
    assert group_link(cluster, 8, 1, 4).intra_bytes_per_second == pytest.approx(450e9)
    assert group_link(cluster, 8, 1, 8).intra_bytes_per_second == pytest.approx(450e9)


def test_a_stage_sends_over_one_link():
    """However many stages stand in the domain, and though one member alone of a domain has nobody to speak to."""
    assert group_link(parse_gpus("8xMI300X"), 8, 2, 4, pipeline=True).intra_bytes_per_second == pytest.approx(64e9)
    assert group_link(parse_gpus("16xMI300X"), 16, 8, 2).intra_bytes_per_second > 0


def test_a_switch_gives_every_group_all_of_it():
    """NVSwitch: any two GPUs at the bandwidth of all links."""
    assert group_link(parse_gpus("8xH100-80G"), 8, 1, 2).intra_bytes_per_second == 450e9
