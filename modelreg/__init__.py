"""modelreg: a registry for AI models, in the place of the Cogment Model Registry."""

from __future__ import annotations

__version__ = "0.1.0"
