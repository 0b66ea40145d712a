"""The layers of layers/utility, beyond the recorded cases."""

from __future__ import annotations

import logging
import sys
import types
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import reference
import torch
from single_layer import build, check_contract, check_gradient, check_onnx, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.layers.utility import python
from imae.layers.utility.python import Python
from imae.layers.utility.python_blobs import PythonBlob, PythonLayerBase
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.prototxt import TRAIN, NetParameter
from imae.prototxt.text import parse_net


def equal(got: Tensor | None, want: Tensor | Sequence[object]) -> None:
    """Bit for bit, and of one shape."""
    assert got is not None
    want = torch.as_tensor(want, dtype=got.dtype)
    torch.testing.assert_close(got, want, rtol=0, atol=0, equal_nan=True)


# -- Eltwise -------------------------------------------------------------------------------------------------


def eltwise(fields: str) -> str:
    return f'type: "Eltwise" eltwise_param {{ {fields} }}'


def test_eltwise_computes_what_its_name_says() -> None:
    a, b, c = normal(2, 3), normal(2, 3, seed=1), normal(2, 3, seed=2)
    equal(run(build(eltwise(""), *[(2, 3)] * 3), a, b, c)[0], a + b + c)
    equal(run(build(eltwise("coeff: 1 coeff: -1"), *[(2, 3)] * 2), a, b)[0], a - b)
    equal(run(build(eltwise("coeff: 0.5 coeff: 0"), *[(2, 3)] * 2), a, b)[0], a / 2)
    equal(run(build(eltwise("operation: PROD"), *[(2, 3)] * 3), a, b, c)[0], a * b * c)
    equal(
        run(build(eltwise("operation: MAX"), *[(2, 3)] * 3), a, b, c)[0],
        torch.maximum(torch.maximum(a, b), c),
    )


def test_eltwise_max_gives_a_tie_to_the_second_of_the_first_two_then_to_the_earlier() -> None:
    bottoms = [
        torch.tensor(values) for values in ([1.0, 2, 3, 0], [1.0, 2, 0, 0], [1.0, 5, 3, 1], [0.0, 5, 3, 1])
    ]
    layer = build(eltwise("operation: MAX"), *[(4,)] * 4)
    equal(run(layer, *bottoms)[0], [1, 5, 3, 1])
    first, second, third, fourth = diffs(layer, *bottoms)
    equal(first, [0, 0, 1, 0])
    equal(second, [1, 0, 0, 0])
    equal(third, [0, 1, 0, 1])
    equal(fourth, [0, 0, 0, 0])


def test_eltwise_max_passes_on_what_caffe_passes_on_where_there_is_nan() -> None:
    nan = float("nan")
    layer = build(eltwise("operation: MAX"), (2,), (2,))
    equal(run(layer, torch.tensor([nan, 1]), torch.tensor([1, nan]))[0], [1, nan])


def test_eltwise_product_by_quotients_is_nan_at_zero_and_right_elsewhere() -> None:
    a, b = torch.tensor([2.0, 0, 4]), torch.tensor([3.0, 5, 0])
    layer = build(eltwise("operation: PROD stable_prod_grad: false"), (3,), (3,))
    equal(run(layer, a, b)[0], [6, 0, 0])
    first, second = diffs(layer, a, b)
    nan = float("nan")
    equal(first, [3, nan, 0])
    equal(second, [2, 0, nan])
    stable = diffs(build(eltwise("operation: PROD"), (3,), (3,)), a, b)
    equal(stable[0], b)
    equal(stable[1], a)


@pytest.mark.parametrize(
    "fields", ["", "coeff: 1 coeff: 2 coeff: -0.5", "operation: PROD", "operation: MAX",
               "operation: PROD stable_prod_grad: false"]
)  # fmt: skip
def test_eltwise_contract_gradient_and_onnx(fields: str) -> None:
    bottoms = normal(2, 3, 2), normal(2, 3, 2, seed=1), normal(2, 3, 2, seed=2)
    check_contract(eltwise(fields), *bottoms)
    check_gradient(eltwise(fields), *bottoms)
    check_onnx(eltwise(fields), *bottoms, opsets=(13, 22))


