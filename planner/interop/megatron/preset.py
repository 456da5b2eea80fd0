"""The variables that a script starts with: its environment and its positional parameters, as `--set` gives them."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from planner.interop.megatron.environment import READ
from planner.interop.megatron.expand import Variables
from planner.interop.megatron.launcher import WORLD_VARIABLES


def starting_variables(preset: Mapping[str, str]) -> Variables:
    """Shell variables by name; `1`, `2`, ... are positional parameters, from which `$@`, `$*` and `$#` follow."""
    variables: Variables = dict(preset)
    numbers = [int(name) for name in preset if name.isdigit() and name != "0"]
    if numbers:
        _place(variables, [preset.get(str(i), "") for i in range(1, max(numbers) + 1)])
    return variables


def without_effect(
    preset: Mapping[str, str], text: str, variables: Variables, made_of: Mapping[str, set[str]]
) -> Iterator[str]:
    """One sentence for each preset that a file does not name, or that it overwrites. `variables` is what they are at
    its end, `made_of` the names in the words that each was assigned."""
    for name, value in preset.items():
        held = variables.get(name)
        if name.isdigit():
            if not re.search(rf"\$\{{?[#!]?(?:{name}\b|[@*#])|\bshift\b", text):
                yield f"--set {name}={value[:40]} has no effect: the file uses no parameter ${name}"
        elif held != value and name not in made_of.get(name, ()):
            words = " ".join(held) if isinstance(held, list) else held
            itself = f"the file sets {name} to {words[:40]} itself" if words else f"the file sets {name} itself"
            yield f"--set {name}={value[:40]} has no effect: {itself}"
        elif name not in {*READ, *WORLD_VARIABLES} and not re.search(rf"\b{name}\b", text):
            yield f"--set {name}={value[:40]} has no effect: the file names no variable {name}"


def shift(variables: Variables, words: list[str]) -> None:
    """`shift` and `shift N`, where the positional parameters are known."""
    held = variables.get("@")
    count = int(words[0]) if words and words[0].isdigit() and len(words[0]) < 4 else 1
    if isinstance(held, list) and count <= len(held):
        for i in range(1, len(held) + 1):
            del variables[str(i)]
        _place(variables, held[count:])


def _place(variables: Variables, values: list[str]) -> None:
    variables |= {str(i): value for i, value in enumerate(values, 1)}
    variables |= {"@": list(values), "*": list(values), "#": str(len(values))}
