"""Rules about mixtures of experts."""

from __future__ import annotations

from planner.rules.rule import Case, Rule, close_to, divisors
from planner.rules.tensor import _common_divisors, _numbers


def _counts(c: Case) -> list[int]:
    return sorted({e.num_experts for e in c.experts})


def _widths(c: Case) -> list[int]:
    return sorted({e.expert.ffn_hidden_size for e in c.experts})


NEED_EXPERTS = Rule(
    "expert-needs-experts",
    "ep > 1 and etp > 1 need a model with experts",
    "megatron/training/arguments.py: validate_args (expert_model_parallel_size)",
    ("ep", "etp"),
    lambda c: bool(c.experts) or (c.layout.ep == 1 and c.layout.etp == 1),
    lambda c: f"ep is {c.layout.ep}, etp is {c.layout.etp} and {c.model.name} has no experts",
)
DIVIDE = Rule(
    "expert-divides",
    "num_experts must be divisible by ep",
    "megatron/core/transformer/moe/moe_layer.py: BaseMoELayer.__init__; deepspeed/moe/layer.py",
    ("ep",),
    lambda c: all(n % c.layout.ep == 0 for n in _counts(c)),
    lambda c: f"num_experts is {_numbers(_counts(c))} and ep is {c.layout.ep}",
    lambda c: f"the nearest legal ep is {close_to(c.layout.ep, _common_divisors(_counts(c)))}",
)
FFN = Rule(
    "expert-ffn",
    "moe_ffn_hidden_size must be divisible by etp",
    "megatron/core/transformer/moe/experts.py: TEGroupedMLP.__init__ (divide)",
    ("etp",),
    lambda c: all(w % c.layout.etp == 0 for w in _widths(c)),
    lambda c: f"moe_ffn_hidden_size is {_numbers(_widths(c))} and etp is {c.layout.etp}",
    lambda c: f"the nearest legal etp is {close_to(c.layout.etp, divisors(min(_widths(c))))}",
)
BIAS = Rule(
    "expert-bias",
    "experts with biases need etp 1",
    "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__",
    ("etp",),
    lambda c: c.layout.etp == 1 or not any(e.expert.bias for e in c.experts),
    lambda c: f"etp is {c.layout.etp}",
)
BIAS_DROPOUT = Rule(
    "expert-bias-dropout",
    "grouped experts with biases do not go with bias_dropout_fusion",
    "megatron/core/transformer/moe/experts.py: TEGroupedMLP.__init__ (an assertion)",
    (),
    lambda c: (
        not c.implementation.bias_dropout_fusion
        or not c.megatron_lm
        or not c.implementation.moe_grouped_gemm
        or c.implementation.layer_implementation == "local"
        or not any(e.expert.bias for e in c.experts)
    ),
    lambda c: "bias_dropout_fusion is on",
    lambda c: "give --no-bias-dropout-fusion or, where the experts have none, --disable-bias-linear",
)
NEED_SEQUENCE = Rule(
    "expert-needs-sequence",
    "a model with experts needs sequence parallelism when tp > 1",
    "megatron/core/transformer/moe/moe_layer.py: MoELayer.forward (found only while running)",
    ("tp", "sequence_parallel"),
    lambda c: not c.experts or c.layout.tp == 1 or c.layout.sequence_parallel,
    lambda c: f"tp is {c.layout.tp} without sequence parallelism",
)


def _against_overlap(c: Case) -> list[str]:
    """What of a layout that overlaps the experts' exchange Megatron does not take, with what would mend it."""
    i, layout, modules = c.implementation, c.layout, c.layout.recompute.modules
    if not i.overlap_moe_expert_parallel_comm:
        return []
    wanted = (
        (layout.ep > 1, f"ep is {layout.ep}"),
        (i.moe_dispatcher in ("alltoall", "flex"), f"the dispatcher is {i.moe_dispatcher}"),
        (layout.pp == 1 or layout.vpp > 1, f"pp is {layout.pp} and vpp {layout.vpp}"),
        (layout.recompute.granularity != "full" and "moe" not in modules, f"recompute is {layout.recompute}"),
        (not i.moe_shared_expert_overlap, "the shared expert overlaps too"),
        (c.model.mtp_num_layers <= 1, f"there are {c.model.mtp_num_layers} MTP layers"),
        (c.workload.precision != "fp32", "the precision is fp32"),
    )
    return [given for holds, given in wanted if not holds]


OVERLAP = Rule(
    "expert-overlap",
    "overlapping the experts' all-to-all needs ep > 1, the alltoall or flex dispatcher, virtual stages when pp > 1, "
    "no full or MoE recompute, no shared-expert overlap, at most 1 MTP layer, and no fp32",
    "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__ "
    "(overlap_moe_expert_parallel_comm)",
    ("ep", "pp", "vpp", "recompute"),
    lambda c: not _against_overlap(c),
    lambda c: " and ".join(_against_overlap(c)),
)
SHARED_OVERLAP = Rule(
    "expert-shared-overlap",
    "overlapping the shared expert needs the alltoall or flex dispatcher",
    "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__ (moe_shared_expert_overlap)",
    (),
    lambda c: (
        not c.implementation.moe_shared_expert_overlap
        or not c.megatron_lm
        or c.implementation.moe_dispatcher != "allgather"
        or not any(e.shared for e in c.experts)
    ),
    lambda c: f"the dispatcher is {c.implementation.moe_dispatcher}",
)
PADDING = Rule(
    "expert-padding",
    "padding the experts' input to their capacity needs a capacity factor",
    "megatron/core/transformer/transformer_config.py: TransformerConfig.__post_init__ "
    "(moe_pad_expert_input_to_capacity)",
    (),
    lambda c: (
        not c.implementation.moe_pad_to_capacity
        or not c.megatron_lm
        or c.implementation.moe_capacity_factor is not None
    ),
    lambda c: "routing is dropless",
)

EXPERT_RULES = (
    NEED_EXPERTS, DIVIDE, FFN, BIAS, BIAS_DROPOUT, NEED_SEQUENCE, OVERLAP, SHARED_OVERLAP, PADDING
)  # fmt: skip
