"""Rules about what is moved to the host."""

from __future__ import annotations

from planner.rules.rule import Case, Rule

_CONFIG = "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__"

OFFLOAD_PROJECTION = Rule(
    "offload-attention-projection",
    "offloading attn_proj needs core_attn to be offloaded too",
    f"{_CONFIG} (offload_modules)",
    (),
    lambda c: (
        "attn_proj" not in c.implementation.offload_modules
        or not c.megatron_lm
        or "core_attn" in c.implementation.offload_modules
    ),
    lambda c: f"the modules are {', '.join(c.implementation.offload_modules)}",
)


def _by_hybrid_optimizer(c: Case) -> bool:
    """Megatron's own optimizers are updated on the host; one rank alone is a distributed optimizer of one shard."""
    implementation, layout = c.implementation, c.layout
    if layout.zero >= 2 and implementation.sharded_framework != "megatron_fsdp":
        return True
    return not c.megatron_lm or (c.workload.optimizer == "adamw" and (layout.zero > 0 or layout.dp * layout.cp == 1))


OFFLOAD_OPTIMIZER = Rule(
    "offload-optimizer",
    "Megatron updates on the host what AdamW's distributed optimizer holds (zero 1, or Megatron-FSDP)",
    "megatron/training/arguments.py: validate_args (optimizer_cpu_offload, use_precision_aware_optimizer); "
    "megatron/core/optimizer/optimizer_config.py: OptimizerConfig.__post_init__",
    ("zero", "dp", "cp"),
    lambda c: not c.implementation.optimizer_offload_fraction or _by_hybrid_optimizer(c),
    lambda c: f"the optimizer is {c.workload.optimizer} and zero is {c.layout.zero}",
)
DEEPSPEED_PART = Rule(
    "deepspeed-offload-ratio",
    "DeepSpeed offloads a part of the optimizer with zero 3 only",
    "deepspeed/runtime/zero/config.py: DeepSpeedZeroConfig.offload_ratio_check",
    ("zero",),
    lambda c: (
        c.layout.zero != 2
        or c.implementation.sharded_framework != "deepspeed"
        or c.implementation.optimizer_offload_fraction in (0, 1)
    ),
    lambda c: f"zero is {c.layout.zero} and the part is {c.implementation.optimizer_offload_fraction:g}",
)

OFFLOAD_RULES = (OFFLOAD_PROJECTION, OFFLOAD_OPTIMIZER, DEEPSPEED_PART)
