"""The search on clusters of several kinds of nodes, against a brute force with the real accounting and timing."""

from __future__ import annotations

import random
import sys
from dataclasses import replace
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from brute import best_ns, degrees
from validator import faults

from planner.catalog import load_model
from planner.cluster import Cluster, Fabric, NodeGroup
from planner.hardware import load_card, parse_gpus
from planner.implementation import Implementation
from planner.memory.accounting import make_accounting
from planner.memory.form import Counts
from planner.model import MLP, Attention, Layer, Model, MoE
from planner.solver import unequal
from planner.solver.candidates import Pins, Space
from planner.solver.result import Status
from planner.solver.search import Search, search
from planner.timing.form import StageTime, StepForm
from planner.timing.step import Timing
from planner.topology.kinds import node_kinds, placements
from planner.workload import Workload

IMPLEMENTATION = Implementation()
SLOW, FAST = load_card("A100-80G"), load_card("H100-80G")


def small_card(card, mebibytes):
    """A card with so little memory that small models fill it."""
    size = mebibytes * 2**20
    return replace(card, capacity_bytes=size, sold_bytes=size, reserve_bytes=0)


def small_model(pattern):
    """Layers of 50 M parameters: dense (0), or of two experts (1)."""
    dense = Layer(Attention(16, 16, 64), MLP(8192))
    kinds = (dense, Layer(Attention(16, 16, 64), MoE(2, 1, MLP(8192)))) if any(pattern) else (dense,)
    return Model("small", 1024, 4096, kinds, pattern)


def case(pattern, groups, batch=4, seq=512):
    """(model, workload, implementation, cluster, accounting, timing) on groups of (card, nodes, GPUs a node)."""
    cluster = Cluster("mixed", tuple(NodeGroup(*group) for group in groups), Fabric())
    asked = small_model(pattern), Workload(seq, batch), IMPLEMENTATION, cluster
    return *asked, make_accounting("exact", *asked), Timing(*asked)


def everything(model, workload, implementation, cluster, **_):
    """Every legal layout on every order of the kinds."""
    for layout in degrees(cluster, model, workload, implementation, micro_batches=(1, 2, 4)):
        for placement in placements(cluster, layout.pp):
            yield replace(layout, placement=placement)


def agrees(pattern, groups, recompute=("none", "selective"), batch=4):
    """The search finds the brute force's best step, and its plan is sound."""
    asked = case(pattern, groups, batch)
    model, workload, implementation, cluster, accounting, timing = asked
    pins = Pins(recompute=recompute)
    layouts = [x for x in everything(*asked[:4]) if x.recompute.granularity in recompute]
    expected = best_ns(layouts, model, accounting, timing)
    result = Search(*asked, pins=pins, top=2).run()
    if expected is None:
        assert result.status is Status.INFEASIBLE
        return None
    assert result.status is Status.OPTIMAL
    assert result.plans[0].step.step_ns == expected
    for plan in result.plans:
        assert faults(plan, model, workload, implementation, cluster, accounting, timing) == []
    return result.plans[0]


def test_agrees_with_brute_force_on_two_cards():
    """Two H100 and two A100 of little memory: the proved plan is the best of every layout, split and order tried one
    by one, at several amounts of memory of either."""
    rng, fitting = random.Random(7), 0
    for _ in range(4):
        big, small = rng.randint(900, 5000), rng.randint(700, 2500)
        cards = [(small_card(FAST, big), 1, 2), (small_card(SLOW, small), 1, 2)]
        rng.shuffle(cards)
        fitting += agrees((0, 0, 0, 0), cards) is not None
    assert fitting >= 2


def test_agrees_with_brute_force_on_uneven_nodes():
    """A node of two and a node of one A100: nothing divides well, and the proof holds."""
    assert agrees((0, 0, 0, 0, 0), [(small_card(SLOW, 4000), 1, 2), (small_card(SLOW, 2500), 1, 1)], batch=6)


