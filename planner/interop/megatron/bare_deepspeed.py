"""A script that launches DeepSpeed without Megatron arguments: its JSON is what `plan check` can judge."""

from __future__ import annotations

from pathlib import Path

from planner.errors import InputError
from planner.interop.megatron.parse import UNRESOLVED, readable

_MODEL = {"num-layers", "encoder-num-layers", "hidden-size", "num-attention-heads"}
"""Some of what every launch of Megatron or Megatron-DeepSpeed says of its model."""
_FILE = ("deepspeed", "deepspeed-config")
"""Options that take the JSON: Hugging Face's Trainer's and DeepSpeed's own (deepspeed.add_config_arguments)."""


def check_deepspeed(name: str, chosen: list[str] | None, commands: list[list[str]]) -> None:
    """Raises InputError where the launch is DeepSpeed's and no command says a model."""
    found = [command for command in ([chosen] if chosen else commands) if _is_deepspeed(command)]
    if not found or any(_name(word) in _MODEL for command in commands for word in command):
        return
    command = found[-1]
    if any(Path(word).name.startswith("pretrain_") for word in command):
        return  # Megatron-DeepSpeed, whose arguments may stand where only running the script would tell
    file = next((value for option, value in _pairs(command) if option in _FILE and value.endswith(".json")), "")
    shown = readable(file) if file and UNRESOLVED not in file else "its JSON file"
    example = shown if " " not in shown else "FILE.json"
    raise InputError(
        f"{name}: this is a DeepSpeed launch without Megatron model arguments (--num-layers ...), and what it trains "
        f"stands in {Path(_program(command)).name}: `plan check {example} --model M --gpus G` judges {shown}."
    )


def _is_deepspeed(command: list[str]) -> bool:
    launched = any(Path(word).name in ("deepspeed", "deepspeed.launcher.runner") for word in command)
    return launched or any(_name(word) in _FILE for word in command)


def _program(command: list[str]) -> str:
    return next((readable(word) for word in command if word.endswith(".py")), "the training script")


def _name(word: str) -> str:
    return word[2:].partition("=")[0].replace("_", "-") if word.startswith("--") else ""


def _pairs(command: list[str]) -> list[tuple[str, str]]:
    """Options with the values that follow them, after `=` or as the next word."""
    followed = zip(command, [*command[1:], ""], strict=True)
    return [(_name(word), word.partition("=")[2] or following) for word, following in followed]
