"""Trying again: for how long, how often, and what.

A call that found nobody, or lost its connection, is tried again until the client's patience or the call's timeout is over,
with pauses that double and are spread at random, so that a thousand actors don't come back to a restarted registry in the
same instant. Patience begins with the call where there was no connection, and with the loss of one where there was: what went
well until then doesn't count.
"""

from __future__ import annotations

import random

import attrs

from modelreg.client.transport.status import CallFailed
from modelreg.grpc.status import Code


@attrs.define
class Backoff:
    """The pauses between attempts, in seconds. Each is between half of the current step and all of it."""

    first: float = 0.05
    longest: float = 5.0
    _step: float = attrs.field(default=0.0, init=False)

    def reset(self) -> None:
        """It worked: the next failure is a first one."""
        self._step = 0.0

    def pause(self) -> float:
        """How long to wait before the next attempt."""
        self._step = min(self.longest, self._step * 2 or self.first)
        return self._step * random.uniform(0.5, 1.0)  # noqa: S311


def transient(failure: CallFailed) -> bool:
    """Whether the same call may succeed later, for a call that does no harm when done twice.

    That is where the server says so, and where it has said nothing: proxies end streams in many ways.
    """
    return failure.cut or failure.code == Code.UNAVAILABLE


@attrs.frozen
class Patience:
    """How long calls are tried again, in seconds.

    Attributes:
        unknown: where nobody has answered yet: the address may be wrong.
        known: where somebody has: a server that is started again takes a while.
    """

    unknown: float = 10.0
    known: float = 30.0
