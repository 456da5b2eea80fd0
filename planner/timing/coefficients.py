"""The coefficients of a step and what each integer is made of, cached by the few degrees that each depends on."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from math import log2

from planner.attention import attention_on
from planner.cluster import Cluster
from planner.errors import InputError, NotModelled
from planner.implementation import Implementation, weight_copies
from planner.layout import Layout
from planner.memory.states import half_weight_bytes, split_by_group
from planner.model import Model, MoE
from planner.parameters import (
    Weight,
    embedding_weights,
    final_norm_weights,
    head_weights,
    layer_weights,
    mtp_weights,
)
from planner.timing import tails
from planner.timing.bubble import filled_ns
from planner.timing.collectives import all_reduce_seconds, gather_seconds, keeps_weights
from planner.timing.context import layer_context_parallel
from planner.timing.efficiency import efficiency
from planner.timing.ends import embedding_seconds, head_seconds, projection_seconds
from planner.timing.floor import layer_floor_seconds
from planner.timing.form import StageTime, StepForm, nanoseconds
from planner.timing.host import activation_copy_seconds
from planner.timing.kernels import Device, memory_seconds
from planner.timing.layer import LayerCompute, layer_compute
from planner.timing.parts import Common, End, LayerParts, Parts, Role, Timed, delayed, form_key
from planner.timing.passes import HALF
from planner.timing.shard import Shard, recomputed_modules, shard_of
from planner.timing.split import ends
from planner.timing.traffic import (
    Links,
    layer_expert_parallel,
    layer_sharded_data,
    layer_tensor_parallel,
    selective_traffic,
    stage_hop_seconds,
)
from planner.topology import GroupLink, group_links
from planner.workload import Workload

NODE = 8
"""GPUs among which nobody waits: runs on one node are what the efficiencies were fitted to."""


def slowest_device(cluster: Cluster, precision: str) -> Device:
    """The card that every synchronous step waits for: of a mixed cluster, the one with the lowest sustained rate."""
    groups = {id(group.card): group for group in cluster.groups}.values()
    devices = [
        Device(g.card, efficiency(replace(cluster, groups=(g,)) if len(groups) > 1 else cluster)) for g in groups
    ]
    return min(devices, key=lambda device: device.flops(precision))


def one_at_a_time(device: Device) -> Device:
    """The device when each operation waits for the one before: what would be hidden costs all of its time."""
    return replace(device, efficiency=replace(device.efficiency, overlap_tax=1.0))


def shares_embedding(model: Model, roles: Iterable[Role]) -> bool:
    """Whether stages hold copies of the embedding: a tied head's, or that of multi-token prediction, away from the
    first stage (megatron/core/distributed/finalize_model_grads.py: _get_shared_word_embedding_weight)."""
    if not (model.tied or model.mtp_num_layers):
        return False
    apart = [role for role in roles if not role.embedding]
    return any((model.tied and role.loss) or role.mtp for role in apart)


class Coefficients:
    """Makes the forms of one model, workload and implementation on one cluster."""

    def __init__(self, model: Model, workload: Workload, implementation: Implementation, cluster: Cluster):
        self.model, self.workload = model, workload
        self.device = slowest_device(cluster, workload.precision)
        kernel = attention_on(implementation, self.device.card.architecture, model, workload.precision)
        self.implementation, self.cluster = replace(implementation, attention=kernel), cluster
        if implementation.launch_blocking:
            self.device = one_at_a_time(self.device)
        self._gathered_bytes = half_weight_bytes(workload, implementation)
        self._casts = workload.precision == "fp8" and implementation.layer_implementation == "transformer_engine"
        self._compute: dict[tuple[Shard, int], LayerCompute] = {}
        self._layers: dict[tuple[object, ...], LayerParts] = {}
        self._ranks_per_node = max(group.gpus_per_node for group in cluster.groups)
        self._parameters: dict[tuple[int, int, int, int], tuple[int, int]] = {}
        self._around: dict[tuple[int, int, int, Role], tuple[int, int]] = {}
        self._commons: dict[tuple[object, ...], Common] = {}
        self._timed: dict[tuple[object, ...], Timed] = {}
        self._roles: dict[tuple[object, ...], list[Role]] = {}

    def timed(self, layout: Layout) -> Timed:
        """The form of a layout's degrees (and of the stages that hold its ends)."""
        key = form_key(self.model, layout)
        found = self._timed.get(key)
        if found is None:
            found = self._timed[key] = self._make(layout)
        return found

    def _make(self, layout: Layout) -> Timed:
        model, implementation, e = self.model, self.implementation, self.device.efficiency
        roles = self.roles(layout)
        m, common, made = self.stage_times(layout, set(roles))
        once = {"overhead": nanoseconds(e.step_seconds)}
        if shares_embedding(model, roles):
            once["data_parallel"] = nanoseconds(self.tied_seconds(layout, common.links["embedding"]))
        filled = filled_ns(implementation.schedule, layout.pp, common.layers, model.kind_counts)
        form = StepForm(m, layout.vpp, tuple([made[role][0] for role in roles]), sum(once.values()), filled)
        return Timed(form, tuple([made[role][1] for role in roles]), common.layers, once)

    def stage_times(
        self, layout: Layout, roles: Iterable[Role]
    ) -> tuple[int, Common, dict[Role, tuple[StageTime, Parts]]]:
        """(microbatches, what all stages have in common, the time of a stage of each role). Raises InputError when the
        batch is too small for the layout."""
        m = layout.num_microbatches(self.workload.global_batch)
        if m < 1:
            raise InputError(
                f"the global batch ({self.workload.global_batch}) must be at least micro_batch x dp "
                f"({layout.micro_batch * layout.dp})."
            )
        common = self._common(layout)
        hide = _hiding_passes(layout, m) * weight_copies(self.implementation, layout.pp)  # each has its last microbatch
        forward, backward = [hide * p.forward for p in common.layers], [hide * p.backward for p in common.layers]
        hop = layout.vpp * self._hop_seconds(layout, common.shard, common.links) if layout.pp > 1 else 0.0
        made: dict[Role, tuple[StageTime, Parts]] = {}
        for role in roles:
            end = self._end(layout, common, role)
            fixed, fixed_ns = end.fixed, end.fixed_ns
            if hop:
                sent = nanoseconds(role.neighbours * hop)
                fixed, fixed_ns = {**fixed, "pipeline_p2p": sent}, fixed_ns + sent
            if common.wait:
                waited = nanoseconds(common.wait * 1e-9 * fixed_ns)
                fixed, fixed_ns = {**fixed, "stragglers": waited}, fixed_ns + waited
            shown = tails.exposed(end.tails, forward, backward)
            at = (end.alone_ns, 0) if role.embedding else (0, end.alone_ns)  # on the first or on the last chunk
            made[role] = StageTime(fixed_ns, common.layer_ns, common.recompute_ns, shown, *at), fixed
        return m, common, made

    def tied_seconds(self, layout: Layout, link: GroupLink) -> float:
        """The reduction of the embedding's gradients between the stages that hold a copy."""
        table = embedding_weights(self.model, layout.tp, self.implementation.vocab_divisible_by)[0].numel
        return all_reduce_seconds(link, float(table * self.implementation.grad_reduce_bytes), self.device.efficiency)

    def _common(self, layout: Layout) -> Common:
        """What the forms of a layout have in common whatever its number of virtual stages."""
        key = (
            layout.tp,
            layout.cp,
            layout.pp,
            layout.ep,
            layout.etp,
            layout.dp,
            layout.zero,
            layout.micro_batch,
            layout.sequence_parallel,
            layout.hsdp_replicas,
            recomputed_modules(layout),
            layout.recompute.distribute_saved_activations,
        )
        found = self._commons.get(key)
        if found is None:
            e, shard, links = self.device.efficiency, shard_of(layout), group_links(layout, self.cluster)
            kinds = range(len(self.model.layer_kinds))
            wait = e.straggler * max(0.0, log2(layout.world_size / NODE))
            layers = tuple([delayed(self._layer_parts(layout, shard, links, k), wait) for k in kinds])
            found = self._commons[key] = Common(
                shard,
                links,
                wait,
                layers,
                tuple([part.normal_ns for part in layers]),
                tuple([part.recompute_ns for part in layers]),
                tuple([self._layer_parameters(layout, shard, k) for k in kinds]),
                tails.rates(self.device, layout, self.implementation, self.workload, links, self._ranks_per_node),
                {},
            )
        return found

    def _end(self, layout: Layout, common: Common, role: Role) -> End:
        """Work of a stage beside its layers, without its sends."""
        again = role.mtp and layout.recompute.granularity == "full"
        key = (role.embedding, role.mtp, role.loss, again)
        found = common.ends.get(key)
        if found is None:
            around = self._parameters_around(layout, common.shard, role)
            parts = self._fixed(layout, common.shard, common.links, common.layers, role, around)
            # "stragglers" of multi-token prediction: waits once with all else
            fixed = {name: ns for name, ns in parts.items() if not common.wait or name != "stragglers"}
            total = sum(fixed.values())
            alone = total + nanoseconds(common.wait * 1e-9 * total)
            weighed = tails.weighed(common.rates, around, common.parameters, self._matrices(layout, role))
            after = tails.tails(weighed, layout, self.implementation, self.device.efficiency)
            found = common.ends[key] = End(fixed, total, alone, after)
        return found

    def roles(self, layout: Layout) -> list[Role]:
        """What each stage has beside its layers."""
        embedding, mtp, loss = at = ends(self.model, layout)
        key = (layout.pp, layout.vpp == 1, at)
        if key in self._roles:
            return self._roles[key]
        has_mtp, last = self.model.mtp_num_layers > 0, layout.pp - 1
        inner = Role(False, False, False, 2)
        roles = [inner] * layout.pp
        for i in {0, last, embedding, mtp, loss}:
            outer = i in (0, last) and layout.vpp == 1
            roles[i] = Role(i == embedding, has_mtp and i == mtp, i == loss, 1 if outer else 2)
        self._roles[key] = roles
        return roles

    def _layer_compute(self, shard: Shard, kind: int) -> LayerCompute:
        found = self._compute.get((shard, kind))
        if found is None:
            layer = self.model.layer_kinds[kind]
            found = layer_compute(self.device, self.model, layer, shard, self.workload, self.implementation)
            self._compute[shard, kind] = found
        return found

    def _layer_parts(self, layout: Layout, shard: Shard, links: Links, kind: int) -> LayerParts:
        model, layer, e = self.model, self.model.layer_kinds[kind], self.device.efficiency
        names = ("tp", "cp", "ep", "etp", "etp_ep", *(("shard", "edp", "replicate") if layout.zero >= 2 else ()))
        key = (shard, kind, layout.zero if layout.zero >= 2 else 0, *[links[name] for name in names])
        if key in self._layers:
            return self._layers[key]
        if layout.zero >= 2 and layout.hsdp_replicas > 1 and isinstance(layer.mlp, MoE) and layout.experts_apart:
            raise NotModelled("the time of experts that are divided and hybrid-sharded (HSDP) is not modelled.")
        c = self._layer_compute(shard, kind)
        tp = layer_tensor_parallel(model, layer, c, shard, self.workload, self.implementation, links, e)
        cp = layer_context_parallel(layer, c, shard, self.workload, self.implementation, links, e)
        ep = layer_expert_parallel(model, layer, c, shard, self.workload, self.implementation, links, e)
        more = (0.0, 0.0, 0.0)
        if shard.modules:
            args = (shard, self.workload, self.implementation, links, e)
            more = selective_traffic(model, layer, c, *args, (cp[0], ep[0]))
        count = self._layer_parameters(layout, shard, kind)
        copy = activation_copy_seconds(self.device, model, layer, self.workload, self.implementation, layout)
        # a weight that is gathered is cast to 8 bits again, read in two bytes and written once for each product
        gathers = layout.zero >= 2 and not keeps_weights(self.implementation, layout.zero)
        cast = memory_seconds(self.device, 4 * sum(count)) if gathers and self._casts else 0.0
        cast_again = cast if layout.zero == 3 else 0.0
        forward = c.forward + tp[0] + cp[0] + ep[0] + cast
        backward = c.backward + c.selective.seconds + tp[1] + cp[1] + ep[1] + sum(more) + cast_again
        launch = host = c.host_seconds(e)
        if not self.implementation.launch_blocking:
            launch = (max(0.0, host[0] - forward), max(0.0, host[1] - backward))
        # hidden behind all the time that a layer takes, the host's included: so no recomputation makes a layer faster
        hide = forward + launch[0], backward + launch[1]
        dp = layer_sharded_data(
            count, *hide, layout.zero, self._gathered_bytes, self.implementation, links, self.device
        )
        normal = {
            "compute": nanoseconds(c.forward + c.backward + cast + cast_again),
            "recompute": nanoseconds(c.selective.seconds),
            "tensor_parallel": nanoseconds(sum(tp) + more[0]),
            "context_parallel": nanoseconds(sum(cp) + more[1]),
            "expert_parallel": nanoseconds(sum(ep) + more[2]),
            "data_parallel": nanoseconds(sum(dp)),
            "launch": nanoseconds(sum(launch)),
            "offload": nanoseconds(sum(max(0.0, copy - beside) for beside in hide)),
        }
        # megatron/core/tensor_parallel/random.py: CheckpointFunction gathers a distributed input
        stream = HALF * shard.tokens(self.workload) * model.hidden_size if shard.distributed_checkpoints else 0
        again = {
            "recompute": nanoseconds(c.forward + launch[0]),
            "tensor_parallel": nanoseconds(tp[0] + gather_seconds(links["tp"], stream, e)),
            "context_parallel": nanoseconds(cp[0]),
            "expert_parallel": nanoseconds(ep[0]),
        }
        totals = sum(normal.values()), sum(again.values())
        found = self._layers[key] = LayerParts(normal, again, *hide, c.weight_gradients, *totals)
        return found

    def layer_floor_ns(self, layout: Layout) -> tuple[int, ...]:
        """For each kind of layer: no layout with this tp, cp and micro-batch is faster, whatever its ep and etp."""
        shard = replace(shard_of(layout), ep=1, etp=1, modules=())
        links, e = group_links(layout, self.cluster), self.device.efficiency
        args = (shard, self.workload, self.implementation, links, e)
        return tuple(
            int(1e9 * layer_floor_seconds(self.device, self.model, layer, self._layer_compute(shard, kind), *args))
            for kind, layer in enumerate(self.model.layer_kinds)
        )

    def _layer_parameters(self, layout: Layout, shard: Shard, kind: int) -> tuple[int, int]:
        """(dense, expert) parameters of a layer on one rank, by the group that reduces them."""
        key = (shard.tp, shard.ep, shard.etp, kind)
        found = self._parameters.get(key)
        if found is None:
            layer, sharding = self.model.layer_kinds[kind], shard.sharding(self.implementation)
            found = split_by_group(layer_weights(layer, self.model.hidden_size, self.model.norm, sharding), layout)
            self._parameters[key] = found
        return found

    def _parameters_around(self, layout: Layout, shard: Shard, role: Role) -> tuple[int, int]:
        """(dense, expert) parameters of a stage beside its layers, on one rank."""
        key = (shard.tp, shard.ep, shard.etp, role)
        if key in self._around:
            return self._around[key]
        model, divisible = self.model, self.implementation.vocab_divisible_by
        weights: tuple[Weight, ...] = ()
        if role.embedding:
            weights += embedding_weights(model, layout.tp, divisible)
        if role.loss:
            weights += final_norm_weights(model)
            weights += head_weights(model, layout.tp, divisible, tied_copy=model.tied and not role.embedding)
        if role.mtp:
            weights += mtp_weights(model, shard.sharding(self.implementation)) * model.mtp_num_layers
            weights += () if role.embedding else embedding_weights(model, layout.tp, divisible)[:1]
        found = self._around[key] = split_by_group(weights, layout)
        return found

    def _matrices(self, layout: Layout, role: Role) -> tails.Linear:
        """Seconds that the optimizer spends on whole matrices, which Muon alone does: of the stage's modules of
        multi-token prediction, and of a layer of each kind."""
        model = self.model
        if self.workload.optimizer != "muon":
            return tails.Linear(0.0, (0.0,) * len(model.layer_kinds))
        kinds = [layer_weights(layer, model.hidden_size, model.norm) for layer in model.layer_kinds]
        mtp = mtp_weights(model) * model.mtp_num_layers if role.mtp else ()
        given = self.device, self.implementation
        fixed, *layers = [tails.orthogonalisation_seconds(*given, weights, layout) for weights in (mtp, *kinds)]
        return tails.Linear(fixed, tuple(layers))

    def _fixed(
        self,
        layout: Layout,
        shard: Shard,
        links: Links,
        layers: tuple[LayerParts, ...],
        role: Role,
        around: tuple[int, int],
    ) -> Parts:
        """Embedding, head and multi-token prediction of a stage, once a microbatch."""
        model, workload, implementation, device = self.model, self.workload, self.implementation, self.device
        parts: Parts = {}

        def add(name: str, seconds: float) -> None:
            if seconds:
                parts[name] = parts.get(name, 0) + nanoseconds(seconds)

        args = (device, model, shard, workload, implementation, links)
        kernels = 0.0
        if role.embedding or role.mtp:
            embedding, embedding_traffic = embedding_seconds(*args)
        if role.loss:
            head, head_traffic = head_seconds(*args)
        if role.embedding:
            kernels += embedding
            add("tensor_parallel", embedding_traffic)
        if role.loss:
            # heads and losses of multi-token prediction are here too, wherever its modules are
            # (megatron/core/models/gpt/gpt_model.py: process_mtp_loss)
            heads = 1 + model.mtp_num_layers
            kernels += heads * head
            add("tensor_parallel", heads * head_traffic)
        if role.mtp:
            n, kind = model.mtp_num_layers, model.pattern[-1]
            again = layout.recompute.granularity == "full"
            for layer in (layers[kind].normal, layers[kind].recompute if again else {}):
                for name, value in layer.items():
                    parts[name] = parts.get(name, 0) + n * value
            projection, projection_traffic = projection_seconds(*args)
            kernels += n * (projection + embedding)
            add("tensor_parallel", n * (projection_traffic + embedding_traffic))
        add("compute", kernels)
        if layout.zero >= 2:
            hide = kernels / 3, kernels * 2 / 3  # backward two products for each one forward
            shown = layer_sharded_data(around, *hide, layout.zero, self._gathered_bytes, implementation, links, device)
            add("data_parallel", sum(shown))
        return parts

    def _hop_seconds(self, layout: Layout, shard: Shard, links: Links) -> float:
        """What one send between stages costs a microbatch. Plain 1F1B waits for it; the interleaved schedule sends
        while the next chunk computes (`overlap_p2p_comm`), which costs the overlap's tax."""
        e = self.device.efficiency
        seconds = stage_hop_seconds(self.model, shard, self.workload, self.implementation, links, e)
        return seconds * e.overlap_tax if layout.vpp > 1 else seconds


def _hiding_passes(layout: Layout, microbatches: int) -> float:
    """Passes of a microbatch over a stage's layers that hide its data-parallel traffic.

    With one chunk: the last microbatch's. With v chunks the gradients of a chunk are complete once the last group of pp
    microbatches has passed it, and are reduced while that group passes the other chunks (megatron/core/pipeline_
    parallel/schedules.py: enable_grad_sync in forward_backward_pipelining_with_interleaving).
    """
    group = min(layout.pp, microbatches)
    return max(1.0, group * (layout.vpp - 1) / layout.vpp)
