"""Models in every form, up and down."""

from __future__ import annotations

import array
import base64
import contextlib
import hashlib
import io
import mmap
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import anyio
import pytest

import modelreg.client as cogment
from modelreg.api import model_registry_pb2 as api
from modelreg.api.model_registry_grpc import ModelRegistrySPServicer
from modelreg.client.sources import PIECE_BYTES
from modelreg.client.targets import FileTarget
from tests.client.conftest import Run
from tests.client.fakes import serving
from tests.support.server import ServerProgram

# More than a message, than what is read at once, than what is hashed on the spot; and not a multiple of anything.
DATA = os.urandom(5 * 2**20 + 4321)


@contextlib.asynccontextmanager
async def registry_at(url: str, **options: Any) -> AsyncIterator[Any]:
    async with cogment.Context("test") as context:
        yield await context.get_model_registry_v2(cogment.Endpoint(url), **options)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    return path


async def pieces(size: int = 300_000, data: Any = DATA) -> AsyncIterator[Any]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def sync_pieces(size: int = 300_000, data: Any = DATA) -> Iterator[Any]:
    for start in range(0, len(data), size):
        yield memoryview(data)[start : start + size]


class Unseekable(io.RawIOBase):
    """As a pipe is."""

    def __init__(self, data: Any) -> None:
        self._io = io.BytesIO(data)

    def readable(self) -> Any:
        return True

    def read(self, size: int = -1) -> Any:
        return self._io.read(size)


