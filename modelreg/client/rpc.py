"""The interface's calls, each tried again for as long as the client is patient, with the client's exceptions."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Protocol, TypeVar

import anyio
import attrs
from google.protobuf.message import DecodeError

from modelreg.api import common_pb2
from modelreg.client.errors import OutcomeUnknown, error_of
from modelreg.client.logs import logger
from modelreg.client.retry import Backoff, Patience, transient
from modelreg.client.transport.channel import Channel, deadline
from modelreg.client.transport.status import CallFailed
from modelreg.grpc.status import Code

SERVICE = "/cogmentAPI.ModelRegistrySP/"

R_co = TypeVar("R_co", covariant=True)
T = TypeVar("T")


class Message(Protocol):
    """A protobuf message."""

    def SerializeToString(self) -> bytes: ...


class MessageType(Protocol[R_co]):
    """A protobuf message's class."""

    def FromString(self, data: bytes, /) -> R_co: ...


class translated:  # noqa: N801  # used as a statement
    """Raise the client's exceptions for calls that fail inside."""

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if isinstance(error, CallFailed):
            raise error_of(error) from None


@attrs.frozen
class Rpc:
    """Calls to the registry's service.

    Attributes:
        channel: that they're made on.
        patience: how long a call is tried again.
        timeout: what a call without one of its own has, in seconds; None for none.
    """

    channel: Channel
    patience: Patience
    timeout: float | None = None

    async def once(self, method: str, request: Message, reply: MessageType[R_co], timeout: float | None = None) -> R_co:
        """Make one call. Raises `CallFailed`."""
        message = await self.channel.unary(SERVICE + method, request.SerializeToString(), timeout=timeout)
        try:
            return reply.FromString(message)
        except DecodeError:
            raise CallFailed(Code.INTERNAL, f"the answer to {method} is no valid message") from None

    async def unary(
        self, method: str, request: Message, reply: MessageType[R_co], timeout: float | None = None
    ) -> R_co:
        """Make a call that does no harm when it's made twice, until there is an answer. Raises `RegistryError`."""
        timeout = self.limit(timeout)
        with translated(), deadline(timeout):
            return await self.patiently(lambda: self.once(method, request, reply, timeout))

    async def unary_once(
        self, method: str, request: Message, reply: MessageType[R_co], timeout: float | None = None
    ) -> R_co:
        """Make a call that may do harm when it's made twice: again only where the registry can't have acted on it.

        Raises `RegistryError`, of which `OutcomeUnknown` is a kind.
        """
        timeout = self.limit(timeout)
        with translated(), deadline(timeout):
            try:
                return await self.patiently(
                    lambda: self.once(method, request, reply, timeout),
                    again=lambda failure: transient(failure) and not failure.delivered,
                )
            except CallFailed as failure:
                if transient(failure) and failure.delivered:
                    raise OutcomeUnknown(f"{method} may have been done, or not: {failure}") from None
                raise

    async def patiently(
        self,
        attempt: Callable[[], Awaitable[T]],
        *,
        again: Callable[[CallFailed], bool] = transient,
        progress: Callable[[], int] = int,
    ) -> T:
        """Make an attempt until it succeeds, fails in a way that isn't worth another one, or patience is over.

        The last attempt is made when patience ends. Patience begins anew when `progress` has grown since the last failure.

        Raises what the last attempt raised.
        """
        backoff = Backoff()
        began = anyio.current_time()
        until: float | None = None
        done = progress()
        while True:
            try:
                return await attempt()
            except CallFailed as failure:
                if not again(failure):
                    raise
                if progress() > done:
                    done = progress()
                    until = None
                    backoff.reset()
                if until is None:
                    seconds = self.seconds_of_patience
                    until = (anyio.current_time() if failure.connected else began) + seconds
                    if self.channel.reached and seconds:
                        logger.info("%s: trying again for %g s", failure, seconds)
                left = until - anyio.current_time()
                if left <= 0:
                    raise
            await anyio.sleep(min(left, backoff.pause()))

    async def is_modelreg(self) -> bool:
        """Whether the server, as it is now, knows modelreg's metadata: its request ids, for example. Raises `CallFailed`."""
        try:
            reply = await self.once("Version", common_pb2.VersionRequest(), common_pb2.VersionInfo, self.timeout)
        except CallFailed as failure:
            if failure.code == Code.UNIMPLEMENTED:
                return False
            raise
        return any(version.name == "modelreg" for version in reply.versions)

    @property
    def seconds_of_patience(self) -> float:
        """How long a call that fails now is tried again."""
        return self.patience.known if self.channel.reached else self.patience.unknown

    def limit(self, timeout: float | None) -> float | None:
        """A call's timeout: its own, or the client's."""
        return self.timeout if timeout is None else timeout
