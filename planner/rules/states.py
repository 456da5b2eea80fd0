"""Rules about recomputation, sharded states, the optimizer and the precision."""

from __future__ import annotations

from planner.layout import OPERATIONS
from planner.model import LatentAttention
from planner.rules.rule import Case, Rule

MODULES = ("core_attn", "layernorm", "mla_up_proj", "mlp", "moe", "moe_act", "shared_experts")
"""What selective recomputation can name (transformer_config.py: allowed_modules)."""
_CONFIG = "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__"


def _fsdp2(c: Case) -> bool:
    return c.layout.zero >= 2 and c.implementation.sharded_framework == "fsdp2"


def _recompute_counts(c: Case) -> bool:
    r = c.layout.recompute
    if r.granularity != "full":
        return not r.stage_layers
    if r.stage_layers:
        return len(r.stage_layers) == c.layout.pp and min(r.stage_layers) >= 0
    return r.num_layers is not None and r.num_layers >= 1


RECOMPUTE_COUNT = Rule(
    "recompute-layers",
    "full recompute needs a count of at least 1 layer, or one count for each stage, and only full has counts",
    _CONFIG,
    ("pp", "recompute"),
    _recompute_counts,
    lambda c: (
        f"recompute is {c.layout.recompute.granularity} with "
        f"{c.layout.recompute.num_layers or 'no number of'} layers and "
        f"{list(c.layout.recompute.stage_layers) or 'no counts'} for stages at pp {c.layout.pp}"
    ),
)


def _modules_known(c: Case) -> bool:
    r = c.layout.recompute
    if r.granularity != "selective":
        return not r.modules
    if r.modules == (OPERATIONS,):
        return _fsdp2(c)
    return bool(r.modules) and set(r.modules) <= set(MODULES)


RECOMPUTE_MODULES = Rule(
    "recompute-modules",
    f"selective recompute names at least one of {', '.join(MODULES)}, or op alone where torch FSDP2 shards, and only "
    "selective names any",
    _CONFIG,
    ("recompute", "zero"),
    _modules_known,
    lambda c: f"the modules are {', '.join(c.layout.recompute.modules) or 'none'}",
)


def _module_prerequisites(c: Case) -> bool:
    modules = c.layout.recompute.modules
    return (
        ("mla_up_proj" not in modules or any(isinstance(a, LatentAttention) for a in c.attentions))
        and ("moe_act" not in modules or c.implementation.moe_grouped_gemm)
        and ("shared_experts" not in modules or not c.implementation.moe_shared_expert_overlap)
    )


RECOMPUTE_PREREQUISITES = Rule(
    "recompute-prerequisites",
    "recomputing mla_up_proj needs latent attention, moe_act the grouped GEMM, "
    "and shared_experts no shared-expert overlap",
    _CONFIG,
    ("recompute",),
    _module_prerequisites,
    lambda c: f"the modules are {', '.join(c.layout.recompute.modules)} for {c.model.name}",
)


def _delayed_recompute(c: Case) -> bool:
    """Of the releases that recompute modules only the first, core_r0.12, takes this."""
    delayed = c.workload.precision == "fp8" and c.implementation.fp8_recipe == "delayed"
    return not delayed or not c.megatron_lm or not {"layernorm", "moe_act"} & {*c.layout.recompute.modules}


