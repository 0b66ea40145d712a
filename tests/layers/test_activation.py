"""The activation layers beyond the recorded cases: formulas, kinks, Scale and Bias, ONNX."""

from __future__ import annotations

from collections.abc import Callable
from math import inf, log, nan

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
    overwritten,
    refused,
    run,
)
from tolerances import tolerance
from torch import Tensor

from imae.layers.layer import Shape
from imae.net.net import Net
from imae.prototxt.text import parse_net

Formula = Callable[[Tensor], Tensor]

# type and fields, formula, whether the bottom must be positive
NEURONS: dict[str, tuple[Formula, bool]] = {
    'type: "AbsVal"': (torch.abs, False),
    'type: "BNLL"': (lambda x: torch.log(1 + torch.exp(x)), False),
    'type: "Clip" clip_param { min: -0.5 max: 0.75 }': (lambda x: x.clamp(-0.5, 0.75), False),
    'type: "ELU"': (lambda x: torch.where(x > 0, x, torch.exp(x) - 1), False),
    'type: "ELU" elu_param { alpha: 0.25 }': (
        lambda x: torch.where(x > 0, x, 0.25 * (torch.exp(x) - 1)), False
    ),
    'type: "Exp"': (torch.exp, False),
    'type: "Exp" exp_param { base: 2 scale: 0.5 shift: -1 }': (lambda x: 2 ** (0.5 * x - 1), False),
    'type: "Exp" exp_param { shift: 1 }': (lambda x: torch.exp(x + 1), False),
    'type: "Exp" exp_param { base: 1 }': (torch.ones_like, False),
    'type: "Log"': (torch.log, True),
    'type: "Log" log_param { base: 10 scale: 2 shift: 0.5 }': (lambda x: torch.log10(2 * x + 0.5), True),
    'type: "Power"': (lambda x: x, False),
    'type: "Power" power_param { scale: 0.5 shift: -2 }': (lambda x: 0.5 * x - 2, False),
    'type: "Power" power_param { power: 2 scale: 0.5 shift: 1 }': (lambda x: (0.5 * x + 1) ** 2, False),
    'type: "Power" power_param { power: 3 }': (lambda x: x**3, False),
    'type: "Power" power_param { power: -0.75 scale: 2 shift: 1 }': (lambda x: (2 * x + 1) ** -0.75, True),
    'type: "Power" power_param { power: 0.5 }': (torch.sqrt, True),
    'type: "ReLU"': (lambda x: x.clamp(min=0), False),
    'type: "ReLU" relu_param { negative_slope: 0.25 engine: CUDNN }': (
        lambda x: torch.where(x > 0, x, x / 4), False
    ),
    'type: "Sigmoid" sigmoid_param { engine: CAFFE }': (lambda x: 1 / (1 + torch.exp(-x)), False),
    'type: "Swish"': (lambda x: x / (1 + torch.exp(-x)), False),
    'type: "Swish" swish_param { beta: 1.5 }': (lambda x: x / (1 + torch.exp(-1.5 * x)), False),
    'type: "TanH" tanh_param { engine: CUDNN }': (
        lambda x: (torch.exp(2 * x) - 1) / (torch.exp(2 * x) + 1), False
    ),
    'type: "PReLU"': (lambda x: torch.where(x > 0, x, x / 4), False),
    'type: "PReLU" prelu_param { channel_shared: true filler { value: 0.5 } }': (
        lambda x: torch.where(x > 0, x, x / 2), False
    ),
}  # fmt: skip


def assert_close(
    got: Tensor | None, want: Tensor, what: str = "same arithmetic", dtype: str = "float32"
) -> None:
    rtol, atol, _ = tolerance(what, dtype)
    assert got is not None
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)


def values(positive: bool, dtype: torch.dtype = torch.float32) -> Tensor:
    """(2, 3, 5), none of them near a kink."""
    x = normal(2, 3, 5, dtype=dtype)
    x = x + torch.where(x >= 0, 0.1, -0.1)
    x = torch.where((x + 0.5).abs() < 0.05, -0.7, torch.where((x - 0.75).abs() < 0.05, 0.9, x))
    return x.abs() if positive else x


