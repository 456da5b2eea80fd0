"""`plan check`: an existing launch, judged before it is queued."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from planner.commands.exits import Exit
from planner.commands.options import (
    accounting_options,
    hardware_options,
    model_option,
    moe_imbalance_option,
    output_options,
)
from planner.commands.output import choose_format, emit
from planner.commands.placed import placement_option
from planner.commands.types import STANDARD_INPUT, Values, Whole
from planner.errors import InputError


class Assignment(click.ParamType):
    """NAME=VALUE as in a shell, where NAME may also be the number of a positional parameter."""

    name = "assignment"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        name, equals, held = value.partition("=")
        number = name.isascii() and name.isdigit() and 1 <= int(name[:4]) < 1000
        if not equals or not (number or (name.isascii() and name.isidentifier())):
            self.fail(
                f"a variable or a positional parameter's number and its value are required, such as TP=4 or 1=4, "
                f"but '{value[:80]}' was given.",
                param,
                ctx,
            )
        return (str(int(name)) if number else name), held


@click.command(short_help="Judge an existing launch.")
@click.argument("files", nargs=-1, required=True, metavar="FILE...")
@hardware_options(card=True)
@model_option(required=False, help="The model of a DeepSpeed JSON, which does not say it.")
@click.option(
    "--seq-length",
    type=Whole(),
    metavar="N",
    help="Of a DeepSpeed JSON. [the model's context]",
)
@click.option("--pp", type=Values("pp", many=False), help="Pipeline stages of a DeepSpeed launch. [1]")
@click.option(
    "--vocab-size",
    type=Whole(),
    metavar="N",
    help="Tokens of a Megatron launch's vocabulary, where its tokenizer's file says them. [what the launch says]",
)
@click.option(
    "--set",
    "preset",
    type=Assignment(),
    multiple=True,
    metavar="NAME=VALUE",
    help="A variable that a script starts with, or a positional parameter such as 1=4; repeatable.",
)
@moe_imbalance_option()
@placement_option()
@accounting_options()
@click.option(
    "--detail",
    is_flag=True,
    help="What each stage is made of, term by term; of one layout also what each change makes.",
)
@output_options()
def check(
    files: tuple[str, ...],
    preset: tuple[tuple[str, str], ...],
    format: str | None,
    output: Path | None,
    detail: bool,
    **options: Any,
) -> int:
    """Which rules a launch breaks, whether it will fit, where the peak is, and how long a step takes.

    FILE is a Megatron-LM launch script (its variables are resolved, it is not run), a file of Megatron arguments, a
    Megatron YAML, a DeepSpeed JSON, or - for standard input. The number of GPUs comes from --gpus or --cluster, else
    from the launch (--gpu), and so do the GPUs of a node where it says them.

    The JSON that a Megatron-DeepSpeed launch names is read where the script writes it (a here-document, echo, sed on a
    template) or where it lies in the script's folder; it decides ZeRO's stage, the precision, sizes and offloading.

    What a script gets from outside is given by --set: `${TP:-4}` and `TP=$1` see it, a plain `TP=4` overwrites it.
    Guesses (a branch not taken, a loop read once, a sourced file not read) are named among the assumptions.

    Exit code 2 when a file could not be judged, else 5 when a launch breaks a rule or does not fit, else 0. A file that
    cannot be judged does not hide the answers about the others.

    \b
    Examples:
      plan check pretrain_gpt.sh --gpus 16xH100-80G
      plan check runs/*.sh --gpu H100-80G --json
      plan check train.sh --gpu H100-80G --set TP=4 --set 1=70b
      plan check ds_config.json --model 13b --gpus 8xA100-80G
    """
    from planner.commands.launches import Judge
    from planner.reports.check_report import check_report

    format = choose_format(format, output)
    if sum(options[name] is not None for name in ("gpus", "cluster", "gpu")) != 1:
        raise InputError(
            "exactly one of --gpus (such as 16xH100-80G), --cluster and --gpu (just the card) is required."
        )
    own = [f"--{name.replace('_', '-')}" for name in ("model", "seq_length", "pp") if options[name] is not None]
    of_deepspeed = [Path(file).suffix.lower() == ".json" for file in files]
    if preset and all(of_deepspeed):
        raise InputError(f"--set gives a script its variables; a DeepSpeed JSON such as {files[0]} has none.")
    if options["vocab_size"] is not None and all(of_deepspeed):
        raise InputError(f"--vocab-size is for Megatron launches; --model says the vocabulary of {files[0]}.")
    if own and not any(of_deepspeed):
        raise InputError(
            f"{' and '.join(own)} can only be given for a DeepSpeed JSON, a Megatron launch says its own, but was "
            f"given with {files[0]}: of a script that launches DeepSpeed give the JSON that it names; the layout of "
            "any other framework's launch can be stated to `plan memory`."
        )
    judge = Judge(options | {"preset": dict(preset)})
    answers = [judge.answer(STANDARD_INPUT if file == "-" else file, detail) for file in files]
    emit(check_report(answers, detail), format, output)
    for answer in answers:
        if answer.error:
            click.echo(f"Error: {answer.error}", err=True)
        for given, meant in answer.misspelt.items():
            click.echo(f"Warning: {answer.file}: {given} is probably misspelt: Megatron-LM knows {meant}.", err=True)
    if any(answer.error for answer in answers):
        return Exit.USAGE
    return Exit.OK if all(answer.passed for answer in answers) else Exit.CHECK_FAILED
