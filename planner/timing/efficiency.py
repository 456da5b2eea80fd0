"""What fraction of its data sheet a card reaches, per architecture and per kind of link.

What the model of time has fitted to published steps stands here, but for `launch.LAYER`. Each constant is a property of
silicon and its libraries, never of a model, a table or a source; some were measured apart from any step or chosen, and
how each was obtained stands beside it. `plan validate --what step` prints the residuals. A cluster's `calibration`
mapping (`plan calibrate`) replaces any of them by name.

Elsewhere in this folder stand counts of kernels, bytes and FLOPs, and figures that are the same on every card (tiles,
unfused passes, the host), where they are used.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from functools import lru_cache

from planner.cluster import Cluster
from planner.timing.factors import BY_NAME, Factors, constants_of, factors_of


@dataclass(frozen=True, eq=False)
class Efficiency:
    """Fractions of the data sheet, and overheads in seconds. Compared and hashed by identity."""

    gemm: Mapping[str, float]
    """Fraction of `Card.flops` that the best matrix product reaches, by precision: measured (MAMF below)."""
    sustained: Mapping[str, float]
    """What training sustains of that under its power limit and between other kernels, by card; "" is any other card of
    the architecture. Fitted to step times."""
    attention_forward: float
    """Fraction of the 16-bit rate that flash attention reaches on the FLOPs of the causal half, long sequences."""
    attention_backward: float
    older_attention: float
    """What of these fractions the portable flash kernels (FlashAttention-1 and -2, Triton) reach that frameworks
    without Transformer Engine use. Fitted to llm-foundry's long sequences."""
    exponentials: float = 0.5
    """Time of the softmax's exponentials over that of the products, in flash attention with 128-wide heads: 512 FLOPs
    to each exponential, of which a multiprocessor computes 16 a clock where its tensor cores do 4,096 FLOPs on Hopper
    (arXiv:2407.08608, section 3.1: 989 TFLOP/s and 3.9 tera-exponentials), 2,048 on Ampere. Heads of d are (1 + x) /
    (1 + 128 x / d) as fast: 0.75 for 64 on H100, where FlashAttention-3 and cuDNN reach 0.70 to 0.77 from 4,096 tokens
    on (its figure 5). Blackwell's tensor cores are twice as fast, but FlashAttention-4 computes a part of the
    exponentials otherwise: 0.65 to 0.75 (Dao-AILab/flash-attention pull request 2605), so as Hopper."""
    memory: float = 0.75
    """Fraction of the memory bandwidth that elementwise kernels reach. Fitted on A100 together with `sustained`, where
    unfused attention makes a third of the time memory-bound (SC21, vTrain); the others take it over."""
    irregular: float = 1.0
    """What of `memory` kernels reach that draw rows from everywhere, as permutation to the experts does, or that take
    strided, broadcast or mixed operands element by element, as PyTorch's do. They wait for instructions, so that cards
    with more bandwidth lose more of it; 1 where no run asks for less (`docs/adr/0020`)."""
    gemm_ramp: int = 192
    """Depth K [16-bit elements] that a tile's prologue and epilogue cost: efficiency K / (K + ramp). From 514 measured
    products on B200 (MooreThreads/SimuMax configs/system/b200_bf16_ceperm.json): between 128 and 320 the median error
    over shapes is 10 %, at 64 and below it grows."""
    launch_seconds: float = 50e-6
    """Host time of one operation of the framework (Python, autograd, launch): the floor of layers of small kernels.
    From mixtures at micro-batch 1 on 8 x B200 (9 ms a layer, some 150 operations; Megatron-Bridge 25.11)."""
    expert_launch_seconds: float = 4e-6
    """What each expert's product in a grouped product costs beyond its work, and the host for each such kernel: the
    library launches them one by one on a few streams. 108 measured grouped products of 20 to 256 experts on B200
    (MooreThreads/SimuMax configs/system/b200_bf16_ceperm.json): mean error 11 %, bias -1 %."""
    kernel_seconds: float = 2e-6
    """Device time that a kernel costs beyond its work: launch gap, ramp-up, drain. Order of magnitude: published runs
    do not tell 2 from 6 microseconds (docs/adr/0022), a calibration measures it."""
    overlap_tax: float = 0.2
    """What a hidden second of communication still costs, by taking multiprocessors and bandwidth from the kernels that
    hide it. Chosen, not fitted: Galvatron's overlap test (PKU-DAIR/Hetu-Galvatron) finds both sides 1.3 times slower
    while they overlap, 0.3 in these terms, on cards with slower links."""
    scale_up: float = 0.8
    """Fraction of the scale-up links that a ring of NCCL reaches (bus bandwidth of large messages)."""
    scale_up_all_reduce: float | None = None
    """The same of an all-reduce among more than SWITCHED_GPUS of a domain whose switches reduce (NVLink SHARP); None is
    a ring's."""
    network: float = 0.9
    """Fraction of the network port that a ring reaches. NVIDIA/nccl-tests issues 290 (46 to 48 of 50 GB/s a port of NDR
    are expected) and 119 (peaks of 96 of 100 GB/s over four ports of HDR at 128 MiB, 85 on average)."""
    all_to_all: float = 0.66
    """Fraction of that which an all-to-all of many small messages reaches. Fitted to Grok-1 and Qwen3-235B on H100."""
    dispatch: float = 0.9
    """The same of the kernels of DeepEP and HybridEP, over the bytes that they move. DeepEP on 8 H800: 153 and 158 GB/s
    of all that arrives, 134 and 138 of 200 over NVLink; over InfiniBand 43 to 45 of 50 (deepseek-ai/DeepEP README)."""
    collective_seconds: float = 50e-6
    """What one collective takes beyond its steps and its bytes: launch, synchronisation, and filling the channels.
    Fitted with Ampere's `scale_up` to measured all-reduces of 4 to 512 MiB among 2 to 8 A100 (VIA-Research/vTrain
    trace/a100/AR_GPU*_LUT, commit f8dda847): mean error 4 %. 8 x H200 fit with the same (40 to 70 microseconds from 1
    to 512 MiB; stas00/ml-engineering network/README.md)."""
    straggler: float = 0.0035
    """What each doubling of the GPUs beyond a node adds to everything that they wait for together. From the weak
    scaling in dgxc-benchmarking v24.11 (8B to 405B, 8 to 2,304 H100): 0.3 to 0.6 % a doubling, of which the model's
    collectives explain 0.1 %."""
    step_seconds: float = 0.02
    """Once a step on the host: data, loss and gradient-norm reductions with their synchronisation, logging. From the
    shortest steps (SimuMax, 0.3 s)."""
    relative_error: float | None = None
    """Median absolute error on published runs of dense models on this architecture, in whole per cents: what
    planner/validation/bands.py: error_band finds, where every source counts alike and those that were fitted to cannot
    lower it. `plan validate --what step` prints it; measured, not chosen (docs/adr/0018)."""
    p90_error: float | None = None
    """Nine in ten of these runs are within this, weighted the same way."""
    mixture_error: float | None = None
    """The same of mixtures of experts; None where fewer than 5 runs are published."""
    mixture_p90_error: float | None = None

    def errors(self, mixture: bool) -> tuple[float | None, float | None]:
        """(median, 90th percentile) of the absolute errors on models of this kind."""
        return (self.mixture_error, self.mixture_p90_error) if mixture else (self.relative_error, self.p90_error)


