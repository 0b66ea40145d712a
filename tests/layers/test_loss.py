"""The layers of layers/loss against their formulas written out in loops, beyond the recorded cases."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from single_layer import build, check_contract, check_gradient, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.files.errors import LayerError, PrototxtError
from imae.layers.blob import blob_from_array
from imae.layers.labels import LabelReader, refuse_gradient
from imae.layers.layer import Layer
from imae.layers.loss.accuracy import Accuracy
from imae.layers.loss.loss_normalizer import normalization, normalizer
from imae.layers.loss.softmax_loss import SoftmaxWithLoss
from imae.net.executor import NetExecutor
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.prototxt import TEST, TRAIN
from imae.prototxt.caffe_pb2 import LossParameter
from imae.prototxt.text import parse_net

Array = NDArray[np.float64]

RTOL, ATOL, _ = tolerance("same arithmetic")
FLT_MIN = 1.17549435e-38
MODES = ["FULL", "VALID", "BATCH_SIZE", "NONE"]
LABEL_LOSSES = {
    "SoftmaxWithLoss": (5,),
    "SigmoidCrossEntropyLoss": (5, 3),
    "HingeLoss": (5,),
    "MultinomialLogisticLoss": (5,),
    "InfogainLoss": (5,),
}


def passes(layer: Layer, x: Tensor, *others: Tensor, top_diff: float = 1) -> tuple[float, Array]:
    """The loss, and the diff of the first bottom."""
    leaf = x.detach().clone().requires_grad_()
    top = run(layer, leaf, *others)[0]
    assert top.shape == () and top.dtype == x.dtype
    top.backward(torch.tensor(top_diff, dtype=x.dtype))
    assert leaf.grad is not None
    return float(top.detach()), leaf.grad.double().numpy()


def close(got: tuple[float, Array], loss: float, diff: Array) -> None:
    np.testing.assert_allclose(got[0], loss, RTOL, ATOL)
    np.testing.assert_allclose(got[1], diff, RTOL, ATOL * max(np.abs(diff).max(initial=0), 1e-30))


@pytest.mark.parametrize("shape", [(3, 4), (2, 3, 2, 2)])
@pytest.mark.parametrize("ignored", ["", "ignore_label: 1"])
@pytest.mark.parametrize("field", ["label_smoothing", "nvidia_label_smoothing"])
def test_label_smoothing(field: str, ignored: str, shape: tuple[int, ...]) -> None:
    """The gradients of Intel's and NVIDIA's forks, made step by step; none is recorded."""
    s, x = 0.25, normal(*shape, dtype=torch.float64)
    label = torch.arange(x.numel() // shape[1]).reshape(shape[0], *shape[2:]) % shape[1]
    text = f'type: "SoftmaxWithLoss" loss_param {{ {field}: {s} {ignored} }}'
    plain = f'type: "SoftmaxWithLoss" loss_param {{ {ignored} }}'
    prob, dim = torch.softmax(x, 1), shape[1] * math.prod(shape[2:])
    want, count = torch.zeros_like(x), 0
    for place in np.ndindex(*label.shape):
        y = int(label[place])
        if ignored and y == 1:
            continue
        count += 1
        for c in range(shape[1]):
            at = (place[0], c, *place[1:])
            if field == "label_smoothing":
                alpha, beta = 1 - s, s / dim
                want[at] = prob[at] * (alpha + (dim - 1) * beta) - beta
                want[at] += (beta - alpha) if c == y else 0
            else:
                want[at] = prob[at] - s / (dim - 1) - (1 - s if c == y else 0)
    shapes = tuple(x.shape), tuple(label.shape)
    loss, _ = passes(build(plain, *shapes).double(), x, label.double())
    close(passes(build(text, *shapes).double(), x, label.double()), loss, want.numpy() / count)


def test_label_smoothing_that_is_refused() -> None:
    for value in (-0.5, 1):
        with refused("label_smoothing must lie between 0 and 1 (1 left out); got"):
            build(f'type: "SoftmaxWithLoss" loss_param {{ label_smoothing: {value} }}', (2, 3), (2,))
    one = build('type: "SoftmaxWithLoss" loss_param { nvidia_label_smoothing: 0.5 }', (2, 1), (2,))
    with refused("label_smoothing needs two classes or more"):
        run(one, normal(2, 1), torch.zeros(2))


def divisor(mode: str, outer: int, inner: int, valid: int) -> float:
    return max(1, {"FULL": outer * inner, "VALID": valid, "BATCH_SIZE": outer, "NONE": 1}[mode])


# -- the normalizer ------------------------------------------------------------------------------------------


def test_normalization_is_the_given_one_else_the_old_flag_else_the_default() -> None:
    assert normalization(LossParameter()) == LossParameter.VALID
    assert normalization(LossParameter(), LossParameter.BATCH_SIZE) == LossParameter.BATCH_SIZE
    assert normalization(LossParameter(normalize=True), LossParameter.BATCH_SIZE) == LossParameter.VALID
    assert normalization(LossParameter(normalize=False)) == LossParameter.BATCH_SIZE
    both = LossParameter(normalize=False, normalization=LossParameter.FULL)
    assert normalization(both) == LossParameter.FULL


@pytest.mark.parametrize("mode", MODES)
def test_normalizer_is_never_below_one(mode: str) -> None:
    value = getattr(LossParameter, mode)
    for mask in (
        torch.ones(6, dtype=torch.bool),
        torch.tensor([True, False, False]),
        torch.zeros(4, dtype=torch.bool),
    ):
        assert float(normalizer(value, 2, 3, mask)) == divisor(mode, 2, 3, int(mask.sum()))
    assert float(normalizer(value, 2, 3, None)) == divisor(mode, 2, 3, 6)
    assert float(normalizer(value, 0, 3, None)) == 1


# -- SoftmaxWithLoss -----------------------------------------------------------------------------------------


def literal_softmax_loss(
    x: Array, label: Array, axis: int, mode: str, ignore: int | None, top_diff: float = 1
) -> tuple[float, Array]:
    """Loss and diff in loops over (outer, inner), as the definition says."""
    outer, inner = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :])
    x3, labels = x.reshape(outer, x.shape[axis], inner), label.reshape(outer, inner)
    loss, count, diff = 0.0, 0, np.zeros_like(x3)
    for i in range(outer):
        for j in range(inner):
            y = int(labels[i, j])
            if y == ignore:
                continue
            e = [math.exp(v - max(x3[i, :, j])) for v in x3[i, :, j]]
            prob = [v / sum(e) for v in e]
            loss -= math.log(max(prob[y], FLT_MIN))
            count += 1
            for k, p in enumerate(prob):
                diff[i, k, j] = p - (k == y)
    scale = divisor(mode, outer, inner, count)
    return loss / scale, (diff * top_diff / scale).reshape(x.shape)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ignore", [None, 1, 255, -1])
@pytest.mark.parametrize(
    "shape,axis,label_shape",
    [
        ((5, 3), 1, (5,)),
        ((5, 3), 1, (5, 1, 1, 1)),
        ((2, 3, 5, 7), 1, (2, 5, 7)),
        ((2, 3, 5, 7), -3, (2, 1, 5, 7)),
        ((2, 5, 7, 3), 3, (2, 5, 7)),
        ((2, 5, 3, 7), 2, (2, 35)),
    ],
)
def test_softmax_loss_is_the_formula(
    shape: tuple[int, ...],
    axis: int,
    label_shape: tuple[int, ...],
    ignore: int | None,
    mode: str,
    dtype: torch.dtype,
) -> None:
    x = normal(*shape, dtype=torch.float64) * 3
    label = torch.from_numpy(np.random.default_rng(1).integers(0, 3, label_shape).astype(np.float64))
    if ignore is not None:
        label.flatten()[::3] = ignore
    fields = f"normalization: {mode}" + (f" ignore_label: {ignore}" if ignore is not None else "")
    text = f'type: "SoftmaxWithLoss" softmax_param {{ axis: {axis} }} loss_param {{ {fields} }}'
    got = passes(build(text, shape, label_shape), x.to(dtype), label.to(dtype), top_diff=-0.7)
    close(got, *literal_softmax_loss(x.numpy(), label.numpy(), axis % len(shape), mode, ignore, -0.7))


@pytest.mark.parametrize(
    "fields,mode",
    [
        ("", "VALID"),
        ("normalize: true", "VALID"),
        ("normalize: false", "BATCH_SIZE"),
        ("normalize: false normalization: FULL", "FULL"),
    ],
)
def test_softmax_loss_honours_the_old_normalize(fields: str, mode: str) -> None:
    x, label = normal(2, 3, 4), torch.tensor([[0.0, 1, 2, 2], [2, 2, 0, 1]])
    text = f'type: "SoftmaxWithLoss" loss_param {{ ignore_label: 2 {fields} }}'
    got = passes(build(text, (2, 3, 4), (2, 4)), x, label)
    close(got, *literal_softmax_loss(x.double().numpy(), label.numpy(), 1, mode, 2))


@pytest.mark.parametrize("mode", MODES)
def test_softmax_loss_of_ignored_labels_alone_is_zero_whatever_the_scores_are(mode: str) -> None:
    text = f'type: "SoftmaxWithLoss" loss_param {{ ignore_label: 9 normalization: {mode} }}'
    x = torch.tensor([[1.0, 2], [math.nan, math.inf]])
    loss, diff = passes(build(text, (2, 2), (2,)), x, torch.tensor([9.0, 9]))
    assert loss == 0 and not diff.any()


def test_softmax_loss_ignores_nan_only_where_the_label_is_ignored() -> None:
    text = 'type: "SoftmaxWithLoss" loss_param { ignore_label: 9 }'
    x = torch.tensor([[math.nan, 0], [0, 0]])
    loss, diff = passes(build(text, (2, 2), (2,)), x, torch.tensor([9.0, 0]))
    assert loss == pytest.approx(math.log(2), rel=RTOL)
    assert diff.tolist() == [[0, 0], [-0.5, 0.5]]
    assert math.isnan(passes(build(text, (2, 2), (2,)), x, torch.tensor([0.0, 0]))[0])


def test_softmax_loss_raises_the_probability_to_flt_min_but_not_in_the_gradient() -> None:
    x = torch.tensor([[0.0, 1000, 0]])
    loss, diff = passes(build('type: "SoftmaxWithLoss"', (1, 3), (1,)), x, torch.tensor([0.0]))
    assert loss == pytest.approx(87.336544, rel=RTOL)
    assert diff.tolist() == [[-1, 1, 0]]


def test_labels_are_cut_towards_zero() -> None:
    x = normal(3, 4)
    for type_name in ("SoftmaxWithLoss", "HingeLoss"):
        layer = build(f'type: "{type_name}"', (3, 4), (3,))
        got = passes(layer, x, torch.tensor([1.9, -0.9, 3.5]))
        close(got, *passes(layer, x, torch.tensor([1.0, 0, 3])))


def test_softmax_loss_may_be_differentiated_twice_from_one_forward_pass() -> None:
    layer = build('type: "SoftmaxWithLoss" loss_param { ignore_label: 0 }', (3, 4), (3,))
    leaf = normal(3, 4).requires_grad_()
    (top,) = run(layer, leaf, torch.tensor([1.0, 0, 3]))
    first = torch.autograd.grad(top, leaf, retain_graph=True)[0].clone()
    assert torch.equal(torch.autograd.grad(top, leaf)[0], first)


def test_softmax_loss_contract_and_gradient() -> None:
    x, label = normal(2, 3, 5), torch.tensor([[0.0, 1, 2, 1, 0], [2, 2, 0, 1, 1]])
    text = 'type: "SoftmaxWithLoss" loss_param { ignore_label: 1 }'
    check_contract(text, x, label)
    check_gradient(text, x, label, constant=[1])


def test_softmax_loss_refuses() -> None:
    with refused("The data and label should have the same first dimension; got data (2, 3) and label (3,)"):
        build('type: "SoftmaxWithLoss"', (2, 3), (3,))
    with refused(
        "layer 'it' (SoftmaxWithLoss): Number of labels must match number of predictions; e.g., if softmax "
        "axis == 1 and prediction shape is (N, C, H, W), label count (number of labels) must be N*H*W, with "
        "integer values in {0, 1, ..., C-1}.; got predictions (2, 3, 4, 4), labels (2,), axis 1"
    ):
        build('type: "SoftmaxWithLoss"', (2, 3, 4, 4), (2,))
    for weights in ("", "loss_weight: 1", "loss_weight: 1 loss_weight: 0"):
        with refused("loss_weight must be unspecified or specified once per top blob."):
            build(f'type: "SoftmaxWithLoss" top: "loss" top: "prob" {weights}', (2, 3), (2,))
    with refused("SoftmaxWithLoss does not look at loss_param.lamda_p; remove it"):
        build('type: "SoftmaxWithLoss" loss_param { lamda_p: 2 }', (2, 3), (2,))
    layer = build('type: "SoftmaxWithLoss"', (2, 3, 4), (2, 4))
    with refused("Number of labels must match number of predictions"):
        layer.checked_top_shapes([(2, 3, 5), (2, 4)])


# -- labels in general ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [3, -1, -7, 2.0**31])
def test_a_label_out_of_range_names_layer_label_and_number_of_classes(label: float) -> None:
    x, labels = normal(2, 3), torch.tensor([0, label])
    message = (
        f"layer 'it' (%s): label {int(label)} is out of range: there are 3 classes, so labels are 0 to 2; "
        "mend the data, or the num_output of the classifier"
    )
    for type_name in ("SoftmaxWithLoss", "HingeLoss", "MultinomialLogisticLoss", "Accuracy"):
        with refused(message % type_name):
            run(build(f'type: "{type_name}"', (2, 3), (2,)), x, labels)
    with refused(message % "InfogainLoss"):
        run(build('type: "InfogainLoss"', (2, 3), (2,), (3, 3)), x, labels, torch.eye(3))


def test_a_label_out_of_range_says_which_label_would_be_ignored() -> None:
    layer = build('type: "SoftmaxWithLoss" loss_param { ignore_label: 255 }', (2, 3), (2,))
    with refused(
        "label 254 is out of range: there are 3 classes, so labels are 0 to 2 (ignore_label is 255);"
    ):
        run(layer, normal(2, 3), torch.tensor([255.0, 254]))


def test_on_a_device_the_first_wrong_label_is_remembered_until_it_is_asked_for() -> None:
    layer = build('type: "SoftmaxWithLoss"', (2, 3), (2,))
    assert isinstance(layer, SoftmaxWithLoss) and isinstance(layer.labels, LabelReader)
    layer.labels.check()
    layer.labels.first_wrong.fill_(7)
    layer.labels.classes = 3
    with refused("label 7 is out of range: there are 3 classes"):
        layer.labels.check()


@pytest.mark.parametrize("type_name", LABEL_LOSSES)
def test_a_gradient_for_the_labels_is_refused(type_name: str) -> None:
    layer_text = f'type: "{type_name}"'
    label = torch.zeros(LABEL_LOSSES[type_name])
    others = [torch.eye(3)] if type_name == "InfogainLoss" else []
    shapes = [(5, 3), label.shape, *(other.shape for other in others)]
    x = normal(5, 3).abs()
    message = (
        f"{type_name} Layer cannot backpropagate to label inputs.; set propagate_down to false for bottom"
    )
    top = run(build(layer_text, *shapes), x, label.clone().requires_grad_(), *others)[0]
    with refused(message):
        top.backward()
    flags = " propagate_down: true" * len(shapes)
    top = run(build(layer_text + flags, *shapes), x.requires_grad_(), label, *others)[0]
    with refused(message):
        top.backward()
    with torch.no_grad():  # nothing is asked for
        run(build(layer_text + flags, *shapes), x, label, *others)
    flags = " propagate_down: true" + " propagate_down: false" * len(shapes[1:])
    run(build(layer_text + flags, *shapes), x, label, *others)[0].backward()
    layer = build(layer_text, *shapes)
    assert [layer.allows_force_backward(index) for index in range(2)] == [True, False]


LEARNED_LABEL = """
    layer { name: "d" type: "DummyData" top: "x" dummy_data_param {
            shape { dim: 2 dim: 4 } data_filler { type: "gaussian" } } }
    layer { name: "ip" type: "InnerProduct" bottom: "x" top: "a"
            inner_product_param { num_output: 4 weight_filler { type: "xavier" } } }
    layer { name: "am" type: "ArgMax" bottom: "a" top: "am" argmax_param { axis: 1 } }
    layer { name: "l" type: "SoftmaxWithLoss" bottom: "SCORES" bottom: "am" top: "l" }
