"""Seconds of single kernels on one card: matrix products, attention, and memory-bound passes.

A matrix product is the larger of its arithmetic and its memory traffic. Arithmetic is counted in whole waves of output
tiles over the multiprocessors (NVIDIA, "Matrix Multiplication Background User's Guide": tile and wave quantisation),
each tile paying its prologue; the library is assumed to take the best of a few tile shapes.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from planner.cluster import Card
from planner.implementation import Implementation
from planner.timing.efficiency import Efficiency

TILES = ((256, 128, 1.0), (128, 256, 1.0), (128, 128, 0.95), (128, 64, 0.8), (64, 128, 0.8), (64, 64, 0.6))
"""Output tiles (rows, columns) of the libraries' kernels, and the fraction of the best tile's rate that each reaches:
smaller tiles read each operand more often (same guide, section "Typical Tile Dimensions In cuBLAS And Performance",
which gives the order; the fractions are a choice). Of 514 products on B200 half are within 7 % and the mean error is
13 %, bias +1 % (MooreThreads/SimuMax configs/system/b200_bf16_ceperm.json); those with a side under 1,024 within 18 %.
With all tiles alike 6 and 11 %, but then nine in ten of the runs on A100 and H100 are within 12 %, not 9."""
BLURRED_WAVES = 4
PARTIAL_WAVE = 0.5
"""Beyond so many waves the last one counts as a part of one, full or not: stream-K (arXiv:2301.03598) and dynamic
scheduling blur it. A choice: with 0, 0.25, 0.5 and 1 the same products are within 6 to 8 % for half of them."""
UNMEASURED_GEMM = 0.7
"""Fraction of the data sheet in precisions that nobody measured on an architecture (fp8 on Ada, fp16 on Gaudi): between
those of other architectures, 0.51 to 0.87."""
ALIGNMENT = 8
"""Elements in a row of 16 bytes. A batched product whose rows are no multiple of it leaves the tensor cores for the
ordinary ones (NVIDIA, "Matrix Multiplication Background User's Guide", section "Requirements to use tensor cores"):
BigScience's 108-wide heads take 1.4 times the whole step of 144-wide ones at the same hidden size."""
FLASH_DROPOUT = 1.05
"""What dropout on the probabilities, whose random numbers are drawn again backward, makes of flash attention's time:
FlashAttention-2 takes 0.728 instead of 0.695 ms (NVIDIA/TransformerEngine pull request 3313)."""
WIDE_HEAD = 128
"""Head width that the fractions of flash attention are given for."""


def _attention_block(architecture: str) -> int:
    """Rows of queries that one thread block of flash attention works on: 128 (Dao-AILab/flash-attention
    csrc/flash_attn/src/flash_fwd_launch_template.h; hopper/tile_size.h: tile_size_fwd_sm90 for heads of 128), on
    Blackwell two tiles of as many (flash_attn/cute/flash_fwd_sm100.py: q_stage)."""
    return 256 if architecture == "blackwell" else 128


def _short_sequences(architecture: str, part: float, windowed: bool) -> float:
    """What of its fraction flash attention reaches on causal parts of so many tokens. Blocks on the diagonal are
    computed whole and masked, and rows of unequal length end apart: s / (s + 3 blocks). Found with FlashAttention-2 and
    -3 and cuDNN, forward, on H100 (arXiv:2407.08608, figure 5, heads of 64 and 128): within 6 % from 2,048 to 16,384
    tokens, up to 20 % too fast below. On B200 FlashAttention-4 and cuDNN lose more (its pull request 2605: at 1,024
    tokens they reach 0.44 and 0.56 of what they do at 16,384, this 0.60). In windows, whose blocks are masked at both
    ends, 2 x 128: a choice."""
    lost = 256 if windowed else 3 * _attention_block(architecture)
    return part / (part + lost)


_TF32_ENGINE = ("ampere", "ada", "hopper", "blackwell")
"""NVIDIA's architectures with TF32."""


@dataclass(frozen=True, eq=False)
class Device:
    """A card with its efficiencies; hashed by identity, a key of the kernel caches."""

    card: Card
    efficiency: Efficiency

    @property
    def sustained(self) -> float:
        """What training sustains of the best product's rate on this card."""
        by_card = self.efficiency.sustained
        return by_card.get(self.card.name, by_card.get("", 1.0))

    @property
    def multiprocessors(self) -> int:
        """The card's; an A100's 108 where its spec gives none."""
        return self.card.multiprocessors or 108

    def flops(self, precision: str) -> float:
        """Sustained FLOP/s of a large matrix product. A precision the card lacks runs at the next wider one it has."""
        for p in (precision, "bf16", "fp16", "tf32", "fp32"):
            if p in self.card.flops:
                return self.card.flops[p] * self.efficiency.gemm.get(p, UNMEASURED_GEMM) * self.sustained
        raise AssertionError(f"{self.card.name} has no floating-point rates")

    @property
    def memory_bytes_per_second(self) -> float:
        return self.card.memory_bytes_per_second * self.efficiency.memory


