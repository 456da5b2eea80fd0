"""One model on one kind of card: how a number of GPUs becomes a scenario, and what is already known."""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from planner.capacity.scenario import Outcome, Scenario
from planner.solver.space import FREE, Pins

if TYPE_CHECKING:
    from typing import TypeVar

    from planner.cluster import Card, Cluster
    from planner.model import Model
    from planner.question import Question

    T = TypeVar("T")
    Rounds = Generator[list[Scenario], list[Outcome], T]
    """Gives scenarios to solve, is sent their outcomes in the same order, and returns what it found out."""

EXISTENCE_SECONDS = 10.0
"""For a scenario that asks whether anything fits."""

Ask = Callable[..., "Question"]
"""ask(model, cluster, seq_length=None): the question with every default filled in; seq_length overrides the user's and
keeps the tokens of a step."""


@dataclass
class Case:
    """One model on one kind of card. `known` remembers outcomes by GPUs, so that none is solved twice."""

    model: Model
    card: Card
    ask: Ask
    pins: Pins = FREE
    time_limit_seconds: float | None = 60.0
    known: dict[int, Outcome] = field(default_factory=dict)
    questions: dict[int, Question] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return f"{self.model.name} on {self.card.name}"

    def question(self, gpus: int, seq_length: int | None = None, card: Card | None = None) -> Question:
        """The question for so many GPUs; `card` stands in for the case's own, on the same nodes and network."""
        from planner.hardware import parse_gpus

        cluster: Cluster = parse_gpus(f"{gpus}x{self.card.name}")
        if card is not None:
            cluster = replace(cluster, groups=tuple(replace(group, card=card) for group in cluster.groups))
        return self.ask(self.model, cluster, seq_length)

    def scenario(self, what: str, question: Question, **pins: tuple[int | str, ...]) -> Scenario:
        """A scenario; `pins` apply where the user left the choice free."""
        free = {name: value for name, value in pins.items() if getattr(self.pins, name) is None}
        return Scenario(f"{self.name}: {what}", question, replace(self.pins, **free), self.time_limit_seconds)  # type: ignore[arg-type]

    def existence(self, what: str, question: Question, **pins: tuple[int | str, ...]) -> Scenario:
        """A scenario of which only matters whether anything fits: the proof that a plan is the fastest is cut short."""
        scenario = self.scenario(what, question, **pins)
        limit = scenario.time_limit_seconds
        return replace(
            scenario, time_limit_seconds=EXISTENCE_SECONDS if limit is None else min(limit, EXISTENCE_SECONDS)
        )

    def judge(self, counts: list[int]) -> Rounds[list[Outcome]]:
        """The outcome at each number of GPUs."""
        new = [gpus for gpus in dict.fromkeys(counts) if gpus not in self.known]
        scenarios = []
        for gpus in new:
            self.questions[gpus] = self.question(gpus)
            scenarios.append(self.scenario(f"{gpus} GPUs", self.questions[gpus]))
        outcomes = (yield scenarios) if scenarios else []
        self.known.update(zip(new, outcomes, strict=True))
        return [self.known[gpus] for gpus in counts]


def together(*parts: Rounds[T]) -> Rounds[list[T]]:
    """Several rounds side by side: in each, what all of them want is solved at once."""
    results: dict[int, T] = {}
    wanted: dict[int, list[Scenario]] = {}

    def advance(index: int, outcomes: list[Outcome] | None) -> None:
        try:
            wanted[index] = parts[index].send(outcomes) if outcomes is not None else next(parts[index])
        except StopIteration as end:
            wanted.pop(index, None)
            results[index] = end.value

    for index in range(len(parts)):
        advance(index, None)
    while wanted:
        order = sorted(wanted)
        outcomes = yield [scenario for index in order for scenario in wanted[index]]
        start = 0
        for index in order:
            stop = start + len(wanted[index])
            advance(index, outcomes[start:stop])
            start = stop
    return [results[index] for index in range(len(parts))]
