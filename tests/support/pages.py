"""The README, CONTRIBUTING and the pages of docs/, for the tests that compare them with the code and carry them out."""

from __future__ import annotations

import re

from tests.support.server import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text()
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}

FENCED = re.compile(r"^```([\w-]*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(page: str, language: str) -> list[str]:
    """A page's code blocks in a language."""
    return [block for of, block in FENCED.findall(PAGES[page]) if of == language]


def prose(page: str) -> str:
    """A page without its code blocks."""
    return FENCED.sub("", PAGES[page])


def sentences(page: str) -> str:
    """A page as one line, so that a sentence can be found wherever it's broken."""
    return " ".join(PAGES[page].split())