@pytest.mark.parametrize("text", NEURONS)
def test_neuron_is_its_formula(text: str) -> None:
    formula, positive = NEURONS[text]
    x = values(positive, torch.float64)
    layer = build(text, (2, 3, 5)).double()
    top = run(layer, x)[0].detach()
    assert_close(top, formula(x), "formula", "float64")
    assert top.data_ptr() != x.data_ptr()
    check_contract(text, x.float())
    check_onnx(text, x.float(), opsets=(13, 22))


@pytest.mark.parametrize("fields", ["scale: 0", "scale: 0 shift: 2 power: 3", "power: 0 shift: 1"])
def test_constant_power_in_onnx(fields: str) -> None:
    """Whatever the bottom holds."""
    x = torch.tensor([[1.0, -2, torch.inf], [torch.nan, 0, -torch.inf]])
    check_onnx(f'type: "Power" power_param {{ {fields} }}', x, opsets=(13, 22))


@pytest.mark.parametrize("text", NEURONS)
def test_neuron_gradient(text: str) -> None:
    check_gradient(text, values(NEURONS[text][1]))


@pytest.mark.parametrize(
    ("text", "points", "slopes"),
    [
        ('type: "ReLU"', [-1.0, 0, 1], [0.0, 0, 1]),
        ('type: "ReLU" relu_param { negative_slope: 0.25 }', [-1.0, 0, 1], [0.25, 0.25, 1]),
        ('type: "AbsVal"', [-1.0, 0, 1], [-1.0, 0, 1]),
        ('type: "Clip" clip_param { min: -1 max: 2 }', [-1.5, -1, 0, 2, 2.5], [0.0, 1, 1, 1, 0]),
        ('type: "ELU" elu_param { alpha: 0.25 }', [0.0, 1], [0.25, 1]),
        ('type: "PReLU"', [-1.0, 0, 1], [0.25, 0.25, 1]),
        ('type: "BNLL"', [-200.0, 0, 60, 200], [0, 0.5, 1, 1]),
        ('type: "Power" power_param { power: 3 }', [-1.0, 0, 2], [3.0, 0, 12]),
        ('type: "Power" power_param { scale: 0 shift: 2 }', [1.0], [0.0]),
        ('type: "Sigmoid"', [-200.0, 0, 200], [0, 0.25, 0]),
    ],
)
def test_gradient_at_kinks_and_far_out(text: str, points: list[float], slopes: list[float]) -> None:
    x = torch.tensor(points).reshape(1, 1, -1)
    layer = build(text, tuple(x.shape))
    leaf = x.clone().requires_grad_()
    (top,) = run(layer, leaf)
    if top.requires_grad:
        top.backward(torch.ones_like(top))
    got = torch.zeros_like(x) if leaf.grad is None else leaf.grad
    assert_close(got, torch.tensor(slopes).reshape(x.shape))


