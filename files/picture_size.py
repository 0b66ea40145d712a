"""The pixels that an image file asks for, checked before it is decoded: 100 bytes can ask for gigabytes.

The headers are read as OpenCV reads them, of all formats that it decodes: JPEG, PNG, BMP, GIF, WebP, TIFF,
JPEG 2000, AVIF, PBM to PPM, PAM, PFM, Radiance HDR, Sun raster.
"""

from __future__ import annotations

import os
import re
import struct
from collections.abc import Callable
from typing import NamedTuple

from imae.files.errors import DataError
from imae.files.file_kinds import FileKind, mistaken_for
from imae.files.limits import SMALL_FILE, most_unpacked

# Photographs have more than 1/32 byte per pixel. OpenCV needs up to 17 bytes per pixel to decode one.
PIXELS_PER_BYTE = 32
OPENCV_LIMIT = 1 << 30  # pixels; its own default
OPENCV_VARIABLE = "OPENCV_IO_MAX_IMAGE_PIXELS"


def no_picture(data: bytes, name: str) -> DataError:
    """The error about bytes that cannot be decoded as an image."""
    reason = mistaken_for(data, FileKind.PICTURE) or "; the file is damaged"
    return DataError(f"{name}: could not decode the {len(data)} bytes as an image{reason}")


def check_picture_size(data: bytes, name: str) -> None:
    """DataError for an image whose header asks for more pixels than a real image of that many bytes has.

    Where OPENCV_IO_MAX_IMAGE_PIXELS is set, it is the limit, and OpenCV checks it.
    """
    pixels = picture_pixels(data)
    if not pixels:
        raise no_picture(data, name)
    most = min(most_unpacked(len(data), PIXELS_PER_BYTE), OPENCV_LIMIT)
    if pixels > most and OPENCV_VARIABLE not in os.environ:
        raise DataError(
            f"{name}: its {len(data)} bytes ask for {pixels} pixels; at most {most} are decoded, "
            f"{PIXELS_PER_BYTE} for each byte of at least {SMALL_FILE}; if the file is to be trusted, set "
            f"{OPENCV_VARIABLE} to that number"
        )
    chunk = _longest_png_chunk(data) if data.startswith(PNG) else 0
    if chunk > most_unpacked(len(data), PIXELS_PER_BYTE):
        raise DataError(
            f"{name}: its {len(data)} bytes say that a chunk has {chunk}, for which OpenCV takes memory; "
            "the file is damaged"
        )


PNG = b"\x89PNG\r\n\x1a\n"


def _longest_png_chunk(data: bytes) -> int:
    """The largest size in the chunk headers of a PNG file; OpenCV allocates memory for it at once."""
    place, longest = len(PNG), 0
    while place + 8 <= len(data):
        size = int.from_bytes(data[place : place + 4], "big")
        place, longest = place + 12 + size, max(longest, size)
    return longest


def picture_pixels(data: bytes) -> int:
    """Width times height according to the header of an image file; 0 without a valid header."""
    for form in FORMATS:
        if form.start.match(data):
            try:
                return form.pixels(data)
            except (struct.error, LookupError, ValueError, OverflowError):  # cut short, or endless numbers
                return 0
    return 0


class Format(NamedTuple):
    """An image format: how its files begin, and the function that returns their number of pixels."""

    start: re.Pattern[bytes]
    pixels: Callable[[bytes], int]


def _at(place: int, sizes: str) -> Callable[[bytes], int]:
    """Both sizes are at one place, in this format of the module struct. (BMP: rows from the top if < 0.)"""

    def pixels(data: bytes) -> int:
        first, second = struct.unpack_from(sizes, data, place)
        return abs(int(first) * int(second))

    return pixels


def _matched(*words: bytes) -> Callable[[bytes], int]:
    """Both sizes are decimal numbers, the groups of these regular expressions."""
    patterns = [re.compile(word, re.DOTALL) for word in words]

    def pixels(data: bytes) -> int:
        numbers = [
            number for pattern in patterns if (match := pattern.search(data)) for number in match.groups()
        ]
        return int(numbers[0]) * int(numbers[1])

    return pixels


