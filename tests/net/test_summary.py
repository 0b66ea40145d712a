"""What layers cost: small nets by hand, known nets against the numbers that are published of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from fed_nets import fed

import imae
import imae.pycaffe
from imae.cli.main import main
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.summary import Field, Summary, short, size, summarize
from imae.prototxt import NetParameter, parse_net
from imae.prototxt.models.resnet50 import resnet50
from imae.train.doctor.nets import Zeros

SMALL = """
name: "a <net>"
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [2, 4, 9, 7] } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
        convolution_param { num_output: 6 kernel_size: 3 dilation: 2 pad: 2 stride: 2 group: 2 } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "pool" type: "Pooling" bottom: "conv" top: "pool" pooling_param { kernel_size: 2 stride: 2 } }
layer { name: "up" type: "Deconvolution" bottom: "pool" top: "up"
        convolution_param { num_output: 3 kernel_size: 4 stride: 2 pad: 1 } }
layer { name: "fc" type: "InnerProduct" bottom: "up" top: "fc"
        inner_product_param { num_output: 5 bias_term: false } }
"""
# By hand: parameters, multiply-adds, bytes of blobs, receptive field and stride.
EXPECTED = {
    "in": (0, 0, 2016, (1, 1)),
    "conv": (6 * 2 * 9 + 6, 240 * 2 * 9, 960, (5, 2)),
    "relu": (0, 0, 0, (5, 2)),
    "pool": (0, 0, 288, (7, 4)),
    "up": (6 * 3 * 16 + 3, 72 * 3 * 16, 576, (11, 2)),
    "fc": (72 * 5, 2 * 72 * 5, 40, None),
}


def summary_of(net: str | NetParameter) -> Summary:
    param = parse_net(net) if isinstance(net, str) else net
    return summarize(Net(param, Run(Zeros(0))))


def field_of(net: str, layer: str) -> Field | None:
    return {entry.name: entry.field for entry in summary_of(net).layers}[layer]


def square(field: int, stride: int | Fraction) -> Field:
    return Field((field, field), (Fraction(stride), Fraction(stride)))


def test_a_small_net() -> None:
    summary = summary_of(SMALL)
    assert [layer.name for layer in summary.layers] == list(EXPECTED)
    for layer in summary.layers:
        parameters, products, memory, field = EXPECTED[layer.name]
        assert (layer.parameters, layer.multiply_adds, layer.memory) == (parameters, products, memory)
        assert layer.field == (None if field is None else square(*field))
    assert (summary.parameters, summary.multiply_adds, summary.memory) == (765, 8496, 3880)


@pytest.mark.parametrize(
    ("bottoms", "products"), [("", 6 * (80 + 100)), ('bottom: "s"', 6 * 180 + 2 * 20 * 7)]
)
def test_recurrent_layers(bottoms: str, products: int) -> None:
    """3 steps of 2 streams; a static input of 7 values is multiplied once for each stream."""
    net = f"""
    layer {{ name: "x" type: "Input" top: "x" input_param {{ shape {{ dim: [3, 2, 4] }} }} }}
    layer {{ name: "c" type: "Input" top: "c" input_param {{ shape {{ dim: [3, 2] }} }} }}
    layer {{ name: "s" type: "Input" top: "s" input_param {{ shape {{ dim: [2, 7] }} }} }}
    layer {{ name: "lstm" type: "LSTM" bottom: "x" bottom: "c" {bottoms} top: "y"
            recurrent_param {{ num_output: 5 }} }}"""
    lstm = summary_of(net).layers[-1]
    assert (lstm.multiply_adds, lstm.field) == (products, None)


BRANCHES = """
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [1, 2, 8, 8] } } }
layer { name: "a" type: "Convolution" bottom: "x" top: "a"
        param { name: "w" } convolution_param { num_output: 2 kernel_size: 3 pad: 1 bias_term: false } }
