"""From a user's file to one launch: the words of its Megatron arguments and the number of GPUs it starts on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from planner.errors import InputError, NotModelled
from planner.files import parse_mapping, read_text
from planner.interop.megatron.bare_deepspeed import check_deepspeed
from planner.interop.megatron.environment import environment_of
from planner.interop.megatron.expand import Expander, Variables
from planner.interop.megatron.interpolate import Interpolation
from planner.interop.megatron.known import HONOURED
from planner.interop.megatron.launcher import UNKNOWN, Gpus, gpus_of
from planner.interop.megatron.nested import flattened, is_nested
from planner.interop.megatron.parse import UNRESOLVED
from planner.interop.megatron.preset import without_effect
from planner.interop.megatron.shell import read_script
from planner.interop.megatron.written import Written

_OTHER_SCRIPT = re.compile(r"pretrain_(bert|t5|ict|retro|vlm|vision\w*|mamba|hybrid|realm|biencoder)\w*\.py$")
"""Megatron-LM's scripts that train something else than a decoder."""
_NO_TRAINING = re.compile(
    r"(?!\w*(?:train|finetune))\w*(?:inference|generat|convert|quantize|prune|export|mmlu|validate)\w*\.py$"
)
"""Scripts of its examples, tools and tasks that take the same arguments and train nothing."""

_PRINTS = ("echo", "printf")
_OTHER_LAUNCH = {
    "torchtitan": re.compile(r"torchtitan\b|--job\.config[_-]file"),
    "NeMo": re.compile(r"megatron_(gpt|llama|\w*)_?pretraining\.py$"),
    "LitGPT": re.compile(r"(^|/)litgpt$"),
    "the Hugging Face Trainer": re.compile(r"--model[_-]name[_-]or[_-]path\b"),
}
"""Launches of other frameworks, by a word that they have."""
_OTHER_YAML = {
    "NeMo": {"trainer", "model"},
    "Accelerate": {"distributed_type"},
    "LLM Foundry": {"fsdp_config", "max_seq_len"},
    "Axolotl": {"base_model", "sequence_len"},
    "LLaMA-Factory": {"model_name_or_path", "finetuning_type"},
    "LitGPT": {"out_dir", "train", "eval"},
    "GPT-NeoX": {"pipe_parallel_size", "model_parallel_size"},
}
"""Configurations of other frameworks, by keys that they always have."""


Preset = Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Source:
    """What a file says, before any argument is interpreted."""

    words: list[str]
    gpus: Gpus = UNKNOWN
    notes: list[str] = field(default_factory=list)
    environment: dict[str, str] = field(default_factory=dict)
    """Variables that `environment` reads."""
    files: Mapping[str, Written | None] = field(default_factory=dict)
    """Files that a script writes itself, by their names; None where it does not tell what they hold."""
    folder: Path | None = None
    """The script's own, where it was read from one."""


def read_source(path: str | Path, preset: Preset | None = None) -> Source:
    """The launch in a file. Raises InputError where the file holds no Megatron arguments."""
    found = source_from_text(read_text(path), str(path), preset)
    return found if _is_stream(path) else replace(found, folder=Path(path).parent)


def _is_stream(path: str | Path) -> bool:
    """Standard input and the shell's `<(command)` lie in no folder of the user's."""
    return str(path).startswith(("/dev/", "/proc/"))


def source_from_text(text: str, name: str, preset: Preset | None = None) -> Source:
    """The launch in a file's text; the name's suffix tells YAML from shell. `preset` holds the environment that it
    starts with."""
    suffix = Path(name).suffix.lower()
    if suffix in (".yaml", ".yml"):
        mapping = parse_mapping(text, name)
        keys_of = {key.replace("-", "_") for key in mapping}
        _check_framework(name, next((who for who, keys in _OTHER_YAML.items() if keys <= keys_of), None))
        source, variables = _from_mapping(mapping, name, preset or {})
        source.notes.extend(without_effect(preset or {}, text, variables, {}))
        return source
    _check_framework(name, "torchtitan" if suffix == ".toml" else None)
    script = read_script(text, name, preset)
    command, launcher, words = _arguments(script.commands)
    check_deepspeed(name, command, script.commands)
    other = next((word for word in launcher if _OTHER_SCRIPT.search(word)), None)
    if other:
        raise NotModelled(f"{name}: {Path(other).name} trains a model that is not modelled.")
    scripts = [Path(word).name for word in launcher if word.endswith(".py")]
    idle = next(filter(_NO_TRAINING.match, scripts), None)
    if idle:
        raise NotModelled(f"{name}: {idle} does not train, and only training is modelled.")
    if "train_rl.py" in scripts:
        raise NotModelled(f"{name}: train_rl.py generates between its training steps, which is not modelled.")
    if not words:
        words = _from_variables(script.variables)
    if not {"num-layers", "encoder-num-layers"} & {*map(_name, words)}:
        said = [word for command in script.commands for word in command]
        _check_framework(name, next((who for who, mark in _OTHER_LAUNCH.items() if any(map(mark.search, said))), None))
    if not words:
        raise InputError(
            f"{name}: a launch with Megatron arguments (--num-layers ...) is required, but none was found."
        )
    gpus = gpus_of(launcher, script.commands, script.variables, script.header)
    notes = [*script.notes(command), *without_effect(preset or {}, text, script.variables, script.guesses.made_of)]
    return Source(words, gpus, notes, environment_of(script.variables), script.files.held)


