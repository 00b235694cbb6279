"""The ``modelreg`` command."""

from __future__ import annotations

from modelreg.cli.command import main

__all__ = ["main"]
