"""What the client raises: one exception for each thing that a program would do next.

    NotFound           the model or version isn't there                  expected; create it, or go on without
    Refused            the request can't be right                        fix the program, or the endpoint
    Denied             the token is missing, unknown or may not do this  give the endpoint another token
    Exhausted          the registry's disk or memory is full             make room, or raise the option it names
    Unavailable        no registry answers, or the call is cut off       try again later
    OutcomeUnknown     as Unavailable, but it may have been done          look before doing it again
    DeadlineExceeded   not done within the timeout                       try again with more time
    Damaged            the bytes aren't those of the version             store it again from the original
    Failed             the registry has a fault                          look into its log

All are kinds of `RegistryError`, and none of each other. Arguments of a wrong type or form are `TypeError` and `ValueError`, before
anything is sent.
"""

from __future__ import annotations

from modelreg.client.transport.status import CallFailed
from modelreg.grpc.status import Code


class RegistryError(Exception):
    """Something about the registry went wrong. Never raised itself, only its kinds are."""


class NotFound(RegistryError):
    """The model or version isn't there, or not any more: to be expected. The message says which."""


class Refused(RegistryError):
    """The registry says that the request can't be right, or doesn't know it: change the program or the endpoint."""


class Denied(RegistryError):
    """The registry wants a token, knows none like this, or doesn't let it do this; or its certificate isn't trusted."""


class Exhausted(RegistryError):
    """The registry has no room, on disk or in memory: make some, or raise the option that the message names."""


class Unavailable(RegistryError):
    """No registry answers at the endpoint, or the call was cut off on its way. Nothing was stored or deleted: try again later."""


class OutcomeUnknown(RegistryError):
    """The connection was lost when the registry may have done what it was asked, and it's one that can't be asked twice.

    Look for it (`list_iterations`) before doing it again.
    """


class DeadlineExceeded(RegistryError):
    """It wasn't done within the timeout. What was being stored may have been stored nevertheless."""


class Damaged(RegistryError):
    """The bytes that came aren't those of the version, by hash or size. Storing the same data again heals it, where it's the registry's copy
    that is damaged.
    """


class Failed(RegistryError):
    """The registry has a fault of its own, and the cause is in its log; or something else answered, as the message then says."""


_BY_CODE: dict[Code, type[RegistryError]] = {
    Code.CANCELLED: Unavailable,
    Code.INVALID_ARGUMENT: Refused,
    Code.DEADLINE_EXCEEDED: DeadlineExceeded,
    Code.NOT_FOUND: NotFound,
    Code.ALREADY_EXISTS: Refused,
    Code.PERMISSION_DENIED: Denied,
    Code.RESOURCE_EXHAUSTED: Exhausted,
    Code.FAILED_PRECONDITION: Refused,
    Code.OUT_OF_RANGE: Refused,
    Code.UNIMPLEMENTED: Refused,
    Code.UNAVAILABLE: Unavailable,
    Code.DATA_LOSS: Damaged,
    Code.UNAUTHENTICATED: Denied,
}


def error_of(failure: CallFailed) -> RegistryError:
    """The exception for a call that failed."""
    if failure.cut:
        return Unavailable(str(failure))
    return _BY_CODE.get(failure.code, Failed)(str(failure))
