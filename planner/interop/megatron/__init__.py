"""Reading and writing Megatron-LM launches: shell scripts, argument files and YAML, without running anything.

`sources` finds the words, `parse` types them by the tables of `known` and `ignored`, `architecture`, `computation` and
`parallelism` turn them into our objects, `launch` holds them together, and `write` is the way back.
"""

from __future__ import annotations

from planner.interop.megatron.launch import MegatronLaunch, launch_from_text, launch_from_words, read_megatron
from planner.interop.megatron.problem import Problem
from planner.interop.megatron.write import megatron_arguments

__all__ = ["MegatronLaunch", "Problem", "launch_from_text", "launch_from_words", "megatron_arguments", "read_megatron"]