def _check_framework(name: str, framework: str | None) -> None:
    if framework is not None:
        raise InputError(
            f"{name}: a launch of Megatron-LM or a DeepSpeed JSON is required, but this is "
            f"{framework}'s: state its layout to `plan memory` (--tp, --pp, --zero, --sharded-by ...)."
        )


def _arguments(commands: list[list[str]]) -> tuple[list[str] | None, list[str], list[str]]:
    """The command that has most Megatron arguments (the last such), its launcher's words, and the arguments; no
    command in a file that holds just the arguments."""
    listed = [word for command in commands if command[0].startswith("--") for word in command]
    best: list[str] = listed
    most = _count(listed)
    # what a script prints of its command has words that the command itself has not, behind a # or a redirection
    run = [command for command in commands if command[0] not in _PRINTS]
    for command in run if any(map(_count, run)) else commands:
        if not command[0].startswith("--"):
            number = _count(command)
            if number and number >= most:
                best, most = command, number
    if not most:
        return None, [], []
    if best is listed:
        return None, [], listed
    cut = _first_argument(best)
    return best, best[:cut], best[cut:]


def _count(words: list[str]) -> int:
    return sum(_name(word) in HONOURED for word in words if word.startswith("--"))


def _name(word: str) -> str:
    return word[2:].partition("=")[0].replace("_", "-")


def _first_argument(words: list[str]) -> int:
    """Where the script's own arguments begin: after the last .py before the first argument that we honour."""
    first = next(i for i, word in enumerate(words) if word.startswith("--") and _name(word) in HONOURED)
    scripts = [i for i, word in enumerate(words[:first]) if word.endswith(".py")]
    if scripts:
        return scripts[-1] + 1
    if "-m" in words[:first]:
        modules = [i for i, word in enumerate(words[:first]) if word == "-m" and not words[i + 1].startswith("torch.")]
        if modules:
            return modules[-1] + 2
    return first


def _from_variables(variables: Variables) -> list[str]:
    """The arguments that variables hold, for a file that is sourced by the script which launches."""
    words: list[str] = []
    for variable, value in variables.items():
        if not variable.isidentifier():  # positional parameters
            continue
        held = value if isinstance(value, list) else value.split()
        if _count(held):
            words += held
    return words


def _from_mapping(mapping: dict[str, Any], name: str, preset: Preset) -> tuple[Source, Variables]:
    """A YAML of arguments: Megatron CI's `MODEL_ARGS: {--num-layers: 12}` beside `ENV_VARS`, flat, or in Megatron-LM's
    own sections; and its variables."""
    groups = [value for key, value in mapping.items() if key.upper().endswith("ARGS") and isinstance(value, dict)]
    environment = mapping.get("ENV_VARS")
    scalars = {k: v for k, v in mapping.items() if k.isupper() and isinstance(v, str | int) and not isinstance(v, bool)}
    variables: Variables = dict(preset)
    variables |= {
        str(k): str(v)
        for k, v in [*(environment.items() if isinstance(environment, dict) else ()), *scalars.items()]
        if isinstance(v, str | int)
    }
    if not groups:
        groups = [{k: v for k, v in mapping.items() if k not in scalars and k != "ENV_VARS"}]
    expander = Expander(variables, name)
    groups = [Interpolation(group, expander, name).resolve(group) for group in groups]
    words: list[str] = []
    notes: list[str] = []
    if len(groups) == 1 and is_nested(groups[0]):
        groups[0], words, notes = flattened(groups[0], name)
    for group in groups:
        for key, value in group.items():
            words += _mapping_words(str(key), value, expander, name)
    if not _count(words):
        raise InputError(f"{name}: a mapping of Megatron arguments (--num-layers: ...) is required, but it has none.")
    return Source(words, gpus_of([], [], variables, {}), notes, environment_of(variables)), variables


def _mapping_words(key: str, value: Any, expander: Expander, name: str) -> list[str]:
    """One argument of a YAML: true is a flag, false and null are absent, a list is several words."""
    flag = "--" + key.lstrip("-").replace("_", "-")
    if value is None or value is False:
        return []
    if value is True:
        return [flag]
    values = value if isinstance(value, list) else [value]
    if any(isinstance(item, dict) for item in values) or UNRESOLVED in key:
        raise InputError(f"{name}: {flag[:60]} must be a value or a list of values, but is a mapping.")
    if _name(flag) == "moe-layer-freq" and isinstance(value, list):
        return [flag, "[" + ",".join(map(str, values)) + "]"]
    texts = [str(item) for item in values]
    return [flag, *(expander.text(text) if "$" in text else text for text in texts)]
