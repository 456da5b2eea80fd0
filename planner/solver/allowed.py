"""What a search may use beside the defaults: a narrower precision, another schedule, the host's memory.

Each combination of what is allowed is a search of its own, with its own accounting and timing; the fastest wins, and
the proof is that of all of them together.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from planner.cluster import Cluster
from planner.errors import PlannerError
from planner.implementation import Implementation
from planner.model import Model
from planner.solver.result import SearchResult, Status
from planner.solver.space import Pins
from planner.workload import Workload

OFFLOAD_OPTIMIZER: dict[str, Any] = {"optimizer_offload_fraction": 1.0}
PRECISIONS = {"fp8": "fp8"}
SCHEDULES = {"zb-h1": "zb-h1", "dualpipe": "dualpipe"}
OFFLOADS: dict[str, tuple[dict[str, Any], tuple[int, ...]]] = {
    "offload-optimizer": (OFFLOAD_OPTIMIZER, (0, 1)),
    "offload-parameters": (OFFLOAD_OPTIMIZER | {"offload_parameters": True}, (3,)),
}
"""What each changes, and the ZeRO stages at which it is modelled (`planner.memory.offload.check_offload`)."""
ALLOWED = (*PRECISIONS, *SCHEDULES, *OFFLOADS)


NOTHING = SearchResult(Status.INFEASIBLE, (), "step_seconds", None, None)


@dataclass(frozen=True)
class Setting:
    """One combination: what it uses beside the defaults, and the question that it makes of a search."""

    uses: tuple[str, ...]
    workload: Workload
    implementation: Implementation
    pins: Pins


@dataclass(frozen=True)
class Tried:
    """A setting and what its search found; `refused` says why it could not be searched, or had nothing to search."""

    setting: Setting
    result: SearchResult | None
    refused: str = ""

    @property
    def step_ns(self) -> int | None:
        return self.result.plans[0].step.step_ns if self.result and self.result.plans else None


def settings(
    workload: Workload, implementation: Implementation, pins: Pins, allowed: tuple[str, ...]
) -> tuple[Setting, ...]:
    """Every combination of what is allowed, that of the defaults first."""
    choices = [("", *(name for name in names if name in allowed)) for names in (PRECISIONS, SCHEDULES, OFFLOADS)]
    found = []
    for precision, schedule, offload in product(*choices):
        changed: dict[str, Any] = {"schedule": SCHEDULES[schedule]} if schedule else {}
        changes, stages = OFFLOADS[offload] if offload else ({}, None)
        zero = pins.zero
        if stages is not None:
            zero = tuple(z for z in stages if pins.zero is None or z in pins.zero)
        found.append(
            Setting(
                tuple(filter(None, (precision, schedule, offload))),
                replace(workload, precision=PRECISIONS[precision]) if precision else workload,  # type: ignore[arg-type]
                replace(implementation, **changed, **changes),
                replace(pins, zero=zero),
            )
        )
    return tuple(found)


def least_host_bytes(model: Model, setting: Setting, cluster: Cluster) -> int:
    """What the fullest node holds of offloaded states in any layout: each parameter's are on some host."""
    from planner.memory.states import state_bytes
    from planner.parameters import parameters

    stages = (0, 1, 3) if setting.pins.zero is None else setting.pins.zero
    kept = [state_bytes(zero, setting.workload, setting.implementation) for zero in stages]
    nodes = sum(group.nodes for group in cluster.groups)
    return int(parameters(model) * min(k.host_whole + k.host_sharded for k in kept) / nodes)


def try_all(
    model: Model, found: tuple[Setting, ...], cluster: Cluster, search: Callable[[Setting], SearchResult]
) -> tuple[Tried, ...]:
    """Each setting searched; what a model, a card, the rules or the host's memory rule out is refused by name and the
    rest goes on."""
    tried = []
    for setting in found:
        if setting.pins.zero == ():
            tried.append(Tried(setting, None, f"{setting.uses[-1]} is not modelled at the ZeRO stages allowed"))
            continue
        try:
            least, held = least_host_bytes(model, setting, cluster), cluster.card.host_bytes_per_node
            if held and least > held:
                tried.append(Tried(setting, NOTHING, _host_words(least, held)))
                continue
            result = search(setting)
            # a search that was stopped may have met no candidate yet: only one that ended says that there is none
            if setting.uses and result.status is Status.INFEASIBLE and result.statistics.get("candidates") == 0:
                tried.append(Tried(setting, result, _rules_words(model, setting, cluster)))
                continue
            tried.append(_on_host(Tried(setting, result), cluster))
        except PlannerError as error:
            if not setting.uses:
                raise
            tried.append(Tried(setting, None, str(error)))
    return tuple(tried)


def _rules_words(model: Model, setting: Setting, cluster: Cluster) -> str:
    """The rules that leave a setting no layout."""
    from planner.solver.candidates import Space
    from planner.solver.explain import no_legal_layout

    space = Space(model, setting.workload, setting.implementation, cluster, setting.pins)
    return "; ".join(fact.sentence for fact in no_legal_layout(space))


def _on_host(tried: Tried, cluster: Cluster) -> Tried:
    """Without the plans that want more host memory than a node has, where that is known. The rest is proved no more:
    between it and what was dropped may be layouts that the search did not keep."""
    assert tried.result is not None
    plans, held = tried.result.plans, cluster.card.host_bytes_per_node
    wanted = [max(stage.host_bytes for stage in plan.memory.stages) * cluster.gpus_per_node for plan in plans]
    kept = tuple(plan for plan, host in zip(plans, wanted, strict=True) if not held or host <= held)
    if len(kept) == len(plans):
        return tried
    if not kept:
        unknown = replace(tried.result, status=Status.UNKNOWN, plans=(), value=None)
        return Tried(tried.setting, unknown, _host_words(min(wanted), held))
    changed = replace(tried.result, plans=kept, value=kept[0].step.seconds)
    if kept[0] is not plans[0]:
        changed = replace(changed, status=Status.FEASIBLE)
    return Tried(tried.setting, changed)


def _host_words(wanted_bytes: int, held_bytes: int) -> str:
    return f"it takes {wanted_bytes / 2**30:,.0f} GiB of host memory a node, which has {held_bytes / 2**30:,.0f} GiB"


def best(tried: tuple[Tried, ...]) -> tuple[Tried, SearchResult]:
    """The fastest setting, of equals the one that uses least; and its result under the proof of all: optimal only where
    no other could be faster, with the least of the lower bounds."""
    with_plans = [t for t in tried if t.step_ns is not None]
    chosen = min(with_plans, key=lambda t: (t.step_ns, len(t.setting.uses))) if with_plans else tried[0]
    result = chosen.result
    assert result is not None
    searched = [t.result for t in tried if t.result is not None and t.result.status is not Status.INFEASIBLE]
    bounds = [r.lower_bound for r in searched]
    statistics = dict(result.statistics)
    statistics.pop("left_by_bound", None)  # the other settings' layouts are not among the chosen one's
    statistics["candidates"] = sum(int(t.result.statistics.get("candidates", 0)) for t in tried if t.result)
    if not with_plans:
        status = Status.UNKNOWN if searched else Status.INFEASIBLE
        return chosen, replace(result, status=status, statistics=statistics)
    known = [b for b in bounds if b is not None]
    lower = min(known) if len(known) == len(bounds) else None
    proved = lower is not None and result.value is not None and lower >= result.value
    status = Status.OPTIMAL if proved else Status.FEASIBLE
    return chosen, replace(result, status=status, lower_bound=lower, statistics=statistics)
