"""What frameworks that shard gradients or weights (ZeRO 2 and 3) hold besides their shards: gathered weights, whole
gradients on their way to a reduce-scatter, communication buckets.

Who gathers what, and until when (w bytes of a computed weight, g of a reduced gradient, n elements of a layer, r of
the root unit: embedding, final norm and head):

    torch FSDP2 (torch/distributed/fsdp/_fully_shard/_fsdp_param_group.py)
        backward of a layer: its weights, the all-gather output of the layer before it (_backward_prefetch), its own
        gradients, and the reduce-scatter input of the layer behind it, freed when its own is made (post_backward);
        the root unit stays gathered from the first forward to the end of the backward (_lazy_init: the root is not
        resharded after forward), then its gradients are reduced at once
    Megatron-FSDP (megatron/core/distributed/fsdp/src/megatron_fsdp/{megatron_fsdp,param_and_grad_buffer}.py)
        weights are gathered ahead until 500 million elements or a mean unit are in hand (suggested_AG_prefetch_size),
        gradients wait until twice that is queued (suggested_RS_queue_capacity); what is in no unit stays gathered
    DeepSpeed (deepspeed/runtime/zero/{stage_1_and_2,stage3,partitioned_param_coordinator}.py)
        gradients pass through a bucket of `reduce_bucket_size` elements (two with overlap_comm in stage 2), flattened
        once more for the reduce-scatter in stage 3; stage 3 keeps weights that are used again within
        max_reuse_distance and fetches prefetch_bucket_size ahead

All of it is estimated: the terms are sizes that the sources allocate, their coincidence is taken at its worst.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.additions import Additions
from planner.memory.form import Component, Term
from planner.memory.states import StateBytes
from planner.parameters import Weight, numel

REDUCE_BUCKET_ELEMENTS = 500_000_000
"""DeepSpeed's reduce_bucket_size (deepspeed/runtime/zero/config.py)."""
PREFETCH_ELEMENTS = 50_000_000
"""DeepSpeed's stage3_prefetch_bucket_size."""
REUSE_ELEMENTS = 1_000_000_000
"""DeepSpeed's stage3_max_reuse_distance: weights are kept where fewer elements are used before their next use. At the
turn from forward to backward every layer is passed twice, so that half of it is kept."""
MEGATRON_PREFETCH_ELEMENTS = 500_000_000
"""Half of Megatron-FSDP's least suggested_communication_unit_size."""


