"""What each layer of a net has and costs: shapes, parameters, multiply-adds, memory, receptive field.

    imae summary --model deploy.prototxt [--batch 8] [--weights W] [--json | --html page.html]

Of a train_val net this is the deployed one: phase TEST, with inputs in place of data layers, without losses.
`--phase TRAIN` or `--phase TEST` is the whole net of that phase, which opens its data.
"""

from __future__ import annotations

import argparse
import html
import json
import shutil

from imae.cli.command_export import read_shapes
from imae.cli.options import add_dialect_option, add_strict_option, chosen_net, level
from imae.files.atomic import write_atomically
from imae.files.errors import ExportError
from imae.prototxt import NetParameter


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--model", required=True, metavar="NET", help="the net's prototxt")
    parser.add_argument("--weights", metavar="W", help="a .caffemodel: whether it fits, and what it lacks")
    parser.add_argument("--batch", type=_batch, metavar="N", help="the batch size (1)")
    parser.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="[NAME:]C,H,W",
        help="the shape of an input, where the prototxt does not give it",
    )
    parser.add_argument("--phase", help="TRAIN or TEST: the whole net of this phase (the deployed net)")
    parser.add_argument("--level", type=level, default=0, help="the net's level (0)")
    parser.add_argument("--stage", default="", metavar="S[,S]", help="the net's stages")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    parser.add_argument("--html", metavar="FILE", help="write the table as a page, too")
    add_dialect_option(parser)
    add_strict_option(parser)


def run(args: argparse.Namespace) -> None:
    """Print the summary."""
    from imae.layers.run import Run
    from imae.net.net import Net
    from imae.net.summary import summarize
    from imae.net.weights import load_caffemodel
    from imae.train.doctor.nets import Zeros

    net = Net(_net(args), Run(Zeros(0)))
    report = load_caffemodel(net, args.weights, args.dialect) if args.weights else None
    summary = summarize(net)
    if args.html is not None:
        title = html.escape(summary.name or args.model)
        page = f'<!doctype html>\n<meta charset="utf-8">\n<title>{title}</title>\n{summary.as_html()}'
        write_atomically(args.html, page.encode(errors="replace"))
    if args.json:
        weights = None if report is None else vars(report)
        print(json.dumps({**summary.to_dict(), "weights": weights}, indent=2))
        return
    print(summary.as_text(max(80, shutil.get_terminal_size((100, 24)).columns)), end="")
    if report is not None:
        lacking = f"; it lacks {', '.join(report.fresh)}" if report.fresh else ""
        print(f"{args.weights} fits: weights of {len(report.copied)} layers{lacking}")


def _net(args: argparse.Namespace) -> NetParameter:
    from imae.converters.deploy import deploy_net

    whole = args.phase is not None
    if whole and (args.batch is not None or args.input_shape):
        raise ExportError("--phase is for the net as it is; leave out --batch and --input-shape")
    args.phase = args.phase if whole else "TEST"
    param = chosen_net(args.model, args)
    if whole:
        return param
    batch = 1 if args.batch is None else args.batch
    deployed = deploy_net(param, read_shapes(args.input_shape), batch)
    shapes = [shape for layer in deployed.layer for shape in layer.input_param.shape]
    if all(len(shape.dim) == 4 for shape in shapes) and not args.input_shape:
        for shape in shapes:
            shape.dim[0] = batch
    elif args.batch is not None and not args.input_shape:  # perhaps time steps come first
        raise ExportError("--batch is for nets whose inputs are all (N, C, H, W); give --input-shape")
    return deployed


def _batch(text: str) -> int:
    number = int(text)
    if not 1 <= number <= 1_000_000:
        raise argparse.ArgumentTypeError(f"must be from 1 to 1000000, got {text}")
    return number
