"""The exact accounting: per tensor, as the framework really allocates it.

Everything is cached by the few degrees it depends on; the report and the constraint model read the same StageForm.
"""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from operator import add
from typing import NamedTuple

from planner.attention import attention_on
from planner.cluster import Cluster
from planner.errors import NotModelled
from planner.implementation import Implementation, as_sharded, keeps_fp8_columns, weight_copies
from planner.layout import Layout
from planner.memory.assumptions import assumptions
from planner.memory.counts import stage_counts
from planner.memory.detail import shown_terms, stage_pieces
from planner.memory.equal_stages import EqualStages, Peak
from planner.memory.form import COMPONENTS, Component, Counts, StageForm, Term, Values
from planner.memory.in_flight import (
    both_ways_in_flight,
    for_equal_chunks,
    moments_in_flight,
    peak_in_flight,
    representative,
)
from planner.memory.moments import StageParts, Turn
from planner.memory.offload import activation_host_bytes
from planner.memory.pieces import shape_of
from planner.memory.report import MemoryReport, Piece, StageMemory
from planner.memory.rule_of_thumb import RuleOfThumb
from planner.memory.stage_terms import Degrees, Pieces, TermMaker
from planner.memory.state_terms import stage_parameters
from planner.model import Model
from planner.workload import Workload


class _Alike(NamedTuple):
    """What stages with equal layers and edges have in common."""

    always: Values
    """Bytes of each component at every moment."""
    flying: EqualStages[Turn]
    alone: tuple[Peak, ...]
    """Moments with nothing in flight."""
    held: tuple[int, ...]
    """Layers of each kind."""
    layers: int
    parameters: int
    padding_bytes: int


