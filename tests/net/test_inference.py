"""The plan of inference.py gives what `Net.forward` gives in phase TEST and in double precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import fed_nets
import numpy as np
import pytest
import torch
from tolerances import sum_rounding, tolerance

from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.inference import InferencePlan, plan_inference
from imae.net.kernels import native, planned
from imae.net.net import Net
from imae.net.score import score
from imae.prototxt import TEST, NetParameter, NetState
from imae.prototxt.models.resnet import resnet
from imae.prototxt.state import in_state
from imae.prototxt.text import parse_net, read_net

Blobs = Mapping[str, torch.Tensor]


def made(param: NetParameter | str, dtype: torch.dtype = torch.float32) -> Net:
    """A TEST net; statistics, scales and biases are not those of a fresh one."""
    param = parse_net(param) if isinstance(param, str) else param
    param.state.phase = TEST
    net = Net(param, Run(CaffeRandom(3), dtype=dtype))
    generator = np.random.default_rng(5)
    for step in net.steps:
        for index, blob in enumerate(step.layer.blobs):
            if blob.dim() == 1 or step.layer.type in ("BatchNorm", "BN", "Scale"):
                values = generator.uniform(0.5, 1.5, tuple(blob.shape))
                values = np.float32(1 if index == 2 else values)
                blob.data.copy_(torch.from_numpy(np.asarray(values)))
    return net


def fed(net: Net, seed: int = 7, **shapes: Sequence[int]) -> dict[str, torch.Tensor]:
    """Values of the inputs: normal, or labels for an input of that name."""
    generator = np.random.default_rng(seed)
    values = {}
    for name in net.inputs:
        shape = shapes.get(name, net.blob_shapes[name])
        drawn = generator.standard_normal(tuple(shape)).astype(np.float32)
        values[name] = torch.from_numpy(np.abs(drawn).round() if name == "label" else drawn)
    return values


def plain(net: Net, values: Blobs, keep: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """What the plain net gives in double precision."""
    double = Net(net.param, Run(CaffeRandom(3), dtype=torch.float64))
    double.load_state_dict({name: value.double() for name, value in net.state_dict().items()})
    with torch.no_grad():
        return double.forward({name: value.double() for name, value in values.items()}, keep)


def assert_same(got: Blobs, want: Blobs, terms: int = 1000, layers: int = 4) -> None:
    """Equal up to the rounding of sums of so many products, one layer after the other."""
    assert got.keys() == want.keys()
    for name, blob in want.items():
        assert got[name].shape == blob.shape, name
        assert got[name].dtype == torch.float32, name
        finite = blob[blob.isfinite()].abs()
        scale = float(finite.max()) if len(finite) else 1.0
        torch.testing.assert_close(
            got[name].double(),
            blob,
            rtol=0,
            atol=sum_rounding(terms, layers) * scale,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def kinds(plan: InferencePlan) -> list[list[str]]:
    """The types of the layers of each node."""
    assert plan._graph is not None
    return [[member.step.layer.type for member in node.members] for node in plan._graph.nodes]


INPUT = 'layer { name: "in" type: "Input" top: "data" input_param { shape { %s } } }\n'


def test_resnet_is_one_node_for_each_convolution() -> None:
    param = parse_net(
        'layer { name: "in" type: "Input" top: "data" top: "label" input_param {'
        "shape { dim: 4 dim: 3 dim: 32 dim: 32 } shape { dim: 4 } } }"
    )
    param.layer.extend(resnet(8).layer)
    net = made(param)
    plan = plan_inference(net, ["fc"])
    got = plan.run(fed(net))
    want = plain(net, fed(net), ["fc"])
    allowed = tolerance("fused")
    assert got.keys() == want.keys()
    for name, blob in want.items():
        scale = float(blob.abs().max())
        torch.testing.assert_close(got[name].double(), blob, rtol=allowed.rtol, atol=allowed.atol * scale)
    assert plan.fast
    assert [types[0] for types in kinds(plan)].count("Convolution") == 9
    assert len(kinds(plan)) == 9 + len(["Pooling", "InnerProduct", "SoftmaxWithLoss", "Accuracy"])


def conv(top: str, bottom: str, fields: str = "num_output: 8 kernel_size: 3 pad: 1", more: str = "") -> str:
    """A convolution's text; its filler draws."""
    return (
        f'layer {{ name: "{top}/conv" type: "Convolution" bottom: "{bottom}" top: "{top}" {more}'
        f' convolution_param {{ {fields} weight_filler {{ type: "msra" }} }} }}\n'
    )


