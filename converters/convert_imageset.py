"""Caffe's convert_imageset: the pictures of a list, a line being "FILE LABEL", into an LMDB.

    imae convert-imageset --resize_height=256 --resize_width=256 ./ list.txt train_lmdb

Keys are %08d_FILE with the place in the list. A picture that cannot be read is reported and left out, and the
places of the others stay. Raw Datums are BGR.

Caffe: tools/convert_imageset.cpp, io.cpp. Differs: --shuffle takes a seed; --pad, --interpolation; an LMDB
without records is refused; where very many pictures cannot be read, the first are named and the rest counted.
"""

import argparse
import logging
import re
from collections.abc import Iterator, Sequence

import cv2

from imae.converters.images import (
    Image,
    Picture,
    PictureForm,
    add_image_options,
    add_picture_options,
    encoded_datum,
    raw_datum,
    shuffled_order,
)
from imae.converters.lmdb_writer import Record, write_lmdb
from imae.layers.data.datum import read_file
from imae.prototxt.errors import DataError
from imae.prototxt.file_kinds import mistaken_for
from imae.prototxt.files import read_bytes

COMMAND = "convert-imageset"
HELP = "the pictures of a list file to an LMDB, as Caffe's convert_imageset"

logger = logging.getLogger(__name__)

MOST_NAMED = 1000  # pictures that cannot be read; with a wrong ROOTFOLDER it is all of a list of millions


def read_list(path: str) -> list[Picture]:
    """The lines of a list: the name before the last blank, the number after it (0 if that is no number)."""
    try:
        data = read_bytes(path)
    except OSError as error:
        raise DataError(f"cannot read the list '{path}': {error.strerror}") from error
    if mistaken := mistaken_for(data):
        raise DataError(f"the list '{path}': expected lines of a path and a label{mistaken}")
    # Names are bytes, of whatever encoding; only "\n" ends a line.
    lines = data.decode(errors="surrogateescape").removesuffix("\n").split("\n") if data else []
    return [_line(path, number, line) for number, line in enumerate(lines, 1)]


def _line(path: str, number: int, line: str) -> Picture:
    name, blank, text = line.rpartition(" ")
    found = re.match(r"\s*([+-]?[0-9]{1,20})", text)  # Caffe: atoi
    label = int(found[1]) if found else 0
    if not -(2**31) <= label < 2**31:
        raise DataError(f"{path}:{number}: label {label} does not fit into 32 bits")
    return Picture(name if blank else text, label)


def imageset_records(
    root: str,
    lines: Sequence[Picture],
    form: PictureForm,
    encode_type: str = "",
    check_size: bool = False,
) -> Iterator[Record]:
    """The Datums of the pictures that can be read, `root` put before the names as it is."""
    size: int | None = None
    unread = 0
    for place, (name, label) in enumerate(lines):
        file = root + name
        try:
            data = read_file(file)
            pixels = form.pixels(data, file)
        except ValueError as error:  # a DataError, or a zero byte in the name
            unread += 1
            if unread <= MOST_NAMED:
                logger.error("Could not open or find file %s", file)
                logger.warning("It is left out: %s", error)
            continue
        encoding = encode_type or (_guess_encoding(name) if form.encoded else "")
        if not encoding:
            datum = raw_datum(pixels, label, form.pad)
        elif not form.height and not form.width and _has_extension(file, encoding):
            datum = encoded_datum(data, label)
        else:
            datum = encoded_datum(_encode(file, pixels, encoding), label)
        size = len(datum.data) if size is None else size
        if check_size and len(datum.data) != size:
            raise DataError(
                f"'{file}': Incorrect data field size {len(datum.data)}; the first picture has {size}"
            )
        yield b"%08d_%s" % (place, name.encode("utf-8", "surrogateescape")), datum
    if unread > MOST_NAMED:
        more = unread - MOST_NAMED
        logger.error("Could not open or find %d more files of the list; they are left out", more)


def _guess_encoding(name: str) -> str:
    _, dot, extension = name.rpartition(".")
    if not dot:
        logger.warning("Failed to guess the encoding of '%s'", name)
    return extension.lower()


def _has_extension(file: str, encoding: str) -> bool:
    extension, encoding = file.rpartition(".")[2].lower(), encoding.lower()
    return extension == encoding or (encoding == "jpg" and extension == "jpeg")


def _encode(file: str, pixels: Image, encoding: str) -> bytes:
    try:
        done, data = cv2.imencode(f".{encoding}", pixels)
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"'{file}' cannot be encoded as '{encoding}'; give --encode_type png or jpg")
    return data.tobytes()


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "root", metavar="ROOTFOLDER/", help="put before each name as it is: mind the final slash"
    )
    parser.add_argument("list", metavar="LISTFILE", help='lines "FILE LABEL"')
    parser.add_argument("output", metavar="DB_NAME", help="LMDB to write")
    add_picture_options(parser)
    parser.add_argument(
        "--encode-type",
        "--encode_type",
        default="",
        metavar="TYPE",
        help="store pictures encoded so: png, jpg, ...",
    )
    parser.add_argument(
        "--check-size",
        "--check_size",
        action="store_true",
        help="stop where a picture has another size than the first",
    )
    parser.add_argument("--backend", choices=["lmdb"], default="lmdb")
    add_image_options(parser, "the images")


def run(args: argparse.Namespace) -> None:
    encoded = args.encoded or bool(args.encode_type)
    if encoded and (args.pad or args.check_size):
        raise DataError("--pad and --check_size are for raw pixels; leave out --encoded and --encode_type")
    form = PictureForm.chosen(args)
    if bool(args.resize_height) != bool(args.resize_width):
        logger.warning("Not resizing: that needs both resize_height and resize_width.")
    if args.encode_type and not args.encoded:
        logger.info("encode_type specified, assuming encoded=true.")
    lines = read_list(args.list)
    lines = [lines[i] for i in shuffled_order(len(lines), args.shuffle)]
    logger.info("A total of %d images.", len(lines))
    records = imageset_records(args.root, lines, form, args.encode_type, args.check_size)
    write_lmdb(args.output, records, len(lines))
