"""``python -m modelreg`` is the ``modelreg`` command."""

from __future__ import annotations

import sys

from modelreg.cli import main

if __name__ == "__main__":
    sys.exit(main())