# type and fields, whether in place, Caffe's slope from the bottom and what lies in the top's memory
OVERWRITTEN: list[tuple[str, bool, Callable[[Tensor, Tensor], Tensor]]] = [
    ('type: "ReLU"', True, lambda x, y: (y > 0).float()),
    ('type: "ReLU"', False, lambda x, y: (x > 0).float()),
    ('type: "ReLU" relu_param { negative_slope: 0.25 }', True, lambda x, y: torch.where(y > 0, 1.0, 0.25)),
    ('type: "ELU" elu_param { alpha: 0.5 }', True, lambda x, y: torch.where(y > 0, 1.0, 0.5 + y)),
    ('type: "ELU" elu_param { alpha: 0.5 }', False, lambda x, y: torch.where(x > 0, 1.0, 0.5 + y)),
    ('type: "Exp" exp_param { scale: 2 shift: 1 }', False, lambda x, y: 2 * y),
    ('type: "Sigmoid"', True, lambda x, y: y * (1 - y)),
    ('type: "TanH"', False, lambda x, y: 1 - y * y),
    ('type: "Swish" swish_param { beta: 2 }', False,
     lambda x, y: 2 * y + torch.sigmoid(2 * x) * (1 - 2 * y)),
    ('type: "Clip" clip_param { min: -1 max: 0.5 }', True, lambda x, y: ((y >= -1) & (y <= 0.5)).float()),
    ('type: "BNLL"', True, lambda x, y: torch.sigmoid(y)),
    ('type: "BNLL"', False, lambda x, y: torch.sigmoid(x)),
    ('type: "Power" power_param { power: 3 shift: 0.5 }', False, lambda x, y: 3 * y / (x + 0.5)),
    ('type: "Scale" scale_param { filler { value: 3 } }', True, lambda x, y: torch.full_like(x, 3)),
    ('type: "PReLU"', True, lambda x, y: torch.where(x > 0, 1.0, 0.25)),
]  # fmt: skip


@pytest.mark.parametrize(("text", "in_place", "slope"), OVERWRITTEN)
@pytest.mark.parametrize("stepwise", [True, False])
def test_gradient_reads_the_memory_that_a_later_layer_has_overwritten(
    text: str, in_place: bool, slope: Callable[[Tensor, Tensor], Tensor], stepwise: bool
) -> None:
    x, top_diff = normal(4, 3, 5), normal(4, 3, 5, seed=1)
    got, memory = overwritten(text, in_place, stepwise, x, top_diff)
    assert_close(got, top_diff * slope(x, memory), "golden")


# Where Caffe, in place, overwrites the top's diff before it has used it: the derivative.
SPOILT: list[tuple[str, Callable[[Tensor], Tensor]]] = [
    ('type: "Log" log_param { scale: 2 shift: 30 }', lambda x: 2 / (2 * x + 30)),
    ('type: "Log" log_param { base: 10 shift: 9 }', lambda x: 1 / (log(10) * (x + 9))),
    ('type: "Power" power_param { power: 2 shift: 0.5 }', lambda x: 2 * (x + 0.5)),
    ('type: "Power" power_param { power: 3 scale: 2 }', lambda x: 6 * (2 * x) ** 2),
    ('type: "Power" power_param { power: 0.5 shift: 9 }', lambda x: 0.5 * (x + 9) ** -0.5),
    ('type: "Power" power_param { scale: 0.25 }', lambda x: torch.full_like(x, 0.25)),
]


@pytest.mark.parametrize(("text", "slope"), SPOILT)
@pytest.mark.parametrize("stepwise", [True, False])
def test_where_caffe_destroys_its_gradient_in_place_it_is_the_derivative(
    text: str, slope: Callable[[Tensor], Tensor], stepwise: bool, caplog: pytest.LogCaptureFixture
) -> None:
    x, top_diff = normal(4, 3, 5), normal(4, 3, 5, seed=1)
    got, _ = overwritten(text, True, stepwise, x, top_diff)
    assert_close(got, top_diff * slope(x), "golden")
    kind = text.split('"')[1]
    assert [record.getMessage() for record in caplog.records if record.levelname == "WARNING"] == [
        f"layer 'it' ({kind}), 'later' (Power): in place, Caffe overwrites what it still needs; here values "
        "and gradients are as if the top had a name of its own"
    ]


@pytest.mark.parametrize("text", ['type: "Exp"', 'type: "Power" power_param { power: 0 }', 'type: "ReLU"'])
def test_in_place_layers_that_caffe_runs_well_are_not_named(
    text: str, caplog: pytest.LogCaptureFixture
) -> None:
    data = 'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 } } }'
    Net(parse_net(f'force_backward: true {data} layer {{ name: "it" {text} bottom: "x" top: "x" }}'))
    text = 'layer { name: "it" type: "Log" bottom: "x" top: "TOP" }'
    Net(parse_net(f"force_backward: true {data} {text.replace('TOP', 'y')}"))
    Net(parse_net(f"{data} {text.replace('TOP', 'x')}"))  # nobody asks for its gradient
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


