"""The exact accounting: per tensor, as the framework really allocates it.

Everything is cached by the few degrees it depends on; the report and the constraint model read the same StageForm.
"""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from functools import cached_property

from planner.cluster import Cluster
from planner.errors import NotModelled
from planner.implementation import Implementation, attention_on
from planner.layout import Layout
from planner.memory import states
from planner.memory.assumptions import assumptions
from planner.memory.buffers import buffer_terms, dummy_gradient_terms, gather_terms
from planner.memory.counts import stage_counts
from planner.memory.form import Component, Counts, Moment, StageForm, Term, multiplier
from planner.memory.in_flight import InFlight, moments_in_flight, peak_in_flight
from planner.memory.moments import StageParts, moments
from planner.memory.pieces import EdgeCosts, LayerCost, edge_costs, layer_cost, modules_of, shape_of, sharding_of
from planner.memory.report import MemoryReport, Piece, StageMemory
from planner.memory.rule_of_thumb import RuleOfThumb
from planner.model import Model
from planner.parameters import Weight, by_part, numel
from planner.workload import Workload


class ExactAccounting:
    """Bytes of every stage of any layout of one model, workload, implementation and cluster."""

    name = "exact"

    def __init__(
        self,
        model: Model,
        workload: Workload,
        implementation: Implementation,
        cluster: Cluster,
        reserve_bytes: int | None = None,
    ) -> None:
        self.model = model
        self.workload = workload
        kernel = attention_on(implementation, cluster.card.architecture)
        self.implementation = replace(implementation, attention=kernel)
        self.cluster = cluster
        self.reserve_bytes = cluster.reserve_bytes if reserve_bytes is None else reserve_bytes
        self._pieces: dict[tuple, tuple[tuple[LayerCost, ...], EdgeCosts]] = {}
        self._states: dict[tuple, tuple[Term, ...]] = {}
        self._forms: dict[tuple, StageForm] = {}
        self._padding: dict[tuple, int] = {}

    @cached_property
    def _hand(self) -> RuleOfThumb:
        return RuleOfThumb(self.model, self.workload, self.implementation, self.cluster)

    def stage_capacity_bytes(self, layout: Layout, stage: int) -> int:
        """What a card of this stage gives a process."""
        return self.cluster.capacity_bytes

    def pieces(self, layout: Layout, group: int = 1) -> tuple[tuple[LayerCost, ...], EdgeCosts]:
        """Costs of each layer kind and of the edges on one rank of this layout; layers are rebuilt in groups."""
        modules = modules_of(layout)
        key = (
            layout.tp,
            layout.sequence_parallel,
            layout.cp,
            layout.ep,
            layout.etp,
            layout.micro_batch,
            modules,
            layout.pp > 1,
            group,
        )
        found = self._pieces.get(key)
        if found is None:
            model, impl = self.model, self.implementation
            shape = shape_of(model, self.workload, impl, layout)
            sharding = sharding_of(impl, layout)
            kinds = tuple(layer_cost(model, impl, kind, shape, sharding, modules, group) for kind in model.layer_kinds)
            found = self._pieces[key] = (kinds, edge_costs(model, impl, shape, sharding, layout.pp > 1))
        return found

    def form(self, layout: Layout, stage: int) -> StageForm:
        """The stage's memory as terms; with `layout.stages` empty, for the standard placement of embedding and loss."""
        parts = self._parts(layout, stage)
        group, corrections = self._checkpoint_groups(layout, stage, parts)
        key = (
            layout.tp,
            layout.cp,
            layout.pp > 1,
            layout.vpp,
            layout.ep,
            layout.etp,
            layout.dp,
            layout.zero,
            layout.micro_batch,
            layout.sequence_parallel,
            modules_of(layout),
            layout.hsdp_replicas,
            parts,
            group,
            corrections,
        )
        form = self._forms.get(key)
        if form is None:
            form = self._forms[key] = self._build(layout, parts, group, corrections)
        return form

    def _parts(self, layout: Layout, stage: int) -> StageParts:
        m = layout.num_microbatches(self.workload.global_batch) or 1
        impl = self.implementation
        extra = int(impl.overlap_moe_expert_parallel_comm)
        in_flight = moments_in_flight(layout.pp, stage, layout.vpp, m, impl.microbatch_group_size, extra)
        if layout.stages:
            chunks = layout.stages[stage]
            embedding = next((c for c, chunk in enumerate(chunks) if chunk.embedding), None)
            loss = next((c for c, chunk in enumerate(chunks) if chunk.loss), None)
            mtp = sum(chunk.mtp_layers for chunk in chunks)
        else:
            embedding = 0 if stage == 0 else None
            loss = layout.vpp - 1 if stage == layout.pp - 1 else None
            mtp = self.model.mtp_num_layers if loss is not None else 0
        tied = self.model.tied and embedding is not None and loss is not None
        deferred = min(impl.deferred_embedding_wgrads, m) if loss is not None else 0
        return StageParts(_prune(in_flight), embedding, loss, mtp, deferred, tied)

    def _build(self, layout: Layout, parts: StageParts, group: int, corrections: tuple[Term, ...]) -> StageForm:
        kinds, edges = self.pieces(layout, group)
        shape = shape_of(self.model, self.workload, self.implementation, layout)
        always = (
            *self._state_terms(layout, parts),
            *buffer_terms(
                self.model, self.workload, self.implementation, layout, shape, parts, self.cluster.card.architecture
            ),
            *dummy_gradient_terms(
                self.implementation,
                [cost.weights for cost in kinds],
                edges.head_weights or edges.embedding_weights,
                parts.loss_chunk is not None,
            ),
            *corrections,
            Term("reserve", "reserve", self.reserve_bytes, certainty="estimated"),
        )
        gathers = tuple(
            gather_terms(states.state_bytes(layout.zero, self.workload, self.implementation), k, cost.weights)
            for k, cost in enumerate(kinds)
        )
        dense = not self.implementation.gradient_accumulation_fusion
        found = moments(kinds, edges, parts, always, gathers, shape.stream, dense)
        step = Moment("optimizer step", (*always, *self._step_terms(layout, parts)))
        found = (*found, step)
        return StageForm(tuple(_merged(m) for m in found), self._padding_bound(layout))

    def _state_terms(self, layout: Layout, parts: StageParts) -> tuple[Term, ...]:
        """Weights, gradients and optimizer of every layer that the stage may hold, and of its edges."""
        kinds, _ = self.pieces(layout)
        terms: list[Term] = []
        for k, cost in enumerate(kinds):
            amounts = self._state_amounts(layout, cost.weights)
            for chunk in range(layout.vpp):
                terms += [Term(c, "layers", b, "layer", k, chunk) for c, b in amounts]
        terms += [Term(c, "edges", b) for c, b in self._state_amounts(layout, self._edge_weights(layout, parts))]
        return tuple(terms)

    def _step_terms(self, layout: Layout, parts: StageParts) -> tuple[Term, ...]:
        """Half-precision main gradients are copied to fp32 for the optimizer (optimizer/optimizer.py:
        Float16OptimizerWithFloat16Params._copy_model_grads_to_main_grads; distrib_optimizer.py copies the shard)."""
        s = states.state_bytes(layout.zero, self.workload, self.implementation)
        half = 2 in (s.gradients_whole, s.gradients_sharded) and self.implementation.main_grads_bytes == 4
        if not half or self.implementation.precision_aware_optimizer:
            return ()

        def copied(weights: tuple[Weight, ...]) -> int:
            dense, expert = states.split_by_group(weights, layout)
            if layout.zero == 0:
                return 4 * (dense + expert)
            shards = states.shard(dense, states.shard_group(layout, self.implementation, False))
            return 4 * (shards + states.shard(expert, states.shard_group(layout, self.implementation, True)))

        terms = [Term("gradients", "fp32 copies", copied(self._edge_weights(layout, parts)))]
        for k, cost in enumerate(self.pieces(layout)[0]):
            for chunk in range(layout.vpp):
                terms.append(Term("gradients", "fp32 copies", copied(cost.weights), "layer", k, chunk))
        return tuple(terms)

    def _edge_weights(self, layout: Layout, parts: StageParts) -> tuple[Weight, ...]:
        _, edges = self.pieces(layout)
        weights: tuple[Weight, ...] = ()
        if parts.embedding_chunk is not None:
            weights += edges.embedding_weights
        if parts.mtp_layers:
            weights += edges.mtp_weights * parts.mtp_layers
            if parts.embedding_chunk is None:
                weights += edges.embedding_weights[:1]  # the module embeds the next token itself
        if parts.loss_chunk is not None:
            weights += edges.final_norm_weights + edges.head_weights
        return weights

    def _state_amounts(self, layout: Layout, weights: tuple[Weight, ...]) -> list[tuple[Component, int]]:
        s = states.state_bytes(layout.zero, self.workload, self.implementation)
        dense, expert = states.split_by_group(weights, layout)
        shards = states.shard(dense, states.shard_group(layout, self.implementation, False))
        shards += states.shard(expert, states.shard_group(layout, self.implementation, True))
        whole = dense + expert
        adam = 4 * states.moments_left_to_adam(weights, self.workload)
        return [
            ("weights", s.weights_whole * whole + s.weights_sharded * shards),
            ("gradients", s.gradients_whole * whole + s.gradients_sharded * shards),
            ("optimizer", s.optimizer_whole * whole + s.optimizer_sharded * shards + adam),
        ]

    def _checkpoint_groups(self, layout: Layout, stage: int, parts: StageParts) -> tuple[int, tuple[Term, ...]]:
        """Layers that are rebuilt together, and corrections where full recomputation checkpoints groups of several layers
        or distributes the checkpoints: what is kept is then not proportional to the layers, so the split must be known."""
        r = layout.recompute
        grouped = r.method == "uniform" and r.num_layers != 1
        if r.granularity != "full" or not (grouped or r.distribute_saved_activations):
            return 1, ()
        if not layout.stages:
            raise NotModelled(
                "full recomputation in groups of several layers or with distributed checkpoints needs a given stage split."
            )
        shape = shape_of(self.model, self.workload, self.implementation, layout)
        kept = shape.full_stream // shape.tp if r.distribute_saved_activations else shape.stream
        vector = max((f.microbatches for f in parts.in_flight), key=sum)
        correction = 0
        largest = 1
        for chunk, alive in zip(layout.stages[stage], vector, strict=True):
            if not chunk.num_layers:
                continue
            group = min(r.num_layers or chunk.num_layers, chunk.num_layers) if grouped else 1
            largest = max(largest, group)
            recomputed = min(r.num_layers or 0, chunk.num_layers) if r.method == "block" else chunk.num_layers
            correction += alive * (-(-recomputed // group) * kept - recomputed * shape.stream)
        return largest, (Term("activations", "checkpoints of layer groups", correction),)

    def _padding_bound(self, layout: Layout) -> int:
        """At least what bucket padding can add to a stage (zero without the distributed optimizer)."""
        if layout.zero != 1:
            return 0
        s = states.state_bytes(1, self.workload, self.implementation)
        per_element = s.weights_whole + s.gradients_whole + s.optimizer_sharded
        total = sum(numel(cost.weights) for cost in self.pieces(layout)[0]) * self.model.num_layers // layout.pp
        bucket = states.bucket_elements(self.implementation, layout.dp * layout.cp)
        buckets = 2 + layout.vpp * 2 + (total // bucket if bucket else 0)
        unit = layout.dp * layout.cp * 128
        if self.implementation.pad_buckets_for_high_nccl_busbw:
            unit *= states.BUS_BANDWIDTH_ALIGNMENT // 128
        return per_element * unit * buckets

    def counts(self, layout: Layout, stage: int) -> Counts:
        """Layers of each kind in each chunk of a stage, and how many of them are fully recomputed."""
        return stage_counts(self.model, layout, stage)

    def report(self, layout: Layout, detail: bool = False) -> MemoryReport:
        """Memory of every stage of a layout whose stage split is set."""
        stages = tuple(self._stage(layout, i, detail) for i in range(layout.pp))
        notes = assumptions(self.model, self.workload, self.implementation, layout, self.cluster, self.reserve_bytes)
        return MemoryReport(self.name, self.cluster.capacity_bytes, stages, notes)

    def _stage(self, layout: Layout, stage: int, detail: bool) -> StageMemory:
        form = self.form(layout, stage)
        counts = self.counts(layout, stage)
        moment, components = form.peak(counts)
        padding = self._stage_padding(layout, stage, counts)
        components["optimizer"] += padding
        kinds, _ = self.pieces(layout)
        parts = self._parts(layout, stage)
        weights = self._edge_weights(layout, parts)
        held = [sum(chunk[k] for chunk in counts.layers) for k in range(len(kinds))]
        m = layout.num_microbatches(self.workload.global_batch) or 1
        impl = self.implementation
        return StageMemory(
            stage=stage,
            ranks=layout.world_size // layout.pp,
            layers=sum(held),
            parameters=numel(weights) + sum(n * numel(cost.weights) for n, cost in zip(held, kinds, strict=True)),
            in_flight_microbatches=self._in_flight(layout, stage, m, impl),
            moment=moment.name,
            components=components,
            capacity_bytes=self.stage_capacity_bytes(layout, stage),
            rule_of_thumb_bytes=self._hand.stage_bytes(layout, stage),
            pieces=self._detail(layout, parts, held) if detail else (),
            terms=_shown(moment, counts) if detail else (),
        )

    @staticmethod
    def _in_flight(layout: Layout, stage: int, m: int, impl: Implementation) -> Fraction:
        extra = int(impl.overlap_moe_expert_parallel_comm)
        return peak_in_flight(layout.pp, stage, layout.vpp, m, impl.microbatch_group_size, extra)

    def _stage_padding(self, layout: Layout, stage: int, counts: Counts) -> int:
        """What bucket padding really adds on this stage, less what rounding each piece's shard up has added."""
        if layout.zero != 1:
            return 0
        parts = self._parts(layout, stage)
        key = (layout.tp, layout.ep, layout.etp, layout.dp, layout.cp, layout.pp > 1, counts.layers, parts)
        found = self._padding.get(key)
        if found is None:
            found = self._padding[key] = self._padding_bytes(layout, parts, counts)
        return found

    def _padding_bytes(self, layout: Layout, parts: StageParts, counts: Counts) -> int:
        impl = self.implementation
        s = states.state_bytes(1, self.workload, impl)
        kinds, edges = self.pieces(layout)
        bucket = states.bucket_elements(impl, layout.dp * layout.cp)
        true_bytes = 0
        for chunk in range(layout.vpp):
            held: list[Weight] = []
            if parts.embedding_chunk == chunk:
                held += edges.embedding_weights
            for k, cost in enumerate(kinds):
                held += cost.weights * counts.layers[chunk][k]
            if parts.loss_chunk == chunk:
                loss_only = StageParts((), None, parts.loss_chunk, parts.mtp_layers)
                held += self._edge_weights(
                    layout, loss_only if parts.embedding_chunk is None else StageParts((), None, parts.loss_chunk, 0)
                )
            for expert in (False, True):
                group = states.shard_group(layout, self.implementation, expert)
                mine = [w for w in held if (w.expert and layout.ep > 1) == expert]
                if mine:
                    padded = states.padded_elements(mine, group, bucket, impl.pad_buckets_for_high_nccl_busbw)
                    true_bytes += (s.weights_whole + s.gradients_whole) * padded
                    true_bytes += s.optimizer_sharded * (padded // group)
        counted = sum(b for _, b in self._state_amounts(layout, self._edge_weights(layout, parts)))
        for k, cost in enumerate(kinds):
            n = sum(chunk[k] for chunk in counts.layers)
            counted += n * sum(b for _, b in self._state_amounts(layout, cost.weights))
        return true_bytes - counted

    def _detail(self, layout: Layout, parts: StageParts, held: list[int]) -> tuple[Piece, ...]:
        """What the stage is made of, one entry for each kind of piece, in model order."""
        kinds, edges = self.pieces(layout)
        full = layout.recompute.granularity == "full"
        out: list[Piece] = []

        def add(kind: str, count: int, weights: tuple[Weight, ...], saved: dict[str, int], transient: int) -> None:
            out.append(
                Piece(
                    kind, count, numel(weights), sum(saved.values()), transient, by_part(weights), tuple(saved.items())
                )
            )

        if parts.embedding_chunk is not None:
            add("embedding", 1, edges.embedding_weights, edges.embedding_saved, edges.vocab_grad)
        for k, cost in enumerate(kinds):
            if held[k]:
                whole = full and layout.recompute.method == "uniform"
                saved = self._checkpoint_of_one_layer(layout, cost) if whole else cost.saved
                transient = cost.recompute_bytes if full else cost.backward_bytes
                add(self.model.layer_kinds[k].kind, held[k], cost.weights, saved, transient)
        if parts.mtp_layers:
            add("mtp", parts.mtp_layers, edges.mtp_weights, {"module": edges.mtp_saved}, 0)
        if parts.loss_chunk is not None:
            add("final_norm", 1, edges.final_norm_weights, edges.final_norm_saved, 0)
            add("head", 1, edges.head_weights, edges.head_saved, edges.head_input_grad)
            add("loss", 1, (), edges.loss_saved, edges.half_logits + edges.loss_temporary)
        return tuple(out)

    @staticmethod
    def _checkpoint_of_one_layer(layout: Layout, cost: LayerCost) -> dict[str, int]:
        """What one more fully recomputed layer keeps: its input, unless it joins a group that keeps one already."""
        r = layout.recompute
        if r.num_layers is None:
            return {}
        kept = cost.checkpoint_bytes
        if r.distribute_saved_activations and layout.sequence_parallel is False:
            kept //= layout.tp
        return {"layer input": -(-kept // r.num_layers)}


def _prune(states_in_flight: tuple[InFlight, ...]) -> tuple[InFlight, ...]:
    """States of a chunk that carries neither embedding nor loss differ only in their counts: keep each count once."""
    return states_in_flight


def _merged(moment: Moment) -> Moment:
    """The same moment with terms of equal component, name and multiplier added up, and zeros left out."""
    sums: dict[tuple, int] = {}
    for t in moment.terms:
        key = (t.component, t.name, t.times, t.kind, t.chunk, t.certainty)
        sums[key] = sums.get(key, 0) + t.bytes
    return Moment(
        moment.name,
        tuple(Term(c, n, b, times, k, chunk, cert) for (c, n, times, k, chunk, cert), b in sums.items() if b),
    )


def _shown(moment: Moment, counts: Counts) -> tuple[tuple[str, str, int, str], ...]:
    """Each term's bytes at the peak, for the report's detail."""
    rows: dict[tuple[str, str, str], int] = {}
    for t in moment.terms:
        key = (t.component, t.name, t.certainty)
        rows[key] = rows.get(key, 0) + t.bytes * multiplier(t, counts)
    return tuple((c, n, b, cert) for (c, n, cert), b in rows.items() if b)
