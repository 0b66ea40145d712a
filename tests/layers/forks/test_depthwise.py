"""DepthwiseConvolution and ConvolutionDepthwise beyond the recorded cases, and their way into an export."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from single_layer import build, check_contract, check_gradient, check_onnx, normal, refused, run
from tolerances import tolerance

from imae.converters.export_onnx import ExportOptions, export_file
from imae.layers.registry import layer_class
from imae.layers.vision.conv import Convolution
from imae.net.fold import fold_batch_norm
from imae.net.net import Net
from imae.prototxt.text import parse_net

X = normal(2, 4, 7, 6)
FILLED = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 }'


def depthwise(fields: str = "") -> str:
    return (
        f'type: "DepthwiseConvolution" convolution_param {{ num_output: 4 group: 4 {FILLED} '
        f"{fields or 'kernel_size: 3 pad: 1'} }}"
    )


def by_shape(fields: str = "kernel_size: 3 pad: 1 stride: 1") -> str:
    return f'type: "ConvolutionDepthwise" convolution_param {{ {FILLED} {fields} }}'


@pytest.mark.parametrize(
    "text", [depthwise(), by_shape(), by_shape("kernel_h: 3 kernel_w: 1 stride: 2 pad: 0")]
)
def test_contract_gradient_and_export(text: str) -> None:
    check_contract(text, X)
    check_gradient(text, X[:1])
    check_onnx(text, X)


@pytest.mark.parametrize(
    "fields", ["kernel_size: 3 pad: 1", "kernel_size: 3 stride: 2 dilation: 2 bias_term: false"]
)
def test_they_compute_a_convolution_in_groups(fields: str) -> None:
    text = f'type: "Convolution" convolution_param {{ num_output: 4 group: 4 {FILLED} {fields} }}'
    want = run(build(text, tuple(X.shape)), X)[0]
    for other in (depthwise(fields), by_shape(fields)):
        torch.testing.assert_close(run(build(other, tuple(X.shape)), X)[0], want, rtol=0, atol=0)


def test_they_are_convolutions_for_the_passes_that_fuse() -> None:
    for name in ("DepthwiseConvolution", "ConvolutionDepthwise"):
        assert issubclass(layer_class(name), Convolution)


def test_several_bottoms_of_a_depthwise_convolution_share_the_filters() -> None:
    layer = build(depthwise() + 'bottom: "a" bottom: "b" top: "c" top: "d"', (2, 4, 7, 6), (2, 4, 7, 6))
    first, second = run(layer, X, X)
    torch.testing.assert_close(first, second, rtol=0, atol=0)
    with refused("takes 1 bottom blob(s) as input"):
        build(by_shape() + 'bottom: "a" bottom: "b" top: "c" top: "d"', (2, 4, 7, 6), (2, 4, 7, 6))


def test_a_depthwise_convolution_needs_as_many_outputs_and_groups_as_channels() -> None:
    with refused("num_output and group must be 5, the number of channels"):
        build(depthwise(), (2, 5, 7, 6))
    with refused("got num_output 4 and group 1; write type Convolution for others"):
        build('type: "DepthwiseConvolution" convolution_param { num_output: 4 kernel_size: 3 }', (2, 4, 7, 6))


def test_a_convolution_depthwise_passes_over_other_numbers() -> None:
    assert build(by_shape("num_output: 4 group: 4 kernel_size: 3"), (2, 4, 7, 6)).leftovers == []
    layer = build(by_shape("num_output: 8 group: 2 kernel_size: 3"), (2, 4, 7, 6))
    assert layer.leftovers == ["convolution_param.num_output", "convolution_param.group"]
    assert layer.blob_shapes == [(4, 1, 3, 3), (4,)]
    assert layer.checked_top_shapes([(2, 4, 7, 6)]) == [(2, 4, 5, 4)]


def test_a_convolution_depthwise_works_on_images() -> None:
    with refused("bottom[0] must be (N, C, H, W), and axis 1; got the shape (2, 4, 7), axis 1"):
        build(by_shape(), (2, 4, 7))
    with refused("got the shape (2, 4, 7, 6), axis 2"):
        build(by_shape("kernel_size: 3 axis: 2"), (2, 4, 7, 6))
    with refused("Input size incompatible with convolution kernel.; got 3 channels"):
        build(by_shape(), (2, 4, 7, 6)).reshape([(2, 3, 7, 6)])


NET = """
    name: "net"
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: 2 dim: 4 dim: 7 dim: 6 }} }} }}
    layer {{ name: "dw" type: "{kind}" bottom: "x" top: "dw" convolution_param {{ {fields} bias_term: false
             weight_filler {{ type: "xavier" }} kernel_size: 3 pad: 1 stride: 1 }} }}
    layer {{ name: "bn" type: "BatchNorm" bottom: "dw" top: "dw" }}
    layer {{ name: "scale" type: "Scale" bottom: "dw" top: "dw" scale_param {{ bias_term: true }} }}
    layer {{ name: "relu" type: "ReLU6" bottom: "dw" top: "dw" }}
"""


@pytest.mark.parametrize("kind, fields", [
    ("DepthwiseConvolution", "num_output: 4 group: 4"),
    ("ConvolutionDepthwise", ""),
    ("ConvolutionDepthwise", "num_output: 7"),
])  # fmt: skip
def test_a_batch_norm_is_folded_into_them(kind: str, fields: str, tmp_path: Path) -> None:
    text = NET.format(kind=kind, fields=fields)
    net = Net(parse_net(text))
    norm, scale = (layer for layer in net.layers if layer.name in ("bn", "scale"))
    with torch.no_grad():
        for blob, seed in zip((*norm.blobs[:2], *scale.blobs), range(4), strict=True):
            blob.copy_(normal(*blob.shape, seed=seed).abs() + 0.5)
        norm.blobs[2].fill_(1)
    steps = fold_batch_norm(net)
    assert [step.layer.name for step in steps] == ["x", "dw", "relu"]
    values = {"x": X}
    for step in steps[1:]:
        values[step.tops[0]] = step.layer(*(values[name] for name in step.bottoms))
    rtol, atol, _ = tolerance("fused")
    torch.testing.assert_close(values["dw"], net({"x": X})["dw"], rtol=rtol, atol=atol)
    export_file(parse_net(text), None, tmp_path / "net.onnx", ExportOptions(fold=True))
    nodes = onnx.load(tmp_path / "net.onnx").graph.node
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert len(convolutions) == 1
    groups = [attribute.i for attribute in convolutions[0].attribute if attribute.name == "group"]
    assert groups == [4]
    assert "BatchNormalization" not in [node.op_type for node in nodes]


def test_weights_have_one_filter_per_channel() -> None:
    for text in (depthwise(), by_shape()):
        layer = build(text, (2, 4, 7, 6))
        assert [tuple(blob.shape) for blob in layer.blobs] == [(4, 1, 3, 3), (4,)]
        assert np.unique(layer.blob(0).detach().numpy()).size > 4
