"""``modelreg status``: whether a registry answers, and what it says of itself."""

from __future__ import annotations

import click

from modelreg.cli.remote import Session, connecting


@click.command("status")
@connecting
def status_command(session: Session) -> None:
    """Show what the registry says of itself: its version, how much it holds, and its load."""
    versions = session.registry.versions()
    statuses = session.registry.status("*")
    session.output.record(
        {
            "software": dict(sorted(versions.items())),
            "status": {name: _number(statuses[name]) for name in sorted(statuses)},
        }
    )


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text