def test_prelu_slope_gets_no_gradient_at_zero() -> None:
    layer = build('type: "PReLU"', (2, 3))
    run(layer, torch.tensor([[0.0, -2, 1], [0, 3, -4]]))[0].sum().backward()
    assert layer.blob_shapes == [(3,)] and layer.blobs[0].grad is not None
    assert layer.blobs[0].grad.tolist() == [0, -2, -4]
    shared = build('type: "PReLU" prelu_param { channel_shared: true }', (2, 3))
    assert shared.blob_shapes == [()] and float(shared.blob(0).detach()) == 0.25
    check_onnx('type: "PReLU" prelu_param { filler { type: "uniform" } }', normal(2, 3, 4, 5))
    check_onnx('type: "PReLU"', normal(2, 3))


def test_far_out_values() -> None:
    x = torch.tensor([-200.0, -60, 60, 200])
    assert_close(run(build('type: "BNLL"', (4,)), x)[0], torch.tensor([0.0, 0, 60, 200]))
    assert_close(run(build('type: "TanH"', (4,)), x)[0], torch.tensor([-1.0, -1, 1, 1]))
    assert_close(run(build('type: "Sigmoid"', (4,)), x)[0], torch.tensor([0.0, 0, 1, 1]))


@pytest.mark.parametrize(
    ("fields", "value"),
    [
        ("scale: 0 shift: 3 power: 2", 9),
        ("power: 0", 1),
        ("power: 0 scale: 0", 1),
        ("scale: 0 power: -1", inf),
    ],
)
def test_power_that_does_not_look_at_its_bottom(fields: str, value: float) -> None:
    x = torch.tensor([1.0, -1, 0, nan, inf])
    (top,) = run(build(f'type: "Power" power_param {{ {fields} }}', (5,)), x)
    assert top.tolist() == [value] * 5


def test_clip_with_crossed_limits_gives_min() -> None:
    text, x = 'type: "Clip" clip_param { min: 2 max: -1 }', torch.tensor([[-3.0, 0, 5]])
    layer = build(text, (1, 3))
    assert run(layer, x)[0].tolist() == [[2, 2, 2]]
    (diff,) = diffs(layer, x)
    assert diff is not None and diff.tolist() == [[0, 0, 0]]
    check_onnx(text, x)


def test_threshold_is_strictly_greater() -> None:
    text, x = 'type: "Threshold" threshold_param { threshold: 0.5 }', torch.tensor([[0.0, 0.5, 0.75, -1]])
    assert run(build(text, (1, 4)), x)[0].tolist() == [[0, 0, 1, 0]]
    check_contract(text, normal(2, 3, 5))
    check_onnx(text, x)
    assert not run(build(text, (1, 4)), x.requires_grad_())[0].requires_grad


BASE = "base must be strictly positive and finite, or -1 for e.;"


@pytest.mark.parametrize(
    ("text", "shape", "message"),
    [
        ('type: "Exp" exp_param { base: 0 }', (2,), f"{BASE} got 0"),
        ('type: "Exp" exp_param { base: -2 }', (2,), f"{BASE} got -2"),
        ('type: "Log" log_param { base: inf }', (2,), f"{BASE} got inf"),
        ('type: "Log" log_param { base: nan }', (2,), f"{BASE} got nan"),
        ('type: "Log" log_param { base: 1 }', (2,),
         "Inf result: 1/log(base) = 1/log(1) = inf; base must not be 1"),
        ('type: "PReLU"', (2,), "Number of axes of bottom blob must be >=2.; got (2,)"),
        ('type: "PReLU"', (1, 2, 3, 4, 5), "the bottom must have at most 4 axes; got (1, 2, 3, 4, 5)"),
        ('type: "AbsVal" bottom: "x" top: "x"', (2,),
         "AbsVal Layer does not allow in-place computation; give the top another name"),
    ],
)  # fmt: skip
def test_neurons_refuse(text: str, shape: Shape, message: str) -> None:
    with refused(message):
        build(text, shape)


