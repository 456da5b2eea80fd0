"""A rule that reading a launch finds broken before a layout exists on which `planner.rules` could find it."""

from __future__ import annotations

from typing import NamedTuple


class Problem(NamedTuple):
    """One broken rule, in the fields that `plan check` prints."""

    id: str
    sentence: str
    source: str
    given: str
