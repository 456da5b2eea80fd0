"""What fraction of its data sheet a card reaches, per architecture and per kind of link.

These are the model of time's only fitted constants. Each is a property of silicon and its libraries, never of a model,
a table or a source; how each was obtained stands beside it, the residuals in `docs/step-time.md`. A cluster's
`calibration` mapping (`plan calibrate`) replaces any of them by name.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import lru_cache

from planner.cluster import Cluster
from planner.errors import InputError, nearest


@dataclass(frozen=True, eq=False)
class Efficiency:
    """Fractions of the data sheet, and overheads in seconds. Compared and hashed by identity."""

    gemm: Mapping[str, float]
    """Fraction of `Card.flops` that a large, aligned, sustained matrix product reaches, by precision."""
    gemm_ramp: int
    """Depth K [elements] that a tile's prologue and epilogue cost: efficiency K / (K + ramp)."""
    memory: float
    """Fraction of the memory bandwidth that a streaming elementwise kernel reaches."""
    attention_forward: float
    """Fraction of the matrix peak that flash attention reaches on the FLOPs of the causal half, long sequences."""
    attention_backward: float
    older_attention: float = 1.0
    """What of these fractions the portable flash kernels (FlashAttention-1 and -2, Triton) reach that frameworks without
    Transformer Engine use."""
    launch_seconds: float = 50e-6
    """Host time of one operation of the framework (Python, autograd, launch): the floor of layers of small kernels."""
    expert_launch_seconds: float = 10e-6
    """Floor of one expert's product in a grouped product, which the library launches one by one on a few streams."""
    kernel_seconds: float = 2e-6
    """Device time that a kernel costs beyond its work: launch gap, ramp-up, drain."""
    overlap_tax: float = 0.2
    """What a hidden second of communication still costs, by taking multiprocessors and bandwidth from the kernels that
    hide it."""
    scale_up: float = 0.8
    """Fraction of the scale-up links that a collective of NCCL reaches (bus bandwidth of large messages)."""
    network: float = 0.9
    """Fraction of the network port that a ring reaches."""
    all_to_all: float = 0.66
    """Fraction of link or port that an all-to-all of many small messages reaches, beyond the above."""
    collective_seconds: float = 12e-6
    """Launch and synchronisation of one collective, beyond its steps."""
    step_seconds: float = 0.02
    """Once a step on the host: data, loss and gradient-norm reductions with their synchronisation, logging."""
    sustained: Mapping[str, float] = field(default_factory=dict)
    """What power leaves of the matrix rates of cards that share an architecture and differ in power limits, by card."""
    relative_error: float | None = None
    """Median absolute error on the published runs of this architecture (`plan validate --what step`)."""


AMPERE = Efficiency(
    gemm={"bf16": 0.79, "fp16": 0.79, "tf32": 0.79, "fp32": 0.9},
    gemm_ramp=128,
    memory=0.75,
    attention_forward=0.60,
    attention_backward=0.52,
    older_attention=0.7,
    scale_up=0.77,
)
HOPPER = Efficiency(
    gemm={"bf16": 0.70, "fp16": 0.70, "fp8": 0.67, "tf32": 0.7, "fp32": 0.9},
    gemm_ramp=192,
    memory=0.76,
    attention_forward=0.60,
    attention_backward=0.48,
    older_attention=0.5,
    scale_up=0.90,
)
BLACKWELL = Efficiency(
    gemm={"bf16": 0.57, "fp16": 0.57, "fp8": 0.55, "fp4": 0.45, "tf32": 0.6, "fp32": 0.9},
    gemm_ramp=192,
    memory=0.76,
    attention_forward=0.46,
    attention_backward=0.40,
    older_attention=0.6,
    scale_up=0.90,
    sustained={"B200": 0.95, "GB300": 1.17, "B300": 1.1},
)
VOLTA = Efficiency(
    gemm={"fp16": 0.75, "fp32": 0.9},
    gemm_ramp=128,
    memory=0.80,
    attention_forward=0.4,
    attention_backward=0.35,
    scale_up=0.75,
)
BY_ARCHITECTURE: Mapping[str, Efficiency] = {
    "volta": VOLTA,
    "ampere": AMPERE,
    "ada": AMPERE,
    "hopper": HOPPER,
    "blackwell": BLACKWELL,
}


@lru_cache(maxsize=256)
def efficiency(cluster: Cluster) -> Efficiency:
    """The constants of a cluster: its architecture's, overridden by its calibration. Unknown architectures (other
    vendors) take Ampere's fractions, the lowest of those measured with current libraries."""
    base = BY_ARCHITECTURE.get(cluster.card.architecture.lower(), AMPERE)
    known = {f.name for f in fields(Efficiency)}
    given = {str(k): v for k, v in cluster.calibration.items()}
    for name in given:
        if name not in known:
            close = ", ".join(nearest(name, known)) or ", ".join(sorted(known))
            raise InputError(f"calibration must name a constant of the model of time ({close}), but has '{name}'.")
    if "gemm" in given and isinstance(given["gemm"], Mapping):
        given["gemm"] = {**base.gemm, **given["gemm"]}
    return replace(base, **given) if given else base  # type: ignore[arg-type]
