"""The exact accounting: per tensor, as the framework really allocates it.

Everything is cached by the few degrees it depends on; the report and the constraint model read the same StageForm.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property

from planner.cluster import Cluster
from planner.errors import NotModelled
from planner.implementation import Implementation, attention_on
from planner.layout import Layout
from planner.memory import states
from planner.memory.additions import Additions, combined
from planner.memory.assumptions import assumptions
from planner.memory.buffers import buffer_terms, dummy_gradient_terms
from planner.memory.counts import stage_counts
from planner.memory.detail import shown_terms, stage_pieces
from planner.memory.form import Always, Counts, Moment, StageForm, Term
from planner.memory.in_flight import for_equal_chunks, moments_in_flight, peak_in_flight
from planner.memory.moments import StageParts, moments
from planner.memory.offload import activation_host_bytes, activation_offload
from planner.memory.pieces import EdgeCosts, LayerCost, edge_costs, layer_cost, modules_of, shape_of, sharding_of
from planner.memory.report import MemoryReport, StageMemory
from planner.memory.rule_of_thumb import RuleOfThumb
from planner.memory.sharded import sharded_terms, units_of
from planner.memory.state_terms import StateTerms, edge_weights, stage_parameters
from planner.model import Model
from planner.workload import Workload

Pieces = tuple[tuple[LayerCost, ...], EdgeCosts]
Division = int


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
        kernel = attention_on(implementation, cluster.card.architecture)
        self.model = model
        self.workload = workload
        self.implementation = replace(implementation, attention=kernel)
        self.cluster = cluster
        self.reserve_bytes = cluster.reserve_bytes if reserve_bytes is None else reserve_bytes
        self._states = StateTerms(model, workload, self.implementation)
        self._pieces: dict[tuple, Pieces] = {}
        self._divisions: dict[tuple, Division] = {}
        self._stage_parts: dict[tuple, StageParts] = {}
        self._distinct_parts: dict[StageParts, StageParts] = {}
        self._always: dict[tuple, tuple[Always, tuple[Term, ...]]] = {}
        self._additions: dict[tuple, tuple[Moment, ...]] = {}
        self._forms: dict[tuple, StageForm] = {}

    @cached_property
    def _hand(self) -> RuleOfThumb:
        return RuleOfThumb(self.model, self.workload, self.implementation, self.cluster)

    def stage_capacity_bytes(self, layout: Layout, stage: int) -> int:
        """What a card of this stage gives a process."""
        return self.cluster.capacity_bytes

    def pieces(self, layout: Layout, group: int = 1) -> Pieces:
        """Costs of each layer kind and of the edges on one rank of this layout; layers are rebuilt in groups."""
        key = (*_rank_key(layout), group)
        found = self._pieces.get(key)
        if found is None:
            model, impl, modules = self.model, self.implementation, modules_of(layout)
            shape = shape_of(model, self.workload, impl, layout)
            sharding = sharding_of(impl, layout)
            kinds = tuple(layer_cost(model, impl, kind, shape, sharding, modules, group) for kind in model.layer_kinds)
            found = self._pieces[key] = (kinds, edge_costs(model, impl, shape, sharding, layout.pp > 1, modules))
        return found

    def form(self, layout: Layout, stage: int) -> StageForm:
        """The stage's memory as terms; with `layout.stages` empty, for the standard placement of embedding and loss."""
        return self._form(layout, stage, self._parts(layout, stage), self._division(layout))

    def _form(self, layout: Layout, stage: int, parts: StageParts, division: Division) -> StageForm:
        group, corrections = self._checkpoint_groups(layout, stage, parts)
        # parts are kept for good, one object for each different stage: its identity stands for it
        key = (division, id(parts), group, corrections)
        form = self._forms.get(key)
        if form is None:
            always, step = self._always_terms((division, parts.edges), layout, parts)
            additions = self._added((_rank_key(layout), _zero_key(layout), id(parts), group), layout, parts, group)
            if corrections:
                additions = tuple(Moment(m.name, (*m.terms, *corrections)) for m in additions)
            if step:
                additions = (*additions, Moment("optimizer step", step))
            bound = self._states.padding_bound(layout, self.pieces(layout)[0])
            form = self._forms[key] = StageForm(additions, bound, always)
        return form

    def _division(self, layout: Layout) -> Division:
        """A number for the degrees that shape a rank's tensors and divide its states."""
        key = (_rank_key(layout), layout.dp, _zero_key(layout), layout.vpp, layout.hsdp_replicas)
        return self._divisions.setdefault(key, len(self._divisions))

    def _parts(self, layout: Layout, stage: int) -> StageParts:
        """What the stage holds besides layers; the same object for equal stages."""
        m = layout.num_microbatches(self.workload.global_batch) or 1
        if layout.stages:
            chunks = layout.stages[stage]
            embedding = next((c for c, chunk in enumerate(chunks) if chunk.embedding), None)
            loss = next((c for c, chunk in enumerate(chunks) if chunk.loss), None)
            mtp = sum(chunk.mtp_layers for chunk in chunks) if self.model.mtp_num_layers else 0
        else:
            embedding = 0 if stage == 0 else None
            loss = layout.vpp - 1 if stage == layout.pp - 1 else None
            mtp = self.model.mtp_num_layers if loss is not None else 0
        equal = layout.vpp > 1 and bool(layout.stages) and _equal_chunks(self.model, layout, stage)
        key = (layout.pp, stage, layout.vpp, m, embedding, loss, mtp, equal)
        found = self._stage_parts.get(key)
        if found is None:
            impl = self.implementation
            extra = int(impl.overlap_moe_expert_parallel_comm)
            in_flight = moments_in_flight(layout.pp, stage, layout.vpp, m, impl.microbatch_group_size, extra)
            if equal:
                in_flight = for_equal_chunks(in_flight, embedding, loss)
            tied = self.model.tied and embedding is not None and loss is not None
            deferred = min(impl.deferred_embedding_wgrads, m) if loss is not None else 0
            peak = peak_in_flight(layout.pp, stage, layout.vpp, m, impl.microbatch_group_size, extra)
            parts = StageParts(in_flight, peak, embedding, loss, mtp, deferred, tied)
            # stages of other pipelines may be in the same state: keep one object of each
            found = self._stage_parts[key] = self._distinct_parts.setdefault(parts, parts)
        return found

    def _always_terms(self, key: tuple, layout: Layout, parts: StageParts) -> tuple[Always, tuple[Term, ...]]:
        """States, buffers and the reserve; and what the optimizer step adds."""
        found = self._always.get(key)
        if found is None:
            model, impl = self.model, self.implementation
            kinds, edges = self.pieces(layout)
            shape = shape_of(model, self.workload, impl, layout)
            head = edges.head_weights or edges.embedding_weights
            always = (
                *self._states.terms(layout, parts, kinds, edges),
                *buffer_terms(model, self.workload, impl, layout, shape, parts, self.cluster.card.architecture),
                *dummy_gradient_terms(impl, [c.weights for c in kinds], head, parts.loss_chunk is not None),
                *self._sharded(layout, parts).always,
                Term("reserve", "reserve", self.reserve_bytes, certainty="estimated"),
            )
            step = self._states.step_terms(layout, parts, kinds, edges)
            found = self._always[key] = (Always(tuple(t for t in always if t.bytes)), step)
        return found

    def _added(self, key: tuple, layout: Layout, parts: StageParts, group: int) -> tuple[Moment, ...]:
        """What each moment adds: activations in flight, gradients of a layer, logits, gathered weights."""
        found = self._additions.get(key)
        if found is None:
            kinds, edges = self.pieces(layout, group)
            besides = combined(self._sharded(layout, parts), self._offloaded(layout, kinds, parts))
            shape = shape_of(self.model, self.workload, self.implementation, layout)
            dense = not self.implementation.gradient_accumulation_fusion
            found = self._additions[key] = moments(kinds, edges, parts, besides, shape.stream, dense)
        return found

    def _sharded(self, layout: Layout, parts: StageParts) -> Additions:
        """What ZeRO 2 and 3 hold besides their shards."""
        kinds, edges = self.pieces(layout)
        if layout.zero < 2:
            return Additions(tuple(() for _ in kinds))
        held = states.state_bytes(layout.zero, self.workload, self.implementation)
        full = layout.recompute.granularity == "full"
        kept = [c.checkpoint_bytes if full else c.saved_bytes for c in kinds]
        embedding = edges.embedding_weights if parts.embedding_chunk is not None else ()
        head = edge_weights(parts, edges)[len(embedding) :]
        units = units_of([c.weights for c in kinds], kept, embedding, head, self.model.num_layers, layout)
        return sharded_terms(held, self.implementation, layout, units)

    def _offloaded(self, layout: Layout, kinds: tuple[LayerCost, ...], parts: StageParts) -> Additions:
        """What activations that wait on the host change."""
        if self.implementation.offload_activation_layers and layout.pp > 1:
            raise NotModelled("offloading the activations of whole layers needs pp 1 (Megatron refuses it otherwise).")
        kept, sent = [c.saved_bytes for c in kinds], [c.offloaded_bytes for c in kinds]
        return activation_offload(self.implementation, self.model.pattern, kept, sent)

    def _host_bytes(self, layout: Layout, parts: StageParts, counts: Counts, pieces: Pieces) -> int:
        """Host memory of one rank of a stage: states and activations that are offloaded."""
        kinds, edges = pieces
        kept, sent = [c.saved_bytes for c in kinds], [c.offloaded_bytes for c in kinds]
        in_flight = max((f.microbatches for f in parts.in_flight), key=sum)
        waiting = activation_host_bytes(self.implementation, self.model.pattern, kept, sent, counts, in_flight)
        return self._states.host_bytes(layout, parts, counts, kinds, edges) + waiting

    def _checkpoint_groups(self, layout: Layout, stage: int, parts: StageParts) -> tuple[int, tuple[Term, ...]]:
        """Layers that are rebuilt together, and corrections where full recomputation checkpoints groups of several
        layers or distributes the checkpoints: what is kept is then not proportional to the layers, so the split
        must be known."""
        r = layout.recompute
        grouped = r.method == "uniform" and r.num_layers != 1
        if r.granularity != "full" or not (grouped or r.distribute_saved_activations):
            return 1, ()
        if not layout.stages:
            raise NotModelled(
                "full recomputation in groups of layers or with distributed checkpoints needs a given stage split."
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

    def counts(self, layout: Layout, stage: int) -> Counts:
        """Layers of each kind in each chunk of a stage, and how many of them are fully recomputed."""
        return stage_counts(self.model, layout, stage)

    def report(self, layout: Layout, detail: bool = False) -> MemoryReport:
        """Memory of every stage of a layout whose stage split is set."""
        pieces, division = self.pieces(layout), self._division(layout)
        stages = tuple(self._stage(layout, i, pieces, division, detail) for i in range(layout.pp))
        host = max(stage.host_bytes for stage in stages)
        notes = assumptions(
            self.model, self.workload, self.implementation, layout, self.cluster, self.reserve_bytes, host
        )
        return MemoryReport(self.name, self.cluster.capacity_bytes, stages, notes)

    def _stage(self, layout: Layout, stage: int, pieces: Pieces, division: Division, detail: bool) -> StageMemory:
        kinds, edges = pieces
        parts = self._parts(layout, stage)
        form = self._form(layout, stage, parts, division)
        counts = self.counts(layout, stage)
        moment, components = form.peak(counts)
        components["optimizer"] += self._states.padding(layout, parts, counts, kinds, edges)
        held = [sum(chunk[k] for chunk in counts.layers) for k in range(len(kinds))]
        return StageMemory(
            stage=stage,
            ranks=layout.world_size // layout.pp,
            layers=sum(held),
            parameters=stage_parameters(parts, edges, kinds, held),
            in_flight_microbatches=parts.peak_in_flight,
            moment=moment.name,
            components=components,
            capacity_bytes=self.stage_capacity_bytes(layout, stage),
            rule_of_thumb_bytes=self._hand.stage_bytes(layout, stage, counts),
            host_bytes=self._host_bytes(layout, parts, counts, pieces),
            pieces=stage_pieces(self.model, layout, parts, kinds, edges, held) if detail else (),
            terms=shown_terms(form.always.terms + moment.terms, counts) if detail else (),
        )


def _rank_key(layout: Layout) -> tuple:
    """The degrees that shape one rank's tensors."""
    return (
        layout.tp, layout.sequence_parallel, layout.cp, layout.ep, layout.etp, layout.micro_batch,
        modules_of(layout), layout.pp > 1,
    )  # fmt: skip


def _zero_key(layout: Layout) -> tuple:
    """How far states are sharded; what ZeRO 2 and 3 gather depends on a stage's layers and on their recomputation."""
    if layout.zero < 2:
        return (layout.zero,)
    return layout.zero, layout.pp, layout.recompute.granularity


def _equal_chunks(model: Model, layout: Layout, stage: int) -> bool:
    """Whether every virtual chunk of a stage holds the same layers, recomputed alike."""
    counts = stage_counts(model, layout, stage)
    return len(set(zip(counts.layers, counts.recomputed, strict=True))) == 1
