"""Where scenarios run: this process, all cores of this machine, or a Dask cluster. Results keep the order of the
scenarios, so that an answer never depends on who was faster."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from types import TracebackType
from typing import TYPE_CHECKING, Any, Protocol

from planner.capacity.scenario import Outcome, Scenario, failed, solve
from planner.errors import InputError

if TYPE_CHECKING:
    from typing import Self

Solve = Callable[[Scenario], Outcome]
Done = Callable[[], object]
"""Called in the parent once for each scenario that is finished."""

DIED = "the process that solved it died, as it does when memory runs out."


class Executor(Protocol):
    """Runs scenarios; a context manager that frees its workers."""

    def run(self, scenarios: Sequence[Scenario], done: Done = ...) -> list[Outcome]: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Cores:
    """Processes of this machine, one a core. With one worker, or for a lone scenario before there is a pool, the work
    is done in this process: starting another costs more than it saves."""

    def __init__(self, workers: int | None = None, solve: Solve = solve):
        self.workers = workers or os.cpu_count() or 1
        self._solve = solve
        self._pool: ProcessPoolExecutor | None = None

    def run(self, scenarios: Sequence[Scenario], done: Done = lambda: None) -> list[Outcome]:
        """The outcomes, in the scenarios' order. A worker that dies costs its own scenario only."""
        if self.workers == 1 or (len(scenarios) < 2 and self._pool is None):
            return list(_counted(map(self._solve, scenarios), done))
        futures = [self._started().submit(self._solve, scenario) for scenario in scenarios]
        for future in futures:
            future.add_done_callback(lambda _: done())
        return [self._result(future, scenario) for future, scenario in zip(futures, scenarios, strict=True)]

    def _result(self, future: Future[Outcome], scenario: Scenario) -> Outcome:
        try:
            return future.result()
        except BrokenExecutor:
            # A dead worker takes the whole pool with it: those that were waiting are innocent and get another try,
            # alone, so that the guilty one is known.
            self._close()
            return self._alone(scenario)

    def _alone(self, scenario: Scenario) -> Outcome:
        with ProcessPoolExecutor(1, mp_context=_context()) as pool:
            try:
                return pool.submit(self._solve, scenario).result()
            except BrokenExecutor:
                return failed(scenario, DIED)

    def _started(self) -> ProcessPoolExecutor:
        if self._pool is None:
            self._pool = ProcessPoolExecutor(self.workers, mp_context=_context())
        return self._pool

    def _close(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(wait=True, cancel_futures=True)
            self._pool = None

    def __enter__(self) -> Cores:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._close()


class Dask:
    """The workers of an existing Dask cluster, named by its scheduler's address (`tcp://host:8786`)."""

    def __init__(self, address: str, solve: Solve = solve, timeout_seconds: float = 10.0):
        try:
            from distributed import Client
        except ImportError:
            raise InputError("--scheduler needs Dask: pip install 'planner[dask]'.") from None
        try:
            self._client: Any = Client(address, timeout=timeout_seconds, set_as_default=False)
        except (OSError, ValueError, TimeoutError) as error:
            reason = str(error).strip().rstrip(".").splitlines()[0] if str(error).strip() else type(error).__name__
            raise InputError(f"--scheduler '{address}' cannot be reached: {reason}.") from None
        self._solve = solve

    def run(self, scenarios: Sequence[Scenario], done: Done = lambda: None) -> list[Outcome]:
        """The outcomes, in the scenarios' order; what a worker raises is that scenario's failure."""
        futures = self._client.map(self._solve, scenarios, pure=False, retries=1)
        for future in futures:
            future.add_done_callback(lambda _: done())
        return [self._result(future, scenario) for future, scenario in zip(futures, scenarios, strict=True)]

    @staticmethod
    def _result(future: Any, scenario: Scenario) -> Outcome:
        try:
            outcome: Outcome = future.result()
            return outcome
        except Exception as error:  # whatever a remote worker raises, its killing included
            text = str(error).strip().splitlines()
            return failed(scenario, f"the Dask worker failed ({type(error).__name__}{': ' + text[0] if text else ''}).")

    def __enter__(self) -> Dask:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._client.close()


def _context() -> Any:
    """Fresh interpreters: forking a process whose solver has threads can lock up."""
    from multiprocessing import get_context

    return get_context("spawn")


def _counted(outcomes: Iterable[Outcome], done: Done) -> Iterable[Outcome]:
    for outcome in outcomes:
        done()
        yield outcome
