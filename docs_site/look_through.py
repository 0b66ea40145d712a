"""Look through the built pages: no page loads anything from another host.

    python -m docs_site.look_through site

Links that a reader may follow are no loads. Exit status 1 where a page loads something, with its address.
"""

from __future__ import annotations

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

ELSEWHERE = re.compile(r"(?:[a-z]+:)?//", re.IGNORECASE)
LOADING_LINKS = {"stylesheet", "icon", "preload", "preconnect", "dns-prefetch", "modulepreload", "manifest"}
STYLE_ADDRESS = re.compile(r"(?:url\(|@import)\s*[\"']?((?:https?:)?//[^\"')\s]+)")


class Loads(HTMLParser):
    """Collects the addresses that a page loads from another host."""

    def __init__(self) -> None:
        super().__init__()
        self.addresses: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note what a tag loads."""
        values = dict(attrs)
        loaded = [values.get(name) for name in ("src", "poster", "data")]
        if tag == "link" and LOADING_LINKS & set((values.get("rel") or "").split()):
            loaded.append(values.get("href"))
        loaded += (values.get("srcset") or "").split()
        self.addresses += [text for text in loaded if text and ELSEWHERE.match(text)]
        self.addresses += STYLE_ADDRESS.findall(values.get("style") or "")


def loads(html: str) -> list[str]:
    """The addresses on other hosts that a page loads."""
    parser = Loads()
    parser.feed(html)
    return parser.addresses


def main(folder: str) -> int:
    pages = sorted(Path(folder).rglob("*.html"))
    found = [f"{path}: loads {text}" for path in pages for text in loads(path.read_text(encoding="utf-8"))]
    for path in sorted(Path(folder).rglob("*.css")):
        found += [f"{path}: loads {text}" for text in STYLE_ADDRESS.findall(path.read_text(encoding="utf-8"))]
    print("\n".join(found) or f"{len(pages)} pages, which load nothing from other hosts")
    return 1 if found or not pages else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
