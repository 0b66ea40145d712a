"""SSD's convert_annoset: images and their annotations into an LMDB of AnnotatedDatums, for AnnotatedData.

The list has words, two for each image: its file and its label (classification), or its file and its file of
annotations (detection; annotations.py). Keys are %08d_FILE with the place in the list. An image that cannot
be read is reported and left out; the others keep their places. An image without a file of annotations has no
objects. COCO's instances.json names images and objects at once: see `convert_coco`.

SSD (weiliu89/caffe): tools/convert_annoset.cpp, io.cpp. Differs: shuffle takes a seed; an LMDB without
records, a list with an odd number of words, and names that lead out of the root folder are errors. As in the
fork, `encoded` without an encoding stores the image as it is encoded again, not the bytes of its file.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np

from imae.converters.annotations import (
    LABEL_TYPES,
    Objects,
    Size,
    add_json_object,
    json_size,
    labels_by_name,
    list_of,
    parse_json,
    read_annotations,
)
from imae.converters.convert_imageset import encode, has_extension
from imae.converters.images import Image, PictureForm, check_root, raw_datum, shuffled_order
from imae.converters.lmdb_writer import Record, write_lmdb
from imae.converters.resize import BILINEAR, INTERPOLATIONS
from imae.files.errors import DataError
from imae.files.file_kinds import mistaken_for
from imae.files.read import AnyPath, read_bytes
from imae.layers.data.datum import decode_image, read_file
from imae.prototxt import Datum, read_text
from imae.prototxt.caffe_pb2 import AnnotatedDatum, LabelMap

logger = logging.getLogger(__name__)

ANNO_TYPES = ("classification", "detection")
MOST_NAMED = 1000  # images that cannot be read
MOST_PIXELS = 1 << 28  # of an image that min_dim enlarges


class Fatal(DataError):
    """What ends the conversion, as in the fork; an image that cannot be read is only left out."""


class AnnosetForm(NamedTuple):
    """How images are stored.

    picture          gray, sizes to resize to, encoded
    encode_type      the encoding: png, jpg ...; this implies `encoded`
    min_dim          images are enlarged, aspect kept, until their shorter side has as many pixels; 0: not
    max_dim          and reduced until their longer side has no more; 0: not. Both count before `picture`
    check_size       DataError where an image has another size than the first
    """

    picture: PictureForm = PictureForm()
    encode_type: str = ""
    min_dim: int = 0
    max_dim: int = 0
    check_size: bool = False

    def check(self) -> None:
        """DataError for options that contradict each other."""
        self.picture.check()
        if self.picture.pad:
            raise DataError("boxes do not follow an image that is padded; leave the padding out")
        if (self.picture.encoded or self.encode_type) and self.check_size:
            raise DataError("--check_size is for raw pixels; leave out --encoded and --encode_type")
        if min(self.min_dim, self.max_dim) < 0:
            raise DataError(f"min_dim and max_dim must be at least 0, got {self.min_dim} and {self.max_dim}")

    def datum(self, file: str, name: str, label: int) -> tuple[Datum, Size]:
        """The Datum of an image file, and the size of the image in it; DataError where it cannot be read."""
        data = read_file(file)
        picture = self.picture
        read = decode_image(data, cv2.IMREAD_GRAYSCALE if picture.gray else cv2.IMREAD_COLOR, file)
        size = Size(*read.shape[:2])
        keeps_size = not (self.min_dim or self.max_dim or picture.height or picture.width)
        pixels = read
        if self.min_dim or self.max_dim:
            pixels = self._scaled(read, file)
        elif picture.height and picture.width:
            pixels = INTERPOLATIONS[picture.interpolation or BILINEAR](read, picture.height, picture.width)
        if not (self.encode_type or picture.encoded):
            return raw_datum(pixels, label), size
        datum = Datum(label=label, encoded=True)
        datum.height, datum.width, datum.channels = pixels.shape
        if self.encode_type and keeps_size and has_extension(file, self.encode_type):
            datum.data = data
            return datum, size
        try:
            datum.data = encode(file, pixels, self.encode_type or _extension(name))
        except DataError as error:
            raise Fatal(str(error)) from None
        return datum, size

    def _scaled(self, image: Image, file: str) -> Image:
        sides = image.shape[:2]
        factor = np.float32(1)
        if 0 < min(sides) < self.min_dim:
            factor = np.float32(self.min_dim) / np.float32(min(sides))
        if 0 < self.max_dim < int(factor * np.float32(max(sides))):
            factor = np.float32(self.max_dim) / np.float32(max(sides))
        if factor == 1:
            return image
        if float(factor) ** 2 * sides[0] * sides[1] > MOST_PIXELS or round(float(factor) * min(sides)) < 1:
            raise DataError(f"'{file}': {sides[1]} x {sides[0]} pixels times {factor:g} is no image")
        scaled = cv2.resize(image, (0, 0), fx=float(factor), fy=float(factor))
        return np.asarray(scaled, np.uint8).reshape(*scaled.shape[:2], -1)


def _extension(name: str) -> str:
    _, dot, extension = name.rpartition(".")
    if not dot:
        raise DataError(f"Failed to guess the encoding of '{name}'; give --encode_type png or jpg")
    return extension.lower()


def convert_annoset(
    root: str,
    list_file: str,
    output: AnyPath,
    form: AnnosetForm = AnnosetForm(),  # noqa: B008  # a tuple
    *,
    anno_type: str = "classification",
    label_type: str = "xml",
    label_map_file: str = "",
    check_label: bool = False,
    shuffle: int | None = None,
) -> None:
    """Write the images of a list and their annotations into an LMDB.

    root             prefix of each name, joined without a separator
    form             how images are stored
    anno_type        one of ANNO_TYPES
    label_type       one of LABEL_TYPES, for detection
    label_map_file   a LabelMap, for detection
    check_label      DataError where it has a name twice
    shuffle          seed of the order of the records; None: as in the list

    DataError where the list, the label map or a file of annotations is wrong, and where no image can be read.
    """
    if anno_type not in ANNO_TYPES or label_type not in LABEL_TYPES:
        raise DataError(
            f"anno_type is one of {', '.join(ANNO_TYPES)}, label_type one of {', '.join(LABEL_TYPES)}; "
            f"got {anno_type} and {label_type}"
        )
    form.check()
    _log_form(form)
    labels = read_label_map(label_map_file, check_label) if anno_type == "detection" else {}
    lines = read_pairs(list_file)
    if anno_type == "classification":
        _check_labels(list_file, lines)
    check_root(root, [name for name, _ in lines])
    lines = [lines[i] for i in shuffled_order(len(lines), shuffle)]
    logger.info("A total of %d images.", len(lines))

    def make(name: str, second: str) -> AnnotatedDatum:
        if anno_type == "classification":
            return AnnotatedDatum(datum=form.datum(root + name, name, int(second))[0])
        datum, size = form.datum(root + name, name, -1)
        record = AnnotatedDatum(datum=datum, type=AnnotatedDatum.BBOX)
        file = root + _inside(second, list_file)
        if not os.path.exists(file):
            logger.warning("%s does not exist; %s has no objects", file, name)
            return record
        try:
            annotations = read_bytes(file)
        except (OSError, ValueError) as error:
            raise Fatal(f"cannot read the annotations '{file}': {error}") from None
        try:
            read_annotations(label_type, annotations, file, size, labels, record)
        except DataError as error:
            raise Fatal(str(error)) from None
        return record

    write_lmdb(output, _records(lines, list_file, form, make), len(lines))


def convert_coco(
    instances: str,
    images: str,
    output: AnyPath,
    form: AnnosetForm = AnnosetForm(),  # noqa: B008  # a tuple
    *,
    label_map_file: str,
    check_label: bool = False,
    shuffle: int | None = None,
) -> None:
    """Write the images of a folder and their objects, from COCO's instances.json, into an LMDB.

    The label map's name is the number of a category, as in the fork's labelmap_coco.prototxt, or its name.
    """
    form.check()
    _log_form(form)
    by_name = read_label_map(label_map_file, check_label)
    try:
        value = parse_json(read_bytes(instances), instances)
    except OSError as error:
        raise DataError(f"cannot read '{instances}': {error.strerror}") from None
    labels = dict(by_name)
    for category in list_of(value, "categories", instances) if "categories" in value else []:
        number, word = str(category.get("id")), str(category.get("name"))
        if number not in by_name and word in by_name:
            labels[number] = by_name[word]
    objects_of: dict[int, list[dict[str, Any]]] = {}
    for item in list_of(value, "annotations", instances):
        if type(item.get("image_id")) is not int:
            raise DataError(f"'{instances}': image_id must be a number, got {str(item.get('image_id'))[:80]}")
        objects_of.setdefault(item["image_id"], []).append(item)
    pictures: dict[str, dict[str, Any]] = {}
    for picture in list_of(value, "images", instances):
        name: Any = picture.get("file_name")
        if not isinstance(name, str) or type(picture.get("id")) is not int:
            raise DataError(f"'{instances}': an image needs file_name and id; got {str(picture)[:80]}")
        if os.path.isabs(name):  # joined to the folder, it would lead out of it
            raise DataError(f"'{instances}': {name} leads out of the folder of the images")
        if name in pictures:
            raise DataError(f"'{instances}': the image {name} comes twice")
        pictures[name] = picture
    in_file = list(pictures)
    names = [in_file[i] for i in shuffled_order(len(in_file), shuffle)]
    logger.info("A total of %d images.", len(names))

    def make(name: str, _: str) -> AnnotatedDatum:
        datum, size = form.datum(os.path.join(images, name), name, -1)
        record = AnnotatedDatum(datum=datum, type=AnnotatedDatum.BBOX)
        objects = Objects(f"{instances}, {name}", record)
        try:
            size = objects.size(json_size(pictures[name]), size)
            for item in objects_of.get(pictures[name]["id"], []):
                add_json_object(item, objects, size, labels)
        except DataError as error:
            raise Fatal(str(error)) from None
        return record

    write_lmdb(output, _records([(name, "") for name in names], instances, form, make), len(names))


def read_label_map(path: str, check: bool) -> dict[str, int]:
    """The labels of a LabelMap by name; DataError where there is none."""
    if not path:
        raise DataError("boxes need a label map; give --label_map_file FILE")
    labels = labels_by_name(read_text(path, LabelMap), check)
    if not labels:
        raise DataError(f"the label map '{path}' names no labels")
    return labels


def read_pairs(path: str) -> list[tuple[str, str]]:
    """The words of a list, two by two."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise DataError(f"cannot read the list '{path}': {error.strerror}") from None
    if mistaken := mistaken_for(data):
        raise DataError(
            f"the list '{path}': expected lines of an image and its label or annotations{mistaken}"
        )
    words = data.decode(errors="surrogateescape").split()
    if len(words) % 2:
        raise DataError(
            f"the list '{path}': expected two words for each image, got {len(words)}; the last is {words[-1]}"
        )
    return list(zip(words[::2], words[1::2], strict=True))


