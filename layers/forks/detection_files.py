"""The result files of DetectionOutput (save_output_param), and the list of image sizes that is read for them.

    VOC     PREFIX + name of the class + .txt for each class: image score xmin ymin xmax ymax
    ILSVRC  PREFIX.txt: image label score xmin ymin xmax ymax
    COCO    PREFIX.json: a list of {image_id, category_id, bbox: [x, y, width, height], score}

Boxes are in pixels of the image before it was resized, cut to integers but for COCO.

SSD (weiliu89/caffe, branch ssd): detection_output_layer.cpp. Differs: files are written when all images were
seen, not emptied at the start; a prefix or the name of a class may not lead to another folder; a COCO score
below 1e-4 is a number, not a text.
"""

from __future__ import annotations

import json
import logging
import os
import re
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from torch import Tensor

from imae.files.atomic import write_atomically
from imae.files.errors import SnapshotError
from imae.files.read import read_bytes
from imae.layers.data.saved_state import check_index
from imae.layers.forks.boxes import output_boxes
from imae.layers.layer import Layer
from imae.prototxt.caffe_pb2 import LabelMap, ResizeParameter, SaveOutputParameter
from imae.prototxt.text import read_text

logger = logging.getLogger(__name__)

FORMATS = ("VOC", "COCO", "ILSVRC")
# What COCO's file has without quotes, as its tools expect numbers. Longer ones are no number of a tool's.
NUMBER = re.compile(r"-?[0-9]{1,18}(\.[0-9]{1,18})?")
SIDE = re.compile(r"[0-9]{1,9}")  # pixels


class ImageSize(NamedTuple):
    name: str
    height: int
    width: int


class Detection(NamedTuple):
    """A box of an image; x, y, width and height in pixels, rounded to hundredths.

    place   of the image in the list of sizes, where `image` is its name
    """

    place: int
    image: str
    label: int
    score: float
    bbox: tuple[float, float, float, float]


def read_sizes(layer: Layer, path: str) -> list[ImageSize]:
    """The lines `name height width` of a name_size_file."""
    try:
        text = read_bytes(path).decode()
    except (OSError, UnicodeDecodeError) as error:
        raise layer.error(f"Failed to open name size file: {path} ({error})") from None
    sizes = []
    for number, line in enumerate(text.splitlines(), 1):
        words = line.split()
        if not words:
            continue
        if len(words) != 3 or not all(map(SIDE.fullmatch, words[1:])):
            raise layer.error(f"{path}:{number}: a line has a name, a height and a width; got {line!r}")
        sizes.append(ImageSize(words[0], int(words[1]), int(words[2])))
    return sizes