@dataclass(frozen=True, slots=True)
class Units:
    """Elements of what is gathered together on a stage."""

    layers: tuple[int, ...]
    """A layer of each kind."""
    embedding: int
    head: int
    """The final norm, the head and multi-token prediction."""
    stage_layers: int
    """Decoder layers of a mean stage."""
    chunks: int
    kept: tuple[int, ...]
    """Bytes that a layer of each kind keeps for its backward."""

    @property
    def root(self) -> int:
        return self.embedding + self.head

    @property
    def mean_layer(self) -> int:
        return max(1, sum(self.layers) // len(self.layers))


def units_of(
    kinds: Sequence[Sequence[Weight]],
    kept: Sequence[int],
    embedding: Sequence[Weight],
    head: Sequence[Weight],
    layers: int,
    layout: Layout,
) -> Units:
    """The units of a stage of a model with `layers` decoder layers; `kept`: bytes that a layer of each kind keeps."""
    return Units(
        tuple(numel(tuple(weights)) for weights in kinds),
        numel(tuple(embedding)),
        numel(tuple(head)),
        -(-layers // layout.pp),
        layout.vpp,
        tuple(kept),
    )


def sharded_terms(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    """What ZeRO 2 and 3 add as `impl.sharded_framework` does it; nothing below them."""
    if layout.zero < 2:
        return Additions(tuple(() for _ in units.layers))
    make = {"fsdp2": _fsdp2, "megatron_fsdp": _megatron_fsdp, "deepspeed": _deepspeed}[impl.sharded_framework]
    return make(states, impl, layout, units)


def _term(name: str, size: int, kind: int | None = None, component: Component = "buffers") -> Term:
    """Once, or once where the stage holds a layer of `kind`."""
    times = "fixed" if kind is None else "if_layer"
    return Term(component, name, size, times, kind or 0, 0, "estimated")  # type: ignore[arg-type]


def _fsdp2(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    w, g = states.computed, impl.grad_reduce_bytes
    root = _term("gathered embedding and head", states.gathered * units.root)
    head_grad = _term("whole gradient of the head", w * units.head)
    layers = []
    for k, n in enumerate(units.layers):
        terms = [root, head_grad, _term("whole gradients of a layer", w * n, k)]
        terms.append(_term("gathered weights", 2 * states.gathered * n, k))
        terms.append(_term("reduce-scatter input", g * n, k))
        layers.append(tuple(terms))
    # the embedding's own gradient is counted with its backward; then the root's reduce-scatter takes over from the
    # gathered root and the first layer's reduce-scatter input
    before = states.gathered * units.root + g * max(units.layers)
    root_reduce = _term("gathered or reduced embedding and head", max(before, g * units.root))
    always: list[Term] = []
    if layout.pp > 1:
        # torch.distributed.pipelining reduces after the last microbatch only (stage.py: backward_maybe_with_nosync):
        # until then gradients are whole, in the type of the reduction
        for k, n in enumerate(units.layers):
            for chunk in range(units.chunks):
                always.append(Term("gradients", "whole until reduced", g * n, "layer", k, chunk, "estimated"))
        always.append(_term("whole until reduced", g * units.root, component="gradients"))
    return Additions(tuple(layers), (root,), (root_reduce, head_grad), tuple(always))


def _megatron_fsdp(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    w, g = states.gathered, impl.grad_reduce_bytes
    ahead = max(MEGATRON_PREFETCH_ELEMENTS, units.mean_layer)
    root_grad = _term("whole gradient of embedding and head", g * units.root)

    def several(name: str, size: int, units_ready: int, kind: int) -> tuple[Term, ...]:
        """`units_ready` layers at once, or all of the stage where it has no more."""
        if units_ready < units.stage_layers:
            return (_term(name, size * units_ready * units.layers[kind], kind),)
        chunks = range(units.chunks)
        return tuple(
            Term("buffers", name, size * m, "layer", j, chunk, "estimated")
            for j, m in enumerate(units.layers)
            for chunk in chunks
        )

    layers = []
    for k, n in enumerate(units.layers):
        gathered = several("gathered weights", w, 1 + -(-ahead // n), k)
        # the queue of gradients fills while the layers' activations go: it adds to the peak what it takes over that
        waiting = min(units.stage_layers - 1, -(-2 * ahead // n))
        queued = g * n + waiting * max(0, g * n - units.kept[k])
        layers.append((root_grad, *gathered, _term("whole gradients of layers", queued, k)))
    largest = max(range(len(units.layers)), key=lambda k: units.layers[k])
    at_the_end = several("whole gradients of layers", g, 1 + -(-2 * ahead // units.layers[largest]), largest)
    always = (_term("gathered embedding and head", w * units.root),) if w else ()
    return Additions(tuple(layers), (), (root_grad, *at_the_end), always)


def _deepspeed(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    w = states.computed
    bucket = impl.ddp_bucket_elements or REDUCE_BUCKET_ELEMENTS
    if layout.zero == 2:
        buffers = 2 if impl.overlap_grad_reduce else 1
        held = (_term("gradient buckets", buffers * w * bucket),)
        return Additions(tuple(held for _ in units.layers), held, held)
    stage = units.root + units.mean_layer * units.stage_layers
    flattened = _term("flattened gradient bucket", w * min(bucket, stage))
    kept = min(stage, REUSE_ELEMENTS // 2)
    turn = _term("gathered weights", w * (max(units.head, kept) + PREFETCH_ELEMENTS))
    layers = tuple(
        (flattened, _term("gathered weights", w * (max(n, kept) + PREFETCH_ELEMENTS), k))
        for k, n in enumerate(units.layers)
    )
    last = _term("gathered weights", w * units.embedding)
    return Additions(layers, (turn,), (flattened, last), (_term("gradient bucket", w * bucket),))