def test_agrees_with_brute_force_when_layers_are_recomputed():
    """Full recomputation of some layers of some stages, where only that fits the smaller card."""
    plan = agrees((0, 0, 0), [(small_card(FAST, 3000), 1, 1), (small_card(SLOW, 900), 1, 1)], ("none", "full"))
    assert plan is not None


def test_agrees_with_brute_force_on_two_kinds_of_layer():
    """Dense layers and layers of experts, whose times differ by card in different proportion."""
    assert agrees((0, 1, 1), [(small_card(FAST, 4500), 1, 1), (small_card(SLOW, 5500), 1, 1)])


@pytest.mark.slow
def test_agrees_with_brute_force_on_many():
    """The same over random small clusters of two and three kinds."""
    rng = random.Random(11)
    for _ in range(25):
        sizes = rng.choice([(1, 1), (2, 2), (2, 1), (1, 3), (1, 1, 1), (2, 1, 1)])
        groups = [(small_card(rng.choice((SLOW, FAST)), rng.randint(600, 5000)), 1, size) for size in sizes]
        pattern = rng.choice([(0, 0, 0), (0, 0, 0, 0), (0, 1, 1), (0, 0, 0, 0, 0)])
        agrees(pattern, groups, rng.choice([("none", "selective"), ("none", "full")]), rng.choice((2, 4, 6)))


def test_more_layers_go_to_the_faster_card():
    """30b on one node of H100 and one of A100: the stages on H100 hold more layers than those on A100."""
    model, cluster = load_model("opt-30b"), parse_gpus("8xH100-80G+8xA100-80G")
    best = search(model, Workload(2048, 1024), IMPLEMENTATION, cluster, top=1).plans[0]
    layers: dict[str, int] = {}
    for stage in best.memory.stages:
        layers[stage.card] = layers.get(stage.card, 0) + stage.layers
    assert layers["H100-80G"] > 1.3 * layers["A100-80G"]


def test_unequal_counts_stand_on_stages_two_to_one():
    """16 H100 and 8 A100: three stages of 8, two of them on H100, with layers in proportion to speed."""
    model, cluster = load_model("13b"), parse_gpus("16xH100-80G+8xA100-80G")
    best = search(model, Workload(2048, 1536), IMPLEMENTATION, cluster, pins=Pins(pp=(3,)), top=1).plans[0]
    cards = [stage.card for stage in best.memory.stages]
    assert sorted(cards) == ["A100-80G", "H100-80G", "H100-80G"]
    on_slow = next(stage.layers for stage in best.memory.stages if stage.card == "A100-80G")
    assert all(stage.layers > 2 * on_slow for stage in best.memory.stages if stage.card == "H100-80G")


def test_larger_card_holds_what_the_smaller_cannot():
    """8 A100 80G and 8 A100 40G: each stage keeps its own card's capacity, and a plan that uses more than 40 GiB of the
    larger card is found where the smaller card's memory everywhere would allow none so fast."""
    model, workload = load_model("13b"), Workload(2048, 2048)
    mixed = search(model, workload, IMPLEMENTATION, parse_gpus("8xA100-80G+8xA100-40G"), top=1).plans[0]
    small = search(model, workload, IMPLEMENTATION, parse_gpus("16xA100-40G"), top=1).plans[0]
    assert mixed.step.step_ns < small.step.step_ns
    assert max(stage.total_bytes for stage in mixed.memory.stages) > load_card("A100-40G").capacity_bytes
    for stage in mixed.memory.stages:
        assert stage.capacity_bytes == load_card(stage.card).capacity_bytes
        assert stage.fits


def test_order_pinned_by_the_user_is_kept():
    """A pinned placement is that of every plan."""
    model, cluster = load_model("13b"), parse_gpus("8xA100-80G+8xA100-40G")
    result = search(model, Workload(2048, 1024), IMPLEMENTATION, cluster, pins=Pins(placement=(1, 0)), top=3)
    assert {plan.layout.placement for plan in result.plans} == {(1, 0)}