def layer(kind: str, bottoms: str, top: str, fields: str = "") -> str:
    """Another layer's text; bottoms and tops are names with spaces between them."""
    named = " ".join([f'bottom: "{b}"' for b in bottoms.split()] + [f'top: "{t}"' for t in top.split()])
    return f'layer {{ name: "{top}/{kind}" type: "{kind}" {named} {fields} }}\n'


NORM = (
    layer("BatchNorm", "a", "a")
    + layer("Scale", "a", "a", "scale_param { bias_term: true }")
    + layer("ReLU", "a", "a")
)
IMAGES = INPUT % "dim: 2 dim: 8 dim: 9 dim: 7"
PRODUCT = 'num_output: 5 weight_filler { type: "msra" }'

# By what they show: the net, and how many nodes it has without kept blobs.
PATTERNS: dict[str, tuple[str, int]] = {
    "in-place": (IMAGES + conv("a", "data") + NORM, 1),
    "names of their own": (
        IMAGES
        + conv("a", "data", "num_output: 8 kernel_size: 3 bias_term: false")
        + layer("BatchNorm", "a", "b")
        + layer("Scale", "b", "c")
        + layer("ReLU", "c", "d"),
        1,
    ),
    "scale before statistics": (
        IMAGES + conv("a", "data") + layer("Scale", "a", "a") + layer("BatchNorm", "a", "a"),
        1,
    ),
    "groups, strides, dilation": (
        IMAGES
        + conv("a", "data", "num_output: 12 kernel_size: 3 pad: 2 stride: 2 dilation: 2 group: 4")
        + NORM
        + conv("b", "a", "num_output: 12 kernel_size: 3 kernel_size: 1 pad: 0 pad: 2 stride: 1 group: 12")
        + conv("c", "b", "num_output: 3 kernel_h: 1 kernel_w: 5 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 2")
        + layer("ReLU", "c", "c"),
        3,
    ),
    "a window that sticks out": (
        IMAGES + conv("a", "data", "num_output: 4 kernel_h: 10 kernel_w: 3 stride: 3") + NORM,
        1,
    ),
    "an axis of three": (
        INPUT % "dim: 2 dim: 8 dim: 9"
        + conv("a", "data")
        + NORM
        + conv("b", "a", "num_output: 3 kernel_size: 2"),
        2,
    ),
    "five axes": (INPUT % "dim: 2 dim: 4 dim: 3 dim: 4 dim: 5" + conv("a", "data") + NORM, 1),
    "channels on axis 2": (
        INPUT % "dim: 2 dim: 3 dim: 4 dim: 5 dim: 6"
        + conv("a", "data", "axis: 2 num_output: 3 kernel_size: 3")
        + NORM,
        2,
    ),
    "residual": (
        IMAGES
        + conv("a", "data")
        + NORM
        + conv("b", "a")
        + layer("BatchNorm", "b", "b")
        + layer("Eltwise", "a b", "c")
        + layer("ReLU", "c", "c")
        + conv("d", "c")
        + layer("Eltwise", "d c", "e")
        + layer("ReLU", "e", "f"),
        3,
    ),
    "both summands are convolutions": (
        IMAGES
        + conv("a", "data")
        + conv("b", "data")
        + layer("Eltwise", "b a", "c")
        + layer("ReLU", "c", "c"),
        2,
    ),
    "sums of sums": (
        IMAGES
        + conv("a", "data")
        + conv("b", "data")
        + conv("c", "b")
        + layer("Eltwise", "a b c", "d")
        + layer("Eltwise", "d a", "e", "eltwise_param { coeff: 2 coeff: -1 }")
        + layer("Eltwise", "e e", "f")
        + layer("Eltwise", "f b", "f2")
        + layer("Eltwise", "f2 d", "g", "eltwise_param { operation: PROD }")
        + layer("ReLU", "g", "g"),
        9,
    ),
    "read twice": (
        IMAGES
        + conv("a", "data")
        + layer("ReLU", "a", "b")
        + layer("BatchNorm", "a", "c")
        + layer("ReLU", "data", "d"),
        4,
    ),
    "normalised first": (
        IMAGES
        + layer("BatchNorm", "data", "a")
        + layer("Scale", "a", "a", "scale_param { bias_term: true }")
        + layer("ReLU", "a", "a")
        + conv("b", "a")
        + layer("Concat", "data b", "c")
        + layer("BatchNorm", "c", "d")
        + layer("ReLU", "d", "d")
        + layer("Scale", "d", "e")
        + layer("BatchNorm", "e", "e"),
        6,
    ),
    "products": (
        IMAGES
        + layer("InnerProduct", "data", "a", f"inner_product_param {{ {PRODUCT} }}")
        + NORM
        + layer("InnerProduct", "a", "b", f"inner_product_param {{ {PRODUCT} transpose: true }}")
        + layer("BatchNorm", "b", "b")
        + layer("InnerProduct", "b", "c", f"inner_product_param {{ {PRODUCT} bias_term: false }}")
        + layer("InnerProduct", "data", "d", f"inner_product_param {{ {PRODUCT} axis: 2 }}")
        + layer("Scale", "d", "d"),
        5,
    ),
    "shared weights": (
        IMAGES
        + conv("a", "data", more='param { name: "w" }')
        + NORM
        + conv("b", "a", more='param { name: "w" }')
        + layer("ReLU", "b", "b"),
        2,
    ),
    "several bottoms": (
        IMAGES
        + layer("ReLU", "data", "r")
        + """layer { name: "two" type: "Convolution" bottom: "data" bottom: "r" top: "a" top: "b"
                     convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "msra" } } }\n"""
        + NORM
        + layer("ReLU", "b", "b"),
        3,
    ),
    "pooling": (
        IMAGES
        + layer("Pooling", "data", "a", "pooling_param { kernel_size: 3 stride: 2 }")
        + layer("ReLU", "a", "a")
        + layer("Pooling", "data", "b", "pooling_param { pool: AVE kernel_size: 3 stride: 2 pad: 1 }")
        + layer("Pooling", "data", "c", "pooling_param { pool: AVE kernel_size: 2 stride: 3 pad: 1 }")
        + layer("Pooling", "data", "d", "pooling_param { kernel_size: 1 stride: 2 }")
        + layer("Pooling", "data", "e", "pooling_param { kernel_size: 3 stride: 2 round_mode: FLOOR }")
        + layer("Pooling", "data", "f", "pooling_param { pool: AVE global_pooling: true }")
        + layer("Pooling", "data", "g h", "pooling_param { kernel_size: 2 stride: 2 }"),
        7,
    ),
    "LRN": (
        IMAGES
        + layer("LRN", "data", "a", "lrn_param { local_size: 5 alpha: 0.3 }")
        + layer("LRN", "a", "b", "lrn_param { local_size: 3 alpha: 0.5 beta: 0.4 k: 2 }")
        + layer("LRN", "b", "c", "lrn_param { local_size: 19 alpha: 2 }")
        + layer("LRN", "c", "d", "lrn_param { norm_region: WITHIN_CHANNEL local_size: 3 }")
        + layer("LRN", "d", "e", "lrn_param { local_size: 1 }"),
        5,
    ),
    "concatenations": (
        IMAGES
        + conv("a", "data", "num_output: 1 kernel_size: 1")
        + layer("Concat", "a data a", "b")
        + layer("Concat", "b b", "c", "concat_param { axis: 2 }")
        + layer("ReLU", "c", "c"),
        3,
    ),
    "nothing is left of a dropout": (
        IMAGES
        + layer("Dropout", "data", "a")
        + conv("b", "a")
        + layer("Dropout", "b", "b")
        + layer("ReLU", "b", "b"),
        1,
    ),
    "views of a blob that is overwritten": (
        IMAGES
        + conv("a", "data")
        + layer("Flatten", "a", "flat")
        + layer("Slice", "a", "one two", "slice_param { slice_point: 3 }")
        + layer("ReLU", "a", "r")
        + layer("ReLU", "one", "one")
        + layer("Reshape", "r", "s", "reshape_param { shape { dim: 0 dim: -1 } }")
        + layer("Eltwise", "s flat", "t"),
        7,
    ),
    "a leaky ReLU and others": (
        IMAGES
        + conv("a", "data")
        + layer("ReLU", "a", "a", "relu_param { negative_slope: 0.1 }")
        + conv("b", "a")
        + layer("TanH", "b", "b")
        + layer("Power", "b", "c", "power_param { scale: 2 shift: 1 }")
        + layer("PReLU", "c", "c")
        + layer("Softmax", "c", "d"),
        6,
    ),
    "a PReLU or a leaky ReLU after a convolution": (
        IMAGES
        + conv("a", "data", "num_output: 12 kernel_size: 3 group: 4")
        + layer("BatchNorm", "a", "a")
        + layer("PReLU", "a", "a")
        + conv("b", "a", "num_output: 12 kernel_size: 3 pad: 1 group: 12")
        + layer("PReLU", "b", "b", "prelu_param { channel_shared: true }")
        + conv("c", "b", "num_output: 12 kernel_size: 1")
        + layer("Eltwise", "c a", "d")
        + layer("ReLU", "d", "d", "relu_param { negative_slope: 0.2 }")
        + layer("ReLU", "d", "e")
        + layer("Pooling", "e", "f", "pooling_param { kernel_size: 2 stride: 2 }")
        + layer("PReLU", "f", "f")
        + conv("g", "f", "num_output: 4 kernel_h: 5 kernel_w: 3 stride: 3")
        + layer("PReLU", "g", "g"),
        7,
    ),
    "BN of forks": (
        IMAGES
        + conv("a", "data")
        + layer("BN", "a", "b", "bn_param { eps: 0.1 slope_filler { value: 1 } }")
        + layer("ReLU", "b", "b")
        + conv("c", "b")
        + layer("BN", "c", "c", "bn_param { bn_mode: INFERENCE }")
        + layer("PReLU", "c", "c")
        + layer("InnerProduct", "c", "d", f"inner_product_param {{ {PRODUCT} }}")
        + layer("BN", "d", "d", "bn_param { decay: 0.9 }")
        + layer("InnerProduct", "c", "e", f"inner_product_param {{ {PRODUCT} }}")
        + layer("BN", "e", "f", "bn_param { decay: 0.9 }")
        + layer("BN", "data", "g", "bn_param { momentum: 0.9 frozen: true }")
        + layer("BatchNorm", "g", "h")
        + layer("Scale", "h", "h", "scale_param { bias_term: true }")
        + layer("BN", "h", "h", "bn_param { momentum: 0.9 }")
        + layer("ReLU", "h", "h")
        + layer("BN", "h", "i", "bn_param { decay: 0.9 moving_average: false }"),
        9,
    ),
    "shuffled channels": (
        IMAGES
        + conv("a", "data", "num_output: 12 kernel_size: 1 group: 2")
        + layer("ShuffleChannel", "a", "b", "shuffle_channel_param { group: 3 }")
        + layer("ReLU", "b", "b")
        + conv("c", "b", "num_output: 12 kernel_size: 3 pad: 1 group: 12")
        + layer("ShuffleChannel", "c", "g", "shuffle_channel_param { group: 2 }")
        + layer("Slice", "g", "d e", "slice_param { slice_point: 5 }")
        + layer("Concat", "e d", "f")
        + layer("ShuffleChannel", "f", "h", "shuffle_channel_param { group: 1 }")
        + layer("ReLU", "h", "i")
        + layer("Eltwise", "i f", "j")
        + layer("InnerProduct", "j", "k", f"inner_product_param {{ {PRODUCT} }}")
        + layer("ShuffleChannel", "k", "l", "shuffle_channel_param { group: 5 }")
        + layer("ReLU", "l", "l"),
        10,
    ),
    "priors": (
        IMAGES
        + conv("a", "data", "num_output: 4 kernel_size: 3 stride: 2")
        + layer(
            "PriorBox",
            "a data",
            "p",
            "prior_box_param { min_size: 2 max_size: 5 aspect_ratio: 2 flip: true }",
        )
        + layer("PriorBox", "a", "q", "prior_box_param { min_size: 3 img_size: 20 }")
        + layer("ReLU", "q", "q")
        + layer("Concat", "p q", "r", "concat_param { axis: 2 }"),
        5,
    ),
    "shortcut A": (
        IMAGES
        + conv("a", "data", "num_output: 16 kernel_size: 3 pad: 1 stride: 2")
        + layer("Pooling", "data", "half", "pooling_param { kernel_size: 1 stride: 2 round_mode: FLOOR }")
        + layer("Power", "half", "zero", "power_param { scale: 0 }")
        + layer("Concat", "half zero", "both")
        + layer("Eltwise", "a both", "b")
        + layer("ReLU", "b", "b"),
        2,
    ),
    "scalars and single pixels": (
        INPUT % "dim: 1 dim: 3 dim: 1 dim: 1"
        + conv("a", "data", "num_output: 8 kernel_size: 1")
        + layer("Pooling", "a", "b", "pooling_param { kernel_size: 2 stride: 1 pad: 1 }")
        + layer("ReLU", "b", "b")
        + layer("LRN", "b", "c")
        + conv("d", "c", "num_output: 1 kernel_size: 2")
        + layer("Reduction", "d", "e", "reduction_param { axis: 0 }"),
        5,
    ),
    "nothing but an input": (INPUT % "dim: 2 dim: 3", 0),
}