def test_eltwise_refuses() -> None:
    with refused("layer 'it' (Eltwise): bottom[0]: 2 3 (6), bottom[1]: 2 4 (8)"):
        build(eltwise(""), (2, 3), (2, 4))
    with refused("Eltwise Layer takes one coefficient per bottom blob.; got 3 for 2 bottoms"):
        build(eltwise("coeff: 1 coeff: 2 coeff: 3"), (2,), (2,))
    for operation in ("PROD", "MAX"):
        with refused("Eltwise layer only takes coefficients for summation."):
            build(eltwise(f"operation: {operation} coeff: 1 coeff: 2"), (2,), (2,))
    with refused("Eltwise Layer takes at least 2 bottom blob(s) as input."):
        build(eltwise(""), (2,))


# -- Concat, Slice, Split ------------------------------------------------------------------------------------


@pytest.mark.parametrize("field,axis", [("", 1), ("axis: 2", 2), ("axis: -3", 0), ("concat_dim: 2", 2)])
def test_concat_joins_along_the_axis(field: str, axis: int) -> None:
    sizes = [3, 3, 3]
    sizes[axis] = 2
    text, bottoms = f'type: "Concat" concat_param {{ {field} }}', (normal(3, 3, 3), normal(*sizes, seed=1))
    equal(run(build(text, *(b.shape for b in bottoms)), *bottoms)[0], torch.cat(bottoms, axis))
    check_contract(text, *bottoms)
    check_gradient(text, *bottoms)
    check_onnx(text, *bottoms, opsets=(13, 22))


def test_concat_of_one_bottom_is_that_bottom() -> None:
    x = normal(2, 3)
    equal(run(build('type: "Concat"', (2, 3)), x)[0], x)


def test_concat_refuses() -> None:
    with refused("Either axis or concat_dim should be specified; not both."):
        build('type: "Concat" concat_param { axis: 1 concat_dim: 1 }', (2, 3))
    with refused("concat_dim out of range.; got 2 for 2 axes"):
        build('type: "Concat" concat_param { concat_dim: 2 }', (2, 3))
    with refused("All inputs must have the same #axes.; got [(2, 3), (2, 3, 1)]"):
        build('type: "Concat"', (2, 3), (2, 3, 1))
    with refused("All inputs must have the same shape, except at concat_axis.; got [(2, 3), (1, 3)], axis 1"):
        build('type: "Concat"', (2, 3), (1, 3))


def slices(fields: str, tops: int) -> str:
    names = " ".join(f'top: "t{index}"' for index in range(tops))
    return f'type: "Slice" {names} slice_param {{ {fields} }}'


@pytest.mark.parametrize(
    "fields,tops,axis,sizes",
    [
        ("", 2, 1, [3, 3]),
        ("slice_point: 1 slice_point: 3", 3, 1, [1, 2, 3]),
        ("slice_point: 1 axis: -1", 2, 2, [1, 3]),
        ("slice_dim: 2", 4, 2, [1, 1, 1, 1]),
        ("", 1, 1, [6]),
    ],
)
def test_slice_cuts_along_the_axis(fields: str, tops: int, axis: int, sizes: list[int]) -> None:
    x, text = normal(2, 6, 4), slices(fields, tops)
    got = run(build(text, x.shape), x)
    assert [top.shape[axis] for top in got] == sizes
    equal(torch.cat(got, axis), x)
    check_contract(text, x)
    check_gradient(text, x)
    check_onnx(text, x)


def test_slice_of_the_batch_axis() -> None:
    x = normal(4, 3)
    equal(run(build(slices("axis: 0", 2), (4, 3)), x)[1], x[2:])
    with pytest.raises(ExportError, match="layer 'it': axis 0 is the open batch size"):
        check_onnx(slices("axis: 0", 2), x)


def test_slice_gives_gradient_zero_where_a_top_is_not_used() -> None:
    x = normal(2, 4).requires_grad_()
    run(build(slices("", 2), (2, 4)), x)[1].sum().backward()
    equal(x.grad, [[0, 0, 1, 1]] * 2)


def test_slice_refuses() -> None:
    with refused("Either axis or slice_dim should be specified; not both."):
        build(slices("axis: 1 slice_dim: 1", 2), (2, 4))
    with refused("slice_dim out of range.; got 2 for 2 axes"):
        build(slices("slice_dim: 2", 2), (2, 4))
    with refused("slice_point must be given once less than there are tops; got 1 for 3 tops"):
        build(slices("slice_point: 1", 3), (2, 4))
    for points in ("slice_point: 0", "slice_point: 2 slice_point: 2"):
        with refused("slice_point must be greater than 0 and than the one before"):
            build(slices(points, points.count("slice") + 1), (2, 4))
    with refused("slice axis: 1, bottom[0] shape: 2 4 (8); slice_point 4 leaves nothing for the last top"):
        build(slices("slice_point: 4", 2), (2, 4))
    with refused("Number of top blobs (3) should evenly divide input slice axis (4)"):
        build(slices("", 3), (2, 4))


