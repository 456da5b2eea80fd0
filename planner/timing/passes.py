"""What a part of a layer takes forward and backward, and the kernels that all layers are made of: linear layers, and
memory-bound passes counted in bytes read and written for each element."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from planner.implementation import Implementation
from planner.model import MLP
from planner.parameters import Weight
from planner.timing.kernels import Device, gemm_seconds, linear_precision, memory_seconds

HALF = 2
"""Bytes of an activation element."""


class Work(NamedTuple):
    """Forward work that may be done again: seconds of the device, and operations that the host issues."""

    seconds: float = 0.0
    operations: int = 0

    def __add__(self, other: object) -> Work:
        if not isinstance(other, Work):
            return NotImplemented
        return Work(self.seconds + other.seconds, self.operations + other.operations)


@dataclass(slots=True)
class Passes:
    """Forward and backward seconds of a part of a layer, and what of the backward can hide communication."""

    forward: float = 0.0
    backward: float = 0.0
    column_dgrad: float = 0.0
    """Of backward: input gradients of the products whose input was gathered over tp."""
    column_wgrad: float = 0.0
    """Of backward: weight gradients of the same products."""
    weight_gradients: float = 0.0
    """Of backward: weight gradients of all products, which other microbatches can wait for."""
    column_forward: float = 0.0
    row_forward: float = 0.0
    row_dgrad: float = 0.0
    forward_kernels: int = 0
    backward_kernels: int = 0
    forward_launches: int = 0
    """Kernels that a library launches one after another within one of these operations: those of grouped experts."""
    backward_launches: int = 0

    @property
    def so_far(self) -> Work:
        """The forward pass up to here."""
        return Work(self.forward, self.forward_kernels)

    def since(self, before: Work) -> Work:
        """The forward pass since then."""
        return Work(self.forward - before.seconds, self.forward_kernels - before.operations)

    def add(self, forward: float, backward: float, kernels: tuple[int, int] = (1, 1)) -> None:
        self.forward += forward
        self.backward += backward
        self.forward_kernels += kernels[0]
        self.backward_kernels += kernels[1]


def launches_each(precision: str, implementation: Implementation) -> tuple[int, int]:
    """(forward, backward) kernels for each weight of a group (Transformer Engine, pytorch/module/grouped_linear.py and
    common/gemm/cublaslt_gemm.cu: nvte_multi_tensor_gemm): the products one by one; in fp8 each expert's rows are
    quantised apart; under mxfp8 both scales of a product are brought into its order besides."""
    if precision not in ("fp8", "fp4"):
        return 1, 2
    return (4, 7) if implementation.fp8_recipe == "mxfp8" else (2, 3)


def linear(
    passes: Passes,
    device: Device,
    weight: Weight,
    tokens: int,
    precision: str,
    implementation: Implementation,
    side: str = "",
) -> None:
    """Add a linear layer: y = x W^T for `tokens` rows on each of `weight.count` weights.

    The weight's gradient is accumulated into the main gradient, read and written (`gradient_accumulation_fusion`), or
    made apart and then added. fp8 casts each operand with its transpose: one read of 2 bytes, two writes of 1.
    """
    out, width = weight.shape
    n = weight.count
    if weight.linear:
        precision = linear_precision(device.card, precision, implementation)
    main = implementation.grad_reduce_bytes
    forward = gemm_seconds(device, tokens, out, width, precision, HALF, n)
    dgrad = gemm_seconds(device, tokens, width, out, precision, HALF, n)
    if implementation.gradient_accumulation_fusion:
        wgrad = gemm_seconds(device, out, width, tokens, precision, 2 * main, n)
    else:
        wgrad = gemm_seconds(device, out, width, tokens, precision, HALF, n)
        wgrad += memory_seconds(device, weight.numel * (HALF + 2 * main))
    cast_in = cast_out = 0.0
    if precision in ("fp8", "fp4"):
        cast_in = memory_seconds(device, tokens * n * width * 4)
        cast_out = memory_seconds(device, tokens * n * out * 4)
    passes.add(forward + cast_in, dgrad + wgrad + cast_out, (1 + (cast_in > 0), 2 + (cast_in > 0)))
    passes.weight_gradients += wgrad
    if n > 1:
        forward_launches, backward_launches = launches_each(precision, implementation)
        passes.forward_launches += n * forward_launches
        passes.backward_launches += n * backward_launches
    if side == "column":
        passes.column_forward += forward
        passes.column_dgrad += dgrad
        passes.column_wgrad += wgrad
    elif side == "row":
        passes.row_forward += forward
        passes.row_dgrad += dgrad


def bias_gradient(passes: Passes, device: Device, bias: Weight, tokens: int) -> None:
    """Add the sum of a linear layer's output gradient over its tokens, a kernel of its own where the bias is added
    outside the product (megatron/core/fusions/fused_bias_gelu.py and fused_bias_dropout.py: autograd reduces the
    gradient to the bias's shape; tensor_parallel/layers.py: grad_output.sum)."""
    passes.add(0.0, memory_seconds(device, tokens * bias.numel * HALF), (0, 1))


def elementwise(
    passes: Passes,
    device: Device,
    elements: float,
    forward: float,
    backward: float,
    kernels: tuple[int, int] = (1, 1),
) -> None:
    """Add memory-bound kernels over `elements`, moving so many bytes for each."""
    passes.add(
        memory_seconds(device, elements * forward, kernels[0]),
        memory_seconds(device, elements * backward, kernels[1]),
        kernels,
    )


BIAS_PASS = 2 * HALF
"""Bytes for each element of a bias that is added by a kernel of its own; its gradient is `bias_gradient`'s."""


def norm(passes: Passes, device: Device, elements: float) -> None:
    """Add a norm: forward each element is read and written once, backward read with its gradient, and its own gradient
    written (Transformer Engine, common/normalization: rows are kept in registers; the sum over rows for the weight's
    gradient is as small as the partial sums)."""
    elementwise(passes, device, elements, 2 * HALF, 3 * HALF)


CLAMP_BYTES = (8 * HALF, 15 * HALF)
"""Moved for each output of an activation whose halves are clamped by kernels of their own (megatron/core/fusions/
fused_bias_geglu.py: weighted_bias_quick_geglu_impl). Forward each half is read and written by its clamp and by their
concatenation. Backward compares and selects once for the gate, between two bounds for the linear half (torch,
FunctionsManual.cpp: clamp_backward), and joins both gradients."""
CLAMP_KERNELS = (3, 7)


GATED_UNFUSED = (5 * HALF, 13 * HALF)
"""Moved for each output of a gated activation that takes kernels of its own (megatron/core/transformer/mlp.py: glu).
Forward the activation of one half, and its product with the other; backward two products, the activation's gradient,
and both halves' gradients joined (autograd's backward of torch.chunk)."""
GATED_UNFUSED_KERNELS = (2, 4)


def _activation(p: Passes, device: Device, mlp: MLP, elements: float, fused: bool, bias: bool) -> None:
    """Gated: read both halves, write one; backward reads them with the gradient and writes both gradients. Unfused, a
    `bias` is added before it by a kernel of its own, and one that is not gated is a kernel as it is."""
    if mlp.clamped:
        moved = [elements * each / device.efficiency.irregular for each in CLAMP_BYTES]
        seconds = [memory_seconds(device, *one) for one in zip(moved, CLAMP_KERNELS, strict=True)]
        p.add(seconds[0], seconds[1], CLAMP_KERNELS)
    if bias and not fused:
        elementwise(p, device, elements * (2 if mlp.gated else 1), BIAS_PASS, 0, (1, 0))
    if not mlp.gated:
        elementwise(p, device, elements, 2 * HALF, 3 * HALF)
    elif fused:
        elementwise(p, device, elements, 3 * HALF, 5 * HALF)
    else:
        elementwise(p, device, elements, *GATED_UNFUSED, GATED_UNFUSED_KERNELS)


def feed_forward(
    p: Passes,
    device: Device,
    mlp: MLP,
    weights: list[Weight],
    rows: int,
    precision: str,
    implementation: Implementation,
) -> Work:
    """Both linear layers of an MLP on `rows` tokens (for each expert, when it stands for several) and its activation.
    Returns the activation's forward work."""
    for w in weights:
        if len(w.shape) == 2 and w.shape[0] > 1:
            linear(p, device, w, rows, precision, implementation, "column" if "fc1" in w.name else "row")
    fc2 = next(w for w in weights if w.name == "linear_fc2.weight")
    before = p.so_far
    # the library of grouped products adds biases of experts itself
    bias = mlp.bias and not (fc2.part == "experts" and implementation.adds_expert_bias_apart)
    _activation(p, device, mlp, rows * fc2.count * fc2.shape[1], implementation.bias_activation_fusion, bias)
    return p.since(before)
