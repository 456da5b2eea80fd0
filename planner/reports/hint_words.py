"""Remedies in words: a sentence, and the command line that asks what was solved."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields

from planner.hardware import cluster_argument
from planner.layout import described
from planner.reports.words import gpus_by_card
from planner.solver.result import Hint


def hint_sentence(hint: Hint) -> str:
    """What fits then, and in which layout."""
    return f"{_remedy(hint)}: {described(hint.plan.layout)}"


def _remedy(hint: Hint) -> str:
    gpus = hint.cluster.gpus
    same = f"the same {gpus} GPUs" if gpus > 1 else "the same GPU"
    match hint.change:
        case "pins":
            names = hint.given_up.pinned
            if len(names) > 1:
                return f"with every choice left free it fits on {same}"
            return f"without {_option(names[0], getattr(hint.given_up, names[0]))} it fits on {same}"
        case "precision":
            return f"in {hint.workload.precision} it fits on {same}"
        case "batch":
            return f"a global batch of {hint.workload.global_batch} fits on {same}"
        case "gpus" | "card":
            all_of_them = " and ".join(f"{n} {name}" for name, n in gpus_by_card(hint.cluster).items())
            return f"{all_of_them} {'holds' if gpus == 1 else 'hold'} it"


def hint_command(hint: Hint, model: str, others: str = "", where: str = "") -> str:
    """The command line of the changed question; `model` names the model as an option, `others` are options that the
    change leaves as they are, `where` the GPUs as they were named. A pinned placement is left free."""
    workload, pins = hint.workload, hint.pins
    kept = where if hint.change not in ("gpus", "card") else ""
    words = [f"plan {model} {kept or cluster_argument(hint.cluster)}"]
    words.append(f"--seq-length {workload.seq_length} --global-batch {workload.global_batch}")
    for field in fields(pins):
        values = getattr(pins, field.name)
        if values is None or field.name == "placement":
            continue
        if pins.stage_layers is not None and field.name in ("pp", "vpp"):
            continue  # the split says them
        named = _option(field.name, values)
        words.append(named if field.name == "sequence_parallel" else f"{named} {_values(values)}")
    if hint.change == "precision":
        words.append(f"--precision {workload.precision}")
    return " ".join([*words, others]).rstrip()


def _values(values: Sequence[object]) -> str:
    """The values of an option as they are typed: `2,4`, or `5,5/5,5` for the chunks of each stage."""
    if values and isinstance(values[0], Sequence) and not isinstance(values[0], str):
        return "/".join(_values(row) for row in values if isinstance(row, Sequence))
    return ",".join(map(str, values))


def _option(name: str, values: Sequence[object]) -> str:
    """The option that pins a choice."""
    off = name == "sequence_parallel" and not values[0]
    return f"--{'no-' if off else ''}{name.replace('_', '-')}"
