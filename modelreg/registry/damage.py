"""Which versions have damaged content: blobs are known by their hashes only, and an operator wants models and numbers.

Nothing is kept for it. The versions are looked through when somebody asks, and only while something is damaged.
"""

from __future__ import annotations

import trio

from modelreg.bell import Bell
from modelreg.errors import NotFound
from modelreg.log import Logger
from modelreg.registry.records import VersionInfo
from modelreg.registry.registry import Registry

# How many versions are looked at before other tasks have their turn: a millisecond.
PAGE = 1000

# How many damaged versions the log names at once. A lost disk is one line more.
MOST_TOLD = 1000


async def damaged_versions(registry: Registry, model_id: str | None = None) -> list[VersionInfo]:
    """Return the versions, of all models or of one, whose content is known to be damaged or missing."""
    found: list[VersionInfo] = []
    if not registry.is_damaged():
        return found
    looked = 0
    for model in registry.models() if model_id is None else [registry.model(model_id)]:
        try:
            for version in registry.versions(model.model_id):
                if registry.has_damaged_content(version):
                    found.append(version)
                looked += 1
                if looked == PAGE:
                    looked = 0
                    await trio.lowlevel.checkpoint()
        except NotFound:  # deleted meanwhile
            continue
    return found


async def tell_damage(registry: Registry, changed: Bell, logger: Logger) -> None:
    """Log each version that is found damaged, by model, number and hash, until cancelled. *changed* rings at each change."""
    told: frozenset[bytes] = frozenset()
    while True:
        damaged = registry.damaged
        if new := damaged - told:
            told = damaged
            versions = [version for version in await damaged_versions(registry) if version.digest in new]
            for version in versions[:MOST_TOLD]:
                logger.error(
                    "the data of a version is damaged or missing: store the same content again to heal it",
                    model=version.model_id,
                    version=version.number,
                    sha256=version.digest.hex(),
                )
            if len(versions) > MOST_TOLD:
                logger.error("further versions are damaged", versions=len(versions) - MOST_TOLD)
            continue
        told = damaged
        await changed.wait()
