"""Exit codes, one name each. The table in the documentation is made from here."""

from __future__ import annotations

from enum import IntEnum


class Exit(IntEnum):
    """What the process says to the script that called it."""

    OK = 0
    BUG = 1
    USAGE = 2
    INFEASIBLE = 3
    UNKNOWN = 4
    CHECK_FAILED = 5
    INTERRUPTED = 130


MEANING = {
    Exit.OK: "a plan was found, a check passed, a report was printed",
    Exit.BUG: "a bug in `plan` itself",
    Exit.USAGE: "usage or invalid input; one sentence says what is required, what was given, the nearest valid value",
    Exit.INFEASIBLE: "proven infeasible: no layout fits, and the report says why",
    Exit.UNKNOWN: "unknown: the time limit came before a plan or a proof",
    Exit.CHECK_FAILED: "`plan check`: a launch breaks a rule or does not fit (2 when a file could not be judged)",
    Exit.INTERRUPTED: "interrupted with Ctrl-C",
}
