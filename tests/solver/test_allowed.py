"""Settings that `--allow` adds, each searched by itself."""

from __future__ import annotations

from planner.catalog import load_model
from planner.hardware import parse_gpus
from planner.implementation import Implementation
from planner.solver.allowed import settings, try_all
from planner.solver.candidates import Pins
from planner.solver.result import SearchResult, Status
from planner.workload import Workload


def tried(status: Status, seen: int):
    """The plain setting, and ZB-H1 whose search ended so with so many candidates seen."""
    found = settings(Workload(4096, 64), Implementation(), Pins(tp=(3,)), ("zb-h1",))
    result = SearchResult(status, (), "step_seconds", None, None, statistics={"candidates": seen})
    return try_all(load_model("llama-2-7b"), found, parse_gpus("8xA100-80G"), lambda setting: result)


def test_a_search_that_was_stopped_refuses_nothing():
    """Time that ran out before a candidate was met says nothing of the rules; a search that ended without one does."""
    plain, stopped = tried(Status.UNKNOWN, 0)
    assert not plain.refused and not stopped.refused and stopped.result.status is Status.UNKNOWN
    plain, ended = tried(Status.INFEASIBLE, 0)
    assert not plain.refused and ended.refused
    assert not tried(Status.INFEASIBLE, 3)[1].refused
