"""What a Megatron-LM launch computes with: precisions, kernels, exchanges and graphs, by its arguments and by its
environment."""

import pytest
from least import LEAST, launch

from planner.errors import InputError
from planner.interop.megatron.launch import launch_from_text
from planner.rules import broken_rules


@pytest.mark.parametrize(
    ("arguments", "precision", "gradient_bytes"),
    [
        ("--bf16", "bf16", 4),
        ("--bf16 --grad-reduce-in-bf16", "bf16", 2),
        ("--bf16 --use-precision-aware-optimizer --main-grads-dtype bf16", "bf16", 2),
        ("--fp16", "fp16", 2),
        ("--fp16 --accumulate-allreduce-grads-in-fp32", "fp16", 4),
        ("--bf16 --fp8-format hybrid", "fp8", 4),
        ("--bf16 --use-megatron-fsdp", "bf16", 2),
        ("--bf16 --use-megatron-fsdp --megatron-fsdp-main-grads-dtype fp32", "bf16", 4),
    ],
)
def test_precision_of_weights_and_gradients(arguments, precision, gradient_bytes):
    """bf16 implies fp32 main gradients, fp16 does not, Megatron-FSDP keeps the weights' type."""
    got = launch(arguments)
    assert (got.workload.precision, got.implementation.grad_reduce_bytes) == (precision, gradient_bytes)


@pytest.mark.parametrize(
    ("arguments", "kernel"),
    [
        ("", "auto"),
        ("--use-flash-attn", "auto"),
        ("--attention-backend fused", "fused"),
        ("--attention-backend unfused", "unfused"),
        ("--transformer-impl local", "unfused"),
        ("--transformer-impl local --use-flash-attn", "unfused"),
        ("--transformer-impl local --use-flash-attn --use-legacy-models", "flash"),
        ("--use-flash-attn --use-legacy-models", "auto"),
        ("--deepspeed --use-flash-attn", "flash"),
        ("--transformer-impl local --attention-backend flash", "flash"),
        ("--spec local", "unfused"),
    ],
)
def test_attention_kernel(arguments, kernel):
    """Transformer Engine picks a kernel by the card, Megatron's own module is unfused unless told otherwise."""
    assert launch(arguments).implementation.attention == kernel


def test_a_flash_argument_that_nothing_reads_is_said():
    """Megatron-Core parses --use-flash-attn and never reads it, so that its own gpt-oss example, which gives it beside
    attention sinks (examples/gptoss/02_train.sh), runs: sinks would break the rule `attention-sinks` under flash."""
    got = launch("--bf16 --disable-bias-linear --softmax-type learnable --use-flash-attn")
    broken = broken_rules(got.model, got.workload, got.implementation, got.layout)
    assert not any(rule.id == "attention-sinks" for rule in broken)
    assert "--use-flash-attn: has no effect in Megatron-Core (--attention-backend flash has)" in got.not_accounted
    obeyed = launch("--transformer-impl local --use-flash-attn --use-legacy-models")
    assert obeyed.not_accounted == ("--use-legacy-models: layers are counted as Megatron-Core's",)


def test_deterministic_mode_switches_nothing_off():
    """Every release asserts what it does not take in deterministic mode; none changes another argument (determinism.py:
    apply_determinism_to_args is "verification only")."""
    got = launch("--cross-entropy-loss-fusion --tp-comm-overlap --deterministic-mode").implementation
    assert (got.cross_entropy, got.tp_comm_overlap, got.deterministic) == ("native", True, True)


def test_the_dataloader_mask_and_deferred_gradients():
    """Megatron's loader makes a mask unless told not to; a deferral without limit defers every microbatch."""
    plain = launch("--wgrad-deferral-limit 2").implementation
    assert (plain.attention_mask_in_dataloader, plain.deferred_embedding_wgrads) == (True, 0)
    given = launch("--no-create-attention-mask-in-dataloader --defer-embedding-wgrad-compute").implementation
    assert not given.attention_mask_in_dataloader and given.deferred_embedding_wgrads > 1000
    limited = launch("--defer-embedding-wgrad-compute --wgrad-deferral-limit 2").implementation
    assert limited.deferred_embedding_wgrads == 2


def test_options_of_offloading_and_muon_that_change_bytes():
    """The least tensor that is offloaded and the optimizer beside Muon are read; what has no term is said."""
    got = launch("--min-offloaded-tensor-size 5 --optimizer muon --muon-scalar-optimizer lion").implementation
    assert (got.least_offloaded_elements, got.muon_scalar_optimizer) == (5, "lion")
    delta = launch("--delta-offload-bytes-across-pp-ranks 1024").not_accounted
    assert delta == (
        "--delta-offload-bytes-across-pp-ranks 1024: later stages are counted as offloading as much as the first",
    )
    with pytest.raises(InputError, match="--min-offloaded-tensor-size must be at least 0, but was given -1"):
        launch("--min-offloaded-tensor-size -1")


