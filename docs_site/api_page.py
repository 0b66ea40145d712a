"""docs/api.md: the public names that the page does not show yet, and the package as mkdocstrings finds it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

# The folders of the package, which lie at the top of the repository.
PARTS = ("files", "prototxt", "losses", "layers", "net", "converters", "train", "paper", "cli", "pycaffe")
MARKER = "<!-- the other public names of imae -->"
# Names that have a section of their own, or nothing to show.
ELSEWHERE = ("losses", "__version__")


def completed(markdown: str, public: Sequence[str]) -> str:
    """The page with an entry for each public name that it lacks, in place of MARKER."""
    shown = set(re.findall(r"(?m)^::: imae\.(\w+)$", markdown))
    missing = [name for name in public if name not in shown and name not in ELSEWHERE]
    return markdown.replace(MARKER, "\n\n".join(f"::: imae.{name}" for name in missing))


def link_package(root: Path, folder: Path) -> None:
    """Make the package in a folder, as links, for programs that read its files without importing it."""
    package = folder / "imae"
    package.mkdir(exist_ok=True)
    for name in (*PARTS, "imae/__init__.py"):
        link = package / Path(name).name
        if not link.is_symlink():
            link.symlink_to(root / name)
