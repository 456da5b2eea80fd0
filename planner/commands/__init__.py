"""The command line: parse, call, render; no arithmetic. One file a command."""

from planner.commands.run import main, run

__all__ = ["main", "run"]
