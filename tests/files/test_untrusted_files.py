"""Files that are made to do harm: headers are checked before memory, disk or time is spent."""

from __future__ import annotations

import bz2
import gzip
import io
import itertools
import lzma
import os
import re
import resource
import struct
import subprocess
import sys
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import cv2
import h5py
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from imae.cli.main import main
from imae.converters.convert_folder import LARGEST_PICTURE
from imae.converters.images import encoded_datum
from imae.converters.lmdb_writer import write_lmdb
from imae.files import file_tree, limits, picture_size
from imae.files.errors import CaffemodelError, DataError, LayerError, PrototxtError, SnapshotError
from imae.files.file_tree import open_tree
from imae.files.hdf5_file import MEMORY_PER_BYTE
from imae.files.picture_size import PIXELS_PER_BYTE, check_picture_size, picture_pixels
from imae.files.read import read_bytes
from imae.layers.blob import array_from_blob
from imae.layers.data.datum import decode_image
from imae.layers.data.hdf5_data import read_data_sets
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.prototxt import BlobProto, BlobShape
from imae.prototxt.text import parse_net, read_net
from imae.pycaffe import caffe_io
from imae.train.solverstate import State, read_state, write_state

MIB = 1 << 20
SIDE = 60000


@contextmanager
def little_memory(mebibytes: int = 512) -> Iterator[None]:
    """The block may take so much more memory than the process has now."""
    limits = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + mebibytes * MIB, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


@contextmanager
def soon(seconds: float = 5) -> Iterator[None]:
    begun = time.process_time()
    yield
    assert time.process_time() - begun < seconds


