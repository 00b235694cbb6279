"""``modelreg`` and its subcommands. The options of ``serve`` are those of `modelreg.settings.OPTIONS`."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from functools import partial
from typing import Any

import click
import trio

from modelreg import __version__
from modelreg.cli.completion import completion_command
from modelreg.cli.gc import gc_command
from modelreg.cli.import_archive import import_command
from modelreg.cli.models import models_command, rm_command, set_command, show_command, versions_command
from modelreg.cli.outcome import Invocation, OutputGone, Run, reported, writing_output
from modelreg.cli.status import status_command
from modelreg.cli.transfers import pull_command, push_command
from modelreg.cli.verify import verify_command
from modelreg.cli.watch import watch_command
from modelreg.settings import OPTIONS, Option, Settings


def run_command(args: Sequence[str], run: Run | None = None) -> int:
    """Run the command with *args*, and return its exit code. *run* is what ``serve`` runs in place of the server."""
    with reported() as outcome:
        # Not standalone: click would print usage, a hint and the error, where one line says it.
        modelreg.main(args, prog_name="modelreg", standalone_mode=False, obj=Invocation(run or _run_server, outcome))
    return outcome.exit_code


class _Group(click.Group):
    """The commands, in the order in which they were added, so that what belongs together stays together."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.commands)

    def make_context(self, *args: Any, **extra: Any) -> click.Context:
        with writing_output():  # --help and --version
            return super().make_context(*args, **extra)

    def invoke(self, ctx: click.Context) -> object:
        try:
            result: object = super().invoke(ctx)
        except BrokenPipeError as error:
            raise OutputGone from error
        with writing_output():
            sys.stdout.flush()
        return result


@click.group(cls=_Group, invoke_without_command=True, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, message="%(prog)s %(version)s")
@click.pass_context
def modelreg(context: click.Context) -> None:
    """Serve AI models to those who train and use them: publish, fetch and follow their versions."""
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def _serve(invocation: Invocation, /, **flags: str | None) -> None:
    settings = Settings.read({name: text for name, text in flags.items() if text is not None}, os.environ)
    invocation.outcome.serving = True
    invocation.outcome.with_traceback = settings.log_level in ("debug", "trace")
    # An interrupt that comes before the server listens for it is raised where nothing is left half done.
    trio.run(invocation.run, settings, restrict_keyboard_interrupt_to_checkpoints=True)


async def _run_server(settings: Settings) -> None:
    from modelreg import server  # what --help doesn't need takes most of the time that importing takes

    await server.run(settings)


class _Serve(click.Command):
    """``serve``, with help in which the names of variables can be read and copied: click's columns break them in two."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Options"):
            for option in OPTIONS:
                formatter.write(f"  {', '.join(option.flags)} {option.metavar}\n")
                formatter.indent()
                formatter.indent()
                formatter.write_text(option.meaning)
                formatter.write_text(f"Default: {option.default_text}")
                formatter.write(f"{'':{formatter.current_indent}}{option.env}\n\n")
                formatter.dedent()
                formatter.dedent()


def _parameter(option: Option) -> click.Option:
    """The flag of *option*. It passes on the text it is given: Settings.read converts it, like that of a variable."""
    make = partial(click.Option, is_flag=False, flag_value="1") if option.switch else click.Option
    return make([*option.flags, option.name])


modelreg.add_command(
    _Serve(
        "serve",
        params=[_parameter(option) for option in OPTIONS],
        callback=click.pass_obj(_serve),
        help="Start the registry. Each option can also be given as the environment variable named below it.",
    )
)
for _command in (
    models_command,
    versions_command,
    show_command,
    push_command,
    pull_command,
    watch_command,
    set_command,
    rm_command,
    status_command,
    import_command,
    verify_command,
    gc_command,
    completion_command,
):
    modelreg.add_command(_command)