"""


@pytest.mark.parametrize("phase", [TRAIN, TEST])
@pytest.mark.parametrize("scores", ["a", "x"])
def test_a_label_from_layers_that_learn_is_refused_by_the_backward_pass(scores: str, phase: int) -> None:
    """Caffe: softmax_loss_layer.cpp, Backward_cpu. A gradient would go there, though ArgMax sends none on."""
    param = parse_net(LEARNED_LABEL.replace("SCORES", scores))
    param.state.phase = phase  # type: ignore[assignment]  # an int, checked by protobuf
    refusal = (
        "layer 'l' (SoftmaxWithLoss): SoftmaxWithLoss Layer cannot backpropagate to label inputs.; set "
        "propagate_down to false for bottom 'am'"
    )
    net = Net(param)
    loss = net.loss(net())
    with refused(refusal):
        loss.backward()
    stepwise = Stepwise(Net(param))
    assert stepwise.forward() > 0
    with refused(refusal):
        stepwise.backward()
    with refused(refusal):
        NetExecutor(Net(param), torch.device("cpu")).forward_backward()
    NetExecutor(Net(param), torch.device("cpu")).forward()
    param.layer[-1].propagate_down.extend([True, False])
    NetExecutor(Net(param), torch.device("cpu")).forward_backward()


def test_refuse_gradient_goes_by_propagate_down_where_it_is_given() -> None:
    layer = build('type: "EuclideanLoss" propagate_down: false propagate_down: true', (2,), (2,))
    refuse_gradient(layer, 0, torch.zeros(2, requires_grad=True), "no")
    assert layer.refusal is None
    refuse_gradient(layer, 1, torch.zeros(2), "no")
    with refused("no; set propagate_down to false for bottom 'bottom1'"):
        run(layer, torch.zeros(2), torch.zeros(2))[0].backward()
    run(layer, torch.zeros(2, requires_grad=True), torch.zeros(2))[0].backward()  # it was that pass's alone


@pytest.mark.parametrize(
    "type_name", ["EuclideanLoss", "HingeLoss", "MultinomialLogisticLoss", "ContrastiveLoss"]
)
def test_losses_without_loss_param_pass_over_it(type_name: str) -> None:
    shapes = [(2, 3), (2, 3), (2,)][: 3 if type_name == "ContrastiveLoss" else 2]
    shapes[-1] = (2,) if type_name != "EuclideanLoss" else (2, 3)
    layer = build(f'type: "{type_name}" loss_param {{ ignore_label: 1 }}', *shapes)
    assert layer.leftovers == ["loss_param"]


# -- EuclideanLoss -------------------------------------------------------------------------------------------


def test_euclidean_loss_of_bottoms_of_equal_counts() -> None:
    a, b = normal(2, 3, 4), normal(2, 12, seed=1)
    layer = build('type: "EuclideanLoss"', (2, 3, 4), (2, 12))
    difference = a.double().numpy() - b.double().numpy().reshape(2, 3, 4)
    close(passes(layer, a, b, top_diff=3), (difference**2).sum() / 4, 3 * difference / 2)
    first, second = diffs(layer, a, b)
    assert first is not None and second is not None
    assert torch.equal(second, -first.reshape(2, 12))
    check_contract('type: "EuclideanLoss"', a, b)
    check_gradient('type: "EuclideanLoss"', a, b)
    assert layer.allows_force_backward(1)
    with refused("Inputs must have the same dimension.; got (2, 3) and (2, 4)"):
        build('type: "EuclideanLoss"', (2, 3), (2, 4))


# -- SigmoidCrossEntropyLoss ---------------------------------------------------------------------------------


def literal_sigmoid_loss(x: Array, t: Array, mode: str, ignore: int | None) -> tuple[float, Array]:
    loss, count, diff = 0.0, 0, np.zeros_like(x)
    for place in np.ndindex(x.shape):
        if int(t[place]) == ignore:
            continue
        s = 1 / (1 + math.exp(-x[place]))
        loss -= float(t[place] * math.log(s) + (1 - t[place]) * math.log(1 - s))
        diff[place] = s - t[place]
        count += 1
    scale = divisor(mode, len(x), x[0].size, count)
    return loss / scale, diff / scale


@pytest.mark.parametrize("mode", ["", *MODES])
@pytest.mark.parametrize("ignore", [None, 1, 0, -1])
def test_sigmoid_loss_is_the_formula(mode: str, ignore: int | None) -> None:
    x = normal(3, 2, 4) * 2
    t = torch.from_numpy(np.random.default_rng(3).choice([0, 0.25, -0.5, 1, 1.5, -1], (3, 2, 4))).float()
    fields = (f"normalization: {mode} " if mode else "") + (
        f"ignore_label: {ignore}" if ignore is not None else ""
    )
    text = f'type: "SigmoidCrossEntropyLoss" loss_param {{ {fields} }}'
    got = passes(build(text, x.shape, t.shape), x, t)
    close(got, *literal_sigmoid_loss(x.double().numpy(), t.double().numpy(), mode or "BATCH_SIZE", ignore))
    check_contract(text, x, t)
    check_gradient(text, x, t, constant=[1])


def test_sigmoid_loss_at_the_ends_of_the_range() -> None:
    layer = build('type: "SigmoidCrossEntropyLoss"', (1, 5), (1, 5))
    x, t = torch.tensor([[-200.0, 200, 200, -200, 0]]), torch.tensor([[0.0, 1, 0, 1, 0]])
    close(passes(layer, x, t), 400 + math.log(2), np.array([[0, 0, 1, -1, 0.5]]))


def test_sigmoid_loss_of_ignored_targets_alone_is_zero() -> None:
    text = 'type: "SigmoidCrossEntropyLoss" loss_param { ignore_label: 7 normalization: VALID }'
    loss, diff = passes(build(text, (2, 2), (2, 2)), normal(2, 2) * math.nan, torch.full((2, 2), 7.5))
    assert loss == 0 and not diff.any()


def test_sigmoid_loss_refuses() -> None:
    with refused("SIGMOID_CROSS_ENTROPY_LOSS layer inputs must have the same count.; got (2, 3) and (2, 4)"):
        build('type: "SigmoidCrossEntropyLoss"', (2, 3), (2, 4))


# -- Accuracy ------------------------------------------------------------------------------------------------


def literal_accuracy(
    x: Array, label: Array, axis: int, top_k: int, ignore: int | None
) -> tuple[float, list[float]]:
    outer, inner, classes = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :]), x.shape[axis]
    x3, labels = x.reshape(outer, classes, inner), label.reshape(outer, inner)
    hits, places = [0] * classes, [0] * classes
    for i in range(outer):
        for j in range(inner):
            y = int(labels[i, j])
            if y == ignore:
                continue
            rivals = sum(1 for k in range(classes) if k != y and x3[i, k, j] >= x3[i, y, j])
            hits[y] += rivals < top_k
            places[y] += 1
    per_class = [h / n if n else 0.0 for h, n in zip(hits, places, strict=True)]
    return sum(hits) / max(sum(places), 1), per_class


@pytest.mark.parametrize("ignore", [None, 1, 255])
@pytest.mark.parametrize("top_k", [1, 2, 4])
@pytest.mark.parametrize(
    "shape,axis,label_shape",
    [
        ((30, 4), 1, (30,)),
        ((3, 4, 5, 2), 1, (3, 1, 5, 2)),
        ((3, 5, 2, 4), -1, (3, 5, 2)),
        ((4, 30), 0, (30,)),
    ],
)
def test_accuracy_counts_ties_against(
    shape: tuple[int, ...], axis: int, label_shape: tuple[int, ...], top_k: int, ignore: int | None
) -> None:
    draw = np.random.default_rng(5)
    x = torch.from_numpy(draw.integers(0, 4, shape).astype(np.float32))  # many ties
    label = torch.from_numpy(draw.integers(0, 3, label_shape).astype(np.float32))  # class 3 has no place
    if ignore is not None:
        label.flatten()[::4] = ignore
    fields = f"axis: {axis} top_k: {top_k}" + (f" ignore_label: {ignore}" if ignore is not None else "")
    text = f'type: "Accuracy" top: "acc" top: "per_class" accuracy_param {{ {fields} }}'
    accuracy, per_class = run(build(text, shape, label_shape), x, label)
    want = literal_accuracy(x.numpy(), label.numpy(), axis % len(shape), top_k, ignore)
    assert float(accuracy) == pytest.approx(want[0], rel=RTOL)
    np.testing.assert_allclose(per_class.numpy(), want[1], RTOL)
    check_contract(text, x, label)
    (alone,) = run(build(text.replace('top: "per_class"', ""), shape, label_shape), x, label)
    assert torch.equal(alone, accuracy)


def test_accuracy_without_a_place_that_counts_is_zero() -> None:
    text = 'type: "Accuracy" top: "a" top: "b" accuracy_param { ignore_label: 1 }'
    accuracy, per_class = run(build(text, (2, 3), (2,)), normal(2, 3), torch.ones(2))
    assert float(accuracy) == 0 and per_class.tolist() == [0, 0, 0]


def test_accuracy_of_nan_is_one() -> None:
    layer = build('type: "Accuracy"', (2, 3), (2,))
    assert float(run(layer, torch.full((2, 3), math.nan), torch.tensor([0.0, 2]))[0]) == 1


def test_accuracy_has_no_gradient_and_is_no_loss() -> None:
    layer = build('type: "Accuracy"', (2, 3), (2,))
    assert not run(layer, normal(2, 3).requires_grad_(), torch.zeros(2))[0].requires_grad
    assert layer.default_loss_weight(0) == 0
    assert not Accuracy.deployed


def test_accuracy_refuses() -> None:
    with refused("top_k must be less than or equal to the number of classes.; got 4 for 3 classes"):
        build('type: "Accuracy" accuracy_param { top_k: 4 }', (2, 3), (2,))
    with refused(
        "Number of labels must match number of predictions; e.g., if label axis == 1 and prediction shape"
    ):
        build('type: "Accuracy"', (2, 3, 4), (2,))
    with refused("Accuracy Layer produces at most 2 top blob(s) as output."):
        build('type: "Accuracy" top: "a" top: "b" top: "c"', (2, 3), (2,))


# -- HingeLoss -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm", ["L1", "L2"])
def test_hinge_loss_is_the_formula(norm: str) -> None:
    x, label = normal(5, 2, 2) * 2, torch.tensor([0.0, 3, 1, 2, 2])
    loss, diff, values = 0.0, np.zeros((5, 4)), x.double().numpy().reshape(5, 4)
    for i, y in enumerate(label.int().tolist()):
        for j in range(4):
            sign = -1 if j == y else 1
            margin = max(0.0, 1 + sign * values[i, j])
            loss += margin if norm == "L1" else margin**2
            diff[i, j] = sign * (float(margin > 0) if norm == "L1" else 2 * margin)
    text = f'type: "HingeLoss" hinge_loss_param {{ norm: {norm} }}'
    close(passes(build(text, x.shape, (5,)), x, label), loss / 5, diff.reshape(5, 2, 2) / 5)
    check_contract(text, x, label)
    check_gradient(text, x, label, constant=[1])


def test_hinge_loss_has_gradient_zero_where_the_margin_is_just_kept() -> None:
    layer = build('type: "HingeLoss"', (1, 3), (1, 1, 1, 1))
    close(passes(layer, torch.tensor([[1.0, -1, 0]]), torch.zeros(1, 1, 1, 1)), 1, np.array([[0, 0, 1.0]]))


def test_hinge_loss_refuses_more_than_one_label_an_item() -> None:
    with refused("there must be one label for each item; got scores (2, 3, 4), labels (2, 4)"):
        build('type: "HingeLoss"', (2, 3, 4), (2, 4))


# -- InfogainLoss --------------------------------------------------------------------------------------------


def literal_infogain(
    x: Array, label: Array, matrix: Array, axis: int, mode: str, ignore: int | None
) -> tuple[float, Array]:
    outer, inner, classes = math.prod(x.shape[:axis]), math.prod(x.shape[axis + 1 :]), x.shape[axis]
    x3, labels = x.reshape(outer, classes, inner), label.reshape(outer, inner)
    loss, count, diff = 0.0, 0, np.zeros_like(x3)
    for i in range(outer):
        for j in range(inner):
            y = int(labels[i, j])
            if y == ignore:
                continue
            e = [math.exp(v - max(x3[i, :, j])) for v in x3[i, :, j]]
            for k in range(classes):
                prob = e[k] / sum(e)
                loss -= matrix[y, k] * math.log(max(prob, 1e-20))
                diff[i, k, j] = prob * sum(matrix[y]) - matrix[y, k]
            count += 1
    scale = divisor(mode, outer, inner, count)
    return loss / scale, diff.reshape(x.shape) / scale


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("ignore", [None, 1])
@pytest.mark.parametrize("shape,axis", [((5, 3), 1), ((2, 3, 4), 1), ((2, 4, 3), -1)])
def test_infogain_loss_is_the_formula(
    shape: tuple[int, ...], axis: int, ignore: int | None, mode: str
) -> None:
    x, matrix = normal(*shape) * 2, normal(3, 3, seed=4).abs()
    places = [size for index, size in enumerate(shape) if index != axis % len(shape)]
    label = torch.from_numpy(np.random.default_rng(2).integers(0, 3, places).astype(np.float32))
    fields = f"normalization: {mode}" + (f" ignore_label: {ignore}" if ignore is not None else "")
    text = f'type: "InfogainLoss" infogain_loss_param {{ axis: {axis} }} loss_param {{ {fields} }}'
    got = passes(build(text, shape, label.shape, (1, 1, 3, 3)), x, label, matrix.reshape(1, 1, 3, 3))
    scores, labels, h = (tensor.double().numpy() for tensor in (x, label, matrix))
    close(got, *literal_infogain(scores, labels, h, axis % len(shape), mode, ignore))
    check_contract(text, x, label, matrix)
    check_gradient(text, x, label, matrix, constant=[1, 2])


def test_infogain_loss_reads_its_matrix_from_a_file_and_gives_its_softmax(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    matrix = normal(3, 3).abs()
    Path("H.binaryproto").write_bytes(blob_from_array(matrix.numpy()).SerializeToString())
    x, label = normal(5, 3), torch.tensor([0.0, 1, 2, 2, 1])
    given = build('type: "InfogainLoss"', (5, 3), (5,), (3, 3))
    source = 'type: "InfogainLoss" infogain_loss_param { source: "H.binaryproto" }'
    assert passes(build(source, (5, 3), (5,)), x, label)[0] == passes(given, x, label, matrix)[0]
    two = build(source + ' top: "loss" top: "prob" loss_weight: 1 loss_weight: 0', (5, 3), (5,))
    leaf = x.clone().requires_grad_()
    loss, prob = run(two, leaf, label)
    assert two.checked_top_shapes([(5, 3), (5,)]) == [(), (5, 3)]
    assert torch.equal(prob, torch.softmax(x, 1)) and not prob.requires_grad
    loss.backward()
    assert leaf.grad is not None
    np.testing.assert_allclose(leaf.grad.numpy(), passes(given, x, label, matrix)[1], RTOL, ATOL)
    with refused("loss_weight must be unspecified or specified once per top blob."):
        build(source + ' top: "loss" top: "prob"', (5, 3), (5,))
    with refused("H must be 4x4; got shape (3, 3)"):
        build(source, (5, 4), (5,))


def test_infogain_loss_raises_the_probability_to_its_own_threshold() -> None:
    layer = build('type: "InfogainLoss"', (1, 2), (1,), (2, 2))
    loss, diff = passes(layer, torch.tensor([[0.0, 1000]]), torch.zeros(1), torch.eye(2))
    assert loss == pytest.approx(-math.log(1e-20), rel=RTOL)
    assert diff.tolist() == [[-1, 1]]


def test_infogain_loss_refuses() -> None:
    with refused("Infogain matrix source must be specified."):
        build('type: "InfogainLoss"', (5, 3), (5,))
    layer = build('type: "InfogainLoss" infogain_loss_param { source: "no_such_file" }', (5, 3), (5,), (3, 3))
    assert layer.leftovers == ["infogain_loss_param.source"]  # the bottom counts
    with pytest.raises(PrototxtError, match="no_such_file: no such file"):
        build('type: "InfogainLoss" infogain_loss_param { source: "no_such_file" }', (5, 3), (5,))
    with refused('normalize is deprecated. use "normalization"'):
        build('type: "InfogainLoss" loss_param { normalize: true }', (5, 3), (5,), (3, 3))
    layer = build('type: "InfogainLoss"', (5, 3), (5,), (3, 3))
    top = run(layer, normal(5, 3), torch.zeros(5), torch.eye(3).requires_grad_())[0]
    with refused("InfogainLoss Layer cannot backpropagate to infogain inputs."):
        top.backward()
    with refused("if infogain axis == 1 and prediction shape"):
        build('type: "InfogainLoss"', (5, 3, 2), (5,), (3, 3))


# -- MultinomialLogisticLoss, ContrastiveLoss ----------------------------------------------------------------


@pytest.mark.parametrize("label_shape", [(4,), (4, 1, 1, 1)])
def test_multinomial_loss_is_the_formula(label_shape: tuple[int, ...]) -> None:
    prob, label = torch.softmax(normal(4, 3), 1), torch.tensor([0.0, 2, 1, 1]).reshape(label_shape)
    p = prob.double().numpy()[range(4), [0, 2, 1, 1]]
    diff = np.zeros((4, 3))
    diff[range(4), [0, 2, 1, 1]] = -1 / (4 * p)
    text = 'type: "MultinomialLogisticLoss"'
    close(passes(build(text, (4, 3), label_shape), prob, label), -np.log(p).mean(), diff)
    check_contract(text, prob, label)
    check_gradient(text, prob, label, constant=[1])


def test_multinomial_loss_divides_by_its_threshold_in_the_gradient_too() -> None:
    layer = build('type: "MultinomialLogisticLoss"', (1, 2), (1,))
    loss, diff = passes(layer, torch.tensor([[0.0, 1]]), torch.zeros(1))
    assert loss == pytest.approx(-math.log(1e-20), rel=RTOL)
    np.testing.assert_allclose(diff, [[-1e20, 0]], RTOL)
    with refused("labels must be (N) or (N, 1, 1, 1); got (2, 3) for probabilities (2, 3)"):
        build('type: "MultinomialLogisticLoss"', (2, 3), (2, 3))


@pytest.mark.parametrize("legacy", [False, True])
def test_contrastive_loss_is_the_formula(legacy: bool) -> None:
    a, b = normal(6, 3), normal(6, 3, seed=1)
    similar = torch.tensor([1.0, 0, -2, 0.9, 0, -0.5])  # cut to integers: only the first and the third are
    fields = f"margin: 1.25 legacy_version: {str(legacy).lower()}"
    text = f'type: "ContrastiveLoss" contrastive_loss_param {{ {fields} }}'
    loss, diff = 0.0, np.zeros((6, 3))
    for i, (x, y) in enumerate(zip(a.double().numpy(), b.double().numpy(), strict=True)):
        d = math.sqrt(((x - y) ** 2).sum())
        if i in (0, 2):
            loss += d * d
            diff[i] = x - y
        elif legacy:
            loss += max(1.25 - d * d, 0)
            diff[i] = -(x - y) if d * d < 1.25 else 0
        else:
            loss += max(1.25 - d, 0) ** 2
            diff[i] = -max(1.25 - d, 0) / (d + 1e-4) * (x - y)
    layer = build(text, (6, 3), (6, 3), (6,))
    assert 0 < np.count_nonzero(diff.any(1)) < 6
    close(passes(layer, a, b, similar), loss / 12, diff / 6)
    first, second, third = diffs(build(text, (6, 3), (6, 3), (6,)), a, b, similar)
    assert first is not None and second is not None and third is None
    assert torch.equal(first, -second)
    check_contract(text, a.reshape(6, 3, 1, 1), b, similar.reshape(6, 1, 1, 1))
    assert [layer.allows_force_backward(index) for index in range(3)] == [True, True, False]


def test_contrastive_loss_of_equal_items_that_should_differ_is_finite() -> None:
    layer = build('type: "ContrastiveLoss"', (1, 3), (1, 3), (1,))
    close(passes(layer, torch.ones(1, 3), torch.ones(1, 3), torch.zeros(1)), 0.5, np.zeros((1, 3)))


@pytest.mark.parametrize(
    "shapes",
    [[(2, 3), (2, 4), (2,)], [(2, 3, 2), (2, 3, 2), (2,)], [(2, 3), (2, 3), (2, 2)], [(2, 3), (2, 3), (3,)]],
)
def test_contrastive_loss_refuses_other_shapes(shapes: list[tuple[int, ...]]) -> None:
    with pytest.raises(
        LayerError, match=r"pairs \(N, C\), \(N, C\) and \(N\) are needed|same first dimension"
    ):
        build('type: "ContrastiveLoss"', *shapes)