class DetectionFiles:
    """Collects detections, and writes them when `num_test_image` images were seen."""

    @classmethod
    def of(
        cls, layer: Layer, save: SaveOutputParameter, num_classes: int, background: int
    ) -> DetectionFiles | None:
        """The files that a layer writes; None where a folder, a label map or the sizes are not given."""
        if not save.output_directory:
            return None
        if not (save.label_map_file and save.name_size_file):
            logger.warning(
                "layer %r: output_directory: nothing is saved without label_map_file and name_size_file",
                layer.name,
            )
            return None
        return cls(layer, save, num_classes, background)

    def __init__(self, layer: Layer, save: SaveOutputParameter, num_classes: int, background: int) -> None:
        self._layer, self._save = [layer], save  # a list, as torch would register the layer as its own child
        self._resize = save.resize_param if save.HasField("resize_param") else None
        check_resize(layer, self._resize, "detection_output_param.save_output_param.resize_param")
        if save.output_format not in FORMATS:
            raise layer.error(
                f"output_format must be one of {', '.join(FORMATS)}; got {save.output_format!r}"
            )
        if "\0" in save.output_directory:
            raise layer.error(f"output_directory has a zero byte: {save.output_directory!r}")
        self._names = read_label_map(layer, save.label_map_file)
        labels = []
        for label in range(num_classes):
            if label == background:
                continue
            if label not in self._names:
                raise layer.error(f"Cannot find label: {label} in the label map {save.label_map_file}.")
            labels.append(label)
        self._sizes = read_sizes(layer, save.name_size_file)
        self._count = save.num_test_image if save.HasField("num_test_image") else len(self._sizes)
        if not 0 < self._count <= len(self._sizes):
            raise layer.error(
                f"num_test_image must be 1 to the number of images in {save.name_size_file}, "
                f"{len(self._sizes)}; got {self._count}"
            )
        self._files = self._paths(labels)
        self._seen = 0
        self._detections: list[Detection] = []

    def add(self, rows: Tensor) -> None:
        """The rows (image, label, score, xmin, ymin, xmax, ymax) of the next image."""
        size = self._sizes[self._seen]
        values = rows.detach().cpu().float()
        boxes, _ = output_boxes(values[:, 3:], size.height, size.width, self._resize)
        corners = boxes.numpy()
        if not np.isfinite(corners).all():
            raise self._layer[0].error(
                f"image {size.name}: a box is NaN or infinite, which no result file can have; look at the "
                "predictions (bottom[0]) and the priors (bottom[2])"
            )
        sides = np.concatenate([corners[:, :2], corners[:, 2:] - corners[:, :2]], 1)
        sides = np.sign(sides) * np.floor(np.abs(sides * np.float32(100)) + np.float32(0.5)) / np.float32(100)
        for (_, label, score, *_), bbox in zip(values.tolist(), sides.astype(np.float32), strict=True):
            x, y, width, height = (float(value) for value in bbox)
            box = x, y, width, height
            self._detections.append(Detection(self._seen, size.name, int(label), score, box))
        self._seen += 1
        if self._seen == self._count:
            self._write()
            self._seen = 0
            self._detections.clear()

    def get_state(self) -> dict[str, Any]:
        """How many images were seen, and what was found in them: place, label, score and box by row."""
        rows = [(d.place, d.label, d.score, *d.bbox) for d in self._detections]
        return {"seen": self._seen, "found": np.array(rows, np.float64).reshape(-1, 7)}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where `get_state` was called; SnapshotError where the files are made of other images."""
        check_index("number of images", state["seen"], self._count)
        found = state["found"]
        if found.shape[1] != 7 or not ((found[:, 0] >= 0) & (found[:, 0] < state["seen"])).all():
            raise SnapshotError(
                f"layer '{self._layer[0].name}': the saved detections are not of the {state['seen']} images "
                "seen; the snapshot is damaged"
            )
        self._seen, self._detections = state["seen"], []
        for place, label, score, *bbox in found.tolist():
            if int(label) not in self._files:
                raise SnapshotError(
                    f"layer '{self._layer[0].name}': a saved detection has the label {label:g}, which it has "
                    "not; the snapshot is of another net"
                )
            x, y, width, height = bbox
            name = self._sizes[int(place)].name
            self._detections.append(Detection(int(place), name, int(label), score, (x, y, width, height)))

    def _write(self) -> None:
        folder = Path(self._save.output_directory)
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise self._layer[0].error(f"cannot make the folder {folder}: {error.strerror}") from None
        if self._save.output_format == "COCO":
            entries = [
                {
                    "image_id": _json_value(d.image),
                    "category_id": _json_value(self._names[d.label]),
                    "bbox": [_shortest(value) for value in d.bbox],
                    "score": _shortest(d.score),
                }
                for d in self._detections
            ]
            texts = dict.fromkeys(self._files.values(), json.dumps(entries, indent=4) + "\n")
        elif self._save.output_format == "ILSVRC":
            lines = "".join(f"{d.image} {d.label} {_pixels(d)}\n" for d in self._detections)
            texts = dict.fromkeys(self._files.values(), lines)
        else:
            of_file: dict[Path, list[str]] = {path: [] for path in self._files.values()}
            for d in self._detections:
                of_file[self._files[d.label]].append(f"{d.image} {_pixels(d)}\n")
            texts = {path: "".join(lines) for path, lines in of_file.items()}
        for path, text in texts.items():
            write_atomically(path, text.encode())

    def _paths(self, labels: list[int]) -> dict[int, Path]:
        """The file for each label; LayerError for one outside of the folder."""
        prefix, format_ = self._save.output_name_prefix, self._save.output_format
        if format_ == "VOC":
            names = {label: f"{prefix}{self._names[label]}.txt" for label in labels}
        else:
            names = dict.fromkeys(labels, prefix + (".json" if format_ == "COCO" else ".txt"))
        for name in names.values():
            if name != os.path.basename(name) or "\0" in name:
                raise self._layer[0].error(
                    f"a result file must be in the output_directory itself; got the name {name!r}, of "
                    "output_name_prefix and the label map"
                )
        return {label: Path(self._save.output_directory, name) for label, name in names.items()}


def read_label_map(layer: Layer, path: str) -> dict[int, str]:
    """The names of the classes by label."""
    names: dict[int, str] = {}
    for item in read_text(path, LabelMap).item:
        if item.label in names:
            raise layer.error(f"There are many duplicates of label: {item.label}, in {path}")
        names[item.label] = item.name
    return names


def check_resize(layer: Layer, resize: ResizeParameter | None, path: str) -> None:
    """LayerError for a resize_param without a size; its fields that say nothing about boxes are leftovers."""
    if resize is None:
        return
    if not (resize.height and resize.width):
        raise layer.error(
            f"resize_param: height and width must be larger than 0; got {resize.height} and {resize.width}"
        )
    for field, _ in resize.ListFields():
        if field.name in ("prob", "pad_mode", "pad_value", "interp_mode"):
            layer.note_leftover(f"{path}.{field.name}")


def _pixels(detection: Detection) -> str:
    x, y, width, height = (int(value) for value in detection.bbox)
    return f"{np.float32(detection.score):.6g} {x} {y} {x + width} {y + height}"


def _shortest(value: float) -> float:
    """The nearest number of nine digits: enough for single precision."""
    return float(f"{np.float32(value):.9g}")


def _json_value(text: str) -> str | int | float:
    if not NUMBER.fullmatch(text):
        return text
    return float(text) if "." in text else int(text)
