"""``modelreg models``, ``versions``, ``show``, ``set`` and ``rm``: what there is, and what is known of it."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import attrs
import click

from modelreg.cli.arguments import (
    Versioned,
    looks_like_a_version,
    model_name,
    properties,
    property_pair,
    version_number,
)
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
    from modelreg.client.infos import ModelInfo, ModelIterationInfo


@click.command("models")
@connecting
def models_command(session: Session) -> None:
    """List the models."""
    session.output.needed()
    documents = [model_document(info) for info in session.registry.list_models()]
    session.output.table(documents, ("model", "properties"))


@click.command("versions")
@model_argument
@connecting
def versions_command(session: Session, model: str) -> None:
    """List the available versions of MODEL, and which of them are damaged."""
    session.output.needed()
    infos = session.registry.list_iterations(model)
    damaged = _damaged(session, model)
    documents = [_with_damage(info, damaged) for info in infos]
    session.output.table(documents, (*VERSION_COLUMNS, "damaged") if damaged else VERSION_COLUMNS)
    if damaged:
        session.output.note("the data of damaged versions is lost until the same content is stored again")


@click.command("show", cls=Versioned)
@model_argument
@click.argument("version", type=version_number, required=False)
@connecting
def show_command(session: Session, model: str, version: int | None) -> None:
    """Show what is known of MODEL, or of one VERSION of it.

    VERSION is 'latest', a number, or counted from the newest: -1 is the newest, -2 the one before.
    """
    session.output.needed()
    registry = session.registry
    if version is not None:
        from modelreg.client.errors import NotFound  # what --help doesn't need

        found = registry.get_iteration_info(model, version)
        if found is None:
            raise NotFound(f"model {model!r} has no version" + (f" {version}" if version != -1 else ""))
        session.output.record(_with_damage(found, _damaged(session, model)))
        return
    info = _existing(session, model)
    versions = registry.list_iterations(model)
    damaged = _damaged(session, model)
    session.output.record(
        {
            **model_document(info),
            "versions": len(versions),
            "stored_versions": sum(version.stored for version in versions),
            "damaged_versions": len(damaged),
            "latest": _with_damage(versions[-1], damaged) if versions else None,
        }
    )


@click.command("set")
@model_argument
@click.argument("given", metavar="[NAME=VALUE]...", nargs=-1, type=property_pair, callback=properties)
@click.option("--unset", metavar="NAME", multiple=True, help="Take this property away; may be given several times.")
@click.option("--clear", is_flag=True, help="Take away all others.")
@connecting
def set_command(session: Session, model: str, given: dict[str, str], unset: tuple[str, ...], clear: bool) -> None:
    """Set properties of MODEL, and leave its others as they are. A model that isn't there is created."""
    for name in unset:
        if name in given:
            raise click.UsageError(f"property {name!r} is both given and unset: leave out one of them")
    info = session.registry.get_model_info(model)
    if info is None:
        session.output.note(f"model {model} is new")
    kept = {} if info is None or clear else dict(info.properties)
    for name in unset:
        kept.pop(name, None)
    if "" in kept:
        raise click.UsageError(
            f"model {model} has a property without a name, from another client: take it away with --unset ''"
        )
    session.registry.update_model_info(model, {**kept, **given})
    session.output.record(model_document(_existing(session, model)))


@click.command("rm")
@click.argument("models", metavar="MODEL...", nargs=-1, required=True, type=model_name, shell_complete=complete_model)
@click.option("--yes", is_flag=True, help="Don't ask.")
@connecting
def rm_command(session: Session, models: tuple[str, ...], yes: bool) -> None:
    """Delete each MODEL with all its versions, after asking.

    Nothing is deleted unless all of them are there. A single version can't be deleted yet, so rm asks about a number that comes
    after another name, even with --yes.
    """
    found = [_Deletion(model, session.registry.list_iterations(model)) for model in _checked(session, models)]
    agreed = []
    for position, deletion in enumerate(found):
        may_be_a_version = position > 0 and looks_like_a_version(deletion.model)
        caution = f", not version {deletion.model} of {found[0].model}" if may_be_a_version else ""
        if (yes and not caution) or _agreed(deletion, caution):
            agreed.append(deletion)
        else:
            session.output.note(f"model {deletion.model} is left as it is")
    for deletion in agreed:
        session.registry.remove_model(deletion.model)
        session.output.line(deletion.document, ("model", "versions", "size"))


@attrs.frozen
class _Deletion:
    """What `rm` is about to delete."""

    model: str
    versions: Sequence[ModelIterationInfo]

    @property
    def size(self) -> int:
        return sum(version.size for version in self.versions)

    @property
    def document(self) -> dict[str, object]:
        return {"model": self.model, "versions": len(self.versions), "size": self.size, "deleted": True}

    def __str__(self) -> str:
        count = f"{len(self.versions)} version{'s' if len(self.versions) != 1 else ''}"
        return f"model {self.model} with {count}, {size_text(self.size)}"


def _checked(session: Session, models: Sequence[str]) -> list[str]:
    """The models to delete, each once. Raises where one of them isn't there."""
    from modelreg.client.errors import NotFound  # what --help doesn't need

    wanted = list(dict.fromkeys(models))
    missing = [model for model in wanted if session.registry.get_model_info(model) is None]
    if missing:
        line = f"no model {', '.join(map(repr, missing))} found, so nothing was deleted"
        if len(wanted) > 1 and any(map(looks_like_a_version, missing)):
            line += ": rm deletes whole models, a single version can't be deleted yet"
        raise NotFound(line)
    return wanted


def _agreed(deletion: _Deletion, caution: str) -> bool:
    """Whether the user wants this deleted. Raises `UsageError` without a terminal to ask on."""
    if sys.stdin.isatty():
        return click.confirm(f"Delete {deletion}{caution}?", err=True)
    if caution:
        raise click.UsageError(
            f"{deletion.model!r} may be meant as a version, so nothing was deleted: to delete the model of that "
            f"name, run 'modelreg rm {deletion.model} --yes'"
        )
    raise click.UsageError(f"there is no terminal to ask on whether to delete {deletion}: give --yes")


def _damaged(session: Session, model: str) -> set[int]:
    """The numbers of a model's versions whose data is damaged or missing, as far as the registry knows."""
    name = f"damaged_versions:{model}"
    return set(map(int, session.registry.status(name).get(name, "").split()))


def _with_damage(info: ModelIterationInfo, damaged: set[int]) -> dict[str, object]:
    return {**version_document(info), "damaged": info.iteration in damaged}


def _existing(session: Session, model: str) -> ModelInfo:
    from modelreg.client.errors import NotFound  # what --help doesn't need

    info = session.registry.get_model_info(model)
    if info is None:
        raise NotFound(f"no model {model!r} found")
    return info
