"""A made-up solver whose answers a reader can compute: what fits is a threshold, a step's time is work over GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from fractions import Fraction
from typing import Any

import pytest

from planner.capacity.economics import Terms
from planner.capacity.review import Asked, Review, review
from planner.capacity.scenario import Outcome, Scenario
from planner.cluster import Cluster
from planner.hardware import load_card
from planner.implementation import Implementation
from planner.layout import Chunk, Layout
from planner.memory.report import MemoryReport, StageMemory
from planner.model import MLP, Attention, Layer, Model
from planner.question import Question
from planner.solver.result import Plan, Status
from planner.timing.report import StepTime
from planner.workload import Workload

GIB = 2**30
SERIAL_SECONDS = 1.0
"""Of every step, however many GPUs."""
WORK_SECONDS = 1024.0
"""Of every step, shared by the GPUs."""


def toy_model(name: str = "toy-13b") -> Model:
    return Model(name, 5120, 32000, (Layer(Attention(40, 8, 128), MLP(13824)),), (0,) * 40)


def toy_ask(model: Model, cluster: Cluster, seq_length: int | None = None) -> Question:
    """4 Mi tokens a step."""
    length = seq_length or 4096
    return Question(
        model=model,
        cluster=cluster,
        workload=Workload(length, max(1, 2**22 // length)),
        implementation=Implementation(),
        accounting="exact",
        reserve_bytes=4 * GIB,
        defaults=(f"sequence length {length}",),
    )


def toy_plan(question: Question, micro_batch: int = 1) -> Plan:
    """Two stages; a step of 1 s and 1024 GPU-seconds."""
    gpus = question.cluster.gpus
    chunks = ((Chunk(0, 20, embedding=True),), (Chunk(20, 40, loss=True),))
    layout = Layout(pp=2, dp=gpus // 2, zero=1, micro_batch=micro_batch, stages=chunks)
    components: Any = {
        "weights": 10 * GIB,
        "gradients": 10 * GIB,
        "optimizer": 10 * GIB,
        "activations": 20 * GIB,
        "logits": GIB,
        "buffers": GIB,
        "reserve": 4 * GIB,
    }
    stages = tuple(
        StageMemory(
            stage=i,
            ranks=gpus // 2,
            layers=20,
            parameters=6_000_000_000,
            in_flight_microbatches=Fraction(2 - i),
            moment="backward",
            components=components,
            capacity_bytes=question.cluster.capacity_bytes,
            rule_of_thumb_bytes=50 * GIB,
        )
        for i in range(2)
    )
    seconds = SERIAL_SECONDS + WORK_SECONDS / gpus
    step = StepTime(
        step_ns=round(seconds * 1e9),
        components={"compute": seconds},
        tokens_per_step=question.workload.tokens_per_step,
        gpus=gpus,
        model_flops=10**17,
        hardware_flops=10**17,
        peak_flops_per_gpu=300e12,
        bubble_fraction=0.1,
        lower_bound_seconds=seconds / 2,
        relative_error=0.1,
    )
    return Plan(layout, MemoryReport("exact", question.cluster.capacity_bytes, stages, ("toy states",)), step)


class ToySolver:
    """An executor that answers at once: a layout fits from `least` GPUs of at least `memory` GiB on, with sequences up
    to `longest` tokens and micro-batches up to 4. `fails` names GPUs at which the scenario itself fails."""

    def __init__(self, least: int = 24, longest: int = 10_000, memory: int = 60, fails: Sequence[int] = ()):
        self.least, self.longest, self.memory, self.fails = least, longest, memory, fails
        self.asked: list[str] = []

    def run(self, scenarios: Sequence[Scenario], done: Callable[[], object] = lambda: None) -> list[Outcome]:
        outcomes = []
        for scenario in scenarios:
            self.asked.append(scenario.key)
            outcomes.append(self.answer(scenario))
            done()
        return outcomes

    def answer(self, scenario: Scenario) -> Outcome:
        question, pins = scenario.question, scenario.pins
        gpus = question.cluster.gpus
        if gpus in self.fails:
            return Outcome(scenario.key, None, error="the machine caught fire.")
        micro_batch = pins.micro_batch[0] if pins.micro_batch else 1
        fits = gpus >= self.least and question.cluster.capacity_bytes >= self.memory * GIB
        if not fits or question.workload.seq_length > self.longest or micro_batch > 4:
            fact = ("optimizer", "each GPU holds 99 GiB of optimizer states")
            return Outcome(scenario.key, Status.INFEASIBLE, candidates=7, facts=(fact,))
        plan = toy_plan(question, micro_batch)
        return Outcome(scenario.key, Status.OPTIMAL, plan, plan.step.seconds, 7)

    def __enter__(self) -> ToySolver:
        return self

    def __exit__(self, *_: object) -> None:
        return None


@pytest.fixture
def make_review() -> Callable[..., Review]:
    """A review by the toy solver; 2**32 tokens are 1024 steps."""

    def make(solver: ToySolver | None = None, cards: Sequence[str] = ("A100-80G",), **asked: Any) -> Review:
        terms = asked.pop("terms", Terms(tokens=2**32, goodput=1.0))
        models = asked.pop("models", (toy_model(),))
        question = Asked(models, tuple(load_card(card) for card in cards), terms, toy_ask, **asked)
        return review(question, solver or ToySolver())

    return make
