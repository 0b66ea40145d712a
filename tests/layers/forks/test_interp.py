"""Interp against an independent, slow interpolation: sizes, cropping, values, ONNX, errors."""

from __future__ import annotations

import pytest
import torch
from single_layer import build, check_contract, check_gradient, check_onnx, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.layers.layer import Shape

SHAPE = (2, 3, 5, 7)
SIZES = [
    ("zoom_factor: 2", (9, 13)),
    ("zoom_factor: 1", (5, 7)),
    ("shrink_factor: 2", (3, 4)),
    ("shrink_factor: 3", (2, 3)),
    ("shrink_factor: 9", (1, 1)),
    ("height: 11 width: 4", (11, 4)),
    ("height: 1 width: 7", (1, 7)),
    ("height: 5 width: 7", (5, 7)),
    ("shrink_factor: 2 zoom_factor: 3", (7, 10)),
    ("shrink_factor: 2 zoom_factor: 3 height: 4 width: 6", (4, 6)),
    ("zoom_factor: 2 height: 4 width: 6", (9, 13)),
    ("zoom_factor: 2 pad_beg: -1", (7, 11)),
    ("shrink_factor: 2 pad_beg: -1 pad_end: -2", (1, 2)),
    ("height: 6 width: 6 pad_beg: -2 pad_end: -1", (6, 6)),
]


def interp(fields: str) -> str:
    return f'type: "Interp" interp_param {{ {fields} }}'


def literal(x: Tensor, sizes: tuple[int, int], begin: int, end: int) -> Tensor:
    """Pixel by pixel: where each top pixel lies between the pixels of the cropped bottom."""
    x = x[:, :, begin : x.shape[2] - end, begin : x.shape[3] - end]
    top = torch.zeros(*x.shape[:2], *sizes)
    for row in range(sizes[0]):
        for column in range(sizes[1]):
            y = row * (x.shape[2] - 1) / (sizes[0] - 1) if sizes[0] > 1 else 0
            z = column * (x.shape[3] - 1) / (sizes[1] - 1) if sizes[1] > 1 else 0
            for i in range(x.shape[2]):
                for j in range(x.shape[3]):
                    share = max(0, 1 - abs(y - i)) * max(0, 1 - abs(z - j))
                    top[:, :, row, column] += share * x[:, :, i, j]
    return top


@pytest.mark.parametrize(("fields", "sizes"), SIZES)
def test_sizes_and_values(fields: str, sizes: tuple[int, int]) -> None:
    x = normal(*SHAPE)
    layer = build(interp(fields), x.shape)
    assert layer.checked_top_shapes([SHAPE]) == [(2, 3, *sizes)]
    param = layer.param.interp_param
    rtol, atol, _ = tolerance("same arithmetic")
    want = literal(x, sizes, -param.pad_beg, -param.pad_end)
    torch.testing.assert_close(run(layer, x)[0], want, rtol=rtol, atol=atol)


@pytest.mark.parametrize("fields", [fields for fields, _ in SIZES])
def test_contract_gradient_and_onnx(fields: str) -> None:
    x = normal(*SHAPE)
    check_contract(interp(fields), x)
    check_gradient(interp(fields), x)
    check_onnx(interp(fields), x)


def test_onnx_keeps_the_corners_in_their_places() -> None:
    """The other modes of Resize, half-pixel centres among them, give other numbers."""
    x = torch.arange(35.0).reshape(1, 1, 5, 7)
    (top,) = run(build(interp("height: 12 width: 12"), x.shape), x)
    assert torch.equal(top[0, 0, ::11, ::11], x[0, 0, ::4, ::6])
    other = torch.nn.functional.interpolate(x, (12, 12), mode="bilinear", align_corners=False)
    assert (top - other).abs().max() > 1


@pytest.mark.parametrize(("shape", "top"), [((2, 3), (2, 3, 1, 1)), ((2, 3, 4), (2, 3, 7, 1))])
def test_bottoms_of_fewer_axes(shape: Shape, top: Shape) -> None:
    x = normal(*shape)
    layer = build(interp("zoom_factor: 2"), shape)
    assert run(layer, x)[0].shape == top
    check_onnx(interp("zoom_factor: 2"), x)
    check_gradient(interp("zoom_factor: 2"), x)


def test_bottoms_without_images() -> None:
    layer = build(interp("zoom_factor: 2"), (0, 3, 4, 5))
    assert run(layer, torch.zeros(0, 3, 4, 5))[0].shape == (0, 3, 7, 9)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("", "no size: give height and width, zoom_factor, or shrink_factor"),
        ("height: 4", "no size: give height and width"),
        ("zoom_factor: 0", "zoom_factor must be positive; got 0"),
        ("shrink_factor: -1", "shrink_factor must be positive; got -1"),
        ("zoom_factor: 2 pad_beg: 1", "Only supports non-pos padding (cropping) for now; got pad_beg 1"),
        ("zoom_factor: 2 pad_end: 1", "Only supports non-pos padding (cropping) for now; got pad_end 1"),
        ("zoom_factor: 2 pad_beg: -5", "height and width should be positive; [0, 2] are left of bottom"),
        ("height: 0 width: 3", "height and width should be positive and fit into 32 bits; got [0, 3]"),
        ("zoom_factor: 2147483647", "fit into 32 bits; got [8589934589, 12884901883]"),
    ],
)
def test_errors(fields: str, message: str) -> None:
    with refused(message):
        build(interp(fields), SHAPE)


def test_five_axes_are_too_many() -> None:
    with refused("the bottom must have at most 4 axes, (N, C, H, W); got (1, 2, 3, 4, 5)"):
        build(interp("zoom_factor: 2"), (1, 2, 3, 4, 5))


def test_fields_that_another_one_overrules_are_listed() -> None:
    def leftovers(fields: str) -> list[str]:
        return build(interp(fields), SHAPE).leftovers

    assert leftovers("zoom_factor: 2 height: 3 width: 3") == ["interp_param.height", "interp_param.width"]
    assert leftovers("zoom_factor: 2 shrink_factor: 2 height: 3 width: 3") == [
        "interp_param.shrink_factor",
        "interp_param.zoom_factor",
    ]
    assert leftovers("shrink_factor: 2 zoom_factor: 3 width: 3") == ["interp_param.width"]
    assert leftovers("height: 3 width: 3") == []
