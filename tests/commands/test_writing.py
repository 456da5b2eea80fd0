"""Where answers go: stdout, or a file that is complete or absent."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml

from planner.atomic import write_atomically

MEMORY = ("memory", "--model", "13b", "--gpus", "8xA100-80G", "--tp", "2")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.json", "{"),
        ("a.yaml", "version: 1"),
        ("a.csv", "stage,"),
        ("a.md", "# Memory"),
        ("a.html", "<!doctype html>"),
        ("a.txt", "Memory of"),
    ],
)
def test_the_extension_says_the_format(plan, tmp_path: Path, name: str, start: str) -> None:
    """-o alone is enough; stdout stays empty and stderr says what was written."""
    answer = plan(*MEMORY, "-o", tmp_path / name)
    assert answer.code == 0 and answer.out == ""
    assert f"Wrote {tmp_path / name}" in answer.err
    assert (tmp_path / name).read_text(encoding="utf-8").startswith(start)


def test_format_goes_before_the_extension(plan, tmp_path: Path) -> None:
    """What is said outright is what is meant."""
    plan(*MEMORY, "--format", "yaml", "-o", tmp_path / "a.json")
    assert yaml.safe_load((tmp_path / "a.json").read_text())["version"] == 1


def test_json_is_short_for_the_format(plan) -> None:
    """--json and --format json print the same bytes."""
    assert plan(*MEMORY, "--json").out == plan(*MEMORY, "--format", "json").out


def test_an_unknown_extension_is_asked_about_before_the_work(plan, tmp_path: Path, monkeypatch) -> None:
    """The search does not start for an answer that cannot be written."""
    import planner.solver.search

    monkeypatch.setattr(planner.solver.search, "search", lambda *a, **k: pytest.fail("searched"))
    for path in (tmp_path / "a.pdf", tmp_path / "absent" / "a.json", tmp_path):
        answer = plan("--model", "13b", "--gpus", "8xA100-80G", "-o", path)
        assert answer.code == 2 and str(path) in answer.err


def test_a_failed_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader sees the old answer or the new one, never half of one, and no litter stays behind."""
    path = tmp_path / "a.json"
    path.write_text("old")

    def full(*arguments: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError):
        write_atomically(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_written_file_keeps_its_mode_and_its_link(tmp_path: Path) -> None:
    """Replacing a file neither hides it from its readers nor turns a link into a copy."""
    target, link = tmp_path / "target.json", tmp_path / "link.json"
    target.write_text("old")
    target.chmod(0o640)
    link.symlink_to(target)
    write_atomically(link, "new")
    assert link.is_symlink() and target.read_text() == "new"
    assert target.stat().st_mode & 0o777 == 0o640


def test_a_device_is_written_to_and_not_replaced(plan) -> None:
    """-o /dev/stdout and -o - are standard output."""
    assert plan(*MEMORY, "-o", "/dev/null", "--json").code == 0
    assert not Path("/dev/null").is_file()
    assert json.loads(plan(*MEMORY, "-o", "-", "--json").out)["version"] == 1
