"""Convolution, Deconvolution, Im2col, Pooling, SPP, Crop, beyond the recorded cases."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from math import nan, prod
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from single_layer import build, check_contract, check_gradient, check_onnx, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.converters.export_onnx import ExportOptions, export_file
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Shape
from imae.layers.vision.pooling import PoolWindows, drawn_pool, expected_pool
from imae.prototxt.text import parse_net

FILLERS = 'weight_filler { type: "xavier" } bias_filler { type: "uniform" min: -1 max: 1 }'


def convolution(fields: str, kind: str = "Convolution") -> str:
    return f'type: "{kind}" convolution_param {{ num_output: 4 {FILLERS} {fields} }}'


def pooling(fields: str) -> str:
    return f'type: "Pooling" pooling_param {{ {fields} }}'


def assert_close(got: Tensor, want: Tensor, what: str = "same arithmetic") -> None:
    rtol, atol, _ = tolerance(what)
    scale = max(1.0, float(want.detach().nan_to_num().abs().max()))
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol * scale, equal_nan=True)


# -- Convolution -------------------------------------------------------------------------------------------


def literal_convolution(
    x: NDArray[np.float32],
    weight: NDArray[np.float32],
    group: int,
    stride: Shape,
    pad: Shape,
    dilation: Shape,
) -> NDArray[np.float64]:
    """(N, C, ...) to (N, O, ...), pixel by pixel as the formula has it; C's integer division."""
    kernel, sizes = weight.shape[2:], x.shape[2:]
    extent = [d * (k - 1) + 1 for k, d in zip(kernel, dilation, strict=True)]
    counts = [
        int((size + 2 * p - e) / s) + 1 for size, p, e, s in zip(sizes, pad, extent, stride, strict=True)
    ]
    top = np.zeros((x.shape[0], weight.shape[0], *counts))
    channels, outputs = weight.shape[1], weight.shape[0] // group
    for o, place in product(range(weight.shape[0]), np.ndindex(*counts)):
        first = o // outputs * channels
        for offset in np.ndindex(*kernel):
            axes = zip(place, stride, offset, dilation, pad, strict=True)
            at = tuple(i * s + k * d - p for i, s, k, d, p in axes)
            if all(0 <= a < size for a, size in zip(at, sizes, strict=True)):
                pixels = x[(slice(None), slice(first, first + channels), *at)].astype(np.float64)
                top[(slice(None), o, *place)] += pixels @ weight[(o, slice(None), *offset)]
    return top


GEOMETRIES: list[tuple[str, Shape, int, Shape, Shape, Shape, Shape]] = [
    # fields, bottom, group, kernel, stride, pad, dilation
    ("kernel_size: 3", (2, 6, 7, 5), 1, (3, 3), (1, 1), (0, 0), (1, 1)),
    ("kernel_size: 3 pad: 1 stride: 2 group: 2", (2, 6, 7, 5), 2, (3, 3), (2, 2), (1, 1), (1, 1)),
    ("kernel_size: 1 stride: 3", (2, 6, 7, 5), 1, (1, 1), (3, 3), (0, 0), (1, 1)),
    ("kernel_h: 2 kernel_w: 3 stride_h: 3 stride_w: 1 pad_w: 2",
     (2, 6, 7, 5), 1, (2, 3), (3, 1), (0, 2), (1, 1)),
    ("kernel_size: 2 kernel_size: 1 pad: 1 pad: 0 dilation: 3 dilation: 1 stride: 1 stride: 2",
     (2, 6, 7, 5), 1, (2, 1), (1, 2), (1, 0), (3, 1)),
    ("kernel_size: 4 stride: 3", (2, 6, 2, 5), 1, (4, 4), (3, 3), (0, 0), (1, 1)),  # a window that sticks out
    ("kernel_size: 3 dilation: 2 stride: 3 pad: 1", (1, 6, 1, 2), 1, (3, 3), (3, 3), (1, 1), (2, 2)),
    ("kernel_size: 3 pad: 4", (1, 6, 2, 3), 1, (3, 3), (1, 1), (4, 4), (1, 1)),
    ("kernel_size: 2 stride: 2 group: 2", (3, 6, 7), 2, (2,), (2,), (0,), (1,)),
    ("kernel_size: 2 pad: 1", (2, 2, 3, 4, 5), 1, (2, 2, 2), (1, 1, 1), (1, 1, 1), (1, 1, 1)),
    ("kernel_size: [2, 1, 3, 2] pad: [1, 0, 1, 0] stride: [2, 1, 1, 2] dilation: [1, 1, 1, 2] group: 2",
     (2, 6, 3, 2, 4, 5), 2, (2, 1, 3, 2), (2, 1, 1, 2), (1, 0, 1, 0), (1, 1, 1, 2)),
    ("kernel_size: 4 stride: 3", (2, 2, 2, 2, 2, 4), 1, (4,) * 4, (3,) * 4, (0,) * 4, (1,) * 4),
    ("kernel_size: [2, 1, 1, 2, 1] dilation: [3, 2, 1, 1, 1]",
     (2, 2, 4, 1, 2, 3, 2), 1, (2, 1, 1, 2, 1), (1,) * 5, (0,) * 5, (3, 2, 1, 1, 1)),
    ("kernel_size: 3 force_nd_im2col: true engine: CUDNN", (2, 6, 7, 5), 1, (3, 3), (1, 1), (0, 0), (1, 1)),
    ("kernel_size: 9", (3, 6), 1, (), (), (), ()),  # no spatial axis: an inner product
]  # fmt: skip


