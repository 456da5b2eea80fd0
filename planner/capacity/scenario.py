"""One question for the solver, and what came of it. Both can be sent to another process or machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from planner.errors import PlannerError
from planner.solver.result import Plan, SearchResult, Status
from planner.solver.space import FREE, Pins

if TYPE_CHECKING:
    from planner.question import Question


@dataclass(frozen=True, slots=True)
class Scenario:
    """A model, a workload and hardware to be searched. `key` names it for people and is unique in a review."""

    key: str
    question: Question
    pins: Pins = FREE
    time_limit_seconds: float | None = 60.0
    explain: bool = False
    """Whether an infeasibility is to be explained, which can take longer than its proof."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What the solver said: a plan with its status, a proof that there is none, or why it could not be asked."""

    key: str
    status: Status | None
    """None: the scenario failed, and `error` says why."""
    plan: Plan | None = None
    lower_bound_seconds: float | None = None
    candidates: int = 0
    """Legal choices of degrees; 0 when the rules leave none."""
    facts: tuple[tuple[str, str], ...] = ()
    """Id and sentence of each fact of an infeasibility: a minimal set of what does not fit."""
    error: str | None = None
    solve_seconds: float = 0.0

    @property
    def fits(self) -> bool:
        return self.plan is not None

    @property
    def refuted(self) -> bool:
        """Proven that nothing fits; neither the time limit nor a failure proves that."""
        return self.status is Status.INFEASIBLE

    @property
    def word(self) -> str:
        """`optimal`, `feasible`, `infeasible`, `unknown` or `failed`."""
        return str(self.status) if self.status is not None else "failed"


def solve(scenario: Scenario) -> Outcome:
    """The best plan of a scenario, or why there is none. Never raises: a failure is an outcome too.

    `planner.solver.search.search` would also solve remedies of an infeasibility; a review judges the neighbouring
    counts anyway, so only the facts are asked for.
    """
    from planner.question import accounting_of
    from planner.solver.explain import REMOVAL, TimeUp, facts, fits_with
    from planner.solver.search import Search
    from planner.timing.step import Timing

    question = scenario.question
    asked = (question.model, question.workload, question.implementation, question.cluster)
    try:
        accounting = accounting_of(question)
        limit = scenario.time_limit_seconds
        search = Search(*asked, accounting, Timing(*asked), scenario.pins, top=1, time_limit_seconds=limit)
        space, until = search.space, search.deadline
        try:
            something = fits_with(space, search.accounting, search.timing, frozenset(REMOVAL), until)
        except TimeUp:
            something = True  # as far as is known
        if not something:
            # Not even the leanest variant of any choice of degrees fits: proved without looking at all of them.
            result = SearchResult(Status.INFEASIBLE, (), "step_seconds", None, None)
            result.statistics["candidates"] = sum(1 for _ in search.space.groups())
        else:
            result = search.run()
        told = scenario.explain and result.status is Status.INFEASIBLE
        reasons = facts(space, search.accounting, search.timing, until) if told else ()
    except PlannerError as error:
        return failed(scenario, str(error))
    except Exception as error:
        return failed(scenario, f"this is a bug in plan ({type(error).__name__}: {error}).")
    return Outcome(
        scenario.key,
        result.status,
        result.plans[0] if result.plans else None,
        result.lower_bound,
        int(result.statistics.get("candidates", 0)),
        tuple((fact.id, fact.sentence) for fact in reasons),
        solve_seconds=float(result.statistics.get("solve_seconds", 0.0)),
    )


def failed(scenario: Scenario, sentence: str) -> Outcome:
    """The outcome of a scenario that could not be judged."""
    return Outcome(scenario.key, None, error=sentence)
