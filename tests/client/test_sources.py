"""What is sent of a model, and what is refused because its bytes would be wrong: nothing is stored then, not even the model's name."""

from __future__ import annotations

import array
import ctypes
import gzip
import io
import os
import threading
from collections import OrderedDict, UserDict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

import pytest

import modelreg.client as cogment
from modelreg.client.sources import READ_BYTES
from tests.client.conftest import Run
from tests.support.server import ServerProgram, server_program

DATA = os.urandom(READ_BYTES + 4321)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "model.bin"
    path.write_bytes(DATA)
    return path


@pytest.fixture
def store(run: Run, url: str, name: str) -> Callable[..., bytes | None]:
    """Stores a model, and returns what a client gets then."""

    def store(model: Any, **options: Any) -> bytes | None:
        async def main() -> bytes | None:
            async with cogment.Context("test") as context:
                registry = await context.get_model_registry_v2(cogment.Endpoint(url))
                info = await registry.store_model(name, model, **options)
                data = await registry.retrieve_model(name)
                assert info.size == len(data or b"")
                return data

        found: bytes | None = run(main)
        return found

    return store


@pytest.fixture
def refused(run: Run, url: str, name: str) -> Callable[..., str]:
    """Tries to store a model that is refused, and returns why. No trace of it may be left."""

    def refused(model: Any, error: type[Exception], **options: Any) -> str:
        async def main() -> str:
            async with cogment.Context("test") as context:
                registry = await context.get_model_registry_v2(cogment.Endpoint(url))
                with pytest.raises(error) as caught:
                    await registry.store_model(name, model, **options)
                assert caught.type is error
                info = await registry.get_model_info(name)
                assert info is None or await registry.list_iterations(name) == []
                return str(caught.value)

        return str(run(main))

    return refused


# Files at a position


def test_a_file_at_its_end_is_refused(refused: Any, tmp_path: Path) -> None:
    buffer = io.BytesIO()
    buffer.write(DATA)
    assert "seek(0)" in refused(buffer, ValueError)
    with (tmp_path / "written").open("wb+") as file:
        file.write(b"data")  # not even on its way to the disk yet
        assert "after 4 bytes" in refused(file, ValueError)


def test_so_is_one_that_was_cut_short_before_its_position(refused: Any) -> None:
    buffer = io.BytesIO(b"1234")
    buffer.seek(7)
    assert "seek(0)" in refused(buffer, ValueError)


def test_a_file_at_its_end_may_be_meant(store: Any, file: Path) -> None:
    with file.open("rb") as opened:
        opened.seek(0, os.SEEK_END)
        assert store(opened, size=0) == b""
    assert store(io.BytesIO()) == b""


def test_a_file_is_sent_from_the_position_that_it_has_when_sending_begins(run: Run, url: str, name: str) -> None:
    async def main() -> None:
        async with cogment.Context("test") as context:
            registry = await context.get_model_registry_v2(cogment.Endpoint(url))
            buffer = io.BytesIO()
            call = registry.store_model(name, buffer)
            buffer.write(b"skipped, sent")
            buffer.seek(9)
            assert (await call).size == 4
            assert await registry.retrieve_model(name) == b"sent"

    run(main)


def test_a_file_that_was_written_to_is_sent_with_what_is_still_in_its_buffer(store: Any, tmp_path: Path) -> None:
    with (tmp_path / "written").open("wb+") as file:
        file.write(b"data")
        file.seek(0)
        file.write(b"D")
        file.seek(0)
        assert store(file) == b"Data"


def test_a_file_that_is_open_for_writing_only(refused: Any, tmp_path: Path) -> None:
    with (tmp_path / "written").open("wb") as file:
        file.write(b"data")
        assert "'rb'" in refused(file, ValueError)


def test_a_file_that_is_unpacked_while_it_is_read(store: Any, tmp_path: Path) -> None:
    (tmp_path / "model.gz").write_bytes(gzip.compress(DATA))
    with gzip.open(tmp_path / "model.gz") as file:
        assert store(file) == DATA


# Files that don't tell their size, or change


