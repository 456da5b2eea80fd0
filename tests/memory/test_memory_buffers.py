"""Buffers that belong to no layer: scratch, workspaces, tables, masks, placeholders; by hand."""

from dataclasses import replace

import pytest
from tiny import GPT, LLAMA, LOCAL, MIXTURE, TE, accounting, laid_out, model, shape

from planner.layout import Layout
from planner.memory.buffers import MIB, dummy_gradient_terms, workspace_bytes
from planner.parameters import layer_weights
from planner.stages import split_from_counts


def buffers(m, impl, **degrees):
    """Bytes of each buffer on the first stage."""
    exact = accounting(m, impl, seq=32)
    form = exact.form(laid_out(m, **degrees), 0)
    return {t.name: t.bytes for t in form.always.terms if t.component == "buffers"}


def test_unfused_attention_keeps_a_scratch_for_the_scores():
    """2 a s^2 b / t bytes once a rank (GlobalMemoryBuffer)."""
    m = model(GPT, position="none")
    assert buffers(m, replace(LOCAL, attention="unfused"), tp=2)["global memory buffer"] == 2 * 2 * 32 * 32


def test_sequence_parallelism_keeps_a_scratch_for_the_gathered_input():
    """2 s b h bytes once a rank; the larger of both is the one buffer. None in Transformer Engine's layers."""
    m = model(GPT, position="none")
    sharded = {"tp": 2, "sequence_parallel": True}
    assert buffers(m, LOCAL, **sharded)["global memory buffer"] == 2 * 32 * 4
    both = buffers(m, replace(LOCAL, attention="unfused"), **sharded)
    assert both["global memory buffer"] == max(2 * 32 * 4, 2 * 2 * 32 * 32)
    assert "global memory buffer" not in buffers(m, TE, **sharded)


@pytest.mark.parametrize(("precision", "bytes_each"), [("bf16", 12 * 2), ("fp8", 8 + 4 * 2)])
def test_overlapped_tensor_parallelism_has_twelve_user_buffers(precision, bytes_each):
    """Eight of gathers, in one byte with fp8, and four of scatters, each of the whole stream (initialize_ub); outside
    the allocator."""
    m, impl = model(LLAMA), replace(TE, tp_comm_overlap=True)
    exact = accounting(m, impl, seq=32, precision=precision)
    form = exact.form(laid_out(m, tp=2, sequence_parallel=True), 0)
    found = [t for t in form.always.terms if t.name == "user buffers of overlapped tensor parallelism"]
    assert [(t.component, t.bytes) for t in found] == [("reserve", bytes_each * 32 * 4)]


def test_the_rotary_table_is_fp32_and_one_for_the_model():
    """4 bytes for each position and rotary feature."""
    assert buffers(model(LLAMA), LOCAL)["rotary table"] == 4 * 32 * 2
    assert "rotary table" not in buffers(model(LLAMA, position="none"), LOCAL)


def test_the_dataloader_s_mask_is_quadratic_and_on_the_ends_only():
    """One byte for each pair of positions, on the stages of the embedding and the loss."""
    exact = accounting(model(layers=3), TE, seq=32)
    layout = laid_out(exact.model, pp=3)
    masks = [{t.name: t.bytes for t in exact.form(layout, i).always.terms}.get("attention mask") for i in range(3)]
    assert masks == [32 * 32, None, 32 * 32]
    assert "attention mask" not in buffers(model(), replace(TE, attention_mask_in_dataloader=False))


def test_a_pipeline_holds_three_streams_more():
    """Receive buffers and the chunk's last inputs: 3 x 2 s b h bytes."""
    assert buffers(model(), LOCAL, pp=2)["pipeline buffers"] == 3 * 2 * 32 * 4
    assert "pipeline buffers" not in buffers(model(), LOCAL)


def test_workspaces_by_card_and_implementation():
    """cuBLAS takes 32 MiB a handle on Hopper, 8320 KiB before; Transformer Engine adds its own, grouped ones four."""
    assert workspace_bytes(model(), TE, "hopper") == (2 * 32 + 32) * MIB
    assert workspace_bytes(model(), TE, "ampere") == 2 * 8320 * 1024 + 4 * MIB
    assert workspace_bytes(model(MIXTURE), TE, "hopper") == (2 * 32 + 32 + 4 * 32) * MIB
    assert workspace_bytes(model(), LOCAL, "hopper") == 0
    assert workspace_bytes(model(), replace(LOCAL, deterministic=True), "hopper") == 2 * 32 * MIB


def placeholders(kinds, **changes):
    weights = [layer_weights(kind, 4, model().norm) for kind in kinds]
    return dummy_gradient_terms(replace(TE, **changes), weights, (), has_loss=False)


def test_one_placeholder_gradient_for_each_distinct_shape():
    """qkv 16 x 4, projection 4 x 8 (as down), up and gate 16 x 4 (as qkv): two shapes, 2 bytes an element."""
    assert sum(t.bytes for t in placeholders([LLAMA])) == 2 * (16 * 4 + 4 * 8)
    assert not placeholders([LLAMA], gradient_accumulation_fusion=False)
    assert not placeholders([LLAMA], layer_implementation="local")


def test_a_stage_of_experts_alone_keeps_the_attention_s_placeholders():
    """What dense and mixture layers have in common is there whichever of them the stage holds."""
    m = model(layers=2, layer_kinds=(LLAMA, MIXTURE), pattern=(0, 1))
    exact = accounting(m, TE)
    layout = Layout(pp=2, stages=split_from_counts(m, [1, 1]))
    for stage in exact.report(layout, detail=True).stages:
        kept = {name: size for component, name, size, _ in stage.terms if component == "buffers"}
        assert kept["placeholder gradients"] == 2 * (16 * 4 + 4 * 8)


def test_the_shape_of_a_rank():
    """Residual streams are divided by tp under sequence parallelism, sequences by cp before."""
    assert shape(tp=2).stream == 64
    assert shape(tp=2, sequence_parallel=True).stream == 32
    assert shape(seq=4, cp=2).full_stream == 32
