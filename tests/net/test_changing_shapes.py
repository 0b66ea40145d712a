"""Shapes are checked whenever they change, as by Caffe's Reshape before every Forward.

Each type runs in a net, then with bottoms of other shapes, and so back and forth. Each time it gives what a
net gives that is built for these shapes, or its own error: never a broadcast, never torch's error.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from layer_cases import CASES, make, write_files
from single_layer import normal, refused
from tolerances import tolerance
from torch import Tensor

import imae.pycaffe as caffe
from imae.cli.main import main
from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Shape
from imae.layers.run import Run
from imae.net.executor import NetExecutor
from imae.net.fuse import fuse_training
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.net.weights import save_caffemodel
from imae.prototxt import TRAIN, NetParameter
from imae.prototxt.text import parse_net

Values = list[Tensor]
WITH_BOTTOMS = [key for key in sorted(CASES) if CASES[key].bottoms]  # types, and variants of one name
RTOL, ATOL, _ = tolerance("same arithmetic")


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests work in a folder with the files that the layers name."""
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)


def build(type_name: str, shapes: Sequence[Shape]) -> Net:
    """The layer of CASES alone in a net, behind inputs of these shapes."""
    param = NetParameter(force_backward=True, state={"phase": TRAIN})
    layer = make(type_name, {})
    param.layer.add(
        name="in", type="Input", top=layer.bottom, input_param={"shape": [{"dim": shape} for shape in shapes]}
    )
    param.layer.append(layer)
    return Net(param)


def other_shapes(shapes: Sequence[Shape]) -> Iterator[list[Shape]]:
    """Of one bottom an axis longer, shorter or empty, one axis fewer or more; and so of all."""
    bottoms: list[list[int]] = [[index] for index in range(len(shapes))]
    for changed in [*bottoms, list(range(len(shapes)))] if len(shapes) > 1 else bottoms:
        for axis in range(max(len(shapes[index]) for index in changed)):
            for change in ("longer", "shorter", "empty", "fewer", "more"):
                yield [
                    changed_shape(shape, axis, change) if index in changed else shape
                    for index, shape in enumerate(shapes)
                ]


def changed_shape(shape: Shape, axis: int, change: str) -> Shape:
    if axis >= len(shape):
        return shape
    size = shape[axis]
    middle = {"longer": (size + 1,), "shorter": (size - 1,), "empty": (0,), "fewer": (), "more": (size, 1)}
    return (*shape[:axis], *middle[change], *shape[axis + 1 :])


def values_for(type_name: str, shapes: Sequence[Shape]) -> Values:
    """The bottoms of CASES in these shapes: labels stay labels."""
    values = [
        torch.from_numpy(np.resize(bottom.numpy(), shape)) if bottom.numel() else torch.zeros(shape)
        for bottom, shape in zip(CASES[type_name].bottoms, shapes, strict=True)
    ]
    if type_name in ("LSTM", "RNN"):
        values[1][:1] = 0  # nothing goes on from the pass before
    return values


def passes(net: Net, way: str, values: Values) -> Values:
    """Tops and the diffs of bottoms and parameters of a pass both ways, the tops' diffs being 1."""
    names = net.inputs
    net.zero_grad()
    if way == "stepwise":
        steps = net.__dict__.setdefault("stepwise", Stepwise(net))
        for name, value in zip(names, values, strict=True):
            steps.blobs[name].reshape(value.shape)
            steps.blobs[name].data.copy_(value)
        steps.forward()
        for name in net.steps[-1].tops:
            steps.blobs[name].diff.fill_(1)
        for name in names:
            steps.blobs[name].diff.zero_()
        steps.backward()
        tops = [steps.blobs[name].data.clone() for name in net.steps[-1].tops]
        return [*tops, *(steps.blobs[name].diff.clone() for name in names), *parameter_diffs(net)]
    plan = net.__dict__.setdefault("fast_plan", fuse_training(net)) if way == "fast" else None
    leaves = [
        value.clone().requires_grad_(need)
        for value, need in zip(values, net.steps[-1].bottom_need_backward, strict=True)
    ]
    made = net(dict(zip(names, leaves, strict=True)), keep=net.steps[-1].tops, plan=plan)
    tops = [made[name] for name in net.steps[-1].tops]
    ends = [top for top in tops if top.requires_grad]
    if ends:
        torch.autograd.backward(ends, [torch.ones_like(top) for top in ends])
    diffs = [torch.zeros_like(leaf) if leaf.grad is None else leaf.grad for leaf in leaves]
    return [*(top.detach() for top in tops), *diffs, *parameter_diffs(net)]


