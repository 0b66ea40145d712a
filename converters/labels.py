"""The names of a model's classes: read from a file, and kept in the model's metadata.

A file has one of these forms, in UTF-8:

    n01440764 tench, Tinca tinca            Caffe's synset_words.txt: the name follows a synset, in each line
    tench                                   a name in each line, the first for class 0
    0 tench                                 the same with the number of the class
    'n01440764 tench, Tinca tinca'          one of these, each line in quotes
    item { name: "..." label: 1             SSD's label map; display_name counts, where it is given
           display_name: "aeroplane" }
    {"0": "tench", ...}, ["tench", ...]     JSON, as in the metadata

The metadata's key `names` has {"0": "tench, Tinca tinca", ...}. Two classes may have one name.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from typing import Any

from imae.files.errors import DataError, first_line
from imae.files.file_kinds import mistaken_for
from imae.files.limits import LARGEST_TEXT
from imae.files.read import AnyPath, file_size, open_to_read
from imae.prototxt import parse_text
from imae.prototxt.caffe_pb2 import LabelMap

NAMES_KEY = "names"
MOST_LABELS, LONGEST_LABEL = 1_000_000, 1000  # ImageNet's longest name has 121 characters
LARGEST_NUMBER = 2**31 - 1  # of a class

SYNSET = re.compile(r"n\d{8}[ \t]+(?=\S)")
NUMBER = re.compile(r"(\d{1,10})(?:[ \t]*[:,][ \t]*|[ \t]+)(?=\S)", re.ASCII)
LABEL_MAP = re.compile(r"(\s|#[^\n]*\n)*item\s*:?\s*\{")
# Control characters, which no name has: they could move a terminal's cursor.
CONTROL = re.compile(r"[\0-\x1f\x7f-\x9f]")

Labels = list[str] | dict[int, str]


def read_labels(path: AnyPath) -> Labels:
    """The names of classes in a file: in the order of the classes, or of a label map by their numbers.

    DataError where it cannot be read, or is no such file.
    """
    name = os.fspath(path)
    text = _read_text(path)
    if LABEL_MAP.match(text):
        return _of_label_map(text, name)
    if text.lstrip().startswith(("{", "[")):
        labels = _from_json(text, f"'{name}'")
        return list(labels.values()) if list(labels) == list(range(len(labels))) else labels
    return _of_lines(text, name)


def labels_of(metadata: Mapping[str, str], where: str = "the model") -> dict[int, str]:
    """The names in a model's metadata, by the number of the class; empty where it has none.

    DataError where they are damaged; `where` names the model.
    """
    if NAMES_KEY not in metadata:
        return {}
    try:
        return _from_json(metadata[NAMES_KEY], f"{where}: metadata: {NAMES_KEY}")
    except DataError as error:
        raise DataError(f"{error}; export the model again, or give --labels FILE") from None


def by_number(labels: Labels) -> dict[int, str]:
    """The names by the number of the class."""
    return dict(enumerate(labels)) if isinstance(labels, list) else labels


def labels_metadata(labels: Labels) -> str:
    """The value of the metadata's key `names`."""
    names = by_number(labels)
    return json.dumps({str(number): names[number] for number in sorted(names)}, ensure_ascii=False)


def _read_text(path: AnyPath) -> str:
    name = os.fspath(path)
    try:
        with open_to_read(path) as file:
            size = file_size(file)
            data = file.read(min(size, LARGEST_TEXT))
    except OSError as error:
        raise DataError(f"cannot read the labels '{name}': {error.strerror or error}") from None
    if size > LARGEST_TEXT:
        raise DataError(
            f"'{name}' has {size} bytes; labels have a line for each class, {LARGEST_TEXT} at most"
        )
    if mistaken := mistaken_for(data):
        raise DataError(f"'{name}' has no labels, a name in each line{mistaken}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DataError(f"'{name}', line {line}: labels must be UTF-8; save the file as UTF-8") from None


def _of_lines(text: str, name: str) -> list[str]:
    lines = [line.strip() for line in text.rstrip().split("\n")]
    if lines == [""]:
        raise DataError(f"'{name}' is empty; give a name in each line, the first for class 0")
    if len(lines) > MOST_LABELS:
        raise DataError(f"'{name}' has {len(lines)} lines; there are at most {MOST_LABELS} classes")
    if "" in lines:
        raise DataError(
            f"'{name}', line {lines.index('') + 1} is empty; each line is a class, the first class 0"
        )
    for quote in "'\"":
        if all(len(line) > 2 and line[0] == line[-1] == quote for line in lines):
            lines = [line[1:-1].replace(2 * quote, quote) for line in lines]
    with_synset = [SYNSET.match(line) for line in lines]
    if with_synset[0]:
        if None in with_synset:
            raise DataError(
                f"'{name}', line {with_synset.index(None) + 1} does not begin with a synset, as line 1 does: "
                "n01440764 tench"
            )
        lines = [SYNSET.sub("", line, count=1) for line in lines]
    numbered = [NUMBER.match(line) for line in lines]
    if [match and int(match[1]) for match in numbered] == list(range(len(lines))):
        lines = [NUMBER.sub("", line, count=1) for line in lines]
    for number, label in enumerate(lines):
        _check(label, f"'{name}', line {number + 1}")
    return lines


def _of_label_map(text: str, name: str) -> dict[int, str]:
    labels: dict[int, str] = {}
    for item in parse_text(text, LabelMap, name).item:
        if not item.HasField("label") or not 0 <= item.label <= LARGEST_NUMBER:
            raise DataError(f"'{name}': item {item.name!r} needs a label, 0 or more")
        if item.label in labels:
            raise DataError(f"'{name}': label {item.label} is there twice; give each item another one")
        labels[item.label] = item.display_name or item.name
        _check(labels[item.label], f"'{name}': label {item.label}")
    return dict(sorted(labels.items()))


def _from_json(text: str, where: str) -> dict[int, str]:
    problem = f'{where} must be JSON, a name for each class: {{"0": "tench", ...}}'
    if len(text) > LARGEST_TEXT:
        raise DataError(f"{problem}; it has {len(text)} characters")
    try:
        content = json.loads(text, object_pairs_hook=_pairs)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{problem}; {first_line(error)}") from None
    if isinstance(content, list) and not isinstance(content, _Pairs):
        content = _Pairs((str(number), label) for number, label in enumerate(content))
    if not isinstance(content, _Pairs) or not content:
        raise DataError(f"{problem}; got {text[:40]!r}")
    labels: dict[int, str] = {}
    for key, label in content:
        number = int(key) if key.isascii() and key.isdecimal() and len(key) <= 10 else -1
        if not 0 <= number <= LARGEST_NUMBER or number in labels:
            raise DataError(f"{problem}; got the key {key[:40]!r}")
        if not isinstance(label, str):
            raise DataError(f"{problem}; class {number} has {str(label)[:40]!r}")
        _check(label, f"{where}: class {number}")
        labels[number] = label
    return dict(sorted(labels.items()))


class _Pairs(list[tuple[str, Any]]):
    """An object of JSON, in which a key may come twice."""


def _pairs(pairs: list[tuple[str, Any]]) -> _Pairs:
    return _Pairs(pairs)


def _check(label: str, where: str) -> None:
    if not label.strip():
        raise DataError(f"{where} has no name")
    if len(label) > LONGEST_LABEL:
        raise DataError(f"{where}: a name has at most {LONGEST_LABEL} characters, got {len(label)}")
    if match := CONTROL.search(label):
        raise DataError(f"{where}: the name has the control character {match[0]!r}; remove it")
