"""The docstrings of the API's pages as Markdown: an extension of Griffe, which reads the code for mkdocstrings."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import griffe

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the extension is loaded by its path

from docs_site.docstrings import to_markdown


class PlainDocstrings(griffe.Extension):
    """Docstrings are plain text with columns and indented code (docstrings.py)."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replace the docstring of what was just read."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, "python")
