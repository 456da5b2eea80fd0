"""ZeRO 2 and 3 by FSDP2 or DeepSpeed have no main gradients that a matrix product could add to."""

from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation, as_sharded
from planner.layout import OPERATIONS, Layout, Recompute
from planner.memory.accounting import make_accounting
from planner.rules import broken_rules
from planner.stages import even_split
from planner.timing.step import Timing
from planner.workload import Workload

MODEL, CLUSTER, WORKLOAD = load_model("llama-2-7b"), parse_gpus("8xA100-80G"), Workload(4096, 64)


def priced(implementation, zero):
    layout = Layout(dp=8, zero=zero, stages=even_split(MODEL, 1))
    accounting = make_accounting("exact", MODEL, WORKLOAD, implementation, CLUSTER)
    timing = Timing(MODEL, WORKLOAD, implementation, CLUSTER)
    memory = accounting.report(layout)
    assert timing.form(layout) == timing.form(layout)
    return memory.stages, timing.step(layout).step_ns


@pytest.mark.parametrize("framework", ["fsdp2", "deepspeed", "megatron_fsdp"])
@pytest.mark.parametrize("zero", [1, 2, 3])
def test_fusion_is_off_where_there_is_nothing_to_add_to(framework, zero):
    """Asking for the fusion changes nothing under FSDP2 and DeepSpeed; with Megatron's buffers it does."""
    on = Implementation(sharded_framework=framework)
    off = replace(on, gradient_accumulation_fusion=False)
    lost = zero >= 2 and framework != "megatron_fsdp"
    changed = replace(off, grad_reduce_bytes=2) if framework == "deepspeed" else off
    assert as_sharded(on, zero) == (changed if lost else on)
    assert (priced(on, zero) == priced(off, zero)) is lost


def test_deepspeed_sums_gradients_in_the_type_of_the_weights():
    """Unless a launch says otherwise: two bytes of each of a shard's gradients, and of whole ones below stage 2."""
    asked, launched = (
        Implementation(sharded_framework="deepspeed", framework=f) for f in ("megatron", "megatron-deepspeed")
    )
    assert as_sharded(asked, 3).grad_reduce_bytes == 2 and as_sharded(asked, 1).grad_reduce_bytes == 4
    assert as_sharded(launched, 3).grad_reduce_bytes == 4


@pytest.mark.parametrize(
    ("zero", "sharded_by", "legal"), [(3, "fsdp2", True), (1, "fsdp2", False), (3, "deepspeed", False)]
)
def test_operations_are_chosen_where_torch_shards(zero, sharded_by, legal):
    """torchtitan's policy (distributed/activation_checkpoint.py) is no module of Megatron-LM's."""
    implementation = Implementation(sharded_framework=sharded_by)
    layout = Layout(dp=8, zero=zero, recompute=Recompute("selective", (OPERATIONS,)), stages=even_split(MODEL, 1))
    broken = {rule.id for rule in broken_rules(MODEL, WORKLOAD, implementation, layout)}
    assert ("recompute-modules" not in broken) == legal
