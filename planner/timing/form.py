"""The time of one step as integers, linear in the layers that each stage holds: what the report evaluates and the
constraint model minimises. Nanoseconds throughout, rounded up once where a coefficient is made.

    microbatch_ns(i) = fixed_ns + sum over kinds k of layers[k] * layer_ns[k] + recomputed[k] * recompute_ns[k]
    pipeline_ns      = ceil(((m * v - 1) * max_i microbatch_ns(i) + sum_i microbatch_ns(i)) / v) - filled_ns,
                       and no less than m * max_i microbatch_ns(i)
    tail_ns(i)       = sum over its tails of max(0, fixed_ns + sum_k layers[k] * layer_ns[k])
    step_ns          = pipeline_ns + max_i tail_ns(i) + once_ns

with m microbatches, v virtual stages. For equal stages the pipeline term is m*t + (p-1)*t/v: 1F1B for v = 1 (Narayanan
et al. 2021, arXiv:2104.04473, section 2.2) and its interleaved form for v > 1 (section 2.2.2); other schedules fill a
part of 1F1B's bubble (`planner.timing.bubble`).
"""

from __future__ import annotations

from dataclasses import dataclass

NO_BUBBLE = 1_000_000
"""Virtual stages that leave nothing of a bubble: a bound for schedules that fill it."""


@dataclass(frozen=True, slots=True)
class Tail:
    """Work after (or before) the pipeline that a stage cannot hide: exposed gradient reduction, optimizer step, ...
    Linear in the stage's layers and never negative."""

    name: str
    fixed_ns: int
    layer_ns: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class StageTime:
    """Coefficients of one stage."""

    fixed_ns: int
    """Embedding, head and loss, multi-token prediction, sends and receives: once a microbatch."""
    layer_ns: tuple[int, ...]
    """For each layer kind: forward and backward of one layer for one microbatch, with its communication."""
    recompute_ns: tuple[int, ...]
    """For each layer kind: what full recomputation of one layer adds."""
    tails: tuple[Tail, ...] = ()


@dataclass(frozen=True, slots=True)
class StepForm:
    """Coefficients of a whole step for one choice of degrees; `stages` has pp entries."""

    num_microbatches: int
    vpp: int
    stages: tuple[StageTime, ...]
    once_ns: int = 0
    filled_ns: int = 0
    """Of the bubble, by a schedule that puts weight gradients into it."""
    mixed: bool = False
    """Stages may stand on different cards: a layer's time differs from stage to stage."""

    def microbatch_ns(self, stage: int, layers: tuple[int, ...], recomputed: tuple[int, ...]) -> int:
        """One microbatch, forward and backward, on a stage that holds these layers of each kind."""
        s = self.stages[stage]
        return (
            s.fixed_ns
            + sum(n * t for n, t in zip(layers, s.layer_ns, strict=True))
            + sum(n * t for n, t in zip(recomputed, s.recompute_ns, strict=True))
        )

    def tail_ns(self, stage: int, layers: tuple[int, ...]) -> int:
        """What the stage adds after the pipeline has drained."""
        return sum(
            max(0, t.fixed_ns + sum(n * c for n, c in zip(layers, t.layer_ns, strict=True)))
            for t in self.stages[stage].tails
        )

    def pipeline_ns(self, microbatch_ns: list[int]) -> int:
        """The pipeline's makespan for the given stage times."""
        return self.makespan_ns(max(microbatch_ns), sum(microbatch_ns))

    def makespan_ns(self, slowest_ns: int, total_ns: int) -> int:
        """The pipeline's makespan where the slowest stage and all stages together take so long for a microbatch; it
        grows with both."""
        rounds = self.num_microbatches * self.vpp - 1
        whole = -(-(rounds * slowest_ns + total_ns) // self.vpp)
        return max(self.num_microbatches * slowest_ns, whole - self.filled_ns)

    def step_ns(self, layers: list[tuple[int, ...]], recomputed: list[tuple[int, ...]]) -> int:
        """The whole step: layers[stage][kind] and how many of them are recomputed."""
        stages = range(len(self.stages))
        times = [self.microbatch_ns(i, layers[i], recomputed[i]) for i in stages]
        return self.pipeline_ns(times) + max(self.tail_ns(i, layers[i]) for i in stages) + self.once_ns
