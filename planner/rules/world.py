"""Rules about how many GPUs the degrees ask for, and how the batch divides over them."""

from __future__ import annotations

from planner.rules.rule import Case, Rule, close_to, divisors

_DEGREES = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "micro_batch", "hsdp_replicas")


def _small_degrees(case: Case) -> str:
    return ", ".join(f"{name} is {getattr(case.layout, name)}" for name in _DEGREES if getattr(case.layout, name) < 1)


POSITIVE = Rule(
    "degrees-positive",
    "every degree of parallelism and the micro-batch must be at least 1",
    "megatron/core/parallel_state.py: initialize_model_parallel",
    _DEGREES,
    lambda c: all(getattr(c.layout, name) >= 1 for name in _DEGREES),
    _small_degrees,
)
ZERO_STAGE = Rule(
    "zero-stage",
    "the ZeRO stage must be 0, 1, 2 or 3",
    "deepspeed/runtime/zero/config.py: ZeroStageEnum",
    ("zero",),
    lambda c: c.layout.zero in (0, 1, 2, 3),
    lambda c: f"zero is {c.layout.zero}",
)


def _world_nearest(c: Case) -> str:
    share = c.layout.tp * c.layout.cp * c.layout.pp
    assert c.world_size is not None
    if c.world_size % share == 0:
        return f"dp {c.world_size // share} fills the GPUs"
    ways = []
    for name in ("tp", "cp", "pp"):
        degree = getattr(c.layout, name)
        if degree > 1 and c.world_size % (share // degree) == 0:
            ways.append(f"{name} {close_to(degree, divisors(c.world_size // (share // degree)))}")
    fewer = f" ({', or '.join(ways)} would divide the {c.world_size})" if ways else ""
    return f"the GPUs must be a multiple of tp x cp x pp = {share}{fewer}"


WORLD = Rule(
    "world-size",
    "tp x cp x pp x dp must equal the number of GPUs",
    "megatron/core/parallel_state.py: initialize_model_parallel",
    ("tp", "cp", "pp", "dp"),
    lambda c: c.world_size is None or c.layout.world_size == c.world_size,
    lambda c: (
        f"tp {c.layout.tp} x cp {c.layout.cp} x pp {c.layout.pp} x dp {c.layout.dp} is {c.layout.world_size} "
        f"and there are {c.world_size} GPUs"
    ),
    _world_nearest,
)
EXPERT_WORLD = Rule(
    "expert-world-size",
    "tp x cp x dp must be divisible by etp x ep",
    "megatron/core/parallel_state.py: initialize_model_parallel (expert groups)",
    ("tp", "cp", "dp", "ep", "etp"),
    lambda c: c.layout.expert_layout_divides,
    lambda c: f"tp x cp x dp is {c.layout.tp * c.layout.cp * c.layout.dp} and etp x ep is {c.layout.etp * c.layout.ep}",
    lambda c: (
        "etp x ep may be " + close_to(c.layout.etp * c.layout.ep, divisors(c.layout.tp * c.layout.cp * c.layout.dp))
    ),
)


def _batch_nearest(c: Case) -> str:
    share = c.layout.micro_batch * c.layout.dp
    below = c.workload.global_batch // share * share
    return f"global batch {f'{below} or ' if below else ''}{below + share} would divide"


BATCH = Rule(
    "batch-divides",
    "the global batch must be a multiple of micro_batch x dp",
    "megatron/core/num_microbatches_calculator.py: ConstantNumMicroBatchesCalculator",
    ("dp", "micro_batch"),
    lambda c: (
        c.workload.global_batch % (c.layout.micro_batch * c.layout.dp) == 0
        and c.workload.global_batch >= c.layout.micro_batch * c.layout.dp
    ),
    lambda c: (
        f"the global batch is {c.workload.global_batch}, micro_batch is {c.layout.micro_batch} and dp is {c.layout.dp}"
    ),
    _batch_nearest,
)
OPTIMIZER_INSTANCES = Rule(
    "distributed-optimizer-instances",
    "dp x cp must be divisible by the number of distributed-optimizer instances",
    "megatron/core/parallel_state.py: initialize_model_parallel",
    ("dp", "cp"),
    lambda c: (c.layout.dp * c.layout.cp) % c.implementation.num_distributed_optimizer_instances == 0,
    lambda c: (
        f"dp x cp is {c.layout.dp * c.layout.cp} and the instances are "
        f"{c.implementation.num_distributed_optimizer_instances}"
    ),
)
HSDP_DIVIDES = Rule(
    "hsdp-divides",
    "dp x cp must be divisible by the HSDP replicas",
    "torchtitan/distributed/parallel_dims.py: _validate",
    ("dp", "cp", "hsdp_replicas"),
    lambda c: (c.layout.dp * c.layout.cp) % c.layout.hsdp_replicas == 0,
    lambda c: f"dp x cp is {c.layout.dp * c.layout.cp} and hsdp_replicas is {c.layout.hsdp_replicas}",
)
HSDP_NEEDS_SHARDING = Rule(
    "hsdp-needs-zero",
    "HSDP replicates groups that shard gradients or weights, so it needs zero 2 or 3",
    "torch/distributed/fsdp: fully_shard (two-dimensional mesh)",
    ("zero", "hsdp_replicas"),
    lambda c: c.layout.hsdp_replicas == 1 or c.layout.zero >= 2,
    lambda c: f"hsdp_replicas is {c.layout.hsdp_replicas} and zero is {c.layout.zero}",
)
MICS_STAGE = Rule(
    "mics-stage",
    "DeepSpeed shards within replicas (MiCS) with zero 3 only",
    "deepspeed/runtime/zero/mics.py: MiCS_Optimizer (a DeepSpeedZeroOptimizer_Stage3)",
    ("zero", "hsdp_replicas"),
    lambda c: c.layout.hsdp_replicas == 1 or c.layout.zero != 2 or c.implementation.sharded_framework != "deepspeed",
    lambda c: f"hsdp_replicas is {c.layout.hsdp_replicas} and zero is {c.layout.zero}",
)

WORLD_RULES = (
    POSITIVE,
    ZERO_STAGE,
    WORLD,
    EXPERT_WORLD,
    BATCH,
    OPTIMIZER_INSTANCES,
    HSDP_DIVIDES,
    HSDP_NEEDS_SHARDING,
    MICS_STAGE,
)
