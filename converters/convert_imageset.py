"""Caffe's convert_imageset: the images of a list, with lines "FILE LABEL", into an LMDB.

Keys are %08d_FILE with the place in the list. An image that cannot be read is reported and left out; the
others keep their places. Raw Datums are BGR.

Caffe: tools/convert_imageset.cpp, io.cpp. Differs: --shuffle may have a seed; --pad, --interpolation; an LMDB
without records is refused; of very many images that cannot be read the first are named, the rest counted.
"""

import logging
import re
from collections.abc import Iterator, Sequence

import cv2

from imae.converters.images import (
    Image,
    Picture,
    PictureForm,
    check_root,
    encoded_datum,
    raw_datum,
    shuffled_order,
)
from imae.converters.lmdb_writer import Record, write_lmdb
from imae.files.errors import DataError
from imae.files.file_kinds import mistaken_for
from imae.files.read import AnyPath, read_bytes
from imae.layers.data.datum import read_file

logger = logging.getLogger(__name__)

MOST_NAMED = 1000  # images that cannot be read; with a wrong ROOTFOLDER these may be millions


def convert_imageset(
    root: str,
    list_file: str,
    output: AnyPath,
    form: PictureForm = PictureForm(),  # noqa: B008  # a tuple
    *,
    encode_type: str = "",
    check_size: bool = False,
    shuffle: int | None = None,
) -> None:
    """Write the images of a list into an LMDB.

    root          prefix of each name, joined without a separator
    form          how images are decoded and stored
    encode_type   store the images in this encoding: png, jpg ...; this implies `encoded` in `form`
    check_size    DataError where an image has another size than the first
    shuffle       seed of the order of the records; None: as in the list

    DataError where the list cannot be read, where none of its images can, and for options that contradict
    each other.
    """
    if (form.encoded or encode_type) and (form.pad or check_size):
        raise DataError("--pad and --check_size are for raw pixels; leave out --encoded and --encode_type")
    form.check()
    if bool(form.height) != bool(form.width):
        logger.warning("Not resizing: that needs both resize_height and resize_width.")
    if encode_type and not form.encoded:
        logger.info("encode_type specified, assuming encoded=true.")
    lines = read_list(list_file)
    check_root(root, [line.name for line in lines])
    lines = [lines[i] for i in shuffled_order(len(lines), shuffle)]
    logger.info("A total of %d images.", len(lines))
    records = imageset_records(root, lines, form, encode_type, check_size)
    write_lmdb(output, records, len(lines))


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
    match = re.match(r"\s*([+-]?[0-9]{1,20})", text)  # Caffe: atoi
    label = int(match[1]) if match else 0
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
    """The Datums of the images that can be read; `root` is the prefix of the names."""
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
        elif not form.height and not form.width and has_extension(file, encoding):
            datum = encoded_datum(data, label)
        else:
            datum = encoded_datum(encode(file, pixels, encoding), label)
        size = len(datum.data) if size is None else size
        if check_size and len(datum.data) != size:
            raise DataError(
                f"'{file}': Incorrect data field size {len(datum.data)}; the first image has {size}"
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


def has_extension(file: str, encoding: str) -> bool:
    """Whether a file's extension is that of an encoding; jpeg is jpg."""
    extension, encoding = file.rpartition(".")[2].lower(), encoding.lower()
    return extension == encoding or (encoding == "jpg" and extension == "jpeg")


def encode(file: str, pixels: Image, encoding: str) -> bytes:
    """Pixels (H, W, C) as an image file; DataError for an encoding that OpenCV has not."""
    try:
        done, data = cv2.imencode(f".{encoding}", pixels)
    except cv2.error:
        done = False
    if not done:
        raise DataError(f"'{file}' cannot be encoded as '{encoding}'; give --encode_type png or jpg")
    return data.tobytes()
