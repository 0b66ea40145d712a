"""README and docs: their links lead to files and headings that are there; the README is short."""

from __future__ import annotations

import re
from pathlib import Path
from urllib.parse import urlsplit

import pages
import pytest

PAGES = {**pages.pages(), "paper/RESULTS.md": pages.page("paper/RESULTS.md")}
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")
LINKS = {path: LINK.findall(re.sub(r"(?ms)^```.*?^```$", "", text)) for path, text in PAGES.items()}
# Folders of pages that the site's build makes; it checks the links to them.
MADE_BY_THE_SITE = ("commands/", "layers/")
# What the two commands are, to the letter: other programs read them here.
COMMANDS = (
    "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt -e . && .venv/bin/imae demo\n",
    ".venv/bin/pip install -q -c constraints.txt -e '.[test]' && .venv/bin/python -m pytest -q -n 2 tests\n",
)
assert sum(map(len, LINKS.values())) > 70


def anchors(text: str) -> set[str]:
    """The headings of a page as GitHub names them in links."""
    headings = re.findall(r"(?m)^#+ +(.+?)\s*$", re.sub(r"(?ms)^```.*?^```$", "", text))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("path", PAGES)
def test_links_lead_somewhere(path: str) -> None:
    for link in LINKS[path]:
        parts = urlsplit(link)
        if parts.scheme:
            assert parts.scheme == "https", f"{path}: {link}"
            continue
        if path.startswith("docs/") and parts.path.startswith(MADE_BY_THE_SITE):
            continue
        target = (pages.ROOT / path).parent / parts.path if parts.path else pages.ROOT / path
        assert target.exists(), f"{path}: {link}: there is no such file"
        assert target.resolve().is_relative_to(pages.ROOT), f"{path}: {link}"
        if parts.fragment:
            assert parts.fragment in anchors(target.read_text(encoding="utf-8")), f"{path}: {link}"


@pytest.mark.parametrize("path", [path for path in PAGES if path.startswith("docs/")])
def test_every_page_can_be_reached(path: str) -> None:
    """By a link of another page."""
    target = (pages.ROOT / path).resolve()
    others = [
        ((pages.ROOT / other).parent / urlsplit(link).path).resolve()
        for other, links in LINKS.items()
        if other != path
        for link in links
    ]
    assert target in others or Path(path).name == "index.md"


def test_the_readme_is_short_and_has_the_two_commands() -> None:
    text = PAGES["README.md"]
    assert len(text.splitlines()) < 120
    assert all(text.count(f"\n\n    {command}\n") == 1 for command in COMMANDS)
    assert re.findall(r"!\[.*?\]\((.*?)\)", text) == ["docs/demo.png"]


@pytest.mark.parametrize(
    ("heading", "anchor"),
    [("Write a plugin", "write-a-plugin"), ("`imae run`: JSON, CSV", "imae-run-json-csv")],
)
def test_anchors_are_githubs(heading: str, anchor: str) -> None:
    assert anchors(f"# {heading}\n") == {anchor}
