"""The deployed form of a net: what an export needs of the data of a train net, and what its errors advise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from imae.cli.main import main
from imae.converters.preprocessing import from_metadata
from imae.layers.blob import blob_from_array

# Types of data layers, the fields that name what is not there, and the beginning of the error.
DATA = {
    "Data": ('data_param { source: "no" batch_size: 2 backend: LMDB }', "lmdb 'no': No such file"),
    "ImageData": ('image_data_param { source: "no" batch_size: 2 }', "image list 'no': No such file"),
    "HDF5Data": ('hdf5_data_param { source: "no" batch_size: 2 }', "Failed to open source file: no"),
    "WindowData": (
        'window_data_param { source: "no" batch_size: 2 } transform_param { crop_size: 8 }',
        "Failed to open window file no",
    ),
    "AnnotatedData": (
        'data_param { source: "no" batch_size: 2 backend: LMDB } '
        'annotated_data_param { label_map_file: "no.prototxt" }',
        "lmdb 'no': No such file",
    ),
    "DenseImageData": ('dense_image_data_param { source: "no" batch_size: 2 }', "image list 'no': No such"),
    "Python": ('python_param { module: "no_such_module" layer: "L" }', "layer 'data' (Python): No module"),
}
BODY = """
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""
EXPORT = ["export", "--model", "net.prototxt", "--output", "net.onnx"]
SHAPE = ["--input-shape", "3,8,8"]


def write_net(kind: str, fields: str) -> None:
    Path("net.prototxt").write_text(
        f'layer {{ name: "data" type: "{kind}" top: "data" top: "label" {fields} }}{BODY}'
    )


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize("kind", DATA)
def test_a_train_net_exports_without_its_data(
    here: Path, capsys: pytest.CaptureFixture[str], kind: str
) -> None:
    """With a shape for its input; the error without one names the option."""
    fields, problem = DATA[kind]
    write_net(kind, fields)
    assert main(EXPORT) == 2
    line = last_line(capsys)
    assert line.startswith(f"imae: {problem}")
    assert line.endswith("; or give the shape of input 'data': --input-shape")
    assert not Path("net.onnx").exists()
    assert main([*EXPORT, *SHAPE]) == 0
    assert "largest difference from the net" in capsys.readouterr().out


def test_a_mean_file_that_is_not_there_can_be_given(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_net("Data", DATA["Data"][0] + ' transform_param { mean_file: "no.binaryproto" scale: 0.5 }')
    assert main([*EXPORT, *SHAPE]) == 2
    advice = "mean_file: no.binaryproto: no such file; or say it otherwise: --mean FILE, --transform '...'"
    assert last_line(capsys) == f"imae: layer 'data': {advice}"
    mean = np.arange(192, dtype=np.float32).reshape(1, 3, 8, 8)
    Path("other.binaryproto").write_bytes(blob_from_array(mean).SerializeToString())
    for how, scale in ((["--mean", "other.binaryproto"], 0.5), (["--transform", "scale: 2"], 2)):
        assert main([*EXPORT, *SHAPE, *how]) == 0
        metadata = {entry.key: entry.value for entry in onnx.load("net.onnx").metadata_props}
        made = from_metadata(metadata, "net.onnx")
        assert made is not None and made.transform.scale == scale
        if scale == 0.5:
            np.testing.assert_array_equal(made.mean_image, mean[0])


LRCN = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: [4, 5] } } }
layer { name: "clip" type: "Input" top: "clip" input_param { shape { dim: 4 } } }
layer { name: "steps" type: "Reshape" bottom: "data" top: "steps" reshape_param { shape { dim: [4, 1, 5] } } }
layer { name: "cont" type: "Reshape" bottom: "clip" top: "cont" reshape_param { shape { dim: [4, 1] } } }
layer { name: "lstm" type: "LSTM" bottom: "steps" bottom: "cont" top: "lstm"
        recurrent_param { num_output: 3 weight_filler { type: "uniform" min: -1 max: 1 } } }
"""


def test_a_net_for_one_batch_size_is_told_to_fix_it(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """LRCN's deploy net has its number of time steps in the shapes of Reshape layers."""
    Path("net.prototxt").write_text(LRCN)
    assert main(EXPORT) == 2
    line = last_line(capsys)
    assert "cannot run with a batch of 3: layer 'steps' (Reshape)" in line
    assert line.endswith("; if it is for one batch size only, use --fixed-batch")
    assert main([*EXPORT, "--fixed-batch"]) == 0
    assert "batch sizes 4:" in capsys.readouterr().out