SWITCHED_GPUS = 4
"""All-reduces among no more GPUs than these take a ring even where the switches could reduce: on 8 x H200 NCCL changes
over at 5 GPUs, on 8 x B200 at 6 (stas00/ml-engineering network/README.md, commit 744d01e)."""

# MAMF: maximum achievable matrix-multiplication FLOP/s, measured by stas00/ml-engineering (compute/accelerator/
# README.md, commit 744d01e): A100 86.9 % of the data sheet, H100 80.3 % and fp8 73.4 % (H200, the same chip), B200
# 77.6 % and 76.3 %, GB200 72.9 % and 72.3 %, MI300X 51.4 %, MI355X 68.0 %, Gaudi 3 74.1 %.

AMPERE = Efficiency(
    gemm={"bf16": 0.869, "fp16": 0.869, "tf32": 0.869, "fp32": 0.9},
    sustained={"": 0.915},  # llm-foundry's A100 tables at 2048 tokens and less, Korthikanti et al. table 5: within 3 %
    # FlashAttention-2 reaches 50 to 73 % on A100 (arXiv:2307.08691, abstract): the middle forward, less backward
    attention_forward=0.60,
    attention_backward=0.52,
    older_attention=0.7,
    exponentials=0.25,
    gemm_ramp=128,
    relative_error=0.04,
    p90_error=0.11,
    scale_up=0.74,  # with `collective_seconds`; alone 235 of 300 GB/s at 16 GiB (ml-engineering network/README.md)
)
HOPPER = Efficiency(
    gemm={"bf16": 0.803, "fp16": 0.803, "fp8": 0.734, "tf32": 0.7, "fp32": 0.9},
    # NeMo's models on H100 (dgxc-benchmarking v24.11, described as its launch files say): within 4 % for half of them.
    # 500 W of 700: cube root of the power
    sustained={"": 0.86, "H100-96G": 0.769},
    # FlashAttention-3 and cuDNN on H100, causal, 128-wide heads: 616 and 539 of 989 TFLOP/s forward at 16,384 tokens,
    # 521 and 484 at 2,048 (arXiv:2407.08608, figure 5). FlashAttention-2 reaches 0.58 of their mean there, but whole
    # runs with it, and with kernels of 2023, ask for the 0.5 that its abstract says of both at their best
    attention_forward=0.60,
    attention_backward=0.48,
    older_attention=0.5,
    relative_error=0.05,
    p90_error=0.16,
    mixture_error=0.03,
    mixture_p90_error=0.25,
    # nccl-tests on 8 x H200 (ml-engineering network/README.md): gathers and reduce-scatters at 361 to 363 of 450 GB/s,
    # all-reduces at 480 in the switch, 367 without; NVIDIA/nccl-tests issue 212 says 370 and 480 of H100
    scale_up=0.81,
    scale_up_all_reduce=1.06,
    memory=0.76,
)
BLACKWELL = Efficiency(
    gemm={"bf16": 0.75, "fp16": 0.75, "fp8": 0.735, "fp4": 0.6, "tf32": 0.75, "fp32": 0.9},
    # dense models of Megatron-Bridge 26.02 and 26.04 as their recipes describe them, SimuMax's on B200 (which alone
    # would take 0.65, where the check runs would take 0.72); a card's power limit decides
    sustained={"": 0.75, "B200": 0.69, "GB200": 0.73, "B300": 0.81, "GB300": 0.90},
    # SimuMax on B200, 4096 tokens, 64 heads of 128: 0.28 ms forward, 0.67 ms backward
    attention_forward=0.51,
    attention_backward=0.49,
    relative_error=0.04,
    p90_error=0.11,
    mixture_error=0.12,
    mixture_p90_error=0.23,
    older_attention=0.6,
    memory=0.76,
    scale_up=0.75,  # 8 x B200 (the same page): ring 680 of 900 GB/s; all-reduces in the switch 690 to 740 to 4 GiB
    scale_up_all_reduce=0.82,
    all_to_all=0.89,  # NCCL on 8 x B200: 0.597 of the links where its gathers reach 0.674 (SimuMax, the same file)
    # HybridEP's kernels with 32 multiprocessors on 8 to 36 GB200, dispatch and combine: 656 to 597 GB/s leave a GPU
    # (deepseek-ai/DeepEP, branch hybrid-ep, docs/README_Hybrid-EP.md)
    dispatch=0.92,
    # 0.30 of the data sheet, fitted to the mixtures of Megatron-Bridge 26.02 and 26.04. Measured alone: 0.17 for
    # HybridEP's permutations on B300 (DeepEP issue 590) and Transformer Engine's on B200 (SimuMax), both with what else
    # the calls do; more in DeepEP pull request 588
    irregular=0.4,
)
VOLTA = Efficiency(
    gemm={"fp16": 0.80, "fp32": 0.9},
    sustained={"": 0.88},  # BigScience's runs on V100 (Jean Zay)
    attention_forward=0.40,
    attention_backward=0.35,
    older_attention=1.0,
    gemm_ramp=128,
    relative_error=0.08,
    p90_error=0.27,
    scale_up=0.75,
)
CDNA3 = Efficiency(
    gemm={"bf16": 0.514, "fp16": 0.514, "fp8": 0.45, "fp32": 0.8},
    sustained={"": 0.90, "MI325X": 1.05},  # not fitted: as Hopper; MI325X's best product is 60.4 %
    attention_forward=0.35,
    attention_backward=0.28,
    older_attention=1.0,
    scale_up=0.70,
)
CDNA4 = replace(CDNA3, gemm={"bf16": 0.68, "fp16": 0.68, "fp8": 0.6, "fp4": 0.5, "fp32": 0.8})
GAUDI = replace(
    AMPERE,
    gemm={"bf16": 0.741, "fp8": 0.769, "fp32": 0.8},
    attention_forward=0.5,
    attention_backward=0.4,
    relative_error=None,
    p90_error=None,
)
BY_ARCHITECTURE: dict[str, Efficiency] = {
    "volta": VOLTA,
    "turing": VOLTA,
    "ampere": AMPERE,
    "ada": AMPERE,
    "hopper": HOPPER,
    "blackwell": BLACKWELL,
    "cdna3": CDNA3,
    "cdna4": CDNA4,
    "gaudi": GAUDI,
}
FITTED = ("volta", "ampere", "hopper", "blackwell")
"""Architectures with published runs behind them; the others' constants are only reasoned."""


