"""What `report_theoretical_memory` of Megatron-LM prints, and why it differs: by a pencil, and as its code came out."""

from dataclasses import replace

import pytest

from planner.catalog import load_model
from planner.implementation import Implementation
from planner.layout import FULL, SELECTIVE, Layout
from planner.memory.megatron_estimate import megatron_estimate
from planner.stages import balanced_split
from planner.workload import Workload


def estimate(name, batch=64, **degrees):
    model = load_model(name)
    stages = balanced_split(model, degrees.get("pp", 1), degrees.get("vpp", 1))
    layout = Layout(stages=stages, micro_batch=2, **degrees)
    return megatron_estimate(model, Workload(4096, batch), Implementation(), layout)


def test_llama_by_a_pencil():
    """13B without sharding: 18 bytes a parameter, 10 + 24/t bytes of activations, half-precision logits, 5 % more."""
    got = estimate("llama-2-13b", dp=8)
    h, ffn, vocabulary = 5120, 13824, 32000
    parameters = 40 * (4 * h * h + 3 * h * ffn + 2 * h) + h + 2 * h * vocabulary
    assert got.states_bytes == 18 * parameters
    tokens = 2 * 4096
    kept = 40 * tokens * h * 34 + 8 * tokens + tokens * h + 2 * tokens * (h + vocabulary)
    assert got.activation_bytes == pytest.approx(1.05 * kept, abs=1)


@pytest.mark.parametrize(
    ("name", "degrees", "megabytes"),
    [
        # printed by megatron/training/theoretical_memory_usage.py (main of August 2026) for the same arguments
        (
            "llama-2-13b",
            {"tp": 4, "dp": 4, "sequence_parallel": True, "recompute": SELECTIVE, "zero": 1},
            (27937.31, 11822.02),
        ),
        ("mixtral-8x7b", {"tp": 2, "pp": 4, "dp": 4, "ep": 4, "zero": 1}, (34261.32, 23789.06)),
        (
            "deepseek-v3",
            {
                "tp": 2,
                "pp": 4,
                "vpp": 2,
                "dp": 2,
                "ep": 2,
                "zero": 1,
                "sequence_parallel": True,
                "recompute": SELECTIVE,
            },
            (1028571.53, 66583.17),
        ),
    ],
)
def test_as_megatron_prints_it(name, degrees, megabytes):
    """(weight and optimizer, activation) in MB, to the hundredth that it prints."""
    got = estimate(name, **degrees)
    printed = got.states_bytes / 2**20, got.activation_bytes / 2**20
    assert printed == pytest.approx(megabytes, abs=0.006)


def test_every_difference_has_its_cause():
    """Each sentence is there where it makes a difference, and nowhere else."""
    usual = {"tp": 4, "dp": 4, "sequence_parallel": True, "recompute": SELECTIVE, "zero": 1}
    always = estimate("llama-2-13b", **usual).differences
    assert len(always) == 1 and "no reserve" in always[0]
    for change, said in (
        ({"cp": 2, "dp": 2}, "does not divide activations over CP"),
        ({"recompute": FULL}, "does not know full recomputation"),
        ({"pp": 4, "dp": 1}, "first stage only"),
        ({"pp": 3, "dp": 2}, "the stages differ"),
        ({"zero": 3}, "18 bytes a parameter"),
    ):
        more = estimate("llama-2-13b", batch=48, **usual | change).differences
        assert any(said in sentence for sentence in more), said
    assert any("key and value heads" in s for s in estimate("llama-3-70b", **usual).differences)
    assert any("dense layer" in s for s in estimate("mixtral-8x7b", **usual).differences)


def test_models_without_arguments_have_no_estimate():
    """Layers of two widths, which Megatron-LM cannot be told of."""
    model = load_model("llama-2-7b")
    (kind,) = model.layer_kinds
    narrow = replace(kind, mlp=replace(kind.mlp, ffn_hidden_size=4096))
    mixed = replace(model, layer_kinds=(kind, narrow), pattern=(0, 1) * 16)
    layout = Layout(dp=8, stages=balanced_split(mixed, 1))
    assert megatron_estimate(mixed, Workload(4096, 64), Implementation(), layout) is None