def _jpeg(data: bytes) -> int:
    """The pixels in the frame header, which a walk from marker to marker finds."""
    place = 2
    while (place := data.find(b"\xff", place)) >= 0:
        while data[place] == 0xFF:
            place += 1
        marker = data[place]
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            return _at(place + 4, ">HH")(data)
        alone = marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8
        place += 1 if alone else 1 + int(struct.unpack_from(">H", data, place + 1)[0])
    return 0


def _webp(data: bytes) -> int:
    kind = data[12:16]
    if kind == b"VP8X":
        width, height = (int.from_bytes(data[place : place + 3], "little") + 1 for place in (24, 27))
    elif kind == b"VP8L":
        (bits,) = struct.unpack_from("<I", data, 21)
        width, height = (bits & 0x3FFF) + 1, (bits >> 14 & 0x3FFF) + 1
    else:
        width, height = (size & 0x3FFF for size in struct.unpack_from("<HH", data, 26))
    return int(width * height)


def _tiff(data: bytes) -> int:
    """The pixels of the first directory; a pixel of more than 8 bytes counts as several."""
    order = "<" if data[:1] == b"I" else ">"
    big = data[2:4] in (b"+\0", b"\0+")
    (first,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
    (entries,) = struct.unpack_from(order + ("Q" if big else "H"), data, first)
    tags: dict[int, int] = {}
    for entry in range(entries):
        place = first + (8 + 20 * entry if big else 2 + 12 * entry)
        tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, place)
        place += 12 if big else 8
        if tag == TIFF_BITS and count > (4 if big else 2):  # one value for each sample, stored elsewhere
            (place,) = struct.unpack_from(order + ("Q" if big else "I"), data, place)
        if tag in (TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_SAMPLES) and kind in TIFF_KINDS:
            tags[tag] = max(tags.get(tag, 0), *struct.unpack_from(order + TIFF_KINDS[kind], data, place))
    bits = tags.get(TIFF_BITS, 1) * tags.get(TIFF_SAMPLES, 1)
    return tags.get(TIFF_WIDTH, 0) * tags.get(TIFF_HEIGHT, 0) * max(1, bits // 64)


TIFF_WIDTH, TIFF_HEIGHT, TIFF_BITS, TIFF_SAMPLES = 256, 257, 258, 277
TIFF_KINDS = {1: "B", 3: "H", 4: "I", 16: "Q"}


def _jpeg_2000(data: bytes) -> int:
    sizes = (struct.unpack_from(">4I", data, match.end() + 4) for match in re.finditer(JP2_SIZE, data))
    return max(((x - x0) * (y - y0) for x, y, x0, y0 in sizes), default=0)


JP2_SIZE = rb"\xff\x4f\xff\x51"


def _avif(data: bytes) -> int:
    """The pixels of its largest part."""
    sizes = (struct.unpack_from(">II", data, match.end()) for match in re.finditer(b"ispe\0\0\0\0", data))
    return max((width * height for width, height in sizes), default=0)


BLANKS = rb"(?:\s|#[^\r\n]*[\r\n])+"
FORMATS = [
    Format(re.compile(start, re.DOTALL), pixels)
    for start, pixels in (
        (rb"\xff\xd8\xff", _jpeg),
        (rb"\x89PNG\r\n\x1a\n.{4}IHDR", _at(16, ">II")),
        (rb"BM.{12}\x0c\0\0\0", _at(18, "<HH")),
        (rb"BM", _at(18, "<ii")),
        (rb"GIF8", _at(6, "<HH")),
        (rb"RIFF.{4}WEBP", _webp),
        (rb"II[*+]\0|MM\0[*+]", _tiff),
        (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", _jpeg_2000),
        (rb".{4}ftyp", _avif),
        (rb"P[1-6]\s", _matched(rb"\AP[1-6]%b(\d+)%b(\d+)" % (BLANKS, BLANKS))),
        (rb"P7", _matched(rb"\bWIDTH\s+(\d+)", rb"\bHEIGHT\s+(\d+)")),
        (rb"P[Ff]", _matched(rb"\AP[Ff]\s+(\d+)\s+(\d+)")),
        (rb"#\?(?:RGBE|RADIANCE)", _matched(rb"-Y (\d+) \+X (\d+)")),
        (rb"\x59\xa6\x6a\x95", _at(4, ">II")),
    )
]
