"""The time of a step: coefficients for the solver (`form`), their decomposition for the report (`step`), a bound."""

from __future__ import annotations

from math import hypot

from planner.cluster import Cluster
from planner.errors import InputError
from planner.implementation import Implementation, as_sharded
from planner.layout import Layout
from planner.model import Model
from planner.timing.assumptions import assumptions, crossing, exposed, host_bound
from planner.timing.coefficients import Coefficients
from planner.timing.factors import HOST_UNCERTAINTY
from planner.timing.flops import layer_flops, model_flops, repeated_flops
from planner.timing.form import StepForm
from planner.timing.kernels import linear_precision
from planner.timing.mixed import MixedCoefficients, waiting, worst_error
from planner.timing.parts import Parts, Timed
from planner.timing.report import StepTime
from planner.timing.shard import recomputed_modules
from planner.timing.split import stage_counts
from planner.topology.kinds import mixed
from planner.workload import Workload


class Timing:
    """Step times of one model, workload and implementation on one cluster. Caches by the degrees of a layout."""

    def __init__(self, model: Model, workload: Workload, implementation: Implementation, cluster: Cluster):
        self.model, self.workload = model, workload
        self._coefficients: Coefficients | MixedCoefficients = (MixedCoefficients if mixed(cluster) else Coefficients)(
            model, workload, implementation, cluster
        )
        self._cluster = cluster
        sharded = as_sharded(implementation, zero=3)
        self._sharded = None if sharded is implementation else Timing(model, workload, sharded, cluster)
        self._relative_error = (
            self._coefficients.device.efficiency.errors(model.is_moe)[0]
            if not mixed(cluster)
            else worst_error(cluster, model.is_moe)
        )
        self._implementation = implementation
        self._assumptions = assumptions(model, workload.precision, implementation, cluster)
        self._peak = _peak_flops(cluster, workload.precision, implementation)
        self._layer_flops = [layer_flops(model, layer, workload.seq_length)[0] for layer in model.layer_kinds]
        self._repeated_flops: dict[tuple[str, ...], int] = {}
        self._flops = model_flops(model, workload.seq_length, workload.global_batch)

    def form(self, layout: Layout) -> StepForm:
        """The step's coefficients for a layout's degrees. A layout whose stages are given may hold its ends elsewhere
        than on the first and last stage; its split is otherwise irrelevant here. Raises InputError when the layout
        wants more GPUs than there are or the batch is too small for it."""
        return self._timed(layout).form

    def _timed(self, layout: Layout) -> Timed:
        return (self._sharded if self._sharded and layout.zero >= 2 else self)._coefficients.timed(layout)

    def layer_floor_ns(self, layout: Layout) -> tuple[int, ...]:
        """For each kind of layer: no layout with this tp, cp and micro-batch on cards of one kind is faster, whatever
        its expert parallelism."""
        assert isinstance(self._coefficients, Coefficients)
        return self._coefficients.layer_floor_ns(layout)

    def step(self, layout: Layout) -> StepTime:
        """The step of a layout whose stages are given, by component. `step_ns` is what `form` evaluates to."""
        if len(layout.stages) != layout.pp:
            raise InputError(f"a step is timed on pp ({layout.pp}) stages, but was given {len(layout.stages)}.")
        timed = self._timed(layout)
        form = timed.form
        held = stage_counts(self.model, layout)
        layers, recomputed = [h.layers for h in held], [h.recomputed for h in held]
        counts = [h.counts for h in held]
        first = form.alike(counts)  # stages that hold the same take as long
        different = dict.fromkeys(first)
        times = {i: form.microbatch_ns(i, layers[i], recomputed[i]) for i in different}
        tails = {i: form.tail_ns(i, layers[i]) for i in different}
        chunks = form.chunks(counts, first) if layout.vpp > 1 else []
        pipeline = form.pipeline_ns([times[i] for i in first], chunks)
        slowest = max(times, key=times.__getitem__)
        last = max(tails, key=tails.__getitem__)
        m = form.num_microbatches
        bubble = pipeline - m * times[slowest]
        components = {name: value * m for name, value in timed.fixed[slowest].items()}
        for kind, part in enumerate(timed.stage_layers[slowest] if timed.stage_layers else timed.layers):
            _add(components, part.normal, m * layers[slowest][kind])
            if again := recomputed[slowest][kind]:
                _add(components, part.recompute, m * again)
        components["pipeline_bubble"] = bubble
        for tail, value in zip(form.stages[last].tails, form.shown_ns(last, layers[last]), strict=True):
            name = "optimizer" if tail.name == "optimizer" else "data_parallel"
            components[name] = components.get(name, 0) + value
        _add(components, timed.once, 1)
        step_ns = pipeline + tails[last] + form.once_ns
        host_share = components.get("launch", 0) / step_ns
        return StepTime(
            step_ns=step_ns,
            components={name: value / 1e9 for name, value in components.items() if value},
            tokens_per_step=self.workload.tokens_per_step,
            gpus=layout.world_size,
            model_flops=self._flops,
            hardware_flops=self._hardware_flops(layout, recomputed),
            peak_flops_per_gpu=self._peak,
            bubble_fraction=bubble / step_ns,
            lower_bound_seconds=self._flops / self._peak / layout.world_size,
            relative_error=self._error(host_share),
            assumptions=(
                *self._assumptions,
                *exposed(layout, self._implementation),
                *crossing(layout, self._cluster),
                *host_bound(host_share),
                *waiting(layout, self._cluster),
            ),
        )

    def _error(self, host_share: float) -> float | None:
        """The error of a step that waits so much for its host: the published runs behind the constants hardly do."""
        if self._relative_error is None or "host_factor" in self._cluster.calibration:
            return self._relative_error
        return hypot((1 - host_share) * self._relative_error, host_share * HOST_UNCERTAINTY)

    def _hardware_flops(self, layout: Layout, recomputed: list[tuple[int, ...]]) -> int:
        """Model FLOPs and what full or selective recomputation repeats."""
        if layout.recompute.granularity == "none":
            return self._flops
        modules = recomputed_modules(layout)
        again = self._repeated_flops.get(modules)
        if again is None:
            again = self._repeated_flops[modules] = self._repeated(frozenset(modules))
        for kind, each in enumerate(self._layer_flops):
            again += each * sum([stage[kind] for stage in recomputed])
        return self._flops + again * self.workload.global_batch

    def _repeated(self, modules: frozenset[str]) -> int:
        """Forward FLOPs of one sequence through all layers that selective recomputation of `modules` repeats."""
        kinds = zip(self.model.layer_kinds, self.model.kind_counts, strict=True)
        return sum(n * repeated_flops(self.model, layer, self.workload.seq_length, modules) for layer, n in kinds)


def _add(components: Parts, parts: Parts, count: int) -> None:
    if count:
        for name, value in parts.items():
            components[name] = components.get(name, 0) + value * count


def _peak_flops(cluster: Cluster, precision: str, implementation: Implementation) -> float:
    """Data-sheet FLOP/s of the mean GPU in what linear layers run in; a card without it counts with its 16-bit rate."""
    total = 0.0
    for group in cluster.groups:
        rates = group.card.flops
        linear = linear_precision(group.card, precision, implementation)
        total += group.gpus * next(rates[p] for p in (linear, "bf16", "fp16", "fp32") if p in rates)
    return total / cluster.gpus
