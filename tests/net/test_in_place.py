"""Layers in place: Caffe's numbers; where Caffe destroys what it needs, as if the top had a name of its own.

More on gradients that read what in-place layers have overwritten is in test_activation.py and
test_normalization.py.
"""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from single_layer import normal, overwritten
from tolerances import tolerance
from torch import Tensor

from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.fuse import fuse_training
from imae.net.net import Net
from imae.net.stepwise import BlobMemory, Stepwise
from imae.prototxt.text import parse_net

RTOL, ATOL, _ = tolerance("same arithmetic")
SHAPE = (2, 8, 5, 5)
FILLED = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" }'
# A layer, its bottoms and its top, where that is one of them.
SPOILT = [
    ('type: "Log" log_param { shift: 9 }', "x", "x"),
    ('type: "Power" power_param { power: 2 }', "x", "x"),
    ('type: "LRN" lrn_param { local_size: 3 alpha: 2 }', "x", "x"),
    ('type: "MVN"', "x", "x"),
    ('type: "Eltwise"', "x y", "x"),
    ('type: "Eltwise" eltwise_param { coeff: 2 coeff: 3 }', "x y", "x"),
    ('type: "Eltwise" eltwise_param { operation: PROD }', "x y", "x"),
    ('type: "Eltwise" eltwise_param { operation: MAX }', "x y", "x"),
    ('type: "Eltwise" eltwise_param { operation: PROD stable_prod_grad: false }', "x y", "x"),
    (f'type: "Convolution" convolution_param {{ num_output: 8 kernel_size: 1 {FILLED} }}', "x", "x"),
    (f'type: "Deconvolution" convolution_param {{ num_output: 8 kernel_size: 1 {FILLED} }}', "x", "x"),
    (f'type: "InnerProduct" inner_product_param {{ num_output: 5 axis: -1 {FILLED} }}', "x", "x"),
    ('type: "Pooling" pooling_param { kernel_size: 3 pad: 1 }', "x", "x"),
    ('type: "Pooling" pooling_param { kernel_size: 3 pad: 1 pool: AVE }', "x", "x"),
]


def net_of(text: str, bottoms: str, top: str, after: str = "", end: str = "") -> Net:
    """A layer, those that make what it reads, those `after` it, and a loss that makes diffs differ."""
    names = bottoms.split()
    shape = " ".join(f"dim: {size}" for size in SHAPE)
    inputs = " ".join(f'top: "{name}_in"' for name in names) + f" input_param {{ shape {{ {shape} }} }}"
    made = "".join(
        f'layer {{ name: "make {name}" type: "Bias" bottom: "{name}_in" top: "{name}" }}' for name in names
    )
    read = " ".join(f'bottom: "{name}"' for name in names)
    return Net(parse_net(f"""force_backward: true
        layer {{ name: "in" type: "Input" {inputs} }} {made}
        layer {{ name: "it" {text} {read} top: "{top}" }} {after}
        layer {{ name: "square" type: "Power" bottom: "{end or top}" top: "square"
                 power_param {{ power: 2 }} }}
        layer {{ name: "sum" type: "Reduction" bottom: "square" top: "loss" loss_weight: 1 }}"""
    ), Run(CaffeRandom(1)))  # fmt: skip


def passes(net: Net, way: str) -> list[Tensor]:
    """The loss, the diffs of the inputs and of the parameters."""
    values = {name: normal(*SHAPE, seed=seed) for seed, name in enumerate(net.inputs)}
    if way == "stepwise":
        steps = Stepwise(net)
        for name, value in values.items():
            steps.blobs[name].data.copy_(value)
        loss = torch.tensor(steps.forward())
        steps.backward()
        diffs = [steps.blobs[name].diff for name in net.inputs]
    else:
        plan = fuse_training(net) if way == "fast" else None
        leaves = {name: value.requires_grad_() for name, value in values.items()}
        loss = net.loss(net(leaves, plan=plan))
        loss.backward()
        diffs = [leaf.grad for leaf in leaves.values() if leaf.grad is not None]
    return [loss.detach(), *diffs, *(blob.grad for blob in net.learnable if blob.grad is not None)]


