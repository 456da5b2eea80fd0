"""What DeepSpeed's ZeRO holds besides its shards (deepspeed/runtime/zero/{stage_1_and_2,stage3}.py,
partitioned_param_coordinator.py).

    stages 1, 2   gradients pass through a bucket of `reduce_bucket_size` elements, two with overlap_comm
                  (setup_buckets); those of the rank's own shard are copied out of it (copy_grads_in_partition), into
                  another buffer than the sums of the microbatches before (independent_gradient_partition_epilogue).
                  A pipeline makes the bucket after its last backward (reduce_gradients). For the step the shard's
                  gradients are flattened and cast to fp32 (step)
    stage 3       the bucket is there from the start, and is flattened once more for the reduce-scatter; weights that
                  are used again within max_reuse_distance stay, prefetch_bucket_size is fetched ahead. The step takes
                  one sub-group of the shard after the other (_prepare_fp32_grad_for_sub_group)
    on the host   an offloaded optimizer has its gradients there: nothing is flattened or cast on the GPU; stages 1 and
                  2 sum on the GPU in a buffer of the largest tensor (temp_grad_buffer_for_gpu_offload)

All of it is estimated: the terms are sizes that the sources allocate, their coincidence is taken at its worst.
"""

from __future__ import annotations

from planner.implementation import DEEPSPEED_BUCKET_ELEMENTS, Implementation
from planner.layout import Layout
from planner.memory.additions import Additions
from planner.memory.form import Moment, Term
from planner.memory.sharded_units import Units, at_once, of_stage
from planner.memory.states import StateBytes


def deepspeed_terms(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    """What the moments of a backward add at stages 1 to 3."""
    return _stage_three(states, impl, layout, units) if layout.zero == 3 else _buckets(states, impl, layout, units)


def _buckets(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    w = states.computed
    offloads = impl.optimizer_offload_fraction > 0
    always = (at_once("staging of offloaded gradients", w * units.largest),) if offloads else ()
    if layout.pp > 1:
        return Additions(tuple(() for _ in units.layers), always=always)
    buffers = 2 if impl.overlap_grad_reduce else 1
    held: tuple[Term, ...] = (at_once("gradient buckets", buffers * w * _bucket(impl)),)
    reduced = held
    if not offloads and (layout.zero == 1 or units.accumulates):
        reduced += _own(states, units)
    return Additions(tuple(reduced for _ in units.layers), held, reduced, always)


def _bucket(impl: Implementation) -> int:
    return impl.ddp_bucket_elements or DEEPSPEED_BUCKET_ELEMENTS


def _own(states: StateBytes, units: Units) -> tuple[Term, ...]:
    """Gradients of the rank's shard in the type of the weights."""
    w = states.computed
    return of_stage("gradients of the shard", [w * n for n in units.shards], w * units.root_shard, units.chunks)


def _stage_three(states: StateBytes, impl: Implementation, layout: Layout, units: Units) -> Additions:
    w, sizes = states.computed, impl.deepspeed_zero
    stage = units.root + units.mean_layer * units.stage_layers
    flattened = at_once("flattened gradient bucket", w * min(_bucket(impl), stage))
    # at the turn from forward to backward every layer is passed twice, so that half of the distance is kept
    kept = min(stage, sizes.reuse_distance // 2)

    def gathered(unit: int) -> int:
        now = max(unit, kept)
        return w * (now + max(0, min(sizes.prefetch, sizes.live - now)))

    turn = at_once("gathered weights", gathered(units.head))
    layers = tuple((flattened, at_once("gathered weights", gathered(n), k)) for k, n in enumerate(units.layers))
    last = at_once("gathered weights", w * units.embedding)
    return Additions(layers, (turn,), (flattened, last), (at_once("gradient bucket", w * _bucket(impl)),))


def deepspeed_steps(
    states: StateBytes, impl: Implementation, layout: Layout, units: Units, stage_shard: int
) -> tuple[Moment, ...]:
    """The reduction after a pipeline's last backward and the optimizer's step. `stage_shard`: elements that a rank's
    optimizer updates (stage 3)."""
    w, g = states.computed, max(states.gradients_whole, states.gradients_sharded)
    copies = g if g == 4 else g + 4  # flattened, then cast
    offloads = impl.optimizer_offload_fraction > 0
    moments: list[Moment] = []
    if layout.pp > 1:
        terms = () if offloads else _own(states, units)
        moments.append(Moment("gradient reduction", (at_once("gradient buckets", w * _bucket(impl)), *terms)))
    if offloads:
        return tuple(moments)
    if layout.zero == 3:
        taken = min(stage_shard, impl.deepspeed_zero.sub_group)
        return (Moment("optimizer step", (at_once("fp32 copies", copies * taken, component="gradients"),)),)
    shards, root = [copies * n for n in units.shards], copies * units.root_shard
    terms = of_stage("fp32 copies", shards, root, units.chunks, "gradients")
    if layout.zero == 1:  # what is not the rank's own is free by then
        gone = [-states.gradients_whole * n for n in units.layers]
        terms += of_stage("reduced", gone, -states.gradients_whole * units.root, units.chunks, "gradients")
        terms += _own(states, units)
    return (*moments, Moment("optimizer step", terms))
