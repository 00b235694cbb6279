from __future__ import annotations

from pathlib import Path

import pytest

from modelreg.transport.files import FileMessage


def test_as_bytes(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"0123456789")
    with (tmp_path / "file").open("rb") as file:
        assert FileMessage(b"prefix:", file.fileno(), 2, 5).SerializeToString() == b"prefix:23456"
        assert file.tell() == 0
        assert FileMessage(b"p", file.fileno(), 10, 0).SerializeToString() == b"p"
        with pytest.raises(EOFError):
            FileMessage(b"", file.fileno(), 8, 5).SerializeToString()
