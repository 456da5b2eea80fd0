"""What FSDP2, Megatron-FSDP and DeepSpeed hold besides their shards."""

from dataclasses import replace
from statistics import median

import pytest
from tiny import LOCAL, accounting, laid_out, model

from planner.layout import Layout
from planner.memory.activations.selective_ops import saved_by_policy
from planner.memory.activations.shape import Shape
from planner.memory.sharded import MEGATRON_PREFETCH_ELEMENTS, sharded_terms
from planner.memory.sharded_units import Units
from planner.memory.states import state_bytes
from planner.model import MLP, Attention, Layer
from planner.parameters import parameters
from planner.units import size
from planner.validation.memory_sharded import sharded_runs
from planner.workload import Workload

BF16 = Workload(8, 8)
UNITS = Units(
    layers=(100,), embedding=30, head=20, stage_layers=4, chunks=1, kept=(0,), shards=(25,), root_shard=13, largest=40,
    accumulates=False,
)  # fmt: skip


def terms_of(framework, zero, units=UNITS, layout=None, **choices):
    impl = replace(LOCAL, sharded_framework=framework, **choices)
    layout = layout or Layout(dp=4, zero=zero)
    return sharded_terms(state_bytes(zero, BF16, impl), impl, layout, units)


def by_name(terms):
    found = {}
    for term in terms:
        found[term.name] = found.get(term.name, 0) + term.bytes
    return found


def test_nothing_is_gathered_below_zero_2():
    """Megatron's distributed optimizer keeps weights and gradients whole, whoever shards above."""
    for framework in ("fsdp2", "deepspeed"):
        impl = replace(LOCAL, sharded_framework=framework)
        names = {
            name
            for zero in (0, 1)
            for stage in accounting(model(), impl).report(laid_out(model(), dp=4, zero=zero), detail=True).stages
            for _, name, _, _ in stage.terms
        }
        assert not {name for name in names if "gathered" in name or "bucket" in name or "reduced" in name}


def test_fsdp2_backward_of_a_layer():
    """Its weights and the next layer's, its gradients, the last layer's reduce-scatter input, the root throughout."""
    found = terms_of("fsdp2", 3)
    assert by_name(found.layers[0]) == {
        "gathered embedding and head": 2 * 50,
        "whole gradient of the head": 2 * 20,
        "whole gradients of a layer": 2 * 100,
        "gathered weights": 2 * 2 * 100,
        "reduce-scatter input": 4 * 100,
    }
    assert by_name(found.loss) == {"gathered embedding and head": 100}


def test_fsdp2_reduces_in_the_chosen_type():
    """bf16 reduction halves the reduce-scatter's input."""
    full, half = terms_of("fsdp2", 3), terms_of("fsdp2", 3, grad_reduce_bytes=2)
    assert by_name(full.layers[0])["reduce-scatter input"] == 2 * by_name(half.layers[0])["reduce-scatter input"]


def test_fsdp2_without_resharding_gathers_nothing_more():
    """ZeRO 2: weights are whole among the states."""
    assert "gathered weights" not in {t.name for t in terms_of("fsdp2", 2).layers[0] if t.bytes}


def test_pipelined_fsdp2_keeps_whole_gradients_between_microbatches():
    """Reduction waits for the last microbatch."""
    found = terms_of("fsdp2", 2, layout=Layout(dp=4, pp=2, zero=2))
    assert by_name(found.always) == {"whole until reduced": 4 * 100 + 4 * 50}


def test_megatron_fsdp_gathers_a_small_model_whole():
    """500 million elements are fetched ahead: all layers of a small model, and the root always."""
    found = terms_of("megatron_fsdp", 3)
    assert by_name(found.always) == {"gathered embedding and head": 2 * 50}
    gathered = [t for t in found.layers[0] if t.name == "gathered weights"]
    assert [(t.times, t.bytes) for t in gathered] == [("layer", 200)]


