"""Arguments of their own kind: names of models, numbers of versions, and properties."""

from __future__ import annotations

import os
import re

import click

LATEST = -1
LATEST_WORD = "latest"


def model_name(text: str) -> str:
    """The name of a model, which is text: an argument may be any bytes."""
    try:
        text.encode()
    except UnicodeEncodeError:
        shown = os.fsencode(text).decode(errors="backslashreplace")
        raise click.BadParameter(f"{shown!r} isn't valid UTF-8, which names of models have to be") from None
    return text


def version_number(text: str) -> int:
    """``latest``, a number, or one counted from the newest: -1 is the newest, -2 the one before."""
    if text == LATEST_WORD:
        return LATEST
    if re.fullmatch(r"[-−]?[1-9][0-9]{0,9}", text):
        return int(text.replace("−", "-"))
    raise click.BadParameter(
        f"{text!r} is no version: give latest, a number from 1 on, or one like -2 for the last but one"
    )


def looks_like_a_version(text: str) -> bool:
    """Whether a user may mean a version by this: ``latest``, or a number of any form."""
    return text == LATEST_WORD or re.fullmatch(r"[-−+]?[0-9]+", text) is not None


class Versioned(click.Command):
    """A command with a version as an argument, which may begin with a minus: click takes that for the beginning of a flag."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, [f"−{arg[1:]}" if re.fullmatch("-[0-9]+", arg) else arg for arg in args])


def property_pair(text: str) -> tuple[str, str]:
    """``name=value``. The value may be empty, and hold more of these signs."""
    name, sign, value = text.partition("=")
    if not name or not sign:
        raise click.BadParameter(f"{text!r} is no property: it should be like name=value")
    return name, value


def properties(
    _context: click.Context, _parameter: click.Parameter, pairs: tuple[tuple[str, str], ...]
) -> dict[str, str]:
    """The properties of all `property_pair` arguments; each may be given once."""
    found: dict[str, str] = {}
    for name, value in pairs:
        if name in found:
            raise click.BadParameter(f"property {name!r} is given twice: give it once")
        found[name] = value
    return found
