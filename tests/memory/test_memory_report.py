"""The report adds up, and its peak stage is found rather than assumed."""

from fractions import Fraction

import pytest
from tiny import LLAMA, LOCAL, MIXTURE, TE, accounting, laid_out, model, report

from planner.errors import InputError
from planner.implementation import Implementation
from planner.layout import FULL, NO_RECOMPUTE, Layout, Recompute
from planner.memory.accounting import make_accounting
from planner.memory.counts import stage_counts
from planner.memory.form import COMPONENTS, Counts
from planner.parameters import parameters
from planner.stages import split_from_counts
from planner.workload import Workload


def test_components_sum_to_the_totals():
    """total = all components; allocated = total less the reserve; headroom = capacity less total."""
    stage = accounting(model(), reserve=1000).report(laid_out(model())).stages[0]
    assert tuple(stage.components) == COMPONENTS
    assert stage.total_bytes == sum(stage.components.values())
    assert stage.components["reserve"] == 1000
    assert stage.allocated_bytes == stage.total_bytes - 1000
    assert stage.headroom_bytes == stage.capacity_bytes - stage.total_bytes
    assert stage.components[stage.peak_component] == max(stage.components.values())


def test_the_terms_of_the_detail_sum_to_the_components():
    """--detail lists what each component is made of, but for bucket padding, which is the split's own."""
    m = model(MIXTURE, layers=4)
    exact = accounting(m, TE, reserve=7)
    layout = laid_out(m, pp=2, tp=2, sequence_parallel=True, zero=0)
    for stage in exact.report(layout, detail=True).stages:
        for component in COMPONENTS:
            assert sum(b for c, _, b, _ in stage.terms if c == component) == stage.components[component]


def test_the_pieces_of_the_detail_sum_to_the_parameters():
    """Each stage's pieces, times their count, hold its parameters, and their parts theirs."""
    m = model(layers=4, vocab=64, tied=True)
    for stage in accounting(m).report(laid_out(m, pp=2), detail=True).stages:
        assert sum(p.count * p.parameters for p in stage.pieces) == stage.parameters
        assert all(sum(p.parameters_by_part.values()) == p.parameters for p in stage.pieces)
        assert all(sum(b for _, b in p.saved_by_tensor) == p.saved_bytes_per_microbatch for p in stage.pieces)


def test_the_peak_stage_is_searched():
    """A large vocabulary makes the last stage the heaviest, a small one the first."""
    assert report(model(layers=4, vocab=4096), pp=4).peak_stage.stage == 3
    assert report(model(layers=4, vocab=8), pp=4).peak_stage.stage == 0


def test_a_heavy_middle_stage_is_found():
    """Ten layers in the middle weigh more than one at either end."""
    m = model(layers=12)
    layout = Layout(pp=3, stages=split_from_counts(m, [1, 10, 1]))
    assert accounting(m).report(layout).peak_stage.stage == 1


def test_parameters_by_hand():
    """h 4, vocabulary 8, two Llama layers: 80 + 32 + 96 + 32 ... weights of each matrix."""
    layer = (8 + 4 + 4) * 4 + 4 * 8 + 2 * 8 * 4 + 4 * 8 + 2 * 4  # qkv, projection, up and gate, down, two norms
    whole = 8 * 4 + 2 * layer + 4 + 8 * 4  # embedding, layers, final norm, head
    assert report(model()).stages[0].parameters == whole == parameters(model())


def test_states_of_one_stage_by_hand():
    """2 + 4 + 12 bytes a parameter without sharding."""
    stage = report(model()).stages[0]
    n = stage.parameters
    assert [stage.components[c] for c in ("weights", "gradients", "optimizer")] == [2 * n, 4 * n, 12 * n]


