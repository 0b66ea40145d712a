"""Run an ONNX model in ONNX Runtime on images: classes, boxes or maps; the accuracy where labels are known.

    imae run net.onnx cat.png dog.png
    imae run net.onnx img                    a folder; img/cat/1.jpg has the label of its class folder
    imae run net.onnx val.txt --root-folder images --confusion
    imae run net.onnx test_lmdb --provider CUDA
    imae run ssd.onnx street.jpg --draw found --labels labelmap_voc.prototxt
    imae run net.onnx img --json results.json --csv results.csv

Images are files, folders, patterns ('img/*.jpg'), lists of a path and a label a line as for Caffe's ImageData
(.txt, .lst, .list), or one LMDB. They are prepared (resized, mean, crop, scale) as the model's metadata says,
into which `imae export` writes it, or as --transform, --mean, --resize and --channels say; the first line of
the output says how. Nothing is mirrored. An LMDB's records are not resized.

Each image gets a line: the best classes and their scores, or its boxes with label, score, xmin, ymin, xmax
and ymax in pixels of the image. Scores are what the model gives. Of a detector, SSD's rows (1, 1, N, 7) are
read.

On CUDA and TensorRT a batch is copied to the device once, and only the scores are copied back. CUDA computes
float32 models in float32, not TF32. On the CPU ONNX Runtime reads a batch in place, without a copy. Its
defaults are kept there: binding, threads, spinning, arena, memory patterns and denormals were tried, and none
made ResNet-20 faster.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from imae.cli.output_files import check_output_files
from imae.cli.preprocessing_options import add_preprocessing_options, chosen_preprocessing
from imae.converters.labels import by_number, read_labels
from imae.converters.run_sources import find_images
from imae.files.atomic import write_atomically
from imae.files.errors import DataError

if TYPE_CHECKING:
    from imae.converters.predict import Prediction


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.usage = "imae run MODEL.onnx IMAGE ... [OPTION ...]"
    parser.add_argument("model", metavar="MODEL.onnx", help="the model to run")
    parser.add_argument(
        "sources",
        nargs="*",
        metavar="IMAGE",
        help="image files, folders, patterns, lists of a path and a label a line (.txt, .lst), or an LMDB",
    )
    parser.add_argument("--images", nargs="+", default=[], metavar="IMAGE", help="the images, as an option")
    parser.add_argument("--lmdb", help="LMDB of Datums; their labels give the accuracy")
    parser.add_argument(
        "--clean-labels",
        metavar="FILE",
        help="of an LMDB with label noise: the .npz that imae corrupt-labels wrote beside it; print the "
        "accuracy on intact and on corrupted records, against given and true labels",
    )
    parser.add_argument(
        "--root-folder", metavar="FOLDER", help="where a list's paths begin (the folder of the list)"
    )
    parser.add_argument("--skip-bad", action="store_true", help="go on where an image cannot be read")
    shown = parser.add_argument_group("what is shown and written")
    shown.add_argument(
        "--labels",
        metavar="FILE",
        help="the names of the classes, in place of the model's: a name a line, SSD's label map, or JSON",
    )
    shown.add_argument(
        "--top", type=int, default=5, metavar="N", help="classes of an image that are shown (5)"
    )
    shown.add_argument(
        "--softmax", action="store_true", help="make probabilities of the scores, for a model without Softmax"
    )
    shown.add_argument(
        "--threshold",
        type=float,
        default=0.5,
        metavar="SCORE",
        help="the least score of a box (0.5, as in SSD's ssd_detect.py)",
    )
    shown.add_argument(
        "--draw", metavar="FOLDER", help="write the images with their boxes, or their maps in colours"
    )
    shown.add_argument("--json", metavar="FILE", help="write all results as JSON; - for the standard output")
    shown.add_argument("--csv", metavar="FILE", help="write all results as CSV; - for the standard output")
    shown.add_argument(
        "--confusion", action="store_true", help="of labelled images: what each class was taken for"
    )
    shown.add_argument("--confusion-csv", metavar="FILE", help="write that matrix as CSV")
    add_preprocessing_options(parser, "the model")
    how = parser.add_argument_group("how it is run")
    how.add_argument("--output", metavar="NAME", help="the output to read, if there are several")
    how.add_argument("--provider", default="CPU", help="CPU, CUDA, TensorRT, ... (CPU)")
    how.add_argument("--batch-size", type=int, default=128, help="images per run (128)")
    how.add_argument("--threads", type=int, default=0, help="threads of the CPU provider (all cores)")
    how.add_argument(
        "--speed",
        action="store_true",
        help="measure images per second of the model alone; of few images the first batch is repeated",
    )
    parser.intermixed = True  # type: ignore[attr-defined]  # cli/main.py: IMAGE may come after an option


def run(args: argparse.Namespace) -> None:
    """Print what the model finds in each image; the accuracy; the speed, where it means something."""
    from imae.converters.noisy_accuracy import NoisyAccuracy, TrueLabels, noted
    from imae.converters.predict import open_model
    from imae.converters.run_report import ReportOptions, RunReport

    sources, lmdb = [*args.sources, *args.images], args.lmdb
    if lmdb is None and len(sources) == 1 and os.path.isfile(os.path.join(sources[0], "data.mdb")):
        lmdb, sources = sources[0], []
    _check(args, sources, lmdb)
    names = None if args.labels is None else by_number(read_labels(args.labels))
    noisy = NoisyAccuracy(TrueLabels(args.clean_labels)) if args.clean_labels else None
    with _ended_by_ctrl_c():
        model = open_model(
            args.model,
            output=args.output,
            provider=args.provider,
            threads=args.threads,
            batch_size=args.batch_size,
            preprocessing=chosen_preprocessing(args),
            names=names,
            threshold=args.threshold,
            softmax=args.softmax,
        )
    report = RunReport(
        model,
        ReportOptions(
            args.top,
            args.draw,
            args.confusion,
            args.speed,
            keep_records=bool(args.json or args.csv),
            needs_labels=args.confusion or bool(args.confusion_csv),
        ),
        of_lmdb=lmdb is not None,
    )
    if lmdb is not None:
        predictions = model.predict_lmdb(lmdb)
        if noisy is not None:
            predictions = noted(predictions, noisy, lmdb)
    else:
        found = find_images(
            sources,
            model.names,
            model.num_classes,
            args.root_folder,
            class_folders=model.may_have_classes,
            skip_bad=args.skip_bad,
        )
        _check_files(args, (image.path for image in found.images))
        report.expect(found)
        predictions = model.predict(found.images, args.skip_bad)
    # What programs read on the standard output has nothing beside it.
    out = sys.stderr if "-" in (args.json, args.csv, args.confusion_csv) else sys.stdout
    for line in report.lines(_stoppable(predictions)):
        print(line, file=out)
    if noisy is not None:
        print(*noisy.lines(), sep="\n", file=out)
    for path, make in (
        (args.json, report.json),
        (args.csv, report.csv),
        (args.confusion_csv, report.confusion_csv),
    ):
        if path == "-":
            print(make(), end="")
        elif path is not None:
            write_atomically(path, make().encode("utf-8", "surrogateescape"))


def _check(args: argparse.Namespace, sources: Sequence[str], lmdb: str | None) -> None:
    """DataError for options that contradict each other, FileError for files that cannot be written."""
    if (lmdb is None) == (not sources):
        raise DataError("run: give images (files, folders, lists), or one LMDB")
    if lmdb is None and args.clean_labels is not None:
        raise DataError("--clean-labels is for an LMDB of imae corrupt-labels; give --lmdb")
    if args.top < 1:
        raise DataError(f"--top must be at least 1, got {args.top}")
    if not 0 <= args.threshold <= 1:
        raise DataError(f"--threshold must be 0 to 1, got {args.threshold:g}")
    if lmdb is not None and args.draw is not None:
        raise DataError("--draw draws image files; an LMDB has none")
    if [args.json, args.csv, args.confusion_csv].count("-") > 1:
        raise DataError("--json, --csv and --confusion-csv must each have a file of its own")
    _check_files(args, sources)


def _check_files(args: argparse.Namespace, read: Iterable[str]) -> None:
    """FileError where a file of results cannot be written, or would replace one that is read."""
    outputs = {"--json": args.json, "--csv": args.csv, "--confusion-csv": args.confusion_csv}
    check_output_files(outputs, [args.model, args.labels, args.mean, *read])


def _stoppable(predictions: Iterator[Prediction]) -> Iterator[Prediction]:
    """The predictions; while one is computed, Ctrl-C ends the process at once."""
    while True:
        with _ended_by_ctrl_c():
            prediction = next(predictions, None)
        if prediction is None:
            return
        yield prediction


@contextmanager
def _ended_by_ctrl_c() -> Iterator[None]:
    """Let Ctrl-C end the process at once.

    A model is a program, which may never end, and Python's own handler would wait for it. No file is being
    written in the block, so none can be left half-written.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
