"""``--archive_dir``, for the commands that work on an archive directory themselves."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from modelreg.settings import OPTIONS

C = TypeVar("C", bound=Callable[..., Any])

_OPTION = next(option for option in OPTIONS if option.name == "archive_dir")


def archive_option(help_text: str) -> Callable[[C], C]:
    """Adds ``--archive_dir`` to a command, which is given a path: the flag's, the variable's or the default, as for serve."""
    return click.option(*_OPTION.flags, _OPTION.name, callback=_path, help=help_text)


def _path(_context: click.Context, _parameter: click.Parameter, flag: str | None) -> Path:
    # This option alone is read: another variable that's wrong is the server's business.
    if flag is not None:
        path = _OPTION.read(flag, _OPTION.flags[0])
    elif os.environ.get(_OPTION.env):
        path = _OPTION.read(os.environ[_OPTION.env], _OPTION.env)
    else:
        path = _OPTION.make_default()
    assert isinstance(path, Path)
    return path
