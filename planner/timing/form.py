"""The time of one step as integers, linear in the layers that each stage holds: what the report evaluates and the
constraint model minimises. Nanoseconds throughout, rounded up once where a coefficient is made.

    microbatch_ns(i) = fixed_ns + sum over kinds k of layers[k] * layer_ns[k] + recomputed[k] * recompute_ns[k]
    pipeline_ns      = first_ns + (m - p) * rate_ns, and no less than m * max_i microbatch_ns(i)
    first_ns         = ceil(((p * v - 1) * max_i microbatch_ns(i) + sum_i microbatch_ns(i)) / v) - filled_ns
    rate_ns          = max_i microbatch_ns(i)
    tail_ns(i)       = sum over its tails of max(0, fixed_ns + sum_k layers[k] * layer_ns[k])
    step_ns          = pipeline_ns + max_i tail_ns(i) + once_ns

with m microbatches, p stages, v virtual stages. For equal stages the pipeline term is m*t + (p-1)*t/v: 1F1B for v = 1
(Narayanan et al. 2021, arXiv:2104.04473, section 2.2) and its interleaved form for v > 1 (section 2.2.2); other
schedules fill a part of 1F1B's bubble (`planner.timing.bubble`). Where the chunks of a stage take unequal time, the
first group of p microbatches and the rate of those that follow are no less than `planner.timing.interleaved` says.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil
from operator import mul

from planner.memory.form import Counts
from planner.timing import interleaved
from planner.timing.interleaved import ChunkTimes, Time, parts_of_ns


def nanoseconds(seconds: float) -> int:
    """Rounded up, the one place where seconds become integers."""
    return ceil(seconds * 1e9)


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
    first_ns: int = 0
    """Of `fixed_ns`, what its first chunk has alone: the embedding."""
    last_ns: int = 0
    """Of `fixed_ns`, what its last chunk has alone: multi-token prediction, head and loss."""

    def chunk_times(self, layers: Sequence[Sequence[Time]], recomputed: Sequence[Sequence[Time]]) -> ChunkTimes:
        """Passes through each chunk, [chunk][kind] of layers and of those recomputed."""
        if len(self.layer_ns) == 1:
            each, redone = self.layer_ns[0], self.recompute_ns[0]
            normal, again = [n * each for (n,) in layers], [n * redone for (n,) in recomputed]
        else:
            normal = [_weighed(chunk, self.layer_ns) for chunk in layers]
            again = [_weighed(chunk, self.recompute_ns) for chunk in recomputed]
        normal[0] = normal[0] + self.first_ns
        normal[-1] = normal[-1] + self.last_ns
        return interleaved.chunk_times(normal, again, self.fixed_ns - self.first_ns - self.last_ns)


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
        return s.fixed_ns + _weighed(layers, s.layer_ns) + _weighed(recomputed, s.recompute_ns)

    def tail_ns(self, stage: int, layers: tuple[int, ...]) -> int:
        """What the stage adds after the pipeline has drained."""
        return sum(self.shown_ns(stage, layers))

    def shown_ns(self, stage: int, layers: tuple[int, ...]) -> list[int]:
        """The same by tail."""
        tails = self.stages[stage].tails
        if len(layers) == 1:
            (n,) = layers
            return [ns if (ns := tail.fixed_ns + n * tail.layer_ns[0]) > 0 else 0 for tail in tails]
        return [max(0, tail.fixed_ns + _weighed(layers, tail.layer_ns)) for tail in tails]

    def pipeline_ns(self, microbatch_ns: list[int], chunks: Sequence[ChunkTimes] = ()) -> int:
        """The pipeline's makespan for the given stage times; `chunks` are those of each stage's chunks, where there are
        several."""
        pp, slowest = len(microbatch_ns), max(microbatch_ns)
        pipeline = self.makespan_ns(slowest, sum(microbatch_ns))
        more = self.num_microbatches - pp
        if not chunks or more < 0:
            return pipeline
        parts, rate = parts_of_ns(self.vpp), slowest
        if not interleaved.even(chunks, slowest * parts):
            rate = max(slowest, -(-interleaved.steady(chunks) // (2 * pp * parts)))
        first = max(pipeline - more * slowest, -(-interleaved.first_group(chunks) // parts))
        return first + more * rate

    def makespan_ns(self, slowest_ns: int, total_ns: int) -> int:
        """The pipeline's makespan where the slowest stage and all stages together take so long for a microbatch, and
        chunks of a stage equally long; it grows with both."""
        rounds = self.num_microbatches * self.vpp - 1
        whole = -(-(rounds * slowest_ns + total_ns) // self.vpp)
        return max(self.num_microbatches * slowest_ns, whole - self.filled_ns)

    def alike(self, counts: Sequence[Counts]) -> list[int]:
        """For each stage the first that is like it: with the same work around its layers, and the same layers."""
        known: dict[tuple[int, int], int] = {}
        pairs = zip(map(id, self.stages), map(id, counts), strict=True)
        return [known.setdefault(pair, i) for i, pair in enumerate(pairs)]

    def chunks(self, counts: Sequence[Counts], alike: Sequence[int]) -> list[ChunkTimes]:
        """The times of each stage's chunks; stages that are `alike` share them."""
        made = {i: self.stages[i].chunk_times(counts[i].layers, counts[i].recomputed) for i in set(alike)}
        return [made[i] for i in alike]

    def step_ns(self, counts: Sequence[Counts]) -> int:
        """The whole step, for what each stage holds and recomputes."""
        stages = range(len(self.stages))
        layers = [_sum(c.layers) for c in counts]
        times = [self.microbatch_ns(i, layers[i], _sum(counts[i].recomputed)) for i in stages]
        chunks = self.chunks(counts, self.alike(counts)) if len(counts[0].layers) > 1 else []
        return self.pipeline_ns(times, chunks) + max(self.tail_ns(i, layers[i]) for i in stages) + self.once_ns


def _sum(chunks: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    return tuple(map(sum, zip(*chunks, strict=True)))


def _weighed(counts: Sequence[Time], each_ns: Sequence[int]) -> Time:
    """Of so many layers of each kind."""
    if len(each_ns) == 1:
        return counts[0] * each_ns[0]
    return sum(map(mul, counts, each_ns))
