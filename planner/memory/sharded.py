"""What PyTorch and Megatron hold besides their shards where they shard gradients or weights (ZeRO 2 and 3): gathered
weights, whole gradients on their way to a reduce-scatter. DeepSpeed stands in deepspeed.py.

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

All of it is estimated: the terms are sizes that the sources allocate, their coincidence is taken at its worst.
"""

from __future__ import annotations

from planner.implementation import Implementation
from planner.layout import Layout
from planner.memory.additions import Additions
from planner.memory.form import Term
from planner.memory.sharded_units import Units, at_once, of_stage
from planner.memory.states import StateBytes

MEGATRON_PREFETCH_ELEMENTS = 500_000_000
"""Half of Megatron-FSDP's least suggested_communication_unit_size."""


def sharded_terms(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    """What PyTorch or Megatron adds at ZeRO 2 and 3."""
    make = {"fsdp2": _fsdp2, "megatron_fsdp": _megatron_fsdp}[impl.sharded_framework]
    return make(states, impl, layout, units)


def _fsdp2(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    w, g = states.computed, impl.grad_reduce_bytes
    root = at_once("gathered embedding and head", states.gathered * units.root)
    head_grad = at_once("whole gradient of the head", w * units.head)
    layers = []
    for k, n in enumerate(units.layers):
        terms = [root, head_grad, at_once("whole gradients of a layer", w * n, k)]
        terms.append(at_once("gathered weights", 2 * states.gathered * n, k))
        terms.append(at_once("reduce-scatter input", g * n, k))
        layers.append(tuple(terms))
    # the embedding's own gradient is counted with its backward; then the root's reduce-scatter takes over from the
    # gathered root and the first layer's reduce-scatter input
    before = states.gathered * units.root + g * max(units.layers)
    root_reduce = at_once("gathered or reduced embedding and head", max(before, g * units.root))
    always: tuple[Term, ...] = ()
    ends = [root_reduce, head_grad]
    if layout.pp > 1:
        # torch.distributed.pipelining reduces after the last microbatch only (stage.py: backward_maybe_with_nosync):
        # until then gradients are whole, in the type of the reduction
        whole = [g * n for n in units.layers]
        always = of_stage("whole until reduced", whole, g * units.root, units.chunks, "gradients")
    elif layout.zero == 2:
        # weights that forward has left gathered go as their layers' backwards end (post_backward: reshard)
        gone = [-states.weights_whole * n for n in units.layers]
        ends += of_stage("resharded layers", gone, 0, units.chunks, "weights")
    if layout.hsdp_replicas > 1 and units.accumulates and layout.pp == 1:
        # what a layer's reduce-scatter gave lives until the end of the backward (finalize_backward), beside the sums of
        # the microbatches before
        ends += of_stage("reduced over the shards", [4 * n for n in units.shards], 0, units.chunks, "gradients")
    return Additions(tuple(layers), (root,), tuple(ends), always)


def _megatron_fsdp(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    w, g = states.gathered, impl.grad_reduce_bytes
    ahead = max(MEGATRON_PREFETCH_ELEMENTS, units.mean_layer)
    root_grad = at_once("whole gradient of embedding and head", g * units.root)

    def several(name: str, size: int, units_ready: int, kind: int) -> tuple[Term, ...]:
        """`units_ready` layers at once, or all of the stage where it has no more."""
        if units_ready < units.stage_layers:
            return (at_once(name, size * units_ready * units.layers[kind], kind),)
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
        layers.append((root_grad, *gathered, at_once("whole gradients of layers", queued, k)))
    largest = max(range(len(units.layers)), key=lambda k: units.layers[k])
    at_the_end = several("whole gradients of layers", g, 1 + -(-2 * ahead // units.layers[largest]), largest)
    always = (at_once("gathered embedding and head", w * units.root),) if w else ()
    return Additions(tuple(layers), (), (root_grad, *at_the_end), always)
