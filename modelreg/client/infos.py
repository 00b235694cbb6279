"""What the registry says of models and of their iterations."""

from __future__ import annotations

from collections.abc import Mapping

import attrs

from modelreg.api import model_registry_pb2 as api


@attrs.frozen(kw_only=True)
class ModelInfo:
    """A model name, and what is known of it apart from its iterations.

    Attributes:
        name: the model name.
        properties: custom information about the model name.
    """

    name: str
    properties: Mapping[str, str] = attrs.field(factory=dict, hash=False)

    @classmethod
    def of(cls, message: api.ModelInfo) -> ModelInfo:
        return cls(name=message.model_id, properties=dict(message.user_data))


@attrs.frozen(kw_only=True)
class ModelIterationInfo:
    """One iteration of a model.

    Attributes:
        model_name: the name of the model.
        iteration: the iteration number, from 1.
        timestamp: when it was stored or published, in nanoseconds since the Unix epoch.
        hash: SHA-256 of its data, in base64 (44 characters, the standard alphabet with padding).
        size: of its data, in bytes.
        stored: whether it's stored, as opposed to only published and therefore transient.
        properties: custom information about this iteration.
    """

    model_name: str
    iteration: int
    timestamp: int
    hash: str
    size: int
    stored: bool
    properties: Mapping[str, str] = attrs.field(factory=dict, hash=False)

    @classmethod
    def of(cls, message: api.ModelVersionInfo) -> ModelIterationInfo:
        return cls(
            model_name=message.model_id,
            iteration=message.version_number,
            timestamp=message.creation_timestamp,
            hash=message.data_hash,
            size=message.data_size,
            stored=message.archived,
            properties=dict(message.user_data),
        )
