"""The options that say how images are prepared for a model: --transform, --mean, --resize, --channels."""

from __future__ import annotations

import argparse

from imae.converters.preprocessing import ORDERS, PreprocessingOptions, read_mean, read_size, read_transform


def add_preprocessing_options(parser: argparse.ArgumentParser, whose: str) -> None:
    """Add them; `whose` is what the help calls that which they stand in place of."""
    group = parser.add_argument_group(f"how images are prepared, in place of what {whose} says")
    group.add_argument(
        "--transform",
        metavar="TEXT",
        help="transform_param in prototxt text, e.g. 'scale: 0.017 mean_value: 104 crop_size: 224'; '' for "
        "pixels as they are",
    )
    group.add_argument(
        "--mean",
        metavar="FILE|NUMBERS",
        help="the mean to subtract: a .binaryproto, a .npy, or a number per channel, 104,117,123",
    )
    group.add_argument(
        "--resize",
        metavar="HEIGHTxWIDTH",
        help="the size that images are resized to before they are cropped; one number for both sides",
    )
    group.add_argument(
        "--channels", choices=ORDERS, help="the order of the input's channels (BGR, as Caffe decodes images)"
    )


def chosen_preprocessing(args: argparse.Namespace) -> PreprocessingOptions:
    """What these options say; the mean is read."""
    return PreprocessingOptions(
        None if args.transform is None else read_transform(args.transform, "--transform"),
        None if args.mean is None else read_mean(args.mean),
        None if args.resize is None else read_size(args.resize, "--resize"),
        args.channels,
    )
