"""What a search minimised, in words and in data: objective, pins, and the margin against the model's error."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any

from planner.solver.result import Status
from planner.units import percent, plural, seconds, size

if TYPE_CHECKING:
    from planner.solver.result import Plan, SearchResult
    from planner.solver.space import Pins

UNITS = {
    "step_seconds": "seconds",
    "peak_bytes": "bytes",
    "gpus": "GPUs",
    "gpu_seconds_per_token": "GPU-seconds per token",
    "cost_per_million_tokens": "money per million tokens",
    "worst_regret_seconds": "seconds",
}
"""Every objective and its unit."""
NOTHING_BETTER = {
    "step_seconds": "no layout that fits is faster",
    "peak_bytes": "no layout needs less memory on its fullest GPU, and of those that need as little none is faster",
    "gpus": "no smaller number of GPUs that was judged holds it, and on this number no layout that fits is faster",
    "gpu_seconds_per_token": "no layout on any number of GPUs that was judged trains a token in fewer GPU-seconds",
    "cost_per_million_tokens": "no layout on any number of GPUs that was judged trains a token for less",
    "worst_regret_seconds": "no layout that survives these errors could lose less",
}


def objective_body(result: SearchResult) -> dict[str, Any]:
    """The contract's `objective`."""
    return {
        "name": result.objective,
        "value": result.value,
        "lower_bound": result.lower_bound,
        "unit": UNITS[result.objective],
        "proved": result.status in (Status.OPTIMAL, Status.INFEASIBLE),
    }


def worth(result: SearchResult, value: float | None) -> str:
    """A value of the objective with its unit."""
    if value is None:
        return "unknown"
    match result.objective:
        case "peak_bytes":
            return size(value)
        case "gpus":
            return plural(int(value), "GPU")
        case "gpu_seconds_per_token":
            return f"{value * 1e6:,.1f} GPU-seconds per million tokens"
        case "cost_per_million_tokens":
            return f"{value:,.4g} per million tokens"
    return seconds(value)


def error_words(plans: tuple[Plan, ...]) -> Iterator[str]:
    """The margin to the runner-up against what the model of time is off by."""
    best = plans[0].step
    margin = plans[1].step.seconds / best.seconds - 1
    error = best.relative_error
    if error is None:
        yield "How far off this model of time is has not been measured on this card: measure the first few."
    elif margin < error:
        close = [p for p in plans if p.step.seconds / best.seconds - 1 < error]
        yield (
            f"The first {len(close)} lie within the {percent(error, 0)} that this model of time is off by: "
            "measure them before you rely on their order."
        )
    else:
        yield f"That margin is more than the {percent(error, 0)} that this model of time is off by."


def signed(fraction: float) -> str:
    """`+1.4%`, `-0.2%`."""
    return f"{'-' if fraction < 0 else '+'}{percent(abs(fraction))}"


NAMES = ("tp", "cp", "pp", "vpp", "ep", "etp", "dp", "zero", "micro_batch", "recompute", "sequence_parallel")
"""Choices that the search makes where the user does not; the stage split and the recomputed layers follow."""


def choices_body(pins: Pins) -> dict[str, Any]:
    """What was pinned to one value, restricted to several, and left to the search."""
    given = {f.name: getattr(pins, f.name) for f in fields(pins)}
    allowed = {name: list(given[name]) for name in NAMES if given[name] is not None}
    return {
        "pinned": {name: values[0] for name, values in allowed.items() if len(values) == 1}
        | ({} if pins.stage_layers is None else {"stage_layers": _lists(pins.stage_layers)})
        | ({} if pins.placement is None else {"placement": _lists(pins.placement)}),
        "restricted": {name: values for name, values in allowed.items() if len(values) > 1},
        "searched": [name for name in (*NAMES, "stage_layers") if given[name] is None],
    }


def _lists(value: Any) -> Any:
    return [_lists(item) for item in value] if isinstance(value, list | tuple) else value


def choices_words(pins: Pins) -> str:
    """The same in a sentence."""
    found = choices_body(pins)
    said = []
    if found["pinned"]:
        said.append("pinned by you: " + ", ".join(named(n, v) for n, v in found["pinned"].items()))
    if found["restricted"]:
        restricted = (f"{_name(n)} {' or '.join(map(str, v))}" for n, v in found["restricted"].items())
        said.append("restricted: " + ", ".join(restricted))
    if not said:
        return "Nothing was pinned: all of it was chosen by the search."
    left = ", ".join(map(_name, found["searched"]))
    text = "; ".join([*said, f"chosen by the search: {left}" if left else "nothing was left to the search"])
    return text[0].upper() + text[1:] + "."


def _name(name: str) -> str:
    return name.replace("_", "-")


def named(name: str, value: Any) -> str:
    """A choice and its value."""
    if name == "sequence_parallel":
        return f"sequence-parallel {'on' if value else 'off'}"
    if name == "placement":
        return "the order of the nodes"
    if name == "stage_layers":
        rows = ["+".join(map(str, row)) if isinstance(row, list) else str(row) for row in value]
        return f"stage-layers {','.join(rows)}"
    return f"{_name(name)} {value}"
