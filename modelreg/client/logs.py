"""Loggers in the style that users of this ecosystem know: the standard library's, with two more methods.

The client's own is ``modelreg.client``. As is right for a library it has no handler: the program decides where it goes.
"""

from __future__ import annotations

import logging
import os
from typing import Any

TRACE = 5
"""A level below DEBUG. It has no name among the standard library's."""

_LEVELS = {
    "off": logging.CRITICAL,
    "error": logging.ERROR,
    "warning": logging.WARNING,
    "info": logging.INFO,
    "debug": logging.DEBUG,
    "trace": TRACE,
}
# The registry reads the same variable, and takes numbers, too.
_LEVELS_BY_NUMBER = {str(number): level for number, level in enumerate(_LEVELS.values())}


class Logger(logging.Logger):
    """A logger with `trace`, and with `deprecated`, which warns once of each thing."""

    TRACE = TRACE

    def trace(self, message: str, *args: Any, **kwargs: Any) -> None:
        """Log at the level `TRACE`."""
        if self.isEnabledFor(TRACE):
            self._log(TRACE, message, args, **kwargs)

    def deprecated(self, message: str) -> None:
        """Warn, but not twice of the same."""
        told: set[str] = self.__dict__.setdefault("_deprecated_told", set())
        if message not in told:
            told.add(message)
            self.warning(message)


def make_logger(name: str, env_name: str | None = None, default_level: str = "INFO") -> Logger:
    """The logger that `logging.getLogger(name)` gives, with `trace` and `deprecated`, and its level set.

    Arguments:
        name: of the logger.
        env_name: environment variable that sets its level, read now: off, error, warning, info, debug, trace, or 0 to 5 for these.
            None for none.
        default_level: where the variable isn't set, or is no level.
    """
    made = logging.getLogger(name)
    if not isinstance(made, Logger):
        made.__class__ = (
            type(type(made).__name__, (Logger, type(made)), {}) if type(made) is not logging.Logger else Logger
        )
    assert isinstance(made, Logger)
    text = os.environ.get(env_name, default_level) if env_name is not None else default_level
    level = _LEVELS.get(text.lower(), _LEVELS_BY_NUMBER.get(text))
    made.setLevel(_LEVELS.get(default_level.lower(), logging.INFO) if level is None else level)
    if level is None:
        made.warning("%s=%s is no log level: it's one of %s", env_name, text, ", ".join(_LEVELS))
    return made


logger = make_logger("modelreg.client", "COGMENT_LOG_LEVEL")

for _name in ("hpack.hpack", "hpack.table"):  # which log headers at the level DEBUG, and so tokens
    logging.getLogger(_name).addFilter(lambda record: record.levelno > logging.DEBUG)