@pytest.mark.parametrize("as_file", [False, True])
@pytest.mark.parametrize("name", ["/proc/version", "/sys/devices/system/cpu/online"])
def test_a_file_that_says_a_wrong_size_is_read_to_its_end(store: Any, name: str, as_file: bool) -> None:
    path = Path(name)
    if not path.exists():
        pytest.skip(f"there is no {name} here")
    assert path.stat().st_size != len(path.read_bytes())
    if as_file:
        with path.open("rb") as file:
            assert store(file) == path.read_bytes()
    else:
        assert store(path) == path.read_bytes()


def test_an_empty_file(store: Any, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    assert store(tmp_path / "empty") == b""


def test_the_path_of_a_pipe(store: Any, tmp_path: Path) -> None:
    path = tmp_path / "pipe"
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(DATA,))
    writer.start()
    assert store(path) == DATA
    writer.join()


def appended(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"more")


def cut_short(path: Path) -> None:
    os.truncate(path, 1000)


def overwritten(path: Path) -> None:
    with path.open("rb+") as file:
        file.write(b"other")
    os.utime(path, ns=(0, 1))  # the clock of files may not have moved on since it was written


@pytest.mark.parametrize("change", [appended, cut_short, overwritten])
@pytest.mark.parametrize("while_", ["hashing", "progress"])
@pytest.mark.parametrize("as_file", [False, True])
def test_a_file_that_changes_while_it_is_read_is_refused(
    refused: Any, file: Path, change: Callable[[Path], None], while_: str, as_file: bool
) -> None:
    changed = False

    def told(_done: int, _size: int) -> None:
        nonlocal changed
        if not changed:
            changed = True
            change(file)

    options = {while_: told}
    if as_file:
        with file.open("rb", buffering=0) as opened:
            said = refused(opened, OSError, **options)
    else:
        said = refused(file, OSError, **options)
    assert str(file) in said
    assert "changed while it was read" in said or "ended after" in said


def test_one_that_changes_between_being_hashed_and_being_sent(refused: Any, file: Path) -> None:
    def hashed(done: int, size: int) -> None:
        if done == size:
            overwritten(file)

    assert "changed while it was read" in refused(file, OSError, hashing=hashed)


def test_one_that_is_replaced_is_sent_as_it_was(store: Any, file: Path) -> None:
    def hashed(done: int, size: int) -> None:
        if done == size:
            other = file.with_name("other")
            other.write_bytes(b"other")
            other.replace(file)

    assert store(file, hashing=hashed) == DATA


