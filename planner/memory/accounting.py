"""Two accountings behind one interface."""

from __future__ import annotations

from typing import Protocol

from planner.cluster import Cluster
from planner.errors import InputError
from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.exact import ExactAccounting
from planner.memory.form import Counts, StageForm
from planner.memory.report import MemoryReport
from planner.memory.rule_of_thumb import RuleOfThumb
from planner.model import Model
from planner.workload import Workload

ACCOUNTINGS = ("exact", "rule-of-thumb")


class Accounting(Protocol):
    """Memory of every layout of one model, workload, implementation and cluster."""

    name: str
    reserve_bytes: int

    def form(self, layout: Layout, stage: int) -> StageForm:
        """The stage's memory as terms; the split may be undecided."""
        ...

    def counts(self, layout: Layout, stage: int) -> Counts:
        """What a stage holds; the split must be set."""
        ...

    def stage_capacity_bytes(self, layout: Layout, stage: int) -> int:
        """What a card of this stage offers."""
        ...

    def report(self, layout: Layout, detail: bool = False) -> MemoryReport:
        """Memory of every stage; the split must be set."""
        ...


def make_accounting(
    name: str,
    model: Model,
    workload: Workload,
    implementation: Implementation,
    cluster: Cluster,
    reserve_bytes: int | None = None,
) -> Accounting:
    """`exact` or `rule-of-thumb`; InputError for another name. On a mixed cluster each stage is counted on its own
    card, with that card's reserve unless one is given."""
    if _mixed(cluster):
        from planner.memory.mixed import MixedAccounting

        if name == "exact" and reserve_bytes == cluster.reserve_bytes:
            reserve_bytes = None  # the cluster's default, that of its most demanding card: each keeps its own

        def alone(nodes: Cluster) -> Accounting:
            return make_accounting(name, model, workload, implementation, nodes, reserve_bytes)

        return MixedAccounting(name, cluster, alone)
    if name == "exact":
        return ExactAccounting(model, workload, implementation, cluster, reserve_bytes)
    if name == "rule-of-thumb":
        return RuleOfThumb(model, workload, implementation, cluster, reserve_bytes)
    raise InputError(f"accounting must be one of {', '.join(ACCOUNTINGS)}; given '{name}'.")


def _mixed(cluster: Cluster) -> bool:
    """Whether nodes differ; topology is imported only where there are several groups of them."""
    if len(cluster.groups) == 1:
        return False
    from planner.topology.kinds import mixed

    return mixed(cluster)
