"""Layers of face recognition, beyond the recorded cases.

MarginInnerProduct's DOUBLE and TRIPLE, TripletLoss, InnerDistance, ChannelScale's global_scale, the annealing
of LabelSpecificAdd and InnerProduct's normalize were not recorded. Their references are the slow functions
below, written from what the forks' sources compute: one item and one class at a time.
"""

from __future__ import annotations

import re
from math import acos, cos, floor, pi, sin, sqrt
from pathlib import Path

import numpy as np
import pytest
import torch
from single_layer import (
    build,
    check_contract,
    check_gradient,
    check_onnx,
    diffs,
    normal,
    refused,
    run,
)
from tolerances import tolerance
from torch import Tensor

from imae.cli.main import main
from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import export_net
from imae.files.errors import ExportError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer
from imae.net.fold import fold_batch_norm
from imae.net.net import Net
from imae.net.streams import Streams
from imae.prototxt.text import parse_net

FILLED = '{ type: "uniform" min: -1 max: 1 }'
X, LABELS = normal(6, 5), torch.tensor([0.0, 3, 1, 3, 2, 0])


def assert_close(got: Tensor | None, want: Tensor, what: str = "same arithmetic") -> None:
    rtol, atol, _ = tolerance(what)
    assert got is not None
    torch.testing.assert_close(got.detach(), want.to(got.dtype), rtol=rtol, atol=atol)


# -- MarginInnerProduct ------------------------------------------------------------------------------------

KINDS = {"SINGLE": 1, "DOUBLE": 2, "TRIPLE": 3, "QUADRUPLE": 4}


def margin(kind: str, fields: str = "") -> str:
    return (
        f'type: "MarginInnerProduct" top: "y" top: "lambda" margin_inner_product_param {{ num_output: 4 '
        f"weight_filler {FILLED} type: {kind} {fields} }}"
    )


def literal_margin(
    m: int, x: Tensor, w: Tensor, labels: Tensor, factor: float, d: Tensor
) -> tuple[Tensor, Tensor]:
    """Top and bottom diff, for weights of length 1; the margin by the angle."""
    top, diff = torch.zeros(len(x), len(w), dtype=torch.float64), torch.zeros_like(x, dtype=torch.float64)
    x, w, d = x.double(), w.double(), d.double()
    for i, label in enumerate(labels.long().tolist()):
        length = sqrt(float(x[i] @ x[i]))
        for j in range(len(w)):
            product = float(x[i] @ w[j])
            if m == 1 or j != label:
                top[i, j] = product
                diff[i] += d[i, j] * w[j]
            else:
                angle = acos(product / length)
                q = floor(m * angle / pi)
                psi = (-1) ** q * cos(m * angle) - 2 * q
                slope = (-1) ** q * m * sin(m * angle) / sin(angle)  # of psi, after the cosine
                top[i, j] = (length * psi + factor * product) / (1 + factor)
                a, b = slope, (psi - cos(angle) * slope) / length
                norm = sqrt(a * a + b * b)
                changed = a / norm * w[j] + b / norm * x[i]
                diff[i] += d[i, j] * (changed + factor * w[j]) / (1 + factor)
    return top, diff


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
@pytest.mark.parametrize("kind", KINDS)
def test_margin_of_an_angle(kind: str, phase: str) -> None:
    text = margin(kind, f"base: 10 gamma: 0.5 power: 2 lambda_min: 1.2 iteration: 1 }} phase: {phase} #")
    layer = build(text.replace("# }", ""), (6, 5), (6,))
    for count in range(2, 6):
        with torch.no_grad():
            layer.blobs[0].mul_(2)
        x, d = normal(6, 5, seed=count), normal(6, 4, seed=9)
        layer.blobs[0].grad = None
        leaf = x.clone().requires_grad_()
        top, factor = run(layer, leaf, LABELS)
        top.backward(d)
        want_factor = max(10 * (1 + 0.5 * count) ** -2, 1.2)
        assert_close(factor, torch.tensor([want_factor]))
        weight = layer.blobs[0].detach()
        assert_close(weight.norm(dim=1), torch.ones(4))
        want, want_diff = literal_margin(KINDS[kind], x, weight, LABELS, want_factor, d)
        assert_close(top, want)
        assert_close(leaf.grad, want_diff)
        assert_close(layer.blobs[0].grad, d.t() @ x)