def parameter_diffs(net: Net) -> Values:
    return [torch.zeros_like(blob) if blob.grad is None else blob.grad.clone() for blob in net.learnable]


def fresh(type_name: str, shapes: Sequence[Shape], like: Net) -> Net | None:
    """A net for these shapes with another's parameters and random numbers; None where those do not fit."""
    net = build(type_name, shapes)
    if [blob.shape for blob in net.learnable] != [blob.shape for blob in like.learnable]:
        return None
    for blob, other in zip(net.learnable, like.learnable, strict=True):
        blob.data.copy_(other.data)
    net.run.random.set_state(like.run.random.get_state())
    return net


# Caffe's Reshape refuses here what a new net takes; HDF5Output writes one pass.
KEEP_THEIR_SHAPES = {
    "Im2col": "bottom num_axes may not change.",
    "LSTM": "input number of timesteps changed",
    "RNN": "input number of timesteps changed",
    "HDF5Output": "holds a batch already",
}


@pytest.mark.parametrize("shape", [(), (0,), (1,), (0, 0)], ids=str)
@pytest.mark.parametrize("type_name", WITH_BOTTOMS)
def test_bottoms_without_axes_or_values(type_name: str, shape: Shape) -> None:
    """They give something, or the layer's own error; losses by mistake took the first axis for granted."""
    shapes = [shape] * len(CASES[type_name].bottoms)
    with contextlib.suppress(LayerError):
        net = build(type_name, shapes)
        net({f"bottom{index}": torch.zeros(shape) for index in range(len(shapes))})


@pytest.mark.parametrize("way", ["plain", "fast", "stepwise"])
@pytest.mark.parametrize("type_name", WITH_BOTTOMS)
def test_a_bottom_of_another_shape_is_taken_or_refused(type_name: str, way: str) -> None:
    shapes = [tuple(bottom.shape) for bottom in CASES[type_name].bottoms]
    net, first = build(type_name, shapes), values_for(type_name, shapes)
    for index, changed in enumerate(other_shapes(shapes)):
        if index == 0 or type_name != "HDF5Output":
            passes(net, way, first)
        values = values_for(type_name, changed)
        try:
            other = fresh(type_name, changed, net)
            want = passes(other, way, values) if other is not None else None
        except LayerError:
            want = None
        try:
            got = passes(net, way, values)
        except LayerError as error:
            assert want is None or KEEP_THEIR_SHAPES[type_name] in str(error), changed
            assert str(error).startswith(f"layer 'it' ({type_name.partition(':')[0]}): ") and "\n" not in str(
                error
            )
            continue
        assert want is not None, f"{changed} is taken, which a new net refuses"
        for one, expected in zip(got, want, strict=True):
            assert one.shape == expected.shape, changed
            torch.testing.assert_close(one, expected, rtol=RTOL, atol=ATOL, equal_nan=True)


# -- layers that the fast way joins, or runs otherwise -------------------------------------------------------

CHAIN = """
    force_backward: true state { phase: TRAIN }
    layer { name: "in" type: "Input" top: "x" top: "y"
            input_param { shape { dim: 2 dim: 8 dim: 9 dim: 8 } shape { dim: 2 dim: 8 dim: 9 dim: 8 } } }
    layer { name: "conv" type: "Convolution" bottom: "x" top: "c" convolution_param {
            num_output: 8 kernel_size: 3 pad: 1 bias_term: false weight_filler { type: "xavier" } } }
    JOINED
    layer { name: "sum" type: "Eltwise" bottom: "c" bottom: "y" top: "s" eltwise_param { operation: SUM } }
    layer { name: "relu" type: "ReLU" bottom: "s" top: "s" }
    layer { name: "pool" type: "Pooling" bottom: "s" top: "p" pooling_param { kernel_size: 3 stride: 2 } }
    layer { name: "a" type: "Power" bottom: "p" top: "a" power_param { scale: 2 } }
    layer { name: "b" type: "Power" bottom: "p" top: "b" power_param { scale: 3 } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "a" bottom: "b" top: "loss" }
"""
NORMALISED = """
    layer { name: "bn" type: "BatchNorm" bottom: "c" top: "c" }
    layer { name: "scale" type: "Scale" bottom: "c" top: "c" scale_param { bias_term: true } }
"""
AT_FIRST = (2, 8, 9, 8)
CHANGES = [
    ([(3, 8, 9, 8)] * 2, None),
    ([(1, 8, 20, 31)] * 2, None),
    ([(2, 8, 3, 3)] * 2, None),
    ([AT_FIRST, (1, 8, 9, 8)], "layer 'sum' (Eltwise): bottom[0]: 2 8 9 8 (1152), bottom[1]: 1 8 9 8 (576);"),
    ([AT_FIRST, (2, 8, 1, 1)], "layer 'sum' (Eltwise): bottom[0]: 2 8 9 8 (1152), bottom[1]: 2 8 1 1 (16);"),
    ([AT_FIRST, (8, 9, 8)], "layer 'sum' (Eltwise): bottom[0]: 2 8 9 8 (1152), bottom[1]: 8 9 8 (576);"),
    ([(2, 4, 9, 8), AT_FIRST], "layer 'conv' (Convolution): Input size incompatible with convolution"),
    ([(8, 9, 8), AT_FIRST], "layer 'conv' (Convolution): bottom num_axes may not change."),
    ([(2, 8, 1, 1)] * 2, "layer 'pool' (Pooling): no window of 3 x 3"),
]  # fmt: skip


