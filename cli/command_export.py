"""Export a net and its weights as an ONNX model that computes what the net computes in phase TEST.

    imae export --model train_val.prototxt --weights w.caffemodel --output net.onnx --fold
    imae export --model deploy.prototxt --weights w.caffemodel --output net.onnx --mean 104,117,123 \\
        --embed-preprocess rgb --embed-resize

Data layers become inputs. Losses, accuracies and all other layers that need labels are left out. Each layer
adds its own nodes (`Layer.to_onnx`). The model is checked in ONNX Runtime against the net before it is
written. Its metadata says how images are prepared; with --embed-preprocess the model does it itself.

    imae export --model fcn.prototxt --weights w.caffemodel --output fcn.onnx --dynamic-size

A fully convolutional net then takes images of any height and width, with Caffe's numbers at each. A net that
fits together at certain sizes only, as a U-Net, takes its own size and others in steps, which are printed. A
net with a layer for one size only is refused, and the layer is named.

    imae export --model net.prototxt --weights w.caffemodel --output features.onnx --until pool5

cuts the net after the layer that makes the blob pool5, and after the layers that change it in-place.

`--to safetensors` writes the weights, `--to pt2` the program of torch.export and the weights, for PyTorch
(converters/export_torch.py). Without --to the output's suffix says it; else it is ONNX.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from imae.cli.description_options import (
    add_description_options,
    card_path,
    chosen_description,
    write_chosen_card,
)
from imae.cli.options import add_net_options, chosen_net
from imae.cli.output_files import check_output_files
from imae.cli.page_options import add_page_options, check_page_options, write_chosen_page
from imae.cli.preprocessing_options import add_preprocessing_options, chosen_preprocessing
from imae.converters.onnx_values import value_shape
from imae.converters.opset import DEFAULT_OPSET, NEWEST_OPSET, OLDEST_OPSET
from imae.converters.preprocessing import Preprocessing, size_text
from imae.files.errors import ExportError, printable

if TYPE_CHECKING:
    from imae.converters.deploy import InputShape
    from imae.converters.export_torch import Target

# Suffixes of other files: a model under such a name would be taken for one of them.
NOT_WRITTEN = ("pt", "pth", "ckpt", "caffemodel", "h5", "prototxt", "html", "md", "tflite", "engine")
FOR_PYTORCH: dict[str, Target] = {"safetensors": "safetensors", "pt2": "pt2"}
# The options that all of them have, as attributes of the arguments; a .pt2 file has --fixed-batch, too.
FOR_ALL = (
    "model", "weights", "output", "to", "input_shape", "allow_missing", "transform", "mean", "resize",
    "channels", "phase", "level", "stage", "dialect", "strict", "no_python_layers", "verbose",
)  # fmt: skip


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.usage = "imae export --model NET.prototxt --weights W.caffemodel --output NET.onnx [OPTION ...]"
    net = parser.add_argument_group("the net")
    net.add_argument("--model", required=True, help="train_val or deploy prototxt")
    net.add_argument("--weights", help=".caffemodel or .caffemodel.h5; without it the fillers' values")
    net.add_argument(
        "--allow-missing",
        action="store_true",
        help="export layers that are not in the weights with their fillers' values",
    )
    net.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="[NAME:]SHAPE",
        help="shape of an input that no data source gives: C,H,W or N,C,H,W of the only input, or "
        "NAME:N,C,H,W, the whole shape, for each of several",
    )
    add_net_options(net, "TEST", changeable=False)
    file = parser.add_argument_group("what is written")
    file.add_argument("--output", required=True, help="the .onnx, .safetensors or .pt2 file to write")
    file.add_argument(
        "--to", choices=["onnx", *FOR_PYTORCH], help="its format (by the suffix of --output; else onnx)"
    )
    model = parser.add_argument_group("the ONNX model")
    model.add_argument(
        "--fold",
        action="store_true",
        help="fold BatchNorm and Scale into the layer before, and a shortcut that appends zeros into one "
        "convolution: fewer nodes, the same outputs up to rounding",
    )
    model.add_argument(
        "--softmax",
        action="store_true",
        help="apply a softmax to each output that is not the top of a Softmax layer",
    )
    model.add_argument(
        "--until",
        action="append",
        default=[],
        metavar="BLOB",
        help="cut the net after the layer that makes this blob, and the layers in-place on it; several by "
        "repeating the option. They become the outputs, and what they do not need goes",
    )
    model.add_argument(
        "--dynamic-size",
        nargs="?",
        const="both",
        choices=("both", "height", "width"),
        help="leave height and width of the images open, or one of them, for a fully convolutional net; "
        "compared at two further sizes, and refused with the layer that has one size only",
    )
    model.add_argument(
        "--fixed-batch", action="store_true", help="keep the batch size of the prototxt (also in a .pt2 file)"
    )
    model.add_argument(
        "--opset",
        type=int,
        default=DEFAULT_OPSET,
        help=f"ONNX operator set, {OLDEST_OPSET} to {NEWEST_OPSET} ({DEFAULT_OPSET})",
    )
    add_preprocessing_options(parser, "the net")
    inside = parser.add_argument_group("the preparation of images as a part of the model")
    inside.add_argument(
        "--embed-preprocess",
        choices=["rgb", "bgr", "gray"],
        help="put crop, mean and scale into the model: it then takes images as bytes, (N, H, W, C), their "
        "channels in this order, of the size before the crop",
    )
    inside.add_argument(
        "--embed-resize",
        action="store_true",
        help="with --embed-preprocess: resize in the model, too, which then takes images of any size",
    )
    add_description_options(parser)
    add_page_options(parser)
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> None:
    """Export the net; print what was written and compared."""
    from imae.converters.embed import Embedding
    from imae.converters.export_onnx import ExportOptions, export_file

    outputs = {"--output": args.output, "--card": card_path(args), "--html": args.html}
    check_output_files(outputs, [args.model, args.weights, args.labels, args.mean])
    suffix = Path(args.output).suffix.lower().removeprefix(".")
    if args.to is None and suffix in NOT_WRITTEN:
        raise ExportError(
            f"--output {args.output}: a .{suffix} file is not written here, but .onnx, .safetensors (the "
            "weights for PyTorch) and .pt2 (torch.export's program) are; name one of these, or give --to"
        )
    if (to := FOR_PYTORCH.get(args.to or suffix)) is not None:
        _run_torch(args, to)
        return
    check_page_options(args)
    if args.embed_resize and args.embed_preprocess is None:
        raise ExportError("--embed-resize needs --embed-preprocess rgb, bgr or gray")
    embedding = None
    if args.embed_preprocess is not None:
        embedding = Embedding(args.embed_preprocess.upper(), args.embed_resize)
    result = export_file(
        chosen_net(args.model, args),
        args.weights,
        args.output,
        ExportOptions(
            opset=args.opset,
            fold=args.fold,
            dynamic_batch=not args.fixed_batch,
            dynamic_size=args.dynamic_size,
            softmax=args.softmax,
            embedding=embedding,
            until=args.until,
        ),
        input_shape=read_shapes(args.input_shape),
        dialect=args.dialect,
        allow_missing=args.allow_missing,
        preprocessing=chosen_preprocessing(args),
        about=chosen_description(args),
    )
    print(
        f"wrote {args.output}: opset {args.opset}, inputs {printable(', '.join(result.inputs))}, "
        f"outputs {printable(', '.join(result.outputs))}, {len(result.model.graph.node)} nodes"
    )
    if result.from_fillers:
        layers = ", ".join(result.from_fillers) if args.weights else f"all {len(result.from_fillers)} layers"
        why = f"{args.weights} lacks them" if args.weights else "no --weights were given"
        print(f"NO TRAINED WEIGHTS: {why}, so {printable(layers)} have the values of their fillers")
    shapes = {
        value.name: value_shape(value) or []
        for value in result.model.graph.input
        if value.name in result.inputs
    }
    _print_preparation(result.preprocessing, shapes)
    if result.moved is not None:
        print(
            "the model resizes random images as OpenCV does, but for one grey level in "
            f"{result.moved:.0%} of the values"
        )
    sizes = f"batch sizes {', '.join(map(str, result.batch_sizes))}"
    if result.size_step is not None:
        steps = "" if result.size_step == 1 else f", in steps of {result.size_step} from the prototxt's"
        sides = "height and width are" if args.dynamic_size == "both" else f"{args.dynamic_size} is"
        print(f"{sides} free{steps}")
        sizes += f", images also of {', '.join(map(size_text, result.sizes))}"
    if len(result.not_compared) < len(result.outputs):
        _print_difference(sizes, result.difference, result.largest)
    for name, why in result.not_compared.items():
        print(f"NOTHING WAS COMPARED of output {printable(name)}, {sizes}: {why}")
    write_chosen_card(args, result)
    write_chosen_page(args, result)


def _print_preparation(known: Preprocessing | None, shapes: Mapping[str, Sequence[int | str]]) -> None:
    """Print how images are prepared for a model with inputs of these shapes, or that nothing says it."""
    if known is not None:
        print(f"images: {known.steps_for(shapes[known.name])}")
    elif [len(shape) == 4 and shape[1] in (1, 3) for shape in shapes.values()] == [True]:
        print(
            "images: NOTHING SAYS HOW THEY ARE PREPARED (mean, scale, crop, channels), so answers may be "
            "wrong; give --mean or --transform; --transform '' stands for pixels as they are"
        )


def _run_torch(args: argparse.Namespace, to: Target) -> None:
    """Write a file of PyTorch's."""
    from imae.converters.export_torch import export_torch

    known = (*FOR_ALL, "parser", "command_line", *(["fixed_batch"] if to == "pt2" else []))
    for name, value in vars(args).items():
        if name not in known and value != args.parser.get_default(name):
            raise ExportError(f"--{name.replace('_', '-')} is for ONNX models; leave it out with --to {to}")
    result = export_torch(
        chosen_net(args.model, args),
        args.weights,
        args.output,
        to,
        model=args.model,
        input_shape=read_shapes(args.input_shape),
        dynamic_batch=not args.fixed_batch,
        dialect=args.dialect,
        allow_missing=args.allow_missing,
        preprocessing=chosen_preprocessing(args),
    )
    print(f"wrote {args.output}: {result.tensors} tensors, {result.values} values")
    _print_preparation(result.preprocessing, result.inputs)
    if result.difference is None:
        print("read again: the same keys, shapes and bits as the net's")
    elif not result.largest:
        print("NOTHING WAS COMPARED: the net's outputs are 0 everywhere on random inputs")
    else:
        sizes = f"batch sizes {', '.join(map(str, result.batch_sizes))}"
        _print_difference(sizes, result.difference, result.largest)


def _print_difference(sizes: str, difference: float, largest: float) -> None:
    print(f"largest difference from the net, {sizes}: {difference:.3g} (values up to {largest:.3g})")


def read_shapes(texts: Sequence[str]) -> InputShape | None:
    """The shapes of --input-shape: one without a name, or several by name; None without the option."""
    from imae.layers.layer import Shape

    named: dict[str, Shape] = {}
    for text in texts:
        name, _, numbers = text.rpartition(":")
        shape = tuple(int(d) if d.isdecimal() else 0 for d in numbers.split(","))
        if min(shape) < 1 or len(shape) < (1 if name else 2):
            raise ExportError(
                f"--input-shape must be C,H,W or N,C,H,W of positive numbers, or NAME:N,C,H,W; got {text!r}"
            )
        if name in named:
            raise ExportError(
                f"--input-shape: {name or 'the input'} has a shape already, got {text!r} as well"
            )
        named[name] = shape
    if "" in named and len(named) > 1:
        raise ExportError("--input-shape: with several shapes each needs a name, NAME:N,C,H,W")
    return named.get("", named) or None
