"""``modelreg status``: whether a registry answers, and what it says of itself."""

from __future__ import annotations

import click

from modelreg.cli.remote import Session, connecting

# As the registry calls it: a line for each, with tabs, and perhaps one that says how many more there are.
DAMAGED_VERSIONS = "damaged_versions"


@click.command("status")
@connecting
def status_command(session: Session) -> None:
    """Show the registry's version, how much it holds, and the load of its machine."""
    session.output.needed()
    versions = session.registry.versions()
    statuses = session.registry.status("*")
    damaged = statuses.pop(DAMAGED_VERSIONS, "").splitlines()
    session.output.report(
        {
            "software": dict(sorted(versions.items())),
            "status": {name: _number(statuses[name]) for name in sorted(statuses)},
            DAMAGED_VERSIONS: [_damaged(line) for line in damaged if "\t" in line],
        },
        DAMAGED_VERSIONS,
        ("model", "version", "sha256"),
    )
    if damaged:
        more = "".join(f" {line}" for line in damaged if "\t" not in line)
        session.output.note(f"damaged versions are listed{more}: storing the same content again heals them")


def _damaged(line: str) -> dict[str, object]:
    model, number, sha256 = line.split("\t")
    return {"model": model, "version": int(number), "sha256": sha256}


def _number(text: str) -> int | str:
    return int(text) if text.isascii() and text.isdigit() and len(text) < 20 else text
