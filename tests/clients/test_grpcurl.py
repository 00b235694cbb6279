"""What the service's documentation shows, done by grpcurl: its commands as they are, its outputs field by field."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from typing import Any

import pytest

from tests.clients.calls import SERVICE, connected
from tests.support.server import PATIENCE, ServerProgram, StartServer

GRPCURL = os.environ.get("GRPCURL") or shutil.which("grpcurl")
BASH = shutil.which("bash")

pytestmark = [
    pytest.mark.skipif(not GRPCURL, reason="no grpcurl: neither on PATH nor named by GRPCURL"),
    pytest.mark.skipif(not BASH, reason="the documentation's commands are for bash, which isn't there"),
]

Finished = subprocess.CompletedProcess[str]


def shell(command: str, server: ServerProgram) -> Finished:
    """Run a command of the documentation, against this server in place of localhost:9000."""
    assert BASH is not None
    assert "localhost:9000" in command
    return subprocess.run(
        [
            BASH,
            "-c",
            f'grpcurl() {{ "$GRPCURL" "$@"; }}\n{command}'.replace("localhost:9000", f"localhost:{server.port}"),
        ],
        env={**os.environ, "GRPCURL": str(GRPCURL)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )


def output(command: str, server: ServerProgram) -> Any:
    finished = shell(command, server)
    assert (finished.returncode, finished.stderr) == (0, "")
    return json.loads(finished.stdout)


def normalised(result: Any) -> Any:
    """Output without the time at which it was made, which is only looked at for being one."""
    return json.loads(re.sub(r'"creationTimestamp": "\d+"', '"creationTimestamp": "then"', json.dumps(result)))


CREATE_MODEL = r"""
echo "{\"model_info\":{\"model_id\":\"my_model\",\"user_data\":{\"type\":\"my_model_type\"}}}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/CreateOrUpdateModel
"""

DELETE_MODEL = r"""
echo "{\"model_id\":\"my_model\"}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/DeleteModel
"""

LIST_MODELS = r"""
echo "{}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveModels
"""

LISTED_MODELS = """
{
  "modelInfos": [
    {
      "modelId": "my_model",
      "userData": {
        "type": "my_model_type"
      }
    },
    {
      "modelId": "my_other_model",
      "userData": {
        "type": "my_model_type"
      }
    }
  ],
  "nextModelHandle": "2"
}
"""

RETRIEVE_MODELS = r"""
echo "{\"model_ids\":[\"my_other_model\"]}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveModels
"""

RETRIEVED_MODELS = """
{
  "modelInfos": [
    {
      "modelId": "my_other_model",
      "userData": {
        "type": "my_model_type"
      }
    }
  ],
  "nextModelHandle": "1"
}
"""

CREATE_VERSION = r"""
echo "{\"header\":{\"version_info\":{
    \"model_id\":\"my_model\",\
    \"archived\":true,\
    \"data_size\":$(printf chunk_1chunk_2 | wc -c)\
  }}}\
  {\"body\":{\
    \"data_chunk\":\"$(printf chunk_1 | base64)\"\
  }}\
  {\"body\":{\
    \"data_chunk\":\"$(printf chunk_2 | base64)\"\
  }}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/CreateVersion