def test_prelu_refuses_another_number_of_channels() -> None:
    layer = build('type: "PReLU"', (2, 3, 4))
    with refused("bottom (2, 4, 3) must have 3 channels on axis 1"):
        layer.checked_top_shapes([(2, 4, 3)])
    shared = build('type: "PReLU" prelu_param { channel_shared: true }', (2, 3, 4))
    assert shared.checked_top_shapes([(2, 4, 3)]) == [(2, 4, 3)]


# -- Scale and Bias ----------------------------------------------------------------------------------------

UNIFORM = '{ type: "uniform" min: -2 max: 2 }'
PLACES = [
    # fields, the operand's place in (2, 3, 4, 5)
    ("", (1, 2)),
    ("axis: 1 num_axes: 2", (1, 3)),
    ("axis: 1 num_axes: -1", (1, 4)),
    ("axis: 0 num_axes: -1", (0, 4)),
    ("axis: 0", (0, 1)),
    ("axis: -1", (3, 4)),
    ("axis: -2 num_axes: 1", (2, 3)),
    ("num_axes: 0", (0, 0)),
]


def scale(fields: str = "", two_bottoms: bool = False) -> str:
    fillers = "" if two_bottoms else f"filler {UNIFORM}"
    return f'type: "Scale" scale_param {{ {fillers} bias_filler {UNIFORM} {fields} }}'


def bias(fields: str = "") -> str:
    return f'type: "Bias" bias_param {{ filler {UNIFORM} {fields} }}'


def spread(operand: Tensor, place: tuple[int, int]) -> Tensor:
    """The operand as it stands against (2, 3, 4, 5)."""
    shape = [size if place[0] <= i < place[1] else 1 for i, size in enumerate((2, 3, 4, 5))]
    return operand.detach().reshape(shape)


@pytest.mark.parametrize(("fields", "place"), PLACES)
def test_scale_and_bias_along_their_axes(fields: str, place: tuple[int, int]) -> None:
    x, shape = normal(2, 3, 4, 5), (2, 3, 4, 5)[place[0] : place[1]]
    layer = build(scale(fields), (2, 3, 4, 5))
    assert layer.blob_shapes == [shape]
    assert_close(run(layer, x)[0].detach(), x * spread(layer.blob(0), place))
    layer = build(scale(fields + " bias_term: true"), (2, 3, 4, 5))
    assert layer.blob_shapes == [shape, shape]
    factor, offset = (spread(layer.blob(i), place) for i in (0, 1))
    assert_close(run(layer, x)[0].detach(), x * factor + offset)
    layer = build(bias(fields), (2, 3, 4, 5))
    assert layer.blob_shapes == [shape]
    assert_close(run(layer, x)[0].detach(), x + spread(layer.blob(0), place))


@pytest.mark.parametrize(("fields", "place"), PLACES)
def test_scale_and_bias_by_a_bottom(fields: str, place: tuple[int, int]) -> None:
    """num_axes does not count: the operand has the axes that it has."""
    x, operand = normal(2, 3, 4, 5), normal(*(2, 3, 4, 5)[place[0] : place[1]], seed=1)
    wide = spread(operand, place)
    shapes = tuple(x.shape), tuple(operand.shape)
    assert_close(run(build(scale(fields, True), *shapes), x, operand)[0], x * wide)
    layer = build(scale(fields + " bias_term: true", True), *shapes)
    assert layer.blob_shapes == [tuple(operand.shape)]
    assert_close(run(layer, x, operand)[0].detach(), x * wide + spread(layer.blob(0), place))
    assert_close(run(build(bias(fields), *shapes), x, operand)[0], x + wide)
    top_diff = normal(2, 3, 4, 5, seed=2)
    x_diff, operand_diff = diffs(build(scale(fields, True), *shapes), x, operand, top_diffs=[top_diff])
    others = [i for i in range(4) if not place[0] <= i < place[1]]
    assert_close(x_diff, top_diff * wide)
    assert_close(operand_diff, (top_diff * x).sum(others) if others else top_diff * x)