def test_megatron_fsdp_gathers_a_few_large_layers():
    """Layers of half the prefetch: the one in turn and two ahead."""
    n = MEGATRON_PREFETCH_ELEMENTS // 2
    found = terms_of("megatron_fsdp", 3, replace(UNITS, layers=(n,), stage_layers=32))
    gathered = [t for t in found.layers[0] if t.name == "gathered weights"]
    assert [(t.times, t.bytes) for t in gathered] == [("if_layer", 2 * 3 * n)]


def test_waiting_gradients_count_only_over_the_activations_that_go():
    """A queue of gradients fills as layers' activations are freed."""
    n = MEGATRON_PREFETCH_ELEMENTS
    units = replace(UNITS, layers=(n,), stage_layers=32)
    name = "whole gradients of layers"
    without = by_name(terms_of("megatron_fsdp", 3, units).layers[0])[name]
    behind = by_name(terms_of("megatron_fsdp", 3, replace(units, kept=(10 * n,))).layers[0])[name]
    assert (without, behind) == (4 * n + 2 * 4 * n, 4 * n)


def test_fsdp2_reshards_layers_after_their_backward():
    """At the end of the backward only the root is still gathered (FSDPParamGroup.post_backward: reshard)."""
    assert by_name(terms_of("fsdp2", 2).embedding)["resharded layers"] == -2 * 100
    assert "resharded layers" not in by_name(terms_of("fsdp2", 3).embedding)


def test_replicas_hold_what_was_reduced_beside_the_sums():
    """With replicas the reduce-scatter's outputs live to the end of the backward (AllReduceState); with one microbatch
    they are the gradients themselves."""
    layout = Layout(dp=4, zero=3, hsdp_replicas=2)
    several = replace(UNITS, accumulates=True)
    assert by_name(terms_of("fsdp2", 3, several, layout).embedding)["reduced over the shards"] == 4 * 25
    assert "reduced over the shards" not in by_name(terms_of("fsdp2", 3, UNITS, layout).embedding)
    assert "reduced over the shards" not in by_name(terms_of("fsdp2", 3, several).embedding)


@pytest.mark.parametrize("framework", ["fsdp2", "megatron_fsdp", "deepspeed"])
@pytest.mark.parametrize("zero", [2, 3])
def test_every_framework_reports(framework, zero):
    """Components are never negative and add up."""
    impl = replace(LOCAL, sharded_framework=framework, gradient_accumulation_fusion=False)
    stage = accounting(model(), impl).report(laid_out(model(), dp=4, zero=zero)).stages[0]
    assert all(size >= 0 for size in stage.components.values())
    assert stage.total_bytes == sum(stage.components.values())


def test_saving_by_operation_keeps_every_second_product():
    """Of query, key, value, projection, gate, up and down the odd ones, with attention's output and the input."""
    shape = Shape(seq=8, batch=1, hidden=16, tp=1, sequence_parallel=False)
    layer = Layer(Attention(4, 2, 4), MLP(32, True))
    row = 2 * 8
    assert saved_by_policy(shape, layer) == {
        "layer input": row * 16,
        "query": row * 16,
        "value": row * 8,
        "gate": row * 32,
        "down projection": row * 16,
        "attention output": row * 16,
        "attention logsumexp": 4 * 8 * 4,
    }


def test_published_runs_are_met():
    """Reserved peaks of torchtitan and of DeepSpeed's ZeRO-3: median error within 6 %."""
    runs = list(sharded_runs())
    assert len(runs) == 22
    assert median(abs(run.error) for run in runs) <= 0.06


def test_a_model_built_without_zero_init_is_named():
    """DeepSpeed moves it whole to each GPU before ZeRO-3 divides it: 2 bytes a parameter, said where it can happen."""
    said = {}
    for framework, zero in (("deepspeed", 3), ("deepspeed", 2), ("fsdp2", 3)):
        impl = replace(LOCAL, sharded_framework=framework, gradient_accumulation_fusion=False)
        notes = accounting(model(), impl).report(laid_out(model(), dp=4, zero=zero)).assumptions
        said[framework, zero] = [note for note in notes if "zero.Init" in note]
    assert len(said["deepspeed", 3]) == 1 and size(2 * parameters(model())) in said["deepspeed", 3][0]
    assert not said["deepspeed", 2] and not said["fsdp2", 3]
