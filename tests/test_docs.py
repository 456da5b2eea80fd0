"""The documentation says what the program does: outputs are the program's own, and nothing is left out.

`pytest tests/test_docs.py --regenerate` writes the generated parts anew.
"""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from planner.commands.exits import MEANING, Exit
from planner.commands.group import plan
from planner.interop.megatron.conflicts import CONFLICTS
from planner.rules import RULES

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"```console\n\$ (?P<command>plan [^\n]*)\n(?P<output>.*?)```", re.DOTALL)


def run(arguments: list[str]) -> tuple[int, str]:
    """Exit code and standard output of a command line, at the width of a pipe."""
    import contextlib
    import io

    from planner.commands import run as run_plan

    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        code = run_plan(arguments)
    return code, out.getvalue()


def commands() -> dict[str, click.Command]:
    """Every command by its name, in the order of `plan --help`."""
    context = click.Context(plan)
    return {name: command for name in plan.list_commands(context) if (command := plan.get_command(context, name))}


def help_of(*command: str) -> str:
    """The help as a user sees it, through the group, whose settings (-h) the commands inherit."""
    result = CliRunner().invoke(plan, [*command, "--help"], prog_name="plan", terminal_width=100)
    assert result.exit_code == 0
    return result.output


def cli_reference() -> str:
    """docs/cli.md."""
    parts = ["# Command line reference", "", "Generated from `--help` (`pytest tests/test_docs.py --regenerate`).", ""]
    parts += ["## Exit codes", "", "| code | name | meaning |", "|--:|:--|:--|"]
    parts += [f"| {int(code)} | {code.name} | {MEANING[code]} |" for code in Exit]
    parts += ["", "## plan", "", "```text", help_of().rstrip(), "```"]
    for name in commands():
        parts += ["", f"## plan {name}", "", "```text", help_of(name).rstrip(), "```"]
    return "\n".join(parts) + "\n"


def rules_reference() -> str:
    """docs/rules.md."""
    parts = ["# Validity rules", "", "Generated from `planner.rules` (`pytest tests/test_docs.py --regenerate`).", ""]
    parts += ["| rule | what every layout must keep | enforced by |", "|:--|:--|:--|"]
    parts += [f"| `{rule.id}` | {rule.sentence} | {rule.source} |".replace("_", "\\_") for rule in RULES]
    parts += ["", "## Arguments that Megatron-LM refuses together", ""]
    parts += ["Of a launch script (`plan check`), where only its words can tell.", ""]
    parts += ["| rule | what every launch must keep | enforced by |", "|:--|:--|:--|"]
    parts += [f"| `{c.id}` | {c.sentence} | {c.source} |".replace("_", "\\_") for c in CONFLICTS]
    return "\n".join(parts) + "\n"


@pytest.mark.parametrize("name", ["cli", "rules"])
def test_generated_pages_are_up_to_date(name: str, regenerate: bool) -> None:
    """Each command with its help, each exit code, and each rule stands in the documentation as the program has it."""
    page = ROOT / "docs" / f"{name}.md"
    text = {"cli": cli_reference, "rules": rules_reference}[name]()
    if regenerate:
        page.write_text(text, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == text


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pasted_outputs_are_real(page: Path, regenerate: bool) -> None:
    """Every console block shows exactly what its command prints today."""
    text = page.read_text(encoding="utf-8")

    def fresh(block: re.Match[str]) -> str:
        code, output = run(block["command"].split()[1:])
        assert code in (Exit.OK, Exit.INFEASIBLE), block["command"]
        return f"```console\n$ {block['command']}\n{output}```"

    renewed = BLOCK.sub(fresh, text)
    if regenerate:
        page.write_text(renewed, encoding="utf-8")
    assert page.read_text(encoding="utf-8") == renewed


def test_the_readme_shows_the_main_job() -> None:
    """A README without a real output would make the test above pass on nothing."""
    commands = [block["command"] for block in BLOCK.finditer((ROOT / "README.md").read_text(encoding="utf-8"))]
    assert "plan --model 13b --gpus 8xA100-80G" in commands
    assert any(command.startswith("plan memory") for command in commands)


def test_every_option_has_a_help_text() -> None:
    """An option without a sentence is not documented by the generated page."""
    for name, command in commands().items():
        assert command.help, name
        for option in command.params:
            if isinstance(option, click.Option):
                assert option.help, f"plan {name} {option.opts[0]}"


OWN_WORDS = (
    {("memory", "tp"), ("search", "tp"), ("check", "model"), ("check", "seq_length"), ("check", "pp")}
    | {("calibrate", name) for name in ("model", "format", "output")}
    | {("capacity", name) for name in ("models", "cards", "time_limit")}
)
"""Options whose help says something that holds for one command: what leaving them out means, or whom they are for."""


def test_one_name_has_one_meaning() -> None:
    """An option that two commands share is described alike in both."""
    seen: dict[str, str] = {}
    for name, command in commands().items():
        for option in command.params:
            if isinstance(option, click.Option) and (name, option.name) not in OWN_WORDS:
                text = option.help or ""
                assert seen.setdefault(option.opts[0], text) == text, f"plan {name} {option.opts[0]}"


def test_links_between_pages_lead_somewhere() -> None:
    """A relative link names a file of the repository."""
    for page in PAGES:
        for target in re.findall(r"\]\((?!https?://|#)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_second_command_is_what_ci_runs() -> None:
    """The README's test command is the last thing that .ci/run does."""
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    commands = re.findall(r"^(?:python3\.11|\.venv/bin/)\S* .*$", readme, re.MULTILINE)
    assert len(commands) == 2
    second = commands[1].removeprefix(".venv/bin/")
    last = (ROOT / ".ci/run").read_text(encoding="utf-8").strip().splitlines()[-1]
    assert last == f'"$environment/bin/python" {second.removeprefix("python ")}'
