"""Links between the Markdown files of the repository: found, checked, and rewritten for the site.

They are relative, so that they work where the repository is read. On the site a page lies under docs/; some
files outside of it have a page, too (PAGES), and the others have none.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

# Files outside of docs/ that are pages of the site.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "BENCHMARKS.md": "benchmarks.md",
    "paper/RESULTS.md": "results.md",
}
CODE = r"^ {0,3}(?P<fence>`{3,}|~{3,})(?:.|\n)*?^ {0,3}(?P=fence)[ \t]*$|^(?:    .*\n?)+|``[^`]+``|`[^`\n]+`"
WORDS = r"\[(?P<words>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<href>[^()\s]+)\)"
# The first that begins: a link within code is none, code within the words of a link is a part of it.
CODE_OR_LINK = re.compile(rf"(?m)(?P<code>{CODE})|(?P<image>!?){WORDS}")
HEADING = re.compile(r"(?m)^(#{1,6}) +(.+?) *#*$")


class Link(NamedTuple):
    """A link of a file: the file it names, from the top of the repository, and the anchor; "": none."""

    text: str
    target: str
    anchor: str


def relative_links(text: str, path: str) -> Iterator[Link]:
    """The links of a Markdown file at `path` to other files of the repository and to its own headings."""
    for match in CODE_OR_LINK.finditer(text):
        if match["code"] is None and not re.match(r"[a-z]+:", match["href"]):
            yield _resolved(match["words"], match["href"], path)


def _resolved(words: str, href: str, path: str) -> Link:
    file, _, anchor = href.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
    return Link(words, target, anchor)


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
    heading = re.sub(WORDS, r"\g<words>", heading).replace("`", "").replace("*", "")
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


def for_site(text: str, path: str, is_page: Callable[[str], bool], repository: str | None = None) -> str:
    """A file's text for its page: its links lead to pages, or, if there is a `repository`, to its files.

    path       of the file, from the top of the repository
    is_page    whether a file of docs/, named from there, is on the site
    repository address of the repository on the web; without one a link to a file becomes the file's name
    """
    own = site_path(path)

    def link(match: re.Match[str]) -> str:
        image, words, href = match["image"], match["words"], match["href"]
        if match["code"] is not None or re.match(r"[a-z]+:|#", href):
            return match[0]
        _, target, anchor = _resolved(words, href, path)
        page = site_path(target)
        if page is not None and own is not None and is_page(page):
            # The first page of the site has another text than README.md.
            fragment = f"#{anchor}" if anchor and target != "README.md" else ""
            return f"{image}[{words}]({posixpath.relpath(page, posixpath.dirname(own) or '.')}{fragment})"
        if repository:
            fragment = f"#{anchor}" if anchor else ""
            return f"[{words}]({repository.rstrip('/')}/blob/main/{target}{fragment})"
        return f"`{target}`" if target.endswith(words.strip("`")) else f"{words} (`{target}`)"

    return CODE_OR_LINK.sub(link, text)


def site_path(path: str) -> str | None:
    """The page of a file of the repository, from docs/; None where it has none."""
    if path in PAGES:
        return PAGES[path]
    return path.removeprefix("docs/") if path.startswith("docs/") else None