def test_split_shares_memory_and_adds_gradients() -> None:
    text = 'type: "Split" top: "a" top: "b" top: "c"'
    x = normal(2, 3)
    tops = run(build(text, (2, 3)), x)
    assert len(tops) == 3 and all(top.data_ptr() == x.data_ptr() for top in tops)
    top_diffs = [torch.full((2, 3), value) for value in (1.0, 2.0, 4.0)]
    equal(diffs(build(text, (2, 3)), x, top_diffs=top_diffs)[0], torch.full((2, 3), 7.0))
    check_contract(text, x)
    check_onnx(text, x, opsets=(13, 22))
    with refused("Split Layer does not allow in-place computation"):
        build('type: "Split" bottom: "x" top: "x"', (2,))


# -- Flatten, Reshape ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "fields,shape",
    [
        ("", (2, 105)),
        ("axis: 0", (210,)),
        ("axis: 2", (2, 3, 35)),
        ("axis: 1 end_axis: 2", (2, 15, 7)),
        ("axis: 1 end_axis: -3", (2, 3, 5, 7)),
        ("axis: 0 end_axis: 1", (6, 5, 7)),
        ("axis: 2 end_axis: 1", (2, 3, 1, 5, 7)),
    ],
)
def test_flatten_joins_axes(fields: str, shape: tuple[int, ...]) -> None:
    x, text = normal(2, 3, 5, 7), f'type: "Flatten" flatten_param {{ {fields} }}'
    equal(run(build(text, x.shape), x)[0], x.reshape(shape))
    check_contract(text, x)
    check_onnx(text, x, opsets=(13, 22))


def test_flatten_and_reshape_keep_the_order_of_axes_of_a_channels_last_bottom() -> None:
    x = normal(2, 3, 5, 7)
    scattered = x.contiguous(memory_format=torch.channels_last)
    for text in ('type: "Flatten"', 'type: "Reshape" reshape_param { shape { dim: 0 dim: -1 } }'):
        equal(run(build(text, x.shape), scattered)[0], x.reshape(2, -1))


def test_flatten_refuses() -> None:
    with refused("Flatten Layer does not allow in-place computation"):
        build('type: "Flatten" bottom: "x" top: "x"', (2, 3))
    with refused("axis 3 lies behind end_axis 1"):
        build('type: "Flatten" flatten_param { axis: 3 end_axis: 1 }', (2, 3, 5, 7))
    with refused("axis 4 out of range for a blob with 4 axes"):
        build('type: "Flatten" flatten_param { axis: 4 }', (2, 3, 5, 7))


def reshape(dims: list[int], fields: str = "") -> str:
    shape = " ".join(f"dim: {dim}" for dim in dims)
    return f'type: "Reshape" reshape_param {{ shape {{ {shape} }} {fields} }}'


@pytest.mark.parametrize(
    "dims,fields,shape",
    [
        ([0, -1], "", (2, 105)),
        ([0, 0, 35], "", (2, 3, 35)),
        ([-1, 7], "", (30, 7)),
        ([0, 0, 0, 0, 1], "", (2, 3, 5, 7, 1)),
        ([15], "axis: 1 num_axes: 2", (2, 15, 7)),
        ([3, 1, 5], "axis: 1 num_axes: 2", (2, 3, 1, 5, 7)),
        ([1], "axis: -1 num_axes: 0", (2, 3, 5, 7, 1)),
        ([1], "axis: 1 num_axes: 0", (2, 1, 3, 5, 7)),
        ([1], "axis: 0 num_axes: 0", (1, 2, 3, 5, 7)),
        ([-1], "axis: -2", (2, 3, 5, 7)),
        ([5, 7], "axis: 2 num_axes: 2", (2, 3, 5, 7)),
        ([-1], "axis: -3 num_axes: 2", (2, 3, 35)),
    ],
)
def test_reshape(dims: list[int], fields: str, shape: tuple[int, ...]) -> None:
    x, text = normal(2, 3, 5, 7), reshape(dims, fields)
    equal(run(build(text, x.shape), x)[0], x.reshape(shape))
    check_contract(text, x)
    check_gradient(text, x)
    check_onnx(text, x, opsets=(13, 22))


