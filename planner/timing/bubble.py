"""What a pipeline schedule fills of the bubble of 1F1B by taking weight gradients for themselves.

With F, B and W the forward pass, the input gradients and the weight gradients of one microbatch on one of p equal
stages, the bubbles are

    1F1B      (p - 1) (F + B + W)
    ZB-H1     (p - 1) (F + B - W)                 Qi et al. 2023, arXiv:2401.10241, table 2
    DualPipe  (p / 2 - 1) (F&B + (B + W) - 3 W)   DeepSeek-V3, arXiv:2412.19437, table 2

where F&B is a forward beside a backward pass: as long as both, F + B + W, because what DualPipe hides there of the
experts' exchange is not counted. What is filled is the difference to 1F1B. It does not grow with recomputation, which
is no weight gradient: so it is one number for a layout, and the form stays linear in layers and recomputed layers.
Attention has no weights either: the longer the sequence, the less is filled.
"""

from __future__ import annotations

from collections.abc import Sequence

from planner.implementation import Schedule
from planner.timing.parts import LayerParts


def filled_ns(schedule: Schedule, pp: int, layers: Sequence[LayerParts], counts: Sequence[int]) -> int:
    """Nanoseconds of 1F1B's bubble that the schedule fills, for `counts[kind]` layers over `pp` equal stages. Weight
    gradients around the layers are left out, and of DualPipe recomputation on one stage: both would fill more."""
    if schedule == "1f1b" or pp == 1:
        return 0
    stages = [(n / pp, part) for n, part in zip(counts, layers, strict=True)]
    whole = sum(n * part.normal_ns for n, part in stages)
    forward = sum(n * part.forward for n, part in stages) * 1e9
    weights = sum(n * part.weight_gradients for n, part in stages) * 1e9
    if schedule == "zb-h1":
        inputs = whole - forward - weights
        return round((pp - 1) * (weights + min(weights, inputs)))  # longer than B, W delays the next stage's
    return round(whole + (pp / 2 - 1) * (forward + 3 * weights))
