"""The variables that a script starts with: its environment and its positional parameters, as `--set` gives them."""

from __future__ import annotations

from collections.abc import Mapping

from planner.interop.megatron.expand import Variables


def starting_variables(preset: Mapping[str, str]) -> Variables:
    """Shell variables by name; `1`, `2`, ... are positional parameters, from which `$@`, `$*` and `$#` follow."""
    variables: Variables = dict(preset)
    numbers = [int(name) for name in preset if name.isdigit() and name != "0"]
    if numbers:
        _place(variables, [preset.get(str(i), "") for i in range(1, max(numbers) + 1)])
    return variables


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