RECOMPUTE_FP8 = Rule(
    "recompute-fp8-delayed",
    "fp8 with delayed scaling excludes recomputing layernorm and moe_act",
    f"{_CONFIG} (fp8_recipe)",
    ("recompute",),
    _delayed_recompute,
    lambda c: f"the modules are {', '.join(c.layout.recompute.modules)}",
    lambda c: "the recipes tensorwise, blockwise and mxfp8 would do",
)
DISTRIBUTED_ACTIVATIONS = Rule(
    "recompute-distributed-activations",
    "distributing saved activations needs tp > 1, full recompute and no sequence parallelism",
    "megatron/training/arguments.py: validate_args (distribute_saved_activations)",
    ("tp", "sequence_parallel", "recompute"),
    lambda c: (
        not c.layout.recompute.distribute_saved_activations
        or (c.layout.tp > 1 and c.layout.recompute.granularity == "full" and not c.layout.sequence_parallel)
    ),
    lambda c: (
        f"tp is {c.layout.tp}, recompute {c.layout.recompute}, "
        f"sequence parallelism {'on' if c.layout.sequence_parallel else 'off'}"
    ),
)
ZERO_PIPELINE = Rule(
    "zero-pipeline",
    "zero 2 and 3 by torch FSDP2 or DeepSpeed need pp 1",
    "deepspeed/runtime/pipe/engine.py: PipelineEngine.__init__; megatron/training/arguments.py: validate_args "
    "(use_torch_fsdp2)",
    ("pp", "zero"),
    lambda c: c.layout.zero < 2 or c.layout.pp == 1 or c.implementation.sharded_framework == "megatron_fsdp",
    lambda c: f"zero is {c.layout.zero} and pp is {c.layout.pp}",
)


FSDP2_EXPERTS = Rule(
    "fsdp2-experts",
    "zero 2 and 3 by torch FSDP2 need ep 1",
    "megatron/training/arguments.py: validate_args (use_torch_fsdp2)",
    ("ep", "zero"),
    lambda c: not _fsdp2(c) or c.layout.ep == 1,
    lambda c: f"zero is {c.layout.zero} and ep is {c.layout.ep}",
)
FSDP2_UNTIED = Rule(
    "fsdp2-untied",
    "zero 2 and 3 by torch FSDP2 need an untied head",
    "megatron/training/arguments.py: validate_args (use_torch_fsdp2)",
    ("zero",),
    lambda c: not _fsdp2(c) or not c.model.tied,
    lambda c: f"zero is {c.layout.zero} and {c.model.name} ties its head to the embedding",
)
FSDP_CONNECTIONS = Rule(
    "fsdp-connections",
    "torch FSDP2 and Megatron-FSDP need CUDA_DEVICE_MAX_CONNECTIONS other than 1",
    "megatron/training/arguments.py: validate_args (use_torch_fsdp2, use_megatron_fsdp)",
    ("zero",),
    lambda c: not c.fsdp or c.implementation.device_max_connections != 1,
    lambda c: f"it is 1 and zero is {c.layout.zero}",
)
FSDP2_FP16 = Rule(
    "fsdp2-fp16",
    "zero 2 and 3 by torch FSDP2 exclude fp16",
    "megatron/training/arguments.py: validate_args (use_torch_fsdp2)",
    ("zero",),
    lambda c: not _fsdp2(c) or c.workload.precision != "fp16",
    lambda c: f"zero is {c.layout.zero} and the precision is fp16",
)
DEEPSPEED_EXPERTS = Rule(
    "deepspeed-zero3-experts",
    "DeepSpeed's own mixture of experts excludes zero 3",
    "deepspeed/runtime/engine.py: _validate_zero3_moe_compatibility",
    ("ep", "zero"),
    lambda c: not (c.layout.zero == 3 and c.implementation.sharded_framework == "deepspeed" and c.layout.ep > 1),
    lambda c: f"zero is {c.layout.zero} and ep is {c.layout.ep}",
)


