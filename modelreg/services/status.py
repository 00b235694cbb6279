"""What the call Status says, by name."""

from __future__ import annotations

import os
from collections.abc import Collection

from modelreg.errors import InvalidArgument, NotFound
from modelreg.registry.damage import damaged_versions
from modelreg.registry.records import VersionInfo
from modelreg.registry.registry import Registry

# The one status that needs no token.
OVERALL_LOAD = "overall_load"

# A line for each damaged version: model, number and hash between tabs, which model ids can't hold.
DAMAGED_VERSIONS = "damaged_versions"
MOST_LINES = 1000

# Before a model id: the numbers of the model's damaged versions, all of them. A "*" doesn't ask for it.
DAMAGED_VERSIONS_OF = "damaged_versions:"

MOST_NAMES = 100

# The highest load of a machine that can be used; 255 is "can serve nobody".
HIGHEST_LOAD = 254


async def statuses(registry: Registry, names: Collection[str]) -> dict[str, str]:
    """Return the statuses of these names, "*" among them. Names that aren't known are left out.

    Raises:
        InvalidArgument: they are too many.
    """
    if len(names) > MOST_NAMES:
        msg = f"{len(names)} names of statuses were asked for, {MOST_NAMES} are allowed: leave some out"
        raise InvalidArgument(msg)
    statistics = registry.statistics()
    known = {
        OVERALL_LOAD: str(overall_load()),
        "models": str(statistics.models),
        "versions": str(statistics.versions),
        "stored_bytes": str(statistics.stored_bytes),
        "transient_bytes": str(statistics.transient_bytes),
        "evicted": str(statistics.evicted),
        "watchers": str(statistics.watchers),
        "damaged": str(statistics.damaged),
    }
    wanted = set(names)
    if "*" in wanted:
        wanted |= {*known, DAMAGED_VERSIONS}
    known |= {name: str(limit) for name, limit in registry.limits.items()}
    found = {name: text for name, text in known.items() if name in wanted}
    if DAMAGED_VERSIONS in wanted:
        found[DAMAGED_VERSIONS] = _lines(await damaged_versions(registry))
    for name in wanted:
        if name.startswith(DAMAGED_VERSIONS_OF):
            try:
                versions = await damaged_versions(registry, name.removeprefix(DAMAGED_VERSIONS_OF))
            except (InvalidArgument, NotFound):  # such a name isn't known either
                continue
            found[name] = " ".join(str(version.number) for version in versions)
    return found


def _lines(versions: list[VersionInfo]) -> str:
    lines = [f"{version.model_id}\t{version.number}\t{version.digest.hex()}" for version in versions[:MOST_LINES]]
    if len(versions) > MOST_LINES:
        lines.append(f"and {len(versions) - MOST_LINES} more")
    return "\n".join(lines)


def overall_load() -> int:
    """Return the machine's load over the last minute in percent of its cores, 254 at most.

    Reading it takes a descriptor. A server that has none left can't take more work, so it says 254.
    """
    try:
        load, _, _ = os.getloadavg()
    except OSError:
        return HIGHEST_LOAD
    return min(round(load / (os.cpu_count() or 1) * 100), HIGHEST_LOAD)
