"""From a file that someone means to launch to the answer about it. A file that cannot be judged is an answer too."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from planner.commands.placed import placed
from planner.errors import InputError, NotModelled, PlannerError
from planner.question import Question, accounting_of, check_reserve, routed_imbalance
from planner.reports.check_report import Broken, Checked

if TYPE_CHECKING:
    from planner.cluster import Card, Cluster
    from planner.interop.deepspeed import DeepSpeedLaunch
    from planner.interop.megatron.launch import MegatronLaunch
    from planner.layout import Layout
    from planner.memory.report import MemoryReport
    from planner.timing.report import StepTime
    from planner.variations import Variations

    Launch = MegatronLaunch | DeepSpeedLaunch
    Priced = tuple[MemoryReport, StepTime | None, Variations | None, tuple[str, ...]]


class Judge:
    """Judges files one by one, against the GPUs and the accounting in the options of `plan check`."""

    def __init__(self, options: dict[str, Any]):
        self._options = options
        self._given: Cluster | None = options["gpus"] or options["cluster"]

    def answer(self, file: str, detail: bool = False) -> Checked:
        """The answer about one file; never raises for what is wrong with the file."""
        try:
            return self._answer(file, detail)
        except PlannerError as error:
            text = str(error)
            return Checked(file, error=text if text.startswith(file) else f"{file}: {text}")

    def _answer(self, file: str, detail: bool) -> Checked:
        launch = self._read(file)
        cluster = self._given or _cluster_of(self._options["gpu"], _world(launch, file), launch.gpus_per_node)
        question = self._question(launch, cluster)
        broken = _broken(question, launch)
        layout, order = placed(question, launch.layout, self._options.get("placement"))
        around: Variations | None = None
        memory, step, notes = None, None, (*launch.notes, *launch.not_accounted, *([order] if order else []))
        try:
            memory, step, around, reasons = _price(question, layout, detail)
            notes += reasons
        except (PlannerError, ArithmeticError, ValueError, IndexError, AssertionError):
            if not broken:
                raise
            # A layout that breaks a rule need not have a memory: heads that do not divide have no size.
        return Checked(
            file, "", question, layout, tuple(broken), tuple(launch.unrecognised), notes, memory, step, around
        )

    def _read(self, file: str) -> Launch:
        world = self._given.gpus if self._given else None
        if Path(file).suffix.lower() == ".json":
            from planner.interop.deepspeed import read_deepspeed

            model, pp = self._options["model"], self._options["pp"]
            if model is None:
                raise InputError(f"{file}: a DeepSpeed JSON does not say the model, so --model is required.")
            if world is None:
                raise InputError(f"{file}: a DeepSpeed JSON does not say the number of GPUs, so --gpus is required.")
            return read_deepspeed(file, model, world, self._options["seq_length"], pp[0] if pp else 1)
        from planner.interop.megatron.launch import read_megatron

        tokens = self._options.get("vocab_size")
        launch = read_megatron(file, world, tokens, self._options["preset"])
        if tokens in (None, launch.model.vocab_size):
            return launch
        own = f"--vocab-size {tokens} is not taken: the launch says a vocabulary of {launch.model.vocab_size} itself"
        return replace(launch, notes=(*launch.notes, own))

    def _question(self, launch: Launch, cluster: Cluster) -> Question:
        accounting, reserve = self._options["accounting"], self._options["reserve"]
        if reserve is None:
            reserve = cluster.reserve_bytes if accounting == "exact" else 0
        check_reserve(reserve, cluster)
        implementation, imbalance = launch.implementation, self._options.get("moe_imbalance")
        if imbalance is not None:  # no argument of the launch says how uneven the routing will be
            implementation = replace(implementation, moe_imbalance=routed_imbalance(imbalance, launch.model))
        return Question(launch.model, cluster, launch.workload, implementation, accounting, reserve, defaults=())


def _world(launch: Launch, file: str) -> int:
    if launch.world_size is None:
        raise InputError(
            f"{file}: the launch does not say on how many GPUs it runs (torchrun options, WORLD_SIZE, or NNODES and "
            "GPUS_PER_NODE), so --gpus such as 16xH100-80G is required."
        )
    return launch.world_size


@cache
def _cluster_of(card: Card, gpus: int, per_node: int | None) -> Cluster:
    """The nodes that the launch starts on, else the card's usual ones; one node need not be filled."""
    from planner.hardware import parse_gpus

    if per_node is None or per_node == gpus <= card.gpus_per_node:
        return parse_gpus(f"{gpus}x{card.name}")
    return parse_gpus(f"{gpus // per_node}x{per_node}x{card.name}")


def _broken(question: Question, launch: Launch) -> list[Broken]:
    """What reading the launch found, then what the book of rules says; each rule once."""
    from planner.rules import broken_rules

    found = [Broken(p.id, p.sentence, p.source, p.given) for p in launch.problems]
    rules = broken_rules(
        question.model,
        question.workload,
        question.implementation,
        launch.layout,
        question.cluster.gpus,
        question.cluster,
    )
    known = {broken.id for broken in found}
    return found + [Broken(r.id, r.sentence, r.source, r.given, r.nearest) for r in rules if r.id not in known]


def _price(question: Question, layout: Layout, detail: bool) -> Priced:
    """Memory, the step's time or the reason why there is none, and in detail what other settings would do."""
    from planner.timing.step import Timing
    from planner.variations import variations

    asked = (question.model, question.workload, question.implementation, question.cluster)
    accounting = accounting_of(question)
    memory = accounting.report(layout, detail=detail)
    around = variations(question, accounting, layout) if detail else None
    try:
        return memory, Timing(*asked).step(layout), around, ()
    except NotModelled as reason:
        return memory, None, around, (f"no step time: {reason}",)