def test_reshape_refuses() -> None:
    with refused("output count must match input count; bottom (2, 3, 5, 7), top (2, 15, 5)"):
        build(reshape([15, 0], "axis: 1"), (2, 3, 5, 7))
    with refused("at most a single (1) value of -1 may be specified; got [-1, -1]"):
        build(reshape([-1, -1]), (2, 3))
    with refused("a dim must be a size, 0 to copy or -1 to infer; got [-2]"):
        build(reshape([-2]), (2, 3))
    with refused("axis 3 out of range for 2-D input blob"):
        build(reshape([1], "axis: 3"), (2, 3))
    with refused("axis -4 out of range for 2-D input blob"):
        build(reshape([1], "axis: -4"), (2, 3))
    with refused("num_axes must be >= 0, or -1 for all; got -2"):
        build(reshape([1], "num_axes: -2"), (2, 3))
    with refused("end_axis = axis + num_axes is out of range; got 3 for 2 axes"):
        build(reshape([1], "axis: 1 num_axes: 2"), (2, 3))
    with refused("new shape contains a 0, but there was no corresponding bottom axis to copy"):
        build(reshape([2, 3, 0]), (2, 3))
    with refused("bottom count (6) must be divisible by the product of the specified dimensions (4)"):
        build(reshape([4, -1]), (2, 3))
    with refused("Reshape Layer does not allow in-place computation"):
        build('type: "Reshape" bottom: "x" top: "x"', (2, 3))
    with pytest.raises(ExportError, match="leaves both the batch axis and another open"):
        check_onnx(reshape([-1], "axis: 0 num_axes: 0"), normal(2, 3))


# -- Softmax, ArgMax -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_along_the_axis(axis: int) -> None:
    x, text = normal(2, 3, 4), f'type: "Softmax" softmax_param {{ axis: {axis} engine: CAFFE }}'
    e = np.exp(x.double().numpy() - x.double().numpy().max(axis, keepdims=True))
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(
        run(build(text, x.shape), x)[0].numpy(), e / e.sum(axis, keepdims=True), rtol, atol
    )
    check_contract(text, x)
    check_gradient(text, x)
    if axis:
        check_onnx(text, x, opsets=(13, 22))


def test_softmax_does_not_overflow() -> None:
    equal(run(build('type: "Softmax"', (1, 3)), torch.tensor([[3e38, 3e38, -3e38]]))[0], [[0.5, 0.5, 0]])