@pytest.mark.parametrize(
    "fields", ["", "bias_term: true", "axis: 0 num_axes: -1", "num_axes: 0 bias_term: true"]
)
def test_scale_contract_and_gradient(fields: str) -> None:
    check_contract(scale(fields), normal(2, 3, 4))
    check_gradient(scale(fields), normal(2, 3, 2))
    check_gradient(scale("bias_term: true", True), normal(2, 3, 2), normal(3, seed=1))
    check_contract(bias(), normal(2, 3, 4), normal(3, 4, seed=1))
    check_gradient(bias(), normal(2, 3, 2))
    check_gradient(bias(), normal(2, 3, 2), normal(3, 2, seed=1))


def test_scale_and_bias_in_onnx() -> None:
    x = normal(2, 3, 4, 5)
    for fields, place in PLACES:
        if place[0] > 0 or place[1] == 0:
            check_onnx(scale(fields), x, opsets=(13,))
            check_onnx(scale(fields + " bias_term: true"), x, opsets=(13, 22))
            check_onnx(bias(fields), x, opsets=(13,))
        operand = normal(*(2, 3, 4, 5)[place[0] : place[1]], seed=1)
        if place[0] == 0 and place[1] > 0:  # the operand has the batch axis, too
            check_onnx(scale(fields, True), x, operand, opsets=(13, 22))
            check_onnx(bias(fields), x, operand, opsets=(13,))
    check_onnx(scale("axis: 0", True), x, normal(2, seed=1), opsets=(13, 22))


def test_scale_fillers() -> None:
    layer = build('type: "Scale" scale_param { bias_term: true }', (2, 3))
    assert layer.blob(0).tolist() == [1, 1, 1] and layer.blob(1).tolist() == [0, 0, 0]
    layer = build(scale("bias_term: true"), (2, 3), seed=7)
    uniform = layer.random.__class__(7)
    np.testing.assert_array_equal(layer.blob(0).detach().numpy(), uniform.uniform(3, -2, 2))
    np.testing.assert_array_equal(layer.blob(1).detach().numpy(), uniform.uniform(3, -2, 2))
    assert build('type: "Bias"', (2, 3)).blob(0).tolist() == [0, 0, 0]


@pytest.mark.parametrize("kind", ["scale", "bias"])
def test_scale_and_bias_refuse(kind: str) -> None:
    text = f'type: "{kind.capitalize()}" {kind}_param {{ {{}} }}'
    with refused("num_axes must be non-negative, or -1 to extend to the end of bottom[0]; got -2"):
        build(text.replace("{}", "num_axes: -2"), (2, 3))
    past = f"{kind} blob's shape extends past bottom[0]'s shape when applied starting with bottom[0] axis = 1"
    with refused(past + "; got num_axes 2 for (2, 3)"):
        build(text.replace("{}", "num_axes: 2"), (2, 3))
    with refused(past + f"; got {kind} (3, 4) for (2, 3)"):
        build(text.replace("{}", ""), (2, 3), (3, 4))
    with refused("axis 2 out of range for a blob with 2 axes"):
        build(text.replace("{}", "axis: 2"), (2, 3))
    mismatch = f"dimension mismatch between bottom[0]->shape(1) and {kind}->shape(0); got 3 and 2"
    with refused(mismatch):
        build(text.replace("{}", ""), (2, 3), (2,))
    layer = build(text.replace("{}", ""), (4, 2))
    with refused(mismatch):
        layer.checked_top_shapes([(4, 3)])


@pytest.mark.parametrize("text", [*NEURONS, scale("bias_term: true"), bias()])
def test_channels_last_gives_the_same(text: str) -> None:
    x = normal(2, 3, 4, 5).abs() + 0.1
    layer = build(text, (2, 3, 4, 5))
    assert_close(run(layer, x.to(memory_format=torch.channels_last))[0], run(layer, x)[0])