FSDP_OPTIMIZER = Rule(
    "fsdp-optimizer",
    "torch FSDP2 and Megatron-FSDP need Adam or SGD",
    "megatron/training/arguments.py: validate_args (use_megatron_fsdp; the emerging optimizers)",
    ("zero",),
    lambda c: not c.fsdp or c.workload.optimizer != "muon",
    lambda c: f"the optimizer is {c.workload.optimizer}",
)
PRECISION_AWARE = Rule(
    "precision-aware-optimizer",
    "the precision-aware optimizer needs AdamW and zero 1 or more",
    "megatron/core/optimizer/optimizer_config.py: OptimizerConfig.__post_init__",
    ("zero",),
    lambda c: (
        not c.implementation.precision_aware_optimizer
        or (c.layout.zero >= 1 and c.workload.optimizer in ("adamw", "adamw-8bit"))
    ),
    lambda c: f"the optimizer is {c.workload.optimizer} and zero is {c.layout.zero}",
)
FP8_GATHER = Rule(
    "fp8-param-gather",
    "gathering parameters in fp8 needs zero 1 or more",
    "megatron/training/arguments.py: validate_args (fp8_param_gather)",
    ("zero",),
    lambda c: not c.implementation.fp8_param_gather or c.layout.zero >= 1,
    lambda c: f"zero is {c.layout.zero}",
)
FP8_PARAMETERS = Rule(
    "fp8-param-precision",
    "parameters in fp8 need fp8 precision",
    f"{_CONFIG} (fp8_param)",
    ("zero",),
    lambda c: (
        not c.implementation.fp8_param_gather
        or not c.megatron_lm
        or c.workload.precision == "fp8"
        or _fsdp2(c)  # where Megatron switches them off
    ),
    lambda c: f"the precision is {c.workload.precision}",
)


def _cards_compute(c: Case) -> bool:
    if c.cluster is None or c.workload.precision == "fp32":
        return True
    return all(c.workload.precision in group.card.flops for group in c.cluster.groups)


def _cards_without(c: Case) -> str:
    assert c.cluster is not None
    names = sorted({g.card.name for g in c.cluster.groups if c.workload.precision not in g.card.flops})
    return f"the precision is {c.workload.precision} and {', '.join(names)} computes no {c.workload.precision}"


def _precisions(c: Case) -> str:
    assert c.cluster is not None
    common = [p for p in ("bf16", "fp16", "fp8") if all(p in g.card.flops for g in c.cluster.groups)]
    return f"{' or '.join(common) or 'fp32'} would do"


PRECISION = Rule(
    "precision-card",
    "every card must compute in the chosen precision",
    "the cards' data sheets (cluster_specs)",
    (),
    _cards_compute,
    _cards_without,
    _precisions,
)
_RECIPE_CARDS = {"mxfp8": ("blackwell", "cdna4"), "blockwise": ("hopper", "blackwell")}
"""Architectures that a recipe of fp8 is made for; the others run wherever fp8 does."""


def _cards_without_recipe(c: Case) -> list[str]:
    made_for = _RECIPE_CARDS.get(c.implementation.fp8_recipe)
    if c.cluster is None or c.workload.precision != "fp8" or made_for is None:
        return []
    return sorted({g.card.name for g in c.cluster.groups if g.card.architecture not in made_for})


FP8_RECIPE = Rule(
    "fp8-recipe-card",
    "fp8 with mxfp8 scales needs Blackwell (compute capability 10) or CDNA4, with blockwise scales Hopper or Blackwell",
    "transformer_engine/pytorch/quantization.py: check_mxfp8_support, check_fp8_block_scaling_support",
    (),
    lambda c: not _cards_without_recipe(c),
    lambda c: f"the recipe is {c.implementation.fp8_recipe} and the cards are {', '.join(_cards_without_recipe(c))}",
    lambda c: "the recipes delayed and tensorwise would do",
)

STATE_RULES = (
    RECOMPUTE_COUNT,
    RECOMPUTE_MODULES,
    RECOMPUTE_PREREQUISITES,
    RECOMPUTE_FP8,
    DISTRIBUTED_ACTIVATIONS,
    ZERO_PIPELINE,
    FSDP2_EXPERTS,
    FSDP2_UNTIED,
    FSDP2_FP16,
    FSDP_CONNECTIONS,
    DEEPSPEED_EXPERTS,
    FSDP_OPTIMIZER,
    PRECISION_AWARE,
    FP8_GATHER,
    FP8_PARAMETERS,
    PRECISION,
    FP8_RECIPE,
)