def test_all_angles_are_met() -> None:
    """The margins of all pieces of psi: labels at angles from 0 to pi."""
    w = torch.tensor([[1.0, 0], [0, 1]])
    angles = torch.linspace(0.05, 3.1, 40)
    x = torch.stack([torch.cos(angles), torch.sin(angles)], 1) * 3
    for kind, m in KINDS.items():
        layer = build(margin(kind).replace("num_output: 4", "num_output: 2"), (40, 2), (40,))
        with torch.no_grad():
            layer.blobs[0].copy_(w)
        leaf, d = x.clone().requires_grad_(), normal(40, 2)
        top, _ = run(layer, leaf, torch.zeros(40))
        top.backward(d)
        want, want_diff = literal_margin(m, x, w, torch.zeros(40), 1.0, d)
        assert_close(top, want)
        assert_close(leaf.grad, want_diff)


INPUTS = """
    force_backward: true state { phase: TRAIN }
    layer { name: "in" type: "Input" top: "x" top: "l"
            input_param { shape { dim: [6, 5] } shape { dim: 6 } } }
"""
MARGIN_NET = f"""{INPUTS}
    layer {{ name: "m" bottom: "x" bottom: "l" {margin("DOUBLE", "gamma: 1")} }}
    layer {{ name: "a" type: "LabelSpecificAdd" bottom: "y" bottom: "l" top: "z" top: "bias" phase: TRAIN
            label_specific_add_param {{ bias_base: 0.1 bias_gamma: 0.5 bias_max: 9 }} }}"""


def test_the_number_of_passes_is_part_of_a_runs_state() -> None:
    """A snapshot holds it, and what is held does not change with the next passes."""
    feeds = {"x": X, "l": LABELS}
    streams = Streams(CaffeRandom(1), [Net(parse_net(MARGIN_NET))], torch.device("cpu"))
    net = streams.nets[0]
    for _ in range(3):
        net(feeds)
    state = streams.get_state()
    want = [net(feeds, keep=["lambda", "bias"]) for _ in range(2)]
    assert [float(pass_["lambda"]) for pass_ in want] == pytest.approx([1 / 5, 1 / 6])
    assert float(want[0]["bias"]) == pytest.approx(0.1 + 2.5 - 1)
    other = Streams(CaffeRandom(1), [Net(parse_net(MARGIN_NET))], torch.device("cpu"))
    for stream in (streams, other):
        stream.set_state(state)
        for pass_ in want:
            got = stream.nets[0](feeds, keep=["lambda", "bias"])
            assert got["lambda"] == pass_["lambda"] and got["bias"] == pass_["bias"]


def test_margin_with_an_axis_and_a_shared_weight() -> None:
    text = margin("TRIPLE", "axis: 2")
    assert build(text, (2, 3, 5), (2, 3)).checked_top_shapes([(2, 3, 5), (2, 3)]) == [(2, 3, 4), (1,)]
    check_contract(text, X.reshape(2, 3, 5), LABELS.reshape(2, 3))
    first = margin("SINGLE")
    second = first.replace('"y"', '"z"').replace('"lambda"', '"other"')
    net = Net(parse_net(
        f"""{INPUTS} layer {{ name: "m" bottom: "x" bottom: "l" param {{ name: "w" }} {first} }}
        layer {{ name: "n" bottom: "x" bottom: "l" param {{ name: "w" }} {second} }}"""
    ))  # fmt: skip
    tops = net({"x": X, "l": LABELS})
    (tops["y"] + tops["z"]).sum().backward()
    assert_close(net.learnable[0].grad, 2 * X.sum(0).expand(4, 5))