def chain(joined: str, way: str, last: bool, shapes: list[Shape]) -> Net:
    param = parse_net(CHAIN.replace("JOINED", joined))
    for given, shape in zip(param.layer[0].input_param.shape, shapes, strict=True):
        given.dim[:] = shape
    net = Net(param, Run(CaffeRandom(1)))
    net.__dict__["plan"] = fuse_training(net) if way == "fast" else net.steps
    return net.to(memory_format=torch.channels_last) if last else net  # type: ignore[call-overload]


def chain_pass(net: Net, last: bool, shapes: list[Shape]) -> Values:
    """Loss, and the diffs of inputs and parameters."""
    net.zero_grad()
    leaves = [normal(*shape, seed=seed) for seed, shape in enumerate(shapes)]
    if last:
        leaves = [x.contiguous(memory_format=torch.channels_last) if x.dim() == 4 else x for x in leaves]
    x, y = (leaf.requires_grad_() for leaf in leaves)
    loss = net.loss(net({"x": x, "y": y}, plan=net.__dict__["plan"]))
    loss.backward()
    return [loss.detach(), *(leaf.grad for leaf in (x, y) if leaf.grad is not None), *parameter_diffs(net)]


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("joined", ["", NORMALISED])
@pytest.mark.parametrize("way", ["plain", "fast"])
@pytest.mark.parametrize(("shapes", "refusal"), CHANGES)
def test_joined_layers_take_or_refuse_other_shapes(
    shapes: list[Shape], refusal: str | None, way: str, joined: str, last: bool
) -> None:
    net = chain(joined, way, last, [AT_FIRST] * 2)
    before = chain_pass(net, last, [AT_FIRST] * 2)
    if refusal is not None:
        for _ in range(2):
            with refused(refusal):
                chain_pass(net, last, shapes)
        shapes = [AT_FIRST] * 2
    got = chain_pass(net, last, shapes)
    want = chain_pass(chain(joined, way, last, shapes), last, shapes)
    for one, expected in zip(got, want, strict=True):
        torch.testing.assert_close(one, expected, rtol=RTOL, atol=ATOL)
    if refusal is not None:
        assert torch.equal(got[0], before[0])


# -- as people meet it ---------------------------------------------------------------------------------------

INPUTS = """layer { name: "in" type: "Input" top: "x" top: "y"
                    input_param { shape { dim: 2 dim: 3 } shape { dim: 2 dim: 3 } } }"""


@pytest.mark.parametrize("operation", ["SUM", "PROD", "MAX"])
@pytest.mark.parametrize("phase", [caffe.TRAIN, caffe.TEST])
def test_pycaffe_does_not_broadcast(operation: str, phase: int) -> None:
    """One of two inputs is reshaped, the other forgotten."""
    Path("net.prototxt").write_text(
        f"""{INPUTS} layer {{ name: "e" type: "Eltwise" bottom: "x" bottom: "y" top: "e"
        eltwise_param {{ operation: {operation} }} }}"""
    )
    net = caffe.Net("net.prototxt", phase)
    net.blobs["x"].reshape(1, 3)
    with refused("layer 'e' (Eltwise): bottom[0]: 1 3 (3), bottom[1]: 2 3 (6); the shapes must be the same"):
        net.forward()
    net.blobs["y"].reshape(1, 3)
    net.blobs["x"].data[...], net.blobs["y"].data[...] = 2, 3
    assert net.forward()["e"].tolist() == [[{"SUM": 5, "PROD": 6, "MAX": 3}[operation]] * 3]


