"""The throughput harness: this registry, others that speak the same interface, and competitors, side by side in one run.

    python -m benchmarks --help

`scenarios` is what is measured (data), `targets` and `floors` on what, `clients` by whom, `runner` in which order, `measure`
with which arithmetic; `report` and `html` are what comes out.
"""

from __future__ import annotations

KIB, MIB, GIB = 1024, 1024**2, 1024**3
