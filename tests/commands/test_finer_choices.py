"""Recomputation by module, by count and distributed; offloading; fp8 recipes: the same bytes by `plan memory` and by
the Megatron arguments that `plan check` reads."""

from __future__ import annotations

import pytest

DENSE = ("--model", "llama-2-7b", "--gpus", "8xH100-80G", "--tp", "2", "--seq-length", "4096", "--global-batch", "64")
MIXTURE = ("--model", "deepseek-v2-lite", "--gpus", "8xH100-80G", "--ep", "8", "--global-batch", "64")
NO_SP = ("--no-sequence-parallel",)

FULL = ("--recompute", "full")
SELECTIVE = ("--recompute", "selective", "--recompute-modules")
SELECTIVE_MEGATRON = "--recompute-granularity selective --recompute-modules"
FULL_MEGATRON = "--recompute-granularity full --recompute-method"
OFFLOAD_MEGATRON = "--fine-grained-activation-offloading --offload-modules"

CASES = [
    (DENSE, (*SELECTIVE, "core_attn"), f"{SELECTIVE_MEGATRON} core_attn"),
    (DENSE, (*SELECTIVE, "mlp"), f"{SELECTIVE_MEGATRON} mlp"),
    (MIXTURE, (*SELECTIVE, "layernorm"), f"{SELECTIVE_MEGATRON} layernorm"),
    (DENSE, (*SELECTIVE, "core_attn,layernorm,mlp"), f"{SELECTIVE_MEGATRON} mlp core_attn layernorm"),
    (MIXTURE, (*SELECTIVE, "moe"), f"{SELECTIVE_MEGATRON} moe"),
    (MIXTURE, (*SELECTIVE, "moe_act"), f"{SELECTIVE_MEGATRON} moe_act"),
    (MIXTURE, (*SELECTIVE, "shared_experts"), f"{SELECTIVE_MEGATRON} shared_experts"),
    (MIXTURE, (*SELECTIVE, "mla_up_proj"), f"{SELECTIVE_MEGATRON} mla_up_proj"),
    (DENSE, FULL, f"{FULL_MEGATRON} uniform --recompute-num-layers 1"),
    (DENSE, (*FULL, "--recompute-num-layers", "4"), f"{FULL_MEGATRON} uniform --recompute-num-layers 4"),
    (
        DENSE,
        (*FULL, "--recompute-method", "block", "--recompute-num-layers", "5"),
        f"{FULL_MEGATRON} block --recompute-num-layers 5",
    ),
    (
        (*DENSE, *NO_SP),
        (*FULL, "--distribute-saved-activations"),
        f"{FULL_MEGATRON} uniform --recompute-num-layers 1 --distribute-saved-activations",
    ),
    (
        DENSE,
        ("--offload-optimizer", "0.5"),
        "--use-precision-aware-optimizer --optimizer-cpu-offload --optimizer-offload-fraction 0.5",
    ),
    (DENSE, ("--offload-layers", "3"), "--cpu-offloading-num-layers 3"),
    (DENSE, ("--offload-modules", "mlp_norm,core_attn"), f"{OFFLOAD_MEGATRON} core_attn mlp_norm"),
    (MIXTURE, ("--offload-modules", "moe_act"), f"{OFFLOAD_MEGATRON} moe_act"),
]
FP8 = ("--precision", "fp8")


def stages(memory):
    """Components and host memory of each stage."""
    return [(stage["components"], stage.get("host_bytes", 0)) for stage in memory["stages"]]


def checked(plan, tmp_path, model, megatron, plain=(), gpus="8xH100-80G"):
    """The memory that `plan check` reports for the launch that `plan memory` writes, with further arguments."""
    launch = tmp_path / "launch.txt"
    launch.write_text(plan("memory", *model, *plain, "--flags", "megatron").out.rstrip() + f" {megatron}\n")
    answer = plan("check", launch, "--gpus", gpus, "--json")
    assert not answer.data["rules"], answer.data["rules"]
    return stages(answer.data["memory"])


@pytest.mark.parametrize(("model", "options", "megatron"), CASES, ids=[" ".join(case[1]) for case in CASES])
def test_a_choice_is_the_same_in_both_commands(plan, tmp_path, model, options, megatron) -> None:
    """It changes the memory, and by the same bytes in each."""
    before = stages(plan("memory", *model, "--json").data["memory"])
    after = stages(plan("memory", *model, *options, "--json").data["memory"])
    # flash attention has no scores left to recompute: recomputing it keeps its inputs all the same
    assert after != before
    assert checked(plan, tmp_path, model, megatron) == after


@pytest.mark.parametrize("recipe", ["delayed", "tensorwise", "blockwise", "mxfp8"])
@pytest.mark.parametrize("gather", [False, True])
def test_fp8_is_the_same_in_both_commands(plan, tmp_path, recipe, gather) -> None:
    """Each recipe, with weights in bf16 or in fp8."""
    options = (*FP8, "--fp8-recipe", recipe, *(["--fp8-param-gather"] if gather else []))
    megatron = f"--fp8-recipe {recipe}{' --fp8-param-gather' if gather else ''}"
    gpus = "8xB200" if recipe == "mxfp8" else "8xH100-80G"
    model = tuple(gpus if word == "8xH100-80G" else word for word in DENSE)
    after = stages(plan("memory", *model, *options, "--json").data["memory"])
    assert checked(plan, tmp_path, model, megatron, FP8, gpus) == after


@pytest.mark.parametrize(
    "options",
    [
        ("--recompute-num-layers", "3"),
        ("--distribute-saved-activations",),
        (*FULL, "--recompute-method", "block", "--recompute-layers", "3"),
        ("--fp8-recipe", "mxfp8"),
        ("--offload-modules", "everything"),
        ("--offload-optimizer", "2"),
        (*SELECTIVE, "everything"),
    ],
)
def test_choices_that_make_no_sense_are_refused(plan, options) -> None:
    """One sentence on the standard error, exit code 2."""
    answer = plan("memory", *DENSE, *options)
    assert answer.code == 2
    assert not answer.out
    assert "Traceback" not in answer.err
    assert len([line for line in answer.err.splitlines() if line.startswith("Error")]) <= 1


def test_offloaded_bytes_are_told_for_a_node(plan) -> None:
    """A sentence says what a rank and a node of eight pin on the host."""
    data = plan("memory", *DENSE, "--offload-optimizer", "1", "--json").data["memory"]
    host = max(stage["host_bytes"] for stage in data["stages"])
    assert any(f"{8 * host / 2**30:.0f} GiB a node" in note for note in data["assumptions"])


@pytest.mark.parametrize(("method", "meant"), [("block", "every layer is recomputed"), ("uniform", "one group")])
def test_more_recomputed_layers_than_a_chunk_has_are_said(plan, method: str, meant: str) -> None:
    """Megatron stops at the end of a chunk: 99 of 20 layers is what 20 of them is, with a word about it."""
    shared = ("memory", "--model", "13b", "--gpus", "8xA100-80G", "--pp", "2", "--recompute", "full", "--json")
    asked = (*shared, "--recompute-method", method, "--recompute-num-layers")
    most, more = plan(*asked, "20").data, plan(*asked, "99").data
    assert most["memory"]["stages"] == more["memory"]["stages"]
    assert not any("recompute-num-layers" in line for line in most["inputs"]["defaults"])
    (said,) = [line for line in more["inputs"]["defaults"] if "recompute-num-layers 99" in line]
    assert "20 layers" in said and meant in said
