"""convert-annoset: VOC's XML, COCO's JSON and plain text; nothing is recorded, boxes are computed by hand."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from imae.cli.main import main
from imae.converters.annotations import Objects, Size, labels_by_name, read_annotations
from imae.converters.convert_annoset import AnnosetForm, convert_annoset
from imae.converters.images import PictureForm
from imae.files.errors import DataError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.lmdb_source import open_lmdb
from imae.prototxt.caffe_pb2 import AnnotatedDatum, LabelMap

HEIGHT, WIDTH = 10, 20
VOC = """<annotation><folder>f</folder><size><width>20</width><height>10</height><depth>3</depth></size>
<object><name>dog</name><pose>Left</pose><difficult>1</difficult>
  <bndbox><xmin>2</xmin><ymin>1</ymin><xmax>12</xmax><ymax>9</ymax></bndbox></object>
<object><name>cat</name><difficult>0</difficult>
  <bndbox><ymax> 10 </ymax><xmax>20</xmax><ymin>5</ymin><xmin>10</xmin></bndbox>
  <part><name>head</name><bndbox><xmin>1</xmin></bndbox></part></object>
<object><name>dog</name><bndbox><xmin>0</xmin><ymin>0</ymin><xmax>5</xmax><ymax>5</ymax></bndbox>
  <difficult>1</difficult></object>
