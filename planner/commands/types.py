"""Parsers of option values: each turns text into a value or says in one sentence what is required."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import click
from click.shell_completion import CompletionItem

from planner.commands.words import remember
from planner.errors import PlannerError, nearest

STANDARD_INPUT = "/dev/stdin"
"""What `-` stands for where a file is named."""


class Loaded(click.ParamType):
    """A name or a path that the library loads, `-` for standard input; the library's own sentence is the error."""

    def __init__(self, name: str, load: Callable[[str], Any], names: Callable[[], Sequence[str]]):
        self.name, self._load, self._names = name, load, names

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        remember(ctx, param, value)
        try:
            return self._load(STANDARD_INPUT if value == "-" else value)
        except PlannerError as error:
            self.fail(str(error), param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(name) for name in self._names() if name.startswith(incomplete.lower())]


def _load_model(text: str) -> Any:
    from planner.catalog import load_model

    return load_model(text)


def _model_names() -> Sequence[str]:
    from planner.catalog import model_names

    return list(model_names())


def _parse_gpus(text: str) -> Any:
    from planner.hardware import parse_gpus

    return parse_gpus(text)


def _load_cluster(text: str) -> Any:
    from planner.hardware import load_cluster

    return load_cluster(text)


def _cluster_names() -> Sequence[str]:
    from planner.hardware import cluster_names

    return list(cluster_names())


def _load_card(text: str) -> Any:
    from planner.hardware import load_card

    return load_card(text)


def _card_names() -> Sequence[str]:
    from planner.hardware import card_names

    return list(card_names())


MODEL = Loaded("model", _load_model, _model_names)
GPUS = Loaded("gpus", _parse_gpus, lambda: [f"8x{name}" for name in _card_names()])
CLUSTER = Loaded("cluster", _load_cluster, _cluster_names)
CARD = Loaded("gpu", _load_card, _card_names)


