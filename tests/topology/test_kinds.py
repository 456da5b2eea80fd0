"""Kinds of nodes, their orders, and what each stage stands on."""

from __future__ import annotations

import random

import pytest

from planner.cluster import Cluster, Fabric, NodeGroup
from planner.errors import InputError
from planner.hardware import load_card, load_cluster, parse_gpus
from planner.layout import Layout
from planner.topology import group_links, place_ranks
from planner.topology.kinds import (
    MOST_KINDS,
    arranged,
    mixed,
    node_kinds,
    placement_from,
    placement_labels,
    placements,
)
from planner.topology.standing import placed_runs, spanning, standing


def test_a_kind_is_a_card_and_a_node_size():
    """Cards of one name in nodes of two sizes are two kinds; nodes of one kind need not be neighbours."""
    cluster = parse_gpus("8xA100-80G+8xH100-80G+4xA100-80G+8xA100-80G")
    assert [(kind.label, kind.gpus) for kind in node_kinds(cluster)] == [
        ("A100-80G/8", 16),
        ("H100-80G", 8),
        ("A100-80G/4", 4),
    ]
    assert mixed(cluster) and mixed(load_cluster("mixed-a100")) and not mixed(parse_gpus("64xA100-80G"))


def test_every_order_is_tried_where_it_matters():
    """With a pipeline every order of three kinds; without one only those that change the sizes of nodes along it."""
    cluster = parse_gpus("8xH100-80G+8xA100-80G+4xA100-80G")
    assert len(placements(cluster, 2)) == 6 and placements(cluster, 2)[0] == (0, 1, 2)
    assert len(placements(cluster, 1)) == 3
    assert placements(parse_gpus("16xA100-80G"), 4) == ((),)
    with pytest.raises(InputError, match=f"at most {MOST_KINDS} kinds"):
        placements(parse_gpus("1xA100-80G+1xA100-40G+1xH100-80G+1xH200-141G+1xV100-32G+1xA10"), 2)


def test_arranging_keeps_the_nodes():
    """The nodes of an arranged cluster are the same, in the order of the placement; ranks follow it."""
    cluster = parse_gpus("8xA100-80G+8xA100-40G")
    other = arranged(cluster, (1, 0))
    assert [group.card.name for group in other.groups] == ["A100-40G", "A100-80G"] and other.gpus == cluster.gpus
    assert arranged(cluster, (0, 1)) is cluster and arranged(cluster, (1, 0)) is other
    places = list(place_ranks(Layout(tp=8, pp=2, placement=(1, 0)), cluster))
    assert (places[0].card, places[15].card) == ("A100-40G", "A100-80G")


def test_labels_round_trip_and_mistakes_are_named():
    """A placement is stated by labels in any case; a wrong list names the right ones."""
    cluster = parse_gpus("8xA100-80G+4xA100-80G")
    for order in placements(cluster, 3):
        assert placement_from(cluster, tuple(x.lower() for x in placement_labels(cluster, order))) == order
    with pytest.raises(InputError, match="each of A100-80G/8, A100-80G/4 once"):
        placement_from(cluster, ("A100-80G",))
    with pytest.raises(InputError, match="has just one"):
        placement_from(parse_gpus("8xA100-80G"), ("A100-80G",))


def random_clusters(count):
    """Small clusters of two or three kinds, with a layout that fills them."""
    rng, cards = random.Random(5), [load_card(name) for name in ("A100-80G", "A100-40G", "H100-80G")]
    while count:
        groups = tuple(NodeGroup(rng.choice(cards), rng.randint(1, 2), rng.choice((2, 4, 8))) for _ in range(3))
        cluster = Cluster("random", groups, Fabric())
        tp, pp = rng.choice((1, 2, 4, 8)), rng.choice((1, 2, 3, 4, 6))
        if not mixed(cluster) or cluster.gpus % (tp * pp):
            continue
        layout = Layout(tp=tp, pp=pp, dp=cluster.gpus // (tp * pp), placement=rng.choice(placements(cluster, pp)))
        count -= 1
        yield cluster, layout


def test_stages_stand_on_their_ranks_nodes():
    """The nodes under a stage are those of its ranks, card by card, and its communicators cross nodes exactly where
    the ranks do, as counted one by one."""
    for cluster, layout in random_clusters(60):
        places = list(place_ranks(layout, cluster))
        width = layout.tp * layout.dp
        under = standing(cluster, layout).stages
        for stage, nodes in enumerate(under):
            mine = places[stage * width : (stage + 1) * width]
            assert nodes.gpus == width
            assert [card.name for card in standing(cluster, layout).cards(stage)] == list(
                dict.fromkeys(place.card for place in mine)
            )
            links = group_links(layout, nodes)
            tensor = [{p.node for p in mine[i : i + layout.tp]} for i in range(0, width, layout.tp)]
            data = [{p.node for p in mine[i :: layout.tp]} for i in range(layout.tp)]
            assert links["tp"].nodes == max(map(len, tensor))
            assert links["dp"].nodes == max(map(len, data))


def test_hops_cross_nodes_where_the_stages_do():
    """A stage's sends leave its node exactly where some rank's neighbour is on another one."""
    for cluster, layout in random_clusters(60):
        places = list(place_ranks(layout, cluster))
        width = layout.tp * layout.dp
        for stage, nodes in enumerate(standing(cluster, layout).stages):
            if layout.pp == 1:
                assert nodes.hops == ()
                continue
            crossing = False
            for other in (stage - 1, stage + 1):
                if 0 <= other < layout.pp:
                    pairs = zip(places[stage * width :][:width], places[other * width :][:width], strict=True)
                    crossing |= any(a.node != b.node for a, b in pairs)
            assert group_links(layout, nodes)["pp"].inside is not crossing


def test_each_kind_has_its_own_ports():
    """H100 nodes among A100 nodes reduce over their own faster ports; a hop between the two takes the slower."""
    cluster = parse_gpus("16xH100-80G+16xA100-80G")
    layout = Layout(tp=8, pp=2, dp=2)
    fast, slow = (group_links(layout, nodes) for nodes in standing(cluster, layout).stages)
    assert fast["dp"].inter_bytes_per_second == 2 * slow["dp"].inter_bytes_per_second
    assert fast["pp"].inter_bytes_per_second == slow["pp"].inter_bytes_per_second == slow["dp"].inter_bytes_per_second
    assert fast["tp"].intra_bytes_per_second > slow["tp"].intra_bytes_per_second


def test_what_a_stage_spans_is_named():
    """A stage with two cards is named with both; stages of one card are not."""
    cluster = parse_gpus("8xA100-80G+8xA100-40G")
    assert spanning(Layout(tp=8, pp=2), cluster) == []
    assert spanning(Layout(tp=8, dp=2), cluster) == [("all ranks", ("A100-80G", "A100-40G"))]
    runs = placed_runs(Layout(tp=2, pp=4, dp=2, placement=(1, 0)), cluster)
    assert [(run.card, run.stages) for run in runs] == [("A100-40G", (0, 1)), ("A100-80G", (2, 3))]