def test_margin_refuses() -> None:
    layer = build(margin("DOUBLE"), (6, 5), (6,))
    with refused("label 4 is out of range: there are 4 classes"):
        run(layer, X, LABELS + 1)
    with refused("Number of labels must match number of predictions"):
        layer.checked_top_shapes([(6, 5), (5,)])
    with refused("Input size incompatible with inner product parameters.; got 4 values"):
        layer.checked_top_shapes([(6, 4), (6,)])
    with refused("MarginInnerProduct Layer produces 2 top blob(s) as output.; got 1"):
        build(margin("DOUBLE").replace('top: "lambda"', ""), (6, 5), (6,))
    with refused("num_output must be positive; got 0"):
        build('type: "MarginInnerProduct" top: "y" top: "l"', (6, 5), (6,))
    with refused("cannot backpropagate to label inputs."):
        run(layer, X, LABELS.clone().requires_grad_())[0].sum().backward()
    with pytest.raises(ExportError, match="has no ONNX form"):
        check_onnx(margin("DOUBLE"), X, LABELS)


# -- CenterLoss --------------------------------------------------------------------------------------------

CENTERS = f'type: "CenterLoss" center_loss_param {{ num_output: 5 center_filler {FILLED} }}'


def test_center_loss_item_by_item() -> None:
    layer = build(CENTERS, (6, 5, 1, 1), (6, 1))
    centers, leaf = layer.blobs[0].detach().clone(), X.reshape(6, 5, 1, 1).clone().requires_grad_()
    loss, want, moves = run(layer, leaf, LABELS.reshape(6, 1))[0], 0.0, torch.zeros(5, 5)
    for i, label in enumerate(LABELS.long().tolist()):
        want += float((X[i] - centers[label]).square().sum()) / 12
        moves[label] += centers[label] - X[i]
    for label in range(5):
        moves[label] /= 1 + int((label == LABELS).sum())
    assert_close(loss, torch.tensor(want))
    (loss * 3).backward()
    assert leaf.grad is not None
    assert_close(leaf.grad.reshape(6, 5), (X - centers[LABELS.long()]) / 6 * 3)
    assert_close(layer.blobs[0].grad, moves)  # without the 3
    run(layer, X, LABELS)[0].backward()
    assert_close(layer.blobs[0].grad, 2 * moves)
    check_contract(CENTERS, X, LABELS)


def test_center_loss_refuses() -> None:
    layer = build(CENTERS, (6, 5), (6,))
    assert layer.default_loss_weight(0) == 1 and not layer.deployed
    with refused("label 5 is out of range: there are 5 classes"):
        run(layer, X, LABELS + 2)
    with refused("bottom[0] has 4 features, (6, 4); the centres have 5"):
        layer.checked_top_shapes([(6, 4), (6,)])
    with refused("bottom[1] must hold one label for each of 6 items; got (6, 2)"):
        layer.checked_top_shapes([(6, 5), (6, 2)])
    with refused("axis 2 must be the first after the batch; bottom[0] is (6, 5, 2)"):
        build(CENTERS.replace("num_output", "axis: 2 num_output"), (6, 5, 2), (6,))
    with refused("num_output must be positive; got 0"):
        build('type: "CenterLoss"', (6, 5), (6,))
    with refused("CenterLoss Layer cannot backpropagate to label inputs."):
        run(layer, X, LABELS.clone().requires_grad_())[0].backward()


# -- Normalize (NormFace) ----------------------------------------------------------------------------------


def normalize(fields: str, tops: str = 'top: "y"') -> str:
    return f'type: "Normalize" {tops} normalize_param {{ {fields} }}'