layer { name: "b" type: "Convolution" bottom: "a" top: "b"
        param { name: "w" } convolution_param { num_output: 2 kernel_size: 3 pad: 1 bias_term: false } }
"""
JOINTS = {
    "sum": ('type: "Eltwise" bottom: "a" bottom: "b"', square(5, 1)),
    "channels": ('type: "Concat" bottom: "x" bottom: "b"', square(5, 1)),
    "rows": ('type: "Concat" bottom: "a" bottom: "b" concat_param { axis: 2 }', None),
    "flat": ('type: "Flatten" bottom: "b"', None),
    "mixed": ('type: "MVN" bottom: "b"', None),
    "across channels": ('type: "LRN" bottom: "b"', square(5, 1)),
    "within": ('type: "LRN" bottom: "b" lrn_param { norm_region: WITHIN_CHANNEL }', None),
    "global": ('type: "Pooling" bottom: "b" pooling_param { global_pooling: true pool: AVE }', square(12, 1)),
}


@pytest.mark.parametrize("name", JOINTS)
def test_fields_where_branches_meet(name: str) -> None:
    layer, field = JOINTS[name]
    assert field_of(f'{BRANCHES} layer {{ name: "j" top: "j" {layer} }}', "j") == field


def test_shared_parameters_count_once_and_their_products_twice() -> None:
    summary = summary_of(BRANCHES + 'layer { name: "j" top: "j" type: "Eltwise" bottom: "a" bottom: "b" }')
    assert [layer.parameters for layer in summary.layers] == [0, 36, 0, 0]
    assert [layer.multiply_adds for layer in summary.layers] == [0, 36 * 64, 36 * 64, 0]
    assert [layer.name for layer in summary.layers] == ["in", "a", "b", "j"]  # not the inserted split


def chain(side: int, parts: Sequence[tuple[Any, ...]]) -> str:
    """Convolutions (outputs, kernel, stride, pad, group), poolings (kernel, stride), fc (outputs)."""
    shape = f"shape {{ dim: [1, 3, {side}, {side}] }}"
    text = f'layer {{ name: "in" type: "Input" top: "0" input_param {{ {shape} }} }}'
    for index, sizes in enumerate(parts):
        if len(sizes) == 5:
            names = ("num_output", "kernel_size", "stride", "pad", "group")
            kind, param = "Convolution", "convolution_param"
        elif len(sizes) == 2:
            kind, param, names = "Pooling", "pooling_param", ("kernel_size", "stride")  # type: ignore[assignment]
        else:
            kind, param, names = "InnerProduct", "inner_product_param", ("num_output",)  # type: ignore[assignment]
        fields = " ".join(f"{name}: {value}" for name, value in zip(names, sizes, strict=True))
        text += f'\nlayer {{ name: "l{index}" type: "{kind}" bottom: "{index}" top: "{index + 1}" '
        text += f"{param} {{ {fields} }} }}"
    return text


ALEXNET = chain(227, [
    (96, 11, 4, 0, 1), (3, 2), (256, 5, 1, 2, 2), (3, 2), (384, 3, 1, 1, 1), (384, 3, 1, 1, 2),
    (256, 3, 1, 1, 2), (3, 2), (4096,), (4096,), (1000,),
])  # fmt: skip
VGG_16 = chain(224, [
    part for width, count in ((64, 2), (128, 2), (256, 3), (512, 3), (512, 3))
    for part in [(width, 3, 1, 1, 1)] * count + [(2, 2)]
] + [(4096,), (4096,), (1000,)])  # fmt: skip


def test_alexnet() -> None:
    """0.72 G multiply-adds and 61 M parameters (Krizhevsky et al. 2012); pool5 sees 195 x 195 pixels."""
    summary = summary_of(ALEXNET)
    assert (summary.parameters, summary.multiply_adds) == (60_965_224, 724_406_816)
    assert summary.layers[8].field == square(195, 32)


def test_vgg_16() -> None:
    """15.5 G multiply-adds and 138 M parameters (Simonyan and Zisserman 2015)."""
    summary = summary_of(VGG_16)
    assert (summary.parameters, summary.multiply_adds) == (138_357_544, 15_470_264_320)
    assert summary.layers[18].field == square(212, 32)


def test_resnet_50() -> None:
    """3.8 G multiply-adds (He et al. 2016, table 1, who leave out projections) and 25.5 M weights."""
    summary = summary_of(fed(resnet50(1000), 1, 3, 224, 224))
    assert f"{summary.multiply_adds / 1e9:.1f}" == "3.9"
    last = [layer for layer in summary.layers if layer.tops and layer.type == "Eltwise"][-1]
    assert last.field == square(483, 32)


def test_numbers_are_short() -> None:
    assert [short(n) for n in (0, 999, 1000, 724_406_816, 999_600)] == ["0", "999", "1 k", "724 M", "1 M"]
    assert [size(n) for n in (404, 1160000)] == ["404 B", "1.16 MB"]


def test_text_and_html() -> None:
    net = SMALL.replace('"conv"', f'"{"c" * 90}"').replace('name: "fc"', 'name: "<b>"')
    summary = summary_of(net)
    assert max(map(len, summary.as_text(80).splitlines())) <= 80
    assert "6 layers, 765 parameters (3.06 kB in float32), 8.5 k multiply-adds, 3.88 kB of blobs" in (
        summary.as_text(200)
    )
    page = summary.as_html()
    assert "<td>&lt;b&gt;</td>" in page and "a &lt;net&gt;" in page and "<b>" not in page
    assert page.count("<tr>") == 7


def test_a_notebook_shows_nets_and_loaded_modules(here: Path) -> None:
    Path("net.prototxt").write_text(SMALL)
    table = Net(parse_net(SMALL))._repr_html_()
    assert table.startswith("<table>") and "8.5 k multiply-adds" in table
    module = imae.load("net.prototxt", None)
    assert "multiply-adds" in module._repr_html_()
    assert "8.5 k multiply-adds" in imae.pycaffe.Net("net.prototxt", imae.pycaffe.TRAIN)._repr_html_()


def output(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["summary", "--model", "net.prototxt", *arguments]) == 0
    return capsys.readouterr().out


def test_the_command(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By default one item; --phase leaves the net as it is."""
    Path("net.prototxt").write_text(SMALL)
    one = json.loads(output(capsys, "--json"))
    assert (one["parameters"], one["multiply_adds"], one["memory"]) == (765, 8496 // 2, 3880 // 2)
    assert one["layers"][1]["tops"] == {"conv": [1, 6, 5, 4]} and one["layers"][1]["receptive_field"] == [
        5,
        5,
    ]
    assert json.loads(output(capsys, "--json", "--batch", "6"))["multiply_adds"] == 3 * 8496
    assert json.loads(output(capsys, "--json", "--phase", "TRAIN"))["multiply_adds"] == 8496
    assert "4.25 k multiply-adds" in output(capsys, "--html", "page.html")
    assert "<td>Deconvolution</td>" in Path("page.html").read_text()
    assert main(["summary", "--model", "net.prototxt", "--phase", "TEST", "--batch", "2"]) == 2
    assert "leave out --batch and --input-shape" in capsys.readouterr().err


def test_the_commands_weights(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    net = Net(parse_net(SMALL))
    stored = NetParameter()
    for layer in stored.layer.add(name="fc", type="InnerProduct"), stored.layer.add(name="none", type="ReLU"):
        if layer.name == "fc":
            values = net.params["fc"][0].detach()
            layer.blobs.add(shape={"dim": values.shape}, data=values.flatten().tolist())
    Path("w.caffemodel").write_bytes(stored.SerializeToString())
    Path("net.prototxt").write_text(SMALL)
    assert "w.caffemodel fits: weights of 1 layers; it lacks conv, up\n" in output(
        capsys, "--weights", "w.caffemodel"
    )