@pytest.mark.parametrize("name", PATTERNS)
def test_pattern(name: str) -> None:
    """With no blob kept, with each one alone, and with all of them; twice each, and with other memory."""
    text, count = PATTERNS[name]
    net = made(text)
    values = fed(net)
    blobs = list(net.blob_shapes)
    want = plain(net, values, blobs)
    for keep in ([], blobs, *([blob] for blob in blobs)):
        plan = plan_inference(net, keep)
        expected = {name: want[name] for name in {*net.outputs, *keep}}
        for given in (values, {name: _strided(value) for name, value in values.items()}):
            before = {name: value.clone() for name, value in given.items()}
            got = plan.run(given)
            assert_same(got, expected)
            assert all(torch.equal(given[name], value) for name, value in before.items()), "inputs untouched"
        first = {name: value.clone() for name, value in got.items()}
        plan.run(fed(net, seed=8))
        assert all(torch.equal(got[name], value) for name, value in first.items()), "results stay"
        if not keep:
            assert len(kinds(plan)) == count, kinds(plan)
        assert plan.fast


def test_weights_that_another_layer_changes_in_a_pass_are_left_to_their_layers() -> None:
    """As caffe-windows does it, `b` scales the rows before it uses them: `c` reads the new ones."""
    shared = f'param {{ name: "w" }} inner_product_param {{ {PRODUCT}'
    text = (
        INPUT % "dim: 2 dim: 5"
        + layer("InnerProduct", "data", "a", shared + " }")
        + layer("InnerProduct", "data", "b", shared + " normalize: true }")
        + layer("InnerProduct", "data", "c", shared + " }")
    )
    ours, other = made(text), made(text)
    plan = plan_inference(ours)
    for seed in (1, 2):
        with torch.no_grad():
            want = other.forward(fed(other, seed))
        got = plan.run(fed(ours, seed))
        assert got.keys() == want.keys()
        assert all(torch.equal(got[name], value) for name, value in want.items())
    assert plan.fast


