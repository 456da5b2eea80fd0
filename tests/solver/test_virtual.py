"""What numbers of virtual stages can do at best, against every way to share out the layers."""

from __future__ import annotations

import sys
from itertools import product
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

from brute import _compositions

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.solver.candidates import Space
from planner.solver.problem import chunked_totals, even_chunk
from planner.solver.virtual import best_virtual, longest_stage
from planner.workload import Workload


def test_the_longest_stage_is_the_least_of_all_ways_to_share_out():
    """Every choice of one of the numbers of layers that each stage can hold, kept where they add up to the model's."""
    shared = 0
    for layers, pp, vpp in product(range(2, 27), (2, 3, 4), (2, 3, 4)):
        if pp * vpp > layers + 2:
            continue
        even = even_chunk(layers, pp, vpp)
        stages = [chunked_totals(even, vpp, stage in (0, pp - 1)) for stage in range(pp)]
        longest = [max(each) for each in product(*stages) if sum(each) == layers]
        assert longest_stage(layers, pp, vpp) == min(longest, default=None), (layers, pp, vpp)
        shared += bool(longest)
    assert shared > 50


def test_one_chunk_a_stage_shares_out_evenly():
    """The least of all compositions, of which each has a stage with the ceiling of the mean at least."""
    for layers, pp in product(range(3, 9), (1, 2, 3)):
        assert longest_stage(layers, pp, 1) == min(map(max, _compositions(layers, pp)))


def test_no_number_of_virtual_stages_is_better_than_those_kept():
    """Any other has no more virtual stages than one that is kept, and no shorter longest stage."""
    for layers, pp in product((24, 61, 92, 94), (2, 3, 4, 8, 16)):
        sizes = range(1, (layers + 2) // pp + 1)
        kept = best_virtual(layers, pp, tuple(sizes))
        for vpp in sizes:
            longest = longest_stage(layers, pp, vpp)
            assert longest is None or any(v >= vpp and n <= longest for v, n in kept)


def test_microbatches_decide_how_many_virtual_stages_there_can_be():
    """With 6 microbatches 4 stages interleave none, 3 stages any number: that is all that bounds may use."""
    model, cluster = load_model("llama-2-7b"), parse_gpus("12xA100-80G")
    space = Space(model, Workload(4096, 6), Implementation(), cluster)
    assert space.virtual_sizes(Layout(pp=4, tp=3, micro_batch=1)) == (1,)
    assert space.virtual_sizes(Layout(pp=3, tp=4, micro_batch=1)) == tuple(range(1, 12))
    for group in space.groups():
        legal = {x.vpp for x in space.extend(group, "vpp")}
        assert legal <= set(space.virtual_sizes(group))
