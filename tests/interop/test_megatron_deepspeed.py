"""Launches of Megatron-DeepSpeed, whose layers, pipeline and words are not Megatron-LM's."""

import pytest
from least import launch

from planner.errors import InputError
from planner.interop.megatron.write import megatron_arguments
from planner.model import Norm
from planner.parameters import parameters
from planner.rules import broken_rules


@pytest.mark.parametrize(
    ("layers", "pp", "arguments", "counts"),
    [
        (70, 12, "", [6] * 10 + [5] * 2),
        (70, 12, "--pp-partition-method 'type:transformer|embedding'", [5, *[6] * 10, 5]),
        (78, 12, "--pp-partition-method type:transformer", [7] * 6 + [6] * 6),
        (45, 7, "--pp-partition-method type:transformer|embedding", [6, 7, 7, 7, 7, 6, 5]),
        (
            45,
            7,
            "--pp-partition-method type:transformer|embedding --untie-embeddings-and-output-weights",
            [6, 7, 7, 7, 6, 6, 6],
        ),
        (5, 4, "--pp-partition-method type:transformer|embedding", [1, 2, 2, 0]),
        (70, 72, "--pp-partition-method type:transformer|embedding", [0, *[1] * 70, 0]),
    ],
)
def test_the_split_of_deepspeeds_pipeline(layers, pp, arguments, counts):
    """DeepSpeed shares out what its partition method counts, whether or not it divides. The splits are those of its
    partition_balanced (deepspeed/runtime/utils.py), run on the layer list of Megatron-DeepSpeed's GPTModelPipe."""
    words = f"--deepspeed --num-layers {layers} --pipeline-model-parallel-size {pp} {arguments}"
    got = launch(words, world=pp)
    assert [sum(chunk.num_layers for chunk in stage) for stage in got.layout.stages] == counts
    assert got.problems == ()


def test_more_stages_than_there_is_anything_for_are_a_broken_rule():
    """Of layers alone no stage may be left empty; the rule is DeepSpeed's partition, not Megatron-Core's."""
    got = launch("--deepspeed --num-layers 4 --pipeline-model-parallel-size 6 --micro-batch-size 1", world=6)
    (problem,) = got.problems
    assert problem.id == "stage-split" and problem.source.startswith("deepspeed/runtime/pipe/module.py")


def test_bigscience_has_words_of_its_own():
    """Its gated activations double the first product (transformer.py: ParallelMLP), its positions have other names
    (enums.py: PositionEmbeddingType), and bitsandbytes' Adam keeps moments of a byte (optimizer/__init__.py)."""
    plain = launch("--deepspeed")
    hidden = plain.model.hidden_size
    for name in ("geglu", "liglu", "reglu", "swiglu"):
        gated = launch(f"--deepspeed --glu-activation {name} --no-bias-gelu-fusion")
        assert gated.unrecognised == () and not gated.model.layer_kinds[0].mlp.quick_gelu
        doubled = 4 * hidden * (hidden + 1) * plain.model.num_layers  # weights and biases, ffn is 4 h either way
        assert parameters(gated.model) == parameters(plain.model) + doubled
    with pytest.raises(InputError, match="--glu-activation must be one of geglu, liglu, reglu, swiglu, but was 'glu'"):
        launch("--deepspeed --glu-activation glu")
    assert launch("--deepspeed --position-embedding-type rotary").model.position == "rope"
    assert launch("--deepspeed --position-embedding-type absolute").model.position == "learned"
    eight_bit = launch("--deepspeed --use-bnb-optimizer --fp16")
    assert eight_bit.workload.optimizer == "adamw-8bit"
    assert eight_bit.not_accounted == (
        "--use-bnb-optimizer: the embedding's moments are counted in 8 bits, as all others",
    )


def test_a_partition_method_that_counts_something_else_is_said():
    """By parameters, or by a class that the model has not, decoder layers stand in; an unknown method is refused."""
    deepspeed = "--deepspeed --num-layers 5 --pipeline-model-parallel-size 2"
    got = launch(f"{deepspeed} --pp-partition-method parameters", world=2)
    assert got.not_accounted == ("--pp-partition-method parameters: stages are counted as type:transformer's",)
    with pytest.raises(InputError, match=r"--pp-partition-method must be .* but was given 'profile'"):
        launch(f"{deepspeed} --pp-partition-method profile", world=2)


def test_megatron_deepspeed_has_its_own_layers():
    """Its --transformer-impl is local and unfused unless asked otherwise; Megatron-LM's is Transformer Engine."""
    own = launch("--deepspeed --zero-stage 1").implementation
    assert (own.layer_implementation, own.attention, own.framework) == ("local", "unfused", "megatron-deepspeed")
    asked = launch("--deepspeed --transformer-impl transformer_engine --use-flash-attn-v2").implementation
    assert (asked.layer_implementation, asked.attention) == ("transformer_engine", "flash")


def test_megatron_deepspeed_spells_some_things_otherwise():
    """Norms in lower case, one expert for a dense model, more names for flash attention; its layers never fuse the
    accumulation of gradients."""
    got = launch("--deepspeed --normalization rmsnorm --num-experts 1 --topk 2 --use-flash-attn-triton")
    assert got.model.norm == Norm("RMSNorm") and not got.model.is_moe
    assert got.implementation.attention == "flash" and not got.implementation.gradient_accumulation_fusion
    assert got.unrecognised == ()
    with pytest.raises(InputError, match="must be LayerNorm or RMSNorm, but was given 'rmsnorm'"):
        launch("--normalization rmsnorm")