def linear_precision(card: Card, precision: str, implementation: Implementation) -> str:
    """What the products of linear layers run in. NVIDIA's Transformer Engine takes TF32 for fp32 where the card has it
    (common/gemm/cublaslt_gemm.cu: cublas_gemm, CUBLAS_COMPUTE_32F_FAST_TF32 for pure FP32), AMD's does not
    (ROCm/TransformerEngine: common/gemm/rocm_gemm.cu). Nor does PyTorch, whose products the local layers, the head and
    stored attention scores are, unless it is told to (torch.backends.cuda.matmul.allow_tf32, off since 1.12), and
    Megatron-LM does not tell it."""
    engine = implementation.layer_implementation == "transformer_engine" and card.architecture in _TF32_ENGINE
    return "tf32" if precision == "fp32" and engine and "tf32" in card.flops else precision


@lru_cache(maxsize=65536)
def gemm_seconds(
    device: Device,
    m: int,
    n: int,
    k: int,
    precision: str,
    output_bytes: int = 2,
    count: int = 1,
    strided: bool = False,
) -> float:
    """`count` products of (m x k) by (k x n) in one launch; `output_bytes` for each output element, read and written
    when it accumulates. `strided` products are one kernel over equal matrices (attention scores), the others of a group
    are issued one by one (experts)."""
    if m <= 0 or n <= 0 or k <= 0 or count <= 0:
        return 0.0
    if strided and (n % ALIGNMENT or k % ALIGNMENT):
        precision = "fp32"
    rate = device.flops(precision) / device.multiprocessors
    ramp = device.efficiency.gemm_ramp * (2 if precision == "fp8" else 4 if precision == "fp4" else 1)
    depth = k + ramp
    best = float("inf")
    for rows, columns, relative in TILES:
        tiles = -(-m // rows) * -(-n // columns) * count
        waves = float(-(-tiles // device.multiprocessors))
        if waves > BLURRED_WAVES:
            waves = tiles / device.multiprocessors + PARTIAL_WAVE
        best = min(best, waves * 2 * rows * columns * depth / (rate * relative))
    operand_bytes = {"fp8": 1, "fp32": 4, "tf32": 4}.get(precision, 2)
    moved = count * (operand_bytes * (m * k + k * n) + output_bytes * m * n)
    each = count * device.efficiency.expert_launch_seconds if count > 1 and not strided else 0.0
    return max(best, moved / device.memory_bytes_per_second) + each + device.efficiency.kernel_seconds


def memory_seconds(device: Device, moved_bytes: float, kernels: int = 1) -> float:
    """Memory-bound kernels that together read and write so many bytes."""
    return moved_bytes / device.memory_bytes_per_second + kernels * device.efficiency.kernel_seconds


def attended_pairs(seq: int, window: int | None) -> float:
    """Query-key pairs of one causal sequence, the diagonal counted half: s^2 / 2 without a window."""
    if window is None or window >= seq:
        return seq * seq / 2
    return seq * window - window * window / 2


@lru_cache(maxsize=65536)
def flash_seconds(
    device: Device,
    batch: int,
    seq: int,
    heads: int,
    qk_dim: int,
    v_dim: int,
    window: int | None,
    cp: int,
    backward: bool,
    older: bool = False,
    dropout: bool = False,
) -> float:
    """Flash attention over `heads` local heads of sequences of `seq` tokens, of which each rank holds seq / cp.

    Two products forward, five backward (the scores again, and the gradients of V, P, Q, K) in three kernels
    (Dao-AILab/flash-attention csrc/flash_attn/src/flash_bwd_launch_template.h: run_flash_bwd_seqk_parallel).
    """
    e = device.efficiency
    pairs = attended_pairs(seq, window) / cp
    per_pair = 2 * (qk_dim + v_dim) if not backward else 2 * (3 * qk_dim + 2 * v_dim)
    windowed = window is not None and window < seq / cp
    part = window if window is not None and windowed else seq / cp
    fraction = e.attention_backward if backward else e.attention_forward
    fraction *= _short_sequences(device.card.architecture, part, windowed) * (e.older_attention if older else 1.0)
    if qk_dim < WIDE_HEAD:  # more exponentials for each product
        fraction *= (1 + e.exponentials) / (1 + e.exponentials * WIDE_HEAD / qk_dim)
    blocks = batch * heads * -(-(seq // cp) // _attention_block(device.card.architecture))
    waves = -(-blocks // device.multiprocessors)
    fill = blocks / (waves * device.multiprocessors) if waves <= 2 else 1.0  # later ones blur, as above: a choice
    half = next(p for p in ("bf16", "fp16", "fp32") if p in device.card.flops)
    rate = device.card.flops[half] * device.sustained / e.sustained.get("", 1.0)
    seconds = batch * heads * pairs * per_pair / (rate * fraction * fill) * (FLASH_DROPOUT if dropout else 1.0)
    moved = 2 * batch * (seq // cp) * heads * 2 * (qk_dim + v_dim) * (2 if backward else 1)
    return max(seconds, moved / device.memory_bytes_per_second) + e.kernel_seconds * (3 if backward else 1)
