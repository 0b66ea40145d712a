"""Docstrings of the API's pages as Markdown: an extension of Griffe, which reads code for mkdocstrings."""

from __future__ import annotations

from typing import Any

import griffe

from docs_site.docstrings import to_markdown


class PlainDocstrings(griffe.Extension):  # type: ignore[misc]  # where Griffe is not installed
    """Docstrings are plain text with columns and indented code (docstrings.py)."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Replace the docstring of what was just read."""
        if obj.docstring is not None:
            obj.docstring.value = to_markdown(obj.docstring.value, "python")