@lru_cache(maxsize=256)
def efficiency(cluster: Cluster) -> Efficiency:
    """The constants of a cluster: its architecture's, overridden by its calibration. Unknown architectures (other
    vendors) take Ampere's fractions, the lowest of those measured with current libraries."""
    architecture = cluster.card.architecture.lower()
    base = BY_ARCHITECTURE.get(architecture, AMPERE)
    if architecture not in FITTED and base.relative_error is not None:
        base = replace(base, relative_error=None, p90_error=None, mixture_error=None, mixture_p90_error=None)
    if cluster.card.scale_up != "nvlink":  # nothing reduces between cards on PCIe
        base = replace(base, scale_up_all_reduce=None)
    fitted = calibrated(base, cluster)
    if "relative_error" in cluster.calibration:  # of this very machine, whatever ran on it
        fitted = replace(fitted, mixture_error=fitted.relative_error, mixture_p90_error=fitted.p90_error)
    return fitted


def calibrated(base: Efficiency, cluster: Cluster) -> Efficiency:
    """The constants of `base` as the cluster's calibration has them: replaced by name, then multiplied by the factors.
    Without a calibration it is `base` itself. Raises InputError as `factors_of` and `constants_of` do."""
    if not cluster.calibration:
        return base
    constants = constants_of(cluster, (f.name for f in fields(base)))
    for name in BY_NAME:
        if name in constants:
            constants[name] = {**getattr(base, name), **constants[name]}  # type: ignore[dict-item]
    if "gemm_ramp" in constants:
        constants["gemm_ramp"] = round(constants["gemm_ramp"])  # type: ignore[arg-type]
    e: Efficiency = replace(base, **constants)  # type: ignore[arg-type]
    f = factors_of(cluster)
    if f == Factors():
        return e
    return replace(
        e,
        gemm={precision: fraction * f.compute for precision, fraction in e.gemm.items()},
        attention_forward=e.attention_forward * f.compute,
        attention_backward=e.attention_backward * f.compute,
        memory=e.memory * f.memory,
        scale_up=e.scale_up * f.scale_up,
        scale_up_all_reduce=e.scale_up_all_reduce and e.scale_up_all_reduce * f.scale_up,
        network=e.network * f.network,
        launch_seconds=e.launch_seconds / f.host,
        expert_launch_seconds=e.expert_launch_seconds / f.host,
        step_seconds=e.step_seconds / f.host,
    )