def _strided(value: torch.Tensor) -> torch.Tensor:
    """The same values in memory of another order, with holes."""
    return torch.stack([value, value], -1).transpose(0, 1).contiguous().transpose(0, 1)[..., 0]


def test_results_can_be_contiguous() -> None:
    net = made(PATTERNS["residual"][0])
    plan = plan_inference(net, ["a"])
    got, ordered = plan.run(fed(net)), plan.run(fed(net), contiguous=True)
    assert not got["a"].is_contiguous()
    for name, value in ordered.items():
        assert value.is_contiguous()
        assert torch.equal(got[name], value)


CHAIN = (
    IMAGES
    + conv("a", "data")
    + NORM
    + layer("Pooling", "a", "b", "pooling_param { kernel_size: 2 stride: 2 }")
    + conv("c", "b", "num_output: 4 kernel_size: 3")
    + layer("ReLU", "c", "c")
    + layer("Pooling", "c", "d", "pooling_param { pool: AVE global_pooling: true }")
    + conv("e", "d", "num_output: 6 kernel_size: 1")
    + layer("Softmax", "e", "prob")
)


def test_bottoms_of_other_shapes() -> None:
    """More shapes than are planned at once, each twice and not in a row; then some that do not fit."""
    net = made(CHAIN)
    plan = plan_inference(net, ["a"])
    shapes = [(2, 8, 9, 7), (1, 8, 9, 7), (5, 8, 12, 11), (1, 8, 30, 6), (3, 8, 9, 7)]
    for seed, shape in enumerate(shapes + shapes):
        values = fed(net, seed, data=shape)
        assert_same(plan.run(values), plain(net, values, ["a"]))
    for wrong, message in (((2, 7, 9, 7), "got 7 channels"), ((2, 8, 2, 2), "nothing would be left")):
        with pytest.raises(LayerError, match=message):
            plan.run(fed(net, data=wrong))
        assert_same(plan.run(values), plain(net, values, ["a"]))