TWO = 'top: "y" top: "norm"'


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_normalize(kind: str) -> None:
    x = normal(2, 3, 4, 5)
    both = normalize(f'normalize_type: "{kind}" bp_norm: true', TWO)
    check_contract(both, x)
    check_gradient(both, x)
    check_gradient(normalize(f'normalize_type: "{kind}"'), X)
    for bottom in (x, X, normal(2, 3, 4)):
        check_onnx(normalize(f'normalize_type: "{kind}"'), bottom)
        check_onnx(both, bottom)
    top, norm = run(build(both, x.shape), x)
    assert_close(top * norm, x)
    want = x.abs().sum(1, keepdim=True) if kind == "L1" else x.square().sum(1, keepdim=True).sqrt()
    assert_close(norm, want)
    d = [normal(2, 3, 4, 5, seed=1), normal(2, 1, 4, 5, seed=2)]
    without = build(normalize(f'normalize_type: "{kind}"', TWO), x.shape)
    (plain,) = diffs(build(normalize(f'normalize_type: "{kind}"'), x.shape), x, top_diffs=d[:1])
    leaf = x.clone().requires_grad_()
    tops = run(without, leaf)
    assert not tops[1].requires_grad
    tops[0].backward(d[0])
    assert leaf.grad is not None and plain is not None
    assert_close(leaf.grad, plain)
    fixed = build(normalize(f'normalize_type: "{kind}" fix_gradient: true bp_norm: true', TWO), x.shape)
    (undivided,) = diffs(fixed, x, top_diffs=d)
    assert_close(undivided, plain * norm + d[1] * (top if kind == "L2" else x.sign()))


def test_normalize_refuses() -> None:
    with refused("normalize_type must be L1 or L2; got 'L3'"):
        build(normalize('normalize_type: "L3"'), (2, 3))
    with refused("the bottom must have 1 to 4 axes; it is (1, 2, 3, 4, 5)"):
        build(normalize(""), (1, 2, 3, 4, 5))
    assert build(normalize("bp_norm: true"), (2, 3)).leftovers == ["normalize_param.bp_norm"]
    assert build(normalize("bp_norm: true", TWO), (2, 3)).leftovers == []


# -- Flip, ChannelScale, LabelSpecificAdd ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "axes"),
    [("", [3]), ("flip_height: true", [2, 3]), ("flip_width: false flip_height: true", [2]),
     ("flip_width: false", [])],
)  # fmt: skip
def test_flip(fields: str, axes: list[int]) -> None:
    text, x = f'type: "Flip" flip_param {{ {fields} }}', normal(2, 3, 4, 5)
    want = x.numpy()
    for axis in axes:
        want = np.take(want, range(want.shape[axis] - 1, -1, -1), axis)
    assert torch.equal(run(build(text, x.shape), x)[0], torch.tensor(want))
    check_contract(text, x)
    check_gradient(text, x)
    for bottom in (x, normal(2, 3, 4), X):
        check_onnx(text, bottom)
    assert torch.equal(run(build(text, (6, 5)), X)[0], X)
    with refused("the bottom must have at most 4 axes; it is (1, 2, 3, 4, 5)"):
        build(text, (1, 2, 3, 4, 5))


def scale(fields: str, tops: str = 'top: "y"') -> str:
    return f'type: "ChannelScale" {tops} channel_scale_param {{ {fields} }}'


def test_channel_scale() -> None:
    x, s = normal(2, 3, 4, 5), normal(2, 1, 4, 5, seed=1)
    for bottoms in ((x, s), (x, s.reshape(2, 4, 5)), (normal(4, 6), normal(4)), (normal(3), normal(3))):
        check_contract(scale(""), *bottoms)
        check_gradient(scale(""), *bottoms)
        check_onnx(scale(""), *bottoms)
        check_onnx(scale("do_forward: false"), *bottoms)
    assert torch.equal(run(build(scale("do_forward: false"), x.shape, s.shape), x, s)[0], x)
    d = normal(2, 3, 4, 5, seed=2)
    for fields, of_x, of_s in [
        ("do_forward: false", d * s, (d * x).sum(1, keepdim=True)),
        ("do_backward_feature: false", d, (d * x).sum(1, keepdim=True)),
        ("do_backward_scale: false", d * s, torch.zeros_like(s)),
    ]:
        got = diffs(build(scale(fields), x.shape, s.shape), x, s, top_diffs=[d])
        assert_close(got[0], of_x)
        assert_close(got[1], of_s)


