"""Reading and writing DeepSpeed JSON configurations."""

from __future__ import annotations

from planner.interop.deepspeed.read import DeepSpeedLaunch, launch_from_config, read_deepspeed
from planner.interop.deepspeed.write import deepspeed_config

__all__ = ["DeepSpeedLaunch", "deepspeed_config", "launch_from_config", "read_deepspeed"]
