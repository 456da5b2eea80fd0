"""Command lines to try next, made of what the user typed."""

from __future__ import annotations

import shlex
from collections.abc import Iterable

import click
from click.core import ParameterSource

QUESTION = ("model", "gpus", "cluster")
WORKLOAD = (
    "seq_length", "global_batch", "precision", "optimizer", "attention", "cross_entropy", "cp_comm_type", "cuda_graphs",
    "tp_comm_overlap", "overlap_moe_expert_parallel_comm", "moe_imbalance", "sharded_by", "fp8_recipe",
    "fp8_param_gather",
)  # fmt: skip
ACCOUNTING = ("accounting", "reserve")
LAYOUT = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "zero", "micro_batch", "sequence_parallel", "recompute",
          "recompute_modules", "stage_layers", "hsdp_replicas")  # fmt: skip


def remember(ctx: click.Context | None, param: click.Parameter | None, text: str) -> None:
    """Keep an option's text as it was typed, for a parser that turns it into an object."""
    if ctx is not None and param is not None and param.name:
        ctx.meta.setdefault("planner.typed", {})[param.name] = text


def typed(ctx: click.Context, names: Iterable[str]) -> str:
    """The named options as the user gave them; what was left to its default is left out."""
    texts = ctx.meta.get("planner.typed", {})
    words: list[str] = []
    for name in names:
        value = ctx.params.get(name)
        if value is None or ctx.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        words.append(f"--{'no-' if value is False else ''}{name.replace('_', '-')}")
        if not isinstance(value, bool):
            words.append(shlex.quote(texts.get(name, str(value))))
    return " ".join(words)
