from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, cast

import pytest

from modelreg import log
from modelreg.errors import LogFileUnusable
from modelreg.log import LineQuota, daily_name, open_log, shown, silent_logger
from modelreg.settings import LOG_LEVELS, LogLevel, Settings

LATE = datetime(2026, 11, 20, 23, 59, 59, 999_000, tzinfo=timezone.utc)

pytestmark = pytest.mark.usefixtures("no_descriptor_left")


class Clock:
    def __init__(self) -> None:
        self.now = LATE

    def __call__(self) -> datetime:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "cogment.log"


def records(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.mark.parametrize("level", LOG_LEVELS)
def test_each_level_lets_through_what_is_at_least_as_grave(level: LogLevel, base: Path, clock: Clock) -> None:
    with open_log(Settings(log_level=level, log_file=base, log_format="json"), clock=clock) as logger:
        for method in (logger.error, logger.warning, logger.info, logger.debug):
            method("something")
    expected = ["error", "warning", "info", "debug"][: LOG_LEVELS.index(level)]
    file = daily_name(base, LATE)
    assert [record["level"] for record in records(file)] == expected if level != "off" else not file.exists()


def test_json_is_one_object_a_line(base: Path, clock: Clock) -> None:
    with open_log(Settings(log_file=base, log_format="json"), clock=clock) as logger:
        logger.bind(model="modèle ✓").info("two\nlines", path=base, count=3, nothing=None, lone="\udcff")
        try:
            raise RuntimeError("what went wrong")
        except RuntimeError:
            logger.exception("it failed")
    first, second = records(daily_name(base, LATE))
    assert list(first)[:3] == ["timestamp", "level", "event"]
    assert first == {
        "timestamp": "2026-11-20T23:59:59.999000Z",
        "level": "info",
        "event": "two\nlines",
        "model": "modèle ✓",
        "path": str(base),
        "count": 3,
        "nothing": None,
        "lone": "\udcff",
    }
    assert second["event"] == "it failed"
    assert str(second["exception"]).endswith("RuntimeError: what went wrong")


def test_text_goes_to_standard_output_without_colours(capfd: pytest.CaptureFixture[str], clock: Clock) -> None:
    with open_log(Settings(), clock=clock) as logger:
        logger.info("listening", host="127.0.0.1", port=9002)
    out, err = capfd.readouterr()
    assert out.split() == ["2026-11-20T23:59:59.999000Z", "[info", "]", "listening", "host='127.0.0.1'", "port=9002"]
    assert err == ""


def test_text_keeps_what_a_client_sent_on_its_line(capfd: pytest.CaptureFixture[str], clock: Clock) -> None:
    forged = "x\n2026-11-20T00:00:00Z [info     ] all is well\x1b[2J"
    with open_log(Settings(), clock=clock) as logger:
        logger.info("call of %s", forged, agent=forged, lone="\udcff")
    out, _ = capfd.readouterr()
    assert len(out.splitlines()) == 1
    assert "\x1b" not in out


def test_text_has_tracebacks_in_full(capfd: pytest.CaptureFixture[str], clock: Clock) -> None:
    with open_log(Settings(), clock=clock) as logger:
        try:
            raise RuntimeError("what went wrong")
        except RuntimeError:
            logger.exception("it failed")
    out, _ = capfd.readouterr()
    assert "Traceback (most recent call last)" in out
    assert out.endswith("RuntimeError: what went wrong\n")


def test_a_new_file_every_day(base: Path, clock: Clock) -> None:
    settings = Settings(log_file=base, log_format="json")
    with open_log(settings, clock=clock) as logger:
        logger.info("yesterday")
        clock.now += timedelta(milliseconds=2)
        logger.info("today")
        logger.info("also today")
    assert [record["event"] for record in records(base.with_name("cogment.log.2026-11-20"))] == ["yesterday"]
    assert [record["event"] for record in records(base.with_name("cogment.log.2026-11-21"))] == ["today", "also today"]
    assert not base.exists()


def others(base: Path) -> set[str]:
    """Files that look like the log's, and aren't."""
    names = {f"{base.name}.{rest}" for rest in ("2026-11-1", "20261101", "2026-W01-1", "2026-11-01.gz", "old")}
    names |= {"other.log.2026-11-01", f"x{base.name}.2026-11-01", "2026-11-01", base.name}
    for name in names:
        base.with_name(name).touch()
    base.with_name(f"{base.name}.2026-01-01").mkdir()
    base.with_name(f"{base.name}.2026-01-02").symlink_to(base)
    return names | {f"{base.name}.2026-01-01", f"{base.name}.2026-01-02"}


def days_kept(base: Path) -> list[int]:
    return sorted(int(path.name[-2:]) for path in base.parent.glob(f"{base.name}.2026-11-??") if path.is_file())


def test_old_files_are_deleted_when_told_so(base: Path, clock: Clock) -> None:
    strangers = others(base)
    for day in range(10, 21):
        daily_name(base, LATE.replace(day=day)).write_text(f"{day}\n")
    with open_log(Settings(log_file=base, log_format="json", log_keep_days=3, log_level="error"), clock=clock):
        pass
    assert days_kept(base) == [18, 19, 20]
    with open_log(Settings(log_file=base, log_format="json", log_keep_days=3), clock=clock) as logger:
        logger.info("today")
        clock.now += timedelta(days=1)
        logger.info("tomorrow")
    assert days_kept(base) == [19, 20, 21]
    clock.now -= timedelta(days=3)  # a clock that is set back
    with open_log(Settings(log_file=base, log_format="json", log_keep_days=1), clock=clock) as logger:
        logger.info("again")
    assert days_kept(base) == [18, 19, 20, 21]
    assert strangers <= set(os.listdir(base.parent))


def test_one_day_is_todays_file(base: Path, clock: Clock) -> None:
    with open_log(Settings(log_file=base, log_format="json", log_keep_days=1), clock=clock) as logger:
        for _ in range(3):
            logger.info("a day's line")
            clock.now += timedelta(days=1)
    assert days_kept(base) == [22]
    assert [record["event"] for record in records(base.with_name("cogment.log.2026-11-22"))] == ["a day's line"]


def test_all_files_are_kept_unless_told_otherwise(base: Path, clock: Clock) -> None:
    daily_name(base, LATE.replace(day=1)).touch()
    with open_log(Settings(log_file=base), clock=clock) as logger:
        logger.info("today")
    assert days_kept(base) == [1, 20]


def test_old_files_that_can_not_be_deleted_are_told_of(
    base: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    for day in (10, 11, 12):
        daily_name(base, LATE.replace(day=day)).touch()
    unlink = Path.unlink

    def limited(path: Path, missing_ok: bool = False) -> None:
        if path.name.endswith("11"):
            raise PermissionError(1, "Operation not permitted", str(path))
        unlink(path, missing_ok)

    monkeypatch.setattr(Path, "unlink", limited)
    with open_log(Settings(log_file=base, log_format="json", log_keep_days=2), clock=clock) as logger:
        logger.info("today")
    assert days_kept(base) == [11, 20]
    warning, today = records(daily_name(base, LATE))
    assert (warning["event"], today["event"]) == ("old log files can't be deleted", "today")
    assert warning["reason"] == f"{base}.2026-11-11: Operation not permitted"


def test_a_file_is_continued(base: Path, clock: Clock) -> None:
    for event in ("first run", "second run"):
        with open_log(Settings(log_file=base, log_format="json"), clock=clock) as logger:
            logger.info(event)
    assert [record["event"] for record in records(daily_name(base, LATE))] == ["first run", "second run"]


def test_two_logs_in_one_process(base: Path, clock: Clock) -> None:
    other = base.with_name("other.log")
    with (
        open_log(Settings(log_file=base, log_format="json"), clock=clock) as one,
        open_log(Settings(log_file=other, log_format="json", log_level="error"), clock=clock) as two,
    ):
        one.info("for the first")
        two.info("for nobody")
        two.error("for the second")
    assert [record["event"] for record in records(daily_name(base, LATE))] == ["for the first"]
    assert [record["event"] for record in records(daily_name(other, LATE))] == ["for the second"]


def test_an_unusable_log_file_is_one_line_and_an_exit_code(base: Path, clock: Clock) -> None:
    base.write_text("a file, not a directory")
    with (
        pytest.raises(LogFileUnusable, match=r"cogment\.log/x\.2026-11-20 can't be written: Not a directory") as caught,
        open_log(Settings(log_file=base / "x"), clock=clock),
    ):
        pass
    assert caught.value.exit_code == 7


def test_a_name_that_is_too_long_with_its_date(tmp_path: Path, clock: Clock) -> None:
    base = tmp_path / ("模" * 81)
    with open_log(Settings(log_file=base), clock=clock) as logger:
        logger.info("this one fits")
    with (
        pytest.raises(LogFileUnusable, match="File name too long"),
        open_log(Settings(log_file=base.with_name("模" * 82)), clock=clock),
    ):
        pass


def test_without_standard_output_there_is_no_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", None)  # as Python has it when descriptor 1 is closed
    with open_log(Settings()) as logger:
        logger.error("nobody hears")


def test_the_silent_logger() -> None:
    logger = silent_logger().bind(model="x")
    logger.critical("nobody hears")


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    """A pipe that takes no more: nobody reads, and it is full."""
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    try:
        while True:
            os.write(writer, bytes(4096))
    except BlockingIOError:
        os.set_blocking(writer, True)
    yield reader, writer
    os.close(reader)


def test_a_reader_that_takes_nothing_holds_up_nobody(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch, clock: Clock
) -> None:
    reader, writer = pipe
    monkeypatch.setattr(log, "MAX_WAITING_LINES", 10)
    with open(writer, "w") as stdout:
        with open_log(Settings(log_format="json"), clock=clock, stdout=stdout) as logger:
            for number in range(100):
                logger.info("line", number=number)
            # Every line has been taken or dropped by now. The reader comes back:
            with open(os.dup(reader), "rb") as stream:
                while b"\n" not in (data := stream.read1(1 << 20)):
                    pass
                lines = data[data.index(b"{") :]
                logger.info("last")
                while b'"last"' not in lines:
                    lines += stream.read1(1 << 20)
                while b"lost" not in lines:
                    lines += stream.read1(1 << 20)
    taken = [json.loads(line) for line in lines.splitlines()]
    numbers = [record["number"] for record in taken if record["event"] == "line"]
    (loss,) = [record for record in taken if record["event"] == "log lines were lost"]
    assert numbers == list(range(len(numbers)))
    assert 10 <= len(numbers) <= 12
    assert loss["lines"] == 100 - len(numbers)


def test_a_full_disk_costs_lines_and_is_told_of_afterwards(
    base: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    full = threading.Event()
    refused = threading.Event()

    def limited_write(fd: int, data: memoryview) -> int:
        if threading.current_thread().name != "modelreg log" or not full.is_set():
            return write(fd, data)
        if refused.is_set() or len(data) < 20:
            refused.set()
            raise OSError(28, "No space left on device")
        return write(fd, data[: len(data) - 10])  # a short write, and then nothing goes

    monkeypatch.setattr(os, "write", limited_write)
    with open_log(Settings(log_file=base, log_format="json"), clock=clock) as logger:
        full.set()
        logger.info("torn")
        assert refused.wait(5)
        full.clear()
        logger.info("after")
    torn, *rest = daily_name(base, LATE).read_text().splitlines()
    assert torn.startswith('{"timestamp": ')
    assert [(record["event"], record.get("lines")) for record in map(json.loads, rest)] == [
        ("after", None),
        ("log lines were lost", 1),
    ]


def test_a_reader_that_is_gone_is_no_failure(capfd: pytest.CaptureFixture[str], clock: Clock) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as stdout, open_log(Settings(), clock=clock, stdout=stdout) as logger:
        logger.info("nobody reads this")
    assert capfd.readouterr() == ("", "")


def test_lines_of_one_key_leave_room_for_others_and_the_rest_is_counted() -> None:
    lines: list[dict[str, object]] = []

    class Logger:
        def info(self, event: str, **fields: object) -> None:
            lines.append({"event": event, **fields})

    quota = LineQuota(cast(Any, Logger()))
    for _ in range(2):
        assert [quota.allows("refused", "a") for _ in range(30)] == [True] * 20 + [False] * 10
        assert [quota.allows("refused", str(key)) for key in range(50)] == [True] * 40 + [False] * 10
        assert quota.allows("published", "a")
        quota.renew()
        assert lines.pop() == {"event": "left lines out of the log", "of": "refused", "lines": 20}
        quota.renew()
        assert not lines


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain é", "plain é"), ("x" * 11, "x" * 9 + "…"), ("a\nb", "a\\nb"), ("\x00" * 5, "\\x00\\x00\\x"), ("", "")],
)
def test_text_of_clients_is_one_short_line(text: str, expected: str) -> None:
    assert shown(text, 10) == expected
