"""The names of the parameter blobs: of every type that has any, and where the bottoms decide."""

from pathlib import Path

import numpy as np
import pytest
from layer_cases import CASES, make, write_files
from single_layer import build

from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer
from imae.layers.registry import class_of
from imae.layers.run import Run

# The types of CASES with parameter blobs; the others have none.
NAMES = {
    "weight bias": "Convolution Deconvolution Embed InnerProduct Scale ConvolutionDepthwise "
    "DepthwiseConvolution",
    "weight": "InnerDistance MarginInnerProduct PReLU",
    "bias": "Bias",
    "scale": "Normalize",
    "centers": "CenterLoss",
    "parameter": "Parameter",
    "mean variance scale_factor": "BatchNorm",
    "slope bias mean variance": "BN",
    "scale shift": "BN:SegNet",
    "scale shift mean variance": "BN:CaffeMex",
    "W_xc b_c W_hc": "LSTM",
    "W_xh b_h W_hh W_ho b_o": "RNN",
    "W_i W_h b": "Lstm",
}
NAMES_OF = {key: names for names, keys in NAMES.items() for key in keys.split()}


def names(layer: Layer) -> str:
    return " ".join(layer.blob_name(index) for index in range(len(layer.blobs)))


def test_the_blobs_of_each_type_have_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    found = {}
    for key, case in CASES.items():
        param = make(key, {})
        layer = class_of(param)(param)
        layer.build([tuple(bottom.shape) for bottom in case.bottoms], Run(CaffeRandom(1)))
        if layer.blobs:
            found[key] = names(layer)
    assert found == NAMES_OF


def test_a_blob_that_a_bottom_replaces_takes_no_name() -> None:
    assert names(build('type: "Scale" scale_param { bias_term: true }', (2, 3, 4), (3, 4))) == "bias"
    scale = 'type: "ChannelScale" channel_scale_param { global_scale: true }'
    assert names(build(scale, (2, 3, 4, 4), (2, 1, 4, 4))) == "scale"


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("LSTM", "W_xc b_c W_xc_static W_hc"), ("RNN", "W_xh b_h W_xh_static W_hh W_ho b_o")],
)
def test_a_recurrent_layer_with_a_static_input_has_one_more(kind: str, expected: str) -> None:
    text = f'type: "{kind}" recurrent_param {{ num_output: 5 }}'
    layer = build(text, (3, 2, 4), (3, 2), (2, 7))
    assert names(layer) == expected
    by_name = dict(zip(expected.split(), layer.blob_shapes, strict=True))
    static = next(name for name in by_name if name.endswith("_static"))
    assert by_name[static][1] == 7
    assert [name for name, shape in by_name.items() if len(shape) == 1] == [
        name for name in by_name if name.startswith("b_")
    ]


def test_a_blob_without_a_name_has_its_number() -> None:
    text = 'type: "InnerProduct" inner_product_param { num_output: 2 }'
    layer = build(text, (2, 3))
    assert [layer.blob_name(index) for index in (1, 2, 11)] == ["bias", "blob2", "blob11"]


def test_the_blobs_of_a_users_layer_have_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
import caffe

class Two(caffe.Layer):
    def setup(self, bottom, top):
        self.blobs.add_blob(3)
        self.blobs.add_blob(5)
    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].data.shape)
    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data
"""
    (tmp_path / "blobs_without_names.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    layer = build('type: "Python" python_param { module: "blobs_without_names" layer: "Two" }', (2, 3))
    assert names(layer) == "blob0 blob1"
    assert [np.prod(shape) for shape in layer.blob_shapes] == [3, 5]
