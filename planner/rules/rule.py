"""What a validity rule is: one object with its sentence, its source and its predicate.

The search enumerates with the predicate, the explanation prints the sentence, `plan rules` lists them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import lcm

from planner.cluster import Cluster
from planner.implementation import Implementation
from planner.layout import Layout
from planner.model import Attention, LatentAttention, Layer, Model, MoE
from planner.workload import Workload


@dataclass(frozen=True, slots=True)
class Case:
    """A layout in question, with all that decides whether it is legal. `world_size` is None where it is not known."""

    model: Model
    workload: Workload
    implementation: Implementation
    layout: Layout
    world_size: int | None = None
    cluster: Cluster | None = None

    @property
    def num_microbatches(self) -> int:
        """Microbatches of one step; 0 when the batch is too small."""
        return self.layout.num_microbatches(self.workload.global_batch)

    @property
    def experts(self) -> list[MoE]:
        return [layer.mlp for layer in self.model.layer_kinds if isinstance(layer.mlp, MoE)]

    @property
    def megatron_lm(self) -> bool:
        """Whether it runs under Megatron-LM itself; Megatron-DeepSpeed has checks of its own."""
        return self.implementation.framework == "megatron"

    @property
    def fsdp(self) -> bool:
        """Whether torch FSDP2 or Megatron-FSDP runs, the latter whatever its strategy shards."""
        framework = self.implementation.sharded_framework
        return framework == "megatron_fsdp" or (framework == "fsdp2" and self.layout.zero >= 2)

    @property
    def sequence_parts(self) -> int:
        """Parts of a context-parallel rank's share of the sequence: two under Megatron-LM, which pairs an early with a
        late one; DeepSpeed's Ulysses cuts none."""
        return 2 if self.megatron_lm else 1

    @property
    def kinds(self) -> tuple[Layer, ...]:
        return self.model.layer_kinds

    @property
    def attentions(self) -> list[Attention | LatentAttention]:
        return [layer.attention for layer in self.model.layer_kinds]


Predicate = Callable[[Case], bool]
Text = Callable[[Case], str]


def _nothing(case: Case) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Rule:
    """A relation that every layout must keep.

    reads   the fields of the layout that the predicate looks at; the enumerator checks the rule as soon as they are set
    given   the numbers that break it; nearest   values that would keep it, or nothing
    """

    id: str
    sentence: str
    source: str
    reads: tuple[str, ...]
    holds: Predicate
    given: Text
    nearest: Text = _nothing


@dataclass(frozen=True, slots=True)
class BrokenRule:
    """A rule that a layout breaks, and the numbers it breaks it with."""

    rule: Rule
    given: str
    nearest: str = ""

    @property
    def id(self) -> str:
        return self.rule.id

    @property
    def sentence(self) -> str:
        return self.rule.sentence

    @property
    def source(self) -> str:
        return self.rule.source

    def __str__(self) -> str:
        text = f"{self.rule.sentence}, but {self.given}"
        return f"{text}: {self.nearest}" if self.nearest else text


def divisors(n: int) -> list[int]:
    """Divisors of n >= 1, ascending."""
    small = [d for d in range(1, int(n**0.5) + 1) if n % d == 0]
    return small + [n // d for d in reversed(small) if d * d != n]


def dividing_sequences(case: Case) -> str:
    """The sequence lengths next to the one given that context and sequence parallelism divide."""
    x = case.layout
    unit = lcm(case.sequence_parts * x.cp if x.cp > 1 else 1, x.tp * x.cp if x.sequence_parallel else 1)
    below = case.workload.seq_length // unit * unit
    return f"seq_length {f'{below} or ' if below else ''}{below + unit} would divide"


def close_to(value: int, legal: list[int]) -> str:
    """The legal values next to `value`, below and above."""
    below = [x for x in legal if x < value]
    above = [x for x in legal if x > value]
    return " or ".join(str(x) for x in ([max(below)] if below else []) + ([min(above)] if above else []))
