"""What a command does a Python user gets by one call with typed arguments, byte for byte."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from reference import CASES

from imae.cli.main import main
from imae.converters.compute_image_mean import compute_image_mean
from imae.converters.convert_annoset import AnnosetForm, convert_annoset
from imae.converters.convert_digits import convert_digits
from imae.converters.convert_folder import convert_folder
from imae.converters.convert_imageset import convert_imageset
from imae.converters.corrupt_labels import corrupt_labels
from imae.converters.images import PictureForm
from imae.converters.quantize_onnx import quantize_file
from imae.converters.run_onnx import run_file
from imae.converters.upgrade_proto import upgrade_net_text
from imae.files.errors import DataError
from imae.layers.data.lmdb_source import open_lmdb

UPGRADE = CASES / "upgrade" / "data_fields.in.prototxt"
SIZE = ["--resize-height=6", "--resize-width=5", "--interpolation=bicubic", "--gray"]
FORM = PictureForm(gray=True, height=6, width=5, interpolation="bicubic", pad=2)

CALLS: list[tuple[list[str], Callable[[Path, Path], object]]] = [
    (["convert-digits", "{out}", "--pad=1", "--shuffle=3"], lambda i, o: convert_digits(o, pad=1, shuffle=3)),
    (
        ["convert-folder", "{in}/pictures", "{out}", *SIZE, "--pad=2", "--classes=b,a", "--shuffle=2"],
        lambda i, o: convert_folder(i / "pictures", o, FORM, classes=["b", "a"], shuffle=2),
    ),
    (
        ["convert-imageset", "{in}/pictures/", "{in}/list", "{out}", *SIZE, "--pad=2", "--shuffle=2"],
        lambda i, o: convert_imageset(f"{i}/pictures/", f"{i}/list", o, FORM, shuffle=2),
    ),
    (
        ["convert-imageset", "{in}/pictures/", "{in}/list", "{out}", "--encode_type=png"],
        lambda i, o: convert_imageset(f"{i}/pictures/", f"{i}/list", o, encode_type="png"),
    ),
    (
        ["convert-annoset", "{in}/pictures/", "{in}/list", "{out}", "--encode_type=png", "--shuffle=2"],
        lambda i, o: convert_annoset(
            f"{i}/pictures/", f"{i}/list", o, AnnosetForm(encode_type="png"), shuffle=2
        ),
    ),
    (
        ["corrupt-labels", "{in}/digits/digits_test_lmdb", "{out}", "--noise=symmetric", "--rate=0.5"],
        lambda i, o: corrupt_labels(i / "digits" / "digits_test_lmdb", o, "symmetric", rate=0.5),
    ),
    (
        ["compute-image-mean", "{in}/digits/digits_test_lmdb", "{out}"],
        lambda i, o: compute_image_mean(i / "digits" / "digits_test_lmdb", o),
    ),
    (["upgrade-net-proto-text", str(UPGRADE), "{out}"], lambda i, o: upgrade_net_text(UPGRADE, o)),
]


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with two pictures in class folders, a list of them, and the digits."""
    folder = tmp_path_factory.mktemp("given")
    for seed, name in enumerate("ab"):
        (folder / "pictures" / name).mkdir(parents=True)
        pixels = np.random.default_rng(seed).integers(0, 256, (9, 8, 3), np.uint8)
        (folder / "pictures" / name / "x.png").write_bytes(bytes(cv2.imencode(".png", pixels)[1]))
    (folder / "list").write_text("a/x.png 0\nb/x.png 1\n")
    convert_digits(folder / "digits")
    return folder


def content(path: Path) -> dict[str, object]:
    """The bytes of files, the records of databases."""
    if path.is_file():
        return {"": path.read_bytes()}
    if not (path / "data.mdb").exists():
        return {f"{inner.name}{key}": v for inner in path.iterdir() for key, v in content(inner).items()}
    with open_lmdb(path) as source:
        return {f"{key!r}": source.datum(i).SerializeToString() for i, key in enumerate(source.keys())}


@pytest.mark.parametrize(("command", "call"), CALLS, ids=[" ".join(command[:1]) for command, _ in CALLS])
def test_a_call_does_what_the_command_does(
    tmp_path: Path, given: Path, command: list[str], call: Callable[[Path, Path], object]
) -> None:
    places = {"in": given, "out": tmp_path / "by_command"}
    main([word.format(**places) for word in command])
    call(given, tmp_path / "by_call")
    wanted = content(tmp_path / "by_command")
    assert wanted
    assert content(tmp_path / "by_call") == wanted


WRONG: list[tuple[Callable[[Path], object], str]] = [
    (lambda o: convert_digits(o, pad=-1), "pad must be at least 0, got -1"),
    (
        lambda o: convert_folder("x", o, PictureForm(pad=-1)),
        "height, width and pad must be at least 0, got 0, 0 and -1",
    ),
    (
        lambda o: convert_folder("x", o, PictureForm(height=3, width=3, interpolation="cubic")),
        "unknown interpolation 'cubic' (known: ",
    ),
    (
        lambda o: corrupt_labels("x", o, "symetric", rate=0.1),
        "unknown noise 'symetric'; did you mean symmetric? (known: symmetric, ",
    ),
    (lambda o: compute_image_mean("x", o, "LMDB"), "backend must be lmdb or leveldb, got 'LMDB'"),  # type: ignore[arg-type]
    (lambda o: quantize_file("x", o, "int4"), "a model is quantized to fp16 or int8, got 'int4'"),  # type: ignore[arg-type]
    (lambda o: run_file("x"), "give one of the two"),
    (lambda o: run_file("x", lmdb="y", images=["z"]), "give one of the two"),
    (lambda o: run_file("x", images="z"), "give one of the two"),
]


@pytest.mark.parametrize(("call", "message"), WRONG)
def test_an_argument_that_the_command_line_would_refuse_is_refused(
    call: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=re.escape(message)):
        call(tmp_path / "out")
    assert not (tmp_path / "out").exists()
