"""When a stage's memory peaks: each moment can be the one, and which it is follows from the sizes."""

from dataclasses import replace

import pytest
from tiny import GPT, LLAMA, LOCAL, accounting, laid_out, model, report

from planner.layout import FULL, Recompute

DENSE_GRADIENTS = replace(LOCAL, gradient_accumulation_fusion=False)


@pytest.mark.parametrize(
    ("moment", "stage", "vocab", "impl", "seq", "degrees"),
    [
        ("loss", 0, 8, LOCAL, 8, {}),
        ("backward", 0, 8, LOCAL, 8, {"pp": 2}),
        ("recompute", 0, 8, LOCAL, 8, {"recompute": FULL}),
        ("embedding backward", 0, 4096, LOCAL, 8, {"pp": 2}),
        ("head backward", 1, 4096, DENSE_GRADIENTS, 1, {"pp": 2}),
        ("optimizer step", 0, 8, replace(LOCAL, grad_reduce_bytes=2), 8, {"recompute": FULL}),
    ],
)
def test_each_moment_can_be_the_peak(moment, stage, vocab, impl, seq, degrees):
    """A large vocabulary moves the peak to the embedding or the head, half-precision gradients to the optimizer."""
    found = report(model(layers=4, vocab=vocab), impl, seq=seq, batch=2, **degrees)
    assert found.stages[stage].moment == moment


def test_the_peak_is_the_largest_of_all_moments():
    """The form's peak is the maximum over its moments, and its bytes are the moment's."""
    exact = accounting(model(layers=4, vocab=64))
    layout = laid_out(exact.model, pp=2)
    for stage in range(2):
        form, counts = exact.form(layout, stage), exact.counts(layout, stage)
        totals = {m.sums.bytes(counts) for m in form.moments}
        _, components = form.peak(counts)
        assert sum(components.values()) == max(totals) == form.peak_bytes(counts)
        assert len(totals) > 1


def test_the_loss_by_hand():
    """One stage, 8 tokens, vocabulary 16: fp32 softmax, half-precision logits, ids and temporaries."""
    components = report(model(vocab=16)).stages[0].components
    assert components["logits"] == 4 * 8 * 16 + 9 * 8 + 2 * 8 * 16 + 16 * 8


def test_the_last_stage_pays_for_the_logits_alone():
    """Only the stage of the loss holds logits."""
    first, last = report(model(vocab=64), pp=2).stages
    assert first.components["logits"] == 0
    assert last.components["logits"] > 0


def test_the_first_of_two_stages_keeps_two_microbatches():
    """2 microbatches of a layer and the gradients of one: the activations of a middle stage by hand."""
    exact = accounting(model(layers=2))
    layout = laid_out(exact.model, pp=2)
    cost = exact.pieces(layout)[0][0]
    stage = exact.report(layout).stages[0]
    assert stage.moment == "backward"
    assert stage.components["activations"] == 2 * cost.saved_bytes + cost.backward_bytes


def test_a_second_embedding_gradient_where_the_head_is_tied():
    """Autograd adds the gradients of both uses: three half-precision copies of the matrix, not one."""
    tied = report(model(vocab=4096, tied=True), DENSE_GRADIENTS, seq=1).stages[0]
    assert tied.moment == "embedding backward"
    assert tied.components["buffers"] >= 3 * 2 * 4096 * 4


def test_half_precision_gradients_are_copied_for_the_optimizer():
    """4 bytes a parameter of fp32 copies at the optimizer step, beside the 2-byte gradients."""
    stage = report(model(), replace(LOCAL, grad_reduce_bytes=2), seq=2, recompute=FULL).stages[0]
    assert stage.moment == "optimizer step"
    assert stage.components["gradients"] == (2 + 4) * stage.parameters
    assert stage.components["activations"] == stage.components["logits"] == 0


def test_full_recomputation_keeps_the_inputs_and_rebuilds_one_layer():
    """64 bytes for each of 4 layers in place of everything, and one layer with its gradients over it."""
    exact = accounting(model(layers=4))
    layout = laid_out(exact.model, recompute=FULL)
    cost = exact.pieces(layout)[0][0]
    stage = exact.report(layout).stages[0]
    assert cost.checkpoint_bytes == 64
    assert stage.moment == "recompute"
    assert stage.components["activations"] == 4 * 64 + cost.recompute_bytes


def test_a_rebuilt_layer_stands_where_a_kept_one_would():
    """Rebuilding needs the layer's tensors again, less its input, which is the checkpoint."""
    cost = accounting(model()).pieces(laid_out(model()))[0][0]
    assert cost.backward_bytes < cost.recompute_bytes <= cost.backward_bytes + cost.saved_bytes


@pytest.mark.parametrize("layer", [LLAMA, GPT])
def test_recomputing_more_layers_never_needs_more_on_a_pipelined_stage(layer):
    """Block recomputation of 1, 2, 3 and 4 of 4 layers on the first of two stages, in order."""
    m = model(layer, layers=8)
    totals = [
        report(m, batch=8, pp=2, recompute=Recompute("full", method="block", num_layers=n)).stages[0].total_bytes
        for n in (1, 2, 3, 4)
    ]
    assert totals == sorted(totals, reverse=True)


def test_deepspeed_casts_the_embeddings_gradient():
    """Where bf16 gradients are summed in fp32, the copy on its way takes 4 bytes an element instead of the 2 of the
    gradient itself; the sums stand beside them."""
    own = replace(DENSE_GRADIENTS, framework="megatron-deepspeed")
    plain, deepspeed = (report(model(layers=4, vocab=4096), i, seq=8, pp=2).stages[0] for i in (DENSE_GRADIENTS, own))
    assert plain.moment == deepspeed.moment == "embedding backward"
    streams = (1 - 3) * 64  # of the pipeline
    assert deepspeed.components["buffers"] - plain.components["buffers"] == 2 * 4096 * 4 + streams
    assert deepspeed.components["gradients"] == plain.components["gradients"] * 6 // 4


@pytest.mark.parametrize(("tp", "part"), [(1, 64), (2, 32)])
def test_deepspeeds_pipeline_keeps_a_part_of_its_outputs(tp, part):
    """Each of two microbatches in flight keeps a tensor-parallel rank's part of what the first stage sent on; the last
    stage sends nothing. Megatron lets it go."""
    own = replace(LOCAL, framework="megatron-deepspeed")
    megatron, deepspeed = (report(model(layers=4), i, seq=8, batch=4, pp=2, tp=tp).stages for i in (LOCAL, own))
    kept = [d.components["activations"] - m.components["activations"] for d, m in zip(deepspeed, megatron, strict=True)]
    assert kept == [2 * part, 0]
