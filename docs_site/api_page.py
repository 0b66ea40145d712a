"""docs/api.md: the public names of the package that the page does not show yet, and docstrings for its plugin."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

MARKER = "<!-- the other public names of imae -->"
# Names that have a section of their own, or nothing to show.
ELSEWHERE = ("losses", "__version__")


def completed(markdown: str, public: Sequence[str]) -> str:
    """The page with an entry for each public name that it lacks, in place of MARKER."""
    shown = set(re.findall(r"(?m)^::: imae\.(\w+)$", markdown))
    missing = [name for name in public if name not in shown and name not in ELSEWHERE]
    return markdown.replace(MARKER, "\n\n".join(f"::: imae.{name}" for name in missing))
