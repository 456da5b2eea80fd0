"""The time of a step: coefficients for the solver (`form`), their decomposition for the report (`step`), a bound."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from planner.cluster import Cluster
from planner.errors import InputError
from planner.implementation import Implementation
from planner.layout import Layout
from planner.model import Model
from planner.parameters import (
    Weight,
    embedding_weights,
    final_norm_weights,
    head_weights,
    layer_weights,
    mtp_weights,
)
from planner.timing import tails
from planner.timing.collectives import all_reduce_seconds, send_seconds
from planner.timing.efficiency import efficiency
from planner.timing.ends import embedding_seconds, head_seconds, projection_seconds
from planner.timing.flops import layer_flops, model_flops
from planner.timing.form import StageTime, StepForm, Tail
from planner.timing.kernels import Device
from planner.timing.layer import HALF, LayerCompute, layer_compute
from planner.timing.report import StepTime
from planner.timing.shard import Shard, shard_of
from planner.timing.split import ends, stage_counts
from planner.timing.traffic import (
    layer_context_parallel,
    layer_expert_parallel,
    layer_sharded_data,
    layer_tensor_parallel,
)
from planner.topology import group_links
from planner.workload import Workload

BUBBLE_DIVISOR = {"1f1b": 1, "zb-h1": 3, "dualpipe": 3}
"""What a schedule divides the bubble by, beyond virtual stages: with forward, input gradients and weight gradients of
equal length, ZB-H1 leaves a third of 1F1B's bubble (arXiv:2401.10241, table 2), the bidirectional schedule no more
(arXiv:2412.19437, table 2). In the form it takes the place of that many virtual stages."""

Parts = dict[str, int]
"""Nanoseconds by component."""


def nanoseconds(seconds: float) -> int:
    """Rounded up, the one place where seconds become integers."""
    return ceil(seconds * 1e9)


@dataclass(frozen=True, slots=True)
class _LayerParts:
    """One layer of a kind for one microbatch, by component; and the seconds that hide data-parallel traffic."""

    normal: Parts
    recompute: Parts
    forward: float
    backward: float


@dataclass(frozen=True, slots=True)
class _Timed:
    """A form with what its integers are made of."""

    form: StepForm
    fixed: tuple[Parts, ...]
    layers: tuple[_LayerParts, ...]
    once: Parts


class Timing:
    """Step times of one model, workload and implementation on one cluster. Caches by the degrees of a layout."""

    def __init__(self, model: Model, workload: Workload, implementation: Implementation, cluster: Cluster):
        self.model, self.workload = model, workload
        self.implementation, self.cluster = implementation, cluster
        self.device = Device(cluster.card, efficiency(cluster))
        precision = workload.precision
        self._peak = cluster.card.flops.get(precision) or max(cluster.card.flops.values())
        self._pattern_counts = tuple(model.pattern.count(k) for k in range(len(model.layer_kinds)))
        self._compute: dict[tuple[Shard, int], LayerCompute] = {}
        self._forms: dict[tuple[object, ...], _Timed] = {}
        self._parameters: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        self._layers: dict[tuple[object, ...], _LayerParts] = {}
        self._flops = model_flops(model, workload.seq_length, workload.global_batch)

    # what the solver reads

    def form(self, layout: Layout) -> StepForm:
        """The step's coefficients for a layout's degrees. A layout whose stages are given may hold its ends elsewhere
        than on the first and last stage; its split is otherwise irrelevant here. Raises InputError when the layout
        wants more GPUs than there are or the batch is too small for it."""
        return self._timed(layout).form

    def step(self, layout: Layout) -> StepTime:
        """The step of a layout whose stages are given, by component."""
        if len(layout.stages) != layout.pp:
            raise InputError(f"a step is timed on pp ({layout.pp}) stages, but was given {len(layout.stages)}.")
        timed = self._timed(layout)
        form = timed.form
        layers, recomputed = stage_counts(self.model, layout)
        alike: dict[tuple[object, ...], int] = {}  # stages that hold the same take as long
        for i, stage in enumerate(form.stages):
            alike.setdefault((stage.fixed_ns, id(stage.tails), layers[i], recomputed[i]), i)
        first = [alike[s.fixed_ns, id(s.tails), layers[i], recomputed[i]] for i, s in enumerate(form.stages)]
        distinct = {i: form.microbatch_ns(i, layers[i], recomputed[i]) for i in alike.values()}
        pipeline = form.pipeline_ns([distinct[i] for i in first])
        slowest = max(distinct, key=distinct.__getitem__)
        last = max(distinct, key=lambda i: form.tail_ns(i, layers[i]))
        components: Parts = {}

        def add(parts: Parts, count: int) -> None:
            if count:
                for name, value in parts.items():
                    components[name] = components.get(name, 0) + value * count

        m = form.num_microbatches
        add(timed.fixed[slowest], m)
        for kind, part in enumerate(timed.layers):
            add(part.normal, m * layers[slowest][kind])
            add(part.recompute, m * recomputed[slowest][kind])
        bubble = pipeline - m * distinct[slowest]
        add({"pipeline_bubble": bubble}, 1)
        for tail in form.stages[last].tails:
            value = max(0, tail.fixed_ns + sum(n * c for n, c in zip(layers[last], tail.layer_ns, strict=True)))
            add({"optimizer" if tail.name == "optimizer" else "data_parallel": value}, 1)
        add(timed.once, 1)
        step_ns = pipeline + form.tail_ns(last, layers[last]) + form.once_ns
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
        )

    def lower_bound_ns(self, layout: Layout) -> int:
        """No split of the layers over the stages, and no choice of the layers to recompute, is faster.

        The slowest stage is no faster than the mean of the stages, nor than an even share of whole layers beside the
        least fixed work; tails are convex, so their largest is no less than that of their mean. Layers that uniform
        full recomputation repeats in any case are counted.
        """
        form = self._timed(layout).form
        stages, p = form.stages, len(form.stages)
        first = stages[0]
        recompute = layout.recompute
        always = recompute.granularity == "full" and recompute.method == "uniform" and not recompute.stage_layers
        each = [n + (r if always else 0) for n, r in zip(first.layer_ns, first.recompute_ns, strict=True)]
        fixed = [s.fixed_ns for s in stages]
        total = sum(fixed) + sum(n * t for n, t in zip(self._pattern_counts, each, strict=True))
        smallest = min(each)
        layers = self.model.num_layers
        slowest = max(-(-total // p), max(fixed), min(fixed) + -(-layers // p) * smallest)
        rounds = form.num_microbatches * form.vpp - 1
        pipeline = -(-(rounds * slowest + total) // form.vpp)
        sums: dict[str, int] = {}
        for stage in stages:
            for tail in stage.tails:
                sums[tail.name] = sums.get(tail.name, 0) + tail.fixed_ns
        for tail in first.tails:
            sums[tail.name] += sum(n * c for n, c in zip(self._pattern_counts, tail.layer_ns, strict=True))
        return pipeline + sum(max(0, value) // p for value in sums.values()) + form.once_ns

    # coefficients

    def _timed(self, layout: Layout) -> _Timed:
        key = (
            layout.tp,
            layout.cp,
            layout.pp,
            layout.vpp,
            layout.ep,
            layout.etp,
            layout.dp,
            layout.zero,
            layout.micro_batch,
            layout.sequence_parallel,
            layout.hsdp_replicas,
            shard_of(layout).modules,
            layout.recompute.granularity == "full" if self.model.mtp_num_layers else None,
            ends(self.model, layout),
        )
        found = self._forms.get(key)
        if found is None:
            found = self._forms[key] = self._make(layout)
        return found

    def _layer_compute(self, shard: Shard, kind: int) -> LayerCompute:
        found = self._compute.get((shard, kind))
        if found is None:
            layer = self.model.layer_kinds[kind]
            found = layer_compute(self.device, self.model, layer, shard, self.workload, self.implementation)
            self._compute[shard, kind] = found
        return found

    def _layer_parts(self, layout: Layout, shard: Shard, kind: int) -> _LayerParts:
        model, layer, e = self.model, self.model.layer_kinds[kind], self.device.efficiency
        links = group_links(layout, self.cluster)
        shared = links["shard"] if layout.zero >= 2 else None
        key = (shard, kind, layout.zero, links["tp"], links["cp"], links["ep"], links["etp"], links["etp_ep"], shared)
        found = self._layers.get(key)
        if found is not None:
            return found
        c = self._layer_compute(shard, kind)
        tp = layer_tensor_parallel(model, layer, c, shard, self.workload, self.implementation, links, e)
        cp = layer_context_parallel(layer, c, shard, self.workload, links, e)
        ep = layer_expert_parallel(model, layer, c, shard, self.workload, self.implementation, links, e)
        forward = c.forward + tp[0] + cp[0] + ep[0]
        backward = c.backward + c.selective + tp[1] + cp[1] + ep[1]
        parameters = sum(self._layer_parameters(shard, kind))
        dp = layer_sharded_data(parameters, forward, backward, layout.zero, self.implementation, links, e)
        host = c.host_seconds(e)
        launch = (max(0.0, host[0] - forward), max(0.0, host[1] - backward))
        normal = {
            "compute": nanoseconds(c.forward + c.backward),
            "recompute": nanoseconds(c.selective),
            "tensor_parallel": nanoseconds(sum(tp)),
            "context_parallel": nanoseconds(sum(cp)),
            "expert_parallel": nanoseconds(sum(ep)),
            "data_parallel": nanoseconds(sum(dp)),
            "launch": nanoseconds(sum(launch)),
        }
        again = {
            "recompute": nanoseconds(c.forward + launch[0]),
            "tensor_parallel": nanoseconds(tp[0]),
            "context_parallel": nanoseconds(cp[0]),
            "expert_parallel": nanoseconds(ep[0]),
        }
        found = self._layers[key] = _LayerParts(normal, again, forward, backward)
        return found

    def _layer_parameters(self, shard: Shard, kind: int) -> tuple[int, int]:
        key = (shard.tp, shard.ep, shard.etp, kind)
        found = self._parameters.get(key)
        if found is None:
            layer, sharding = self.model.layer_kinds[kind], shard.sharding(self.implementation)
            found = _split(layer_weights(layer, self.model.hidden_size, self.model.norm, sharding))
            self._parameters[key] = found
        return found

    def _make(self, layout: Layout) -> _Timed:
        model, workload, implementation = self.model, self.workload, self.implementation
        e, shard = self.device.efficiency, shard_of(layout)
        m = layout.num_microbatches(workload.global_batch)
        if m < 1:
            raise InputError(
                f"the global batch ({workload.global_batch}) must be at least micro_batch x dp "
                f"({layout.micro_batch * layout.dp})."
            )
        links = group_links(layout, self.cluster)
        layers = tuple(self._layer_parts(layout, shard, k) for k in range(len(model.layer_kinds)))
        fixed = self._fixed(layout, shard, layers)
        layer_ns = tuple(sum(part.normal.values()) for part in layers)
        recompute_ns = tuple(sum(part.recompute.values()) for part in layers)
        kinds = range(len(layers))
        layer_parameters = tuple(self._layer_parameters(shard, k) for k in kinds)
        around = self._around_parameters(layout, shard)
        forward, backward = tuple(p.forward for p in layers), tuple(p.backward for p in layers)
        rates = tails.rates(self.device, layout, implementation, workload.optimizer, links)
        made: dict[tuple[int, int], tuple[Tail, ...]] = {}
        stages = []
        for i in range(layout.pp):
            if around[i] not in made:
                linear = tails.tails(rates, layout, implementation, e, around[i], layer_parameters, forward, backward)
                made[around[i]] = tuple(
                    Tail(name, nanoseconds(t.fixed), tuple(map(nanoseconds, t.layers))) for name, t in linear.items()
                )
            stages.append(StageTime(sum(fixed[i].values()), layer_ns, recompute_ns, made[around[i]]))
        once = {"overhead": nanoseconds(e.step_seconds)}
        embedding, _, loss = ends(self.model, layout)
        if model.tied and embedding != loss:
            table = embedding_weights(model, layout.tp, implementation.vocab_divisible_by)[0].numel
            once["data_parallel"] = nanoseconds(
                all_reduce_seconds(links["embedding"], float(table * implementation.grad_reduce_bytes), e)
            )
        form = StepForm(m, layout.vpp * BUBBLE_DIVISOR[implementation.schedule], tuple(stages), sum(once.values()))
        return _Timed(form, fixed, layers, once)

    def _around_parameters(self, layout: Layout, shard: Shard) -> list[tuple[int, int]]:
        """(dense, expert) parameters of each stage beside its layers."""
        model, divisible = self.model, self.implementation.vocab_divisible_by
        embedding, mtp, loss = ends(self.model, layout)
        around = [[0, 0] for _ in range(layout.pp)]

        def add(stage: int, weights: tuple[Weight, ...], times: int = 1) -> None:
            dense, expert = _split(weights)
            around[stage][0] += dense * times
            around[stage][1] += expert * times

        add(embedding, embedding_weights(model, layout.tp, divisible))
        add(loss, final_norm_weights(model))
        add(loss, head_weights(model, layout.tp, divisible, tied_copy=model.tied and embedding != loss))
        if model.mtp_num_layers:
            add(mtp, mtp_weights(model, shard.sharding(self.implementation)), model.mtp_num_layers)
        return [(dense, expert) for dense, expert in around]

    def _fixed(self, layout: Layout, shard: Shard, layers: tuple[_LayerParts, ...]) -> tuple[Parts, ...]:
        """Embedding, head, multi-token prediction and sends of each stage, once a microbatch."""
        model, workload, implementation, device = self.model, self.workload, self.implementation, self.device
        links = group_links(layout, self.cluster)
        embedding, mtp, loss = ends(self.model, layout)
        fixed: list[Parts] = [{} for _ in range(layout.pp)]

        def add(stage: int, name: str, seconds: float) -> None:
            if seconds:
                fixed[stage][name] = fixed[stage].get(name, 0) + nanoseconds(seconds)

        args = (device, model, shard, workload, implementation, links)
        kernels, communication = embedding_seconds(*args)
        add(embedding, "compute", kernels)
        add(embedding, "tensor_parallel", communication)
        head_kernels, head_communication = head_seconds(*args)
        add(loss, "compute", head_kernels)
        add(loss, "tensor_parallel", head_communication)
        if model.mtp_num_layers:
            n, kind = model.mtp_num_layers, model.pattern[-1]
            again = layout.recompute.granularity == "full"
            for parts in (layers[kind].normal, layers[kind].recompute if again else {}):
                for name, value in parts.items():
                    fixed[mtp][name] = fixed[mtp].get(name, 0) + n * value
            around = projection_seconds(device, model, shard, workload, implementation)
            add(mtp, "compute", n * (around + head_kernels + kernels))
            add(mtp, "tensor_parallel", n * (head_communication + communication))
        if layout.pp > 1:
            hop = self._hop_seconds(layout, shard)
            for i in range(layout.pp):
                neighbours = 2 if 0 < i < layout.pp - 1 or layout.vpp > 1 else 1
                add(i, "pipeline_p2p", neighbours * layout.vpp * hop)
        return tuple(fixed)

    def _hop_seconds(self, layout: Layout, shard: Shard) -> float:
        """What one send between stages costs a microbatch. Plain 1F1B waits for it; the interleaved schedule sends
        while the next chunk computes (`overlap_p2p_comm`), which costs the overlap's tax."""
        e = self.device.efficiency
        links = group_links(layout, self.cluster)
        sent = float(HALF * shard.norm_tokens(self.workload) * self.model.hidden_size)
        seconds = send_seconds(links["pp"], sent, e)
        return seconds * e.overlap_tax if layout.vpp > 1 else seconds

    def _hardware_flops(self, layout: Layout, recomputed: list[tuple[int, ...]]) -> int:
        """Model FLOPs and what full or selective recomputation repeats."""
        model, seq, sequences = self.model, self.workload.seq_length, self.workload.global_batch
        again = 0
        for kind, layer in enumerate(model.layer_kinds):
            whole, core = layer_flops(model, layer, seq)
            again += whole * sum(stage[kind] for stage in recomputed)
            if layout.recompute.granularity == "selective" and "core_attn" in shard_of(layout).modules:
                again += core * self._pattern_counts[kind]
        return self._flops + again * sequences


def _split(weights: tuple[Weight, ...]) -> tuple[int, int]:
    """Elements of (dense, expert) tensors."""
    dense = sum(w.numel for w in weights if not w.expert)
    return dense, sum(w.numel for w in weights if w.expert)
