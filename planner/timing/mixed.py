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
from planner.timing.coefficients import Coefficients, Timed, slowest_device
from planner.timing.efficiency import efficiency
from planner.timing.form import StepForm
from planner.topology.links import StageNodes
from planner.topology.standing import spanning, standing
from planner.workload import Workload

SHARED = ("device", "_compute", "_layers", "_parameters", "_around")
"""What the coefficients of two stages have in common where these wait for the same card: their caches by links."""


class MixedCoefficients:
    """Makes the forms of one model, workload and implementation on one mixed cluster."""

    def __init__(self, model: Model, workload: Workload, implementation: Implementation, cluster: Cluster):
        self._asked = (model, workload, implementation)
        self.cluster = cluster
        self.device = slowest_device(cluster, workload.precision)
        self._of_card: dict[int, Coefficients] = {}
        self._of_nodes: dict[StageNodes, Coefficients] = {}
        self._timed: dict[tuple[int, ...], Timed] = {}

    def timed(self, layout: Layout) -> Timed:
        """The form of a layout's degrees and placement. Its stages that are alike share their StageTime and parts."""
        under = standing(self.cluster, layout).stages
        each = {nodes: self._on(nodes).timed(layout) for nodes in dict.fromkeys(under)}
        key = (*map(id, each.values()), *map(id, under))  # both are kept for good by their coefficients
        found = self._timed.get(key)
        if found is None:
            found = self._timed[key] = _joined([each[nodes] for nodes in under])
        return found

    def _on(self, nodes: StageNodes) -> Coefficients:
        """The coefficients of a stage on these nodes."""
        found = self._of_nodes.get(nodes)
        if found is None:
            found = self._of_nodes[nodes] = Coefficients(*self._asked, nodes)
            alike = self._of_card.setdefault(id(found.device.card), found)
            for name in SHARED:
                setattr(found, name, getattr(alike, name))
        return found


def _joined(stages: list[Timed]) -> Timed:
    """The form whose stage i is that of stages[i]; what is once a step is the longest of all."""
    first = stages[0]
    once = {name: max(stage.once.get(name, 0) for stage in stages) for name in first.once}
    form = StepForm(
        first.form.num_microbatches,
        first.form.vpp,
        tuple(stage.form.stages[i] for i, stage in enumerate(stages)),
        sum(once.values()),
        mixed=True,
    )
    layers = tuple(stage.layers for stage in stages)
    return Timed(form, tuple(stage.fixed[i] for i, stage in enumerate(stages)), first.layers, once, layers)


def waiting(layout: Layout, cluster: Cluster) -> tuple[str, ...]:
    """What is assumed of stages whose ranks have different cards, in words."""
    return tuple(
        f"{where} stand on {' and '.join(names)}: all of their ranks wait for the slowest card and link"
        for where, names in spanning(layout, cluster)
    )


def worst_error(cluster: Cluster) -> float | None:
    """The largest of the cards' measured errors of this model of time; None where one was never measured."""
    groups = {id(group.card): group for group in cluster.groups}.values()
    errors = [efficiency(replace(cluster, groups=(group,))).relative_error for group in groups]
    known = [error for error in errors if error is not None]
    return max(known) if len(known) == len(errors) else None
