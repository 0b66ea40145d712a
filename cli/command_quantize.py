"""Convert an ONNX model to half precision, or to 8-bit integers whose ranges are calibrated on an LMDB.

    imae quantize net.onnx net_fp16.onnx --to fp16 --lmdb test_lmdb
    imae quantize net.onnx net_int8.onnx --to int8 --calibrate train_lmdb --lmdb test_lmdb

With --lmdb the accuracy before and after is printed. int8: weights are quantized per channel, symmetrically,
to 7 of the 8 bits; activations per blob, from the smallest to the largest value in the calibration records.
Inputs and outputs stay float32, so programs that run the model need no change. Softmax stays float32, too: 8
bits are too few for its exponentials. Both conversions use ONNX Runtime's own tools.

Why 7 bits: processors without VNNI add two 8-bit products in 16 bits, which overflow. With 8 bits one of a
ResNet-20's scores was wrong by 5.3 instead of 0.7. int8 is for CPUs. fp16 is for GPUs; a CPU computes such a
model in float32, as fast as before.
"""

from __future__ import annotations

import argparse
import logging
import os

from imae.cli.output_files import check_output_files
from imae.cli.preprocessing_options import add_preprocessing_options, chosen_preprocessing

logger = logging.getLogger(__name__)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("model", help="the .onnx file")
    parser.add_argument("output", help="the .onnx file to write")
    parser.add_argument("--to", required=True, choices=["fp16", "int8"])
    parser.add_argument("--calibrate", metavar="LMDB", help="for int8: records to calibrate on")
    parser.add_argument("--records", type=int, default=1000, metavar="N", help="how many of them (1000)")
    parser.add_argument("--lmdb", help="records with labels, for the accuracy before and after")
    parser.add_argument("--provider", default="CPU", help="provider for --lmdb: CPU, CUDA, ... (CPU)")
    add_preprocessing_options(parser, "the model")


def run(args: argparse.Namespace) -> None:
    """Quantize; print the sizes and, with --lmdb, the accuracies."""
    from imae.converters.quantize_onnx import BATCH, quantize_file
    from imae.converters.run_onnx import run_file

    check_output_files({"OUTPUT": args.output}, [args.model, args.mean])
    preprocessing = chosen_preprocessing(args)
    quantize_file(args.model, args.output, args.to, args.calibrate, args.records, preprocessing)
    print(f"wrote {args.output}: {os.path.getsize(args.model)} -> {os.path.getsize(args.output)} bytes")
    speeds = []
    for path in (args.model, args.output) if args.lmdb else ():
        measured = run_file(
            path,
            lmdb=args.lmdb,
            provider=args.provider,
            batch_size=BATCH,
            preprocessing=preprocessing,
            speed=True,
        )
        accuracy = f"accuracy = {measured.accuracy:.6g} on {len(measured.classes)} images"
        print(f"{path}: {accuracy}, {measured.speed or 'no images'}, on {args.provider}")
        speeds.append(measured.speed)
    before, after = speeds or (None, None)
    if args.to == "int8" and before and after and after.median > before.median:  # of fp16 a CPU makes float32
        # Into the log: how fast a model is depends on the moment, and the output should not.
        logger.warning(
            "%s is smaller and not faster: measured here, a batch takes %.2f times as long",
            args.output, after.median / before.median,
        )  # fmt: skip
