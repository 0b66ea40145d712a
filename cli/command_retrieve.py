"""`imae retrieve`: evaluate a model's features for finding persons, by the rules of the MARS benchmark.

    imae retrieve info --images bbox_test --model deploy.prototxt --weights w.caffemodel --blob pool5 \\
        --resize 256 --crop 224 --mean-value 104,117,123 --features features.npz
    imae retrieve info --lmdb test_lmdb --onnx net.onnx
    imae retrieve info --features features.npz --ap step

The model computes a feature of each test image; paper/retrieval.py gives the rules of the evaluation. Images
are resized, then transformed by the transform_param of the model's TEST data layer, or by that in the
metadata of an ONNX model; the options override it. Nothing is mirrored.
"""

from __future__ import annotations

import argparse
import json
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from imae.cli.device_options import add_gpu_option, requested_gpu
from imae.cli.options import add_dialect_option, add_strict_option
from imae.cli.picture_options import pixel_count
from imae.converters.preprocessing import SELF_PREPARING, Preprocessing
from imae.files.atomic import atomic_file, write_atomically
from imae.files.errors import DataError, ImaeError
from imae.paper.expected import TABLE_3
from imae.paper.mars import BATCH_SIZE, read_test_protocol
from imae.paper.retrieval import evaluate
from imae.prototxt import TransformationParameter

if TYPE_CHECKING:
    from imae.paper.embedding import Model

RANKS = (1, 5, 10, 20)
# Options that have no effect when kept features are evaluated.
MODEL_OPTIONS = (
    "model", "weights", "dialect", "strict", "onnx", "blob", "resize", "crop", "mean_value", "scale",
    "batch_size", "gpu",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "protocol", help="folder of tracks_test_info.mat, query_IDX.mat and, if there is one, test_name.txt"
    )
    images = parser.add_mutually_exclusive_group()
    images.add_argument(
        "--images", metavar="FOLDER", help="bbox_test: PPPP/PPPPCxTxxxxFxxx.jpg; or a .tar archive of it"
    )
    images.add_argument("--lmdb", metavar="DB", help="LMDB of the images, whose keys end with their names")
    parser.add_argument(
        "--features",
        metavar="NPZ",
        help="file to keep the tracklets' features in; without --images and --lmdb: the features to evaluate",
    )
    parser.add_argument("--model", metavar="NET", help="prototxt, train_val or deploy")
    parser.add_argument("--weights", metavar="W", help="its .caffemodel")
    add_dialect_option(parser)
    add_strict_option(parser)
    parser.set_defaults(strict=None)  # not given
    parser.add_argument("--onnx", metavar="MODEL", help="an .onnx file instead of --model and --weights")
    parser.add_argument(
        "--blob", metavar="NAME", help="blob (ONNX: output) with the features (the only output)"
    )
    parser.add_argument("--resize", type=sides, metavar="N|H,W", help="resize the images")
    parser.add_argument(
        "--crop", type=pixel_count, metavar="N", help="then take N x N from the centre; 0: all"
    )
    parser.add_argument(
        "--mean-value", type=numbers, metavar="V[,V,V]", help="subtract from the channels B, G, R"
    )
    parser.add_argument("--scale", type=float, metavar="S", help="then multiply by S")
    parser.add_argument("--batch-size", type=int, metavar="N", help=f"images at a time ({BATCH_SIZE})")
    add_gpu_option(parser)
    parser.add_argument(
        "--results", metavar="FILE", help="JSON to keep mAP and CMC-1 in, for imae paper table3"
    )
    parser.add_argument("--loss", choices=list(TABLE_3["mAP"]), help="for --results: trained with this loss")
    parser.add_argument(
        "--ap",
        choices=["trapezoid", "step"],
        default="trapezoid",
        help="rule for the area under precision over recall: the benchmark's, or most others' (trapezoid)",
    )
    parser.add_argument(
        "--gallery",
        choices=["rest", "all"],
        default="rest",
        help="search the tracklets that are not queries, or all, as the benchmark's script does (rest)",
    )