def test_space_has_every_order():
    """Every choice of degrees is tried on every order of the kinds; on one kind there is none to try."""
    asked = case((0, 0, 0), [(small_card(FAST, 4000), 1, 2), (small_card(SLOW, 4000), 1, 2)])
    assert set(Space(*asked[:4])) == {
        x if (x.dp * x.cp, x.edp) != (1, 1) or x.zero == 3 else replace(x, zero=0) for x in everything(*asked[:4])
    }
    assert node_kinds(asked[3])[0].gpus == 2


def test_bound_of_unequal_stages_is_met_by_the_best_split():
    """For one kind of layer the bound of the slowest stage is exactly that of the best split, found by trying all."""
    rng = random.Random(3)
    for _ in range(200):
        stages = [(rng.randint(0, 50), (rng.randint(1, 30),)) for _ in range(3)]
        layers = rng.randint(1, 12)
        best = min(
            max(f + n * t[0] for (f, t), n in zip(stages, (a, b, layers - a - b), strict=True))
            for a in range(layers + 1)
            for b in range(layers + 1 - a)
        )
        assert unequal.least_slowest(stages, (layers,)) == best


def test_bound_of_unequal_stages_holds_for_two_kinds():
    """With two kinds of layer it is never above the best split's slowest stage, nor the step bound above its step."""
    rng = random.Random(4)
    for _ in range(100):
        times = [StageTime(rng.randint(0, 50), (rng.randint(1, 30), rng.randint(1, 30)), (0, 0)) for _ in range(2)]
        counts = rng.randint(1, 5), rng.randint(1, 5)
        form = StepForm(rng.randint(1, 4), 1, tuple(times), 0, mixed=True)
        slowest = step = None
        for a in range(counts[0] + 1):
            for b in range(counts[1] + 1):
                held = [(a, b), (counts[0] - a, counts[1] - b)]
                each = [form.microbatch_ns(i, n, (0, 0)) for i, n in enumerate(held)]
                slowest = max(each) if slowest is None else min(slowest, max(each))
                step = form.pipeline_ns(each) if step is None else min(step, form.pipeline_ns(each))
        assert unequal.slowest_bound(form, counts)[0] <= slowest
        assert unequal.layer_bound(form, counts, form.num_microbatches, 1) <= step


@pytest.mark.parametrize("gpus", ["8xH100-80G+8xA100-80G", "8xA100-80G+4xA100-40G", "16xA100-80G+8xA100-40G"])
def test_what_the_bounds_take_for_granted_holds_on_mixed_nodes(gpus):
    """As `test_claims.py`, stage by stage on every order: more virtual stages cost no less than two and hide more of
    the tails, recomputation makes no layer faster, a larger micro-batch lowers no peak."""
    model, cluster, workload = load_model("13b"), parse_gpus(gpus), Workload(2048, 768)
    accounting = make_accounting("exact", model, workload, IMPLEMENTATION, cluster)
    timing, rng = Timing(model, workload, IMPLEMENTATION, cluster), random.Random(2)
    groups = [group for group in Space(model, workload, IMPLEMENTATION, cluster).groups() if group.pp > 1]
    for group in rng.sample(groups, 25):
        layout = replace(group, zero=rng.choice((0, 1)))
        two, more = (timing.form(replace(layout, vpp=vpp)) for vpp in (2, 5))
        plain = timing.form(layout)
        for stage, (base, a, b) in enumerate(zip(plain.stages, two.stages, more.stages, strict=True)):
            assert base.layer_ns == a.layer_ns == b.layer_ns and b.fixed_ns >= a.fixed_ns
            for fewer, many in zip(a.tails, b.tails, strict=True):
                assert many.name == fewer.name and many.fixed_ns <= fewer.fixed_ns
                assert all(x <= y for x, y in zip(many.layer_ns, fewer.layer_ns, strict=True))
            if layout.num_microbatches(workload.global_batch) % 2:
                continue  # twice the micro-batch would not divide the batch
            twice, counts = replace(layout, micro_batch=2 * layout.micro_batch), Counts(((8,),), ((0,),))
            peaks = [accounting.form(x, stage).peak_bytes(counts) for x in (layout, twice)]
            assert peaks[0] <= peaks[1]
