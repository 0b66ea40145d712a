"""The links of Markdown files to files of the repository and to headings, and those that lead nowhere."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from docs_site import links

HEADING = re.compile(r"(?m)^(#{1,6}) +(.+?) *#*$")


class Link(NamedTuple):
    """A link of a file: the file it names, from the top of the repository, and the anchor; "": none."""

    text: str
    target: str
    anchor: str


def relative_links(text: str, path: str) -> Iterator[Link]:
    """The links of a Markdown file at `path` to other files of the repository and to its own headings."""
    for match in links.CODE_OR_LINK.finditer(text):
        if match["code"] is None and not re.match(r"[a-z]+:", match["href"]):
            yield Link(match["words"], *links.resolved(match["href"], path))


def anchors(text: str) -> set[str]:
    """The anchors of a file's headings, as on GitHub and, by pymdownx.slugs, on the site."""
    found: dict[str, int] = {}
    names = set()
    blocks = re.sub(r"(?ms)^ {0,3}(`{3,}|~{3,}).*?^ {0,3}\1[ \t]*$", "", text)
    for _, heading in HEADING.findall(blocks):
        name = slug(heading)
        count = found.get(name, 0)
        found[name] = count + 1
        names.add(f"{name}-{count}" if count else name)
    return names | set(re.findall(r'<a (?:id|name)="([^"]+)"', text))


def slug(heading: str) -> str:
    """The anchor of a heading."""
    heading = re.sub(links.WORDS, r"\g<words>", heading).replace("`", "").replace("*", "")
    return re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-")


def broken_links(root: Path, paths: list[str], pages: Callable[[str], bool] = lambda _: False) -> list[str]:
    """Links of these files that name no file or no heading; `pages`: whether a target is made by the site."""
    problems = []
    for path in paths:
        for link in relative_links((root / path).read_text(encoding="utf-8"), path):
            file = root / link.target
            if not file.exists():
                if not pages(link.target):
                    problems.append(f"{path}: [{link.text}] names {link.target}, which is not there")
            elif file.suffix == ".md" and link.anchor not in anchors(file.read_text(encoding="utf-8")) | {""}:
                problems.append(f"{path}: [{link.text}]: {link.target} has no heading #{link.anchor}")
    return problems
