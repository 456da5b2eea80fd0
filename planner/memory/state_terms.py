"""Model states of a stage as terms, and what bucket padding adds to them."""

from __future__ import annotations

from collections.abc import Sequence

from planner.implementation import Implementation, weight_copies
from planner.layout import Layout
from planner.memory import states
from planner.memory.form import Bundle, Component, Counts, Term
from planner.memory.moments import StageParts
from planner.memory.pieces import EdgeCosts, LayerCost
from planner.memory.sharded_units import largest_tensor
from planner.model import Model
from planner.parameters import Weight
from planner.workload import Workload


class StateTerms:
    """Weights, gradients and optimizer of one model under one workload and implementation; cached by the degrees."""

    def __init__(self, model: Model, workload: Workload, implementation: Implementation) -> None:
        self.model = model
        self.workload = workload
        self.implementation = implementation
        self._of_zero: dict[int, states.StateBytes] = {}
        self._bundles: dict[tuple, Bundle] = {}
        self._bounds: dict[tuple, int] = {}
        self._padding: dict[tuple, int] = {}

    def bundle(
        self, layout: Layout, key: tuple, parts: StageParts, kinds: tuple[LayerCost, ...], edges: EdgeCosts
    ) -> Bundle:
        """States of every layer that the stage may hold, and of its edges. `key`: the layout's `state_key`."""
        key = (key, layout.vpp, layout.pp > 1, parts.edges)
        found = self._bundles.get(key)
        if found is None:
            terms: list[Term] = []
            copies = weight_copies(self.implementation, layout.pp)
            for k, cost in enumerate(kinds):
                amounts = self._of(layout, cost.weights)
                for chunk in range(layout.vpp):
                    terms += [Term(c, "layers", copies * b, "layer", k, chunk) for c, b in amounts]
            terms += [Term(c, "edges", b) for c, b in self._of(layout, edge_weights(parts, edges))]
            found = self._bundles[key] = Bundle(terms)
        return found

    def copies_gradients(self, zero: int) -> bool:
        """Half-precision main gradients are copied to fp32 for the optimizer (optimizer/optimizer.py:
        Float16OptimizerWithFloat16Params._copy_model_grads_to_main_grads; distrib_optimizer.py copies the shard).
        DeepSpeed's are in deepspeed.py."""
        s = self._bytes(zero)
        half = 2 in (s.gradients_whole, s.gradients_sharded) and self.implementation.main_grads_bytes == 4
        return half and not self.implementation.precision_aware_optimizer

    def step_terms(
        self, layout: Layout, parts: StageParts, kinds: tuple[LayerCost, ...], edges: EdgeCosts
    ) -> tuple[Term, ...]:
        """Those copies."""
        return self._gradient_terms("fp32 copies", 4, layout, parts, kinds, edges)

    def kept_gradient_terms(
        self, layout: Layout, parts: StageParts, kinds: tuple[LayerCost, ...], edges: EdgeCosts
    ) -> tuple[Term, ...]:
        """Gradients of the step before, in half precision and as the fp32 copies, while the next are computed."""
        return self._gradient_terms("gradients of the step before", 6, layout, parts, kinds, edges)

    def _gradient_terms(
        self,
        name: str,
        element_bytes: int,
        layout: Layout,
        parts: StageParts,
        kinds: tuple[LayerCost, ...],
        edges: EdgeCosts,
    ) -> tuple[Term, ...]:
        """One number of `element_bytes` for each gradient that a rank's optimizer has."""

        def size(weights: tuple[Weight, ...]) -> int:
            whole, shards = self._elements(layout, weights)
            return element_bytes * (whole if layout.zero == 0 else shards)

        terms = [Term("gradients", name, size(edge_weights(parts, edges)))]
        for k, cost in enumerate(kinds):
            layer = weight_copies(self.implementation, layout.pp) * size(cost.weights)
            terms += [Term("gradients", name, layer, "layer", k, chunk) for chunk in range(layout.vpp)]
        return tuple(terms)

    def _bytes(self, zero: int) -> states.StateBytes:
        found = self._of_zero.get(zero)
        if found is None:
            found = self._of_zero[zero] = states.state_bytes(zero, self.workload, self.implementation)
        return found

    def _elements(self, layout: Layout, weights: tuple[Weight, ...]) -> tuple[int, int]:
        """Elements on the rank, and of its largest shard."""
        return states.elements(weights, layout, self.implementation)

    def _of(self, layout: Layout, weights: tuple[Weight, ...]) -> tuple[tuple[Component, int], ...]:
        """Bytes of each state of these tensors on a rank."""
        s = self._bytes(layout.zero)
        whole, shards = self._elements(layout, weights)
        freed = [int(part * (shards if layout.zero else whole)) for part in s.freed]
        half, half_shards = self._elements(layout, states.kept_in_half(weights, self.workload, self.implementation))
        half = (2 - s.computed) * (half if s.weights_whole else half_shards)
        half += states.fp8_copies(weights, layout, self.workload, self.implementation)
        extra = states.extra_optimizer_bytes(weights, layout, self.workload, self.implementation)
        return (
            ("weights", s.weights_whole * whole + s.weights_sharded * shards + half - freed[0]),
            ("gradients", s.gradients_whole * whole + s.gradients_sharded * shards - freed[1]),
            ("optimizer", s.optimizer_whole * whole + s.optimizer_sharded * shards + extra - freed[2]),
        )

    def host_bytes(
        self, layout: Layout, parts: StageParts, counts: Counts, kinds: tuple[LayerCost, ...], edges: EdgeCosts
    ) -> int:
        """States of a stage that one of its ranks keeps on the host."""
        s = self._bytes(layout.zero)
        if not (s.host_whole or s.host_sharded):
            return 0
        sums, staging = self._host_gradients(layout, s)

        def host(weights: tuple[Weight, ...]) -> int:
            whole, shards = self._elements(layout, weights)
            return round(s.host_whole * whole + (s.host_sharded + sums) * shards)

        copies = weight_copies(self.implementation, layout.pp)
        held = [copies * sum(chunk[k] for chunk in counts.layers) for k in range(len(kinds))]
        around = edge_weights(parts, edges)
        largest = largest_tensor((*around, *(w for c in kinds for w in c.weights)))
        return host(around) + staging * largest + sum(n * host(c.weights) for n, c in zip(held, kinds, strict=True))

    def _host_gradients(self, layout: Layout, s: states.StateBytes) -> tuple[int, int]:
        """Bytes on the host where DeepSpeed's stages 1 and 2 offload the optimizer (stage_1_and_2.py): for each element
        of the shard, the sums of several microbatches (accumulated_grads_in_cpu), and of the largest tensor
        (temp_grad_buffer_for_cpu_offload)."""
        by_deepspeed = states.deepspeed_reduces(layout.zero, self.workload, self.implementation)
        if layout.zero > 2 or not by_deepspeed or not self.implementation.optimizer_offload_fraction:
            return 0, 0
        return s.computed * self.accumulates(layout), s.computed

    def accumulates(self, layout: Layout) -> bool:
        """Whether a step has several microbatches."""
        return (layout.num_microbatches(self.workload.global_batch) or 1) > 1

    def shard_elements(self, layout: Layout, kinds: tuple[LayerCost, ...], edges: EdgeCosts, parts: StageParts) -> int:
        """Elements of a rank's shard of the whole model, which one stage holds."""
        numbers = [self.model.pattern.count(k) for k in range(len(kinds))]
        layers = sum(n * self._elements(layout, c.weights)[1] for n, c in zip(numbers, kinds, strict=True))
        return layers + self._elements(layout, edge_weights(parts, edges))[1]

    def padding_bound(self, layout: Layout, key: tuple, kinds: tuple[LayerCost, ...]) -> int:
        """At least what bucket padding can add to a stage (zero without the distributed optimizer)."""
        if layout.zero != 1:
            return 0
        key = (key, layout.pp, layout.vpp)
        found = self._bounds.get(key)
        if found is None:
            found = self._bounds[key] = self._padding_bound(layout, kinds)
        return found

    def _padding_bound(self, layout: Layout, kinds: tuple[LayerCost, ...]) -> int:
        impl = self.implementation
        s = self._bytes(1)
        per_element = s.weights_whole + s.gradients_whole + s.optimizer_sharded
        copies = weight_copies(impl, layout.pp)
        total = copies * sum(cost.numel for cost in kinds) * self.model.num_layers // layout.pp
        bucket = states.bucket_elements(impl, layout.dp * layout.cp)
        buckets = 2 + layout.vpp * 2 + (total // bucket if bucket else 0)
        unit = layout.dp * layout.cp * 128
        if impl.pad_buckets_for_high_nccl_busbw:
            unit *= states.BUS_BANDWIDTH_ALIGNMENT // 128
        # each tensor starts at a multiple of 64 elements: exact for layers, 63 for each of the few tensors around them
        aligned = sum(w.count * (-(w.numel // w.count) % states.PARAMETER_ALIGNMENT) for c in kinds for w in c.weights)
        aligned = aligned * copies * (self.model.num_layers + self.model.mtp_num_layers) + 1024 * (
            1 + self.model.mtp_num_layers
        )
        return per_element * (unit * buckets + aligned)

    def padding(
        self, layout: Layout, parts: StageParts, counts: Counts, kinds: tuple[LayerCost, ...], edges: EdgeCosts
    ) -> int:
        """What bucket padding really adds on a stage, less what rounding each piece's shard up has added."""
        if layout.zero != 1:
            return 0
        key = (layout.tp, layout.ep, layout.etp, layout.dp * layout.cp, layout.pp > 1, counts.layers,
               parts.embedding_chunk, parts.loss_chunk, parts.mtp_layers, parts.mtp_chunk)  # fmt: skip
        found = self._padding.get(key)
        if found is None:
            found = self._padding[key] = self._padding_bytes(layout, parts, counts, kinds, edges)
        return found

    def _padding_bytes(
        self, layout: Layout, parts: StageParts, counts: Counts, kinds: tuple[LayerCost, ...], edges: EdgeCosts
    ) -> int:
        impl = self.implementation
        s = self._bytes(1)
        bucket = states.bucket_elements(impl, layout.dp * layout.cp)
        copies = weight_copies(impl, layout.pp)
        true_bytes = 0
        for chunk in range(layout.vpp):
            held: list[Weight] = []
            if parts.embedding_chunk == chunk:
                held += edges.embedding_weights
            for k, cost in enumerate(kinds):
                held += cost.weights * (copies * counts.layers[chunk][k])
            if parts.mtp_chunk == chunk and parts.mtp_away:
                held += _after_embedding(parts, edge_weights(parts, edges), edges)
            if parts.loss_chunk == chunk:
                held += _loss_weights(parts, edges)
            for expert in (False, True):
                group = states.shard_group(layout, impl, expert)
                mine = [w for w in held if (w.expert and layout.experts_apart) == expert]
                if mine:
                    padded = states.padded_elements(mine, group, bucket, impl.pad_buckets_for_high_nccl_busbw)
                    true_bytes += (s.weights_whole + s.gradients_whole) * padded
                    true_bytes += s.optimizer_sharded * (padded // group)
        counted = 0
        for weights, n in [(edge_weights(parts, edges), 1)] + [
            (cost.weights, copies * sum(chunk[k] for chunk in counts.layers)) for k, cost in enumerate(kinds)
        ]:
            whole, shards = self._elements(layout, weights)
            counted += n * ((s.weights_whole + s.gradients_whole) * whole + s.optimizer_sharded * shards)
        return true_bytes - counted


def state_key(layout: Layout) -> tuple:
    """What divides the parameters of a rank, and their states."""
    return layout.tp, layout.ep, layout.etp, layout.dp * layout.cp, layout.zero, layout.hsdp_replicas


def edge_weights(parts: StageParts, edges: EdgeCosts) -> tuple[Weight, ...]:
    """Parameters of a stage besides its decoder layers; the same tuple for the same parts."""
    return edges.weights_of(parts.embedding_chunk is not None, parts.loss_chunk is not None, parts.mtp_layers)


def _loss_weights(parts: StageParts, edges: EdgeCosts) -> tuple[Weight, ...]:
    """Of those, what stands in the chunk of the loss."""
    everything = edges.weights_of(parts.embedding_chunk is not None, True, parts.mtp_layers)
    return _after_embedding(parts, everything, edges)


def _after_embedding(parts: StageParts, weights: tuple[Weight, ...], edges: EdgeCosts) -> tuple[Weight, ...]:
    """These weights of a stage but for its embedding, which stands first."""
    return weights[len(edges.embedding_weights) if parts.embedding_chunk is not None else 0 :]


def stage_parameters(parts: StageParts, edges: EdgeCosts, kinds: tuple[LayerCost, ...], held: Sequence[int]) -> int:
    """Parameters that one rank of a stage holds."""
    total = edges.numel_of(*parts.edges)
    for n, cost in zip(held, kinds, strict=True):
        total += n * cost.numel
    return total