def test_a_tied_model_pays_for_a_second_copy_on_the_last_stage():
    """With a pipeline the head is a tensor of its own on the last stage; without, there is one."""
    m = model(layers=2, vocab=64, tied=True)
    assert sum(s.parameters for s in report(m, pp=2).stages) == parameters(m) + 64 * 4
    assert report(m).stages[0].parameters == parameters(m)


def test_the_vocabulary_is_padded_to_128_for_each_tensor_parallel_rank():
    """A vocabulary of 8 becomes 256 rows over two ranks."""
    padded = Implementation(layer_implementation="local", vocab_divisible_by=128)
    exact = accounting(model(), padded).report(laid_out(model(), tp=2), detail=True).stages[0]
    assert next(p.parameters for p in exact.pieces if p.kind == "embedding") == 128 * 4


def test_counts_of_kinds_chunks_and_recomputed_layers():
    """Two dense layers before four of experts, on two stages of two chunks; block recomputes the first of each."""
    m = model(layers=6, layer_kinds=(LLAMA, MIXTURE), pattern=(0, 0, 1, 1, 1, 1))
    stages = split_from_counts(m, [[2, 1], [2, 1]])
    block = Layout(pp=2, vpp=2, stages=stages, recompute=Recompute("full", method="block", num_layers=1))
    assert stage_counts(m, block, 0) == Counts(((2, 0), (0, 1)), ((1, 0), (0, 1)))
    assert stage_counts(m, block, 1) == Counts(((0, 2), (0, 1)), ((0, 1), (0, 1)))
    whole = Layout(pp=2, vpp=2, stages=stages, recompute=FULL)
    assert stage_counts(m, whole, 0).recomputed == ((2, 0), (0, 1))
    some = Layout(pp=2, vpp=2, stages=stages, recompute=Recompute("full", method="block", stage_layers=(3, 0)))
    assert [stage_counts(m, some, i).recomputed for i in (0, 1)] == [((2, 0), (0, 1)), ((0, 0), (0, 0))]


def test_in_flight_is_in_whole_stages():
    """Interleaved chunks count by their share of the stage."""
    found = report(model(layers=8), pp=2, vpp=2, batch=8)
    assert [s.in_flight_microbatches for s in found.stages] == [Fraction(5, 2), Fraction(3, 2)]


@pytest.mark.parametrize("name", ["exact", "rule-of-thumb"])
def test_both_accountings_have_one_interface(name):
    """Form, counts, capacity and report of either; the report evaluates the form."""
    m = model(layers=4)
    exact = accounting(m)
    found = make_accounting(name, m, exact.workload, LOCAL, exact.cluster, 0)
    layout = laid_out(m, pp=2)
    for i, stage in enumerate(found.report(layout).stages):
        _, components = found.form(layout, i).peak(found.counts(layout, i))
        assert sum(components.values()) == stage.total_bytes
        assert stage.capacity_bytes == found.stage_capacity_bytes(layout, i)


def test_another_accounting_is_refused():
    """One sentence with the two names."""
    with pytest.raises(InputError, match=r"exact, rule-of-thumb; given 'guess'"):
        make_accounting("guess", model(), Workload(8, 8), LOCAL, accounting(model()).cluster)


def test_what_is_named_and_not_there_is_told():
    """Megatron takes modules that a model has none of without a word. One accounting tells each layout its own."""
    idle = {kind: f"recompute of {kind} changes nothing: the model has none" for kind in ("moe_act", "mlp")}
    for m, kind in ((model(layers=2), "moe_act"), (model(MIXTURE, layers=2), "mlp")):
        exact = accounting(m, TE)
        plain, named = (exact.report(laid_out(m, recompute=r)) for r in (NO_RECOMPUTE, Recompute("selective", (kind,))))
        assert idle[kind] in named.assumptions and idle[kind] not in plain.assumptions
        assert named.peak_stage.total_bytes == plain.peak_stage.total_bytes
    offloads = Implementation(offload_modules=("moe_act",))
    assert any("offloading of moe_act moves nothing" in note for note in report(model(layers=2), offloads).assumptions)
