"""What a model has found in images, as JSON or CSV; docs/run.md has the fields and columns.

Numbers are exact: as many digits as tell them from all others. NaN and infinite ones are null, or empty.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from imae.converters.draw_predictions import classes_of_map
from imae.converters.measures import Measures
from imae.converters.predict import ImageModel, Kind, Prediction

HEADINGS = {
    Kind.CLASSES: ("image", "label", "label_name", "rank", "class", "name", "score"),
    Kind.BOXES: ("image", "label", "name", "score", "xmin", "ymin", "xmax", "ymax"),
    Kind.MAP: ("image", "class", "name", "share"),
    Kind.VALUES: ("image", "index", "value"),
}


def best_classes(scores: NDArray[Any]) -> NDArray[np.int64]:
    """The classes by score (C,), the best first; of equal scores the lower class, NaN last."""
    order: NDArray[np.int64] = np.argsort(-scores.astype(np.float64), kind="stable")
    return order


class Records:
    """Collects what was found, image by image.

    model  ImageModel
    top    the number of classes of an image
    """

    def __init__(self, model: ImageModel, top: int) -> None:
        self.model, self.top = model, top
        self.images: list[dict[str, Any]] = []

    def add(self, prediction: Prediction) -> None:
        """Keep one prediction."""
        source, names = prediction.source, self.model.names
        entry: dict[str, Any] = {"image": source.path}
        if source.label is not None:
            entry |= {"label": source.label, "label_name": names.get(source.label)}
        kind = self.model.kind
        if kind is Kind.CLASSES:
            scores = prediction.values
            entry["classes"] = [
                {"class": label, "name": names.get(label), "score": _number(scores[label])}
                for label in best_classes(scores)[: self.top].tolist()
            ]
        elif kind is Kind.BOXES:
            assert prediction.size is not None
            entry["height"], entry["width"] = prediction.size
            entry["boxes"] = [
                {"label": box.label, "name": names.get(box.label), **_sides(box._asdict())}
                for box in prediction.boxes
            ]
        else:
            entry["shape"] = list(prediction.values.shape)
            classes = classes_of_map(prediction.values) if kind is Kind.MAP else None
            if classes is not None:
                entry["classes"] = [
                    {"class": label, "name": names.get(label), "share": share}
                    for label, share in shares_of(classes)
                ]
            elif kind is Kind.VALUES:
                entry["values"] = [_number(value) for value in prediction.values.ravel()]
        self.images.append(entry)

    def json(self, prepared: str, measures: Measures | None) -> str:
        """All as JSON; `prepared` says how images were prepared."""
        model = self.model
        scores = "softmax" if model.softmax else "as the model gives them"
        content: dict[str, Any] = {
            "format": 1,
            "model": str(model.path),
            "output": model.output,
            "kind": model.kind.value if model.kind else None,
            "scores": "probabilities" if model.probabilities else scores,
            "images_were": prepared,
            "names": {str(label): name for label, name in model.names.items()},
            "images": self.images,
            "skipped": [{"image": image, "error": error} for image, error in model.bad],
        }
        if model.kind is not Kind.CLASSES:
            del content["scores"]
        if measures is not None:
            content["measures"] = {
                "images": measures.images,
                "accuracy": measures.accuracy,
                "top_5": measures.top_accuracy,
                "classes": [
                    {"class": entry.label, "name": model.names.get(entry.label), **_without_label(entry)}
                    for entry in measures.classes()
                ],
            }
        # Paths that are not UTF-8 have surrogates, which only escapes can carry.
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    def csv(self) -> str:
        """All as CSV."""
        kind = self.model.kind or Kind.CLASSES
        text = io.StringIO()
        writer = csv.DictWriter(text, HEADINGS[kind], extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        for entry in self.images:
            for row in self._rows(kind, entry):
                writer.writerow({"image": entry["image"]} | row)
        return text.getvalue()

    def _rows(self, kind: Kind, entry: dict[str, Any]) -> Sequence[dict[str, Any]]:
        if kind is Kind.CLASSES:
            labels = {key: entry.get(key) for key in ("label", "label_name")}
            return [labels | {"rank": rank} | row for rank, row in enumerate(entry["classes"], 1)]
        if kind is Kind.BOXES:
            return entry["boxes"] or [{}]
        if kind is Kind.MAP:
            return entry.get("classes") or [{}]
        return [{"index": index, "value": value} for index, value in enumerate(entry["values"])]


def shares_of(classes: NDArray[np.int64]) -> list[tuple[int, float]]:
    """The classes of a map's pixels and their shares, the largest first."""
    labels, counts = np.unique(classes, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [(int(labels[i]), float(counts[i] / classes.size)) for i in order]


def _number(value: Any) -> float | None:
    number = float(value)
    return number if math.isfinite(number) else None


def _sides(box: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in box.items() if key != "label"}


def _without_label(entry: Any) -> dict[str, Any]:
    return {key: value for key, value in entry._asdict().items() if key != "label"}
