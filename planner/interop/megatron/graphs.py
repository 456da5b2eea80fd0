"""Which parts of the model a launch replays as CUDA graphs.

megatron/core/transformer/cuda_graph_config.py: normalize_cuda_graph_modules; megatron/training/arguments.py for
the names of older releases.
"""

from __future__ import annotations

from typing import Literal

from planner.errors import InputError
from planner.implementation import GRAPHED
from planner.interop.megatron.parse import Arguments, readable

_MODULES = tuple(name for name in GRAPHED if name not in ("layer", "iteration"))
_IMPLEMENTATIONS = ("none", "local", "transformer_engine", "full_iteration")


def build_cuda_graphs(args: Arguments, source: str) -> tuple[str, ...]:
    """Members of GRAPHED, in its order. Raises InputError where a word is none of Megatron's."""
    kind = _kind(args, source)
    modules = _modules(args, source)
    if kind == "full_iteration" or "full_iteration" in modules:
        return ("iteration",)
    if kind == "none":
        return ()
    if not modules:
        return ("layer",)
    if kind == "local" and modules & {"moe_router", "moe_preprocess"}:  # it captures both or neither
        modules |= {"moe_router", "moe_preprocess"}
    return tuple(name for name in GRAPHED if name in modules)


def capturer(args: Arguments, source: str) -> Literal["local", "transformer_engine"]:
    """Who captures layers and modules; Transformer Engine where none are."""
    graphs = build_cuda_graphs(args, source)
    parts = graphs and graphs != ("iteration",)
    return "local" if parts and _kind(args, source) == "local" else "transformer_engine"


def _kind(args: Arguments, source: str) -> str:
    kind = str(args.get("cuda-graph-impl", "none"))
    if kind not in _IMPLEMENTATIONS:
        known = ", ".join(_IMPLEMENTATIONS)
        raise InputError(f"{source}: --cuda-graph-impl must be one of {known}, but was given '{readable(kind)}'.")
    if kind != "none":
        return kind
    if args.flag("external-cuda-graph"):
        return "transformer_engine"
    return "local" if args.flag("enable-cuda-graph") else "none"


def _modules(args: Arguments, source: str) -> set[str]:
    given = args.get("cuda-graph-modules") or args.get("cuda-graph-scope") or []
    names = {name for word in given for name in word.split(",") if name}
    unknown = sorted(names - {*_MODULES, "full", "full_iteration", "full_iteration_inference"})
    if unknown:
        known = ", ".join(_MODULES)
        raise InputError(f"{source}: --cuda-graph-modules must be of {known}, but was given '{readable(unknown[0])}'.")
    return names - {"full", "full_iteration_inference"}
