"""Run an ONNX model in ONNX Runtime on an LMDB or on image files: accuracy, classes, images per second.

    imae run net.onnx --lmdb test_lmdb --provider CPU
    imae run net.onnx --images cat.png dog.png --provider CUDA

Images are prepared (resized, mean, crop, scale) as the model's metadata says, into which `imae export` writes
it, or as --transform, --mean, --resize and --channels say. Nothing is mirrored.

On CUDA and TensorRT a batch is copied to the device once, and only the scores are copied back. CUDA computes
float32 models in float32, not TF32. On the CPU ONNX Runtime reads a batch in place, without a copy. Its
defaults are kept there: binding, threads, spinning, arena, memory patterns and denormals were tried, and none
made ResNet-20 faster.
"""

from __future__ import annotations

import argparse
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from imae.cli.preprocessing_options import add_preprocessing_options, chosen_preprocessing
from imae.converters.run_onnx import run_file


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("model", help="the .onnx file")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--lmdb", help="LMDB of Datums; their labels give the accuracy")
    source.add_argument("--images", nargs="+", metavar="FILE", help="image files, to print their classes")
    parser.add_argument("--output", metavar="NAME", help="the output with the scores, if there are several")
    parser.add_argument("--provider", default="CPU", help="CPU, CUDA, TensorRT, ... (CPU)")
    parser.add_argument("--batch-size", type=int, default=128, help="images per run (128)")
    parser.add_argument("--threads", type=int, default=0, help="threads of the CPU provider (all cores)")
    add_preprocessing_options(parser, "the model")


def run(args: argparse.Namespace) -> None:
    """Print the class of each image, or the accuracy; then the speed."""
    with _ended_by_ctrl_c():
        result = run_file(
            args.model,
            lmdb=args.lmdb,
            images=args.images or (),
            output=args.output,
            provider=args.provider,
            batch_size=args.batch_size,
            threads=args.threads,
            preprocessing=chosen_preprocessing(args),
        )
        if args.images is not None:
            for path, best in zip(args.images, result.classes, strict=True):
                print(f"{path}: class {best}")
        if result.accuracy is not None:
            print(f"accuracy = {result.accuracy:.6g} on {len(result.classes)} images")
        print(f"{result.speed()}, on {args.provider}, batch size {result.batch_size}")


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