class ExactAccounting:
    """Bytes of every stage of any layout of one model, workload, implementation and cluster."""

    name = "exact"
    chunks_save_nothing = True

    def __init__(
        self,
        model: Model,
        workload: Workload,
        implementation: Implementation,
        cluster: Cluster,
        reserve_bytes: int | None = None,
    ) -> None:
        kernel = attention_on(implementation, cluster.card.architecture, model, workload.precision)
        columns = keeps_fp8_columns(implementation, cluster.card.architecture, cluster.card.scale_up)
        self.model = model
        self.workload = workload
        self.implementation = replace(implementation, attention=kernel, fp8_columns=columns)
        self.cluster = cluster
        self.reserve_bytes = cluster.reserve_bytes if reserve_bytes is None else reserve_bytes
        impl = self.implementation
        self._capacity_bytes = cluster.capacity_bytes
        self._offloads = bool(
            impl.optimizer_offload_fraction
            or impl.offload_parameters
            or impl.offload_activation_layers
            or impl.offload_modules
        )
        self._maker = TermMaker(model, workload, impl, cluster.card.architecture, self.reserve_bytes)
        self._stage_parts: dict[tuple, StageParts] = {}
        self._distinct_parts: dict[StageParts, StageParts] = {}
        self._counts: dict[tuple, Counts] = {}
        self._forms: dict[tuple, StageForm] = {}
        self._notes: dict[tuple, tuple[str, ...]] = {}

    def _of(self, layout: Layout) -> ExactAccounting:
        """The accounting of what the implementation is under the layout's ZeRO stage: this one, or one other."""
        return self._sharded if layout.zero >= 2 else self

    @cached_property
    def _sharded(self) -> ExactAccounting:
        other = as_sharded(self.implementation, zero=3)
        if other is self.implementation:
            return self
        return ExactAccounting(self.model, self.workload, other, self.cluster, self.reserve_bytes)

    @cached_property
    def _hand(self) -> RuleOfThumb:
        return RuleOfThumb(self.model, self.workload, self.implementation, self.cluster)

    def stage_capacity_bytes(self, layout: Layout, stage: int) -> int:
        """What a card of this stage gives a process."""
        return self._capacity_bytes

    def pieces(self, layout: Layout, group: int = 1) -> Pieces:
        """Costs of each layer kind and of the edges on one rank of this layout; layers are rebuilt in groups."""
        maker = self._of(layout)._maker
        degrees = maker.degrees(layout)
        return maker.pieces(layout, degrees.shape, degrees.modules, group)

    def form(self, layout: Layout, stage: int) -> StageForm:
        """The stage's memory as terms; with `layout.stages` empty, for the standard placement of embedding and loss.
        Equal stages of equal layouts get the same object."""
        if (other := self._of(layout)) is not self:
            return other.form(layout, stage)
        counts = self.counts(layout, stage) if layout.stages and layout.vpp > 1 else None
        degrees, parts = self._maker.degrees(layout), self._parts(layout, stage, self._alive(layout), counts)
        group, corrections = self._checkpoint_groups(layout, stage, parts)
        # parts are kept for good, one object for each different stage: its identity stands for it
        key = (degrees.number, degrees.modules, id(parts), group, corrections)
        form = self._forms.get(key)
        if form is None:
            pieces = self._maker.pieces(layout, degrees.shape, degrees.modules)
            terms = self._maker.stage(layout, degrees, parts, pieces, group)
            form = self._forms[key] = terms.form(parts, corrections)
        return form

    def _alive(self, layout: Layout) -> int:
        """Microbatches of a step, as many as any stage's states in flight depend on."""
        impl = self.implementation
        m = layout.num_microbatches(self.workload.global_batch) or 1
        least = max(impl.deferred_embedding_wgrads, layout.pp + 1 if impl.schedule == "dualpipe" else 0)
        extra = int(impl.overlap_moe_expert_parallel_comm)
        return representative(layout.pp, layout.vpp, m, impl.microbatch_group_size, extra, least)

    def _parts(self, layout: Layout, stage: int, m: int, counts: Counts | None) -> StageParts:
        """What the stage holds besides layers, m microbatches being `_alive`; the same object for equal stages.
        `counts`: its layers, where known."""
        impl, vpp = self.implementation, layout.vpp
        if layout.stages:
            embedding = loss = None
            for c, chunk in enumerate(layout.stages[stage]):
                embedding = c if chunk.embedding else embedding
                loss = c if chunk.loss else loss
            modules = [(c, chunk.mtp_layers) for c, chunk in enumerate(layout.stages[stage]) if chunk.mtp_layers]
            mtp_chunk, mtp = modules[-1] if self.model.mtp_num_layers and modules else (None, 0)
        else:
            embedding = 0 if stage == 0 else None
            loss = vpp - 1 if stage == layout.pp - 1 else None
            mtp_chunk, mtp = (loss, self.model.mtp_num_layers) if loss is not None else (None, 0)
        both_ways = weight_copies(impl, layout.pp) > 1
        if both_ways and stage in (0, layout.pp - 1):
            embedding = loss = mtp_chunk = 0
            mtp = self.model.mtp_num_layers
        equal = vpp > 1 and counts is not None and len(set(zip(counts.layers, counts.recomputed, strict=True))) == 1
        key = (layout.pp, stage, vpp, m, embedding, loss, mtp, mtp_chunk, equal)
        found = self._stage_parts.get(key)
        if found is None:
            where = (layout.pp, stage, vpp, m, impl.microbatch_group_size, int(impl.overlap_moe_expert_parallel_comm))
            in_flight, most = moments_in_flight(*where), peak_in_flight(*where)
            if both_ways:
                in_flight, most = both_ways_in_flight(layout.pp, m)
            if equal:
                away = mtp_chunk if mtp_chunk != loss else None
                in_flight = for_equal_chunks(in_flight, embedding, loss, away)
            tied = self.model.tied and embedding is not None and loss is not None and not both_ways
            deferred = min(impl.deferred_embedding_wgrads, m) if loss is not None else 0
            parts = StageParts(in_flight, most, embedding, loss, mtp, deferred, tied, mtp_chunk)
            # stages of other pipelines may be in the same state: keep one object of each
            found = self._stage_parts[key] = self._distinct_parts.setdefault(parts, parts)
        return found

    def _host_bytes(self, layout: Layout, parts: StageParts, counts: Counts, pieces: Pieces) -> int:
        """Host memory of one rank of a stage: states and activations that are offloaded."""
        kinds, edges = pieces
        kept, sent = [c.saved_bytes for c in kinds], [c.offloaded_bytes for c in kinds]
        in_flight = max((f.microbatches for f in parts.in_flight), key=sum)
        waiting = activation_host_bytes(self.implementation, self.model.pattern, kept, sent, counts, in_flight)
        return self._maker.states.host_bytes(layout, parts, counts, kinds, edges) + waiting

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
        kept = shape.checkpoint_bytes(r.distribute_saved_activations)
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

    def least_held(self, zero: int, gpus: int) -> dict[Component, int]:
        """Bytes over all `gpus` that no layout under this ZeRO stage holds less of: one copy of every state (shards sum
        to the whole, rounded up; what is replicated or padded is more), and the reserve of each."""
        layout = Layout(zero=zero)
        if (other := self._of(layout)) is not self:
            return other.least_held(zero, gpus)
        degrees = self._maker.degrees(layout)
        kinds, edges = self._maker.pieces(layout, degrees.shape, degrees.modules)
        parts = self._parts(layout, 0, 1, None)
        every = tuple(self.model.pattern.count(k) for k in range(len(kinds)))
        counts = Counts((every,), (tuple(0 for _ in every),))
        sizes = self._maker.states.bundle(layout, degrees.states, parts, kinds, edges).values(counts)[1]
        return dict(zip(COMPONENTS, sizes, strict=True)) | {"reserve": gpus * self.reserve_bytes}

    def counts(self, layout: Layout, stage: int) -> Counts:
        """Layers of each kind in each chunk of a stage, and how many of them are fully recomputed."""
        return stage_counts(self.model, layout, stage)

    def report(self, layout: Layout, detail: bool = False) -> MemoryReport:
        """Memory of every stage of a layout whose stage split is set."""
        if (other := self._of(layout)) is not self:
            return other.report(layout, detail)
        degrees = self._maker.degrees(layout)
        pieces, m = self._maker.pieces(layout, degrees.shape, degrees.modules), self._alive(layout)
        by_hand, ranks = self._hand.in_flight(layout), layout.world_size // layout.pp
        full = layout.recompute.granularity == "full"
        known: dict[tuple, _Alike] = {}
        hands: dict[Counts, tuple[int, EqualStages[None]]] = {}
        stages = []
        for i in range(layout.pp):
            counts = self._counted(layout, i)
            parts = self._parts(layout, i, m, counts)
            group, corrections = self._checkpoint_groups(layout, i, parts) if full else (1, ())
            key = (parts.around, counts, group)
            same = known.get(key)
            if same is None:
                same = known[key] = self._alike(layout, degrees, parts, counts, pieces, group)
            hand = hands.get(counts)
            if hand is None:
                hand = hands[counts] = self._hand.at(layout, counts)
            further = sum([t.bytes for t in corrections]) if corrections else 0
            peak = same.flying.peak(parts.microbatches, parts.turns, further)
            if same.alone:
                peak = max((peak, *same.alone), key=lambda moment: moment.total)
            components = dict(zip(COMPONENTS, map(add, same.always, peak.values), strict=True))
            components["optimizer"] += same.padding_bytes
            stage = StageMemory(
                stage=i,
                ranks=ranks,
                layers=same.layers,
                parameters=same.parameters,
                in_flight_microbatches=parts.peak_in_flight,
                moment=peak.name,
                components=components,
                capacity_bytes=self._capacity_bytes,
                rule_of_thumb_bytes=hand[0] + hand[1].bytes(by_hand[i], None),
                host_bytes=self._host_bytes(layout, parts, counts, pieces) if self._offloads else 0,
                pieces=self._pieces_shown(layout, parts, pieces, same.held) if detail else (),
                terms=self._shown(layout, i, counts) if detail else (),
            )
            stages.append(stage)
        host = max(stage.host_bytes for stage in stages) if self._offloads else 0
        notes = self._assumptions(layout, host)
        if not host:
            return MemoryReport(self.name, self._capacity_bytes, tuple(stages), notes)
        node, held = host * self.cluster.gpus_per_node, self.cluster.card.host_bytes_per_node
        return MemoryReport(self.name, self._capacity_bytes, tuple(stages), notes, node, held)

    def _alike(
        self, layout: Layout, degrees: Degrees, parts: StageParts, counts: Counts, pieces: Pieces, group: int
    ) -> _Alike:
        kinds, edges = pieces
        held = tuple(map(sum, zip(*counts.layers, strict=True)))
        stage = self._maker.stage(layout, degrees, parts, pieces, group)
        return _Alike(
            stage.always.values(counts)[1],
            stage.at(counts),
            tuple([Peak(*moment.values(counts), moment.name) for moment in stage.step]),
            held,
            sum(held),
            stage_parameters(parts, edges, kinds, [n * weight_copies(self.implementation, layout.pp) for n in held]),
            self._maker.states.padding(layout, parts, counts, kinds, edges),
        )

    def _counted(self, layout: Layout, stage: int) -> Counts:
        """The counts of a stage; for one chunk the same object for the same layers."""
        if layout.vpp > 1 or layout.recompute.stage_layers:
            return self.counts(layout, stage)
        chunk, recompute = layout.stages[stage][0], layout.recompute
        key = (chunk.start, chunk.stop, recompute.granularity, recompute.method, recompute.num_layers)
        found = self._counts.get(key)
        if found is None:
            found = self._counts[key] = self.counts(layout, stage)
        return found

    def _pieces_shown(
        self, layout: Layout, parts: StageParts, pieces: Pieces, held: tuple[int, ...]
    ) -> tuple[Piece, ...]:
        shape = shape_of(self.model, self.workload, self.implementation, layout)
        return stage_pieces(self.model, layout, shape, parts, *pieces, held)

    def _shown(self, layout: Layout, stage: int, counts: Counts) -> tuple[tuple[str, str, int, str], ...]:
        form = self.form(layout, stage)
        return shown_terms(form.always.terms + form.peak(counts)[0].terms, counts)

    def _assumptions(self, layout: Layout, host_bytes: int) -> tuple[str, ...]:
        heads = (layout.tp, layout.cp, layout.micro_batch)
        key = (layout.zero, layout.hsdp_replicas, layout.pp > 1, host_bytes, layout.recompute.modules, heads)
        found = self._notes.get(key)
        if found is None:
            found = self._notes[key] = assumptions(
                self.model, self.workload, self.implementation, layout, self.cluster, self.reserve_bytes, host_bytes
            )
        return found
