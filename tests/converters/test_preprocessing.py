"""How images are prepared travels with the model: from net or options, by the metadata, to the batch."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from numpy.typing import NDArray

from imae.cli.main import main
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.preprocessing import (
    Preprocessing,
    PreprocessingOptions,
    from_metadata,
    make_preprocessing,
    read_mean,
    read_transform,
)
from imae.converters.run_onnx import image_batches, open_session
from imae.files.errors import DataError
from imae.layers.blob import blob_from_array
from imae.layers.data.datum import datum_from_array

GENERATOR = np.random.default_rng(5)
MEAN = GENERATOR.uniform(90, 130, (3, 10, 12)).astype(np.float32)
NET = """
name: "small"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { mirror: true crop_size: 8 scale: 0.5 mean_file: "mean.binaryproto" }
  data_param { source: "lmdb" batch_size: 2 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 5 weight_filler { type: "msra" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""
DEPLOY = """
name: "small" input: "data" input_dim: 1 input_dim: 3 input_dim: 8 input_dim: 8
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "msra" } } }
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with NET, DEPLOY, an LMDB of images 10 x 12, their mean image, and image.png, 20 x 15."""
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(6).integers(0, 256, (6, 3, 10, 12), np.uint8)
    write_lmdb("lmdb", ((b"%04d" % i, datum_from_array(image, i % 4)) for i, image in enumerate(images)))
    Path("net.prototxt").write_text(NET)
    Path("deploy.prototxt").write_text(DEPLOY)
    Path("mean.binaryproto").write_bytes(blob_from_array(MEAN[None]).SerializeToString())
    cv2.imwrite("image.png", np.random.default_rng(7).integers(0, 256, (20, 15, 3), np.uint8))
    return tmp_path


def metadata_of(path: str) -> dict[str, str]:
    """What the model says of how images are prepared."""
    metadata = {entry.key: entry.value for entry in onnx.load(path).metadata_props}
    return {key: text for key, text in metadata.items() if key.startswith(("imae.input.", "imae.transform"))}


def by_hand(metadata: dict[str, str], pixels: NDArray[np.uint8]) -> NDArray[np.float32]:
    """A picture (H, W, 3), BGR, prepared by nothing but the plain keys, as another program would."""
    key = {name.removeprefix("imae.input."): value for name, value in metadata.items()}
    assert key["layout"] == "NCHW" and key["dtype"] == "float32" and key["range"] == "0..255"
    if "resize" in key:
        height, width = map(int, key["resize"].split("x"))
        pixels = np.asarray(cv2.resize(pixels, (width, height)), np.uint8)
    if key["channels"] == "RGB":
        pixels = pixels[:, :, ::-1]
    values = pixels.astype(np.float32).transpose(2, 0, 1)
    if "mean_image" in key:
        shape = [int(side) for side in key["mean_image_shape"].split("x")]
        values = values - np.frombuffer(base64.b64decode(key["mean_image"]), "<f4").reshape(shape)
    elif "mean" in key:
        values = values - np.array(key["mean"].split(), np.float32)[:, None, None]
    if "crop" in key:
        height, width = map(int, key["crop"].split("x"))
        top, left = (values.shape[1] - height) // 2, (values.shape[2] - width) // 2
        values = values[:, top : top + height, left : left + width]
    return values * np.float32(key.get("scale", "1"))


def test_a_model_carries_the_mean_image_of_its_net(project: Path) -> None:
    """first_use B2, ecosystem 5.3: the metadata had the path of the mean file, not the mean."""
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    Path("mean.binaryproto").unlink()
    metadata = metadata_of("net.onnx")
    assert "mean_file" not in metadata["imae.transform_param"] and "mirror" not in str(metadata)
    keys = "name", "resize", "crop", "scale", "channels"
    assert {key: metadata[f"imae.input.{key}"] for key in keys} == {
        "name": "data",
        "resize": "10x12",
        "crop": "8x8",
        "scale": "0.5",
        "channels": "BGR",
    }
    own = from_metadata(metadata, "net.onnx")
    assert own is not None and own.mean_image is not None
    np.testing.assert_array_equal(own.mean_image, MEAN)
    assert own.metadata() == metadata
    ((batch, _),) = image_batches(["image.png"], own, 1, (1, 3, 8, 8))
    pixels = np.asarray(cv2.imread("image.png"), np.uint8)
    np.testing.assert_array_equal(batch[0], by_hand(metadata, pixels))


@pytest.mark.parametrize(
    ("options", "want"),
    [
        (["--mean", "104,117.5,123"], {"mean": "104 117.5 123"}),
        (["--mean", "mean.binaryproto"], {"resize": "10x12", "mean_image_shape": "3x10x12", "crop": "8x8"}),
        (["--mean", "mean.npy"], {"resize": "10x12", "mean_image_shape": "3x10x12"}),
        (["--transform", "scale: 0.00390625"], {"scale": "0.00390625"}),
        (["--transform", "mean_file: 'mean.binaryproto' crop_size: 8"], {"crop": "8x8", "resize": "10x12"}),
        (["--transform", "crop_size: 8", "--resize", "9"], {"resize": "9x9"}),
        (["--channels", "RGB"], {"channels": "RGB"}),
        (
            ["--transform", "resize_param { height: 8 width: 9 interp_mode: [AREA, CUBIC] } crop_size: 8"],
            {"resize": "8x9", "resize_mode": "WARP", "crop": "8x8"},
        ),
        (["--transform", ""], {"channels": "BGR"}),
    ],
)  # fmt: skip
def test_a_deploy_net_gets_it_from_the_options(
    project: Path, options: list[str], want: dict[str, str]
) -> None:
    np.save("mean.npy", MEAN)
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.onnx", *options]) == 0
    metadata = metadata_of("net.onnx")
    for key, value in want.items():
        assert metadata[f"imae.input.{key}"] == value
    own = from_metadata(metadata, "net.onnx")
    assert own is not None and own.metadata() == metadata
    ((batch, _),) = image_batches(["image.png"], own, 1, (1, 3, 8, 8))
    assert batch.shape == (1, 3, 8, 8)


def test_an_input_layer_may_still_have_the_transform_param(project: Path) -> None:
    text = DEPLOY.split("\n", 2)[2]
    head = (
        'layer { name: "data" type: "Input" top: "data"\n'
        "  input_param { shape { dim: 1 dim: 3 dim: 8 dim: 8 } }\n"
        "  transform_param { mean_value: 7 } }"
    )
    Path("deploy.prototxt").write_text(f"{head}\n{text}")
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.onnx"]) == 0
    assert metadata_of("net.onnx")["imae.input.mean"] == "7"


def test_a_model_that_does_not_say_it(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """first_use B3, M1: run warns, quantize refuses; with --transform the int8 model says it."""
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.onnx"]) == 0
    assert not any(key.startswith("imae.input") for key in metadata_of("net.onnx"))
    run = ["run", "net.onnx", "--images", "image.png"]
    capsys.readouterr()
    assert main(run) == 0
    assert "does not say how its images are prepared" in capsys.readouterr().err
    write_lmdb("small", ((b"%d" % i, datum_from_array(np.full((3, 8, 8), i, np.uint8), 0)) for i in range(5)))
    quantize = ["quantize", "net.onnx", "int8.onnx", "--to", "int8", "--calibrate", "small"]
    assert main(quantize) == 2
    assert "does not say how its images are prepared" in capsys.readouterr().err
    assert not Path("int8.onnx").exists()
    assert main([*quantize, "--transform", "scale: 0.25"]) == 0
    assert metadata_of("int8.onnx")["imae.input.scale"] == "0.25"
    capsys.readouterr()
    assert main(["run", "int8.onnx", "--images", "image.png"]) == 0
    assert "does not say" not in capsys.readouterr().err


def test_export_says_how_images_are_prepared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Only `imae run` said it: what to give to blobFromImage, or that nothing is known, was not shown."""
    export = ["export", "--output", "net.onnx", "--model"]
    assert main([*export, "net.prototxt"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[2].startswith("images: resized to 10x12, BGR 0..255, minus a mean image (about ")
    assert lines[2].endswith("), cropped to 8x8 from the centre, times 0.5")
    assert main([*export, "deploy.prototxt"]) == 0
    assert "images: NOTHING SAYS HOW THEY ARE PREPARED (mean, scale, crop" in capsys.readouterr().out
    Path("values.prototxt").write_text(DEPLOY.replace("input_dim: 3", "input_dim: 7"))
    assert main([*export, "values.prototxt"]) == 0
    assert "images:" not in capsys.readouterr().out


def test_the_size_before_the_crop() -> None:
    """first_use M2: a photo was cropped without a word; it is resized, to the input if need be."""
    crop = make_preprocessing(read_transform("crop_size: 28", "x"))
    assert crop.resize_for((1, 3, 28, 28)) == (28, 28) and crop.resize_for((1, 3, "h", "w")) == (28, 28)
    options = PreprocessingOptions(resize=(32, 36))
    known = options.apply(crop, (1, 3, 28, 28))
    assert known is not None and known.resize_for((1, 3, 28, 28)) == (32, 36)
    assert known.steps() == "resized to 32x36, BGR 0..255, cropped to 28x28 from the centre"
    whole = make_preprocessing(
        read_transform("", "x"), mean=np.zeros((1, 32, 32), np.float32), num_channels=1
    )
    assert whole.channels == "GRAY" and whole.resize == (32, 32)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "nowhere.npy"], "cannot read 'nowhere.npy'"),
        (["--mean", "objects.npy"], "not floating-point numbers"),
        (["--mean", "cut.npy"], "bytes"),
        (["--mean", "flat.npy"], "expected (C,), (C, H, W)"),
        (["--mean", "nan,1,2"], "a finite number for each channel"),
        (["--mean", "1,2"], "the mean has 2 channels, the model's images have 3"),
        (["--mean", "deploy.prototxt"], "deploy.prototxt"),
        (["--resize", "0x5"], "--resize must be HxW"),
        (["--resize", "1x2x3"], "--resize must be HxW"),
        (["--transform", "scala: 1"], 'did you mean "scale"'),
        (["--transform", "mean_file: 'mean.binaryproto' mean_value: 3"], "Cannot specify mean_file and"),
        (["--transform", "crop_size: 5"], "would be prepared as 5x5 (BGR 0..255, cropped to 5x5"),
        (["--mean", "small.npy"], "would be prepared as 4x9 (resized to 4x9"),
        (["--channels", "XYZ"], "choose from"),
    ],
)  # fmt: skip
def test_bad_options(
    project: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    np.save("objects.npy", np.array([None, 1], object), allow_pickle=True)
    np.save("flat.npy", np.zeros((2, 3), np.float32))
    np.save("small.npy", MEAN[:, :4, :9])
    np.save("mean.npy", MEAN)
    Path("cut.npy").write_bytes(Path("mean.npy").read_bytes()[:-8])
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.onnx", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("net.onnx").exists()


def test_a_mean_image_larger_than_an_input_that_is_not_square(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It was exported with crop_h and crop_w, which `run` then refused."""
    Path("wide.prototxt").write_text(DEPLOY.replace("input_dim: 8 input_dim: 8", "input_dim: 6 input_dim: 8"))
    command = ["export", "--model", "wide.prototxt", "--output", "net.onnx", "--mean", "mean.binaryproto"]
    assert main(command) == 2
    assert "would be prepared as 10x12 (resized to 10x12" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("net.onnx").exists()


def test_a_net_without_images_takes_no_options(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("flat.prototxt").write_text(DEPLOY.replace("input_dim: 3", "input_dim: 2"))
    command = ["export", "--model", "flat.prototxt", "--output", "net.onnx"]
    assert main([*command, "--transform", ""]) == 2
    assert "has no input of images" in capsys.readouterr().err.splitlines()[-1]
    assert main(command) == 0 and not any("input" in key for key in metadata_of("net.onnx"))


@pytest.mark.parametrize(
    ("transform", "size", "warning"),
    [
        ("crop_size: 8", "", "which size images have before they are cropped to 8x8"),
        ("crop_h: 8 crop_w: 7", "", "which size images have before they are cropped to 8x7"),
        (
            "resize_param { height: 9 width: 8 }",
            "new_height: 12 new_width: 12",
            "new_width, then by resize_param",
        ),
        ("crop_size: 8", "new_height: 12 new_width: 12", ""),
        ("resize_param { height: 9 width: 8 }", "", ""),
    ],
)
def test_sizes_of_image_files_that_a_model_cannot_say(
    project: Path, transform: str, size: str, warning: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """imae run would prepare other images than imae test, without a word."""
    Path("list.txt").write_text("image.png 0\n")
    source = f'image_data_param {{ source: "list.txt" batch_size: 1 {size} }}'
    fields = f"transform_param {{ {transform} }} {source}"
    data = f'layer {{ name: "data" type: "ImageData" top: "data" top: "label" {fields} }}'
    Path("files.prototxt").write_text(data + DEPLOY.partition("\n")[2].partition("\n")[2])
    assert main(["export", "--model", "files.prototxt", "--output", "net.onnx"]) == 0
    warnings = capsys.readouterr().err
    assert warning in warnings and bool(warning) == ("so that imae" in warnings)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("imae.input.channels", "CMYK", "must be one of BGR, RGB, GRAY"),
        ("imae.input.mean_image", "*", "no base64"),
        ("imae.input.mean_image", "AAAA", "has 3 bytes"),
        ("imae.input.mean_image_shape", "3x99999999x99999999", "imae.input.mean_image_shape"),
        ("imae.input.resize", "-1x4", "must be HxW"),
        ("imae.input.resize", "40000x40000", "imae.input.resize: blob size exceeds INT_MAX"),
        ("imae.transform_param", "crop_size: 9", "images would be prepared as 9x9"),
        ("imae.transform_param", "scala: 1", 'did you mean "scale"'),
    ],
)
def test_damaged_metadata(
    project: Path, key: str, value: str, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    model = onnx.load("net.onnx")
    onnx.helper.set_model_props(model, metadata_of("net.onnx") | {key: value})
    onnx.save(model, "bad.onnx")
    assert main(["run", "bad.onnx", "--images", "image.png"]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert message in line and "bad.onnx" in line


def test_a_model_of_an_older_release(project: Path) -> None:
    """Only imae.transform_param, with the path of the mean."""
    own = from_metadata({"imae.transform_param": 'scale: 2 mean_file: "mean.binaryproto"'}, "old.onnx")
    assert own is not None and own.transform.scale == 2 and own.resize == (10, 12)
    with pytest.raises(DataError, match=r"old\.onnx: metadata: mean_file: .*nowhere"):
        from_metadata({"imae.transform_param": 'mean_file: "nowhere"'}, "old.onnx")


def test_read_mean_of_numbers() -> None:
    np.testing.assert_array_equal(read_mean("104 117 123"), np.array([104, 117, 123], np.float32))


def test_the_session_of_an_exported_model_takes_what_is_prepared(project: Path) -> None:
    assert main(["export", "--model", "net.prototxt", "--output", "net.onnx"]) == 0
    own = from_metadata(metadata_of("net.onnx"), "net.onnx")
    assert isinstance(own, Preprocessing)
    ((batch, _),) = image_batches(["image.png"], own, 1, (1, 3, 8, 8))
    assert open_session("net.onnx").run(None, {own.name: batch})[0].shape == (1, 5)


def printed_of(capsys: pytest.CaptureFixture[str], *options: str) -> str:
    """The line of `imae export` about images."""
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.onnx", *options]) == 0
    (line,) = [line for line in capsys.readouterr().out.splitlines() if line.startswith("images: ")]
    return line


def test_export_prints_how_images_are_prepared(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A deploy file says nothing of it, and a model with wrong answers was written without a word."""
    assert printed_of(capsys).startswith("images: NOTHING SAYS HOW THEY ARE PREPARED")
    assert printed_of(capsys, "--transform", "") == "images: resized to 8x8 (the input's size), BGR 0..255"
    assert re.fullmatch(
        r"images: resized to 10x12, BGR 0..255, minus a mean image \(about .*\), cropped to 8x8 from the "
        "centre",
        printed_of(capsys, "--mean", "mean.binaryproto"),
    )
    line = printed_of(capsys, "--transform", "scale: 2", "--embed-preprocess", "rgb")
    assert line.startswith("images: resized to 8x8, RGB bytes; the model itself does the rest")


def test_the_card_says_the_size_where_it_is_the_input_s(project: Path) -> None:
    options = ["--transform", "scale: 2", "--card"]
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.onnx", *options]) == 0
    words = "resized to 8x8 (the input's size), BGR 0..255, times 2."
    assert f"An image is prepared so: {words}" in Path("net.md").read_text().replace("\\", "")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--mean", "mean.binaryproto", "--resize", "16"], "the mean image is 10x12, and images would be 16"),
        (["--mean", "104,117"], "--mean: the mean has 2 channels"),
    ],
)
def test_a_mean_that_does_not_fit_is_refused_at_the_export(
    project: Path, options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mean image of another size than --resize was written, and only `imae run` refused the model."""
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.onnx", *options]) == 2
    assert message in capsys.readouterr().err.splitlines()[-1]
    assert not Path("net.onnx").exists()


def test_a_model_under_the_name_of_another_file_is_refused(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--output net.pt` wrote ONNX into a file that PyTorch was to read."""
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.pt"]) == 2
    assert "a .pt file is not written here" in capsys.readouterr().err.splitlines()[-1]
    assert not Path("net.pt").exists()
    assert main(["export", "--model", "deploy.prototxt", "--output", "net.pt", "--to", "onnx"]) == 0
