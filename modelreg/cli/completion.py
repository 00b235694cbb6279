"""``modelreg completion``: makes a shell complete commands, flags and the names of models."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command("completion")
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion_command(context: click.Context, shell: str) -> None:
    """Print what a SHELL (bash, zsh or fish) needs to complete commands, flags and models.

    For bash, put this into ~/.bashrc: eval "$(modelreg completion bash)"
    """
    root = context.find_root()
    kind = get_completion_class(shell)
    assert kind is not None, "click knows these shells"
    click.echo(kind(root.command, {}, "modelreg", "_MODELREG_COMPLETE").source())
