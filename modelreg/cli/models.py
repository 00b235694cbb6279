"""``modelreg models``, ``versions``, ``show``, ``set`` and ``rm``: what there is, and what is known of it."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

import click

from modelreg.cli.arguments import Versioned, property_pair, version_number
from modelreg.cli.output import size_text
from modelreg.cli.remote import (
    VERSION_COLUMNS,
    Session,
    complete_model,
    connecting,
    model_argument,
    model_document,
    version_document,
)

if TYPE_CHECKING:
    from modelreg.client.infos import ModelInfo


@click.command("models")
@connecting
def models_command(session: Session) -> None:
    """List the models."""
    documents = [model_document(info) for info in session.registry.list_models()]
    session.output.table(documents, ("model", "properties"))


@click.command("versions")
@model_argument
@connecting
def versions_command(session: Session, model: str) -> None:
    """List the versions of MODEL that are available."""
    documents = [version_document(info) for info in session.registry.list_iterations(model)]
    session.output.table(documents, VERSION_COLUMNS)


@click.command("show", cls=Versioned)
@model_argument
@click.argument("version", type=version_number, required=False)
@connecting
def show_command(session: Session, model: str, version: int | None) -> None:
    """Show what is known of MODEL, or of one VERSION of it.

    VERSION is 'latest', a number, or counted from the newest: -1 is the newest, -2 the one before.
    """
    registry = session.registry
    if version is not None:
        from modelreg.client.errors import NotFound  # what --help doesn't need

        found = registry.get_iteration_info(model, version)
        if found is None:
            raise NotFound(f"model {model!r} has no version" + (f" {version}" if version != -1 else ""))
        session.output.record(version_document(found))
        return
    info = _existing(session, model)
    versions = registry.list_iterations(model)
    session.output.record(
        {
            **model_document(info),
            "versions": len(versions),
            "stored_versions": sum(version.stored for version in versions),
            "latest": version_document(versions[-1]) if versions else None,
        }
    )


@click.command("set")
@model_argument
@click.argument("pairs", metavar="[NAME=VALUE]...", nargs=-1, type=property_pair)
@click.option("--unset", metavar="NAME", multiple=True, help="Take this property away; may be given several times.")
@click.option("--clear", is_flag=True, help="Take away all others.")
@connecting
def set_command(
    session: Session, model: str, pairs: tuple[tuple[str, str], ...], unset: tuple[str, ...], clear: bool
) -> None:
    """Set properties of MODEL, and leave its others as they are. A model that isn't there is created."""
    info = session.registry.get_model_info(model)
    if info is None:
        session.output.note(f"model {model} is new")
    kept = {} if info is None or clear else dict(info.properties)
    for name in unset:
        kept.pop(name, None)
    session.registry.update_model_info(model, {**kept, **dict(pairs)})
    session.output.record(model_document(_existing(session, model)))


@click.command("rm")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, shell_complete=complete_model)
@click.option("--yes", is_flag=True, help="Don't ask.")
@connecting
def rm_command(session: Session, models: tuple[str, ...], yes: bool) -> None:
    """Delete each MODEL with all its versions, after asking."""
    registry = session.registry
    for model in models:
        versions = registry.list_iterations(model)
        size = sum(version.size for version in versions)
        count = f"{len(versions)} version{'s' if len(versions) != 1 else ''}"
        what = f"model {model} with {count}, {size_text(size)}"
        if not yes:
            if not sys.stdin.isatty():
                raise click.UsageError(f"nobody can be asked whether to delete {what}: give --yes")
            if not click.confirm(f"Delete {what}?", err=True):
                session.output.note("left as it is")
                continue
        registry.remove_model(model)
        document = {"model": model, "versions": len(versions), "size": size, "deleted": True}
        session.output.line(document, ("model", "versions", "size"))


def _existing(session: Session, model: str) -> ModelInfo:
    from modelreg.client.errors import NotFound  # what --help doesn't need

    info = session.registry.get_model_info(model)
    if info is None:
        raise NotFound(f"no model {model!r} found")
    return info
