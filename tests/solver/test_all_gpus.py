"""What no layout can do without: it is never more than any layout holds, and refutes what the search refutes."""

from dataclasses import replace
from itertools import islice

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.memory.accounting import make_accounting
from planner.memory.form import Counts
from planner.parameters import parameters
from planner.solver.all_gpus import too_much_for_all
from planner.solver.candidates import Pins, Space
from planner.solver.explain import Filtered, leanest
from planner.solver.result import Status
from planner.solver.search import search
from planner.workload import Workload

STATES = ("weights", "gradients", "optimizer", "reserve")
CASES = [
    ("13b", "8xA100-80G", Implementation(), "bf16"),
    ("llama-3-8b", "16xH100-80G", Implementation(precision_aware_optimizer=True), "bf16"),
    ("gpt2-xl", "8xV100-32G", Implementation(attention="unfused"), "fp16"),
    ("deepseek-v2-lite", "16xH100-80G", Implementation(), "fp8"),
    ("mixtral-8x7b", "16xH100-80G", Implementation(sharded_framework="megatron_fsdp"), "bf16"),
    ("7b", "8xA100-80G", Implementation(sharded_framework="deepspeed"), "bf16"),
    (
        "glm-4.5-air",
        "32xH100-80G",
        Implementation(optimizer_offload_fraction=0.5, sharded_framework="deepspeed"),
        "bf16",
    ),
]


@pytest.mark.parametrize("counted_by", ["exact", "rule-of-thumb"])
@pytest.mark.parametrize(("name", "gpus", "implementation", "precision"), CASES, ids=[case[0] for case in CASES])
def test_no_layout_holds_less(name, gpus, implementation, precision, counted_by):
    """Over every degree, ZeRO stage and recomputation: the states and reserves of all ranks of all stages, added up."""
    model, cluster = load_model(name), parse_gpus(gpus)
    workload = Workload(min(2048, model.max_positions), 512, precision)
    space = Space(model, workload, implementation, cluster)
    accounting = make_accounting(counted_by, model, workload, implementation, cluster)
    kinds = range(len(model.layer_kinds))
    seen = set()
    for layout in islice(leanest(space), 0, None, 7):
        floor = sum(accounting.least_held(layout.zero, cluster.gpus).values())
        held = 0
        for stage in range(layout.pp):
            share = model.pattern[stage * model.num_layers // layout.pp : (stage + 1) * model.num_layers // layout.pp]
            row = tuple(share.count(kind) for kind in kinds)
            rest = (tuple(0 for _ in kinds),) * (layout.vpp - 1)
            counts = Counts((row, *rest), (tuple(0 for _ in kinds), *rest))
            form = accounting.form(layout, stage)
            total, components = form.always.values(counts)
            named = dict(zip(("weights", "gradients", "optimizer"), components, strict=False))
            held += (sum(named.values()) + accounting.reserve_bytes) * cluster.gpus // layout.pp
            assert total >= sum(named.values())
        assert held >= floor, layout
        seen.add(layout.zero)
    assert len(seen) > 1


def test_what_it_refutes_the_search_refutes_too():
    """70B on 8 GPUs: nothing fits by either way; on 64 the states have room, and so has a plan."""
    model, workload, implementation = load_model("llama-3-70b"), Workload(4096, 256), Implementation()
    for gpus, refuted in (("8xH100-80G", True), ("64xH100-80G", False)):
        cluster = parse_gpus(gpus)
        space = Space(model, workload, implementation, cluster)
        accounting = make_accounting("exact", model, workload, implementation, cluster)
        assert too_much_for_all(space, accounting) is refuted
        without = replace(Filtered(accounting, frozenset(STATES)))
        assert too_much_for_all(space, without) is refuted
        if refuted:
            result = search(model, workload, implementation, cluster)
            assert result.status is Status.INFEASIBLE and result.statistics["candidates"] > 0


def test_what_sharding_holds_less_of_is_not_refuted():
    """DeepSpeed's ZeRO 3 holds 2 bytes of gradients a parameter, ZeRO 0 and 1 hold 4: 16 N fit where 18 N do not."""
    model, workload = load_model("llama-3-70b"), Workload(1024, 1024)
    implementation, cluster = Implementation(sharded_framework="deepspeed"), parse_gpus("16xH100-80G")
    reserve = 6 * 2**30
    room = cluster.gpus * (cluster.capacity_bytes - reserve)
    assert 18 * parameters(model) > room > 16 * parameters(model)
    pins = Pins(zero=(3,), tp=(4,), recompute=("full",))
    space = Space(model, workload, implementation, cluster, pins)
    accounting = make_accounting("exact", model, workload, implementation, cluster, reserve)
    assert not too_much_for_all(space, accounting)
    result = search(model, workload, implementation, cluster, pins=pins, reserve_bytes=reserve)
    assert result.status is Status.OPTIMAL and result.plans[0].memory.fits


def test_pinned_stages_and_other_accountings():
    """Only the ZeRO stages that are allowed count; the rule of thumb has its own bound of 18 bytes a parameter (234 of
    80 GB), and of cards that count differently there is none."""
    model, workload, cluster = load_model("13b"), Workload(4096, 1024), parse_gpus("1xA100-80G")
    implementation = Implementation()
    exact = make_accounting("exact", model, workload, implementation, cluster)
    by_hand = make_accounting("rule-of-thumb", model, workload, implementation, cluster)
    space = Space(model, workload, implementation, cluster, Pins(zero=(0,)))
    assert too_much_for_all(space, exact) and too_much_for_all(space, by_hand)
    assert not too_much_for_all(Space(model, workload, implementation, parse_gpus("3xA100-80G")), by_hand)
    unlike = parse_gpus("1xA100-80G+1xA100-40G")
    several = make_accounting("rule-of-thumb", model, workload, implementation, unlike)
    assert not too_much_for_all(Space(model, workload, implementation, unlike), several)
    assert not too_much_for_all(space, Filtered(exact, frozenset({"weights"})))
