from __future__ import annotations

import subprocess
import sys

import pytest
from google.protobuf import descriptor_pool
from google.protobuf.message import Message

from modelreg.api import (
    common_pb2,
    health_pb2,
    model_registry_pb2,
    reflection_v1_pb2,
    reflection_v1alpha_pb2,
)
from modelreg.api.pool import POOL

MODULES = [common_pb2, health_pb2, model_registry_pb2, reflection_v1_pb2, reflection_v1alpha_pb2]


@pytest.mark.parametrize("module", MODULES, ids=lambda module: module.__name__)
def test_messages_live_in_a_pool_of_their_own(module: object) -> None:
    file = module.DESCRIPTOR  # type: ignore[attr-defined]
    assert file.pool is POOL
    assert POOL is not descriptor_pool.Default()
    for name in file.message_types_by_name:
        message = getattr(module, name)
        assert issubclass(message, Message)
        assert message.DESCRIPTOR.file.pool is POOL


def test_nothing_is_registered_in_the_default_pool() -> None:
    """Else the official cogment package could not be imported beside this one."""
    program = """
import modelreg.api.model_registry_pb2, modelreg.api.health_pb2, modelreg.api.reflection_v1_pb2
from google.protobuf import descriptor_pool
for name in ("cogmentAPI.ModelInfo", "grpc.health.v1.HealthCheckRequest", "cogmentAPI.VersionInfo"):
    try:
        descriptor_pool.Default().FindMessageTypeByName(name)
    except KeyError:
        continue
    raise SystemExit(f"{name} is there")
"""
    subprocess.run([sys.executable, "-c", program], check=True)


def test_other_peoples_generated_health_messages_can_be_imported_too() -> None:
    program = """
import modelreg.api.health_pb2, grpc_health.v1.health_pb2
assert modelreg.api.health_pb2.HealthCheckRequest is not grpc_health.v1.health_pb2.HealthCheckRequest
"""
    pytest.importorskip("grpc_health.v1.health_pb2")
    subprocess.run([sys.executable, "-c", program], check=True)


def test_the_numbers_of_the_interface() -> None:
    """Field numbers and types that every client has compiled in."""
    fields = {field.name: field.number for field in model_registry_pb2.ModelVersionInfo.DESCRIPTOR.fields}
    assert fields == {
        "model_id": 1,
        "version_number": 2,
        "creation_timestamp": 3,
        "archived": 4,
        "data_hash": 5,
        "data_size": 6,
        "user_data": 7,
    }
    service = POOL.FindServiceByName("cogmentAPI.ModelRegistrySP")
    assert sorted(method.name for method in service.methods) == [
        "CreateOrUpdateModel",
        "CreateVersion",
        "DeleteModel",
        "RetrieveModels",
        "RetrieveVersionData",
        "RetrieveVersionInfos",
        "Status",
        "Version",
        "VersionUpdate",
    ]
