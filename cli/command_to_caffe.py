"""Write weights that were trained in PyTorch as a .caffemodel, for programs that read Caffe's files alone.

    imae to-caffe --model deploy.prototxt --weights w.safetensors --output w.caffemodel
    imae to-caffe --model deploy.prototxt --weights w.pt --map map.txt --reference model.onnx \\
        --output w.caffemodel

The keys are those of imae.load (conv1.weight), or --map says which tensor becomes which blob
(converters/to_caffe.py). Nothing is written unless the file's net computes what the weights compute, and with
--reference what that model computes, to 1e-5 of the largest value.
"""

from __future__ import annotations

import argparse

from imae.cli.command_export import read_shapes
from imae.cli.options import add_net_options, chosen_net
from imae.cli.output_files import check_output_files
from imae.files.errors import printable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument("--model", required=True, help="train_val or deploy prototxt")
    parser.add_argument(
        "--weights",
        required=True,
        dest="state",  # `chosen_net` would read weights as a caffemodel
        help="the state dict: a .safetensors file, or a .pt file of torch.save, read without running code",
    )
    parser.add_argument("--output", required=True, help="the .caffemodel to write")
    parser.add_argument(
        "--map",
        metavar="FILE",
        help="lines 'tensor layer.blob', 'module layer', or 'module batch_norm_layer scale_layer'; "
        "'tensor -' leaves one out",
    )
    parser.add_argument(
        "--reference",
        metavar="MODEL.onnx",
        help="the model itself, exported from PyTorch, to be compared with",
    )
    parser.add_argument(
        "--input-shape",
        action="append",
        default=[],
        metavar="[NAME:]SHAPE",
        help="shape of an input that no data source gives, as for imae export",
    )
    add_net_options(parser, "TEST", changeable=False)


def run(args: argparse.Namespace) -> None:
    """Write the caffemodel; print what was written and compared."""
    from imae.converters.to_caffe import read_mapping, to_caffe

    check_output_files({"--output": args.output}, [args.model, args.state, args.map, args.reference])
    result = to_caffe(
        chosen_net(args.model, args),
        args.state,
        args.output,
        mapping="" if args.map is None else read_mapping(args.map),
        reference=args.reference,
        input_shape=read_shapes(args.input_shape),
    )
    print(f"wrote {args.output}: {result.layers} layers, {result.blobs} blobs, {result.values} values")
    if result.not_used:
        print(f"left out, as the mapping says: {printable(', '.join(result.not_used))}")
    if result.largest:
        up_to = f"(values up to {result.largest:.3g})"
        print(f"largest difference of its net from the weights' own: {result.difference:.3g} {up_to}")
    else:
        print("NOTHING WAS COMPARED: the net's outputs are 0 everywhere on random inputs")
    if result.reference_difference is not None:
        print(f"largest difference from {args.reference}: {result.reference_difference:.3g}")