def literal_arg_max(x: np.ndarray, axis: int, top_k: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, values), by sorting (value, index) pairs downwards as the definition says."""
    moved = np.moveaxis(x, axis, -1)
    index = np.empty((*moved.shape[:-1], top_k))
    value = np.empty_like(index)
    for place in np.ndindex(moved.shape[:-1]):
        pairs = sorted(((v, i) for i, v in enumerate(moved[place])), reverse=True)[:top_k]
        value[place], index[place] = zip(*pairs, strict=True)
    return np.moveaxis(index, -1, axis), np.moveaxis(value, -1, axis)


def tied(*shape: int) -> Tensor:
    """Values of which many are equal."""
    return torch.from_numpy(np.random.default_rng(0).integers(0, 3, shape).astype(np.float32))


@pytest.mark.parametrize("top_k", [1, 2, 3])
@pytest.mark.parametrize("axis", [0, 1, -1])
def test_arg_max_along_an_axis_gives_ties_to_the_larger_index(axis: int, top_k: int) -> None:
    x = tied(3, 4, 5)
    index, value = literal_arg_max(x.numpy(), axis, top_k)
    text = f'type: "ArgMax" argmax_param {{ axis: {axis} top_k: {top_k} %s }}'
    equal(run(build(text % "", x.shape), x)[0], torch.from_numpy(index))
    equal(run(build(text % "out_max_val: true", x.shape), x)[0], torch.from_numpy(value))
    check_contract(text % "", x)
    if axis:
        check_onnx(text % "", x)
        check_onnx(text % "out_max_val: true", x)


@pytest.mark.parametrize("shape", [(3, 7), (3, 2, 4), (3, 2, 2, 2), (3, 2, 2, 2, 2)])
def test_arg_max_of_whole_items(shape: tuple[int, ...]) -> None:
    x = tied(*shape)
    index, value = literal_arg_max(x.numpy().reshape(3, -1), 1, 3)
    behind = [1] * (len(shape) - 3)
    text = 'type: "ArgMax" argmax_param { top_k: 3 %s }'
    equal(run(build(text % "", shape), x)[0], torch.from_numpy(index).reshape(3, 1, 3, *behind))
    both = np.concatenate([index, value], 1).reshape(3, 2, 3, *behind)
    equal(run(build(text % "out_max_val: true", shape), x)[0], torch.from_numpy(both))
    for field in ("", "out_max_val: true"):
        check_contract(text % field, x)
        check_onnx(text % field, x)


def test_arg_max_refuses() -> None:
    with refused("top k must not be less than 1.; got 0"):
        build('type: "ArgMax" argmax_param { top_k: 0 }', (2, 3))
    with refused("top_k must be less than or equal to the dimension of the axis.; got 4 for size 3"):
        build('type: "ArgMax" argmax_param { top_k: 4 axis: 1 }', (2, 3, 5))
    with refused("dimension of the flattened bottom blob per instance.; got 16 for 15 values"):
        build('type: "ArgMax" argmax_param { top_k: 16 }', (2, 3, 5))
    with refused("the bottom must have at least 1 axis; it is a scalar"):
        build('type: "ArgMax"', ())
    with pytest.raises(ExportError, match="axis 0 is the open batch size"):
        check_onnx('type: "ArgMax" argmax_param { axis: 0 }', normal(2, 3))


# -- Silence, BatchReindex, Filter, Parameter, Reduction, Tile -----------------------------------------------


def test_silence_has_no_tops_and_no_gradient() -> None:
    layer = build('type: "Silence"', (2, 3), (4,))
    assert run(layer, normal(2, 3), normal(4)) == ()
    assert layer.checked_top_shapes([(2, 3), (4,)]) == []
    with refused("Silence Layer produces 0 top blob(s) as output.; got 1"):
        build('type: "Silence" top: "x"', (2, 3))


def test_batch_reindex_chooses_repeats_and_adds_gradients() -> None:
    x, index = normal(3, 2), torch.tensor([2, 0.9, 2, 1])
    layer = build('type: "BatchReindex"', (3, 2), (4,))
    equal(run(layer, x, index)[0], x[[2, 0, 2, 1]])
    leaf = x.clone().requires_grad_()
    top_diff = torch.tensor([[1.0, 1], [2, 2], [4, 4], [8, 8]])
    run(layer, leaf, index)[0].backward(top_diff)
    equal(leaf.grad, [[2, 2], [8, 8], [5, 5]])
    check_contract('type: "BatchReindex"', x, index)
    check_gradient('type: "BatchReindex"', x, index, constant=[1])
    check_onnx('type: "BatchReindex"', x, index, opsets=(13, 22))


def test_batch_reindex_refuses() -> None:
    layer = build('type: "BatchReindex"', (3, 2), (2,))
    for index in (-1.0, -0.5):
        with refused("Index specified for reindex layer was negative.; got -1, the batch has 3 items"):
            run(layer, normal(3, 2), torch.tensor([0, index]))
    with refused(
        "Index specified for reindex layer was greater than batch size.; got 3, the batch has 3 items"
    ):
        run(layer, normal(3, 2), torch.tensor([0.0, 3]))
    with refused("Cannot backprop to index."):
        diffs(layer, normal(3, 2), torch.tensor([0.0, 1]))
    with refused("items (N, ...) and indices (M) are needed; got bottoms (3, 2) and (2, 1)"):
        build('type: "BatchReindex"', (3, 2), (2, 1))


FILTER = 'type: "Filter" top: "a" top: "b"'


def test_filter_keeps_items_whose_selector_is_not_zero() -> None:
    a, b, selector = normal(5, 3), normal(5, seed=1), torch.tensor([0, 1, 0, -0.25, float("nan")])
    layer = build(FILTER, (5, 3), (5,), (5, 1, 1, 1))
    for shape in ((5,), (5, 1, 1, 1)):
        first, second = run(layer, a, b, selector.reshape(shape))
        equal(first, a[[1, 3, 4]])
        equal(second, b[[1, 3, 4]])
    leaf = a.clone().requires_grad_()
    run(layer, leaf, b, selector)[0].sum().backward()
    equal(leaf.grad, torch.tensor([0.0, 1, 0, 1, 1]).unsqueeze(1).expand(5, 3))
    check_onnx(FILTER, a, b, torch.tensor([0.0, 1, 0, 2, -1]), opsets=(13, 22))


def test_filter_of_nothing_is_empty_with_gradient_zero() -> None:
    layer = build(FILTER, (2, 3), (2,), (2,))
    leaf = normal(2, 3).requires_grad_()
    first, second = run(layer, leaf, normal(2), torch.zeros(2))
    assert (first.shape, second.shape) == ((0, 3), (0,))
    first.sum().backward()
    equal(leaf.grad, torch.zeros(2, 3))
    assert layer.checked_top_shapes([(2, 3), (2,), (2,)]) == [
        (2, 3),
        (2,),
    ]  # what is known before a forward pass


def test_filter_refuses() -> None:
    with refused("there must be a top for each bottom but the last, the selector; got 2 bottoms and 2 tops"):
        build(FILTER, (5, 3), (5,))
    with refused("Selector blob dimensions must be singletons (1), except the first; got (5, 2)"):
        build(FILTER, (5, 3), (5,), (5, 2))
    with refused(
        "Each bottom should have the same 0th dimension as the selector blob; got (4,), selector (5,)"
    ):
        build(FILTER, (5, 3), (4,), (5,))
    with refused("FilterLayer cannot backpropagate to filter index inputs"):
        diffs(build(FILTER, (5, 3), (5,), (5,)), normal(5, 3), normal(5), torch.ones(5))


def test_parameter_is_its_blob() -> None:
    layer = build('type: "Parameter" parameter_param { shape { dim: 2 dim: 3 } }', seed=4)
    equal(run(layer)[0].detach(), torch.zeros(2, 3))
    assert layer.random.word() == CaffeRandom(4).word()
    layer.blobs[0].data.fill_(5)
    (top,) = run(layer)
    top.backward(torch.full((2, 3), 7.0))
    equal(top.detach(), torch.full((2, 3), 5.0))
    equal(layer.blobs[0].grad, torch.full((2, 3), 7.0))
    check_onnx('type: "Parameter" parameter_param { shape { dim: 2 dim: 3 } }', opsets=(13, 22))


OPERATIONS = {
    "SUM": lambda x, axes: x.sum(axes),
    "ASUM": lambda x, axes: np.abs(x).sum(axes),
    "SUMSQ": lambda x, axes: (x * x).sum(axes),
    "MEAN": lambda x, axes: x.mean(axes),
}


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("axis", [0, 1, 2, -1])
@pytest.mark.parametrize("coeff", [1, -0.5])
def test_reduction(operation: str, axis: int, coeff: float) -> None:
    x = normal(2, 3, 4)
    text = f'type: "Reduction" reduction_param {{ operation: {operation} axis: {axis} coeff: {coeff} }}'
    want = coeff * OPERATIONS[operation](x.double().numpy(), tuple(range(axis % 3, 3)))
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(run(build(text, x.shape), x)[0].numpy(), want, rtol, atol * np.abs(want).max())
    check_contract(text, x)
    check_gradient(text, x)
    check_onnx(text, x)


def test_reduction_of_absolute_values_has_gradient_zero_at_zero() -> None:
    layer = build('type: "Reduction" reduction_param { operation: ASUM }', (3,))
    equal(diffs(layer, torch.tensor([-2.0, 0, 3]))[0], [-1, 0, 1])


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_tile_repeats_along_the_axis(axis: int) -> None:
    x, text = normal(2, 3, 4), f'type: "Tile" tile_param {{ axis: {axis} tiles: 3 }}'
    equal(run(build(text, x.shape), x)[0], torch.cat([x, x, x], axis))
    check_contract(text, x)
    check_gradient(text, x)
    check_onnx(text, x, opsets=(13, 22))


def test_tile_refuses() -> None:
    with refused("Number of tiles must be specified"):
        build('type: "Tile"', (2, 3))
    with refused("Number of tiles must be positive.; got 0"):
        build('type: "Tile" tile_param { tiles: 0 }', (2, 3))


# -- Python --------------------------------------------------------------------------------------------------

USER_MODULE = '''
import caffe
import numpy as np


class Affine(caffe.Layer):
    def setup(self, bottom, top):
        assert self.param_str_ == self.param_str
        self.a, self.b = (float(number) for number in self.param_str.split(","))
        self.reshapes = 0

    def reshape(self, bottom, top):
        self.reshapes += 1
        top[0].reshape(*bottom[0].data.shape)

    def forward(self, bottom, top):
        top[0].data[...] = self.a * bottom[0].data + self.b
        bottom[0].data[...] = 99

    def backward(self, top, propagate_down, bottom):
        assert propagate_down == [True]
        bottom[0].diff[...] = self.a * top[0].diff


class Counter(caffe.Layer):
    def setup(self, bottom, top):
        self.n = 0

    def reshape(self, bottom, top):
        top[0].reshape(2, 3)
        top[1].reshape()

    def forward(self, bottom, top):
        self.n += 1
        top[0].data[...] = self.n
        top[1].data[()] = self.phase


class Centre(caffe.Layer):
    """Subtracts a blob that moves half way to the mean of what is seen."""

    def setup(self, bottom, top):
        self.blobs.add_blob(bottom[0].data.shape[1])
        self.blobs[0].data[...] = 1

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        self.blobs[0].data[...] = 0.5 * self.blobs[0].data + 0.5 * bottom[0].data.mean(axis=0)
        top[0].data[...] = bottom[0].data - self.blobs[0].data

    def backward(self, top, propagate_down, bottom):
        bottom[0].diff[...] = top[0].diff
        self.blobs[0].diff[...] -= top[0].diff.sum(axis=0)


class Unfinished(caffe.Layer):
    def setup(self, bottom, top):
        pass


class Foreign:
    pass


number = 5
'''


@pytest.fixture
def user_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """my_layers.py in the working directory; `caffe` is a module that has Layer."""
    (tmp_path / "my_layers.py").write_text(USER_MODULE)
    caffe = types.ModuleType("caffe")
    caffe.Layer = PythonLayerBase  # type: ignore[attr-defined]  # a module made here
    monkeypatch.setitem(sys.modules, "caffe", caffe)
    monkeypatch.setattr(python, "make_caffe_importable", lambda: None)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.chdir(tmp_path)
    yield tmp_path / "my_layers.py"
    for name in ("my_layers", "golden_layers"):
        sys.modules.pop(name, None)


@pytest.mark.parametrize("path", reference.find("python/*.npz"), ids=lambda path: path.stem)
def test_python_layers_compute_what_they_computed_in_caffe(
    path: Path, user_module: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(path.parent)
    assert reference.replay(reference.load(path)) > 0


def user_layer(name: str, param_str: str = "", more: str = "") -> str:
    python_param = f'module: "my_layers" layer: "{name}" param_str: "{param_str}"'
    return f'type: "Python" {more} python_param {{ {python_param} }}'


def test_python_layer_runs_the_users_class(user_module: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        layer = build(user_layer("Affine", "2.5,-1"), (3, 4))
        build(user_layer("Affine", "1,0"), (3, 4))
    assert [record.getMessage() for record in caplog.records] == [
        f"layer 'it': the prototxt makes this process import and run code: module my_layers, {user_module}"
    ]
    assert isinstance(layer, Python)
    x = normal(3, 4)
    before = x.clone()
    equal(run(layer, x)[0], 2.5 * x - 1)
    equal(x, before)
    equal(diffs(layer, x)[0], torch.full((3, 4), 2.5))
    assert layer.user_layer.reshapes == 3  # set-up and two forward passes
    longer = normal(5, 4)
    equal(run(layer, longer)[0], 2.5 * longer - 1)
    assert run(layer, longer.double())[0].dtype == torch.float64


def test_python_layer_makes_data(user_module: Path) -> None:
    for phase in (0, 1):
        layer = build(user_layer("Counter", more=f'phase: {"TEST" if phase else "TRAIN"} top: "a" top: "b"'))
        assert layer.checked_top_shapes([]) == [(2, 3), ()]
        for count in (1, 2):
            data, seen_phase = run(layer)
            equal(data, torch.full((2, 3), float(count)))
            equal(seen_phase, torch.tensor(float(phase)))


def test_python_layer_has_parameters(user_module: Path) -> None:
    layer = build(user_layer("Centre"), (2, 3))
    equal(layer.blobs[0].detach(), [1, 1, 1])
    x = torch.tensor([[1.0, 2, 3], [3, 4, 5]])
    for want in ([1.5, 2, 2.5], [1.75, 2.5, 3.25]):
        (top,) = run(layer, x)
        equal(layer.blobs[0].detach(), want)
        equal(top.detach(), x - layer.blobs[0].detach())
    for times in (1, 2):  # gradients add up until they are cleared
        run(layer, x)[0].sum().backward()
        equal(layer.blobs[0].grad, [-2.0 * times] * 3)


def test_python_layer_in_a_net_learns_and_reads_what_is_loaded(user_module: Path) -> None:
    text = 'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 } } }'
    text += f'layer {{ name: "it" bottom: "x" top: "y" {user_layer("Centre")} }}'
    text += 'layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 3 }'
    param = NetParameter()
    param.CopyFrom(parse_net(text))
    param.state.phase = TRAIN
    steps = Stepwise(Net(param, Run(CaffeRandom(1))))
    steps.net.params["it"][0].data.fill_(3)
    steps.blobs["x"].data.fill_(5)
    steps.forward()
    steps.backward()
    equal(steps.net.params["it"][0].detach(), [4, 4, 4])
    equal(steps.net.params["it"][0].grad, [-6, -6, -6])


def test_python_layer_takes_blobs_that_the_prototxt_gives(user_module: Path) -> None:
    given = "blobs { shape { dim: 3 } data: 1 data: 2 data: 3 }"
    (user_module.parent / "my_layers.py").write_text(
        USER_MODULE.replace("self.blobs.add_blob(bottom[0].data.shape[1])", "pass").replace(
            "self.blobs[0].data[...] = 1", "pass"
        )
    )
    equal(build(user_layer("Centre", more=given), (2, 3)).blobs[0].detach(), [1, 2, 3])


def test_python_layer_refuses(user_module: Path) -> None:
    with refused("python_param.module must be given"):
        build('type: "Python"', (2,))
    with refused("python_param.layer must be given"):
        build('type: "Python" python_param { module: "my_layers" }', (2,))
    with refused(
        f"No module named 'no_such_module'; it must lie in the working directory, {user_module.parent}"
    ):
        build('type: "Python" python_param { module: "no_such_module" layer: "X" }', (2,))
    with refused("No module named 'my_layers.part'"):
        build('type: "Python" python_param { module: "my_layers.part" layer: "X" }', (2,))
    for name in ("Missing", "number"):
        with refused(f"layer 'it' (Python): module my_layers has no class '{name}'"):
            build(user_layer(name), (2,))
    with refused("my_layers.Foreign is not a caffe.Layer of imae.pycaffe; `import caffe` finds nothing"):
        build(user_layer("Foreign"), (2,))
    with refused("class my_layers.Unfinished has no method 'reshape'"):
        build(user_layer("Unfinished"), (2,))
    leaf = normal(2, 3).requires_grad_()
    data, _ = run(build(user_layer("Counter", more='bottom: "x" top: "a" top: "b"'), (2, 3)), leaf)
    with refused("class my_layers.Counter has no method 'backward'"):
        data.sum().backward()


def test_python_layer_does_not_hide_the_users_exceptions(user_module: Path) -> None:
    with pytest.raises(ValueError, match="could not convert string to float"):
        build(user_layer("Affine", "one,two"), (2,))


def test_python_layer_does_not_hide_what_a_users_module_lacks(user_module: Path) -> None:
    user_module.write_text("import no_such_module_either\n")
    with pytest.raises(ModuleNotFoundError, match="no_such_module_either"):
        build(user_layer("Affine", "1,2"), (2,))


def test_python_layer_asks_the_hook_for_caffe(user_module: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    caffe = sys.modules.pop("caffe")
    monkeypatch.setattr(
        python, "make_caffe_importable", lambda: monkeypatch.setitem(sys.modules, "caffe", caffe)
    )
    build(user_layer("Affine", "1,2"), (2,))
    assert sys.modules["caffe"] is caffe


def test_python_layers_need_something_to_import_as_caffe(monkeypatch: pytest.MonkeyPatch) -> None:
    """As after an update of a checkout whose entry points were not installed anew."""
    monkeypatch.setattr(python, "GROUP", "imae.nobody")
    monkeypatch.delitem(sys.modules, "caffe", raising=False)
    with refused("and need an entry point in the group imae.nobody; there is none: install imae again"):
        python.make_caffe_importable()
    monkeypatch.setitem(sys.modules, "caffe", types.ModuleType("caffe"))  # another one, imported already
    python.make_caffe_importable()


def test_python_blob_is_like_pycaffes() -> None:
    blob = PythonBlob((2, 3))
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count, blob.shape) == (
        2,
        3,
        1,
        1,
        6,
        (2, 3),
    )
    blob.data[...] = np.arange(6).reshape(2, 3)
    blob.reshape(3, 2)
    assert blob.data.tolist() == [[0, 1], [2, 3], [4, 5]]
    blob.reshape(4)
    assert blob.data.tolist() == [0, 0, 0, 0] == blob.diff.tolist()
    blob.reshape()
    assert blob.data.shape == () and blob.count == 1
    blob.reshape(1, 1, 1, 1, 1)
    with pytest.raises(ValueError, match="need at most 4 axes"):
        _ = blob.num
    with pytest.raises(AttributeError):
        blob.data = np.zeros(3)  # type: ignore[misc, assignment]  # what is tested
