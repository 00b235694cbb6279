"""The domain's errors, each with the gRPC status it becomes, and those that end the program.

Messages are for people: they name the model, the number or the option, and what to do; never a path inside the archive,
a traceback or an internal name.
"""

from __future__ import annotations

from typing import ClassVar

from modelreg.grpc.status import Code


class ModelregError(Exception):
    """A call failed in a way that its caller is told about. Never raised itself, only its kinds are."""

    status: ClassVar[Code]


class InvalidArgument(ModelregError):
    """The request can't be right, whatever the registry holds: change it before sending it again."""

    status = Code.INVALID_ARGUMENT


class NotFound(ModelregError):
    """The model or version isn't there (or not any more): to be expected."""

    status = Code.NOT_FOUND


class ResourceExhausted(ModelregError):
    """Disk or memory is full: make room, or raise the option that the message names."""

    status = Code.RESOURCE_EXHAUSTED


class DataLoss(ModelregError):
    """Stored data is damaged or missing. Storing the same content again heals it."""

    status = Code.DATA_LOSS


class Unavailable(ModelregError):
    """The registry isn't ready, or is stopping: try again, perhaps elsewhere."""

    status = Code.UNAVAILABLE


class Unauthenticated(ModelregError):
    """The registry wants a token, and the call has none that it knows."""

    status = Code.UNAUTHENTICATED


class PermissionDenied(ModelregError):
    """The call's token is for reading only."""

    status = Code.PERMISSION_DENIED


class StorageFailed(ModelregError):
    """Writing failed in a way that has nothing to do with the request (an I/O error). The cause is in the log."""

    status = Code.INTERNAL


class StartupError(Exception):
    """The registry can't start, or can't go on: one line for the user, who ends up with *exit_code*."""

    exit_code: ClassVar[int]


class ArchiveUnusable(StartupError):
    """The archive directory can't be created, read or written, or is of a newer format."""

    exit_code = 3


class ArchiveInUse(StartupError):
    """Another server holds the archive directory."""

    exit_code = 4


class ForeignArchive(StartupError):
    """The directory holds something else: an archive that Cogment wrote, or another program's files under the archive's names."""

    exit_code = 5


class AddressUnavailable(StartupError):
    """The port is in use, or the host isn't one of this machine's."""

    exit_code = 6


class LogFileUnusable(StartupError):
    """The log file can't be opened for writing."""

    exit_code = 7


class CredentialsUnusable(StartupError):
    """The TLS certificate, its key, the clients' CA or the token file can't be used."""

    exit_code = 8


class ArchiveUncertain(StartupError):
    """A directory could not be synced, so what the disk holds isn't known. The next start reads it again."""

    exit_code = 74
