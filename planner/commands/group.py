"""The command `plan`, its subcommands, and the default one."""

from __future__ import annotations

from importlib import import_module

import click

from planner import __version__
from planner.errors import nearest

COMMANDS = ("calibrate", "capacity", "check", "compare", "gpus", "memory", "models", "rules", "search", "validate")
"""Each is the function of its name in the module of its name, imported when it is called for."""

EXAMPLES = """\b
Examples:
  plan --model 13b --gpus 8xA100-80G                the fastest layout that fits, with a proof
  plan --model 70b --gpus 16x8xH100 --tp 4,8 --json restrict a degree, answer for a program
  plan memory --model 13b --gpus 8xA100 --pp 4      memory of one layout, no search
  plan check pretrain.sh --gpus 16xH100             judge an existing launch
"""


class DefaultCommand(click.Group):
    """A group that runs `search` when the first word is an option rather than a command.

    Only --help and --version belong to the group: an option of its own would be dropped silently in front of a command.
    """

    default = "search"

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(import_module(f"planner.commands.{cmd_name}"), cmd_name)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if name not in COMMANDS and not name.startswith("-"):
            close = nearest(name, COMMANDS, 1)
            ctx.fail(f"no such command '{name}'." + (f" Did you mean '{close[0]}'?" if close else ""))
        return super().resolve_command(ctx, args)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        own = {name for parameter in self.get_params(ctx) for name in parameter.opts}
        if args and args[0].startswith("-") and args[0].split("=")[0] not in own:
            args = [self.default, *args]
        return super().parse_args(ctx, args)


@click.group(
    cls=DefaultCommand,
    context_settings={"max_content_width": 100, "help_option_names": ["-h", "--help"]},
    epilog="Without a command, `plan` searches: `plan search --help` shows its options.",
)
@click.version_option(__version__, prog_name="plan")
def plan() -> None:
    """How to lay a transformer out over GPUs: what fits, what is fastest, and how we know."""


plan.help = f"{plan.help}\n\n{EXAMPLES}"
