"""SSD's convert_annoset: write images and the boxes of their objects into an LMDB, for AnnotatedData.

    imae convert-annoset --anno_type=detection --label_type=xml --label_map_file=labelmap_voc.prototxt
        --encode_type=jpg --encoded VOCdevkit/ trainval.txt trainval_lmdb
    imae convert-annoset --coco instances_train2017.json --label_map_file=labelmap_coco.prototxt
        --encode_type=jpg train2017 train_lmdb

A list has words, two for each image: its file and its label (classification), or its file and that of its
annotations (detection). With --coco there is no list: ROOTFOLDER/ is the folder of the images.

SSD (weiliu89/caffe): tools/convert_annoset.cpp. Differs: --shuffle takes a seed; --coco, --interpolation.
"""

from __future__ import annotations

import argparse

from imae.cli.picture_options import (
    add_database_options,
    add_picture_options,
    add_shuffle_option,
    pixel_count,
)
from imae.converters.annotations import LABEL_TYPES
from imae.converters.convert_annoset import ANNO_TYPES, AnnosetForm, convert_annoset, convert_coco
from imae.converters.images import PictureForm
from imae.files.errors import ImaeError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments of the command."""
    parser.add_argument(
        "root", metavar="ROOTFOLDER/", help="prefix of each file name; the final slash is needed"
    )
    parser.add_argument(
        "list",
        metavar="LISTFILE",
        nargs="?",
        help='lines "FILE LABEL" or "FILE ANNOTATIONS"; not with --coco',
    )
    parser.add_argument("output", metavar="DB_NAME", help="LMDB to write")
    parser.add_argument(
        "--anno-type", "--anno_type", choices=ANNO_TYPES, default=ANNO_TYPES[0], help=f"({ANNO_TYPES[0]})"
    )
    parser.add_argument(
        "--label-type",
        "--label_type",
        choices=LABEL_TYPES,
        default=LABEL_TYPES[0],
        help=f"format of the annotations: VOC's XML, COCO's JSON, or text ({LABEL_TYPES[0]})",
    )
    parser.add_argument(
        "--label-map-file",
        "--label_map_file",
        default="",
        metavar="FILE",
        help="a LabelMap: names and labels",
    )
    parser.add_argument(
        "--check-label",
        "--check_label",
        action="store_true",
        help="stop at a name that the label map has twice",
    )
    parser.add_argument("--coco", metavar="JSON", help="COCO's instances.json, in place of a list")
    for name, what in (("min", "shorter side has at least"), ("max", "longer side has at most")):
        parser.add_argument(
            f"--{name}-dim",
            f"--{name}_dim",
            type=pixel_count,
            default=0,
            metavar="N",
            help=f"resize until the {what} N pixels, aspect kept",
        )
    add_picture_options(
        parser, "store images encoded, again unless --encode_type is that of the file, as in the fork"
    )
    add_database_options(parser)
    add_shuffle_option(parser)


def run(args: argparse.Namespace) -> None:
    """Write the LMDB."""
    picture = PictureForm(
        args.gray, args.resize_height, args.resize_width, args.interpolation, encoded=args.encoded
    )
    form = AnnosetForm(picture, args.encode_type, args.min_dim, args.max_dim, args.check_size)
    common = {"label_map_file": args.label_map_file, "check_label": args.check_label, "shuffle": args.shuffle}
    if args.coco is not None:
        if args.list is not None:
            raise ImaeError("--coco takes the place of LISTFILE; give --coco JSON IMAGES_FOLDER DB_NAME")
        convert_coco(args.coco, args.root, args.output, form, **common)
        return
    if args.list is None:
        raise ImaeError("give ROOTFOLDER/ LISTFILE DB_NAME, or --coco JSON IMAGES_FOLDER DB_NAME")
    convert_annoset(
        args.root,
        args.list,
        args.output,
        form,
        anno_type=args.anno_type,
        label_type=args.label_type,
        **common,
    )