def test_no_image_at_all() -> None:
    net = made(PATTERNS["residual"][0])
    values = fed(net, data=(0, 8, 9, 7))
    got, want = plan_inference(net).run(values), plain(net, values)
    assert {name: blob.shape for name, blob in got.items()} == {
        name: blob.shape for name, blob in want.items()
    }


def test_changed_weights_are_noticed() -> None:
    """Of a convolution, a BatchNorm, a Scale and a bias: an update, values copied, other memory."""
    net = made(CHAIN)
    plan = plan_inference(net)
    values = fed(net)
    old = plan.run(values)["prob"]
    changed = [net.params[name][0] for name in ("a/conv", "a/BatchNorm", "a/Scale")] + [
        net.params["e/conv"][1]
    ]
    for index, blob in enumerate(changed):
        with torch.no_grad():
            if index % 2:
                blob.copy_(torch.linspace(0.5, 3, blob.numel()).view_as(blob))
            else:
                blob.mul_(torch.linspace(0.5, 3, blob.numel()).view_as(blob))
        new = plan.run(values)
        assert not torch.equal(new["prob"], old)
        assert_same(new, plain(net, values))
        old = new["prob"]
    blob.data = torch.linspace(3, 0.5, blob.numel())
    assert_same(plan.run(values), plain(net, values))


