"""A directory with everything that a boot has to put right."""

from __future__ import annotations

import json
from pathlib import Path

from modelreg.storage.layout import Layout
from tests.clients.calls import Calls
from tests.faults.scenarios import MEDIUM, OTHER, SMALL, publish, store


def fill(calls: Calls) -> None:
    for model_id in ("m", "bad record", "bad sidecar", "only transient", "going"):
        calls.create(model_id)
        store(calls, SMALL, model_id) if model_id != "only transient" else publish(calls, SMALL, model_id)
    store(calls, OTHER, "bad sidecar")
    store(calls, MEDIUM, "going")


def make_a_mess(archive: Path) -> None:
    """What crashes, disks and people leave."""
    layout = Layout(archive)
    (layout.tmp / ("01234567" * 4)).write_bytes(b"half a file")
    layout.model("going").rename(layout.tmp / ("fedcba98" * 4))
    layout.model_record("bad record").write_bytes(b"")
    layout.model_record("only transient").write_bytes(b"{")
    layout.version_sidecar("bad sidecar", 2).write_text(json.dumps({"format": 1}))
    (layout.models / "cut%20short" / "versions").mkdir(parents=True)
