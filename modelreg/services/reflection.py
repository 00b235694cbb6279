"""Server reflection, in both the versions that tools speak; their messages differ in the package's name only.

https://github.com/grpc/grpc/blob/master/doc/server-reflection.md
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from types import ModuleType
from typing import Any

from google.protobuf.descriptor import Descriptor, FileDescriptor
from google.protobuf.descriptor_pb2 import DescriptorProto, FileDescriptorProto

from modelreg.api import reflection_v1_pb2, reflection_v1alpha_pb2
from modelreg.api.pool import POOL
from modelreg.api.reflection_v1_grpc import ServerReflectionServicer as ServicerV1
from modelreg.api.reflection_v1alpha_grpc import ServerReflectionServicer as ServicerV1Alpha
from modelreg.grpc.status import Code
from modelreg.transport._purerpc import Servicer


def reflection_servicers(services: Sequence[str]) -> list[Servicer]:
    """The servicers that tell of these services, and of themselves."""
    names = sorted({*services, "grpc.reflection.v1.ServerReflection", "grpc.reflection.v1alpha.ServerReflection"})
    return [
        type("ReflectionServicer", (_Reflection, base), {})(api, names)
        for base, api in ((ServicerV1, reflection_v1_pb2), (ServicerV1Alpha, reflection_v1alpha_pb2))
    ]


class _Reflection:
    def __init__(self, api: ModuleType, services: Sequence[str]) -> None:
        self._api: Any = api
        self._services = services

    async def ServerReflectionInfo(self, messages: AsyncIterator[Any]) -> AsyncGenerator[Any, None]:
        async for message in messages:
            yield self._answer(message)

    def _answer(self, message: Any) -> Any:
        response = self._api.ServerReflectionResponse(valid_host=message.host, original_request=message)
        kind = message.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            elif kind == "file_by_filename":
                _add_files(response, POOL.FindFileByName(message.file_by_filename))
            elif kind == "file_containing_symbol":
                _add_files(response, _file_of(message.file_containing_symbol))
            elif kind == "all_extension_numbers_of_type":
                # proto3 has no extensions.
                response.all_extension_numbers_response.base_type_name = POOL.FindMessageTypeByName(
                    message.all_extension_numbers_of_type
                ).full_name
            else:
                _fail(response, Code.NOT_FOUND if kind else Code.INVALID_ARGUMENT, "nothing of that kind here")
        except KeyError:
            _fail(response, Code.NOT_FOUND, f"{getattr(message, kind)!r} isn't known here")
        return response


def _file_of(symbol: str) -> FileDescriptor:
    """The file of a service, method, message, field or enum. Raises KeyError."""
    try:
        return POOL.FindFileContainingSymbol(symbol)
    except KeyError:
        # It doesn't find methods.
        service, _, method = symbol.rpartition(".")
        return POOL.FindServiceByName(service).methods_by_name[method].containing_service.file


def _add_files(response: Any, file: FileDescriptor) -> None:
    """The file and all that it imports."""
    files = {file.name: file}
    waiting = [file]
    while waiting:
        for imported in waiting.pop().dependencies:
            if imported.name not in files:
                files[imported.name] = imported
                waiting.append(imported)
    response.file_descriptor_response.file_descriptor_proto.extend(map(_serialized, files.values()))


def _serialized(file: FileDescriptor) -> bytes:
    """The file's descriptor, with the JSON names of fields, which protoc leaves out for Python. grpcurl prints fields
    by them.
    """
    proto = FileDescriptorProto.FromString(file.serialized_pb)
    for message in proto.message_type:
        _add_json_names(message, file.message_types_by_name[message.name])
    return proto.SerializeToString()


def _add_json_names(proto: DescriptorProto, descriptor: Descriptor) -> None:
    for field in proto.field:
        field.json_name = descriptor.fields_by_name[field.name].json_name
    for nested in proto.nested_type:
        _add_json_names(nested, descriptor.nested_types_by_name[nested.name])


def _fail(response: Any, code: Code, message: str) -> None:
    response.error_response.error_code = code.value
    response.error_response.error_message = message
