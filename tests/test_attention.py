"""Which attention kernel runs, and which softmax where scores are stored."""

from __future__ import annotations

from dataclasses import replace

import pytest

from planner.attention import attention_on, default_attention, fuses_softmax, heads_without_flash
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.exact import ExactAccounting
from planner.memory.report import MemoryReport
from planner.model import MLP, Attention, LatentAttention, Layer, Model
from planner.stages import even_split
from planner.timing.report import StepTime
from planner.timing.step import Timing
from planner.workload import Precision, Workload

ENGINE = Implementation(attention="unfused")
LOCAL = replace(ENGINE, layer_implementation="local")


def model(attention: Attention | LatentAttention) -> Model:
    return Model("model", 1024, 32000, (Layer(attention, MLP(4096)),), (0,) * 8)


PLAIN = model(Attention(8, 8, 128))
SINKS = model(Attention(8, 8, 128, sinks=True))
AUTO = Implementation(attention="auto")


@pytest.mark.parametrize(
    ("attention", "implementation", "widths"),
    [
        (Attention(8, 8, 128), ENGINE, []),
        (LatentAttention(8, 512, 128, 64, 128), ENGINE, []),
        (Attention(8, 8, 150), ENGINE, [150]),
        (Attention(8, 8, 150), LOCAL, []),
        (Attention(8, 8, 512), LOCAL, [512]),
        (LatentAttention(8, 512, 128, 22, 264), ENGINE, [150, 264]),
    ],
)
def test_flash_takes_aligned_heads_up_to_256(attention, implementation, widths):
    """Transformer Engine stores the scores of heads wider than 256 or no multiple of 8."""
    assert heads_without_flash(model(attention), implementation) == widths


@pytest.mark.parametrize(
    ("architecture", "shape", "deterministic", "precision", "kernel"),
    [
        ("volta", PLAIN, False, "fp16", "unfused"),
        ("ampere", PLAIN, False, "bf16", "flash"),
        ("hopper", PLAIN, False, "bf16", "fused"),
        ("hopper", PLAIN, False, "fp8", "fused"),
        ("hopper", PLAIN, False, "fp32", "unfused"),
        ("blackwell", PLAIN, True, "bf16", "flash"),
        ("ampere", SINKS, False, "bf16", "fused"),
        ("hopper", SINKS, True, "bf16", "unfused"),
        ("hopper", model(Attention(8, 8, 150)), False, "bf16", "unfused"),
    ],
)
def test_what_transformer_engine_picks(architecture, shape, deterministic, precision, kernel):
    """By card, shape and precision; cuDNN's sinks have no deterministic backward pass, and nothing takes fp32."""
    assert attention_on(replace(AUTO, deterministic=deterministic), architecture, shape, precision) == kernel


def test_a_kernel_that_was_named_stays_where_it_runs():
    """Where none runs, rules say so and scores are counted as stored."""
    flash = Implementation(attention="flash")
    assert attention_on(flash, "hopper", PLAIN, "bf16") == "flash"
    assert attention_on(flash, "volta", PLAIN, "fp16") == "unfused"
    assert attention_on(flash, "hopper", model(Attention(8, 8, 150)), "bf16") == "unfused"
    assert attention_on(flash, "hopper", PLAIN, "fp32") == "unfused"


@pytest.mark.parametrize(
    ("gpus", "shape", "kernel", "why"),
    [
        ("8xA100-80G", PLAIN, "flash", ""),
        ("8xV100-32G", PLAIN, "unfused", "Ampere or newer"),
        ("8xH100-80G", SINKS, "fused", "no sinks"),
        ("8xH100-80G", model(Attention(8, 8, 150)), "unfused", "no heads of 150"),
    ],
)
def test_what_a_question_that_names_none_takes(gpus, shape, kernel, why):
    chosen, reason = default_attention(shape, parse_gpus(gpus))
    assert chosen == kernel
    assert why in reason and bool(why) == bool(reason)


@pytest.mark.parametrize(
    ("implementation", "seq", "batch_heads", "sinks", "element", "fused"),
    [
        (LOCAL, 4096, 4, False, 2, True),
        (LOCAL, 8192, 4, False, 2, False),
        (LOCAL, 4096, 6, False, 2, False),
        (replace(LOCAL, masked_softmax_fusion=False), 4096, 4, False, 2, False),
        (ENGINE, 8192, 4, False, 2, True),
        (ENGINE, 16384, 4, False, 2, False),
        (ENGINE, 4100, 4, False, 2, False),
        (replace(ENGINE, masked_softmax_fusion=False), 4096, 4, False, 2, True),
        (ENGINE, 4096, 4, True, 2, False),
        (ENGINE, 4096, 4, False, 4, False),
        (LOCAL, 4096, 4, False, 4, False),
    ],
)
def test_where_the_softmax_is_fused(implementation, seq, batch_heads, sinks, element, fused):
    """Megatron's kernel takes 4096 keys, Transformer Engine's less than 16384; --no-masked-softmax-fusion is the
    former's. Sinks and fp32 fit neither."""
    assert fuses_softmax(implementation, seq, batch_heads, sinks, element) is fused


