"""Fields of Intel's prototxts that are about its libraries: what they change, and what they do not."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from single_layer import refused
from tolerances import tolerance

from imae.files.errors import PrototxtError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.filler import fill
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.prototxt import BlobProto, FillerParameter, LayerParameter, NetParameter
from imae.prototxt.leftovers import strict_fields
from imae.prototxt.text import parse_net

PLAIN = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 5 } } }
layer { name: "c" type: "Convolution" bottom: "x" top: "c"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "n" type: "BatchNorm" bottom: "c" top: "c" }
layer { name: "s" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "p" type: "Pooling" bottom: "c" top: "p" pooling_param { kernel_size: 2 } }
layer { name: "l" type: "LRN" bottom: "p" top: "l" }
layer { name: "e" type: "Eltwise" bottom: "p" bottom: "l" top: "e" }
layer { name: "k" type: "Concat" bottom: "p" bottom: "e" top: "k" }
layer { name: "i" type: "InnerProduct" bottom: "k" top: "i"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
"""
INTELS = (
    PLAIN.replace("kernel_size: 3", 'kernel_size: 3 engine: MKL2017 conv_algorithm: "winograd"')
    .replace('type: "ReLU"', 'type: "ReLU" engine: "MKLDNN" relu_param { engine: MKLDNN }')
    .replace("kernel_size: 2", "kernel_size: 2 engine: MKL2017")
    .replace('type: "LRN"', 'type: "LRN" lrn_param { engine: MKL2017 }')
    .replace('type: "Eltwise"', 'type: "Eltwise" eltwise_param { engine: MKLDNN }')
    .replace('type: "Concat"', 'type: "Concat" concat_param { engine: MKLDNN }')
    .replace("num_output: 2", "num_output: 2 engine: MKLDNN")
)


def run(text: str) -> torch.Tensor:
    param = parse_net(text)
    net = Net(param)
    random = CaffeRandom(4)
    with torch.no_grad():
        for blob in net.parameters():
            blob.copy_(torch.from_numpy(random.uniform(blob.numel(), 0.5, 1)).view(blob.shape))
    return net({"x": torch.linspace(-1, 1, 180).view(2, 3, 6, 5)})["i"].detach()


@pytest.mark.parametrize("head", ["", 'engine: "MKL2017" ', "mem_param { optimize_train: true } "])
def test_engines_change_no_numbers(head: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(head + INTELS), run(PLAIN))
    assert not caplog.messages


@pytest.mark.parametrize(("head", "engine"), [('engine: "MKL2017"', ""), ("", 'engine: "MKLDNN"')])
def test_a_batch_norm_of_intels_libraries_has_a_scale(head: str, engine: str) -> None:
    text = f"{head} {PLAIN}".replace('type: "BatchNorm"', f'type: "BatchNorm" {engine}')
    Net(parse_net(text))
    alone = text.replace('type: "Scale"', 'type: "Bias"').replace("scale_param { bias_term: true }", "")
    with pytest.raises(
        PrototxtError, match=r"'n' \(BatchNorm\): with engine: \"MKL\w*\" Intel's fork gives it a scale"
    ):
        parse_net(alone)
    caffes = alone.replace(engine, "") if engine else alone
    Net(parse_net(caffes.replace('type: "BatchNorm"', 'type: "BatchNorm" engine: "CAFFE"')))


def test_the_filler_of_a_batch_norm_is_the_scales() -> None:
    text = PLAIN.replace('type: "BatchNorm"', 'type: "BatchNorm" batch_norm_param { filler { value: 0.5 } }')
    assert torch.equal(Net(parse_net(text)).params["s"][0], torch.full((4,), 0.5))
    caffes = text.replace('type: "BatchNorm"', 'type: "BatchNorm" engine: "CAFFE"')
    net = Net(parse_net(caffes))
    assert torch.equal(net.params["s"][0], torch.ones(4))
    assert [step.layer.leftovers for step in net.steps if step.layer.name == "n"] == [
        ["batch_norm_param.filler"]
    ]
    alone = text.replace('type: "Scale"', 'type: "Bias"').replace("scale_param { bias_term: true }", "")
    with pytest.raises(
        PrototxtError, match=r"\(BatchNorm\): with a filler Intel's fork gives it a scale and"
    ):
        parse_net(alone)


def test_statistics_of_parts_of_a_batch() -> None:
    for size in (2, 3):
        Net(parse_net(f"state {{ phase: TRAIN }} bn_stats_batch_size: {size} {PLAIN}"))
    Net(parse_net(f"state {{ phase: TEST }} bn_stats_batch_size: 1 {PLAIN}"))
    with refused(
        "stats_batch_size 1, of Intel's fork, would normalise every 1 of the 2 images by themselves"
    ):
        Net(parse_net(f"state {{ phase: TRAIN }} bn_stats_batch_size: 1 {PLAIN}"))


def test_quantization_is_a_warning_that_says_what_it_would_change(caplog: pytest.LogCaptureFixture) -> None:
    quantized = "quantization_param { bw_layer_in: 8 bw_params: 8 scale_in: 2.5 scale_params: 3 }"
    text = PLAIN.replace('type: "InnerProduct"', f'type: "InnerProduct" {quantized}')
    with caplog.at_level(logging.WARNING):
        assert torch.equal(run(text), run(PLAIN))
    (line,) = caplog.messages
    assert line.endswith(
        "layer 'i' (InnerProduct): quantization_param (it makes Intel's fork compute with 8-bit integers; "
        "here in floating point)"
    )
    with strict_fields(), refused("8-bit integers"):
        Net(parse_net(text))


def test_intels_weights_of_a_batch_norm(tmp_path: Path) -> None:
    """Five blobs in NVIDIA's order, but sums with their correction: --dialect nvidia reads both."""
    rng = np.random.default_rng(1)
    sums = [rng.uniform(1, 2, 4).astype(np.float32) for _ in range(2)]
    scale, bias = (rng.uniform(1, 2, 4).astype(np.float32) for _ in range(2))
    layer = LayerParameter(name="n", type="BatchNorm", top=["c"])
    for values in (*sums, np.array([50], np.float32), scale, bias):
        blob = BlobProto(data=values)
        blob.shape.dim.append(len(values))
        layer.blobs.append(blob)
    path = tmp_path / "w.caffemodel"
    path.write_bytes(NetParameter(layer=[layer]).SerializeToString())
    net = Net(parse_net(PLAIN))
    assert load_caffemodel(net, path, "nvidia").copied == ["n", "s"]
    want = [*sums, [50], scale, bias]
    for blob, values in zip([*net.params["n"], *net.params["s"]], want, strict=True):
        np.testing.assert_array_equal(blob.detach(), np.asarray(values, np.float32))


def test_fields_of_msra() -> None:
    """Intel's scale and caffe-windows' alpha change the standard deviation, not the draws."""

    def filled(fields: str) -> NDArray[np.float64]:
        filler = text_format.Parse(f'type: "msra" {fields}', FillerParameter())
        return fill((64, 32), filler, CaffeRandom(3)).astype(np.float64)

    plain, (rtol, atol, _) = filled(""), tolerance("formula")
    np.testing.assert_allclose(filled("scale: 0.5"), plain * 0.5, rtol=rtol, atol=atol)
    np.testing.assert_allclose(filled("alpha: 2"), plain / np.sqrt(5), rtol=rtol, atol=atol)
    with refused("filler 'msra': scale must be greater than 0, got 0, alpha 0"):
        filled("scale: 0")