@pytest.mark.parametrize(
    ("arguments", "fp32"),
    [
        ("--deepspeed", True),
        ("--deepspeed --no-query-key-layer-scaling", False),
        ("--deepspeed --no-query-key-layer-scaling --attention-softmax-in-fp32", True),
        ("", True),
    ],
)
def test_the_precision_of_pytorchs_softmax(arguments, fp32):
    """Megatron-DeepSpeed scales by layers unless told not to, which takes fp32."""
    assert launch(arguments).implementation.attention_softmax_in_fp32 is fp32


def test_ulysses_is_context_parallelism_by_all_to_all():
    """It divides the data-parallel ranks, works around any attention, and comes back when it is written."""
    words = "--deepspeed --zero-stage 1 --ds-sequence-parallel-size 2 --num-layers 4"
    got = launch(words, world=8)
    assert (got.layout.cp, got.layout.dp, got.implementation.cp_comm_type) == (2, 4, "a2a")
    rules = broken_rules(got.model, got.workload, got.implementation, got.layout, 8)
    assert not any(rule.id.startswith("context") for rule in rules)
    written = megatron_arguments(got.model, got.workload, got.implementation, got.layout)
    assert "--ds-sequence-parallel-size" in written and "--context-parallel-size" not in written
    with pytest.raises(InputError, match="FPDT"):
        launch(f"{words} --ds-sequence-parallel-fpdt")


def test_bigsciences_model_arguments():
    """ALiBi has no positions to store, the embedding its own norm, and the vocabulary is padded to what is given."""
    plain = launch("--position-embedding-type none").model
    got = launch("--position-embedding-type alibi --embed-layernorm --pad-vocab-size-to 50432")
    assert (got.model.position, got.model.vocab_size) == ("alibi", 50432)
    assert got.implementation.vocab_divisible_by == 1 and got.unrecognised == ()
    grown = (50432 - plain.vocab_size) * plain.hidden_size + 2 * plain.hidden_size
    assert parameters(got.model) == parameters(plain) + grown


@pytest.mark.parametrize("ep", [1, 2])
def test_deepspeeds_own_experts_exclude_stage_three(ep):
    """Said once, by the reader or by the rule (runtime/engine.py: _validate_zero3_moe_compatibility)."""
    given = f"--deepspeed --zero-stage 3 --num-experts 2 --expert-model-parallel-size {ep} --no-pipeline-parallel"
    got = launch(given)
    broken = [b.id for b in broken_rules(got.model, got.workload, got.implementation, got.layout)]
    said = [*[p.id for p in got.problems], *broken]
    assert said.count("deepspeed-zero3-experts") == 1


@pytest.mark.parametrize(
    ("arguments", "broken"),
    [
        ("--zero-stage 2", ["zero-pipeline"]),
        ("--zero-stage 3", ["zero-pipeline"]),
        ("--zero-stage 2 --no-pipeline-parallel", []),
        ("--zero-stage 1", []),
        ("--zero-stage 1 --no-pipeline-parallel --pipeline-model-parallel-size 2", ["deepspeed-no-pipeline"]),
    ],
)
def test_the_pipeline_runs_with_one_stage_too(arguments, broken):
    """DeepSpeed's pipeline refuses ZeRO 2 and 3, and Megatron-DeepSpeed takes it unless it is told not to."""
    got = launch(f"--deepspeed {arguments}", world=4)
    assert [problem.id for problem in got.problems] == broken
    if not broken:
        words = megatron_arguments(got.model, got.workload, got.implementation, got.layout)
        assert ("--no-pipeline-parallel" in words) == (got.layout.zero == 2)


@pytest.mark.parametrize("framework", ["", "--deepspeed"])
@pytest.mark.parametrize(
    ("ramp", "more", "given"),
    [
        ("16 16 1000", "", "the ramp has 16, micro_batch is 1 and dp is 32"),
        ("32 16 1_000", "", "the ramp has 48, micro_batch is 1 and dp is 32"),
        ("32 20 1000", "", "the ramp is from 32 by 20 to 128"),
        ("256 32 1000", "", "the ramp is from 256 by 32 to 128"),
        ("32 32 1000", "", None),
        ("128 16 1000", "", None),
        ("16 16 1000", "--decrease-batch-size-if-needed", None),
    ],
)
def test_every_batch_of_a_ramp_is_shared_by_the_ranks(framework, ramp, more, given):
    """microbatches.py, later num_microbatches_calculator.py: a start that does not divide ends the run at its first
    step. Where a checkpoint is loaded the ramp may be over, so that it is a note."""
    words = f"{framework} --micro-batch-size 1 --global-batch-size 128 --rampup-batch-size {ramp} {more}"
    found = {problem.id: problem.given for problem in launch(words, world=32).problems}
    assert found.get("batch-ramp") == given
    resumed = launch(f"{words} --load checkpoints", world=32)
    assert "batch-ramp" not in {problem.id for problem in resumed.problems}
    notes = [note for note in resumed.not_accounted if note.startswith("--rampup-batch-size: ")]
    assert len(notes) == (given is not None) and all("past the ramp" in note for note in notes)
