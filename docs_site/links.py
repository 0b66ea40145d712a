"""Links between the Markdown files of the repository, rewritten for the site.

They are relative, so that they work where the repository is read. On the site a page lies under docs/; some
files outside of it have a page, too (PAGES), and the others have none.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable

# Files outside of docs/ that are pages of the site, or figures of one.
PAGES = {
    "README.md": "index.md",
    "CHANGELOG.md": "changelog.md",
    "CONTRIBUTING.md": "contributing.md",
    "BENCHMARKS.md": "benchmarks.md",
    "paper/RESULTS.md": "results.md",
    "paper/authors_curves.svg": "authors_curves.svg",
}
CODE = r"^ {0,3}(?P<fence>`{3,}|~{3,})(?:.|\n)*?^ {0,3}(?P=fence)[ \t]*$|^(?:    .*\n?)+|``[^`]+``|`[^`\n]+`"
WORDS = r"\[(?P<words>(?:[^\[\]]|\[[^\]]*\])*)\]\((?P<href>[^()\s]+)\)"
# The first that begins: a link within code is none, code within the words of a link is a part of it.
CODE_OR_LINK = re.compile(rf"(?m)(?P<code>{CODE})|(?P<image>!?){WORDS}")


def resolved(href: str, path: str) -> tuple[str, str]:
    """The file, from the top of the repository, and the anchor that a link in the file at `path` names."""
    file, _, anchor = href.partition("#")
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), file)) if file else path
    return target, anchor


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
        target, anchor = resolved(href, path)
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