def test_one_scale_for_all() -> None:
    """The number is limited at each pass, not learned, and the gradients are those of scale x."""
    x, s, d = normal(2, 3, 4, 5), normal(2, 1, 4, 5, seed=1), normal(2, 3, 4, 5, seed=2)
    text = scale("global_scale: true min_global_scale: 2 max_global_scale: 8", 'top: "y" top: "s"')
    layer = build(text, x.shape, s.shape)
    assert layer.blobs[0].tolist() == [-1] and layer.param_specs()[0].lr_mult == 0
    for start, want in [(-1, 2), (5, 5), (9, 8)]:
        with torch.no_grad():
            layer.blobs[0].fill_(start)
        leaves = [x.clone().requires_grad_(), s.clone().requires_grad_()]
        top, number = run(layer, *leaves)
        assert layer.blobs[0].tolist() == number.tolist() == [want]
        assert_close(top, x * want)
        top.backward(d)
        assert_close(leaves[0].grad, d * s)
        assert_close(leaves[1].grad, (d * x).sum(1, keepdim=True))
        assert layer.blobs[0].grad is None
    check_onnx(text, x, s)
    idle = text.replace("global_scale: true", "global_scale: true do_forward: false")
    still = build(idle, x.shape, s.shape)
    assert run(still, x, s)[1].tolist() == [0] and still.blobs[0].tolist() == [-1]
    check_onnx(idle, x, s)


def test_channel_scale_refuses() -> None:
    with refused("ChannelScale has a second top only with global_scale: true"):
        build(scale("", 'top: "y" top: "s"'), (2, 3), (2,))
    with refused("the bottoms must be (N, C, H, W) and (N, 1, H, W); got (2, 3, 4) and (2, 3)"):
        build(scale(""), (2, 3, 4), (2, 3))
    with refused("Cannot configure statistics as layer parameters.; got lr_mult 1, it must be 0"):
        build("param { decay_mult: 0 } " + scale("global_scale: true"), (2, 3), (2,))
    fixed = build("param { lr_mult: 0 } " + scale("global_scale: true"), (2, 3), (2,))
    assert fixed.param_specs()[0].lr_mult == 0


def add(fields: str, phase: str = "TRAIN", tops: str = 'top: "y"') -> str:
    return f'type: "LabelSpecificAdd" phase: {phase} {tops} label_specific_add_param {{ {fields} }}'


def added(x: Tensor, bias: float) -> Tensor:
    want = x.clone()
    for i, label in enumerate(LABELS.long().tolist()):
        if want[i, label] > -bias:
            want[i, label] += bias
    return want


BOTH = 'top: "y" top: "bias"'


def test_label_specific_add() -> None:
    for bias in (-0.35, 0.35, 2.0):
        assert_close(run(build(add(f"bias: {bias}"), (6, 5), (6,)), X, LABELS)[0], added(X, bias))
    check_contract(add("bias: -0.35", tops=BOTH), X, LABELS)
    assert_close(diffs(build(add("bias: 1"), (6, 5), (6,)), X, LABELS, top_diffs=[X])[0], X)
    fields = "bias_base: -0.2 bias_gamma: 0.5 bias_power: 2 bias_min: 0.1 bias_max: 2 iteration: 0"
    layer = build(add(fields, tops=BOTH), (6, 5), (6,))
    for count in range(4):
        bias = min(max(-0.2 + (1 + 0.5 * count) ** 2 - 1, 0.1), 2)
        top, got = run(layer, X, LABELS)
        assert_close(got, torch.tensor([bias]))
        assert_close(top, added(X, bias))
    test = build(add("bias: 1 transform_test: true", "TEST", BOTH), (6, 5), (6,))
    top, bias_top = run(test, X, LABELS)
    assert torch.equal(top, X) and bias_top.tolist() == [0]
    assert test.leftovers == ["label_specific_add_param.transform_test"]
    check_onnx(add("bias: 1", "TEST"), X, LABELS)
    check_onnx(add("bias: 1", "TEST", BOTH), X, LABELS)


def test_label_specific_add_refuses() -> None:
    layer = build(add("bias: 1"), (6, 5), (6,))
    with refused("label 5 is out of range: there are 5 classes"):
        run(layer, X, LABELS + 2)
    with refused("bottom[1] must hold one label for each item of bottom[0], (6, 5); got (5,)"):
        layer.checked_top_shapes([(6, 5), (5,)])
    assert build(add("bias_gamma: 1 iteration: 2"), (6, 5), (6,)).leftovers == [
        "label_specific_add_param.bias_gamma", "label_specific_add_param.iteration",
    ]  # fmt: skip
    assert build(add("bias: 1 bias_base: 2"), (6, 5), (6,)).leftovers == ["label_specific_add_param.bias"]