def test_changes_that_torch_does_not_count_are_told() -> None:
    net = made(CHAIN)
    plan = plan_inference(net)
    values = fed(net)
    plan.run(values)
    net.params["a/BatchNorm"][0].detach().numpy()[:] = 3
    plan.weights_changed()
    assert_same(plan.run(values), plain(net, values))


def test_two_nets_that_share_weights() -> None:
    """The parameters are replaced: the plan of a test net goes on with those of its train net."""
    first, second = made(CHAIN), made(CHAIN)
    with torch.no_grad():
        second.params["a/conv"][0].mul_(3)
    plan, values = plan_inference(first), fed(first)
    plan.run(values)
    first.share_with(second)
    assert_same(plan.run(values), plain(second, values))
    with torch.no_grad():
        second.params["c/conv"][0].neg_()
    assert_same(plan.run(values), plain(second, values))


@pytest.mark.parametrize("name", ["residual", "LRN", "pooling", "products", "normalised first"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_numbers_that_are_not_finite_reach_the_outputs(name: str, bad: float) -> None:
    """Those of one item stay in that item. Winograd's kernel lets them reach a few pixels more."""
    net = made(PATTERNS[name][0])
    values = fed(net)
    good = plan_inference(net).run(values)
    values["data"] = values["data"].clone()
    values["data"][(0, *(0,) * (values["data"].dim() - 1))] = bad
    got, want = plan_inference(net).run(values), plain(net, values)
    for output, blob in want.items():
        assert not got[output][~blob.isfinite()].isfinite().any()
        assert got[output][blob.isnan()].isnan().all()
        assert torch.equal(got[output][1:], good[output][1:])


def test_weights_that_are_not_finite_reach_the_outputs() -> None:
    """A net that has diverged shows it: a ReLU does not make 0 of NaN."""
    for blob, place in (("a/conv", 1), ("a/Scale", 0), ("c/conv", 0)):
        net = made(CHAIN)
        with torch.no_grad():
            net.params[blob][place].view(-1)[0] = float("nan")
        assert plan_inference(net).run(fed(net))["prob"].isnan().all()


@pytest.mark.parametrize("way", ["no packed weights", "no kernels in C", "Winograd for all"])
def test_other_builds(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if way == "no packed weights":
        monkeypatch.setattr(planned, "_has_packed", lambda: False)
    if way == "Winograd for all":
        if not native.available():
            pytest.skip("the kernels in C were not built")
        monkeypatch.setenv("IMAE_KERNELS", "all")
    else:
        monkeypatch.setenv("IMAE_KERNELS", "none")
    for name in (
        "residual",
        "both summands are convolutions",
        "groups, strides, dilation",
        "normalised first",
    ):
        net = made(PATTERNS[name][0])
        values = fed(net)
        assert_same(plan_inference(net).run(values), plain(net, values))


@pytest.mark.parametrize("name", ["residual", "normalised first"])
def test_another_default_type_of_torch_changes_nothing(name: str) -> None:
    net = made(PATTERNS[name][0])
    values, plan = fed(net), plan_inference(net)
    want = plain(net, values)
    torch.set_default_dtype(torch.float64)
    try:
        assert_same(plan.run(values), want)  # planned and run
        torch.set_default_dtype(torch.float32)
        plan.weights_changed()
        plan.run(values)
        torch.set_default_dtype(torch.float64)
        assert_same(plan.run(values), want)  # run
    finally:
        torch.set_default_dtype(torch.float32)


def test_torch_without_the_operations(monkeypatch: pytest.MonkeyPatch) -> None:
    """An older torch, or one that calls them otherwise, is noticed, and F.conv2d takes their place."""
    assert isinstance(planned._has_packed(), bool)
    for name in ("_reorder_convolution_weight", "_convolution_pointwise"):
        planned._has_packed.cache_clear()
        with monkeypatch.context() as patch:
            patch.setattr(planned, "_onednn", lambda missing=name: _Without(missing))
            assert not planned._has_packed()
            net = made(PATTERNS["residual"][0])
            assert_same(plan_inference(net).run(fed(net)), plain(net, fed(net)))
    planned._has_packed.cache_clear()


class _Without:
    """torch.ops.mkldnn without one of its operations."""

    def __init__(self, missing: str) -> None:
        self._missing = missing

    def __getattr__(self, name: str) -> object:
        if name.startswith(self._missing):
            raise AttributeError(name)
        return getattr(torch.ops.mkldnn, name)


MODELS = sorted(
    path
    for path in (Path(__file__).parents[2] / "prototxt" / "models").glob("*/*.prototxt")
    if not path.stem.endswith(("_solver", "_inputs"))
)


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_models(path: Path) -> None:
    """With a blob in the middle kept."""
    shape = SIZES[path.parent.name]
    param = fed_nets.fed(in_state(read_net(path), TEST, NetState(phase=TEST)), *shape, phase=TEST)
    net = made(fed_nets.unfilled(param))
    generator = torch.Generator().manual_seed(4)
    for blob in (blobs[0] for blobs in net.params.values() if blobs[0].dim() > 1):
        with torch.no_grad():
            blob.normal_(0, (blob[0].numel() / 2) ** -0.5, generator=generator)
    middle = net.steps[len(net.steps) // 2].tops[0]
    values = fed_nets.feed(*shape, classes=10)
    plan = plan_inference(net, [middle])
    got, want = plan.run(values), plain(net, values, [middle])
    assert plan.fast
    allowed = tolerance("fused")
    assert got.keys() == want.keys()
    for name, blob in want.items():
        scale = float(blob.abs().max())
        torch.testing.assert_close(got[name].double(), blob, rtol=allowed.rtol, atol=allowed.atol * scale)
    assert plan._graph is not None
    types = [step.step.layer.type for node in plan._graph.nodes for step in node.members[:1]]
    assert not {"BatchNorm", "Scale", "Split", "Dropout"} & set(types)


SIZES = {
    "cifar10": (2, 3, 32, 32),
    "cifar100": (2, 3, 32, 32),
    "clothing1m": (1, 3, 224, 224),
    "digits": (3, 1, 8, 8),
    "mars": (1, 3, 256, 128),
}


def test_wrong_label_is_an_error() -> None:
    net = made(
        INPUT % "dim: 2 dim: 3"
        + 'layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 2 } } }'
        + layer("InnerProduct", "data", "a", f"inner_product_param {{ {PRODUCT} }}")
        + layer("SoftmaxWithLoss", "a label", "loss", "loss_weight: 2")
    )
    plan = plan_inference(net)
    values = fed(net) | {"label": torch.tensor([1.0, 4.0])}
    assert_same(plan.run(values), plain(net, values))
    with pytest.raises(LayerError, match="label 5"):
        plan.run(values | {"label": torch.tensor([1.0, 5.0])})


DUMMY = """
layer { name: "dummy" type: "DummyData" top: "data" top: "label" dummy_data_param {
        shape { dim: 2 dim: 8 dim: 9 dim: 7 } shape { dim: 2 }
        data_filler { type: "gaussian" std: 1 } data_filler { type: "constant" value: 1 } } }
"""


def test_data_layers_make_batches_unless_they_are_given() -> None:
    """The plan and the plain net draw the same batches, one each pass."""
    text = DUMMY + conv("a", "data", "num_output: 3 kernel_h: 9 kernel_w: 7") + layer("ReLU", "a", "a")
    text += layer("SoftmaxWithLoss", "a label", "loss")
    ours, other = made(text), made(text)
    plan = plan_inference(ours, ["data"])
    for _ in range(2):
        with torch.no_grad():
            want = other.forward(keep=["data"])
        got = plan.run()
        assert torch.equal(got["data"], want["data"])
        assert_same(got, {name: blob.double() for name, blob in want.items()})
    given = {"data": want["data"], "label": torch.zeros(2)}
    drawn = other.forward()["loss"]
    assert torch.equal(plan.run(given)["data"], given["data"])
    assert_same({"loss": plan.run()["loss"]}, {"loss": drawn.detach().double()})


def test_score_runs_the_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    """`imae test`: the means are those of the plain net's batches, and so is a kept blob."""
    text = DUMMY + conv("a", "data", "num_output: 3 kernel_h: 9 kernel_w: 7") + layer("ReLU", "a", "a")
    text += layer("SoftmaxWithLoss", "a label", "loss")
    passes = []
    run = InferencePlan.run
    monkeypatch.setattr(InferencePlan, "run", lambda plan: passes.append(plan.fast) or run(plan))
    seen = []
    means = score(
        made(text), torch.device("cpu"), 3, keep=["a"], on_batch=lambda kept: seen.append(kept["a"])
    )
    assert passes == [True, True, True]
    other = made(text)
    with torch.no_grad():
        want = [other.forward(keep=["a"]) for _ in passes]
    mean = torch.stack([blobs["loss"] for blobs in want]).double().mean()
    assert_same({"loss": torch.tensor(means["loss"])}, {"loss": mean})
    for got, blobs in zip(seen, want, strict=True):
        assert_same({"a": got}, {"a": blobs["a"].double()})


def test_shapes_that_depend_on_values() -> None:
    """Filter: all that follows is run by the layers, which see the shapes."""
    net = made(
        IMAGES
        + 'layer { name: "which" type: "Input" top: "which" input_param { shape { dim: 2 } } }'
        + conv("a", "data")
        + NORM
        + layer("Filter", "a which", "b")
        + conv("c", "b", "num_output: 3 kernel_size: 2")
        + layer("ReLU", "c", "c")
        + layer("Eltwise", "c c", "d")
        + conv("e", "data", "num_output: 3 kernel_size: 1")
        + layer("ReLU", "e", "e")
    )
    plan = plan_inference(net, ["c"])
    for which in ([1.0, 0.0], [1.0, 1.0], [0.0, 1.0]):
        values = fed(net) | {"which": torch.tensor(which)}
        assert_same(plan.run(values), plain(net, values, ["c"]))
    assert plan.fast


def test_a_layer_whose_shapes_are_wrong_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernels rely on shapes, so a layer that makes another one is an error, not a wrong address."""
    net = made(IMAGES + layer("TanH", "data", "a") + conv("b", "a"))
    monkeypatch.setattr(net.layer("a/TanH"), "forward", lambda x: x[:, :, :-1])
    with pytest.raises(LayerError, match=r"'b/conv'.*planned as float32 \(2, 8, 9, 7\).*\(2, 8, 8, 7\)"):
        plan_inference(net).run(fed(net))


def test_what_runs_by_another_plan() -> None:
    """Double precision, bottoms in it, dropouts that draw; debug_info, which may be set between passes."""
    text = IMAGES + conv("a", "data") + NORM
    values = fed(made(text))
    for net in (
        made(text, torch.float64),
        made(text + layer("Dropout", "a", "b", "dropout_param { sample_weights_test: true }")),
    ):
        plan = plan_inference(net)
        assert not plan.fast
        given = {name: value.to(net.dtype) for name, value in values.items()}
        assert {name: value.dtype for name, value in plan.run(given).items()} == dict.fromkeys(
            net.outputs, net.dtype
        )
    got = plan_inference(made(text, torch.float64)).run({"data": values["data"].double()})["a"]
    torch.testing.assert_close(
        got, plain(made(text), values)["a"], rtol=0, atol=tolerance("fast way", "float64").atol * 10
    )


def test_debug_info_logs_every_layer(caplog: pytest.LogCaptureFixture) -> None:
    net = made(IMAGES + conv("a", "data") + NORM)
    plan = plan_inference(net)
    first = plan.run(fed(net))
    net.debug_info = True
    with caplog.at_level("INFO"):
        second = plan.run(fed(net))
    assert sum("[Forward]" in message for message in caplog.messages) >= 4
    assert_same(first, {name: blob.double() for name, blob in second.items()})


def test_missing_input_is_an_error() -> None:
    net = made(INPUT % "dim: 1 dim: 2")
    with pytest.raises(LayerError, match="input data is not given"):
        plan_inference(net).run({})