def run(args: argparse.Namespace) -> None:
    """Compute or read the features; print mAP and CMC."""
    from imae.paper.results_files import mars_results
    from imae.paper.tracklet_features import (
        folder_images,
        lmdb_images,
        read_features,
        tracklet_features,
        write_features,
    )

    if (args.results is None) != (args.loss is None):
        raise ImaeError("--results FILE and --loss NAME go together")
    others = mars_results(args.results) if args.results is not None and Path(args.results).exists() else {}
    tracklets, queries = read_test_protocol(args.protocol)
    if args.images is not None or args.lmdb is not None:
        # The work may take hours, so the file is opened first: an error in its path shows at once.
        with atomic_file(args.features) if args.features is not None else nullcontext() as file:
            model = _model(args)
            preparation = _preparation(args, model.preparation)
            open_images = folder_images if args.lmdb is None else lmdb_images
            place = args.images if args.lmdb is None else args.lmdb
            with open_images(place, args.protocol, tracklets, preparation) as images:
                means = tracklet_features(model, images, tracklets, preparation, args.batch_size)
            if file is not None:
                write_features(file, means, tracklets)
    else:
        extra = [f"--{name.replace('_', '-')}" for name in MODEL_OPTIONS if getattr(args, name) is not None]
        if args.features is None or extra:
            raise ImaeError(
                f"{', '.join(extra) or 'without --features'}: a model needs images, --images or --lmdb; kept "
                f"features need --features alone"
            )
        means = read_features(args.features, tracklets)
    result = evaluate(means, tracklets, queries, args.ap, args.gallery)
    print(f"{result.counted} queries, each against {result.gallery} tracklets")
    if left_out := len(result.rank) - result.counted:
        print(f"{left_out} more queries do not count: their person is in no other camera of the gallery")
    print(f"mAP = {100 * result.mean_ap:.2f} % (AP by the {args.ap} rule)")
    for k in RANKS:
        print(f"CMC-{k} = {100 * result.cmc(k):.2f} %")
    if args.results is not None:
        results = {**others, args.loss: {"mAP": result.mean_ap, "CMC-1": result.cmc(1)}}
        write_atomically(args.results, (json.dumps(results, indent=1) + "\n").encode())


def _model(args: argparse.Namespace) -> Model:
    from imae.net.device import choose_device
    from imae.paper.embedding import net_model, onnx_model

    device = choose_device(requested_gpu(args.gpu))
    if args.onnx is not None:
        if args.model or args.weights or args.dialect:
            raise ImaeError("--onnx has its weights inside; leave out --model, --weights and --dialect")
        return onnx_model(args.onnx, args.blob, device)
    if not args.model or not args.weights:
        raise ImaeError("a model is needed: --model NET --weights W, or --onnx MODEL")
    return net_model(args.model, args.weights, args.blob, args.dialect, device)


def _preparation(args: argparse.Namespace, own: Preprocessing) -> Preprocessing:
    """The model's own preparation, overridden by the options."""
    options = args.crop, args.mean_value, args.scale, args.resize
    if own.is_embedded and any(option is not None for option in options):
        raise DataError(SELF_PREPARING)
    transform = TransformationParameter()
    transform.CopyFrom(own.transform)
    if args.crop is not None:
        transform.crop_size = args.crop
    if args.mean_value is not None:
        transform.mean_value[:] = args.mean_value
    if args.scale is not None:
        transform.scale = args.scale
    mean_image = own.mean_image if args.mean_value is None else None
    return replace(own, transform=transform, mean_image=mean_image, resize=args.resize or own.resize)


def sides(text: str) -> tuple[int, int]:
    """Height and width of an argument N or H,W."""
    lengths = [pixel_count(side) for side in text.split(",")]
    if len(lengths) > 2 or min(lengths) < 1:
        raise argparse.ArgumentTypeError(f"must be N or H,W of at least 1, got {text}")
    return lengths[0], lengths[-1]


def numbers(text: str) -> list[float]:
    """The numbers of an argument A,B,C."""
    return [float(number) for number in text.split(",")]