@pytest.mark.parametrize(
    ("exports", "attention"),
    [
        ("", "auto"),
        ("NVTE_FUSED_ATTN=0", "flash"),
        ("NVTE_FLASH_ATTN=0", "fused"),
        ("NVTE_FLASH_ATTN=0 NVTE_FUSED_ATTN=0", "unfused"),
        ("NVTE_UNFUSED_ATTN=0", "auto"),
        ("NVTE_FLASH_ATTN=maybe", "auto"),
    ],
)
def test_transformer_engine_is_told_by_the_environment_which_kernels_it_may_take(exports, attention):
    """get_attention_backend takes none whose variable is 0; an argument goes before the environment."""
    script = "\n".join(f"export {word}" for word in exports.split()) + f"\ntorchrun pretrain_gpt.py {LEAST} --bf16"
    assert launch_from_text(script, "run.sh").implementation.attention == attention
    named = launch_from_text(script + " --attention-backend flash", "run.sh")
    assert named.implementation.attention == "flash"


def test_no_kernel_left_is_one_sentence():
    """All three variables at 0 leave nothing to compute attention with."""
    script = f"NVTE_FLASH_ATTN=0 NVTE_FUSED_ATTN=0 NVTE_UNFUSED_ATTN=0 torchrun pretrain_gpt.py {LEAST}"
    with pytest.raises(InputError, match="one of NVTE_FLASH_ATTN, NVTE_FUSED_ATTN, NVTE_UNFUSED_ATTN must not be 0"):
        launch_from_text(script, "run.sh")


@pytest.mark.parametrize(
    ("text", "name", "blocking", "connections"),
    [
        (f"torchrun pretrain_gpt.py {LEAST}", "run.sh", False, None),
        (
            f"export CUDA_LAUNCH_BLOCKING=1 CUDA_DEVICE_MAX_CONNECTIONS=1\npython pretrain_gpt.py {LEAST}",
            "run.sh",
            True,
            1,
        ),
        (f"CUDA_LAUNCH_BLOCKING=0 CUDA_DEVICE_MAX_CONNECTIONS=32 python pretrain_gpt.py {LEAST}", "run.sh", False, 32),
        (f"export CUDA_LAUNCH_BLOCKING=$DEBUG\npython pretrain_gpt.py {LEAST}", "run.sh", False, None),
        (
            "ENV_VARS: {CUDA_LAUNCH_BLOCKING: 1, CUDA_DEVICE_MAX_CONNECTIONS: '1'}\n"
            "MODEL_ARGS: {--num-layers: 4, --num-attention-heads: 4, --micro-batch-size: 4, --hidden-size: 64, "
            "--seq-length: 32, --vocab-size: 100}",
            "run.yaml",
            True,
            1,
        ),
    ],
)
def test_what_the_environment_of_a_launch_changes(text, name, blocking, connections):
    """CUDA's variables are read from exports, before the command and in a YAML; an unknown value says nothing."""
    got = launch_from_text(text, name).implementation
    assert (got.launch_blocking, got.device_max_connections) == (blocking, connections)


@pytest.mark.parametrize(
    ("arguments", "graphs"),
    [
        ("", ()),
        ("--cuda-graph-impl none --cuda-graph-modules attn", ()),
        ("--cuda-graph-impl transformer_engine", ("layer",)),
        ("--cuda-graph-impl local --cuda-graph-scope full", ("layer",)),
        ("--cuda-graph-impl transformer_engine --cuda-graph-modules moe_router attn", ("attn", "moe_router")),
        ("--cuda-graph-impl transformer_engine --cuda-graph-modules attn,mlp", ("attn", "mlp")),
        ("--cuda-graph-impl local --cuda-graph-modules moe_router", ("moe_router", "moe_preprocess")),
        ("--cuda-graph-impl full_iteration", ("iteration",)),
        ("--cuda-graph-impl local --cuda-graph-scope full_iteration", ("iteration",)),
        ("--enable-cuda-graph", ("layer",)),
        ("--external-cuda-graph --cuda-graph-scope attn", ("attn",)),
    ],
)
def test_what_is_captured_as_cuda_graphs(arguments, graphs):
    """Names and defaults of transformer_config.py, with those of older releases."""
    got = launch(arguments).implementation
    local = graphs not in ((), ("iteration",)) and "transformer_engine" not in arguments and "external" not in arguments
    assert (got.cuda_graphs, got.cuda_graph_impl) == (graphs, "local" if local else "transformer_engine")


@pytest.mark.parametrize("arguments", ["--cuda-graph-impl both", "--cuda-graph-impl local --cuda-graph-modules head"])
def test_graphs_of_nothing_that_exists_are_one_sentence(arguments):
    """A word that Megatron does not know is answered with those that it does."""
    with pytest.raises(InputError, match=r"must be (one )?of .*, but was given"):
        launch(arguments)


@pytest.mark.parametrize(
    ("arguments", "exchange", "noted"),
    [
        ("", "p2p", False),
        ("--cp-comm-type a2a", "a2a", False),
        ("--cp-comm-type all_gather", "allgather", False),
        ("--cp-comm-type a2a+p2p", "a2a+p2p", False),
        ("--cp-comm-type p2p p2p a2a a2a", "p2p", True),
    ],
)
def test_how_context_parallel_ranks_exchange(arguments, exchange, noted):
    """One word for all layers; where they differ the first counts, and the report says so."""
    got = launch(arguments)
    assert got.implementation.cp_comm_type == exchange
    assert any("layers differ" in text for text in got.not_accounted) == noted


def test_an_unknown_exchange_is_one_sentence():
    """The words that there are stand in the sentence."""
    with pytest.raises(
        InputError, match=r"--cp-comm-type must be of p2p, a2a, allgather, a2a\+p2p, but was given 'nvl'"
    ):
        launch("--cp-comm-type nvl")
