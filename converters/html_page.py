"""One HTML page with an ONNX model inside, which runs it on images in a browser, and shows what the model is.

    PAGE.html                the page: the model in base64, styles and scripts of converters/web/
    ort/onnxruntime-web.js   ONNX Runtime for browsers; pages in one folder share it

Both work from a disk (a double click) and from a server. Nothing is fetched from elsewhere: the page's
Content-Security-Policy forbids it. The runtime is from npm's package onnxruntime-web, which the user has
installed. Its WebAssembly is stored as text, because a browser lets a page on a disk load scripts, not data.

Names from the model may hold anything. They are in the page as JSON in which no `<` is left, and its script
shows them as text, never as HTML.
"""

from __future__ import annotations

import base64
import gzip
import hashlib
import html
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from imae.converters.export_onnx import Export
from imae.converters.page_facts import facts
from imae.files.atomic import atomic_file, write_atomically
from imae.files.errors import ExportError, FileError
from imae.files.read import AnyPath

PACKAGE = Path("node_modules", "onnxruntime-web")
# Its files that the page needs.
SCRIPT = "dist/ort.wasm.min.js"
LOADER, BINARY = "dist/ort-wasm-simd-threaded.mjs", "dist/ort-wasm-simd-threaded.wasm"
FILES = (SCRIPT, LOADER, BINARY)
OLDEST = (1, 25)  # older ones look for the WebAssembly beside their module, which is in memory here
RUNTIME = Path("ort", "onnxruntime-web.js")
PART = 3 << 20  # bytes of the model in one element of the page; a multiple of 3, so that base64 has no rest


def write_page(
    model: bytes, path: AnyPath, *, ort_web: AnyPath | None = None, measured: Sequence[str] = ()
) -> Path | None:
    """Write the page of an ONNX model to `path`, and the runtime beside it, each atomically.

    ort_web    folder of npm's package onnxruntime-web; None: node_modules/onnxruntime-web, if it is here
    measured   sentences about how the model was compared with its net; see `measured`

    Returns the file of the runtime; None where there is none yet: the page says so, and runs nothing.
    ExportError for what is no model with its weights inside, or no such package.
    """
    page = Path(os.fsdecode(path))
    title = page.stem.encode(errors="replace").decode()  # a name of a file need not be UTF-8
    shown = facts(model, title, measured)
    package = find_ort_web(ort_web)
    runtime = page.parent / RUNTIME
    if package is not None:
        script = runtime_script(package)
        check_folder(path)
        try:
            runtime.parent.mkdir(exist_ok=True)
        except OSError as error:
            raise FileError(f"cannot make the folder '{runtime.parent}': {error.strerror}") from error
        write_atomically(runtime, script)
    with atomic_file(path) as file:
        for piece in pieces(model, shown):
            file.write(piece.encode())
    return runtime if runtime.is_file() else None


def check_folder(path: AnyPath) -> None:
    """FileError where the folder of a page is not there."""
    folder = Path(os.fsdecode(path)).parent
    if not folder.is_dir():
        raise FileError(f"cannot write '{os.fsdecode(path)}': there is no folder '{folder}'")


def find_ort_web(folder: AnyPath | None = None) -> Path | None:
    """The folder of npm's package onnxruntime-web; by default that in node_modules, None if it is not there.

    ExportError where the folder is not the package's.
    """
    package = PACKAGE if folder is None else Path(os.fsdecode(folder))
    if folder is None and not package.exists():
        return None
    for name in ("package.json", *FILES):
        if not (package / name).is_file():
            raise ExportError(
                f"'{package}' is not the folder of npm's package onnxruntime-web: it has no {name}; run npm "
                f"install onnxruntime-web, and give --ort-web {PACKAGE}"
            )
    version = _version(package)
    if tuple(map(int, version.split(".")[:2])) < OLDEST:
        raise ExportError(
            f"'{package}' is onnxruntime-web {version}, which cannot be loaded from a disk; run npm install "
            "onnxruntime-web@latest"
        )
    return package


def _version(package: Path) -> str:
    """The package's version: two numbers or more, with points between them."""
    path = package / "package.json"
    try:
        version = json.loads(path.read_bytes())["version"]
    except OSError as error:
        raise ExportError(f"cannot read '{path}': {error.strerror}") from error
    except (ValueError, KeyError, TypeError, RecursionError):
        version = None
    if not isinstance(version, str) or not re.match(r"\d{1,9}\.\d{1,9}\.", version, re.ASCII):
        raise ExportError(f"'{path}' states no version; run npm install onnxruntime-web again")
    return version


def runtime_script(package: Path) -> bytes:
    """The package's script, and in it, compressed and in base64, its module and its WebAssembly."""
    try:
        script, loader, binary = ((package / name).read_bytes() for name in FILES)
    except OSError as error:
        raise ExportError(f"cannot read '{error.filename}': {error.strerror}") from error
    parts = {"version": _version(package), "loader": _compressed(loader), "wasm": _compressed(binary)}
    head = f"// From npm's package onnxruntime-web: {SCRIPT}\n"
    tail = f"\n// {LOADER} and {BINARY}, compressed by gzip, in base64\n"
    return head.encode() + script + f"{tail}globalThis.onnxruntimeWeb = {_json(parts)};\n".encode()


def _compressed(data: bytes) -> str:
    return base64.b64encode(gzip.compress(data, mtime=0)).decode("ascii")


def measured(result: Export) -> list[str]:
    """What an export has compared, in sentences for the page."""
    sizes = " and ".join(map(str, result.batch_sizes))
    lines = []
    if len(result.not_compared) < len(result.outputs):
        lines.append(
            f"The largest difference from the net's outputs is {result.difference:.3g}, where the largest "
            f"value is {result.largest:.3g}: on random inputs, in ONNX Runtime, batch sizes {sizes}."
        )
    lines += [f"Nothing was compared of output {name}: {why}." for name, why in result.not_compared.items()]
    return lines


# -- the text of the page ------------------------------------------------------------------------------------


def pieces(model: bytes, shown: Mapping[str, Any]) -> Iterator[str]:
    """The text of the page of an ONNX model with these `facts`, piece by piece: a model may be large."""
    style, script = _template("page.css"), _template("prepare.js") + _template("page.js")
    policy = (
        f"default-src 'none'; style-src {_source(style)}; "
        # self: the runtime beside the page. blob: its module, which the page has unpacked.
        f"script-src {_source(script)} 'self' blob: 'wasm-unsafe-eval'; base-uri 'none'; form-action 'none'"
    )
    values = {
        "policy": policy,
        "title": html.escape(shown["title"]),
        "style": style,
        "script": script,
        "facts": _json(shown),
    }
    before, after = _template("page.html").split("{{model}}")
    yield re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], before)
    for at in range(0, len(model), PART):
        part = base64.b64encode(model[at : at + PART]).decode("ascii")
        yield f'<script type="application/octet-stream" class="model">{part}</script>\n'
    yield re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], after)


def _template(name: str) -> str:
    return (files("imae.converters") / "web" / name).read_text(encoding="utf-8")


def _source(text: str) -> str:
    """How a Content-Security-Policy names an inline style or script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode('ascii')}'"


def _json(value: object) -> str:
    """JSON in ASCII that cannot end the script element it is in."""
    text = json.dumps(value, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
