"""Finer choices of `plan memory`: which layers are recomputed and how, what waits on the host.

Each names what a Megatron-LM or DeepSpeed argument of `plan check` does; left out, the launch's default holds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from planner.commands.types import Choice, Share, StageLayers, Whole
from planner.errors import InputError, nearest

if TYPE_CHECKING:
    from planner.question import Question

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


def finer_options() -> Decorator:
    """Options that `plan memory` has beyond those of the search."""
    options = (
        click.option(
            "--recompute-modules",
            metavar="NAME,...",
            help="With --recompute selective: core_attn, layernorm, mlp, moe, moe_act, ...; or op. [core_attn]",
        ),
        click.option(
            "--recompute-layers",
            type=StageLayers(),
            metavar="N,N,...",
            help="With --recompute full: the first N layers of each chunk of each stage. [all]",
        ),
        click.option(
            "--recompute-method",
            type=Choice(["uniform", "block"]),
            help="With --recompute full: checkpoints of groups of layers, or the first layers of each chunk. [uniform]",
        ),
        click.option(
            "--recompute-num-layers",
            type=Whole(),
            metavar="N",
            help="With --recompute full: layers of a group, or those that a block recomputes. [1]",
        ),
        click.option(
            "--distribute-saved-activations",
            is_flag=True,
            help="With --recompute full and no sequence parallelism: checkpoints divided over TP.",
        ),
        click.option(
            "--offload-optimizer",
            type=Share(),
            metavar="FRACTION",
            help="Part of the optimizer's shard that is kept on the host. [0]",
        ),
        click.option("--offload-parameters", is_flag=True, help="ZeRO 3: shards of the weights wait on the host."),
        click.option(
            "--offload-layers", type=Whole(), metavar="N", help="Layers whose activations wait on the host. [0]"
        ),
        click.option(
            "--offload-modules",
            metavar="NAME,...",
            help="Modules whose activations wait on the host: core_attn, attn_norm, mlp_norm, moe_act, ... [none]",
        ),
        click.option(
            "--schedule",
            type=Choice(["1f1b", "zb-h1", "dualpipe"]),
            help="Of the pipeline; 1f1b is interleaved with --vpp. [1f1b]",
        ),
    )

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def with_finer_choices(question: Question, options: dict[str, Any]) -> Question:
    """The question with the framework's choices that were given. Raises InputError for those that contradict it."""
    chosen: dict[str, Any] = {
        "optimizer_offload_fraction": options["offload_optimizer"],
        "offload_parameters": options["offload_parameters"] or None,
        "offload_activation_layers": options["offload_layers"],
        "offload_modules": _offload_modules(options["offload_modules"]),
        "schedule": options["schedule"],
    }
    given = {name: value for name, value in chosen.items() if value is not None}
    return replace(question, implementation=replace(question.implementation, **given)) if given else question


def finer_arguments(question: Question, precision: str | None) -> str:
    """The options that state what a search chose by --allow; `precision` is what the user typed. Nothing where it
    chose the defaults."""
    implementation, words = question.implementation, []
    if question.workload.precision == "fp8" != precision:  # never a default
        words.append(f"--precision {question.workload.precision}")
    if implementation.schedule != "1f1b":
        words.append(f"--schedule {implementation.schedule}")
    if implementation.optimizer_offload_fraction:
        words.append(f"--offload-optimizer {implementation.optimizer_offload_fraction:g}")
    if implementation.offload_parameters:
        words.append("--offload-parameters")
    return "".join(f" {word}" for word in words)


def _offload_modules(text: str | None) -> tuple[str, ...] | None:
    if text is None:
        return None
    from planner.memory.offload import OFFLOAD_MODULES

    return named_modules("--offload-modules", text, OFFLOAD_MODULES)


def named_modules(option: str, text: str, known: Sequence[str]) -> tuple[str, ...]:
    """Modules separated by commas, sorted. Raises InputError for one that is not known, with the nearest."""
    names = sorted({name.strip() for name in text.split(",")})
    for name in names:
        if name not in known:
            close = nearest(name, known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            raise InputError(f"{option} must be among {', '.join(known)}, but '{name[:60]}' was given.{hint}")
    return tuple(names)
