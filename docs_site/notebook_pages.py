"""A committed notebook as a Markdown page: text, code, and the outputs that it has; nothing is run."""

from __future__ import annotations

import base64
import html
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docs_site.docstrings import fence
from imae.files.errors import ImaeError

IMAGES = {"image/png": "png", "image/jpeg": "jpg", "image/svg+xml": "svg"}


def page(path: Path) -> tuple[str, dict[str, bytes]]:
    """The text of a notebook's page, and its images by name; ImaeError for a file that is no notebook."""
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
        cells = notebook["cells"]
    except (ValueError, KeyError) as error:
        raise ImaeError(f"{path}: not a notebook of version 4: {error}; write it with Jupyter") from error
    images: dict[str, bytes] = {}
    blocks: list[str] = []
    for cell in cells:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            blocks.append(source)
        elif cell["cell_type"] == "code" and source.strip():
            blocks.append(fence(source, "python"))
            for output in cell["outputs"]:
                blocks += _output(output, path.stem, images)
    blocks.append(f"This page as a notebook: [{path.name}]({path.name}).")
    return "\n\n".join(blocks) + "\n", images


def _output(output: dict[str, Any], stem: str, images: dict[str, bytes]) -> Iterator[str]:
    """What a cell has printed or shown. Of several forms of one output the first that a page can show."""
    if output["output_type"] == "stream":
        yield _block("".join(output["text"]))
        return
    if output["output_type"] == "error":
        yield _block("\n".join(output["traceback"]))
        return
    # Text is a string or a list of lines; what is neither, as JSON, is not shown.
    data = {kind: "".join(parts) for kind, parts in output["data"].items() if "json" not in kind}
    for kind, ending in IMAGES.items():
        if kind in data:
            name = f"{stem}-{len(images)}.{ending}"
            content = data[kind]
            images[name] = content.encode() if ending == "svg" else base64.b64decode(content)
            yield f"![output of the cell above]({name})"
            return
    if "text/html" in data:
        # One block of HTML: a blank line would end it.
        block = re.sub(r"\n\s*\n", "\n", data["text/html"])
        yield f'<div class="notebook-output" markdown="0">{block}</div>'
    elif "text/markdown" in data:
        yield data["text/markdown"]
    elif "text/plain" in data:
        yield _block(data["text/plain"])


def _block(text: str) -> str:
    """Printed text; colours of a terminal are left out. HTML, as it may hold a fence of its own."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", text).rstrip("\n")
    return f'<pre class="notebook-output"><code>{html.escape(plain)}</code></pre>' if plain else ""