@pytest.mark.parametrize("way", ["plain", "fast", "stepwise"])
@pytest.mark.parametrize(("text", "bottoms", "top"), SPOILT)
def test_where_caffe_destroys_what_it_needs_the_layer_is_as_if_not_in_place(
    text: str, bottoms: str, top: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    want = passes(net_of(text, bottoms, "other"), way)
    assert not caplog.records or all(record.levelname == "INFO" for record in caplog.records)
    got = passes(net_of(text, bottoms, top), way)
    assert f"layer 'it' ({text.split(chr(34))[1]}): in place, Caffe overwrites" in caplog.text
    assert len(got) == len(want) >= 2
    for one, expected in zip(got, want, strict=True):
        torch.testing.assert_close(one, expected, rtol=RTOL, atol=ATOL * float(expected.abs().max()))


@pytest.mark.parametrize("way", ["plain", "fast", "stepwise"])
@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_a_convolution_in_place_takes_its_weights_gradient_from_what_it_has_written(
    kind: str, way: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Caffe: it copies windows before the top overwrites them; the backward pass reads the bottom anew."""
    net = net_of(
        f'type: "{kind}" convolution_param {{ num_output: 8 kernel_size: 3 pad: 1 {FILLED} }}', "x", "x"
    )
    _, diff, _, weight_diff, bias_diff = passes(net, way)
    weight, bias = (blob.detach() for blob in net.learnable[1:])
    convolve = F.conv2d if kind == "Convolution" else F.conv_transpose2d
    x = normal(*SHAPE).requires_grad_()
    top = convolve(x, weight, bias, padding=1)
    top_diff = 2 * top.detach()
    top.backward(top_diff)
    assert x.grad is not None
    leaf = weight.clone().requires_grad_()
    convolve(top.detach(), leaf, bias, padding=1).backward(top_diff)
    assert leaf.grad is not None
    for got, expected in ((diff, x.grad), (weight_diff, leaf.grad), (bias_diff, top_diff.sum((0, 2, 3)))):
        torch.testing.assert_close(got, expected, rtol=RTOL, atol=ATOL * float(expected.abs().max()))
    assert "in place" not in caplog.text


@pytest.mark.parametrize("stepwise", [False, True])
def test_softmax_reads_its_top_as_later_layers_have_left_it(stepwise: bool) -> None:
    x, top_diff = normal(2, 3, 5), normal(2, 3, 5, seed=1)
    for in_place in (False, True):
        got, top = overwritten('type: "Softmax"', in_place, stepwise, x, top_diff)
        want = top * (top_diff - (top_diff * top).sum(1, keepdim=True))
        torch.testing.assert_close(got, want, rtol=RTOL, atol=ATOL)


@pytest.mark.parametrize("way", ["plain", "stepwise"])
def test_quotients_of_a_product_read_its_top_as_later_layers_have_left_it(way: str) -> None:
    """Caffe: eltwise_layer.cpp, top_data / bottom_data."""
    later = 'layer { name: "later" type: "ReLU" bottom: "p" top: "p" relu_param { negative_slope: 0.5 } }'
    text = 'type: "Eltwise" eltwise_param { operation: PROD stable_prod_grad: false }'
    diffs = passes(net_of(text, "x y", "p", later), way)[1:3]
    x, y = (normal(*SHAPE, seed=seed) for seed in range(2))
    top = torch.where(x * y > 0, x * y, 0.5 * x * y)
    top_diff = 2 * top * torch.where(top > 0, 1, 0.5)
    for got, bottom in zip(diffs, (x, y), strict=True):
        want = top / bottom * top_diff
        torch.testing.assert_close(got, want, rtol=RTOL, atol=ATOL)


SHARING = {
    "Flatten": 'type: "Flatten"',
    "Reshape": 'type: "Reshape" reshape_param { shape { dim: 0 dim: -1 } }',
    "Concat": 'type: "Concat"',
    "Slice": 'type: "Slice"',
    "Split": 'type: "Split"',
}


@pytest.mark.parametrize("way", ["plain", "fast", "stepwise"])
@pytest.mark.parametrize("sharing", SHARING)
def test_layers_that_hand_memory_on_do_not_hide_what_later_layers_write(sharing: str, way: str) -> None:
    """Caffe: they call ShareData."""
    after = f"""layer {{ name: "share" {SHARING[sharing]} bottom: "s" top: "f" }}
        layer {{ name: "again" type: "Flatten" bottom: "f" top: "g" }}
        layer {{ name: "later" type: "ReLU" bottom: "g" top: "g" relu_param {{ negative_slope: 0.5 }} }}
        layer {{ name: "more" type: "Bias" bottom: "g" top: "g"
                 bias_param {{ filler {{ value: -0.5 }} }} }}"""
    diff = passes(net_of('type: "TanH"', "x", "s", after, end="g"), way)[1]
    x = normal(*SHAPE)
    memory = torch.tanh(x) * torch.where(x > 0, 1, 0.5) - 0.5
    # ReLU reads, in place, what lies there, too.
    top_diff = 2 * memory * torch.where(memory > 0, 1, 0.5)
    torch.testing.assert_close(diff, top_diff * (1 - memory**2), rtol=RTOL, atol=ATOL)


BRANCHES = """
    layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 } } }
    layer { name: "conv" type: "Bias" bottom: "x" top: "c" }
    layer { name: "flat" type: "Flatten" bottom: "c" top: "f" }
    FIRST layer { name: "relu" type: "TYPE" bottom: "f" top: "f" }
    layer { name: "after" type: "Power" bottom: "f" top: "a" } THEN
