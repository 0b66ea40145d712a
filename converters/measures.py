"""How well a model classifies labelled images: accuracy, recall and precision of each class, confusions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import DataError, printable

TOP = 5  # as in top-5 accuracy
MOST_CLASSES = 20  # that are all listed
WORST = 10  # of more classes
MOST_PAIRS = 15
WIDTH = 80  # columns of text


class ClassMeasures(NamedTuple):
    """Of one class.

    images     that have its label
    recall     the share of these that the model gives the class; None without images
    precision  the share of the images that the model gives the class whose label it is; None without any
    """

    label: int
    images: int
    recall: float | None
    precision: float | None


class Measures:
    """Counts what labelled images have been taken for.

    num_classes  of the model
    images       that were counted
    right        whose best class is their label
    in_top       whose label is among the five best classes
    pairs        how many images have a label and were taken for a class
    """

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.images = self.right = self.in_top = 0
        self.pairs: Counter[tuple[int, int]] = Counter()

    def add(self, label: int, best: NDArray[Any], where: str) -> None:
        """Count an image whose best classes are `best`; DataError, naming it, for a label of no class."""
        if not 0 <= label < self.num_classes:
            raise DataError(
                f"'{where}' has the label {label}; the model has {self.num_classes} classes, 0 to "
                f"{self.num_classes - 1}; give the labels of this model"
            )
        self.images += 1
        self.right += int(best[0] == label)
        self.in_top += int(label in best[:TOP])
        self.pairs[label, int(best[0])] += 1

    @property
    def accuracy(self) -> float:
        """In [0, 1]."""
        return self.right / self.images

    @property
    def top_accuracy(self) -> float | None:
        """The share of the images whose label is among the five best classes; None for so few classes."""
        return self.in_top / self.images if self.num_classes > TOP else None

    def classes(self) -> list[ClassMeasures]:
        """Of each class with an image, or that an image was taken for, by label."""
        images, taken = Counter[int](), Counter[int]()
        for (label, predicted), count in self.pairs.items():
            images[label] += count
            taken[predicted] += count
        return [
            ClassMeasures(
                label,
                images[label],
                self.pairs[label, label] / images[label] if images[label] else None,
                self.pairs[label, label] / taken[label] if taken[label] else None,
            )
            for label in sorted(images | taken)
        ]

    def confusion(self) -> tuple[list[int], NDArray[np.int64]]:
        """The classes that `classes` lists, and how many images of each (a row) were taken for each."""
        labels = [entry.label for entry in self.classes()]
        place = {label: index for index, label in enumerate(labels)}
        matrix = np.zeros((len(labels), len(labels)), np.int64)
        for (label, predicted), count in self.pairs.items():
            matrix[place[label], place[predicted]] = count
        return labels, matrix


def class_text(label: int, names: Mapping[int, str]) -> str:
    """A class as lines name it: its name in quotes, or its number."""
    return f'"{printable(names[label])}"' if names.get(label) else f"class {label}"


def summary_lines(measures: Measures, names: Mapping[int, str]) -> list[str]:
    """Accuracy, and each class; of many classes those with the lowest recall."""
    lines = [f"accuracy = {measures.accuracy:.6g} on {measures.images} images"]
    if measures.top_accuracy is not None:
        lines.append(f"top-{TOP} accuracy: {measures.top_accuracy:.6g}")
    classes = measures.classes()
    if len(classes) > MOST_CLASSES:
        with_images = [entry for entry in classes if entry.recall is not None]
        lines.append(f"the {WORST} classes with the lowest recall, of {len(classes)}:")
        classes = sorted(with_images, key=lambda entry: (entry.recall, -entry.images))[:WORST]
    wide = max(len("class"), *(len(_numbered(entry.label, names)) for entry in classes))
    wide = min(wide, WIDTH - 28)
    lines.append(f"{'class':{wide}}  images  recall  precision")
    for entry in classes:
        recall, precision = (
            "-" if share is None else f"{share:.4f}" for share in (entry.recall, entry.precision)
        )
        name = _cut(_numbered(entry.label, names), wide)
        lines.append(f"{name:{wide}}  {entry.images:6}  {recall:>6}  {precision:>9}")
    return lines


def confusion_lines(measures: Measures, names: Mapping[int, str]) -> list[str]:
    """The matrix where it fits into 80 columns, else the most frequent confusions."""
    labels, matrix = measures.confusion()
    cell = len(str(max(labels[-1], int(matrix.max())))) + 1
    edge = len(str(labels[-1]))
    if edge + cell * len(labels) <= WIDTH:
        lines = ["confusion: a row for each label, a column for each class that images were taken for"]
        lines.append(" " * edge + "".join(f"{label:{cell}}" for label in labels))
        for label, row in zip(labels, matrix.tolist(), strict=True):
            lines.append(f"{label:{edge}}" + "".join(f"{count:{cell}}" for count in row))
        return lines
    wrong = [(count, pair) for pair, count in measures.pairs.items() if pair[0] != pair[1]]
    wrong.sort(key=lambda entry: (-entry[0], entry[1]))
    images = {entry.label: entry.images for entry in measures.classes()}
    lines = [f"the most frequent of {len(wrong)} confusions, label -> class: images"]
    for count, (label, predicted) in wrong[:MOST_PAIRS]:
        pair = f"{class_text(label, names)} -> {class_text(predicted, names)}"
        lines.append(f"  {_cut(pair, WIDTH - 22)}: {count} of {images[label]}")
    return lines


def confusion_csv(measures: Measures, names: Mapping[int, str]) -> str:
    """The matrix as CSV: a row for each label, a column for each class that images were taken for."""
    labels, matrix = measures.confusion()
    lines = [",".join(["label", *(_csv_name(label, names) for label in labels)])]
    for label, row in zip(labels, matrix.tolist(), strict=True):
        lines.append(",".join([_csv_name(label, names), *map(str, row)]))
    return "\n".join(lines) + "\n"


def _csv_name(label: int, names: Mapping[int, str]) -> str:
    name = names.get(label, str(label))
    return '"' + name.replace('"', '""') + '"' if set(name) & set('",\r\n') else name


def _numbered(label: int, names: Mapping[int, str]) -> str:
    return f"{label} {printable(names[label])}" if names.get(label) else str(label)


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: width - 3] + "..."
