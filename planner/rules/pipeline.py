"""Rules about pipeline stages, virtual stages and their microbatches."""

from __future__ import annotations

from planner.rules.rule import Case, Rule, close_to, divisors


def _chunks_fill(c: Case) -> bool:
    """Every slice needs a layer, except the first and the last, which hold the embedding and the loss."""
    slices = c.layout.pp * c.layout.vpp
    return slices <= (c.model.num_layers if slices == 1 else c.model.num_layers + 2)


LAYERS = Rule(
    "pipeline-layers",
    "each of the pp x vpp slices must hold a decoder layer, the embedding or the loss",
    "megatron/core/transformer/pipeline_parallel_layer_layout.py: validate_layer_layout",
    ("pp", "vpp"),
    _chunks_fill,
    lambda c: f"num_layers is {c.model.num_layers} and pp x vpp is {c.layout.pp * c.layout.vpp}",
    lambda c: f"pp x vpp may be at most {c.model.num_layers + 2}",
)


def _split_is_whole(c: Case) -> bool:
    stages = c.layout.stages
    if not stages:
        return True
    if len(stages) != c.layout.pp or any(len(stage) != c.layout.vpp for stage in stages):
        return False
    order = [stages[s][v] for v in range(c.layout.vpp) for s in range(c.layout.pp)]
    edges = [0] + [chunk.stop for chunk in order]
    return (
        all(chunk.start == edge for chunk, edge in zip(order, edges, strict=False))
        and edges[-1] == c.model.num_layers
        and all(chunk.num_layers >= 0 for chunk in order)
        and [chunk.embedding for chunk in order] == [True] + [False] * (len(order) - 1)
        and [chunk.loss for chunk in order] == [False] * (len(order) - 1) + [True]
    )


SPLIT = Rule(
    "pipeline-split",
    "the stages must hold every decoder layer once, in order, between the embedding and the loss",
    "megatron/core/transformer/pipeline_parallel_layer_layout.py: validate_layer_layout",
    ("pp", "vpp", "stages"),
    _split_is_whole,
    lambda c: (
        f"there are {len(c.layout.stages)} stages for pp {c.layout.pp} and vpp {c.layout.vpp} holding "
        f"{sum(chunk.num_layers for stage in c.layout.stages for chunk in stage)} of {c.model.num_layers} layers"
    ),
)
VIRTUAL_NEEDS_PIPELINE = Rule(
    "virtual-needs-pipeline",
    "virtual stages need pp > 1",
    "megatron/training/arguments.py: validate_args (virtual_pipeline_model_parallel_size)",
    ("pp", "vpp"),
    lambda c: c.layout.vpp == 1 or c.layout.pp > 1,
    lambda c: f"vpp is {c.layout.vpp} and pp is {c.layout.pp}",
)


def _group_size(c: Case) -> int:
    return c.implementation.microbatch_group_size or c.layout.pp


def _interleaves(c: Case) -> bool:
    if c.layout.vpp == 1:
        return True
    group, m = _group_size(c), c.num_microbatches
    return c.layout.pp <= group <= m and (m % group == 0 or m % group >= c.layout.pp)


VIRTUAL_MICROBATCHES = Rule(
    "virtual-microbatches",
    "with virtual stages, the microbatches must be a multiple of the group of one virtual stage (pp by default), "
    "or leave a remainder of at least pp",
    "megatron/core/pipeline_parallel/schedules.py: forward_backward_pipelining_with_interleaving "
    "(found only while running)",
    ("pp", "vpp", "dp", "micro_batch"),
    _interleaves,
    lambda c: f"there are {c.num_microbatches} microbatches, the group is {_group_size(c)} and pp is {c.layout.pp}",
    lambda c: f"the nearest legal pp is {close_to(c.layout.pp, divisors(max(1, c.num_microbatches)))}",
)


def _plain_schedule(c: Case) -> bool:
    return c.implementation.schedule == "1f1b" or c.layout.vpp == 1


SCHEDULE_VIRTUAL = Rule(
    "schedule-virtual",
    "virtual stages belong to the 1F1B schedule",
    "zero-bubble and DualPipe bring their own order: deepseek-ai/DualPipe dualpipe/dualpipe.py",
    ("vpp",),
    _plain_schedule,
    lambda c: f"the schedule is {c.implementation.schedule} and vpp is {c.layout.vpp}",
)


def _dualpipe(c: Case) -> bool:
    if c.implementation.schedule != "dualpipe":
        return True
    return c.layout.pp % 2 == 0 and c.num_microbatches % 2 == 0 and c.num_microbatches >= 2 * c.layout.pp


DUALPIPE = Rule(
    "schedule-dualpipe",
    "DualPipe needs an even pp and an even number of microbatches of at least 2 x pp",
    "deepseek-ai/DualPipe dualpipe/dualpipe.py: DualPipe.step",
    ("pp", "dp", "micro_batch"),
    _dualpipe,
    lambda c: f"pp is {c.layout.pp} and there are {c.num_microbatches} microbatches",
)
OFFLOAD = Rule(
    "offload-layers",
    "offloading layers' activations needs pp 1, no recompute, and fewer layers than the model has",
    "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__ (cpu_offloading)",
    ("pp", "recompute"),
    lambda c: (
        c.implementation.offload_activation_layers == 0
        or (
            c.layout.pp == 1
            and c.layout.recompute.granularity == "none"
            and c.implementation.offload_activation_layers < c.model.num_layers
        )
    ),
    lambda c: (
        f"{c.implementation.offload_activation_layers} of {c.model.num_layers} layers are offloaded with "
        f"pp {c.layout.pp} and recompute {c.layout.recompute}"
    ),
)
DEFERRED = Rule(
    "pipeline-deferred-gradients",
    "deferring the weight gradients of the head needs pp > 1 and gradient accumulation fusion",
    "megatron/core/model_parallel_config.py: ModelParallelConfig.__post_init__ (defer_embedding_wgrad_compute)",
    ("pp",),
    lambda c: (
        c.implementation.deferred_embedding_wgrads == 0
        or not c.megatron_lm
        or (c.layout.pp > 1 and c.implementation.gradient_accumulation_fusion)
    ),
    lambda c: (
        f"pp is {c.layout.pp} and the fusion is {'on' if c.implementation.gradient_accumulation_fusion else 'off'}"
    ),
)

PIPELINE_RULES = (
    LAYERS,
    SPLIT,
    VIRTUAL_NEEDS_PIPELINE,
    VIRTUAL_MICROBATCHES,
    SCHEDULE_VIRTUAL,
    DUALPIPE,
    OFFLOAD,
    DEFERRED,
)