class Values(click.ParamType):
    """One value, or a list separated by commas: a tuple of values without repetitions, in order."""

    def __init__(self, name: str, choices: Sequence[str] | Sequence[int] = (), many: bool = True, minimum: int = 1):
        self.name, self.many, self.minimum = name, many, minimum
        self.choices: tuple[int | str, ...] = tuple(choices)

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        one = "|".join(map(str, self.choices)) if self.choices else "N"
        return f"{one}[,...]" if self.many else one

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        remember(ctx, param, value)
        items = [item.strip() for item in value.split(",")]
        if len(items) > 1 and not self.many:
            self.fail(
                f"one value is required here, but '{value}' was given (lists restrict `plan search`).", param, ctx
            )
        return tuple(dict.fromkeys(self._one(item, param, ctx) for item in items))

    def _one(self, text: str, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        if self.choices:
            for choice in self.choices:
                if str(choice) == text.lower():
                    return choice
            known = [str(choice) for choice in self.choices]
            close = nearest(text.lower(), known, 1)
            hint = f" Did you mean {close[0]}?" if close else ""
            self.fail(f"one of {', '.join(known)} is required, but '{text}' was given.{hint}", param, ctx)
        if not re.fullmatch(r"[+-]?[0-9]{1,12}", text):
            self.fail(f"a whole number of at least {self.minimum} is required, but '{text}' was given.", param, ctx)
        if int(text) < self.minimum:
            self.fail(f"at least {self.minimum} is required, but {text} was given.", param, ctx)
        return int(text)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return [CompletionItem(str(choice)) for choice in self.choices if str(choice).startswith(incomplete)]


class Whole(click.ParamType):
    """A whole number of at least 1."""

    name = "number"

    def __init__(self, maximum: int = 10**9):
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if not re.fullmatch(r"[+-]?[0-9]{1,12}", value) or not 1 <= int(value) <= self.maximum:
            self.fail(f"a whole number from 1 to {self.maximum} is required, but '{value}' was given.", param, ctx)
        return int(value)


class Factor(click.ParamType):
    """A number of at least 1."""

    name = "factor"

    def __init__(self, maximum: float):
        self.maximum = maximum

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if not re.fullmatch(r"[0-9]{1,6}(\.[0-9]{1,6})?", value) or not 1 <= float(value) <= self.maximum:
            self.fail(f"a number from 1 to {self.maximum:g} is required, but '{value}' was given.", param, ctx)
        return float(value)


class Share(click.ParamType):
    """A number from 0 to 1."""

    name = "share"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        try:
            share = float(value)
        except ValueError:
            share = -1.0
        if not 0 <= share <= 1:  # neither is NaN
            self.fail(f"a number from 0 to 1 is required, but '{value}' was given.", param, ctx)
        return share


class Seconds(click.ParamType):
    """A time of more than 0 seconds."""

    name = "seconds"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        if not re.fullmatch(r"[0-9]{1,9}(\.[0-9]{1,9})?", value) or float(value) == 0:
            self.fail(f"a number of seconds greater than 0 is required, but '{value}' was given.", param, ctx)
        return float(value)


class Choice(click.Choice):
    """click.Choice with a suggestion of the nearest valid value."""

    def get_invalid_choice_message(self, value: Any, ctx: click.Context | None) -> str:
        known = [str(choice) for choice in self.choices]
        close = nearest(str(value).lower(), known, 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        return f"one of {', '.join(known)} is required, but '{value}' was given.{hint}"


_SIZE_UNITS = {"b": 1, "kib": 2**10, "mib": 2**20, "gib": 2**30, "kb": 10**3, "mb": 10**6, "gb": 10**9, "g": 2**30}


_LEAST_BARE = 2**20
"""A bare number below this was hardly meant as bytes."""


class Size(click.ParamType):
    """An amount of memory such as `4GiB`, `512MiB` or `4e9`; a bare number is bytes."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        match = re.fullmatch(r"\s*([0-9]+(?:\.[0-9]+)?(?:e[0-9]{1,2})?)\s*([a-z]*)\s*", value.lower())
        unit = _SIZE_UNITS.get(match[2] or "b") if match else None
        if match is None or unit is None:
            self.fail(f"an amount such as 4GiB, 512MiB or 4GB is required, but '{value}' was given.", param, ctx)
        amount = int(float(match[1]) * unit)
        if not match[2] and 0 < amount < _LEAST_BARE:
            self.fail(
                f"an amount with its unit, such as {match[1]}GiB, is required, but '{value}' was given.", param, ctx
            )
        remember(ctx, param, value)
        return amount


class StageLayers(click.ParamType):
    """`10,10,10,10`: the decoder layers of each stage; `5,5/5,5`: of each virtual chunk of each stage."""

    name = "layers"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        numbers = r"[0-9]{1,6}(?:\s*,\s*[0-9]{1,6})*"
        if not re.fullmatch(rf"\s*{numbers}\s*(?:/\s*{numbers}\s*)*", value):
            self.fail(
                "layers of each stage such as 10,10,10,10 (or of each stage's virtual chunks such as 5,5/5,5) "
                f"are required, but '{value}' was given.",
                param,
                ctx,
            )
        rows = tuple(tuple(int(n) for n in part.split(",")) for part in value.split("/"))
        return rows if len(rows) > 1 else rows[0]


class Parsed(click.ParamType):
    """Text that a function of planner.capacity.quantities reads; its own sentence is the error."""

    def __init__(self, name: str):
        self.name = name

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        from planner.capacity import quantities

        parse: Callable[[str], Any] = getattr(quantities, f"parse_{self.name}")
        try:
            return parse(value)
        except PlannerError as error:
            self.fail(str(error), param, ctx)


_LAYOUT = "tp=8,pp=1,zero=1,recompute=full"
_SWITCH = {"on": True, "true": True, "yes": True, "off": False, "false": False, "no": False}


class LayoutSpec(click.ParamType):
    """`tp=8,pp=1,zero=1,recompute=full`: choices of a layout by the names of their options; a dictionary of them."""

    name = "layout"

    def __init__(self) -> None:
        numbers = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "micro-batch")
        self._types: dict[str, Values] = {name: Values(name, many=False) for name in numbers}
        self._types["zero"] = Values("zero", (0, 1, 2, 3), many=False)
        self._types["recompute"] = Values("recompute", ("none", "selective", "full"), many=False)
        self._names = (*self._types, "sequence-parallel")

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not isinstance(value, str):
            return value
        found: dict[str, Any] = {}
        for item in value.split(","):
            name, equals, text = (part.strip().lower() for part in item.partition("="))
            name = name.replace("_", "-").removeprefix("--")
            if not equals or not text:
                self.fail(f"choices such as {_LAYOUT} are required, but '{value}' was given.", param, ctx)
            if name not in self._names:
                close = nearest(name, self._names, 1)
                hint = f" Did you mean {close[0]}?" if close else ""
                known = ", ".join(self._names)
                self.fail(f"one of {known} is required before '=', but '{name}' was given.{hint}", param, ctx)
            key = name.replace("-", "_")
            if key in found:
                self.fail(f"each choice must be named once, but '{value}' names {name} twice.", param, ctx)
            found[key] = self._value(name, text, param, ctx)
        return found

    def _value(self, name: str, text: str, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if name == "sequence-parallel":
            if text not in _SWITCH:
                self.fail(f"sequence-parallel must be on or off, but '{text}' was given.", param, ctx)
            return (_SWITCH[text],)
        try:
            return self._types[name].convert(text, param, None)
        except click.BadParameter as error:
            self.fail(f"{name}: {error.message}", param, ctx)

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        before, comma, last = incomplete.rpartition(",")
        return [CompletionItem(f"{before}{comma}{name}=") for name in self._names if name.startswith(last)]