# -- TripletLoss, InnerDistance, InnerProduct's normalize --------------------------------------------------


def test_triplet_loss() -> None:
    a, p, n = normal(6, 5), normal(6, 5, seed=1), normal(6, 5, seed=2)
    text = 'type: "TripletLoss" triplet_loss_param { margin: 0.3 }'
    want, active = 0.0, 0
    for i in range(6):
        term = 0.3 + float((a[i] - p[i]).square().sum()) - float((a[i] - n[i]).square().sum())
        active += term > 0
        want += max(term, 0) / 12
    assert 0 < active < 6
    assert_close(run(build(text, *[(6, 5)] * 3), a, p, n)[0], torch.tensor(want))
    check_contract(text, a, p, n)
    check_contract(text, a.reshape(6, 5, 1, 1), p, n.reshape(6, 5, 1))
    check_gradient(text, a, p, n)
    layer = build('type: "TripletLoss"', *[(1, 1)] * 3)
    assert all(layer.allows_force_backward(i) for i in range(3)) and layer.default_loss_weight(0) == 1
    tiny = [torch.tensor([[0.0]]), torch.tensor([[0.0]]), torch.tensor([[1.0]])]  # a term of 0
    assert [float(diff) for diff in diffs(layer, *tiny) if diff is not None] == [0, 0, 0]
    with refused("three bottoms (N, C) or (N, C, 1, 1) are needed; got (6, 5), (6, 4) and (6, 5)"):
        build(text, (6, 5), (6, 4), (6, 5))
    with refused("three bottoms (N, C)"):
        build(text, (6, 5, 2, 1), (6, 5, 2, 1), (6, 5, 2, 1))


def distance(fields: str = "", tops: str = "") -> str:
    fields = f"num_output: 4 weight_filler {FILLED} {fields}"
    return f'type: "InnerDistance" {tops} inner_distance_param {{ {fields} }}'


def literal_distances(x: Tensor, w: Tensor, kind: str) -> Tensor:
    top = torch.zeros(len(x), len(w))
    for i in range(len(x)):
        for j in range(len(w)):
            terms = (x[i] - w[j]).abs()
            top[i, j] = float((terms if kind == "L1" else terms * terms).sum())
    return top


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_inner_distance(kind: str) -> None:
    fields = f'distance_type: "{kind}"'
    layer = build(distance(fields), (6, 5), seed=3)
    assert_close(run(layer, X)[0], literal_distances(X, layer.blobs[0].detach(), kind))
    for bottoms in ((X,), (normal(2, 3, 5),), (X, normal(4, 5, 1, seed=2))):
        check_contract(distance(fields), *bottoms)
        check_gradient(distance(fields), *bottoms)
        check_gradient(distance(f"{fields} axis: -1 transpose: true"), normal(2, 3, 5))
    for text, bottom in ((fields, X), (fields, normal(2, 3, 5)), (f"{fields} axis: 2", normal(2, 3, 5)),
                         (f"{fields} transpose: true normalize: true", X)):  # fmt: skip
        check_onnx(distance(text), bottom)
    net = """layer { name: "in" type: "Input" top: "x" top: "w"
                     input_param { shape { dim: [6, 5] } shape { dim: [4, 5] } } }"""
    assert Net(parse_net(net + f'layer {{ name: "d" bottom: "x" bottom: "w" top: "y" {distance(fields)} }}'))


def test_inner_distance_near_a_row_does_not_cancel() -> None:
    layer = build(distance(), (40, 5))
    with torch.no_grad():
        layer.blobs[0].copy_(1000 + normal(4, 5) / 64)
    x = 1000 + normal(40, 5, seed=1) / 64
    assert_close(run(layer, x)[0], literal_distances(x.double(), layer.blobs[0].detach().double(), "L2"))


