"""The frame-level generator against h2, which raises at any frame that windows or SETTINGS don't allow."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import Pipe

import h2.config
import h2.connection
import h2.events
import pytest
from h2.settings import SettingCodes, Settings

from benchmarks import MIB
from benchmarks.clients import Payload, Task
from benchmarks.clients.frames import FrameConnection, FramesClient
from benchmarks.http2 import Connection, PeerError, frame
from modelreg.api import model_registry_pb2 as pb


class Peer:
    """A server on h2. It gives credit back in drops, and answers an upload with what it got."""

    def __init__(self, settings: dict[SettingCodes, int], credit: int, on_data: Callable[[Peer], None]) -> None:
        self.settings, self.credit, self.on_data = settings, credit, on_data
        self.h2 = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
        self.body = b""
        self.frames: list[int] = []
        self.error = ""

    def serve(self, listener: socket.socket) -> None:
        sock, _ = listener.accept()
        with sock:
            self.h2.local_settings = Settings(client=False, initial_values=self.settings)
            self.h2.max_inbound_frame_size = self.h2.local_settings.max_frame_size
            self.h2.initiate_connection()
            sock.sendall(self.h2.data_to_send())
            while data := sock.recv(65536):
                try:
                    for event in self.h2.receive_data(data):
                        self.handle(event)
                except h2.exceptions.ProtocolError as error:
                    self.error = repr(error)
                    return
                sock.sendall(self.h2.data_to_send())

    def handle(self, event: h2.events.Event) -> None:
        if isinstance(event, h2.events.DataReceived):
            self.body += event.data
            self.frames.append(len(event.data))
            self.on_data(self)
            owed = event.flow_controlled_length
            while owed:  # as many WINDOW_UPDATEs as that makes
                part = min(owed, self.credit)
                self.h2.increment_flow_control_window(part)
                if event.stream_ended is None:
                    self.h2.increment_flow_control_window(part, event.stream_id)
                owed -= part
        elif isinstance(event, h2.events.StreamEnded):
            self.h2.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
            reply = pb.CreateVersionReply(version_info=pb.ModelVersionInfo(version_number=3)).SerializeToString()
            # Padded, and cut, as a server may.
            self.h2.send_data(event.stream_id, b"\0" + len(reply).to_bytes(4, "big") + reply[:1], pad_length=9)
            self.h2.send_data(event.stream_id, reply[1:])
            self.h2.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)


@contextmanager
def peer(
    settings: dict[SettingCodes, int], credit: int = MIB, on_data: Callable[[Peer], None] = lambda _: None
) -> Iterator[tuple[Peer, str]]:
    server = Peer(settings, credit, on_data)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.serve, args=(listener,))
        thread.start()
        try:
            yield server, f"127.0.0.1:{listener.getsockname()[1]}"
        finally:
            thread.join(20)
            assert not server.error
            assert not thread.is_alive()


def upload(address: str, size: int, chunk: int, frame_bytes: int = MIB) -> list[bytes]:
    """Uploads a version, and returns the chunks that were meant."""
    task = Task(kind="upload", client="", address=address, model="m", size=size, chunk=chunk, checked=False)
    payload = Payload(size, chunk)
    client = FramesClient(address, frame_bytes, 10)
    try:
        assert client.prepare_upload(task, payload)() == 3
    finally:
        client.close()
    return [stamp + bytes(rest) for stamp, rest in payload.pieces()]


def chunks(body: bytes) -> list[bytes]:
    found = []
    while body:
        length = int.from_bytes(body[1:5], "big")
        found.append(pb.CreateVersionRequestChunk.FromString(body[5 : 5 + length]))
        body = body[5 + length :]
    assert found[0].HasField("header")
    return [message.body.data_chunk for message in found[1:]]


@pytest.mark.parametrize(("window", "credit"), [(1, 1), (7, 3), (100, 64), (1000, 999), (70_000, 1000)])
def test_an_upload_obeys_tiny_windows(window: int, credit: int) -> None:
    with peer({SettingCodes.INITIAL_WINDOW_SIZE: window}, credit) as (server, address):
        sent = upload(address, size=5 * min(window, 3000), chunk=700)
    assert chunks(server.body) == sent
    assert max(server.frames) <= window


def test_an_upload_obeys_the_window_of_the_connection() -> None:
    with peer({SettingCodes.INITIAL_WINDOW_SIZE: 2**31 - 1}, 10_000) as (server, address):
        sent = upload(address, size=300_000, chunk=100_000)
    assert chunks(server.body) == sent


@pytest.mark.parametrize(
    ("liked", "allowed", "largest"), [(16_384, 1 << 20, 16_384), (MIB, 16_384, 16_384), (MIB, 50_000, 50_000)]
)
def test_frames_are_of_the_size_asked_for_where_allowed(liked: int, allowed: int, largest: int) -> None:
    with peer({SettingCodes.INITIAL_WINDOW_SIZE: MIB, SettingCodes.MAX_FRAME_SIZE: allowed}, 60_000) as (
        server,
        address,
    ):
        sent = upload(address, size=200_000, chunk=60_000, frame_bytes=liked)
    assert chunks(server.body) == sent
    assert max(server.frames) == min(largest, 60_000 + 13)


def test_settings_may_change_in_the_middle_and_make_a_window_negative() -> None:
    def shrink(server: Peer) -> None:
        if len(server.frames) == 2:
            server.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 500, SettingCodes.HEADER_TABLE_SIZE: 0})
        if len(server.frames) == 10:
            server.h2.update_settings({SettingCodes.INITIAL_WINDOW_SIZE: 3000})

    with peer({SettingCodes.INITIAL_WINDOW_SIZE: 20_000}, 1000, shrink) as (server, address):
        sent = upload(address, size=100_000, chunk=9000)
    assert chunks(server.body) == sent


def test_no_more_streams_than_allowed_and_headers_stay_right() -> None:
    with peer({SettingCodes.MAX_CONCURRENT_STREAMS: 1}) as (_, address):
        connection = FrameConnection(address, MIB, 10)
        try:
            streams = [connection.ask("CreateVersion", b"") for _ in range(20)]
            for stream in streams:
                connection.finish(stream)
                assert stream.headers["content-type"] == "application/grpc"
                assert len(stream.messages) == 1
        finally:
            connection.close()


def pair(window: int = 100_000) -> tuple[Connection, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        ours = socket.create_connection(listener.getsockname(), 10)
        theirs, _ = listener.accept()
    ours.settimeout(None)
    theirs.settimeout(10)
    return Connection(ours, frame_bytes=16_384, window=window, timeout=0.2, client=True), theirs


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (frame(0, 0, 1, bytes(16_385)), "over the limit"),
        (frame(0, 0, 1, bytes(9001)), "more DATA than the window"),
        (frame(7, 0, 0, bytes(8)), "nothing came"),
        (b"", "nothing came"),
    ],
)
def test_a_peer_that_breaks_the_rules_is_told_from_one_that_is_silent(data: bytes, message: str) -> None:
    connection, theirs = pair()
    connection.open_stream(1).receive_window = 9000
    theirs.sendall(data)
    with theirs, pytest.raises(PeerError, match=message):
        while True:
            connection.receive()
    connection.close()


def test_going_away_and_a_lost_connection_are_told() -> None:
    connection, theirs = pair()
    theirs.sendall(frame(7, 0, 0, (0).to_bytes(4, "big") + (11).to_bytes(4, "big")))
    theirs.recv(1000)
    theirs.close()
    with pytest.raises(PeerError, match="GOAWAY, code 11"):
        while True:
            connection.receive()
    connection.close()


def test_an_idle_client_answers_pings() -> None:
    """A load process waits for others to be ready, at times longer than servers wait for an answer."""
    client = FramesClient.__new__(FramesClient)
    connection, theirs = pair()
    client._connections = {connection.socket: connection}  # type: ignore[dict-item]
    ours, word = Pipe()
    with theirs, ours, word, ThreadPoolExecutor(1) as pool:
        idling = pool.submit(client.idle, ours)
        theirs.sendall(frame(6, 0, 0, b"how long"))
        answer = b""
        while frame(6, 1, 0, b"how long") not in answer:
            answer += theirs.recv(1000)
        assert not idling.done()
        word.send(None)
        idling.result(10)
    connection.close()