def test_an_empty_file_that_is_written_meanwhile(refused: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def copied(source: IO[bytes], target: IO[bytes], _size: int) -> None:
        appended(file)

    os.truncate(file, 0)
    monkeypatch.setattr("shutil.copyfileobj", copied)
    assert "changed while it was read" in refused(file, OSError)


# Memory that isn't data


class Pointer(ctypes.Structure):
    _fields_ = (("Options", ctypes.c_int), ("text", ctypes.c_char_p))


class Plain(ctypes.Structure):
    _fields_ = (("Options", ctypes.c_int), ("PZ", ctypes.c_double * 2))


@pytest.mark.parametrize(
    "model",
    [
        Pointer(),
        (Pointer * 2)(),
        ctypes.py_object({}),
        ctypes.pointer(ctypes.c_int()),
        ctypes.c_wchar_p("text"),
        (ctypes.c_void_p * 2)(),
    ],
)
def test_pointers_are_not_sent(refused: Any, model: Any) -> None:
    assert "make bytes of it" in refused(model, ValueError)
    assert "make bytes of it" in refused(iter([model]), ValueError, size=8)


@pytest.mark.parametrize(
    "model", [Plain(), (Plain * 2)(), ctypes.c_bool(True), ctypes.c_wchar("ä"), array.array("d", [1])]
)
def test_structures_of_data_are_sent(store: Any, model: Any) -> None:
    assert store(model) == bytes(model)


def test_a_record_with_many_fields_is_refused_at_once(refused: Any) -> None:
    """The time to look at its format grows with the format's length, not with the ways to cut its numbers in two."""
    numpy = pytest.importorskip("numpy")
    fields = [(f"column{number}", "S1000000") for number in range(100)]
    assert "Python objects" in refused(numpy.zeros(0, dtype=[*fields, ("note", "O")]), ValueError)


def test_arrays_of_numpy(store: Any, refused: Any) -> None:
    numpy = pytest.importorskip("numpy")
    for array_ in (
        numpy.array([{}], dtype=object),
        numpy.zeros(2, dtype=[("weight", "f4"), ("note", "O")]),
        numpy.zeros(0, dtype=object),
        numpy.array(["2020-01-01"], dtype="M8[D]"),
        numpy.zeros((2, 3)).T,
    ):
        assert "make bytes of it" in refused(array_, ValueError)
    for array_ in (
        numpy.float16([1, 2]),
        numpy.array([True]),
        numpy.array([1j]),
        numpy.array([1], dtype=">i4"),
        numpy.array(["text", b"bytes"]),
        numpy.array([b"bytes"]),
        numpy.zeros(2, dtype=[("Other", "f4"), ("Padded", "i8", (2, 3))]),
        numpy.zeros(2, dtype=numpy.dtype([("a", "i1"), ("O", "f8")], align=True)),
        numpy.float64(7),
    ):
        assert store(array_) == array_.tobytes()


# What holds no bytes


def framework(module: str, name: str, *bases: type, **attributes: Any) -> Any:
    """An object of a class like one of a framework's: a subclass, as a user's model is."""
    cls = type(name, bases, {"__module__": module, **attributes})
    return type("Mine", (cls,), {"__module__": "__main__"})()


def tensor() -> Any:
    return framework("torch", "Tensor", __iter__=lambda _: iter(()), __len__=lambda _: 0)


@pytest.mark.parametrize(
    ("make", "what", "how"),
    [
        (tensor, "a PyTorch tensor", "torch.save"),
        (lambda: framework("torch.nn.modules.module", "Module"), "a PyTorch module", "state_dict()"),
        (
            lambda: framework("torch.nn.modules.module", "Module", __iter__=lambda _: iter(())),
            "a PyTorch module",
            "safetensors",
        ),
        (lambda: framework("torch.optim.optimizer", "Optimizer"), "a PyTorch optimizer", "state_dict()"),
        (lambda: framework("sklearn.base", "BaseEstimator"), "a scikit-learn model", "pickle.dumps"),
        (lambda: framework("keras.src.models.model", "Model"), "a Keras model", ".keras"),
        (lambda: framework("pandas.core.frame", "DataFrame"), "a pandas DataFrame", "to_parquet"),
        (lambda: OrderedDict(weight=tensor()), "an OrderedDict", "torch.save"),
        (lambda: {"epoch": 1, "model": {"layers": [tensor()]}}, "a dict", "torch.save"),
        (lambda: UserDict(weight=tensor()), "UserDict", "torch.save"),
        (lambda: {"step": 1}, "a dict", "json.dumps"),
        (dict, "a dict", "json.dumps"),
        (lambda: {1, 2}, "a set", "pickle.dumps"),
        (lambda: [0.5, 0.25], "a list", "json.dumps"),
        (lambda: (tensor(), tensor()), "a tuple", "torch.save"),
        (lambda: range(3), "a range", "json.dumps"),
        (lambda: None, "None", "pickle.dumps"),
        (lambda: object, "the class object", "pickle.dumps"),
        (lambda: Path, "the class Path", "a path"),
    ],
)
def test_what_holds_no_bytes_is_named_and_how_to_make_some(refused: Any, make: Any, what: str, how: str) -> None:
    said = refused(make(), TypeError)
    assert what in said
    assert how in said
    assert refused(make(), TypeError, size=100) == said  # a size wouldn't help


def test_arrays_in_a_dict(refused: Any) -> None:
    numpy = pytest.importorskip("numpy")
    assert "numpy.savez" in refused({"weights": numpy.zeros(3)}, TypeError)


@pytest.mark.parametrize(
    ("pieces", "what"), [([b"", "text"], "a text"), ([b"12", 7], "an int"), ([b"", tensor()], "a PyTorch tensor")]
)
def test_pieces_that_are_no_bytes(refused: Any, pieces: list[Any], what: str) -> None:
    async def asynchronous() -> Any:
        for piece in pieces:
            yield piece

    assert what in refused(iter(pieces), TypeError, size=100)
    assert what in refused(asynchronous(), TypeError, size=100)


# Where a model can't be downloaded to


@pytest.mark.parametrize(
    ("into", "error", "says"),
    [
        (lambda _: "model.bin", TypeError, "pathlib"),
        (lambda path: path.open("wb"), TypeError, "open file: .* pathlib"),
        (lambda _: io.BytesIO(), TypeError, "open file"),
        (lambda _: None, TypeError, "into None: .* bytearray"),
        (lambda _: 7, TypeError, "into an int: .* bytearray"),
        (lambda _: tensor(), TypeError, "into a PyTorch tensor"),
        (lambda _: bytes(10), TypeError, "writable"),
        (lambda _: memoryview(bytearray(20))[::2], ValueError, "make bytes of it"),
        (lambda _: (ctypes.c_void_p * 2)(), ValueError, "pointers"),
        (lambda _: (ctypes.py_object * 2)(), ValueError, "Python objects"),
    ],
)
def test_where_a_model_can_not_be_downloaded_to(
    run: Run, url: str, name: str, tmp_path: Path, into: Any, error: type[Exception], says: str
) -> None:
    async def main() -> None:
        async with cogment.Context("test") as context:
            registry = await context.get_model_registry_v2(cogment.Endpoint(url))
            await registry.publish_model(name, b"0123456789")
            target = into(tmp_path / "file")
            with pytest.raises(error, match=says):
                await registry.download_model(name, target)
            if isinstance(target, io.IOBase):
                target.close()

    run(main)


def test_what_is_meant_as_an_endpoint_or_a_cache(run: Run, tmp_path: Path) -> None:
    class Other:
        url = "grpc://127.0.0.1:1"

    async def main() -> None:
        async with cogment.Context("test") as context:
            for endpoint, says in (("grpc://me:secret@host:1", r"Endpoint\('grpc://...@host:1'\)"), (Other(), "Other")):
                with pytest.raises(TypeError, match=says):
                    await context.get_model_registry_v2(endpoint)  # type: ignore[arg-type]
                with pytest.raises(TypeError, match=says):
                    cogment.Context("test", directory_endpoint=endpoint)  # type: ignore[arg-type]
            with pytest.raises(TypeError, match="Cache"):
                await context.get_model_registry_v2(cogment.Endpoint(Other.url), cache=tmp_path)  # type: ignore[arg-type]

    run(main)


# What the registry doesn't take


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProgram]:
    options = ("--max_version_bytes=100000000", "--cache_max_bytes=50000000")
    with server_program(tmp_path_factory.mktemp("archive"), *options) as program:
        yield program


