"""The validity rules of Megatron-LM and DeepSpeed that a layout must keep, each with its source.

`broken_rules` lists what a layout breaks; `check` raises the first as a sentence; `RULES` is the book itself.
"""

from __future__ import annotations

from planner.cluster import Cluster
from planner.errors import RuleBroken
from planner.implementation import Implementation
from planner.layout import Layout
from planner.model import Model
from planner.rules.context import CONTEXT_RULES
from planner.rules.experts import EXPERT_RULES
from planner.rules.graphs import GRAPH_RULES
from planner.rules.offload import OFFLOAD_RULES
from planner.rules.pipeline import PIPELINE_RULES
from planner.rules.rule import BrokenRule, Case, Rule
from planner.rules.states import STATE_RULES
from planner.rules.tensor import TENSOR_RULES
from planner.rules.world import POSITIVE, WORLD_RULES
from planner.workload import Workload

__all__ = ["RULES", "BrokenRule", "Case", "Rule", "broken_rules", "check"]

RULES: tuple[Rule, ...] = (
    WORLD_RULES
    + TENSOR_RULES
    + CONTEXT_RULES
    + PIPELINE_RULES
    + EXPERT_RULES
    + STATE_RULES
    + OFFLOAD_RULES
    + GRAPH_RULES
)


def broken_rules(
    model: Model,
    workload: Workload,
    implementation: Implementation,
    layout: Layout,
    world_size: int | None = None,
    cluster: Cluster | None = None,
) -> list[BrokenRule]:
    """The rules that the layout breaks, in the book's order. Without `world_size` the number of GPUs is not judged,
    without `cluster` the cards' precision is not."""
    case = Case(model, workload, implementation, layout, world_size, cluster)
    if not POSITIVE.holds(case):  # the other predicates divide by the degrees
        return [BrokenRule(POSITIVE, POSITIVE.given(case))]
    return [BrokenRule(rule, rule.given(case), rule.nearest(case)) for rule in RULES if not rule.holds(case)]


def check(
    model: Model,
    workload: Workload,
    implementation: Implementation,
    layout: Layout,
    world_size: int | None = None,
    cluster: Cluster | None = None,
) -> None:
    """Raise RuleBroken with the first broken rule's sentence, its numbers and its id; `rules` holds all of them."""
    broken = broken_rules(model, workload, implementation, layout, world_size, cluster)
    if broken:
        raise RuleBroken(f"{broken[0]} [{broken[0].id}]", tuple(broken))