@pytest.mark.parametrize("kind", ["L1", "L2"])
def test_inner_distance_moves_only_the_labels_row(kind: str) -> None:
    text = distance(f'distance_type: "{kind}" update_center_only: true').replace("num_output: 4", "")
    x, w, d = X.clone(), normal(4, 5, seed=1), normal(6, 4, seed=2)
    leaves = [x.clone().requires_grad_(), w.clone().requires_grad_()]
    run(build(text, (6, 5), (4, 5), (6,)), *leaves, LABELS)[0].backward(d)
    want_x, want_w = torch.zeros(6, 5), torch.zeros(4, 5)
    for i, label in enumerate(LABELS.long().tolist()):
        for j in range(4):
            slope = (x[i] - w[j]).sign() if kind == "L1" else 2 * (x[i] - w[j])
            want_x[i] += d[i, j] * slope
            if j == label:
                want_w[j] -= d[i, j] * slope
    assert_close(leaves[0].grad, want_x)
    assert_close(leaves[1].grad, want_w)


@pytest.mark.parametrize("transpose", ["", "transpose: true"])
@pytest.mark.parametrize("kind", ["InnerDistance", "InnerProduct"])
def test_rows_are_normalized_at_each_pass(kind: str, transpose: str) -> None:
    """In place; the gradient is that of the layer with the normalized weight. Rows are those in memory."""
    field = {"InnerDistance": "inner_distance_param", "InnerProduct": "inner_product_param"}[kind]
    text = f'type: "{kind}" {field} {{ num_output: 4 {transpose} weight_filler {FILLED} %s }}'
    layer, plain = build(text % "normalize: true", (6, 5)), build(text % "", (6, 5))
    with torch.no_grad():
        want = layer.blobs[0].clone().reshape(4, 5)
        for _ in range(2):
            want /= (want.square().sum(1, keepdim=True) + 1e-6).sqrt()
    run(layer, X)
    leaf, d = X.clone().requires_grad_(), normal(6, 4, seed=5)
    top = run(layer, leaf)[0]
    top.backward(d)
    assert_close(layer.blobs[0].reshape(4, 5), want)
    with torch.no_grad():
        plain.blobs[0].copy_(layer.blobs[0])
    other = X.clone().requires_grad_()
    plain_top = run(plain, other)[0]
    plain_top.backward(d)
    assert other.grad is not None and plain.blobs[0].grad is not None
    assert_close(top, plain_top.detach())
    assert_close(leaf.grad, other.grad)
    assert_close(layer.blobs[0].grad, plain.blobs[0].grad)
    check_onnx(text % "normalize: true", X)


def test_a_normalized_inner_product_is_not_folded() -> None:
    net = Net(parse_net(
        """layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [6, 5] } } }
        layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y"
                inner_product_param { num_output: 4 normalize: true weight_filler { type: "uniform" } } }
        layer { name: "s" type: "Scale" bottom: "y" top: "z" scale_param { filler { value: 3 } } }"""
    ))  # fmt: skip
    assert [step.layer.name for step in fold_batch_norm(net)] == ["in", "ip", "s"]


def test_inner_distance_refuses() -> None:
    def leftovers(layer: Layer) -> list[str]:
        return [name.partition(".")[2] for name in layer.leftovers]

    with refused("distance_type must be L1 or L2; got 'cos'"):
        build(distance('distance_type: "cos"'), (6, 5))
    with refused("num_output must be positive; got 0"):
        build('type: "InnerDistance"', (6, 5))
    with refused("update_center_only needs 3 bottoms: x, the weight, labels; got 2"):
        build(distance("update_center_only: true"), (6, 5), (6,))
    with refused("bottom[1] must be (J, 5), one value per input; got (4, 6)"):
        build(distance(), (6, 5), (4, 6))
    with refused("bottom[2] must hold one label for each of 6 items; got (5,)"):
        build(distance("update_center_only: true"), (6, 5), (4, 5), (5,))
    with refused("Input size incompatible with inner product parameters.; got 4 values"):
        build(distance(), (6, 5)).checked_top_shapes([(6, 4)])
    layer = build(distance("update_center_only: true"), (6, 5), (4, 5), (6,))
    assert leftovers(layer) == ["num_output", "weight_filler"] and not layer.allows_force_backward(2)
    with refused("label 4 is out of range: there are 4 classes"):
        run(layer, X, normal(4, 5), LABELS + 1)
    with refused("InnerDistance Layer cannot backpropagate to label inputs."):
        run(layer, X, normal(4, 5), LABELS.clone().requires_grad_())[0].sum().backward()


