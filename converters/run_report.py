"""What `imae run` says: a line for each image, or several; then accuracy, confusions and speed."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from imae.converters.draw_predictions import (
    classes_of_map,
    draw_boxes,
    draw_map,
    drawing_paths,
    write_drawing,
)
from imae.converters.measures import Measures, class_text, confusion_csv, confusion_lines, summary_lines
from imae.converters.predict import ImageModel, Kind, Prediction, read_pixels
from imae.converters.preprocessing import size_text
from imae.converters.run_sources import ImageFiles
from imae.converters.write_predictions import Records, best_classes, shares_of
from imae.files.errors import DataError, printable
from imae.files.read import AnyPath

MOST_NAMED = 20  # images that could not be read
MAP_CLASSES = 5  # of a map that a line names


@dataclass(frozen=True)
class ReportOptions:
    """What is said and kept.

    top            classes of an image
    draw           the folder of drawings; None: nothing is drawn
    confusion      say what each class was taken for
    speed          measure the speed, whatever was run
    keep_records   for `RunReport.json` and `csv`
    needs_labels   there is to be a confusion matrix
    """

    top: int = 5
    draw: AnyPath | None = None
    confusion: bool = False
    speed: bool = False
    keep_records: bool = False
    needs_labels: bool = False


class RunReport:
    """Lines about predictions, as they come; at the end also JSON and CSV.

    model    that makes the predictions
    of_lmdb  the images are records, which get no lines of their own
    """

    def __init__(self, model: ImageModel, options: ReportOptions, of_lmdb: bool = False) -> None:
        self.model, self.options, self.of_lmdb = model, options, of_lmdb
        self.records = Records(model, options.top) if options.keep_records else None
        self.measures: Measures | None = None
        self.prepared = model.preparation(of_lmdb)
        self._notes: list[str] = []
        self._drawings: dict[str, Path] = {}
        self._drawn = 0

    def expect(self, found: ImageFiles) -> None:
        """Say how the images were found, and where they are drawn; DataError if that is over themselves."""
        self._notes = found.notes
        if self.options.draw is not None:
            suffix = None if self.model.kind is Kind.BOXES else ".png"
            self._drawings = drawing_paths(found.images, self.options.draw, suffix)

    def lines(self, predictions: Iterable[Prediction]) -> Iterator[str]:
        """All lines; drawings are written between them."""
        described = False
        for prediction in predictions:
            if not described:
                self._check_kind()
                yield f"{'records' if self.of_lmdb else 'images'}: {self.prepared}"
                yield from map(printable, self._notes)
                yield self.model.describe()
                described = True
            self._count(prediction)
            if not self.of_lmdb:
                yield from prediction_lines(prediction, self.model, self.options.top)
            if self._drawings:
                self._draw(prediction)
        yield from self._ending()

    def json(self) -> str:
        """All results as JSON."""
        assert self.records is not None
        return self.records.json(self.prepared, self.measures)

    def csv(self) -> str:
        """All results as CSV."""
        assert self.records is not None
        return self.records.csv()

    def confusion_csv(self) -> str:
        """The confusion matrix as CSV."""
        assert self.measures is not None
        return confusion_csv(self.measures, self.model.names)

    def _check_kind(self) -> None:
        """DataError where the output is not of the kind that the options are about."""
        kind, options = self.model.kind, self.options
        if options.draw is not None and kind not in (Kind.BOXES, Kind.MAP):
            raise DataError(f"--draw draws boxes and maps; {self.model.describe()}")
        if self.of_lmdb and kind is not Kind.CLASSES and not options.keep_records:
            raise DataError(
                f"an LMDB's labels are those of classes; {self.model.describe()}; use --json or --csv"
            )

    def _count(self, prediction: Prediction) -> None:
        source = prediction.source
        if self.records is not None:
            self.records.add(prediction)
        if self.model.kind is Kind.CLASSES and source.label is not None:
            if self.measures is None:
                self.measures = Measures(len(prediction.values))
            self.measures.add(source.label, best_classes(prediction.values), source.path)

    def _draw(self, prediction: Prediction) -> None:
        path, model = prediction.source.path, self.model
        if model.kind is Kind.BOXES:
            pixels = draw_boxes(read_pixels(path), prediction.boxes, model.names)
        else:
            pixels = draw_map(prediction.values, prediction.size if model.shows_all else None)
        write_drawing(self._drawings[path], pixels)
        self._drawn += 1

    def _ending(self) -> Iterator[str]:
        model, options = self.model, self.options
        if model.bad:
            seen = len(model.bad) + sum(count for count, _ in model.seconds)
            yield f"skipped {len(model.bad)} of {seen} images, which cannot be read:"
            yield from (f"  {printable(error)}" for _, error in model.bad[:MOST_NAMED])
            if len(model.bad) > MOST_NAMED:
                yield f"  and {len(model.bad) - MOST_NAMED} more; --json lists all"
            if not model.seconds:
                raise DataError("none of the images can be read")
        if self._drawn:
            yield f"drew {self._drawn} image{'s' * (self._drawn != 1)} into {printable(str(options.draw))}"
        if self.measures is not None:
            yield from summary_lines(self.measures, model.names)
            if options.confusion:
                yield from confusion_lines(self.measures, model.names)
        elif options.needs_labels:
            raise DataError("a confusion matrix needs labels: an LMDB, a list with labels, or class folders")
        if speed := model.speed(options.speed):
            yield f"{speed}, on {model.provider}"


def prediction_lines(prediction: Prediction, model: ImageModel, top: int) -> Iterator[str]:
    """What was found in an image; classes as Caffe's classification example prints them."""
    name, names, values = printable(prediction.source.path), model.names, prediction.values
    if model.kind is Kind.CLASSES and prediction.source.label is not None:
        name += f" (label {class_text(prediction.source.label, names)})"
    if model.kind is Kind.CLASSES:
        best = best_classes(values)[:top].tolist()
        yield f"{name}: " + ", ".join(f"{values[label]:.4f} - {class_text(label, names)}" for label in best)
    elif model.kind is Kind.BOXES:
        for box in prediction.boxes:
            sides = " ".join(f"{side:.1f}" for side in box[2:])
            yield f"{name}: {class_text(box.label, names)} {box.score:.4f} {sides}"
        if not prediction.boxes:
            yield f"{name}: no box with a score of {model.threshold:g} or more"
    elif model.kind is Kind.MAP and (classes := classes_of_map(values)) is not None:
        shares = shares_of(classes)
        text = ", ".join(f"{share:.4f} - {class_text(label, names)}" for label, share in shares[:MAP_CLASSES])
        yield f"{name}: {size_text(values.shape[1:])}, of the pixels {text}"
    else:
        shape = size_text(values.shape) or "1"
        numbers = " ".join(f"{value:.6g}" for value in values.ravel()[:4])
        if values.size > 4:
            numbers = f"{values.min():.6g} to {values.max():.6g}"
        yield f"{name}: {shape} values, {numbers}" if values.size > 1 else f"{name}: {numbers}"