def _check_labels(path: str, lines: Iterable[tuple[str, str]]) -> None:
    for name, label in lines:
        try:
            number = int(label)
        except ValueError:
            number = 2**31
        if not -(2**31) <= number < 2**31:
            raise DataError(
                f"the list '{path}': expected a label after {name}, got {label}; where the list "
                "names annotations, give --anno_type detection"
            )


def _inside(name: str, where: str) -> str:
    """A name that does not lead out of the root folder."""
    if os.path.normpath(name.lstrip("/")).split(os.sep)[0] == os.pardir:
        raise Fatal(f"'{where}': {name} leads out of the root folder")
    return name


def _records(lines: Sequence[tuple[str, str]], source: str, form: AnnosetForm, make: Any) -> Iterator[Record]:
    """The records of the images that can be read."""
    size: int | None = None
    unread = 0
    for place, (name, second) in enumerate(lines):
        _inside(name, source)
        try:
            record = make(name, second)
        except Fatal:
            raise
        except ValueError as error:  # a DataError, or a zero byte in the name
            unread += 1
            if unread <= MOST_NAMED:
                logger.warning("Failed to read %s: %s", name, error)
            continue
        count = len(record.datum.data)
        size = count if size is None else size
        if form.check_size and count != size:
            raise DataError(f"'{name}': Incorrect data field size {count}; the first image has {size}")
        yield b"%08d_%s" % (place, name.encode("utf-8", "surrogateescape")), record
    if unread > MOST_NAMED:
        logger.warning("Failed to read %d more files; they are left out", unread - MOST_NAMED)


def _log_form(form: AnnosetForm) -> None:
    picture = form.picture
    if bool(picture.height) != bool(picture.width):
        logger.warning("Not resizing: that needs both resize_height and resize_width.")
    if form.encode_type and not picture.encoded:
        logger.info("encode_type specified, assuming encoded=true.")