def test_pycaffe_refuses_a_shape_that_the_weights_do_not_fit() -> None:
    Path("net.prototxt").write_text(
        INPUTS
        + """layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
        inner_product_param { num_output: 2 } }"""
    )
    net = caffe.Net("net.prototxt", caffe.TEST)
    net.blobs["x"].reshape(2, 5)
    with refused("layer 'ip' (InnerProduct): Input size incompatible with inner product parameters."):
        net.forward()


def write_pictures(*sizes: tuple[int, int]) -> None:
    for index, size in enumerate(sizes):
        cv2.imwrite(f"{index}.png", np.full((*size, 3), 1, np.uint8))
    Path("list.txt").write_text("".join(f"{index}.png 0\n" for index in range(len(sizes))))


PICTURES = """layer { name: "d" type: "ImageData" top: "data" top: "label"
                      image_data_param { source: "list.txt" batch_size: 1 } }
    layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" inner_product_param { num_output: 2 } }
    layer { name: "l" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "l" }"""


@pytest.mark.parametrize("command", ["train solver.prototxt", "train solver.prototxt --plain",
                                     "test --model net.prototxt --weights w.caffemodel",
                                     "time --model net.prototxt --iterations 2"])  # fmt: skip
def test_pictures_of_other_sizes_before_a_fully_connected_layer(
    command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """The best known error of Caffe's users."""
    write_pictures((6, 6), (8, 7))
    Path("net.prototxt").write_text(PICTURES)
    Path("solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.001 lr_policy: "fixed" max_iter: 4 solver_mode: CPU'
    )
    save_caffemodel(Net(parse_net(PICTURES)), "w.caffemodel")
    assert main(command.split()) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "imae: layer 'ip' (InnerProduct): Input size incompatible with inner product parameters.; got 168 "
        "values of bottom shape (1, 3, 8, 7) from axis 1 on, the weights are for 108"
    )


@pytest.mark.parametrize("fast", [True, False])
def test_a_picture_smaller_than_the_kernel_is_refused(fast: bool) -> None:
    """Not filled up with zeros on one side."""
    write_pictures((16, 16), (2, 2))
    net = Net(
        parse_net(
            PICTURES.split('layer { name: "ip"')[0]
            + """layer { name: "c" type: "Convolution"
        bottom: "data" top: "c" convolution_param { num_output: 1 kernel_size: 5 } }"""
        )
    )
    executor = NetExecutor(net, torch.device("cpu"), fast=fast)
    executor.forward()
    with refused("layer 'c' (Convolution): nothing would be left of bottom (1, 3, 2, 2)"):
        executor.forward()


def test_a_blob_that_is_bottom_and_top_keeps_its_shape() -> None:
    net = Net(parse_net("""layer { name: "in" type: "Input" top: "x"
            input_param { shape { dim: 1 dim: 2 dim: 1 dim: 1 } } }
        layer { name: "p" type: "Pooling" bottom: "x" top: "x"
            pooling_param { kernel_size: 2 pad: 1 stride: 2 } }"""
    ))  # fmt: skip
    net({"x": torch.ones(1, 2, 1, 1)})
    with refused("layer 'p' (Pooling): blob 'x' is bottom and top, and its shape would change from 1 2 3 3"):
        net({"x": torch.ones(1, 2, 3, 3)})


def test_a_blob_with_a_loss_weight_keeps_it_when_it_grows() -> None:
    """Caffe: Blob::Reshape takes new memory, whose diff is 0, and so the loss is 0 from then on."""
    text = """force_backward: true
        layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }
        layer { name: "p" type: "Power" bottom: "x" top: "p" power_param { scale: 3 } loss_weight: 0.5 }"""
    steps = Stepwise(Net(parse_net(text)))
    for size in (2, 5, 3):
        steps.blobs["x"].reshape((1, size))
        steps.blobs["x"].data.fill_(1)
        assert steps.forward() == 1.5 * size
        steps.backward()
        assert steps.blobs["x"].diff.tolist() == [[1.5] * size]