"""

CREATED_VERSION = """
{
  "versionInfo": {
    "modelId": "my_model",
    "versionNumber": 2,
    "creationTimestamp": "907957639",
    "archived": true,
    "dataHash": "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",
    "dataSize": "14"
  }
}
"""

LIST_VERSIONS = r"""
echo "{\"model_id\":\"my_model\"}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveVersionInfos
"""

LISTED_VERSIONS = """
{
  "versionInfos": [
    {
      "modelId": "my_model",
      "versionNumber": 1,
      "creationTimestamp": "1633119005107454620",
      "archived": true,
      "dataHash": "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",
      "dataSize": "14"
    },
    {
      "modelId": "my_model",
      "versionNumber": 2,
      "creationTimestamp": "1633119625907957639",
      "archived": true,
      "dataHash": "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",
      "dataSize": "14"
    }
  ],
  "nextVersionHandle": "3"
}
"""

RETRIEVE_VERSION = r"""
echo "{\"model_id\":\"my_model\", \"version_numbers\":[1]}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveVersionInfos
"""

RETRIEVED_VERSION = """
{
  "versionInfos": [
    {
      "modelId": "my_model",
      "versionNumber": 1,
      "creationTimestamp": "1633119005107454620",
      "archived": true,
      "dataHash": "jY0g3VkUK62ILPr2JuaW5g7uQi0EcJVZJu8IYp3yfhI=",
      "dataSize": "14"
    }
  ],
  "nextVersionHandle": "2"
}
"""

RETRIEVE_NTH_TO_LAST = r"""
echo "{\"model_id\":\"my_model\", \"version_numbers\":[-2]}" | grpcurl -plaintext -d @ localhost:9000 cogmentAPI.ModelRegistrySP/RetrieveVersionInfos
"""

# As it's printed in the documentation: the service's name lacks its "API".
RETRIEVE_DATA = r"""
echo "{\"model_id\":\"my_model\", \"version_number\":1}" | grpcurl -plaintext -d @ localhost:9000 cogment.ModelRegistrySP/RetrieveVersionData
"""

RETRIEVED_DATA = """
{
  "dataChunk": "Y2h1bmtfMWNodW5rXzI="
}
"""


def test_the_documentations_transcripts(start_server: StartServer) -> None:
    server = start_server("--grpc_reflection")
    assert output(CREATE_MODEL, server) == {}
    assert output(DELETE_MODEL, server) == {}
    for model_id in ("my_model", "my_other_model"):
        assert output(CREATE_MODEL.replace("my_model\\", f"{model_id}\\"), server) == {}
    assert output(LIST_MODELS, server) == json.loads(LISTED_MODELS)
    assert output(RETRIEVE_MODELS, server) == json.loads(RETRIEVED_MODELS)
    # The documentation shows what the second one answers.
    output(CREATE_VERSION, server)
    assert normalised(output(CREATE_VERSION, server)) == normalised(json.loads(CREATED_VERSION))
    assert normalised(output(LIST_VERSIONS, server)) == normalised(json.loads(LISTED_VERSIONS))
    assert normalised(output(RETRIEVE_VERSION, server)) == normalised(json.loads(RETRIEVED_VERSION))
    assert output(RETRIEVE_NTH_TO_LAST, server) == output(RETRIEVE_VERSION, server)
    timestamps = [info["creationTimestamp"] for info in output(LIST_VERSIONS, server)["versionInfos"]]
    assert timestamps == sorted(timestamps, key=int)
    assert len(set(timestamps)) == 2


def test_the_documentations_last_transcript_with_the_services_right_name(start_server: StartServer) -> None:
    server = start_server("--grpc_reflection")
    with connected(server.address) as calls:
        calls.create("my_model")
        calls.store("my_model", b"chunk_1", b"chunk_2")
    misnamed = shell(RETRIEVE_DATA, server)
    assert misnamed.returncode != 0
    assert 'does not expose service "cogment.ModelRegistrySP"' in misnamed.stderr
    rightly = RETRIEVE_DATA.replace("cogment.", "cogmentAPI.")
    assert output(rightly, server) == json.loads(RETRIEVED_DATA)
    assert output(rightly.replace(":1}", ":-1}"), server) == json.loads(RETRIEVED_DATA)


# Beyond the documentation


def grpcurl(server: ServerProgram, *arguments: str) -> Finished:
    command = [str(GRPCURL), "-plaintext", *arguments]
    place = next((index for index, argument in enumerate(command) if argument == "ADDRESS"), None)
    assert place is not None
    command[place] = server.address
    return subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)


def said(finished: Finished) -> str:
    assert (finished.returncode, finished.stderr) == (0, "")
    return finished.stdout


def test_list_and_describe(shared_server: ServerProgram) -> None:
    # grpcurl asks by v1, and by v1alpha where there is no such service; see test_ccore.py for each of them.
    assert said(grpcurl(shared_server, "ADDRESS", "list")).split() == [
        SERVICE,
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    ]
    methods = said(grpcurl(shared_server, "ADDRESS", "list", SERVICE)).split()
    assert [method.removeprefix(f"{SERVICE}.") for method in methods] == [
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
    described = said(grpcurl(shared_server, "ADDRESS", "describe", f"{SERVICE}.CreateVersion"))
    assert "stream .cogmentAPI.CreateVersionRequestChunk" in described
    described = said(grpcurl(shared_server, "ADDRESS", "describe", "cogmentAPI.ModelVersionInfo"))
    assert "fixed64 creation_timestamp = 3" in described
    everything = said(grpcurl(shared_server, "ADDRESS", "describe"))
    assert everything.count("is a service:") == 4


@pytest.mark.parametrize("service", ["", SERVICE])
def test_health(shared_server: ServerProgram, service: str) -> None:
    request = json.dumps({"service": service})
    reply = said(grpcurl(shared_server, "-d", request, "ADDRESS", "grpc.health.v1.Health/Check"))
    assert json.loads(reply) == {"status": "SERVING"}


def test_error_is_shown_with_its_code_and_details(shared_server: ServerProgram) -> None:
    finished = grpcurl(shared_server, "-d", '{"model_id": "x"}', "ADDRESS", f"{SERVICE}/DeleteModel")
    assert finished.returncode != 0
    assert "Code: NotFound" in finished.stderr
    assert 'Message: no model "x" found' in finished.stderr


def test_without_reflection_grpcurl_says_so(start_server: StartServer) -> None:
    finished = grpcurl(start_server(), "ADDRESS", "list")
    assert finished.returncode != 0
    assert "does not support the reflection API" in finished.stderr