def one_line(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The line that a command prints when it refuses its input."""
    capsys.readouterr()
    assert main(list(arguments)) == 2
    complaints = [line for line in capsys.readouterr().err.splitlines() if line.startswith("imae: ")]
    assert len(complaints) == 1
    return complaints[0]


# -- pictures ------------------------------------------------------------------------------------------------


def png(width: int, height: int, size: int = 0) -> bytes:
    """A PNG file's beginning, filled up to `size` bytes."""
    head = struct.pack(">II", width, height) + b"\x08\x02\0\0\0"
    chunk = struct.pack(">I", 13) + b"IHDR" + head + struct.pack(">I", zlib.crc32(b"IHDR" + head))
    return (b"\x89PNG\r\n\x1a\n" + chunk).ljust(size, b"\0")


def jpeg(width: int, height: int) -> bytes:
    """Two application segments, in one of which something looks like a frame header; the true one."""
    frame = b"\xff\xc2\x00\x11\x08" + struct.pack(">HH", height, width)
    inside = b"Exif\0\0\xff\xc0\x00\x11\x08\x00\x01\x00\x01"
    return (
        b"\xff\xd8\xff\xe1"
        + struct.pack(">H", len(inside) + 2)
        + inside
        + b"\xff\xe0\0\x02\0\xff\xff"
        + frame
    )


def tiff(order: str, width: int, height: int, bits: int = 8) -> bytes:
    """Its directory comes after some other bytes; the bits of three samples are stored elsewhere."""
    entries = [(256, 4, 1, width), (257, 4, 1, height), (258, 3, 3, 8), (277, 3, 1, 3)]
    mark = b"II*\0" if order == "<" else b"MM\0*"
    data = mark + struct.pack(order + "I", 16) + struct.pack(order + "4H", bits, bits, bits, 0)
    data += struct.pack(order + "H", len(entries))
    for tag, kind, count, value in entries:
        content = struct.pack(
            order + ("HH" if kind == 3 and count == 1 else "I"),
            *[value, 0][: 2 if kind == 3 and count == 1 else 1],
        )
        data += struct.pack(order + "HHI", tag, kind, count) + content
    return data


def big_tiff(width: int, height: int) -> bytes:
    data = b"II+\0\x08\0\0\0" + struct.pack("<QQ", 16, 2)
    for tag, value in ((256, width), (257, height)):
        data += struct.pack("<HHQQ", tag, 16, 1, value)
    return data


def heads(width: int, height: int) -> dict[str, bytes]:
    """The beginnings of files of all formats that say this size (if their fields are wide enough)."""
    w, h = width, height
    bits = (w - 1 & 0x3FFF) | (h - 1 & 0x3FFF) << 14
    siz = b"\xff\x4f\xff\x51\0\x2f\0\0" + struct.pack(">4I", w + 5, h + 6, 5, 6)
    return {
        "png": png(w, h),
        "jpeg": jpeg(w, h),
        "bmp": b"BM" + bytes(12) + struct.pack("<Iii", 40, w, h),
        "bmp from above": b"BM" + bytes(12) + struct.pack("<Iii", 40, w, -h),
        "bmp of OS/2": b"BM" + bytes(12) + struct.pack("<IHH", 12, w, h),
        "gif": b"GIF89a" + struct.pack("<HH", w, h),
        "webp": b"RIFF\0\0\0\0WEBPVP8 \0\0\0\0\0\0\0\x9d\x01\x2a" + struct.pack("<HH", w % 2**14, h % 2**14),
        "webp lossless": b"RIFF\0\0\0\0WEBPVP8L\0\0\0\0\x2f" + struct.pack("<I", bits),
        "webp extended": b"RIFF\0\0\0\0WEBPVP8X\x0a\0\0\0\0\0\0\0" + b"".join(
            (n - 1).to_bytes(3, "little") for n in (w, h)
        ),
        "tiff": tiff("<", w, h),
        "tiff of Motorola": tiff(">", w, h),
        "bigtiff": big_tiff(w, h),
        "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(30) + siz,
        "jpeg 2000 stream": siz,
        "avif": b"\0\0\0\x1cftypavif" + bytes(20) + b"ispe\0\0\0\0" + struct.pack(">II", 1, 1)
        + b"\0\0\0\x14ispe\0\0\0\0" + struct.pack(">II", w, h),
        "ppm": b"P6 # 1 1\n# more\n%d #\n %d 255\n" % (w, h),
        "pam": b"P7\nWIDTH %d\nHEIGHT %d\nDEPTH 3\n" % (w, h),
        "pfm": b"PF\n%d %d\n-1.0\n" % (w, h),
        "hdr": b"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y %d +X %d\n" % (h, w),
        "sun": b"\x59\xa6\x6a\x95" + struct.pack(">II", w, h),
    }  # fmt: skip


@pytest.mark.parametrize("form", heads(1, 1))
def test_the_size_in_a_header_is_found(form: str) -> None:
    width, height = 12345, 6789
    head = heads(width, height)[form]
    assert picture_pixels(head + bytes(100)) == width * height
    for length in range(len(head)):
        assert 0 <= picture_pixels(head[:length]) <= width * height


def test_pixels_of_many_bytes_count_as_several() -> None:
    assert picture_pixels(tiff("<", 10, 10, bits=64)) == 300


@pytest.mark.parametrize(
    "form",
    [
        ".png",
        ".jpg",
        ".bmp",
        ".gif",
        ".webp",
        ".tif",
        ".jp2",
        ".avif",
        ".ppm",
        ".pgm",
        ".pam",
        ".hdr",
        ".ras",
    ],
)
@pytest.mark.parametrize("shape", [(33, 64), (64, 33)])
def test_what_opencv_writes_is_read_as_opencv_reads_it(form: str, shape: tuple[int, int]) -> None:
    if not cv2.haveImageWriter(form):
        assert form in (".gif", ".avif")
        pytest.skip(f"OpenCV {cv2.__version__} writes no {form}")
    channels = [] if form == ".pgm" else [3]
    pixels = np.random.default_rng(1).integers(0, 256, (*shape, *channels), np.uint8)
    written, data = cv2.imencode(form, pixels.astype(np.float32) if form == ".hdr" else pixels)
    assert written and picture_pixels(data.tobytes()) == shape[0] * shape[1]
    assert decode_image(data.tobytes(), cv2.IMREAD_COLOR, "picture").shape == (*shape, 3)


@pytest.mark.parametrize(
    "data",
    [
        b"", b"\xff\xd8\xff", b"GIF8", b"P6 " + b"#" * MIB, b"P6 " + b"9" * MIB, b"#?RGBE" + b"-Y 1 " * 10**5,
        b"II+\0" + b"\xff" * 8 + bytes(MIB), b"\xff\xd8" + b"\xff" * MIB,
        b"\xff\xd8" + b"\xff\xe0\0\2" * 10**5,
    ],
    ids=lambda data: repr(data[:4]),
)  # fmt: skip
def test_a_header_without_a_size_is_no_picture(data: bytes) -> None:
    with soon(), pytest.raises(DataError, match=r"^it: could not decode the \d+ bytes as an image"):
        decode_image(data, cv2.IMREAD_COLOR, "it")


@pytest.fixture
def never_decodes(monkeypatch: pytest.MonkeyPatch) -> None:
    def decoded(*arguments: object) -> None:
        pytest.fail("decoded")

    monkeypatch.setattr(cv2, "imdecode", decoded)


@pytest.mark.usefixtures("never_decodes")
def test_a_picture_that_asks_for_gigabytes_is_refused_wherever_pictures_are_read(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data = png(SIDE, SIDE, 100)
    Path("c").mkdir()
    Path("c/big.png").write_bytes(data)
    Path("list").write_text("c/big.png 0\n")
    Path("windows").write_text("# 0\nc/big.png\n3 60000 60000\n2\n1 1 0 0 9 9\n1 0 0 0 9 9\n")
    write_lmdb("lmdb", [(b"0", encoded_datum(data, 0))])
    layers = [
        'type: "ImageData" image_data_param { source: "list" batch_size: 1 }',
        'type: "WindowData" window_data_param { source: "windows" batch_size: 2 } '
        "transform_param { crop_size: 9 }",
        'type: "Data" data_param { source: "lmdb" batch_size: 1 backend: LMDB }',
    ]
    for layer in layers:
        with pytest.raises(DataError, match=r"100 bytes ask for 3600000000 pixels; at most 33554432 are"):
            Net(parse_net(f'layer {{ name: "data" top: "data" top: "label" {layer} }}')).forward()
    for line, *arguments in (
        ["ask for 3600000000 pixels", "convert-folder", ".", "new"],
        ["ask for 3600000000 pixels", "compute-image-mean", "lmdb", "new"],
        ["there are no records", "convert-imageset", "", "list", "new"],  # it leaves out what it cannot read
    ):
        assert line in one_line(capsys, *arguments)
        assert not Path("new").exists()
    with pytest.raises(DataError, match="ask for 3600000000 pixels"):
        caffe_io.load_image("c/big.png")


@pytest.mark.parametrize("size", [2**26, 2**30 - 1, 2**31 - 1, 2**32 - 1])
@pytest.mark.parametrize("chunk", [b"IDAT", b"tEXt"])
def test_a_chunk_of_a_png_that_asks_for_gigabytes(size: int, chunk: bytes) -> None:
    """178 bytes took 4 GiB: OpenCV allocates memory for a chunk as large as its header claims."""
    whole = cv2.imencode(".png", np.arange(105, dtype=np.uint8).reshape(5, 7, 3))[1].tobytes()
    assert decode_image(whole, cv2.IMREAD_COLOR, "x").shape == (5, 7, 3)
    place = whole.index(b"IDAT") - 4
    broken = whole[:place] + struct.pack(">I", size) + chunk + whole[place + 8 :]
    message = f"x: its {len(whole)} bytes say that a chunk has {size},"
    with little_memory(40), pytest.raises(DataError, match=message):
        decode_image(broken, cv2.IMREAD_COLOR, "x")


def test_a_picture_may_be_as_large_as_its_file_is_worth(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing small, no photograph, and nothing that OpenCV is told to take."""
    side = 5000
    check_picture_size(png(side, side), "a white page of 25 million pixels in no bytes at all")
    side = 20000
    worth = side * side // PIXELS_PER_BYTE
    check_picture_size(png(side, side, worth), "a picture of 400 million pixels in 12.5 million bytes")
    with pytest.raises(DataError, match="set OPENCV_IO_MAX_IMAGE_PIXELS to that number"):
        check_picture_size(png(side, side, worth - 1), "one byte less")
    with pytest.raises(DataError, match=f"at most {2**30} are decoded"):
        check_picture_size(png(SIDE, SIDE, 120 * MIB), "more than OpenCV decodes")
    monkeypatch.setenv(picture_size.OPENCV_VARIABLE, "9999999999")
    check_picture_size(png(SIDE, SIDE), "trusted")


def test_a_picture_is_not_resized_to_more_than_there_is_memory() -> None:
    text = 'image_data_param { source: "list" batch_size: 1 new_height: 1000000 new_width: 1000000 }'
    with pytest.raises(LayerError, match="new_height, new_width: blob size exceeds INT_MAX"):
        Net(parse_net(f'layer {{ name: "d" type: "ImageData" top: "x" top: "y" {text} }}'))


# -- archives and folders ------------------------------------------------------------------------------------

PICTURE = cv2.imencode(".png", np.zeros((4, 5, 3), np.uint8))[1].tobytes()
OTHER = cv2.imencode(".png", np.full((4, 5, 3), 9, np.uint8))[1].tobytes()


def tar(*members: tuple[str | tarfile.TarInfo, bytes], form: int = tarfile.GNU_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as file:
        for name, data in members:
            info = tarfile.TarInfo(name) if isinstance(name, str) else name
            info.size = len(data)
            file.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def special(name: str, kind: bytes, target: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, target
    return info


def contents(path: str | Path, subfolder: str = "") -> dict[str, bytes]:
    with open_tree(path, subfolder) as tree:
        return {name: tree.read(name, LARGEST_PICTURE) for name in tree.names}


PACKERS: dict[str, Callable[[bytes], bytes]] = {"gz": gzip.compress, "bz2": bz2.compress, "xz": lzma.compress}


@pytest.mark.parametrize("packer", PACKERS)
def test_an_archive_that_unpacks_to_too_much(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], packer: str
) -> None:
    """Of any age: the limit goes by its size, of which less than 1 MiB counts as that."""
    Path("a.tar").write_bytes(PACKERS[packer](tar(("a/1.png", PICTURE), ("a/2.png", bytes(3 * MIB)))))
    assert contents("a.tar") == {"a/1.png": PICTURE, "a/2.png": bytes(3 * MIB)}
    monkeypatch.setattr(file_tree, "UNPACKED_PER_BYTE", 3)
    assert one_line(capsys, "convert-folder", "a.tar", "new") == (
        f"imae: 'a.tar' unpacks to more than {3 * MIB} bytes, 3 for each of its own, of at least {MIB}; "
        "if that is not to fill the disk, unpack it and give the .tar or folder"
    )
    Path("b.tar").write_bytes(PACKERS[packer](tar(("a/1.png", os.urandom(3 * MIB)))))
    assert len(contents("b.tar")["a/1.png"]) == 3 * MIB


def test_an_archive_whose_unpacker_asks_for_gigabytes(here: Path) -> None:
    data = bytearray(lzma.compress(tar(("a/1.png", PICTURE))))
    end = 12 + 4 * (data[12] + 1)
    data[data.index(b"\x21\x01", 12) + 2] = 40  # a dictionary of 4 GiB
    data[end - 4 : end] = struct.pack("<I", zlib.crc32(data[12 : end - 4]))
    Path("a.tar").write_bytes(data)
    assert contents("a.tar") == {"a/1.png": PICTURE}  # it takes what it really fills
    with little_memory(), pytest.raises(DataError, match="there is not enough memory"):
        contents("a.tar")


@pytest.mark.parametrize("kind", [tarfile.GNUTYPE_LONGNAME, tarfile.XHDTYPE])
def test_headers_upon_headers(here: Path, kind: bytes) -> None:
    head = special("h", kind)
    content = b"6 a=b\n"
    head.size = len(content)
    Path("a.tar").write_bytes((head.tobuf() + content.ljust(512, b"\0")) * 5000 + tar(("a/1.png", PICTURE)))
    with pytest.raises(
        DataError, match=r"cannot read 'a\.tar' as a \.tar archive .*: maximum recursion depth"
    ):
        contents("a.tar")


def test_headers_for_all_members(here: Path) -> None:
    buffer = io.BytesIO()
    headers = {f"key{i}": "x" for i in range(200)}
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT, pax_headers=headers) as file:
        file.addfile(tarfile.TarInfo("a/1.png"))
    Path("a.tar").write_bytes(buffer.getvalue())
    with pytest.raises(DataError, match="it has 200 global headers"):
        contents("a.tar")


def sparse_gnu(name: str, size: int) -> bytes:
    """A member of `size` zeros: one empty stretch at its end, in the header of GNU's old form."""
    header = bytearray(special(name, tarfile.GNUTYPE_SPARSE).tobuf(tarfile.GNU_FORMAT))
    header[386:398], header[398:410], header[483:495] = (b"%011o\0" % n for n in (size, 0, size))
    header[148:156] = b"%06o\0 " % sum(header[:148] + b" " * 8 + header[156:])
    return bytes(header)


def sparse_pax(name: str, size: int, form: str = "1.0") -> bytes:
    """The same in pax's form: the map stands before the content, or in the headers."""
    info, content = tarfile.TarInfo(name), b""
    if form == "1.0":
        content = b"1\n%d\n0\n" % size
        content += bytes(512 - len(content))
        info.pax_headers = {"GNU.sparse.major": "1", "GNU.sparse.minor": "0"}
        info.pax_headers |= {"GNU.sparse.name": name, "GNU.sparse.realsize": str(size)}
    elif form == "0.1":
        info.pax_headers = {"GNU.sparse.map": f"{size},0", "GNU.sparse.size": str(size)}
    else:
        info.pax_headers = {"GNU.sparse.size": str(size), "GNU.sparse.numblocks": "1"}
        info.pax_headers |= {"GNU.sparse.offset": str(size), "GNU.sparse.numbytes": "0"}
    info.size = len(content)
    return info.tobuf(tarfile.PAX_FORMAT) + content


SPARSE = {
    "gnu": sparse_gnu,
    "1.0": sparse_pax,
    "0.1": lambda name, size: sparse_pax(name, size, "0.1"),
    "0.0": lambda name, size: sparse_pax(name, size, "0.0"),
}


@pytest.mark.parametrize("form", SPARSE)
def test_members_that_are_said_to_be_full_of_zeros(
    here: Path, capsys: pytest.CaptureFixture[str], form: str
) -> None:
    """4 kB that would be 1.3 GB of CIFAR-10's records: zeros are pictures of label 0."""
    names = [f"data_batch_{i}.bin" for i in range(1, 6)]
    record = bytes(3073)
    Path("a.tar").write_bytes(
        b"".join(SPARSE[form](name, 87000 * 3073) for name in names) + tar(("test_batch.bin", record))
    )
    with soon(), little_memory():
        line = one_line(capsys, "convert-cifar", "a.tar", "db")
    assert "'data_batch_1.bin' of 'a.tar' is a sparse file, which may unpack to any size" in line
    assert not Path("db").exists()


@pytest.mark.parametrize("content", [b"x\n", b"9" * 600, b"1\n-5\n", b"2\n0\n\n", b"\xff\n", b""])
def test_a_map_of_a_sparse_member_that_is_broken(
    here: Path, capsys: pytest.CaptureFixture[str], content: bytes
) -> None:
    whole = sparse_pax("data_batch_1.bin", 3073)
    Path("a.tar").write_bytes(whole[:-512] + content.ljust(1024, b"\0") + tar(("b", b"b")))
    one_line(capsys, "convert-cifar", "a.tar", "db")


def test_a_member_that_is_larger_than_any_picture(here: Path) -> None:
    Path("a.tar").write_bytes(tar(("a/1.png", PICTURE), ("a/2.png", bytes(2000))))
    with open_tree("a.tar") as tree:
        assert tree.read("a/1.png", 1000) == PICTURE
        with pytest.raises(DataError, match=r"'a\.tar: a/2\.png' has 2000 bytes; at most 1000 are read"):
            tree.read("a/2.png", 1000)


@pytest.mark.parametrize("packer", [None, *PACKERS])
def test_the_names_in_an_archive_are_only_names(
    here: Path, capsys: pytest.CaptureFixture[str], packer: str | None
) -> None:
    """Nothing is read, written or followed where they lead to."""
    pack = PACKERS[packer] if packer else bytes
    outside = here / "outside.png"
    outside.write_bytes(OTHER)
    Path("in").mkdir()
    os.chdir("in")
    members: list[tuple[str | tarfile.TarInfo, bytes]] = [
        ("a/1.png", OTHER), (f"{here}/in/new.png", PICTURE), ("/a/2.png", PICTURE), ("a/./1.png", PICTURE),
        ("b/../a/3.png", PICTURE), ("a//4.png", PICTURE),
    ]  # fmt: skip
    Path("in.tar").write_bytes(pack(tar(*members)))
    inside = str(here).lstrip("/")
    assert contents("in.tar") == {
        **{f"a/{i}.png": PICTURE for i in range(1, 5)}, f"{inside}/in/new.png": PICTURE
    }  # fmt: skip
    assert (
        contents("in.tar", "/a").keys() == contents("in.tar", "a").keys() == {f"{i}.png" for i in range(1, 5)}
    )
    for name in ("../outside.png", "/../outside.png", "a/../../outside.png", ".."):
        Path("in.tar").write_bytes(pack(tar(("a/1.png", PICTURE), (name, PICTURE))))
        assert one_line(capsys, "convert-folder", "in.tar", "db") == (
            f"imae: the name '{name}' leads out of the archive 'in.tar'; it is not to be trusted"
        )
    links = [
        special("a/1.png", kind, target)
        for kind, target in itertools.product(
            (tarfile.SYMTYPE, tarfile.LNKTYPE), (str(outside), "../outside.png")
        )
    ]
    devices = [special("a/1.png", kind) for kind in (tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE)]
    for member in links + devices:
        Path("in.tar").write_bytes(pack(tar((member, b""))))
        assert "'a/1.png' of 'in.tar' is a link or a device" in one_line(
            capsys, "convert-folder", "in.tar", "db"
        )
    assert os.listdir(".") == ["in.tar"]
    assert sorted(os.listdir("..")) == ["in", "outside.png"] and outside.read_bytes() == OTHER


LOOPS = {
    "to itself": {"a/self": "."},
    "to the top": {"a/up": ".."},
    "of two": {"a/b": "../c", "c/a": "../a"},
    "to a twin": {"twin": "a"},
    # 2^40 ways from the top to the last one
    "of many ways": {f"n{i}/{side}": f"../n{i + 1}" for i in range(40) for side in "lr"},
}


@pytest.mark.parametrize("loop", LOOPS)
def test_a_folder_whose_links_lead_in_circles(here: Path, loop: str) -> None:
    Path("in/a").mkdir(parents=True)
    for name, target in LOOPS[loop].items():
        path = Path("in", name)
        path.parent.mkdir(exist_ok=True)
        (path.parent / target).mkdir(exist_ok=True)
        path.symlink_to(target)
    with (
        soon(),
        pytest.raises(DataError, match=r"^'in/.*' and 'in.*' are one folder; remove the link to it$"),
    ):
        contents("in")


def test_links_to_other_folders_and_files_are_followed(here: Path) -> None:
    Path("else").mkdir()
    Path("else/1.png").write_bytes(PICTURE)
    Path("in").mkdir()
    Path("in/a").symlink_to("../else")
    Path("in/2.png").symlink_to("../else/1.png")
    assert contents("in") == {"a/1.png": PICTURE, "2.png": PICTURE}


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_has_no_end_is_no_picture(here: Path, capsys: pytest.CaptureFixture[str], kind: str) -> None:
    Path("in/a").mkdir(parents=True)
    if kind == "pipe":
        os.mkfifo("in/a/1.png")
    else:
        Path("in/a/1.png").symlink_to("/dev/zero")
    assert one_line(capsys, "convert-folder", "in", "db") == "imae: 'in/a/1.png' is no regular file"


@pytest.mark.parametrize("path", ["/dev/zero", "zero"])
def test_a_prototxt_that_names_a_device(here: Path, path: str) -> None:
    Path("zero").symlink_to("/dev/zero")
    with pytest.raises(OSError, match="it is a device, not a file"):
        read_bytes(path)
    with pytest.raises(PrototxtError, match="cannot be read: it is a device, not a file"):
        read_net(path)
    Path("list").write_text(f"{path} 0\n")
    for kind, param, source, transform in (
        ("ImageData", "image_data_param", path, ""),
        ("ImageData", "image_data_param", "list", ""),
        ("ImageData", "image_data_param", "list", f'mean_file: "{path}"'),
        ("WindowData", "window_data_param", path, "crop_size: 9"),
        ("HDF5Data", "hdf5_data_param", path, None),
    ):
        text = f'type: "{kind}" {param} {{ source: "{source}" batch_size: 1 }}'
        text += f" transform_param {{ {transform} }}" if transform is not None else ""
        with pytest.raises(DataError, match="it is a device, not a file"):
            Net(parse_net(f'layer {{ name: "data" top: "data" top: "label" {text} }}'))


# -- HDF5 ----------------------------------------------------------------------------------------------------

BIG = 1 << 28  # numbers: 1 GiB of float32


def never_stored(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (BIG, 1), np.float32)


def chunks_never_stored(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (BIG, 1), np.uint8, chunks=(1 << 16, 1), compression="gzip")


def virtual(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((BIG, 1), np.float32)
    layout[:4] = h5py.VirtualSource("other.h5", "x", (4, 1))  # without any, h5py 3.10 makes a plain data set
    file.create_virtual_dataset(name, layout)


def one_chunk_that_unpacks_to_more(file: h5py.File, name: str) -> None:
    data = file.create_dataset(name, (10, 1), np.float32, chunks=(10, 1), compression="gzip")
    packed = zlib.compressobj(9)
    data.id.write_direct_chunk((0, 0), packed.compress(bytes(16 * MIB)) + packed.flush())


def packed_twice(file: h5py.File, name: str) -> None:
    settings = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    settings.set_chunk((10, 1))
    settings.set_deflate(9)
    settings.set_filter(h5py.h5z.FILTER_LZF, h5py.h5z.FLAG_OPTIONAL, (0,))
    space = h5py.h5s.create_simple((10, 1))
    parent, _, last = name.rpartition("/")
    group = file.require_group(parent) if parent else file
    h5py.h5d.create(group.id, last.encode(), h5py.h5t.IEEE_F32LE, space, settings)


def virtual_of_itself(file: h5py.File, name: str) -> None:
    """HDF5 follows it until the process has no stack left."""
    layout = h5py.VirtualLayout((4, 4), "f4")
    layout[:] = h5py.VirtualSource(".", name, (4, 4))
    file.create_virtual_dataset(name, layout, fillvalue=0)


def virtual_of_itself_by_the_file_name(file: h5py.File, name: str) -> None:
    layout = h5py.VirtualLayout((4, 4), "f4")
    layout[:] = h5py.VirtualSource(os.path.basename(file.filename), name, (4, 4))
    file.create_virtual_dataset(name, layout)


def virtual_of_a_pipe(file: h5py.File, name: str) -> None:
    """Unlimited: HDF5 opens the pipe, and waits, as soon as it is asked for the shape."""
    layout = h5py.VirtualLayout((4, 4), "f4", maxshape=(None, 4))
    source = h5py.VirtualSource("pipe", "x", (4, 4), maxshape=(None, 4))
    layout[: h5py.h5s.UNLIMITED, :] = source[: h5py.h5s.UNLIMITED, :]
    file.create_virtual_dataset(name, layout)


def values_elsewhere(file: h5py.File, name: str) -> None:
    """The file's reader would put /etc/passwd into its snapshots."""
    file.create_dataset(name, (10, 36), "f4", external=[("/etc/passwd", 0, 1440)])


def values_in_a_pipe(file: h5py.File, name: str) -> None:
    file.create_dataset(name, (10, 36), "f4", external=[("pipe", 0, 1440)])


def link_to_a_pipe(file: h5py.File, name: str) -> None:
    file[name] = h5py.ExternalLink("pipe", "/x")


def link_to_another_file(file: h5py.File, name: str) -> None:
    with h5py.File("other.h5", "w") as other:
        other["x"] = np.ones((10, 36), np.float32)
    file[name] = h5py.ExternalLink("other.h5", "/x")


def link_to_a_link_to_a_pipe(file: h5py.File, name: str) -> None:
    file["out"] = h5py.ExternalLink("pipe", "/")
    file[name] = h5py.SoftLink("/out/x")


def links_in_circles(file: h5py.File, name: str) -> None:
    file[name] = h5py.SoftLink(f"/{name}")


def words(file: h5py.File, name: str) -> None:
    file[name] = np.array([["one"], ["two"]], h5py.string_dtype())


HDF5 = {
    never_stored: "asks for 1073741824 bytes of memory; a file of",
    chunks_never_stored: "asks for 1074003968 bytes of memory; a file of",
    virtual: "is a virtual data set",
    virtual_of_itself: "is a virtual data set",
    virtual_of_itself_by_the_file_name: "is a virtual data set",
    virtual_of_a_pipe: "is a virtual data set",
    values_elsewhere: ": its values lie in another file",
    values_in_a_pipe: ": its values lie in another file",
    link_to_a_pipe: "is a link to another file",
    link_to_another_file: "is a link to another file",
    link_to_a_link_to_a_pipe: "is a link to another file",
    links_in_circles: ": its links lead in circles",
    one_chunk_that_unpacks_to_more: "has a chunk of 163.. bytes, which should be 40 unpacked",
    packed_twice: "is compressed 2 times over",
}


@pytest.mark.parametrize("make", HDF5)
def test_hdf5_files_that_ask_for_too_much_or_for_other_files(
    here: Path, make: Callable[[h5py.File, str], None]
) -> None:
    os.mkfifo("pipe")
    with h5py.File("data.h5", "w") as file:
        make(file, "data")
    with pytest.raises(DataError, match=f"data.h5: /data ?{HDF5[make]}"):
        read_data_sets("data.h5", ["data"])
    with h5py.File("w.caffemodel.h5", "w") as file:
        make(file, "data/ip/0")
    net = Net(
        parse_net('layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 } } }')
    )
    with pytest.raises(CaffemodelError, match=f"w.caffemodel.h5: .* /data/ip/0 ?{HDF5[make]}"):
        load_caffemodel(net, "w.caffemodel.h5")
    for name in ("history/0", "iter", "current_step", "imae_run"):
        with h5py.File("s.solverstate.h5", "w") as file:
            for given in ("iter", "current_step"):
                if given != name:
                    file[given] = np.array([1], np.int32)
            file.create_group("history")
            make(file, name)
        with pytest.raises(SnapshotError, match=f"s.solverstate.h5: .* /{name} ?{HDF5[make]}"):
            read_state("s.solverstate.h5")


LAST = b"\1\0\0\0\0\0\0\0" + (2**64 - 16).to_bytes(8, "little")  # 0 together with its head's


@pytest.mark.parametrize("first", [bytes(16), LAST])
def test_a_heap_of_hdf5_that_never_ends(here: Path, first: bytes) -> None:
    """HDF5 looks for the sources of a virtual data set there, going by the size of each object."""
    with h5py.File("data.h5", "w", libver="earliest") as file:
        virtual(file, "data")
        file["other"] = np.ones((10, 1), np.float32)
    data = bytearray(Path("data.h5").read_bytes())
    start = data.index(b"GCOL") + 16
    data[start : start + 16] = first
    Path("data.h5").write_bytes(data)
    for name in ("data", "other"):
        with pytest.raises(DataError, match=r"data\.h5: its global heap is damaged"):
            read_data_sets("data.h5", [name])


def test_heaps_of_hdf5_that_overlap(here: Path) -> None:
    """Each object of a heap holds the head of another heap, and all go on to the end of the file."""
    head = b"GCOL\1\0\0\0" + (1 << 20).to_bytes(8, "little")
    with h5py.File("data.h5", "w") as file:
        object_ = b"\1" + bytes(7) + (16).to_bytes(8, "little") + head
        file["data"] = np.frombuffer(object_ * 30_000, np.uint8)
    with pytest.raises(DataError, match=r"data\.h5: its global heap is damaged"):
        read_data_sets("data.h5", ["data"])


@pytest.mark.parametrize("place", [0, (1 << 20) - 3000, (1 << 20) - 5, 1 << 20])
def test_sound_heaps_of_hdf5(here: Path, place: int) -> None:
    """Texts of any length lie in heaps; also in one that lies across the end of what is read at a time."""
    values = np.ones((4, 1), np.float32)
    with h5py.File("data.h5", "w") as file:
        file["space"] = np.zeros(place, np.uint8)
        file["names"] = np.array(["a" * i for i in range(2000)], h5py.string_dtype())
        file["data"] = values
    assert np.array_equal(read_data_sets("data.h5", ["data"])[0], values)


@pytest.mark.parametrize("link", [h5py.SoftLink("/kept/here"), h5py.SoftLink("inner/here")])
def test_links_within_an_hdf5_file_are_followed(here: Path, link: h5py.SoftLink) -> None:
    values = np.arange(6, dtype=np.float32).reshape(3, 2)
    with h5py.File("data.h5", "w") as file:
        file["kept/here"] = values
        file["inner"] = h5py.SoftLink("kept")
        file["again"] = file["kept"]
        file["data"] = link
        file["ä"] = file["kept/here"]
    for found in read_data_sets("data.h5", ["data", "again/here", "/kept/here", "./data", "ä"]):
        assert np.array_equal(found, values)


def test_one_text_under_many_places_of_an_hdf5_file(here: Path) -> None:
    """A list of 100,000 places that all hold one text of a megabyte would be read as 100 GB."""
    write_state(State(1, "m", 0, []), "s.solverstate.h5")
    with h5py.File("s.solverstate.h5", "r+") as file:
        del file["learned_net"]
        file["learned_net"] = np.array(["x", "y"], h5py.string_dtype())
    with pytest.raises(SnapshotError, match="/learned_net holds 2 texts; one is expected"):
        read_state("s.solverstate.h5")


def test_one_data_set_under_many_names_counts_many_times(here: Path) -> None:
    with h5py.File("data.h5", "w") as file:
        file.create_dataset(
            "d0", (MEMORY_PER_BYTE * MIB // 4 // 10, 1), np.float32
        )  # a tenth of what it gets
        for i in range(1, 11):
            file[f"d{i}"] = file["d0"]
    assert len(read_data_sets("data.h5", ["d0"])) == 1
    with pytest.raises(DataError, match="/d10 asks for 104857600 bytes"):
        read_data_sets("data.h5", [f"d{i}" for i in range(11)])


def test_hdf5_values_that_are_no_numbers(here: Path) -> None:
    with h5py.File("w.caffemodel.h5", "w") as file:
        words(file, "data/ip/0")
    net = Net(
        parse_net('layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 1 } } }')
    )
    with pytest.raises(CaffemodelError, match="/data/ip/0 holds values of type object"):
        load_caffemodel(net, "w.caffemodel.h5")


def test_hdf5_files_that_are_just_large_or_packed(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit goes by the file's size, whatever that is; and by the memory that is free."""
    values = np.random.default_rng(1).random((50000, 8), np.float32)
    with h5py.File("data.h5", "w") as file:
        file["plain"] = values
        file.create_dataset("packed", data=values, compression="gzip", shuffle=True, fletcher32=True)
        file.create_dataset("zeros", data=0 * values, compression="gzip")
    monkeypatch.setattr("imae.files.hdf5_file.MEMORY_PER_BYTE", 3)
    plain, packed, zeros = read_data_sets("data.h5", ["plain", "packed", "zeros"])
    assert np.array_equal(plain, values) and np.array_equal(packed, values) and not zeros.any()
    monkeypatch.setattr("imae.files.hdf5_file.free_memory", lambda: MIB)
    with pytest.raises(DataError, match="/plain needs 1600000 bytes of memory, but only 1048576 are free"):
        read_data_sets("data.h5", ["plain"])


# -- blobs, models -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "blob",
    [
        BlobProto(shape=BlobShape(dim=[0, 2**62])),
        BlobProto(shape=BlobShape(dim=[1] * 70), data=[1]),
        BlobProto(shape=BlobShape(dim=[2**62] * 300000)),
        BlobProto(shape=BlobShape(dim=[2**31 - 1] * 3)),
        BlobProto(shape=BlobShape(dim=[-1, -1]), data=[1]),
        BlobProto(num=0, channels=2**31 - 1, height=2**31 - 1, width=2**31 - 1),
        BlobProto(num=2**31 - 1, channels=2**31 - 1, data=[1]),
    ],
    ids=lambda blob: str(blob)[:40],
)
def test_blobs_of_impossible_shapes(here: Path, blob: BlobProto, capsys: pytest.CaptureFixture[str]) -> None:
    with soon(), pytest.raises(CaffemodelError, match=r"^a blob "):
        array_from_blob(blob)
    with soon(), pytest.raises(DataError, match=r"^a BlobProto of shape"):
        caffe_io.blobproto_to_array(blob)
    Path("mean").write_bytes(blob.SerializeToString())
    write_lmdb("lmdb", [(b"0", encoded_datum(PICTURE, 0))])
    text = 'data_param { source: "lmdb" batch_size: 1 backend: LMDB } transform_param { mean_file: "mean" }'
    with soon(), pytest.raises(DataError, match="mean_file: a blob "):
        Net(parse_net(f'layer {{ name: "data" type: "Data" top: "data" {text} }}'))


def test_a_shape_of_many_axes_in_a_prototxt() -> None:
    shape = "dim: 9000000000 " * 60000
    with soon(10), pytest.raises(ValueError, match="32 axes"):
        Net(
            parse_net(
                f'layer {{ name: "x" type: "DummyData" top: "x" dummy_data_param {{ shape {{ {shape} }} }} }}'
            )
        )


def test_an_onnx_model_gets_the_memory_that_is_free(here: Path) -> None:
    """ONNX Runtime would allocate what the model asks for, up to the end of all programs on the machine."""
    count = 100 * MIB
    nodes = [
        helper.make_node("ConstantOfShape", ["shape"], ["much"]),
        helper.make_node("ReduceMax", ["much"], ["zero"], axes=[0], keepdims=1),
        helper.make_node("Flatten", ["x"], ["flat"]),
        helper.make_node("Add", ["flat", "zero"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, 4, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 60])],
        [numpy_helper.from_array(np.array([count], np.int64), "shape")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    helper.set_model_props(model, {"imae.transform_param": ""})  # else there is a warning, too
    onnx.save(model, "net.onnx")
    Path("a.png").write_bytes(PICTURE)
    # In a process of its own: in this one there may be freed memory that no limit counts.
    script = """
import resource, sys
from imae.files import limits
from imae.cli.main import main
limits.free_memory = lambda: int(sys.argv[1])
limits = resource.getrlimit(resource.RLIMIT_AS)
status = main(["run", "net.onnx", "--images", "a.png", "--threads", "1"])
assert resource.getrlimit(resource.RLIMIT_AS) == limits
sys.exit(status)
"""
    # ONNX Runtime 1.31 makes do with 10 bytes for each of the numbers, 1.21 needs 16.
    for free, status in ((4 * count, 2), (20 * count, 0)):
        done = subprocess.run([sys.executable, "-c", script, str(free)], capture_output=True, text=True)
        assert done.returncode == status, done.stderr
        if status:
            (line,) = done.stderr.splitlines()
            assert re.match("imae: (net.onnx: )?ONNX Runtime cannot (load|run) it: .*alloc", line)


def test_a_memory_limit_that_there_is_already_stays() -> None:
    with little_memory(100):
        before = resource.getrlimit(resource.RLIMIT_AS)
        with limits.within_free_memory():
            assert resource.getrlimit(resource.RLIMIT_AS) == before
        assert resource.getrlimit(resource.RLIMIT_AS) == before


# -- paths in a prototxt -------------------------------------------------------------------------------------

READS = """
layer {{ name: "data" type: "Data" top: "data" top: "label" transform_param {{ mean_file: "{0}/mean" }}
         data_param {{ source: "{0}/lmdb" batch_size: 2 backend: LMDB }} }}
layer {{ name: "image" type: "ImageData" top: "image" top: "number"
         image_data_param {{ source: "{0}/list" root_folder: "{0}/" batch_size: 2 }} }}
layer {{ name: "window" type: "WindowData" top: "window" top: "kind" transform_param {{ crop_size: 2 }}
         window_data_param {{ source: "{0}/windows" root_folder: "{0}/" batch_size: 2 }} }}
layer {{ name: "h5" type: "HDF5Data" top: "h5" hdf5_data_param {{ source: "{0}/files" batch_size: 2 }} }}
layer {{ name: "rest" type: "Silence"
         bottom: "number" bottom: "window" bottom: "kind" bottom: "h5" bottom: "image" }}
layer {{ name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param {{ num_output: 2 }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }}
"""
SOLVER = """
net: "{0}/net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3 snapshot: 1 display: 1
snapshot_prefix: "{1}"
"""


@pytest.fixture
def apart(here: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder "in" to work in; beside it "else" with all that a net reads."""
    Path("in").mkdir()
    Path("else").mkdir()
    monkeypatch.chdir("else")
    Path("1.png").write_bytes(PICTURE)
    write_lmdb("lmdb", [(b"0", encoded_datum(PICTURE, 0)), (b"1", encoded_datum(OTHER, 1))])
    assert main(["compute-image-mean", "lmdb", "mean"]) == 0
    Path("list").write_text("1.png 0\n")
    Path("windows").write_text("# 0\n1.png\n3 4 5\n2\n1 1 0 0 3 3\n1 0 0 0 3 3\n")
    with h5py.File("data.h5", "w") as file:
        file["h5"] = np.zeros((3, 1), np.float32)
    monkeypatch.chdir(here / "in")
    return here / "else"


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in folder.rglob("*")}


@pytest.mark.parametrize("way", ["..", "absolute", "link"])
def test_paths_in_a_prototxt_lead_anywhere_to_read(
    apart: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    """As in Caffe. Nothing there is changed, and files are written only at snapshot_prefix."""
    Path("link").symlink_to("../else")
    there = {"..": "../else", "absolute": str(apart), "link": "link"}[way]
    (apart / "files").write_text(f"{there}/data.h5\n")
    (apart / "net.prototxt").write_text(READS.format(there))
    Path("solver.prototxt").write_text(SOLVER.format(there, "s"))
    before = everything(apart)
    assert main(["train", "solver.prototxt", "--keep", "1"]) == 0
    weights = ["--weights", "s_iter_3.caffemodel"]
    assert main(["test", "--model", f"{there}/net.prototxt", *weights, "--iterations", "1"]) == 0
    assert everything(apart) == before
    assert {path.name for path in Path().iterdir()} == {
        "link", "solver.prototxt", "s_iter_3.caffemodel", "s_iter_3.solverstate"
    }  # fmt: skip


@pytest.mark.parametrize("way", ["..", "absolute", "link"])
def test_no_path_in_a_prototxt_has_anything_removed_elsewhere(
    apart: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], way: str
) -> None:
    """Not by --keep, not by a layer that writes, not for snapshots, which may be written there."""
    Path("link").symlink_to("../else")
    there = {"..": "../else", "absolute": str(apart), "link": "link"}[way]
    (apart / "files").write_text(f"{there}/data.h5\n")
    for name in ("s_iter_1.caffemodel", "s_iter_1.solverstate", "s_iter_0.caffemodel", "s.txt"):
        (apart / name).write_text("theirs")
    net = READS.format(there)
    output = 'layer { name: "out" type: "HDF5Output" bottom: "data" bottom: "label" '
    output += f'hdf5_output_param {{ file_name: "{there}/s.txt" }} }}'
    Path("solver.prototxt").write_text(
        SOLVER.format(there, f"{there}/s").replace("snapshot: 1", "snapshot: 2")
    )
    (apart / "net.prototxt").write_text(net)
    before = everything(apart)
    assert "--keep removes snapshots in the working directory only" in one_line(
        capsys, "train", "solver.prototxt", "--keep", "1"
    )
    (apart / "net.prototxt").write_text(net + output)
    assert "s.txt' exists and is no HDF5 file" in one_line(capsys, "train", "solver.prototxt")
    (apart / "net.prototxt").write_text(net)
    assert everything(apart) == before
    assert main(["train", "solver.prototxt"]) == 0
    after = everything(apart)
    assert {path: after[path] for path in before} == before
    assert {os.path.basename(path) for path in after.keys() - before.keys()} == {
        f"s_iter_{i}.{kind}" for i in (2, 3) for kind in ("caffemodel", "solverstate")
    }
