"""Annotation files of one image, as SSD's convert_annoset reads them: VOC's XML, COCO's JSON, plain text.

    xml   annotation.size, annotation.object: name, difficult, bndbox.  difficult counts if it stands before
          bndbox; a side that is no whole number is 0, with a warning
    json  image.height, image.width; annotation: a list of category_id, bbox (x, y, width, height) and
          iscrowd, which becomes difficult. The label map's name is the category's number
    txt   lines "label xmin ymin xmax ymax", in pixels

Sides are divided by the size that the file gives, else by the image's. Objects of one label are one group,
and their instances are counted in it.

SSD (weiliu89/caffe): io.cpp. Differs: a text that does not end with whole lines is an error, not the end;
XML that declares entities is refused.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from xml.parsers import expat

import numpy as np

from imae.files.errors import DataError
from imae.files.file_kinds import mistaken_for
from imae.prototxt.caffe_pb2 import AnnotatedDatum, LabelMap

logger = logging.getLogger(__name__)

f32 = np.float32
LABEL_TYPES = ("xml", "json", "txt")
DEEPEST = 100  # nested elements
INT = re.compile(r"\s*([+-]?\d{1,10})\s*", re.ASCII)


class Size(NamedTuple):
    """Of an image, in pixels."""

    height: int
    width: int


class Sides(NamedTuple):
    """Of a box, in pixels."""

    xmin: float
    ymin: float
    xmax: float
    ymax: float


def labels_by_name(label_map: LabelMap, check: bool) -> dict[str, int]:
    """The label of each name; of a name that comes twice the last one, or DataError if `check`."""
    labels: dict[str, int] = {}
    for item in label_map.item:
        if check and item.name in labels:
            raise DataError(f"There are many duplicates of name: {item.name}; correct the label map")
        labels[item.name] = item.label
    return labels


class Objects:
    """The annotations of one image.

    file     their file's name, in warnings and errors
    record   the message to which they are added
    """

    def __init__(self, file: str, record: AnnotatedDatum) -> None:
        self.file, self.record = file, record
        self.warned: set[str] = set()

    def size(self, stated: Size | None, image: Size) -> Size:
        """The size to divide by: the one that the file states, else the image's."""
        if stated is None:
            self.warn("no size of the image; the image's own counts.")
            stated = image
        for side, got, want in zip(Size._fields, stated, image, strict=True):
            if got != want:
                self.warn(f"inconsistent image {side}.")
        if 0 in stated:
            raise DataError(
                f"'{self.file}': no valid image width/height.; got {stated.width} x {stated.height}"
            )
        return stated

    def add(self, label: int) -> Any:
        """A new object, without a box."""
        group = next((g for g in self.record.annotation_group if g.group_label == label), None)
        if group is None:
            group = self.record.annotation_group.add(group_label=label)
        instance = group.annotation[-1].instance_id + 1 if group.annotation else 0
        return group.annotation.add(instance_id=instance)

    def set_box(self, annotation: Any, sides: Sides, size: Size, difficult: bool) -> None:
        """Give an object its box."""
        if sides.xmin > size.width or sides.xmax > size.width or sides.ymin > size.height:
            self.warn("bounding box exceeds image boundary.")
        if sides.ymax > size.height or min(sides) < 0:
            self.warn("bounding box exceeds image boundary.")
        if sides.xmin > sides.xmax or sides.ymin > sides.ymax:
            self.warn("bounding box irregular.")
        box = annotation.bbox
        wholes = (size.width, size.height, size.width, size.height)
        with np.errstate(all="ignore"):
            xmin, ymin, xmax, ymax = (
                float(f32(side) / f32(whole)) for side, whole in zip(sides, wholes, strict=True)
            )
        if not all(map(math.isfinite, (xmin, ymin, xmax, ymax))):
            raise DataError(f"'{self.file}': a box of {tuple(sides)} is no box")
        box.xmin, box.ymin, box.xmax, box.ymax, box.difficult = xmin, ymin, xmax, ymax, difficult

    def warn(self, problem: str) -> None:
        """Log a warning once for the file."""
        if problem not in self.warned:
            self.warned.add(problem)
            logger.warning("%s %s", self.file, problem)

    def label(self, labels: Mapping[str, int], name: str) -> int:
        """The label of a name; DataError where the label map lacks it."""
        if name not in labels:
            raise DataError(f"'{self.file}': Unknown name: {name}; add it to the label map")
        return labels[name]


def read_annotations(
    kind: str, data: bytes, file: str, image: Size, labels: Mapping[str, int], record: AnnotatedDatum
) -> None:
    """Add the objects of a file of one of LABEL_TYPES to the record of an image of this size."""
    if mistaken := mistaken_for(data):
        raise DataError(f"'{file}': expected annotations as {kind}{mistaken}")
    objects = Objects(file, record)
    if kind == "xml":
        _read_xml(data, objects, image, labels)
    elif kind == "json":
        _read_json(data, objects, image, labels)
    else:
        _read_txt(data, objects, image)


# -- XML -----------------------------------------------------------------------------------------------------


@dataclass
class Element:
    """An element with its text and its children."""

    name: str
    text: str = ""
    children: list[Element] = field(default_factory=list)

    def find(self, path: str) -> Element | None:
        """The first descendant at a path "a.b"."""
        name, _, rest = path.partition(".")
        child = next((child for child in self.children if child.name == name), None)
        return child.find(rest) if child is not None and rest else child

    def number(self, path: str) -> int | None:
        """The whole number at a path; None where there is none."""
        child = self.find(path)
        match = INT.fullmatch(child.text) if child is not None else None
        value = int(match[1]) if match else None
        return value if value is not None and -(2**31) <= value < 2**31 else None