</annotation>"""
COCO_ONE = {
    "image": {"height": 10, "width": 20},
    "annotation": [
        {"category_id": 18, "bbox": [2, 1, 10, 8], "iscrowd": 1},
        {"category_id": 17, "bbox": [10.0, 5, 10, 5]},
        {"category_id": 18, "bbox": [0, 0, 5.0, 5], "iscrowd": 0},
    ],
}
MAP = """item { name: "background" label: 0 } item { name: "dog" label: 12 display_name: "dog" }
    item { name: "18" label: 12 } item { name: "cat" label: 8 } item { name: "17" label: 8 }"""
DOGS = [(12, 0, [0.1, 0.1, 0.6, 0.9], True), (12, 1, [0, 0, 0.25, 0.5], False)]
CAT = (8, 0, [0.5, 0.5, 1, 1], False)
# Objects of a label are one group, in the order in which the labels come first.
WANT = [DOGS[0], DOGS[1], CAT]


def rows(record: AnnotatedDatum) -> list[tuple[int, int, list[float], bool]]:
    return [
        (g.group_label, a.instance_id, [a.bbox.xmin, a.bbox.ymin, a.bbox.xmax, a.bbox.ymax], a.bbox.difficult)
        for g in record.annotation_group
        for a in g.annotation
    ]


def singles(want: list[tuple[int, int, list[float], bool]]) -> list[tuple[int, int, list[float], bool]]:
    return [(g, i, [float(np.float32(side)) for side in sides], d) for g, i, sides, d in want]


def read_db(path: Path) -> dict[str, AnnotatedDatum]:
    with open_lmdb(path) as source:
        return {key.decode(): AnnotatedDatum.FromString(value) for key, value in source.records()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Pictures, annotations of all kinds, lists and a label map."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pictures").mkdir()
    for index in range(3):
        image = np.random.default_rng(index).integers(0, 256, (HEIGHT, WIDTH, 3), np.uint8)
        cv2.imwrite(str(tmp_path / "pictures" / f"{index}.png"), image)
        (tmp_path / f"{index}.xml").write_text(VOC if index < 2 else "<annotation></annotation>")
        (tmp_path / f"{index}.json").write_text(json.dumps(COCO_ONE if index < 2 else {"annotation": []}))
        text = "12 2 1 12 9\n8 10 5 20 10\n12 0.0 0 5 5\n"
        (tmp_path / f"{index}.txt").write_text(text if index < 2 else "")
    for kind in ("xml", "json", "txt"):
        (tmp_path / kind).write_text("".join(f"pictures/{index}.png {index}.{kind}\n" for index in range(3)))
    (tmp_path / "classes").write_text("pictures/0.png 5 pictures/1.png -3\npictures/2.png 0")
    (tmp_path / "map").write_text(MAP)
    return tmp_path


DETECTION = ["--anno_type=detection", "--label_map_file=map"]


@pytest.mark.parametrize("kind", ["xml", "json", "txt"])
def test_boxes(kind: str, folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    assert main(["convert_annoset", *DETECTION, f"--label_type={kind}", "./", kind, "db"]) == 0
    records = read_db(folder / "db")
    assert list(records) == [f"{index:08d}_pictures/{index}.png" for index in range(3)]
    for index, record in enumerate(records.values()):
        want = WANT
        if kind == "txt":  # has no word for difficult
            want = [(g, i, sides, False) for g, i, sides, _ in want]
        assert rows(record) == (singles(want) if index < 2 else [])
        assert record.HasField("type") and record.type == AnnotatedDatum.BBOX
        datum = record.datum
        image = cv2.imread(f"pictures/{index}.png")
        assert (datum.channels, datum.height, datum.width, datum.label) == (3, HEIGHT, WIDTH, -1)
        assert datum.data == image.transpose(2, 0, 1).tobytes() and not datum.encoded
    sizeless = [message for message in caplog.messages if "no size of the image" in message]
    assert len(sizeless) == (kind != "txt")


def test_classification(folder: Path) -> None:
    assert main(["convert-annoset", "--shuffle=3", "./", "classes", "db"]) == 0
    order = CaffeRandom(3).shuffle(3).tolist()
    records = read_db(folder / "db")
    assert [key[9:] for key in records] == [f"pictures/{index}.png" for index in order]
    assert [record.datum.label for record in records.values()] == [[5, -3, 0][index] for index in order]
    assert not any(record.HasField("type") for record in records.values())


def test_encodings_and_sizes(folder: Path) -> None:
    file = (folder / "pictures" / "0.png").read_bytes()
    image = cv2.imread("pictures/0.png")

    def first(*options: str) -> Any:
        arguments = ["convert-annoset", *DETECTION, *options, "./", "xml", f"db{len(list(folder.iterdir()))}"]
        assert main(arguments) == 0
        record = next(iter(read_db(folder / arguments[-1]).values()))
        assert rows(record) == singles(WANT)  # shares of the image, whatever its size
        return record.datum

    datum = first("--encoded", "--encode_type=png")
    assert datum.encoded and datum.data == file and (datum.height, datum.width) == (HEIGHT, WIDTH)
    datum = first("--encoded")  # the fork encodes again what has no encode_type
    assert datum.encoded and datum.data == cv2.imencode(".png", image)[1].tobytes()
    datum = first("--encode_type=jpg")
    assert datum.encoded and datum.data == cv2.imencode(".jpg", image)[1].tobytes()
    datum = first("--resize_height=4", "--resize_width=6", "--gray")
    gray = cv2.resize(cv2.imread("pictures/0.png", 0), (6, 4))
    assert (datum.channels, datum.height, datum.width) == (1, 4, 6) and datum.data == gray.tobytes()
    datum = first("--min_dim=15", "--encode_type=png")  # the shorter side, 10, becomes 15
    assert (datum.height, datum.width) == (15, 30)
    assert datum.data == cv2.imencode(".png", cv2.resize(image, (0, 0), fx=1.5, fy=1.5))[1].tobytes()
    datum = first("--min_dim=15", "--max_dim=24")  # the longer one would have 30
    assert (datum.height, datum.width) == (12, 24)
    datum = first("--max_dim=20")
    assert datum.data == image.transpose(2, 0, 1).tobytes()


def instances() -> dict[str, Any]:
    images = [
        {"id": 40 - index, "file_name": f"{index}.png", "height": 10, "width": 20} for index in range(3)
    ]
    objects = [{**item, "image_id": 40 - index} for index in range(2) for item in COCO_ONE["annotation"]]
    categories = [{"id": 17, "name": "cat"}, {"id": 18, "name": "dog"}]
    return {"images": images, "annotations": objects[::-1], "categories": categories}


@pytest.mark.parametrize("labels", [MAP, 'item { name: "dog" label: 12 } item { name: "cat" label: 8 }'])
def test_coco_s_instances(labels: str, folder: Path) -> None:
    (folder / "map").write_text(labels)
    (folder / "coco.json").write_text(json.dumps(instances()))
    arguments = ["--coco", "coco.json", "--label_map_file=map", "--encode_type=png", "pictures", "db"]
    assert main(["convert-annoset", *arguments]) == 0
    records = read_db(folder / "db")
    assert list(records) == [f"{index:08d}_{index}.png" for index in range(3)]
    # The objects of an image in the file's order.
    want = [(12, 0, DOGS[1][2], False), (12, 1, DOGS[0][2], True), CAT]
    assert [rows(record) for record in records.values()] == [singles(want), singles(want), []]
    assert records["00000000_0.png"].datum.data == (folder / "pictures" / "0.png").read_bytes()


def read(kind: str, data: str | bytes) -> AnnotatedDatum:
    record = AnnotatedDatum()
    content = data if isinstance(data, bytes) else data.encode()
    read_annotations(kind, content, "file", Size(HEIGHT, WIDTH), {"dog": 12, "18": 12}, record)
    return record


def xml(*objects: str, size: str = "<size><width>20</width><height>10</height></size>") -> str:
    return f"<annotation>{size}{''.join(objects)}</annotation>"


def test_what_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    box = "<xmin>12.5</xmin><ymin>3</ymin><xmax>25</xmax><ymax>2</ymax>"
    record = read("xml", xml(f"<object><name>dog</name><bndbox>{box}</bndbox></object>"))
    assert rows(record) == singles([(12, 0, [0, 0.3, 1.25, 0.2], False)])
    assert caplog.messages == [
        "file has sides of boxes that are no whole numbers; they become 0, as in the fork.",
        "file bounding box exceeds image boundary.",
        "file bounding box irregular.",
    ]
    caplog.clear()
    other = xml("<object><name>dog</name></object>", size="<size><width>40</width><height>10</height></size>")
    assert rows(read("xml", other)) == [(12, 0, [0, 0, 0, 0], False)]
    assert caplog.messages == ["file inconsistent image width."]


BOMB = '<!DOCTYPE a [<!ENTITY a "aaaaaaaaaa"><!ENTITY b "&a;&a;&a;">]><annotation><x>&b;</x></annotation>'
WRONG: dict[str, tuple[str, str | bytes, str]] = {
    "entities": ("xml", BOMB, "XML that declares entities is not read"),
    "a file of another system": (
        "xml",
        '<!DOCTYPE a [<!ENTITY x SYSTEM "file:///etc/passwd">]><annotation>&x;</annotation>',
        "XML that declares entities is not read",
    ),
    "cut XML": ("xml", VOC[:200], "damaged XML"),
    "XML that is no text": ("xml", b"\x00\x01\x02", "damaged XML"),
    "an unknown encoding": ("xml", '<?xml version="1.0" encoding="x-none"?><annotation/>', "damaged XML"),
    "deep XML": ("xml", "<a>" * 200, "nested more than 100 deep"),
    "another root": ("xml", "<a/>", "XML without <annotation>"),
    "an unknown name": (
        "xml",
        xml("<object><name>cow</name></object>"),
        "Unknown name: cow; add it to the label map",
    ),
    "a box first": (
        "xml",
        xml("<object><bndbox></bndbox><name>dog</name></object>"),
        "an object whose <bndbox> stands before its <name>",
    ),
    "a size of 0": ("xml", xml(size="<size><width>0</width><height>10</height></size>"), "no valid image"),
    "cut JSON": ("json", json.dumps(COCO_ONE)[:60], "damaged JSON"),
    "deep JSON": ("json", "[" * 100000, "damaged JSON: nested too deeply"),
    "a huge number": ("json", '{"annotation": [' + "9" * 5000 + "]}", "damaged JSON"),
    "another JSON": ("json", "[1]", "expected a JSON object, got list"),
    "no list": ("json", '{"annotation": 3}', 'expected a list of JSON objects under "annotation"'),
    "an endless box": (
        "json",
        '{"annotation": [{"category_id": 18, "bbox": [1e999, 0, 1, 1]}]}',
        "bbox must be 4 finite numbers, got [inf, 0, 1, 1]",
    ),
    "a box of words": ("json", '{"annotation": [{"category_id": 18, "bbox": "abcd"}]}', "bbox must be 4"),
    "an unknown category": (
        "json",
        '{"annotation": [{"category_id": 19, "bbox": [0, 0, 1, 1]}]}',
        "Unknown name: 19",
    ),
    "cut text": ("txt", "1 2 3 4", "expected label xmin ymin xmax ymax for each box, got 4 words"),
    "words": ("txt", "dog 1 2 3 4", "expected label xmin ymin xmax ymax, got dog 1 2 3 4"),
    "no numbers": ("txt", "1 nan 2 3 4", "expected label xmin ymin xmax ymax, got 1 nan 2 3 4"),
    "a label of 33 bits": ("txt", f"{2**31} 1 2 3 4", "expected label xmin"),
    "a web page": ("xml", "<!DOCTYPE html><html></html>", "it is a web page in HTML"),
    "a picture": ("json", b"\x89PNG\r\n\x1a\n....", "it is an image"),
}


@pytest.mark.parametrize("what", WRONG)
def test_wrong_annotations_give_one_line(what: str) -> None:
    kind, data, message = WRONG[what]
    with pytest.raises(DataError) as error:
        read(kind, data)
    assert message in str(error.value) and "\n" not in str(error.value) and "'file'" in str(error.value)


def test_a_name_that_comes_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    twice = LabelMap()
    for label in (1, 2):
        twice.item.add(name="dog", label=label)
    assert labels_by_name(twice, False) == {"dog": 2}
    (folder / "map").write_text('item { name: "dog" label: 1 } item { name: "dog" label: 2 }')
    assert main(["convert-annoset", *DETECTION, "--check_label", "./", "xml", "db"]) == 2
    assert "There are many duplicates of name: dog" in capsys.readouterr().err


def edit(**changes: Any) -> Callable[[dict[str, Any]], None]:
    def change(value: dict[str, Any]) -> None:
        for place, new in changes.items():
            key, name = place.split("__")
            value[key][0][name] = new

    return change


REFUSED: dict[str, tuple[list[str], str, str]] = {
    "no label map": (["--anno_type=detection", "./", "xml", "db"], "", "give --label_map_file FILE"),
    "an empty label map": ([*DETECTION, "./", "xml", "db"], "map:# none", "'map' names no labels"),
    "an odd list": ([*DETECTION, "./", "xml", "db"], "xml:a b c", "for each image, got 3; the last is c"),
    "a label": (["./", "xml", "db"], "xml:a.png b", "after a.png, got b; where the list names annotations"),
    "no list": (["./", "none", "db"], "", "cannot read the list 'none': No such file or directory"),
    "two words": (["./", "db"], "", "give ROOTFOLDER/ LISTFILE DB_NAME"),
    "both": (["--coco", "x", "./", "xml", "db"], "", "--coco takes the place of LISTFILE"),
    "out of the root": (
        [*DETECTION, "./", "xml", "db"], "xml:pictures/0.png a/../../x.xml",
        "a/../../x.xml leads out of the root",
    ),
    "a picture out of the root": (["./", "xml", "db"], "xml:../0.png 1", "../0.png leads out of the root"),
    "no picture at all": (["./", "xml", "db"], "xml:none.png 1", "nothing to write into 'db'"),
    "sizes": (["--check_size", "--encoded", "./", "classes", "db"], "", "--check_size is for raw pixels"),
    "annotations": (
        [*DETECTION, "./", "xml", "db"], "1.xml:<annotation>", "'./1.xml': damaged XML",
    ),
    "an encoding": (["--encode_type=xyz", "./", "classes", "db"], "", "cannot be encoded as 'xyz'"),
    "no instances": (["--coco", "none", *DETECTION[1:], "pictures", "db"], "", "cannot read 'none'"),
    "a list as instances": (["--coco", "xml", *DETECTION[1:], "pictures", "db"], "", "damaged JSON"),
}  # fmt: skip


@pytest.mark.parametrize("what", REFUSED)
def test_the_command_gives_one_line(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments, change, message = REFUSED[what]
    if change:
        name, _, text = change.partition(":")
        (folder / name).write_text(text)
    assert main(["convert-annoset", *arguments]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith("imae: ") and message in line
    assert not (folder / "db").exists()


COCO_WRONG: dict[str, tuple[Callable[[dict[str, Any]], None], str]] = {
    "a path out of the folder": (edit(images__file_name="../x.png"), "../x.png leads out of the root folder"),
    "an absolute path": (edit(images__file_name="/x.png"), "/x.png leads out of the folder of the images"),
    "no id": (edit(images__id="a"), "an image needs file_name and id"),
    "an object of no image": (edit(annotations__image_id=None), "image_id must be a number, got None"),
    "a twin": (edit(images__file_name="1.png"), "the image 1.png comes twice"),
    "a category": (edit(annotations__category_id=99), "Unknown name: 99"),
    "a box": (edit(annotations__bbox=[1, 2]), "coco.json, 1.png': bbox must be 4 finite numbers, got [1, 2]"),
    "no images": (lambda value: value.pop("images"), 'a list of JSON objects under "images"'),
}


@pytest.mark.parametrize("what", COCO_WRONG)
def test_wrong_instances_give_one_line(what: str, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change, message = COCO_WRONG[what]
    value = instances()
    change(value)
    (folder / "coco.json").write_text(json.dumps(value))
    assert main(["convert-annoset", "--coco", "coco.json", *DETECTION[1:], "pictures", "db"]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not (folder / "db").exists()


def test_what_cannot_be_read_is_left_out(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    (folder / "xml").write_text("none.png 0.xml\npictures/1.png none.xml\npictures/2.png 1.xml")
    convert_annoset("./", "xml", "db", anno_type="detection", label_map_file="map")
    records = read_db(folder / "db")
    assert list(records) == ["00000001_pictures/1.png", "00000002_pictures/2.png"]
    assert [len(rows(record)) for record in records.values()] == [0, 3]
    assert "Failed to read none.png" in caplog.text and "./none.xml does not exist" in caplog.text


def test_a_library_call_refuses_what_the_command_line_would() -> None:
    with pytest.raises(DataError, match="anno_type is one of classification, detection"):
        convert_annoset("", "list", "db", anno_type="boxes")
    with pytest.raises(DataError, match="boxes do not follow an image that is padded"):
        convert_annoset("", "list", "db", AnnosetForm(PictureForm(pad=1)))
    with pytest.raises(DataError, match="min_dim and max_dim must be at least 0, got -1 and 0"):
        convert_annoset("", "list", "db", AnnosetForm(min_dim=-1))
    assert Objects("file", AnnotatedDatum()).size(None, Size(3, 4)) == (3, 4)
