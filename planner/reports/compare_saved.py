"""What `plan compare` reads: plans and memory reports saved with --json."""

from __future__ import annotations

from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeGuard

from planner.errors import InputError
from planner.reports import body

STAGE_FIELDS = ("layers", "parameters", "in_flight_microbatches", "total_bytes", "headroom_bytes")
STEP_FIELDS = ("seconds", "tokens_per_second", "tokens_per_second_per_gpu")


@dataclass(frozen=True, slots=True)
class Saved:
    """One file: where it came from, its inputs, and the plan in it."""

    name: str
    inputs: dict[str, Any]
    layout: dict[str, Any]
    memory: dict[str, Any]
    step: dict[str, Any] | None

    @property
    def tokens_per_step(self) -> int:
        """What a step does; 0 without a step."""
        return round(self.step["tokens_per_second"] * self.step["seconds"]) if self.step else 0

    @property
    def gpus(self) -> int:
        """GPUs that the step ran on, as its own rates have it."""
        return round(self.step["tokens_per_second"] / self.step["tokens_per_second_per_gpu"]) if self.step else 0


def read_saved(name: str, data: Any) -> Saved:
    """The plan in a parsed JSON document; InputError with one sentence when there is none of this version."""
    what = "a plan saved by `plan search --json` or `plan memory --json` is required"
    if not isinstance(data, dict) or "version" not in data:
        raise InputError(f"{what}, but '{name}' is something else.")
    if data["version"] != body.VERSION:
        raise InputError(f"a plan of version {body.VERSION} is required, but '{name}' has version {data['version']!r}.")
    if "sides" in data:
        raise InputError(f"{what}, but '{name}' is a capacity review: save the plan of one count with `plan search`.")
    found = data
    if "plans" in data:
        if not data["plans"]:
            raise InputError(f"{what}, but '{name}' holds no plan: its search ended {data.get('status')}.")
        found = data["plans"][0]
    inputs, layout, memory = data.get("inputs"), found.get("layout"), found.get("memory")
    if not (isinstance(inputs, dict) and isinstance(layout, dict) and isinstance(memory, dict)):
        raise InputError(f"{what}, but '{name}' has no inputs, layout and memory.")
    stages = memory.get("stages")
    keys = {"components", *STAGE_FIELDS}
    whole = isinstance(stages, list) and all(isinstance(s, dict) and keys <= s.keys() for s in stages)
    if not whole or not stages or not isinstance(memory.get("peak_stage"), int) or "fits" not in memory:
        raise InputError(f"{what}, but the stages in '{name}' are not whole.")
    step = found.get("step")
    if step is not None and not _whole_step(step):
        raise InputError(f"{what}, but the step in '{name}' is not whole.")
    return Saved(name, inputs, layout, memory, step)


def _whole_step(step: Any) -> bool:
    if not isinstance(step, dict) or not isinstance(step.get("components"), dict):
        return False
    rates, parts = [step.get(name) for name in STEP_FIELDS], list(step["components"].values())
    return all(_finite(rate) and rate > 0 for rate in rates) and all(map(_finite, parts))


def _finite(value: Any) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and isfinite(value)