class TestUpload:
    def sends(self, run: Run, url: str, name: str, model: Any, expected: Any = DATA, **options: Any) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                info = await registry.publish_model(name, model, **options)
                assert info.size == len(expected)
                assert await registry.retrieve_model(name) == expected

        run(main)

    @pytest.mark.parametrize("kind", [bytes, bytearray, memoryview, lambda data: array.array("B", data)])
    def test_bytes_like(self, run: Run, url: str, name: str, kind: Any) -> None:
        self.sends(run, url, name, kind(DATA))

    @pytest.mark.parametrize("size", [0, 1, 2**17, 2**20 - 1, 2**20, 2**20 + 1, 2**22])
    def test_sizes(self, run: Run, url: str, name: str, size: int) -> None:
        self.sends(run, url, name, DATA[:size], DATA[:size])

    def test_items_of_more_than_a_byte(self, run: Run, url: str, name: str) -> None:
        numbers = array.array("d", [0.5, 1.5])
        self.sends(run, url, name, numbers, numbers.tobytes())

    def test_numpy_arrays(self, run: Run, url: str, name: str) -> None:
        numpy = pytest.importorskip("numpy")
        for array_ in (numpy.arange(6.0).reshape(2, 3), numpy.zeros((0, 3)), numpy.float32([1, 2])):
            self.sends(run, url, name, array_, array_.tobytes())

    def test_path(self, run: Run, url: str, name: str, file: Path) -> None:
        self.sends(run, url, name, file)

    def test_file(self, run: Run, url: str, name: str, file: Path) -> None:
        with file.open("rb") as opened:
            opened.seek(100)
            self.sends(run, url, name, opened, DATA[100:])

    def test_mmap(self, run: Run, url: str, name: str, file: Path) -> None:
        with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as mapped:
            self.sends(run, url, name, mapped)

    def test_file_that_can_not_seek(self, run: Run, url: str, name: str) -> None:
        self.sends(run, url, name, Unseekable(DATA), size=len(DATA))

    def test_async_pieces(self, run: Run, url: str, name: str) -> None:
        self.sends(run, url, name, pieces(), size=len(DATA))
        self.sends(run, url, name, pieces(2**20 * 3), size=len(DATA))

    def test_sync_pieces(self, run: Run, url: str, name: str) -> None:
        self.sends(run, url, name, sync_pieces(), size=len(DATA))
        self.sends(run, url, name, sync_pieces(7, DATA[:1000]), DATA[:1000], size=1000)

    @pytest.mark.parametrize(
        ("model", "options", "error", "says"),
        [
            (lambda _: "model.bin", {}, TypeError, "pathlib"),
            (lambda _: 7, {}, TypeError, "int"),
            (lambda _: b"abc", {"size": 4}, ValueError, "3 bytes"),
            (lambda file: file, {"size": 4}, ValueError, "bytes"),
            (lambda _: pieces(), {}, ValueError, "needs its size"),
            (lambda _: sync_pieces(), {"size": -1}, ValueError, "negative"),
            (lambda _: io.StringIO("text"), {}, TypeError, "'rb'"),
            (lambda _: memoryview(DATA)[::2], {}, ValueError, "make bytes of it"),
            (lambda _: pieces(), {"size": len(DATA) + 1}, ValueError, "ended after"),
            (lambda _: pieces(), {"size": len(DATA) - 1}, ValueError, "goes on"),
            (lambda _: Path("nothing here"), {}, FileNotFoundError, "nothing here"),
        ],
    )
    def test_what_can_not_be_sent(
        self, run: Run, url: str, name: str, file: Path, model: Any, options: Any, error: Any, says: Any
    ) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                with pytest.raises(error, match=says):
                    await registry.store_model(name, model(file), **options)
                assert await registry.get_model_info(name) is None

        run(main)

    def test_a_failed_upload_leaves_no_model(self, run: Run, url: str, name: str) -> None:
        """Of another one, whose upload goes on meanwhile, nothing is lost."""

        async def main() -> None:
            begun, go_on = anyio.Event(), anyio.Event()

            async def slow() -> AsyncIterator[bytes]:
                yield b"a"
                begun.set()
                await go_on.wait()
                yield b"b"

            async with registry_at(url) as registry, anyio.create_task_group() as tasks:
                tasks.start_soon(lambda: registry.store_model(name, slow(), size=2))
                await begun.wait()
                assert await registry.get_model_info(name) is None
                for failing in (pieces(2**16, DATA[:10]), pieces()):
                    with pytest.raises(ValueError, match=r"goes on|ended after"):
                        await registry.publish_model(name, failing, size=100)
                go_on.set()
            async with registry_at(url) as registry:
                assert await registry.retrieve_model(name) == b"ab"

        run(main)

    def test_progress(self, run: Run, url: str, name: str) -> None:
        told = []

        async def main() -> None:
            async with registry_at(url) as registry:
                await registry.publish_model(name, DATA, progress=lambda done, size: told.append((done, size)))

        run(main)
        assert [size for _, size in told] == [len(DATA)] * len(told)
        assert [done for done, _ in told] == sorted({done for done, _ in told})
        assert told[-1] == (len(DATA), len(DATA))
        assert len(told) > 3

    def test_a_hash_that_is_known(self, run: Run, url: str, name: str) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                digest = hashlib.sha256(DATA).digest()
                assert (await registry.store_model(name, DATA, sha256=digest)).hash == base64.b64encode(digest).decode()
                assert (await registry.store_model(name, pieces(), size=len(DATA), sha256=digest)).iteration == 2
                with pytest.raises(cogment.Refused):
                    await registry.store_model(name, DATA[1:], sha256=digest)
                with pytest.raises(ValueError, match="32 bytes"):
                    await registry.store_model(name, DATA, sha256=b"short")

        run(main)

    def test_given_up_leaves_nothing(self, run: Run, url: str, name: str) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                await registry.update_model_info(name, {})

                async def endless() -> AsyncIterator[Any]:
                    yield DATA
                    await anyio.sleep_forever()

                with pytest.raises(cogment.DeadlineExceeded):
                    await registry.store_model(name, endless(), size=2**30, timeout=0.2)
                with anyio.move_on_after(0.2) as scope:
                    await registry.store_model(name, endless(), size=2**30)
                assert scope.cancelled_caught
                assert await registry.list_iterations(name) == []
                # and the connection goes on
                assert (await registry.store_model(name, DATA)).iteration == 1

        run(main)

    def test_what_is_refused(self, run: Run, url: str) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                with pytest.raises(cogment.Refused):
                    await registry.store_model("", b"")
                with pytest.raises(cogment.Refused):
                    await registry.store_model("x" * 600, DATA)

        run(main)

    def test_many_at_once(self, run: Run, url: str, name: str) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:

                async def one(number: int) -> None:
                    data = bytes([number]) * 2_000_000
                    info = await registry.publish_model(name, data)
                    assert await registry.retrieve_model(name, info.iteration) == data

                async with anyio.create_task_group() as tasks:
                    for number in range(10):
                        tasks.start_soon(one, number)
                assert len(await registry.list_iterations(name)) == 10

        run(main)


