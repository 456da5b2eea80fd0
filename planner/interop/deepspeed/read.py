"""A DeepSpeed JSON configuration, for a model that is given, as the planner's own objects.

The configuration does not hold the model, the sequence length, or the pipeline degree: the caller gives them. Values
that are "auto" are filled in by the Hugging Face Trainer from its own arguments; its defaults are taken and noted.

Source: deepspeed/runtime/config.py: _set_batch_related_parameters, _batch_assertion; runtime/zero/config.py.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from planner.attention import FLASH_PRECISIONS
from planner.errors import InputError
from planner.files import read_mapping
from planner.implementation import Implementation
from planner.interop.deepspeed.settings import Settings
from planner.interop.megatron.problem import Problem
from planner.layout import Layout
from planner.model import Model
from planner.stages import usual_split
from planner.workload import Workload

IMPLEMENTATION = Implementation(
    layer_implementation="local",
    rope_fusion=False,
    gradient_accumulation_fusion=False,
    sharded_framework="deepspeed",
    framework="megatron-deepspeed",
)
"""A PyTorch model under DeepSpeed: no Transformer Engine, gradients accumulated by autograd, flash attention (which
does not take fp32)."""


@dataclass(frozen=True, slots=True)
class DeepSpeedLaunch:
    """What a configuration asks for; the fields mean what they mean in MegatronLaunch."""

    model: Model
    workload: Workload
    implementation: Implementation
    layout: Layout
    world_size: int
    gpus_per_node: None = field(default=None, init=False)
    """The configuration does not say it."""
    unrecognised: tuple[str, ...] = ()
    not_accounted: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[Problem, ...] = ()


def read_deepspeed(
    path: str | Path, model: Model, world_size: int | None, seq_length: int | None = None, pp: int = 1
) -> DeepSpeedLaunch:
    """The launch of a configuration file for `model` on `world_size` GPUs with `pp` pipeline stages. The sequence
    length defaults to the model's. Raises InputError where the file does not determine a batch."""
    return launch_from_config(read_mapping(path), str(path), model, world_size, seq_length, pp)


def launch_from_config(
    config: dict[str, Any],
    name: str,
    model: Model,
    world_size: int | None,
    seq_length: int | None = None,
    pp: int = 1,
) -> DeepSpeedLaunch:
    """As read_deepspeed, from the configuration itself; `name` begins every sentence."""
    if world_size is None:
        raise InputError(f"{name}: a DeepSpeed configuration does not say the number of GPUs, so --gpus is required.")
    if world_size < 1 or pp < 1:
        raise InputError(f"{name}: the GPUs ({world_size}) and the pipeline stages ({pp}) must be at least 1.")
    return _launch(Settings(config, name), model, world_size, seq_length or model.max_positions, pp)


def _launch(settings: Settings, model: Model, world: int, seq_length: int, pp: int) -> DeepSpeedLaunch:
    tp = settings.number("tensor_parallel.autotp_size", least=0) or 1
    dp = max(1, world // (tp * pp))
    micro, batch = settings.batch(dp)
    zero, precision = settings.stage(), settings.precision()
    if zero == 0 and pp > 1 and precision == "bf16":  # engine.py: _do_optimizer_sanity_check, BFLOAT16
        zero = 1
        settings.notes.append("zero_optimization.stage 0: with bf16 the pipeline shards optimizer states as stage 1")
    try:
        stages = usual_split(model, pp)
    except InputError:
        stages = ()
    layout = Layout(
        tp=tp,
        pp=pp,
        dp=dp,
        zero=zero,
        micro_batch=micro,
        recompute=settings.recompute(tp, pp),
        stages=stages,
        hsdp_replicas=settings.replicas(zero, dp),
    )
    workload = Workload(seq_length, batch, precision, settings.optimizer())
    attention = IMPLEMENTATION.attention if precision in FLASH_PRECISIONS else "unfused"
    implementation = settings.implementation(replace(IMPLEMENTATION, attention=attention), model, layout)
    return DeepSpeedLaunch(
        model,
        workload,
        implementation,
        layout,
        world,
        unrecognised=settings.unknown(),
        not_accounted=settings.not_accounted(),
        notes=tuple(settings.notes),
        problems=tuple(settings.problems),
    )
