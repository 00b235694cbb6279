"""Health checks of a running server, as C-core and tools make them; those of its archive tell of damage, the others go on."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from modelreg.api import model_registry_pb2 as api
from modelreg.api.health_pb2 import HealthCheckRequest, HealthCheckResponse, HealthListRequest
from modelreg.storage.layout import Layout
from tests.clients.calls import SERVICE, Calls, Code, fails, health, open_channel
from tests.support.server import StartServer

ARCHIVE = "modelreg.Archive"
CONTENT = b"weights" * 1000

SERVING, NOT_SERVING = HealthCheckResponse.SERVING, HealthCheckResponse.NOT_SERVING


def damage(archive_dir: Path) -> None:
    path = Layout(archive_dir).blob(hashlib.sha256(CONTENT).digest())
    path.chmod(0o640)
    path.write_bytes(b"x" * len(CONTENT))


def states(checks: Calls) -> dict[str, int]:
    """The state of everything that health checks can ask after, asked for in both ways."""
    listed = {name: each.status for name, each in checks.List(HealthListRequest()).statuses.items()}
    assert {name: checks.Check(HealthCheckRequest(service=name)).status for name in listed} == listed
    return listed


def test_damage_shows_in_the_health_of_the_archive_until_it_is_healed(start_server: StartServer) -> None:
    server = start_server()
    with open_channel(server.address) as channel:
        calls, checks = Calls(channel), health(channel)
        calls.create("policy")
        calls.store("policy", CONTENT)
        watch: Any = checks.Watch(HealthCheckRequest(service=ARCHIVE))
        assert next(watch).status == SERVING
        assert states(checks) == {"": SERVING, SERVICE: SERVING, ARCHIVE: SERVING}

        damage(server.archive_dir)
        with fails(Code.DATA_LOSS):
            calls.data("policy")
        assert next(watch).status == NOT_SERVING
        assert states(checks) == {"": SERVING, SERVICE: SERVING, ARCHIVE: NOT_SERVING}
        assert calls.status("damaged") == {"damaged": "1"}

        calls.store("policy", CONTENT)
        assert next(watch).status == SERVING
        assert states(checks) == {"": SERVING, SERVICE: SERVING, ARCHIVE: SERVING}
        watch.cancel()


def test_damage_that_goes_with_its_model_is_over(start_server: StartServer) -> None:
    server = start_server()
    with open_channel(server.address) as channel:
        calls, checks = Calls(channel), health(channel)
        calls.create("policy")
        calls.store("policy", CONTENT)
        damage(server.archive_dir)
        with fails(Code.DATA_LOSS):
            calls.data("policy")
        watch: Any = checks.Watch(HealthCheckRequest(service=ARCHIVE))
        assert next(watch).status == NOT_SERVING
        calls.DeleteModel(api.DeleteModelRequest(model_id="policy"))
        assert next(watch).status == SERVING
        watch.cancel()


def test_damage_that_the_start_finds_shows_from_the_start(start_server: StartServer) -> None:
    server = start_server()
    with open_channel(server.address) as channel:
        calls = Calls(channel)
        calls.create("policy")
        calls.store("policy", CONTENT)
    server.stop()
    Layout(server.archive_dir).blob(hashlib.sha256(CONTENT).digest()).unlink()
    server.start()
    with open_channel(server.address) as channel:
        assert states(health(channel)) == {"": SERVING, SERVICE: SERVING, ARCHIVE: NOT_SERVING}