class TestDownload:
    def test_into_a_file(self, run: Run, url: str, name: str, tmp_path: Path) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                sent = await registry.publish_model(name, DATA)
                path = tmp_path / "downloaded"
                assert await registry.download_model(name, path) == sent
                assert path.read_bytes() == DATA
                await registry.publish_model(name, b"newer")
                await registry.download_model(name, path)
                assert path.read_bytes() == b"newer"
                assert os.listdir(tmp_path) == ["downloaded"]

        run(main)

    def test_overwrites_nothing_when_told_not_to(self, run: Run, url: str, name: str, file: Path) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                await registry.publish_model(name, b"other")
                with pytest.raises(FileExistsError):
                    await registry.download_model(name, file, overwrite=False)

        run(main)
        assert file.read_bytes() == DATA

    def test_into_a_buffer(self, run: Run, url: str, name: str) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                sent = await registry.publish_model(name, DATA)
                buffer = bytearray(len(DATA) + 10)
                assert await registry.download_model(name, buffer) == sent
                assert buffer == DATA + bytes(10)
                numbers = array.array("d", bytes(len(DATA) // 8 * 8 + 8))
                await registry.download_model(name, memoryview(numbers), 1)
                assert numbers.tobytes()[: len(DATA)] == DATA
                with pytest.raises(ValueError, match="buffer has 10 bytes"):
                    await registry.download_model(name, bytearray(10))
                with pytest.raises(TypeError, match="writable"):
                    await registry.download_model(name, memoryview(bytes(len(DATA))))

        run(main)

    def test_of_what_is_not_there(self, run: Run, url: str, name: str, tmp_path: Path) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                for into in (tmp_path / "file", bytearray(10)):
                    with pytest.raises(cogment.NotFound):
                        await registry.download_model(f"{name} unknown", into)
                    await registry.update_model_info(name, {})
                    assert await registry.download_model(name, into) is None
                    assert await registry.download_model(name, into, 7) is None
                assert os.listdir(tmp_path) == []

        run(main)

    def test_progress(self, run: Run, url: str, name: str, tmp_path: Path) -> None:
        async def main() -> None:
            async with registry_at(url) as registry:
                await registry.publish_model(name, DATA)
                for get in (
                    registry.retrieve_model,
                    lambda *a, **k: registry.download_model(a[0], tmp_path / "f", **k),
                ):
                    told: list[tuple[int, int]] = []
                    await get(name, progress=lambda *args, told=told: told.append(args))
                    assert told == sorted(told)
                    assert told[-1] == (len(DATA), len(DATA))

        run(main)

    def test_a_disk_error_ends_it(
        self, run: Run, url: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def broken(self: FileTarget, pending: Any) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(FileTarget, "_write_all", broken)

        async def main() -> None:
            async with registry_at(url) as registry:
                await registry.publish_model(name, DATA)
                with pytest.raises(OSError, match="No space"):
                    await registry.download_model(name, tmp_path / "file")
                assert os.listdir(tmp_path) == []
                assert await registry.retrieve_model(name) == DATA

        run(main)


async def test_a_file_takes_pieces_of_any_size(tmp_path: Path) -> None:
    target = FileTarget(tmp_path / "file", len(DATA))
    with target:
        for _ in range(2):  # the second time with the memory of the first
            target.restart()
            left = memoryview(DATA)
            for size in (1, PIECE_BYTES, PIECE_BYTES - 1, 2 * PIECE_BYTES + 7, 5):
                target.write(left[:size])
                left = left[size:]
                await target.drain(final=False)
            target.write(left)
            while await target.drain(final=True):
                pass
            assert target.digest() == hashlib.sha256(DATA).digest()
        await target.commit()
    assert (tmp_path / "file").read_bytes() == DATA


class Wrong(ModelRegistrySPServicer):
    """A registry with one version, whose data isn't what it should be."""

    def __init__(self, *chunks: bytes) -> None:
        self.chunks = chunks

    async def RetrieveVersionInfos(self, message: Any) -> Any:
        info = api.ModelVersionInfo(
            model_id="policy", version_number=1, data_size=5, data_hash="LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ="
        )
        return api.RetrieveVersionInfosReply(version_infos=[info], next_version_handle="2")

    async def RetrieveVersionData(self, message: Any) -> AsyncIterator[Any]:  # type: ignore[override]  # no streams in stubs
        for chunk in self.chunks:
            yield api.RetrieveVersionDataReplyChunk(data_chunk=chunk)


@pytest.mark.parametrize("chunks", [(b"hello",), (b"", b"he", b"", b"l", b"lo", b"")])
def test_what_is_right_is_accepted(run: Run, chunks: Any) -> None:
    async def main() -> None:
        async with registry_at(running.url) as registry:
            assert await registry.retrieve_model("policy") == b"hello"

    with serving(Wrong(*chunks)) as running:
        run(main)


@pytest.mark.parametrize("chunks", [(b"hallo",), (b"hell",), (b"hello", b"!"), (), (b"x" * 100_000,)])
def test_what_is_wrong_is_damaged(run: Run, chunks: Any, tmp_path: Path) -> None:
    async def main() -> None:
        async with registry_at(running.url) as registry:
            with pytest.raises(cogment.Damaged, match="store it again"):
                await registry.retrieve_model("policy")
            for into in (bytearray(100), tmp_path / "file"):
                with pytest.raises(cogment.Damaged, match="store it again"):
                    await registry.download_model("policy", into)
            assert os.listdir(tmp_path) == []

    with serving(Wrong(*chunks)) as running:
        run(main)


def test_data_that_is_damaged_in_the_registry(run: Run, server: ServerProgram, url: str, name: str) -> None:
    async def main() -> None:
        async with registry_at(url) as registry:
            await registry.store_model(name, b"damaged at rest")
            for path in server.archive_dir.glob("blobs/sha256/*/*"):
                if path.read_bytes() == b"damaged at rest":
                    path.chmod(0o600)
                    path.write_bytes(b"damaged at test")
            with pytest.raises(cogment.Damaged):
                await registry.retrieve_model(name)
            await registry.store_model(name, b"damaged at rest")
            assert await registry.retrieve_model(name, 1) == b"damaged at rest"

    run(main)