@pytest.mark.parametrize(
    ("send", "size", "option"),
    [
        ("store_model", 100_000_001, "max_version_bytes"),
        ("publish_model", 100_000_001, "max_version_bytes"),
        ("publish_model", 70_000_000, "cache_max_bytes"),
    ],
)
def test_what_is_too_large_is_refused_before_it_is_hashed(
    run: Run, small: ServerProgram, name: str, tmp_path: Path, send: str, size: int, option: str
) -> None:
    path = tmp_path / "large"
    path.touch()
    os.truncate(path, size)
    hashed: list[tuple[int, int]] = []

    async def main() -> None:
        async with cogment.Context("test") as context:
            registry = await context.get_model_registry_v2(cogment.Endpoint(f"grpc://{small.address}"))
            with pytest.raises(cogment.Exhausted, match=f"{size} bytes .*--{option} allows"):
                await getattr(registry, send)(name, path, hashing=lambda *told: hashed.append(told))
            assert await registry.get_model_info(name) is None

    run(main)
    assert hashed == []


def test_progress_of_hashing(store: Any, file: Path) -> None:
    for model in (file, DATA):
        told: list[tuple[int, int]] = []
        sent: list[tuple[int, int]] = []
        store(
            model,
            hashing=lambda *args, told=told: told.append(args),
            progress=lambda *args, sent=sent: sent.append(args),
        )
        assert told == [(0, len(DATA)), (len(DATA), len(DATA))]
        assert sent[-1] == (len(DATA), len(DATA))
        told.clear()
        store(model, hashing=lambda *args, told=told: told.append(args), sha256=None)
        assert told[0] == (0, len(DATA))