def reports(
    shape: Model, seq: int, implementation: Implementation, precision: Precision = "bf16"
) -> tuple[MemoryReport, StepTime]:
    """Memory and time of a step at micro-batch 1 on 8 A100."""
    cluster, workload = parse_gpus("8xA100-80G"), Workload(seq, 8, precision)
    layout = Layout(dp=8, zero=1, stages=even_split(shape, 1))
    memory = ExactAccounting(shape, workload, implementation, cluster).report(layout, detail=True)
    return memory, Timing(shape, workload, implementation, cluster).step(layout)


def kept_and_seconds(shape: Model, seq: int, implementation: Implementation) -> tuple[int, float]:
    """Activations of a rank [bytes] and seconds of a step at micro-batch 1."""
    memory, step = reports(shape, seq, implementation)
    return memory.stages[0].components["activations"], step.seconds


def test_bytes_and_seconds_agree_on_the_softmax():
    """At 8192 tokens Megatron's own layers keep an fp32 softmax and its half copy, 6 bytes a score, where Transformer
    Engine keeps 2, with up to 4 more of one of the 8 layers at work; and take longer for it."""
    scores = 8 * 8 * 8192**2
    own, engine = (kept_and_seconds(PLAIN, 8192, implementation) for implementation in (LOCAL, ENGINE))
    assert 4 * scores < own[0] - engine[0] < 4.5 * scores
    assert own[1] > 1.2 * engine[1]


def test_sinks_are_one_more_column():
    """PyTorch's softmax of seq + 1 columns, in fp32, and Transformer Engine's half copy of as many."""
    # at 4100 tokens, no multiple of 8, the softmax of a model without sinks is PyTorch's too
    sinks, plain = (kept_and_seconds(shape, 4100, ENGINE)[0] for shape in (SINKS, PLAIN))
    assert sinks - plain == 8 * (4 + 2) * 8 * 4100


def test_ulysses_stores_whole_sequences_of_a_part_of_the_heads():
    """Under an all-to-all over two ranks each has half of the heads and the whole sequence: half of the scores."""
    own = replace(LOCAL, framework="megatron-deepspeed", cp_comm_type="a2a")
    cluster, workload = parse_gpus("8xA100-80G"), Workload(2048, 8)

    def kept(cp: int) -> int:
        layout = Layout(cp=cp, dp=8 // cp, zero=1, stages=even_split(PLAIN, 1))
        accounting = ExactAccounting(PLAIN, workload, own, cluster)
        [stage] = accounting.report(layout, detail=True).stages
        [piece] = [piece for piece in stage.pieces if piece.kind == "dense"]
        return piece.saved_bytes_per_microbatch

    assert kept(1) == 2 * kept(2) and kept(1) > 2 * 8 * 2048**2


def test_a_softmax_in_half_precision_keeps_no_fp32():
    """4 bytes a score less, twice 2: PyTorch's softmax of scores in half precision keeps its output alone."""
    half = replace(LOCAL, attention_softmax_in_fp32=False)
    scores = 8 * 8 * 8192**2
    own, less = (kept_and_seconds(PLAIN, 8192, implementation)[0] for implementation in (LOCAL, half))
    assert 4 * scores < own - less < 4.6 * scores


@pytest.mark.parametrize("implementation", [AUTO, replace(AUTO, layer_implementation="local")])
def test_fp32_stores_its_scores_and_computes_them_without_tensor_cores(implementation):
    """Each layer keeps 4 bytes a probability and one a token pair for the mask beside linear terms, and a step takes no
    less than the six products over the whole square, 2 s^2 d FLOPs a head each, at A100's 19.5 TFLOP/s. With flash
    attention at the 16-bit rate a launch in fp32 had reached 141 % of the card's rate."""
    seq, heads, width, layers = 8192, 8, 128, 8
    memory, step = reports(PLAIN, seq, implementation, "fp32")
    [dense] = [piece for piece in memory.stages[0].pieces if piece.kind == "dense"]
    scores = 4 * heads * seq**2 + seq**2
    assert scores < dense.saved_bytes_per_microbatch < scores + 4 * seq * 1024 * 40
    assert any("fp32" in said and "scores are stored" in said for said in memory.assumptions)
    assert step.seconds > layers * 6 * 2 * heads * seq**2 * width / 19.5e12
    assert step.mfu < 1 and step.seconds > step.lower_bound_seconds