"""
OTHER = 'layer { name: "other" type: "Power" bottom: "c" top: "o" }'


@pytest.mark.parametrize(
    ("kind", "first", "then", "warned"),
    [("ReLU", "", OTHER, True), ("ReLU", OTHER, "", False), ("ReLU", "", "", False),
     ("Dropout", "", OTHER, False)],
)  # fmt: skip
def test_values_that_caffe_overwrites_for_another_layer_stay_and_that_is_told(
    kind: str, first: str, then: str, warned: bool, caplog: pytest.LogCaptureFixture
) -> None:
    text = BRANCHES.replace("TYPE", kind).replace("FIRST", first).replace("THEN", then)
    net = Net(parse_net(text))
    assert ["other" in record.getMessage() for record in caplog.records] == [True] * warned
    if warned:
        assert caplog.records[0].getMessage() == (
            "layer 'other' (Power): in Caffe its bottom 'c_conv_0_split_1' lies in memory that layer 'relu' "
            "(ReLU), in place, has overwritten; here it has the values that it was given"
        )
        x = normal(2, 3, 4)
        assert torch.equal(net({"x": x})["o"], x)


@pytest.mark.parametrize(
    "layer",
    [
        'type: "Permute" permute_param { order: 0 order: 2 order: 1 order: 3 }',
        'type: "ReLU"',
        'type: "Dropout"',
    ],
)
def test_an_in_place_layer_that_needs_no_backward_pass_reads_its_memory(layer: str) -> None:
    """Its bottom is not copied; a top that is the bottom in another order must not be spoilt by that."""
    text = (
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 3 dim: 4 } } }\n'
    )
    text += 'layer { name: "half" type: "Power" bottom: "x" top: "half" power_param { scale: 0.5 } }\n'
    found = []
    for top in ("half", "other"):
        net = Net(
            parse_net(
                f'state {{ phase: TEST }} {text} layer {{ name: "it" bottom: "half" top: "{top}" {layer} }}'
            )
        )
        assert not net.steps[-1].need_backward
        stepwise = Stepwise(net)
        stepwise.blobs["x"].data.copy_(torch.arange(72.0).view(2, 3, 3, 4) - 30)
        stepwise.forward()
        found.append(stepwise.blobs[top].data)
    assert torch.equal(*found)


def test_memory_takes_its_own_values_in_another_order() -> None:
    memory = BlobMemory((3, 3), torch.device("cpu"), torch.float32)
    memory.data.copy_(torch.arange(9.0).view(3, 3))
    memory.store(memory.data.t())
    assert torch.equal(memory.data, torch.arange(9.0).view(3, 3).t())