def parse_xml(data: bytes, file: str) -> Element:
    """The document; its root is its only child. DataError for XML that is damaged, or declares entities."""
    document = Element("")
    path = [document]

    def start(name: str, _: object) -> None:
        if len(path) > DEEPEST:
            raise DataError(f"'{file}': XML that is nested more than {DEEPEST} deep")
        path[-1].children.append(Element(name))
        path.append(path[-1].children[-1])

    def end(_: str) -> None:
        path.pop()

    def text(piece: str) -> None:
        path[-1].text += piece

    def entity(*_: object) -> None:
        raise DataError(f"'{file}': XML that declares entities is not read; replace them by what they mean")

    parser = expat.ParserCreate()
    parser.buffer_text = True
    parser.StartElementHandler, parser.EndElementHandler = start, end
    parser.CharacterDataHandler, parser.EntityDeclHandler = text, entity
    try:
        parser.Parse(data, True)
    except (expat.ExpatError, LookupError, ValueError) as error:  # LookupError: an unknown encoding
        if isinstance(error, DataError):
            raise
        raise DataError(f"'{file}': damaged XML: {error}") from None
    return document


def _read_xml(data: bytes, objects: Objects, image: Size, labels: Mapping[str, int]) -> None:
    root = parse_xml(data, objects.file).find("annotation")
    if root is None:
        raise DataError(f"'{objects.file}': XML without <annotation>")
    height, width = root.number("size.height"), root.number("size.width")
    stated = Size(height, width) if height is not None and width is not None else None
    size = objects.size(stated, image)
    for element in root.children:
        if element.name != "object":
            continue
        annotation, difficult = None, False
        for part in element.children:
            if part.name == "name":
                annotation = objects.add(objects.label(labels, part.text))
            elif part.name == "difficult":
                difficult = part.text == "1"
            elif part.name == "bndbox":
                if annotation is None:
                    raise DataError(f"'{objects.file}': an object whose <bndbox> stands before its <name>")
                objects.set_box(annotation, _xml_sides(part, objects), size, difficult)


def _xml_sides(box: Element, objects: Objects) -> Sides:
    sides = [box.number(name) for name in Sides._fields]
    if None in sides:
        objects.warn("has sides of boxes that are no whole numbers; they become 0, as in the fork.")
    return Sides(*(side or 0 for side in sides))


# -- JSON ----------------------------------------------------------------------------------------------------


def parse_json(data: bytes, file: str) -> dict[str, Any]:
    """The object of a JSON file; DataError for anything else."""
    try:
        value = json.loads(data)
    except (ValueError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else error
        raise DataError(f"'{file}': damaged JSON: {reason}") from None
    if not isinstance(value, dict):
        raise DataError(f"'{file}': expected a JSON object, got {type(value).__name__}")
    return value


def list_of(value: Mapping[str, Any], key: str, file: str) -> list[dict[str, Any]]:
    """The list of objects under a key of a JSON object."""
    items = value.get(key)
    if not isinstance(items, list) or not all(isinstance(item, dict) for item in items):
        raise DataError(f"'{file}': expected a list of JSON objects under \"{key}\"")
    return items


def json_size(value: object) -> Size | None:
    """The height and width of an image's JSON object; None where it has none."""
    sides = [value.get(side) for side in Size._fields] if isinstance(value, dict) else [None]
    if not all(type(side) is int and 0 <= side < 2**31 for side in sides):
        return None
    return Size(*sides)


def add_json_object(
    value: Mapping[str, Any], objects: Objects, size: Size, labels: Mapping[str, int]
) -> None:
    """Add an object of COCO's annotations."""
    sides: Any = value.get("bbox")
    if not _are_numbers(sides):
        raise DataError(f"'{objects.file}': bbox must be 4 finite numbers, got {str(sides)[:80]}")
    annotation = objects.add(objects.label(labels, str(value.get("category_id"))))
    with np.errstate(all="ignore"):
        x, y, width, height = (f32(side) for side in sides)
        box = Sides(float(x), float(y), float(x + width), float(y + height))
    crowd = value.get("iscrowd")
    objects.set_box(annotation, box, size, type(crowd) is int and crowd != 0)


def _are_numbers(sides: object) -> bool:
    def is_number(side: object) -> bool:
        return type(side) in (int, float) and abs(side) < 1e30  # type: ignore[arg-type]  # type checked

    return isinstance(sides, Sequence) and len(sides) == 4 and all(map(is_number, sides))


def _read_json(data: bytes, objects: Objects, image: Size, labels: Mapping[str, int]) -> None:
    value = parse_json(data, objects.file)
    size = objects.size(json_size(value.get("image")), image)
    for item in list_of(value, "annotation", objects.file):
        add_json_object(item, objects, size, labels)


# -- text ----------------------------------------------------------------------------------------------------


def _read_txt(data: bytes, objects: Objects, image: Size) -> None:
    words = data.decode(errors="replace").split()
    if len(words) % 5:
        raise DataError(
            f"'{objects.file}': expected label xmin ymin xmax ymax for each box, got {len(words)} words"
        )
    for start in range(0, len(words), 5):
        label, *sides = words[start : start + 5]
        try:
            number, numbers = int(label), [float(side) for side in sides]
        except ValueError:
            number, numbers = 2**31, []
        if not -(2**31) <= number < 2**31 or not _are_numbers(numbers):
            raise DataError(
                f"'{objects.file}': expected label xmin ymin xmax ymax, got {' '.join([label, *sides])}"
            )
        objects.set_box(objects.add(number), Sides(*numbers), image, False)
