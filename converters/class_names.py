"""The names of a model's classes: from its metadata, or from a file.

A file has one name a line, the first one for class 0, as Caffe's synset_words.txt; or it is SSD's label map
(`item { name: ... label: ... display_name: ... }`), or JSON, {"0": "tench", ...} or a list.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping

from imae.files.errors import DataError
from imae.files.file_kinds import mistaken_for
from imae.files.read import AnyPath, read_bytes
from imae.prototxt.caffe_pb2 import LabelMap
from imae.prototxt.text import parse_text

NAMES_KEY = "names"

Names = Mapping[int, str]


def names_of(metadata: Mapping[str, str], where: str) -> Names:
    """The names in a model's metadata, none if it has none; DataError where they are damaged."""
    if NAMES_KEY not in metadata:
        return {}
    return _from_json(metadata[NAMES_KEY], f"{where}: metadata: {NAMES_KEY}", "; or give --labels FILE")


def read_names(path: AnyPath) -> Names:
    """The names in a file; DataError where it cannot be read, or holds something else."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise DataError(f"cannot read the labels '{path}': {error.strerror or error}") from None
    if mistaken := mistaken_for(data):
        raise DataError(f"'{path}' has no labels, a name in each line{mistaken}")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError:
        raise DataError(f"'{path}': labels must be UTF-8; save the file as UTF-8") from None
    if text.lstrip().startswith(("{", "[")):
        return _from_json(text, f"'{path}'")
    if text.split("{")[0].strip() == "item":
        items = parse_text(text, LabelMap, os.fspath(path)).item
        return {item.label: item.display_name or item.name for item in items}
    names = {number: line.strip() for number, line in enumerate(text.rstrip().split("\n"))}
    if not any(names.values()):
        raise DataError(f"'{path}' is empty; give a name in each line, the first for class 0")
    return names


def _from_json(text: str, where: str, instead: str = "") -> Names:
    try:
        content = json.loads(text)
        if isinstance(content, list):
            content = dict(enumerate(content))
        names = {int(number): name for number, name in content.items()}
    except (ValueError, AttributeError, RecursionError):
        names = {-1: None}
    if not all(isinstance(name, str) for name in names.values()) or min(names, default=0) < 0:
        raise DataError(f'{where} must be JSON, a name for each class: {{"0": "tench", ...}}{instead}')
    return names
