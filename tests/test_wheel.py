"""The wheel is the whole program: specs and catalogue travel with it, from whatever folder it is run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.mark.slow
def test_the_wheel_works_from_another_folder(tmp_path: Path) -> None:
    """Built, installed in a fresh environment and run elsewhere: cards, models, a search and a memory report."""
    wheels, environment, elsewhere = tmp_path / "wheels", tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", wheels, ROOT], check=True
    )
    (wheel,) = wheels.glob("*.whl")
    subprocess.run([sys.executable, "-m", "venv", environment], check=True)
    subprocess.run([environment / "bin/python", "-m", "pip", "install", "--quiet", wheel], check=True)

    def plan(*arguments: str) -> dict:
        done = subprocess.run(
            [environment / "bin/plan", *arguments, "--json"], cwd=elsewhere, capture_output=True, text=True, check=True
        )
        answer: dict = json.loads(done.stdout)
        return answer

    assert len(plan("gpus")["cards"]) >= 30
    assert len(plan("models")["models"]) >= 60
    assert plan("memory", "--model", "13b", "--gpus", "8xA100-80G")["inputs"]["model"]["parameters"] == 13_015_864_320
    assert plan("--model", "7b", "--gpus", "8xA100-80G", "--tp", "1", "--pp", "1")["status"] == "optimal"
    assert plan("validate")["step"]["rows"]


def test_a_checkout_runs_without_being_installed(tmp_path: Path) -> None:
    """`python cli.py` finds the specs beside it, whatever folder it is called from."""
    command = [sys.executable, ROOT / "cli.py", "gpus", "A100-80G", "--json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["cards"][0]["name"] == "A100-80G"
