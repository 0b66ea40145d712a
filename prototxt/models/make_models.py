"""Write prototxt/models: the nets and solvers of the paper's experiments, from their makers.

    python -m imae.prototxt.models.make_models

The files of models/digits are written by hand and not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby
from pathlib import Path

from google.protobuf.message import Message

from imae.files.atomic import write_atomically
from imae.prototxt.models import inception, resnet, resnet50
from imae.prototxt.text import to_text

MODELS = Path(__file__).parent
WIDTH = 120


def model_files() -> dict[str, str]:
    """The text of each file, by its path below MODELS."""
    return {
        f"{path}.prototxt": "".join(f"# {line}".rstrip() + "\n" for line in header.splitlines())
        + compact_text(message)
        for generator in (resnet, inception, resnet50)
        for path, header, message in generator.models()
    }


def compact_text(message: Message) -> str:
    """The text of a message; what fits is on one line, since some nets have hundreds of layers."""
    return "".join(f"{line}\n" for field in _fields(iter(to_text(message).splitlines())) for line in field)


def _fields(lines: Iterator[str], indent: str = "") -> Iterator[list[str]]:
    """The fields up to the end of a block, each as its lines: one if it fits."""
    for text in map(str.strip, lines):
        if text == "}":
            return
        if not text.endswith(" {"):
            yield [indent + text]
            continue
        fields = list(_fields(lines, indent + "  "))
        whole = " ".join([indent + text, *(line.strip() for field in fields for line in field), "}"])
        yield [whole] if len(whole) <= WIDTH else [indent + text, *_packed(fields), indent + "}"]


def _packed(fields: list[list[str]]) -> Iterator[str]:
    """The lines of these fields: values and short messages, side by side as they fit, and long messages."""
    for _, group in groupby(fields, key=lambda field: (len(field) == 1, field[-1].endswith("}"))):
        packed: list[str] = []
        for field in group:
            joined = f"{packed[-1]} {field[0].strip()}" if packed else ""
            if len(field) == 1 and packed and len(joined) <= WIDTH:
                packed[-1] = joined
            else:
                packed.extend(field)
        yield from packed


def main() -> None:
    for path, text in model_files().items():
        (MODELS / path).parent.mkdir(exist_ok=True)
        write_atomically(MODELS / path, text.encode())


if __name__ == "__main__":
    main()
