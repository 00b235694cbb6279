from __future__ import annotations

from hypothesis import settings

# How long an example takes says something of the machine and of what else it does, not of the code.
settings.register_profile("no deadline", deadline=None)
settings.load_profile("no deadline")
