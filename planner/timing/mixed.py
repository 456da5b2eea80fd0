"""The coefficients of a step on a cluster of several kinds of nodes: each stage timed on its own cards and links.

A stage's kernels run on its own card (the slowest of those that it spans), its collectives on the links of its own
nodes, its sends on the slowest of the links to its neighbours. All formulas are those of `planner.timing.coefficients`,
asked once for each different stage; the pipeline waits for its slowest stage in any case (`planner.timing.form`).
"""

from __future__ import annotations

from dataclasses import replace

from planner.cluster import Cluster
from planner.implementation import Implementation
from planner.layout import Layout
from planner.model import Model
from planner.timing.bubble import filled_ns
from planner.timing.coefficients import Coefficients, shares_embedding, slowest_device
from planner.timing.efficiency import efficiency
from planner.timing.form import StepForm, nanoseconds
from planner.timing.parts import Role, Timed, form_key
from planner.topology.links import StageNodes
from planner.topology.standing import spanning, standing
from planner.workload import Workload

SHARED = ("device", "_compute", "_layers", "_parameters", "_around")
"""What the coefficients of two stages have in common where these wait for the same card: their caches by links."""


class MixedCoefficients:
    """Makes the forms of one model, workload and implementation on one mixed cluster."""

    def __init__(self, model: Model, workload: Workload, implementation: Implementation, cluster: Cluster):
        self.model, self.workload, self.implementation, self.cluster = model, workload, implementation, cluster
        self.device = slowest_device(cluster, workload.precision)
        self._of_card: dict[int, Coefficients] = {}
        self._of_nodes: dict[StageNodes, Coefficients] = {}
        self._timed: dict[tuple[object, ...], Timed] = {}

    def timed(self, layout: Layout) -> Timed:
        """The form of a layout's degrees and placement. Its stages that are alike share their StageTime and parts."""
        key = (form_key(self.model, layout), layout.placement)
        found = self._timed.get(key)
        if found is None:
            found = self._timed[key] = self._make(layout)
        return found

    def _make(self, layout: Layout) -> Timed:
        under = standing(self.cluster, layout).stages
        roles = self._on(under[0]).roles(layout)
        wanted: dict[StageNodes, dict[Role, None]] = {}
        for nodes, role in zip(under, roles, strict=True):
            wanted.setdefault(nodes, {})[role] = None
        made = {nodes: self._on(nodes).stage_times(layout, here) for nodes, here in wanted.items()}
        times = [made[nodes][2][role] for nodes, role in zip(under, roles, strict=True)]
        layers = tuple(made[nodes][1].layers for nodes in under)
        once = {"overhead": max(nanoseconds(self._on(nodes).device.efficiency.step_seconds) for nodes in wanted)}
        if shares_embedding(self.model, roles):
            links = made[under[0]][1].links
            reduced = (self._on(nodes).tied_seconds(layout, links["embedding"]) for nodes in (under[0], under[-1]))
            once["data_parallel"] = nanoseconds(max(reduced))
        schedule, counts = self.implementation.schedule, self.model.kind_counts
        filled = min(filled_ns(schedule, layout.pp, common.layers, counts) for _, common, _ in made.values())
        m, stages = made[under[0]][0], tuple(time for time, _ in times)
        form = StepForm(m, layout.vpp, stages, sum(once.values()), filled, mixed=True)
        return Timed(form, tuple(parts for _, parts in times), layers[0], once, layers)

    def _on(self, nodes: StageNodes) -> Coefficients:
        """The coefficients of a stage on these nodes."""
        found = self._of_nodes.get(nodes)
        if found is None:
            found = self._of_nodes[nodes] = Coefficients(self.model, self.workload, self.implementation, nodes)
            alike = self._of_card.setdefault(id(found.device.card), found)
            for name in SHARED:
                setattr(found, name, getattr(alike, name))
        return found


def waiting(layout: Layout, cluster: Cluster) -> tuple[str, ...]:
    """What is assumed of stages whose ranks have different cards, in words."""
    return tuple(
        f"{where} stand on {' and '.join(names)}: all of their ranks wait for the slowest card and link"
        for where, names in spanning(layout, cluster)
    )


def worst_error(cluster: Cluster, mixture: bool) -> float | None:
    """The largest of the cards' measured errors of this model of time; None where one was never measured."""
    groups = {id(group.card): group for group in cluster.groups}.values()
    errors = [efficiency(replace(cluster, groups=(group,))).errors(mixture)[0] for group in groups]
    known = [error for error in errors if error is not None]
    return max(known) if len(known) == len(errors) else None