@pytest.mark.parametrize("top", ["z", "y"], ids=["", "in place"])
def test_a_deployed_net_needs_no_labels(top: str) -> None:
    """LabelSpecificAdd does nothing then; what depends on MarginInnerProduct is left out."""
    text = f"""
        layer {{ name: "data" type: "DummyData" top: "x" top: "l"
                dummy_data_param {{ shape {{ dim: [6, 5] }} shape {{ dim: 6 }} }} }}
        layer {{ name: "fc" type: "InnerProduct" bottom: "x" top: "y"
                inner_product_param {{ num_output: 4 weight_filler {FILLED} }} }}
        layer {{ name: "add" type: "LabelSpecificAdd" bottom: "y" bottom: "l" top: "{top}" }}
        layer {{ name: "s" type: "Scale" bottom: "{top}" top: "s" scale_param {{ filler {{ value: 30 }} }} }}
        layer {{ name: "m" bottom: "y" bottom: "l" {margin("DOUBLE").replace('"y"', '"m"')} }}
        layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "m" bottom: "l" top: "loss" }}"""
    net = Net(deploy_net(parse_net(text)))
    result = export_net(net)
    assert (result.inputs, result.outputs) == (["x"], ["s"])
    weight, bias = net.params["fc"]
    feeds = {"x": X}
    assert_close(net(feeds)["s"], 30 * (X @ weight.detach().t() + bias.detach()))


# -- training ----------------------------------------------------------------------------------------------

TRAINED = f"""
layer {{ name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param {{ shape {{ dim: [6, 5] }} shape {{ dim: 6 }}
        data_filler {{ type: "gaussian" }} data_filler {{ type: "constant" value: 1 }} }} }}
layer {{ name: "fc5" type: "InnerProduct" bottom: "data" top: "fc5"
        inner_product_param {{ num_output: 5 weight_filler {{ type: "xavier" }} }} }}
layer {{ name: "fc6" bottom: "fc5" bottom: "label"
        {margin("QUADRUPLE", "base: 20 gamma: 0.5 lambda_min: 2")} }}
layer {{ name: "add" type: "LabelSpecificAdd" bottom: "y" bottom: "label" top: "z"
        label_specific_add_param {{ bias_base: -0.1 bias_gamma: -0.2 bias_min: -9 }} }}
layer {{ name: "loss" type: "SoftmaxWithLoss" bottom: "z" bottom: "label" top: "loss" }}
layer {{ name: "center" bottom: "fc5" bottom: "label" top: "center" loss_weight: 0.1 {CENTERS} }}
layer {{ name: "quiet" type: "Silence" bottom: "lambda" }}
"""
SOLVER = """net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 random_seed: 1 display: 1
    snapshot: 3 snapshot_prefix: "s" max_iter: 8 test_iter: 2 test_interval: 2"""


def test_a_resumed_training_is_the_one_that_was_left_alone(
    here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The counts of passes go on: the losses depend on lambda and the bias, and weights are the same bits."""

    def losses() -> list[str]:
        log = capsys.readouterr().err.partition("Iteration 6, ")[2]
        return re.findall(r"net output .*", log)

    (here / "net.prototxt").write_text(TRAINED)
    (here / "solver.prototxt").write_text(SOLVER)
    assert main(["train", "solver.prototxt"]) == 0
    alone, weights = losses(), (here / "s_iter_8.caffemodel").read_bytes()
    (here / "s_iter_8.caffemodel").unlink()
    assert main(["train", "solver.prototxt", "--snapshot", "s_iter_3.solverstate"]) == 0
    assert losses() == alone and len(alone) > 6
    assert (here / "s_iter_8.caffemodel").read_bytes() == weights
