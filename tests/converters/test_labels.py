"""The names of classes: the files that people have, and those that are none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imae.converters.labels import LONGEST_LABEL, labels_metadata, labels_of, read_labels
from imae.files.errors import DataError, PrototxtError
from imae.files.limits import LARGEST_TEXT

SYNSET_WORDS = "n01440764 tench, Tinca tinca\nn01443537 goldfish, Carassius auratus\nn02012849 crane\n"
LABEL_MAP = """
# VOC's
item { name: "none_of_the_above" label: 0 display_name: "background" }
item { name: "aeroplane" label: 1 }
item { label: 20 name: "tvmonitor" display_name: "tv monitor" }
"""


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (SYNSET_WORDS, ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"]),
        (SYNSET_WORDS.replace("\n", "\r\n"), ["tench, Tinca tinca", "goldfish, Carassius auratus", "crane"]),
        ("\ufeffcat\nchien d'été\n\n", ["cat", "chien d'été"]),
        ("'n01440764 tench'\n'n02268443 devil''s darning needle'", ["tench", "devil's darning needle"]),
        ("n01440764\nn01443537\n", ["n01440764", "n01443537"]),
        ("crane\ncrane", ["crane", "crane"]),
        ("0 no food\n1 food\n", ["no food", "food"]),
        ("0: no food\n1: food", ["no food", "food"]),
        ("1 kg\n2 kg", ["1 kg", "2 kg"]),
        ("0\n1\n2", ["0", "1", "2"]),
        (LABEL_MAP, {0: "background", 1: "aeroplane", 20: "tv monitor"}),
        ('["a", "b"]', ["a", "b"]),
        ('{"1": "b", "0": "a"}', ["a", "b"]),
        ('{"3": "d", "1": "b"}', {1: "b", 3: "d"}),
    ],
)
def test_files_that_people_have(tmp_path: Path, text: str, expected: object) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(text.encode())
    assert read_labels(path) == expected


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty; give a name in each line"),
        (b"\n \n", "is empty; give a name in each line"),
        (b"a\n\nb\n", "line 2 is empty; each line is a class"),
        (b"n01440764 tench\ngoldfish\n", "line 2 does not begin with a synset, as line 1 does"),
        (b"a\nb\xe9t\xe9\n", "line 2: labels must be UTF-8; save the file as UTF-8"),
        ("a\nb\n".encode("utf-16"), "it is text in UTF-16: save it as UTF-8"),
        (b"\x89PNG\r\n\x1a\n\0\0", "it is an image"),
        (b"<!DOCTYPE html><html>", "it is a web page in HTML"),
        (b'layer { name: "a" type: "ReLU" }', "it is a net's prototxt"),
        (b"a\n\x1b[31mb", r"line 2: the name has the control character '\\x1b'; remove it"),
        (b"a" * (LONGEST_LABEL + 1), "line 1: a name has at most 1000 characters, got 1001"),
        (b"x" * (LARGEST_TEXT + 1), "labels have a line for each class"),
        (b"a\n" * 1_000_001, "has 1000001 lines; there are at most 1000000 classes"),
        (b'item { name: "a" label: 1 } item { name: "b" label: 1 }', "label 1 is there twice"),
        (b'item { name: "a" label: -1 }', "item 'a' needs a label, 0 or more"),
        (b'item { name: "a" }', "item 'a' needs a label, 0 or more"),
        (b"item { label: 2 }", "label 2 has no name"),
        (b'{"0": 1}', "class 0 has '1'"),
        (b'{"0": "a", "0": "b"}', "got the key '0'"),
        (b'{"-1": "a"}', "got the key '-1'"),
        ('{"\u0661": "a"}'.encode(), "got the key"),
        (b'{"99999999999": "a"}', "got the key '99999999999'"),
        (b"{}", "must be JSON, a name for each class"),
        (b"[", "must be JSON, a name for each class"),
        (b"[" * 100_000, "must be JSON, a name for each class"),
        (b'{"0": {"a": 1}}', "class 0 has"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "labels.txt"
    path.write_bytes(content)
    with pytest.raises(DataError) as caught:
        read_labels(path)
    text = str(caught.value)
    assert message.replace("\\\\", "\\") in text and "\n" not in text and str(path) in text


def test_a_label_map_with_other_fields_names_the_place(tmp_path: Path) -> None:
    path = tmp_path / "labelmap.prototxt"
    path.write_text('item { name: "a" number: 1 }')
    with pytest.raises(PrototxtError, match=r"labelmap\.prototxt:1:\d+: .*number"):
        read_labels(path)


@pytest.mark.parametrize("name", ["no_such_file", ""])
def test_a_file_that_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(DataError, match=r"cannot read the labels '.*': (No such file|Is a directory)"):
        read_labels(tmp_path / name)


@pytest.mark.parametrize("labels", [["tench, Tinca tinca", "crane", "crane"], {20: "été", 1: "a"}])
def test_the_metadata_keeps_them(labels: list[str] | dict[int, str]) -> None:
    text = labels_metadata(labels)
    expected = dict(enumerate(labels)) if isinstance(labels, list) else labels
    assert {int(number): name for number, name in json.loads(text).items()} == expected
    assert labels_of({"names": text}) == expected
    assert list(labels_of({"names": text})) == sorted(expected)


def test_a_model_without_names() -> None:
    assert labels_of({"imae.version": "1"}) == {}


@pytest.mark.parametrize("text", ["", "tench", "{'0': 'tench'}", '{"0": null}', '{"a": "b"}', "null", "3"])
def test_damaged_metadata_is_refused(text: str) -> None:
    message = r"net\.onnx: metadata: names must be JSON, a name for each class.*; export .* --labels FILE$"
    with pytest.raises(DataError, match=message):
        labels_of({"names": text}, "net.onnx")
