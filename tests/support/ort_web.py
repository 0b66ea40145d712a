"""A folder that looks like npm's package onnxruntime-web, and where the package itself is."""

from __future__ import annotations

import json
import os
from pathlib import Path

from imae.converters.html_page import BINARY, FILES, LOADER, PACKAGE, SCRIPT

ROOT = Path(__file__).parents[2]
CONTENTS = {
    SCRIPT: b"var ort = 1;",
    LOADER: b"export const made = 1; // </script>",
    BINARY: bytes(range(256)) * 3,
}


def write_package(folder: Path) -> Path:
    """Files with the names of the package's; they run nothing."""
    for name, data in CONTENTS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    (folder / "package.json").write_text(json.dumps({"name": "onnxruntime-web", "version": "1.29.3"}))
    return folder


def real_package() -> Path | None:
    """The package that IMAE_ORT_WEB names, or the one in node_modules; None where there is none."""
    folder = Path(os.environ.get("IMAE_ORT_WEB", ROOT / PACKAGE))
    return folder if all((folder / name).is_file() for name in FILES) else None
