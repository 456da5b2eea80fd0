"""What is trained: the batch, the sequence, the precision and the optimizer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Precision = Literal["bf16", "fp16", "fp8", "fp32"]
Optimizer = Literal["adamw", "adamw-8bit", "sgd", "sgd-momentum", "muon"]


@dataclass(frozen=True, slots=True)
class Workload:
    """One optimizer step: `global_batch` sequences of `seq_length` tokens."""

    seq_length: int
    global_batch: int
    precision: Precision = "bf16"
    optimizer: Optimizer = "adamw"

    @property
    def activation_bytes(self) -> int:
        """Of one activation element; what fp8 products do not keep in 8 bits is in bf16."""
        return 4 if self.precision == "fp32" else 2

    @property
    def tokens_per_step(self) -> int:
        return self.seq_length * self.global_batch