@pytest.mark.parametrize("geometry", GEOMETRIES, ids=lambda geometry: geometry[0])
def test_convolution_is_the_sum_of_its_formula(
    geometry: tuple[str, Shape, int, Shape, Shape, Shape, Shape],
) -> None:
    fields, shape, group, kernel, stride, pad, dilation = geometry
    layer = build(convolution(fields), shape)
    assert layer.blob_shapes == [(4, shape[1] // group, *kernel), (4,)]
    x = normal(*shape)
    weight, bias = (blob.detach().numpy() for blob in layer.blobs)
    want = literal_convolution(x.numpy(), weight, group, stride, pad, dilation)
    want += bias.reshape(-1, *[1] * len(kernel))
    assert layer.checked_top_shapes([shape]) == [want.shape]
    assert_close(run(layer, x)[0], torch.from_numpy(want).float())


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize("shape", [(6, 7, 5), (2, 3, 6, 7, 5)])
def test_axes_before_the_channel_axis_are_a_batch(kind: str, shape: Shape) -> None:
    fields = "kernel_size: 3 stride: 2 bias_term: false"
    layer = build(convolution(f"{fields} axis: -3", kind), shape)
    flat = build(convolution(fields, kind), (1, *shape[-3:]))
    x = normal(*shape)
    want = run(flat, x.reshape(-1, *shape[-3:]))[0]
    (top,) = run(layer, x)
    assert top.shape == (*shape[:-3], *want.shape[1:]) == layer.checked_top_shapes([shape])[0]
    assert_close(top, want.reshape(top.shape))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_all_bottoms_go_through_the_same_filters(kind: str) -> None:
    text = convolution("kernel_size: 3", kind) + ' bottom: "a" bottom: "b" top: "A" top: "B"'
    layer = build(text, (2, 3, 5, 4), (2, 3, 5, 4))
    a, b = normal(2, 3, 5, 4), normal(2, 3, 5, 4, seed=1)
    tops = run(layer, a, b)
    assert torch.equal(tops[0], run(layer, a)[0]) and torch.equal(tops[1], run(layer, b)[0])
    with refused("shape mismatch - bottom[0]: 2 3 5 4 (120) vs. bottom[1]: 2 3 4 5 (120)"):
        layer.checked_top_shapes([(2, 3, 5, 4), (2, 3, 4, 5)])


TRANSPOSABLE = [
    ("kernel_size: 3", (2, 4, 7, 5)),
    ("kernel_size: 4 stride: 2 pad: 1 group: 2", (2, 4, 8, 6)),
    ("kernel_size: 3 dilation: 2 stride: 2 pad: 3", (2, 4, 7, 5)),
    ("kernel_h: 1 kernel_w: 3 stride_h: 2 stride_w: 1 pad_h: 0 pad_w: 2", (2, 4, 7, 5)),
    ("kernel_size: 2 stride: 2", (2, 4, 6)),
    ("kernel_size: 2", (2, 4, 3, 4, 5)),
    ("kernel_size: 1", (2, 4)),
    ("kernel_size: [2, 1, 3, 2] pad: [1, 0, 1, 0] stride: [2, 1, 1, 2] dilation: [3, 1, 1, 2] group: 2",
     (2, 4, 4, 2, 3, 5)),
    ("kernel_size: 1", (2, 4, 1, 2, 3, 2, 1)),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "shape"), TRANSPOSABLE)
def test_deconvolution_is_the_transpose_of_convolution(fields: str, shape: Shape) -> None:
    """<convolve(x), y> = <x, deconvolve(y)> where the windows fit the size exactly."""
    forth = build(convolution(f"{fields} bias_term: false"), shape).double()
    top_shape = forth.checked_top_shapes([shape])[0]
    back = build(convolution(f"{fields} bias_term: false", "Deconvolution"), top_shape).double()
    assert back.blob_shapes == forth.blob_shapes and back.checked_top_shapes([top_shape]) == [shape]
    back.blobs[0] = forth.blobs[0]
    x, y = normal(*shape, dtype=torch.float64), normal(*top_shape, dtype=torch.float64, seed=1)
    rtol, atol, _ = tolerance("formula", "float64")
    torch.testing.assert_close(
        (run(forth, x)[0] * y).sum(), (x * run(back, y)[0]).sum(), rtol=rtol, atol=atol
    )


def test_deconvolution_adds_its_bias() -> None:
    fields = "kernel_size: 3 stride: 2 group: 2"
    layer = build(convolution(fields, "Deconvolution"), (2, 4, 3, 3))
    plain = build(convolution(f"{fields} bias_term: false", "Deconvolution"), (2, 4, 3, 3))
    assert layer.blob_shapes == [(4, 2, 3, 3), (4,)]
    x = normal(2, 4, 3, 3)
    assert_close(run(layer, x)[0], run(plain, x)[0] + layer.blob(1).reshape(4, 1, 1))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
def test_convolution_contract_and_gradient(kind: str) -> None:
    check_contract(convolution("kernel_size: 3 stride: 2 pad: 1 group: 2", kind), normal(2, 6, 7, 5))
    check_gradient(convolution("kernel_size: 3 stride: 2 pad: 1 group: 2", kind), normal(2, 2, 4, 3))
    check_gradient(convolution("kernel_h: 2 kernel_w: 4 stride: 3 axis: 2", kind), normal(2, 1, 1, 2, 2))
    check_gradient(convolution("kernel_size: 1", kind), normal(2, 3))
    check_gradient(convolution("kernel_size: 2 pad: 1 stride: [2, 1, 1, 1]", kind), normal(1, 1, 3, 2, 2, 2))


@pytest.mark.parametrize("kind", ["Convolution", "Deconvolution"])
@pytest.mark.parametrize(
    ("fields", "shape"),
    [*((geometry[0], geometry[1]) for geometry in GEOMETRIES), ("kernel_size: 3 axis: 2", (2, 3, 6, 7, 5)),
     ("kernel_size: 1 bias_term: false", (2, 6, 3, 3))],
)  # fmt: skip
def test_convolution_in_onnx(kind: str, fields: str, shape: Shape) -> None:
    if kind == "Deconvolution":
        fields = fields.replace("pad: 4", "pad: 1")  # nothing would be left
    check_onnx(convolution(fields, kind), normal(*shape), opsets=(13, 22))


CONVOLUTION_REFUSED = [
    ("kernel_size: 3 kernel_h: 2", (2, 4, 9, 9),
     "Either kernel_size or kernel_h/w should be specified; not both."),
    ("kernel_h: 2 kernel_w: 2", (2, 4, 9), "kernel_h & kernel_w can only be used for 2D convolution."),
    ("kernel_h: 2", (2, 4, 9, 9), "Filter dimensions must be nonzero.; got 2, 0"),
    ("kernel_size: 0", (2, 4, 9, 9), "Filter dimensions must be nonzero.; got 0, 0"),
    ("", (2, 4, 9, 9), "kernel_size must be specified once, or once per spatial dimension "
     "(kernel_size specified 0 times; 2 spatial dims)."),
    ("kernel_size: [2, 2, 2]", (2, 4, 9, 9), "(kernel_size specified 3 times; 2 spatial dims)."),
    ("kernel_size: 3 stride: 1 stride_w: 1", (2, 4, 9, 9),
     "Either stride or stride_h/w should be specified; not both."),
    ("kernel_size: 3 stride_h: 2", (2, 4, 9, 9), "Stride dimensions must be nonzero.; got 2, 0"),
    ("kernel_size: 3 stride_h: 2 stride_w: 2", (2, 4, 9),
     "stride_h & stride_w can only be used for 2D convolution.; there are 1 spatial axes"),
    ("kernel_size: 3 stride: [1, 1, 1]", (2, 4, 9, 9), "(stride specified 3 times; 2 spatial dims)."),
    ("kernel_size: 3 pad: 1 pad_h: 1", (2, 4, 9, 9), "Either pad or pad_h/w should be specified; not both."),
    ("kernel_size: 3 pad_h: 1", (2, 4, 9), "pad_h & pad_w can only be used for 2D convolution."),
    ("kernel_size: 3 pad: [1, 1, 1]", (2, 4, 9, 9), "(pad specified 3 times; 2 spatial dims)."),
    ("kernel_size: 3 dilation: [1, 1, 1]", (2, 4, 9, 9), "(dilation specified 3 times; 2 spatial dims)."),
    ("kernel_size: 3 dilation: 0", (2, 4, 9, 9), "Dilation dimensions must be nonzero.; got 0, 0"),
    ("kernel_size: 3 axis: 4", (2, 4, 9, 9), "axis 4 out of range for a blob with 4 axes"),
]  # fmt: skip


@pytest.mark.parametrize(("fields", "shape", "message"), CONVOLUTION_REFUSED)
def test_convolution_refuses(fields: str, shape: Shape, message: str) -> None:
    for kind in ("Convolution", "Deconvolution"):
        with refused(message):
            build(convolution(fields, kind), shape)


def test_convolution_refuses_counts_and_sizes() -> None:
    with refused("layer 'it' (Convolution): convolution_param.num_output must be positive, got 0"):
        build('type: "Convolution"', (2, 4, 9, 9))
    with refused("convolution_param.group must be positive, got 0"):
        build(convolution("group: 0"), (2, 4, 9, 9))
    with refused("Number of input channels should be multiples of group 4.; got 6"):
        build(convolution("kernel_size: 1 group: 4"), (2, 6, 9, 9))
    with refused("Number of output should be multiples of group 3.; got 4"):
        build(convolution("kernel_size: 1 group: 3"), (2, 6, 9, 9))
    with refused("nothing would be left of bottom (2, 6, 2, 9): the top's spatial sizes would be (0, 7)"):
        build(convolution("kernel_size: 3"), (2, 6, 2, 9))
    with refused("nothing would be left of bottom (2, 6, 1, 9)"):
        build(convolution("kernel_size: 3 pad: 2", "Deconvolution"), (2, 6, 1, 9))
    layer = build(convolution("kernel_size: 3"), (2, 6, 9, 9))
    with refused("bottom num_axes may not change.; got (2, 6, 9)"):
        layer.checked_top_shapes([(2, 6, 9)])
    with refused("Input size incompatible with convolution kernel.; got 3 channels (axis 1 of (2, 3, 9, 9))"):
        layer.checked_top_shapes([(2, 3, 9, 9)])
    assert layer.checked_top_shapes([(5, 6, 3, 11)]) == [(5, 4, 1, 9)]


# -- Im2col ------------------------------------------------------------------------------------------------


IM2COL = 'type: "Im2col" convolution_param {{ {} }}'


@pytest.mark.parametrize(
    ("fields", "shape"),
    [(fields, shape) for fields, shape, group, kernel, *_ in GEOMETRIES if group == 1 and kernel]
    + [("kernel_size: 2 stride: 2", (3, 6, 7)), ("kernel_size: 2 axis: 2 dilation: 2", (2, 3, 2, 5))],
)
def test_im2col_times_the_weights_is_the_convolution(fields: str, shape: Shape) -> None:
    layer = build(convolution(f"{fields} bias_term: false"), shape)
    columns = build(IM2COL.format(fields), shape)
    x = normal(*shape)
    (column,) = run(columns, x)
    assert columns.checked_top_shapes([shape]) == [tuple(column.shape)]
    axis = x.dim() - len(layer.blob_shapes[0]) + 1
    want = torch.tensordot(column.movedim(axis, -1), layer.blob(0).flatten(1).t(), 1).movedim(-1, axis)
    assert_close(run(layer, x)[0], want)


def test_im2col_moves_values_only() -> None:
    layer = build(IM2COL.format("kernel_size: 2 stride: 3 pad: 1"), (1, 2, 4, 4))
    x = torch.arange(32.0).reshape(1, 2, 4, 4)
    x[0, 0, 1, 2] = torch.inf  # meets no other value
    (top,) = run(layer, x)
    assert top.shape == (1, 8, 2, 2)
    assert top[0, 0].tolist() == [[0, 0], [0, 10]]
    assert top[0, 7].tolist() == [[16, 19], [28, 31]]
    check_contract(IM2COL.format("kernel_size: 2 stride: 3 pad: 1"), normal(2, 3, 5, 4))
    check_gradient(IM2COL.format("kernel_h: 2 kernel_w: 3 pad_w: 1 dilation: 2"), normal(2, 1, 4, 5))


@pytest.mark.parametrize(
    ("fields", "shape"),
    [("kernel_size: 2 stride: 3 pad: 1", (2, 3, 5, 4)), ("kernel_size: 3 stride: 4", (2, 3, 2, 2)),
     ("kernel_size: 2 axis: 2", (2, 3, 2, 5)), ("kernel_size: 2", (2, 2, 3, 3, 3)),
     ("kernel_size: 2", (2, 2, 3, 2, 3, 2))],
)  # fmt: skip
def test_im2col_in_onnx(fields: str, shape: Shape) -> None:
    check_onnx(IM2COL.format(fields), normal(*shape))


def test_im2col_passes_over_and_refuses() -> None:
    assert build(IM2COL.format("kernel_size: 2 num_output: 3"), (2, 3, 4, 4)).leftovers == [
        "convolution_param.num_output"
    ]
    with refused("there must be spatial axes behind the channel axis; bottom is (2, 3)"):
        build(IM2COL.format("kernel_size: 2"), (2, 3))
    with refused("windows of (5, 5) do not fit bottom (2, 3, 4, 6) with pad (0, 0)"):
        build(IM2COL.format("kernel_size: 5"), (2, 3, 4, 6))
    layer = build(IM2COL.format("kernel_size: 2"), (2, 3, 4, 6))
    with refused("bottom num_axes may not change.; got (2, 3, 4)"):
        layer.checked_top_shapes([(2, 3, 4)])


# -- Pooling -----------------------------------------------------------------------------------------------


COUNTS = [
    # size, kernel, stride, pad, windows, windows with FLOOR
    (32, 3, 2, 0, 16, 15),
    (112, 3, 2, 0, 56, 55),
    (224, 2, 2, 0, 112, 112),
    (7, 3, 2, 1, 4, 4),
    (6, 3, 2, 1, 4, 3),
    (5, 2, 2, 0, 3, 2),
    (5, 2, 2, 1, 3, 3),
    (4, 2, 2, 1, 3, 3),
    (5, 3, 3, 1, 2, 2),
    (4, 3, 4, 2, 2, 2),
    (6, 3, 5, 2, 2, 2),
    (5, 2, 5, 1, 2, 2),
    (6, 2, 6, 1, 2, 2),
    (7, 2, 6, 1, 2, 2),
    (3, 2, 4, 1, 1, 1),  # ceil says 2; the second would start behind size + pad
    (3, 2, 5, 0, 2, 1),  # the second is empty
    (2, 3, 2, 0, 1, 0),  # sticks out at once
]


@pytest.mark.parametrize(("size", "kernel", "stride", "pad", "ceil", "floor"), COUNTS)
@pytest.mark.parametrize("pool", ["MAX", "AVE"])
def test_pooling_counts_windows_as_caffe(
    size: int, kernel: int, stride: int, pad: int, ceil: int, floor: int, pool: str
) -> None:
    fields = f"pool: {pool} kernel_size: {kernel} stride: {stride} pad: {pad}"
    shape = (1, 2, size, size)
    assert build(pooling(fields), shape).checked_top_shapes([shape]) == [(1, 2, ceil, ceil)]
    if floor:
        layer = build(pooling(fields + " round_mode: FLOOR"), shape)
        assert layer.checked_top_shapes([shape]) == [(1, 2, floor, floor)]
        assert run(layer, normal(*shape))[0].shape == (1, 2, floor, floor)
    else:
        with refused(
            f"no window of {kernel} x {kernel} with stride ({stride}, {stride}) and pad ({pad}, {pad})"
        ):
            build(pooling(fields + " round_mode: FLOOR"), shape)


def test_ceil_mode_is_the_forks_word_for_round_mode() -> None:
    x = normal(1, 2, 8, 9)
    for forks, caffes in (("ceil_mode: true", "CEIL"), ("ceil_mode: false", "FLOOR")):
        for fields in ("kernel_size: 3 stride: 2", "kernel_size: 3 stride: 2 pad: 1 pool: AVE"):
            got, want = (run(build(pooling(f"{fields} {mode}"), x.shape), x)[0]
                         for mode in (forks, f"round_mode: {caffes}"))  # fmt: skip
            assert torch.equal(got, want)
            if caffes == "FLOOR":
                assert got.shape != run(build(pooling(fields), x.shape), x)[0].shape
        build(pooling(f"kernel_size: 3 {forks} round_mode: {caffes}"), x.shape)
    for mode in ("ceil_mode: true round_mode: FLOOR", "ceil_mode: false round_mode: CEIL"):
        with refused(f"and round_mode is {mode.split()[-1]}; write one of them"):
            build(pooling(f"kernel_size: 3 {mode}"), x.shape)


class Literal:
    """Caffe's pooling of one (H, W) plane, window by window."""

    def __init__(self, size: Shape, kernel: Shape, stride: Shape, pad: Shape, floor: bool) -> None:
        self.size, self.kernel, self.stride, self.pad = size, kernel, stride, pad
        rounded = np.floor if floor else np.ceil
        self.count = [
            int(rounded(np.float32(size[i] + 2 * pad[i] - kernel[i]) / np.float32(stride[i]))) + 1
            for i in (0, 1)
        ]
        if any(pad):
            for i in (0, 1):
                if (self.count[i] - 1) * stride[i] >= size[i] + pad[i]:
                    self.count[i] -= 1

    def windows(self) -> Iterator[tuple[tuple[int, int], list[tuple[int, int]], int]]:
        """(place, pixels in row-major order, AVE's divisor) of each window."""
        for place in np.ndindex(*self.count):
            start = [place[i] * self.stride[i] - self.pad[i] for i in (0, 1)]
            end = [min(start[i] + self.kernel[i], self.size[i] + self.pad[i]) for i in (0, 1)]
            divisor = (end[0] - start[0]) * (end[1] - start[1])
            rows, columns = (range(max(start[i], 0), min(end[i], self.size[i])) for i in (0, 1))
            yield (place[0], place[1]), list(product(rows, columns)), divisor

    def maximum(
        self, x: NDArray[np.float32], top_diff: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.float32]]:
        """top, mask, bottom diff"""
        top = np.full(self.count, np.finfo(np.float32).min, np.float32)
        mask, diff = np.full(self.count, -1, np.float32), np.zeros(self.size, np.float32)
        for place, pixels, _ in self.windows():
            best = None
            for pixel in pixels:
                if x[pixel] > top[place]:
                    top[place], best = x[pixel], pixel
            if best is not None:
                mask[place] = best[0] * self.size[1] + best[1]
                diff[best] += top_diff[place]
        return top, mask, diff

    def average(
        self, x: NDArray[np.float32], top_diff: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """top, bottom diff"""
        top, diff = np.zeros(self.count, np.float32), np.zeros(self.size, np.float32)
        for place, pixels, divisor in self.windows():
            total = sum(float(x[pixel]) for pixel in pixels)
            top[place] = total / divisor if divisor else nan
            for pixel in pixels:
                diff[pixel] += top_diff[place] / divisor
        return top, diff

    def drawn(
        self, x: NDArray[np.float32], draws: NDArray[np.float32], top_diff: NDArray[np.float32]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """STOCHASTIC in TRAIN: top, bottom diff; 0 where no pixel is drawn"""
        top, diff = np.zeros(self.count, np.float32), np.zeros(self.size, np.float32)
        for place, pixels, _ in self.windows():
            threshold = draws[place] * np.float32(sum(x[pixel] for pixel in pixels))
            total = np.float32(0)
            for pixel in pixels:
                total += x[pixel]
                if total >= threshold:
                    top[place] = x[pixel]
                    diff[pixel] += top_diff[place]
                    break
        return top, diff

    def expected(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """STOCHASTIC in TEST"""
        top = np.zeros(self.count, np.float32)
        for place, pixels, _ in self.windows():
            total = sum(float(x[pixel]) for pixel in pixels)
            if total > 0:
                top[place] = sum(float(x[pixel]) ** 2 for pixel in pixels) / total
        return top


def geometries(count: int, seed: int) -> Iterator[tuple[str, Literal]]:
    """Random ones: rectangular, padded up to kernel - 1, strides beyond the kernel, both roundings."""
    random = np.random.default_rng(seed)
    while count:
        size, kernel = random.integers(1, 10, 2), random.integers(1, 6, 2)
        stride, pad = random.integers(1, 8, 2), random.integers(0, kernel) * random.integers(0, 2, 2)
        floor = bool(random.integers(0, 2))
        literal = Literal(*(tuple(v.tolist()) for v in (size, kernel, stride, pad)), floor)
        if min(literal.count) > 0:
            count -= 1
            sides = zip("hw", kernel, stride, pad, strict=True)
            fields = " ".join(f"kernel_{c}: {k} stride_{c}: {s} pad_{c}: {p}" for c, k, s, p in sides)
            yield f"{fields} round_mode: {'FLOOR' if floor else 'CEIL'}", literal


def test_max_pooling_is_the_literal_one() -> None:
    """Values, mask and gradient, bit for bit, in both memory layouts; small whole numbers, so ties abound."""
    empty = padded = 0
    for index, (fields, literal) in enumerate(geometries(150, seed=1)):
        random = np.random.default_rng(index)
        x = random.integers(-2, 3, (2, 3, *literal.size)).astype(np.float32)
        top_diff = random.integers(-8, 9, (2, 3, *literal.count)).astype(np.float32)
        planes = [literal.maximum(x[i], top_diff[i]) for i in np.ndindex(2, 3)]
        top, mask, diff = (np.stack(part).reshape(2, 3, *part[0].shape) for part in zip(*planes, strict=True))
        empty += bool((mask < 0).any())
        padded += max(literal.pad) > 1
        for tops, layout in product(
            ("", 'top: "t" top: "m"'), (torch.contiguous_format, torch.channels_last)
        ):
            bottom = torch.from_numpy(x).to(memory_format=layout).requires_grad_()
            layer = build(pooling(fields) + tops, x.shape)
            got = run(layer, bottom)
            np.testing.assert_array_equal(got[0].detach().numpy(), top, err_msg=fields)
            if tops:
                np.testing.assert_array_equal(got[1].numpy(), mask, err_msg=fields)
            got[0].backward(torch.from_numpy(top_diff))
            assert bottom.grad is not None
            np.testing.assert_array_equal(bottom.grad.numpy(), diff, err_msg=fields)
    assert empty > 5 and padded > 30  # the odd ones were among them


def test_average_pooling_is_the_literal_one() -> None:
    empty = 0
    for index, (fields, literal) in enumerate(geometries(150, seed=2)):
        random = np.random.default_rng(index)
        x = random.standard_normal((2, 3, *literal.size)).astype(np.float32)
        top_diff = random.standard_normal((2, 3, *literal.count)).astype(np.float32)
        planes = [literal.average(x[i], top_diff[i]) for i in np.ndindex(2, 3)]
        top, diff = (np.stack(part).reshape(2, 3, *part[0].shape) for part in zip(*planes, strict=True))
        empty += bool(np.isnan(top).any())
        for layout in (torch.contiguous_format, torch.channels_last):
            bottom = torch.from_numpy(x).to(memory_format=layout).requires_grad_()
            (got,) = run(build(pooling(fields + " pool: AVE"), x.shape), bottom)
            assert_close(got.detach(), torch.from_numpy(top))
            got.backward(torch.from_numpy(top_diff))
            assert bottom.grad is not None
            assert_close(bottom.grad, torch.from_numpy(diff))
    assert empty > 5


def pool_windows(literal: Literal, fields: str) -> PoolWindows:
    sides = [(pair[0], pair[1]) for pair in (literal.kernel, literal.stride)]
    return PoolWindows(*sides, floor="FLOOR" in fields)


def test_stochastic_pooling_draws_as_the_literal_one() -> None:
    """Values and gradient, bit for bit: small whole numbers, negative ones and empty windows among them."""
    undrawn = 0
    for index, (fields, literal) in enumerate(geometries(200, seed=4)):
        if any(literal.pad):
            continue
        random = np.random.default_rng(index)
        x = random.integers(-1, 5, (2, 3, *literal.size)).astype(np.float32)
        draws = random.choice([0, 0.25, 0.5, 0.75, 1], (2, 3, *literal.count)).astype(np.float32)
        top_diff = random.integers(-8, 9, (2, 3, *literal.count)).astype(np.float32)
        planes = [literal.drawn(x[i], draws[i], top_diff[i]) for i in np.ndindex(2, 3)]
        top, diff = (np.stack(part).reshape(2, 3, *part[0].shape) for part in zip(*planes, strict=True))
        undrawn += bool((top == 0).any())
        for layout in (torch.contiguous_format, torch.channels_last):
            bottom = torch.from_numpy(x).to(memory_format=layout).requires_grad_()
            got = drawn_pool(bottom, pool_windows(literal, fields), torch.from_numpy(draws))
            np.testing.assert_array_equal(got.detach().numpy(), top, err_msg=fields)
            got.backward(torch.from_numpy(top_diff))
            assert bottom.grad is not None
            np.testing.assert_array_equal(bottom.grad.numpy(), diff, err_msg=fields)
    assert undrawn > 20


def test_stochastic_pooling_draws_with_a_probability_like_the_value() -> None:
    x = torch.tensor([[1.0, 3], [0, 4]]).expand(1, 20000, 2, 2)
    draws = torch.from_numpy(CaffeRandom(1).uniform(20000, 0, 1)).view(1, 20000, 1, 1)
    drawn = drawn_pool(x, PoolWindows((2, 2), (1, 1)), draws)
    shares = [float((drawn == value).float().mean()) for value in (1, 3, 4, 0)]
    np.testing.assert_allclose(shares, [1 / 8, 3 / 8, 4 / 8, 0], atol=tolerance("drawn share").atol)


def test_stochastic_pooling_of_odd_sums() -> None:
    """A sum that no running sum reaches, a sum that is not finite, a window of zeros."""
    x = torch.tensor([[-3.0, 1], [torch.nan, 1], [0, 0], [torch.inf, 2]]).view(1, 4, 1, 2).requires_grad_()
    windows = PoolWindows((1, 2), (1, 1))
    drawn = drawn_pool(x, windows, torch.full((1, 4, 1, 1), 0.5)).flatten()
    torch.testing.assert_close(
        drawn, torch.tensor([0, torch.nan, 0, torch.inf]), equal_nan=True, rtol=0, atol=0
    )
    assert expected_pool(x, windows).flatten()[:3].tolist() == [0, 0, 0]  # Caffe: NaN is not above 0


def test_stochastic_pooling_in_test_is_the_literal_mean() -> None:
    positive = 0
    for index, (fields, literal) in enumerate(geometries(200, seed=5)):
        if any(literal.pad):
            continue
        random = np.random.default_rng(index)
        x = np.maximum(random.standard_normal((2, 3, *literal.size)), 0).astype(np.float32)
        top = np.stack([literal.expected(x[i]) for i in np.ndindex(2, 3)]).reshape(2, 3, *literal.count)
        positive += bool((top > 0).any())
        got = expected_pool(torch.from_numpy(x), pool_windows(literal, fields))
        assert_close(got, torch.from_numpy(top))
    assert positive > 20
    x = (1 + normal(1, 2, 5, 4, dtype=torch.float64).abs()).requires_grad_()
    windows = PoolWindows((3, 2), (2, 2))
    rtol, atol, _ = tolerance("gradient", "float64")
    assert torch.autograd.gradcheck(lambda x: expected_pool(x, windows), [x], rtol=rtol, atol=atol)


STOCHASTIC = "pool: STOCHASTIC kernel_size: 3 stride: 2"


@pytest.mark.parametrize("phase", ["TRAIN", "TEST"])
def test_stochastic_pooling_computes_on_a_gpu_only(phase: str) -> None:
    x = normal(2, 3, 8, 7).abs()
    for text in (pooling(STOCHASTIC), spp(1, "STOCHASTIC")):
        layer = build(f"{text} phase: {phase}", x.shape)
        with refused("Not Implemented Yet: pool STOCHASTIC on the CPU; compute on a GPU, or use MAX or AVE"):
            run(layer, x)
        assert layer.random.word() == CaffeRandom(1).word()
        layer.on_cpu = True  # as an export does for its check
        (top,) = run(layer, x)
        assert [tuple(top.shape)] == layer.checked_top_shapes([tuple(x.shape)])


@pytest.mark.parametrize("device_masks", [False, True])
def test_stochastic_pooling_draws_from_the_run_or_the_device(device_masks: bool) -> None:
    layer = build(pooling(f"{STOCHASTIC}") + " phase: TRAIN", (2, 3, 8, 7))
    layer.device_masks = device_masks
    (top,) = run(layer, torch.empty(2, 3, 8, 7, device="meta"))  # without values: seen is only who draws
    assert top.shape == (2, 3, 4, 3) and top.device.type == "meta"
    drawn = 0 if device_masks else top.numel()
    assert layer.random.word() == CaffeRandom(1).words(drawn + 1)[-1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="stochastic pooling computes on a GPU")
@pytest.mark.parametrize("device_masks", [False, True])
def test_stochastic_pooling_on_a_gpu(device_masks: bool) -> None:
    x = normal(2, 3, 8, 7).abs().cuda()
    windows = PoolWindows((3, 3), (2, 2))
    layer = build(pooling(STOCHASTIC) + " phase: TRAIN", x.shape)
    layer.device_masks = device_masks
    torch.cuda.manual_seed(5)
    (top,) = run(layer, x)
    torch.cuda.manual_seed(5)
    draws = torch.from_numpy(CaffeRandom(1).uniform(top.numel(), 0, 1)).view(top.shape)
    if device_masks:
        draws = (1 - torch.rand(top.shape, device="cuda")).cpu()
    assert torch.equal(top.cpu(), drawn_pool(x.cpu(), windows, draws))
    (mean,) = run(build(pooling(STOCHASTIC) + " phase: TEST", x.shape), x)
    assert_close(mean.cpu(), expected_pool(x.cpu(), windows))


def test_global_pooling_follows_the_size_of_the_bottom() -> None:
    for pool, function in (("MAX", torch.amax), ("AVE", torch.mean)):
        layer = build(pooling(f"pool: {pool} global_pooling: true"), (2, 3, 4, 5))
        for size in ((4, 5), (7, 3), (1, 1)):
            x = normal(2, 3, *size)
            assert layer.checked_top_shapes([(2, 3, *size)]) == [(2, 3, 1, 1)]
            assert_close(run(layer, x)[0], function(x, (2, 3), keepdim=True))


@pytest.mark.parametrize(
    "fields",
    [
        "kernel_size: 3 stride: 2",
        "kernel_size: 3 stride: 2 pad: 2",
        "kernel_size: 2 pool: AVE stride: 2",
        "kernel_size: 3 stride: 2 pad: 2 pool: AVE",
    ],
)
def test_pooling_contract_and_gradient(fields: str) -> None:
    x = torch.from_numpy(np.random.default_rng(3).permutation(70).reshape(2, 1, 5, 7)).float() / 10
    check_contract(pooling(fields), x)
    check_gradient(pooling(fields), x)


def test_pooling_in_onnx() -> None:
    check_onnx(pooling("kernel_size: 2 stride: 5") + ' top: "t" top: "m"', normal(2, 3, 3, 10))
    for fields, literal in geometries(15, seed=3):
        for pool in ("MAX", "AVE"):
            check_onnx(pooling(f"{fields} pool: {pool}"), normal(2, 3, *literal.size), opsets=(13,))
        check_onnx(pooling(fields) + ' top: "t" top: "m"', normal(2, 3, *literal.size), opsets=(13,))
    for pool in ("MAX", "AVE"):
        check_onnx(pooling(f"pool: {pool} kernel_size: 3 stride: 2"), normal(2, 3, 8, 8))
        check_onnx(pooling(f"pool: {pool} kernel_size: 3 stride: 2 pad: 2"), normal(2, 3, 8, 8))
        check_onnx(pooling(f"pool: {pool} kernel_size: 2 stride: 5"), normal(2, 3, 3, 10))  # empty windows
        check_onnx(pooling(f"pool: {pool} global_pooling: true"), normal(2, 3, 5, 8))
        check_onnx(pooling(f"pool: {pool} kernel_size: 3 stride: 2 ceil_mode: false"), normal(2, 3, 8, 8))


def test_stochastic_pooling_in_onnx(tmp_path: Path) -> None:
    """Windows of zeros and empty ones among them; exported and checked where there is no GPU."""
    input_layer = "input_param { shape { dim: 2 dim: 3 dim: 3 dim: 11 } }"
    for name, text in {
        "clipped": pooling("pool: STOCHASTIC kernel_size: 2 stride: 3"),
        "empty": pooling("pool: STOCHASTIC kernel_size: 2 stride: 5"),
        "whole": pooling("pool: STOCHASTIC global_pooling: true"),
        "spp": spp(1, "STOCHASTIC"),
    }.items():
        net = parse_net(f"""
            layer {{ name: "in" type: "Input" top: "x" {input_layer} }}
            layer {{ name: "relu" type: "ReLU" bottom: "x" top: "y" }}
            layer {{ name: "pool" {text} bottom: "y" top: "z" }}""")
        for opset in (13, 22):
            result = export_file(net, None, tmp_path / f"{name}.onnx", ExportOptions(opset=opset))
            assert result.largest > 0
            assert result.difference <= tolerance("onnx").rtol * result.largest


POOLING_REFUSED = [
    (
        "pool: STOCHASTIC kernel_size: 2 pad_h: 1 pad_w: 0",
        "Padding implemented only for average and max pooling.; got pad (1, 0)",
    ),
    ("", "Filter size is kernel_size OR kernel_h and kernel_w; not both"),
    ("kernel_h: 2", "Filter size is kernel_size OR kernel_h and kernel_w; not both"),
    (
        "kernel_size: 2 kernel_h: 2 kernel_w: 2",
        "Filter size is kernel_size OR kernel_h and kernel_w; not both",
    ),
    ("kernel_size: 0", "Filter dimensions cannot be zero.; got 0 x 0"),
    ("kernel_h: 2 kernel_w: 0", "Filter dimensions cannot be zero.; got 2 x 0"),
    ("kernel_size: 2 stride: 0", "Stride dimensions cannot be zero.; got 0 and 0"),
    (
        "kernel_size: 2 stride: 2 stride_h: 2 stride_w: 2",
        "Stride is stride OR stride_h and stride_w are required.",
    ),
    ("kernel_size: 2 stride_w: 2", "Stride is stride OR stride_h and stride_w are required."),
    ("kernel_size: 2 pad: 1 pad_h: 1 pad_w: 1", "pad is pad OR pad_h and pad_w are required."),
    ("kernel_size: 2 pad_h: 1", "pad is pad OR pad_h and pad_w are required."),
    ("kernel_size: 2 pad: 2", "pad must be smaller than the kernel; got pad (2, 2) and kernel (2, 2)"),
    ("global_pooling: true kernel_size: 2", "With Global_pooling: true Filter size cannot specified"),
    (
        "global_pooling: true pad: 1",
        "With Global_pooling: true; only pad = 0 and stride = 1; got (1, 1) and (1, 1)",
    ),
    ("global_pooling: true stride: 2", "With Global_pooling: true; only pad = 0 and stride = 1"),
    ("kernel_size: 7", "no window of 7 x 7 with stride (1, 1) and pad (0, 0) fits bottom (2, 3, 5, 5)"),
]


@pytest.mark.parametrize(("fields", "message"), POOLING_REFUSED)
def test_pooling_refuses(fields: str, message: str) -> None:
    with refused(message):
        build(pooling(fields), (2, 3, 5, 5))


def test_pooling_refuses_axes_and_tops() -> None:
    with refused("Input must have 4 axes, corresponding to (num, channels, height, width); got (2, 3, 5)"):
        build(pooling("kernel_size: 2"), (2, 3, 5))
    with refused("Pooling Layer produces at most 1 top blob(s) as output.; got 2 for AVE"):
        build(pooling("kernel_size: 2 pool: AVE") + ' top: "a" top: "b"', (2, 3, 5, 5))
    with refused("Pooling Layer produces at most 1 top blob(s) as output.; got 2 for STOCHASTIC"):
        build(pooling("kernel_size: 2 pool: STOCHASTIC") + ' top: "a" top: "b"', (2, 3, 5, 5))


# -- SPP and Crop ------------------------------------------------------------------------------------------


def spp(height: int, pool: str = "MAX") -> str:
    return f'type: "SPP" spp_param {{ pyramid_height: {height} pool: {pool} }}'


@pytest.mark.parametrize("pool", ["MAX", "AVE"])
@pytest.mark.parametrize("size", [(8, 8), (13, 9), (6, 7)])
def test_spp_is_pooling_level_by_level(pool: str, size: Shape) -> None:
    layer = build(spp(3, pool), (2, 3, *size))
    x = normal(2, 3, *size)
    levels = []
    for bins in (1, 2, 4):
        kernel = [-(-n // bins) for n in size]
        pad = [(k * bins - n + 1) // 2 for k, n in zip(kernel, size, strict=True)]
        fields = (
            f"pool: {pool} kernel_h: {kernel[0]} kernel_w: {kernel[1]} stride_h: {kernel[0]} "
            f"stride_w: {kernel[1]} pad_h: {pad[0]} pad_w: {pad[1]}"
        )
        levels.append(run(build(pooling(fields), x.shape), x)[0].flatten(1))
    want = torch.cat(levels, 1)
    assert layer.checked_top_shapes([tuple(x.shape)]) == [tuple(want.shape)]
    assert torch.equal(run(layer, x)[0], want)
    check_onnx(spp(3, pool), x, opsets=(13, 22))


def test_spp_of_one_level_keeps_its_axes() -> None:
    assert build(spp(1), (2, 3, 5, 4)).checked_top_shapes([(2, 3, 5, 4)]) == [(2, 3, 1, 1)]
    check_contract(spp(1), normal(2, 3, 5, 4))
    check_contract(spp(2, "AVE"), normal(2, 3, 5, 4))
    check_gradient(spp(2), normal(2, 1, 5, 4))
    check_onnx(spp(1), normal(2, 3, 5, 4))


def test_spp_follows_the_size_of_the_bottom() -> None:
    layer = build(spp(3), (2, 3, 8, 8))
    for size in ((13, 9), (16, 16)):
        assert layer.checked_top_shapes([(2, 3, *size)]) == [(2, 63)]
        assert run(layer, normal(2, 3, *size))[0].shape == (2, 63)


def test_spp_refuses() -> None:
    with refused("Padding implemented only for average and max pooling.; got pad (1, 0)"):
        build(spp(2, "STOCHASTIC"), (2, 3, 5, 4))
    with refused("spp_param.pyramid_height must be 1 or more, got 0"):
        build('type: "SPP"', (2, 3, 5, 4))
    with refused("level 2 of the pyramid would need pad (2, 0) for kernel (2, 1), which must be larger"):
        build(spp(3), (2, 3, 5, 4))
    with refused("Input must have 4 axes"):
        build(spp(1), (2, 3, 5))


def crop(fields: str = "") -> str:
    return f'type: "Crop" crop_param {{ {fields} }}'


@pytest.mark.parametrize(
    ("fields", "reference", "part"),
    [
        ("", (9, 9, 3, 2), np.s_[:, :, :3, :2]),
        ("offset: 1", (9, 9, 3, 2), np.s_[:, :, 1:4, 1:3]),
        ("offset: 2 offset: 1", (9, 9, 3, 4), np.s_[:, :, 2:5, 1:5]),
        ("axis: 1 offset: 0 offset: 1 offset: 2", (9, 2, 3, 2), np.s_[:, :2, 1:4, 2:4]),
        ("axis: -1 offset: 3", (9, 9, 9, 1), np.s_[:, :, :, 3:4]),
        ("axis: 0", (2, 3, 5, 5), np.s_[:2]),
    ],
)
def test_crop_takes_the_part(fields: str, reference: Shape, part: tuple[slice, ...]) -> None:
    x, size = normal(4, 3, 5, 5), torch.zeros(reference)
    layer = build(crop(fields), x.shape, reference)
    (top,) = run(layer, x, size)
    assert torch.equal(top, x[part])
    assert layer.checked_top_shapes([tuple(x.shape), reference]) == [tuple(top.shape)]
    assert top.data_ptr() != x.data_ptr()
    diff, nothing = diffs(layer, x, size)
    want = torch.zeros_like(x)
    want[part] = 1
    assert nothing is None and diff is not None and torch.equal(diff, want)
    if "axis: 0" not in fields:
        check_onnx(crop(fields), x, size)


def test_crop_along_the_batch_in_onnx() -> None:
    check_onnx(crop("axis: 0 offset: 1 offset: 0"), normal(4, 3), torch.zeros(2, 3))
    check_contract(crop("offset: 1"), normal(2, 3, 5, 5), torch.zeros(2, 3, 3, 2))


def test_crop_refuses() -> None:
    with refused(
        "the crop for dimension 3 is out-of-bounds with size 4 and offset 2; bottom[0] is (2, 3, 5, 5)"
    ):
        build(crop("offset: 1 offset: 2"), (2, 3, 5, 5), (2, 3, 4, 4))
    with refused(
        "number of offset values specified must be equal to the number of dimensions following axis"
    ):
        build(crop("offset: [1, 1, 1]"), (2, 3, 5, 5), (2, 3, 2, 2))
    with refused("axis 4 out of range for a blob with 4 axes"):
        build(crop("axis: 4"), (2, 3, 5, 5), (2, 3, 2, 2))
    with refused("bottom[1] must have as many axes as bottom[0]; got (2, 3, 2) and (2, 3, 5, 5)"):
        build(crop(), (2, 3, 5, 5), (2, 3, 2))


def test_a_blob_of_another_size_given_in_the_prototxt_is_refused() -> None:
    blobs = " ".join("blobs { shape { dim: 5 } data: [1, 2, 3, 4, 5] }" for _ in range(2))
    with refused("blob 0 of its prototxt has shape (5,), needs (4, 3, 1, 1)"):
        build(convolution("kernel_size: 1") + blobs, (2, 3, 4, 4))
    weight = f"blobs {{ shape {{ dim: 4 dim: 3 dim: 1 dim: 1 }} data: {list(range(12))} }}"
    layer = build(convolution("kernel_size: 1 bias_term: false") + weight, (2, 3, 4, 4), seed=4)
    assert layer.blob(0).flatten().tolist() == list(range(12)) and prod(layer.blob_shapes[0]) == 12
