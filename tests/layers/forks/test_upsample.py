"""The two layers that are called Upsample, against copies pixel by pixel: values, gradients, ONNX, errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from single_layer import build, check_contract, check_gradient, check_onnx, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.converters.export_onnx import ExportOptions, export_file
from imae.layers.forks.upsample import MaskUpsample, NearestUpsample
from imae.layers.labels import LabelReader
from imae.layers.layer import Shape
from imae.layers.registry import class_of
from imae.prototxt import LayerParameter
from imae.prototxt.text import parse_net


def upsample(fields: str) -> str:
    return f'type: "Upsample" upsample_param {{ {fields} }}'


# -- which layer is meant ------------------------------------------------------------------------------------


def meant(text: str) -> type:
    return class_of(text_format.Parse(f'name: "it" type: "Upsample" {text}', LayerParameter()))


def test_the_bottoms_tell_which_layer_is_meant() -> None:
    assert meant('bottom: "x" bottom: "mask"') is MaskUpsample
    assert meant('bottom: "x" upsample_param { scale: 2 }') is NearestUpsample
    for bottoms in ("", 'bottom: "a" bottom: "b" bottom: "c"'):
        with refused(f"data and the mask of a Pooling layer, YOLO's has one; got {bottoms.count('bottom')}"):
            meant(bottoms)
    with refused("with one bottom it is YOLO's, which has no scale_h, upsample_w; SegNet's needs a second"):
        meant('bottom: "x" upsample_param { scale: 2 scale_h: 2 upsample_w: 4 }')


# -- YOLO ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1, 2, 3])
def test_nearest(scale: int) -> None:
    x = normal(2, 3, 4, 5)
    text = upsample(f"scale: {scale}")
    (top,) = run(build(text, x.shape), x)
    want = np.zeros((2, 3, 4 * scale, 5 * scale), np.float32)
    for place in np.ndindex(*want.shape):
        want[place] = x[place[0], place[1], place[2] // scale, place[3] // scale]
    assert torch.equal(top, torch.from_numpy(want))
    check_contract(text, x)
    check_gradient(text, x)
    check_onnx(text, x)


def test_nearest_defaults_and_errors() -> None:
    x = normal(1, 2, 3, 4)
    assert torch.equal(run(build('type: "Upsample"', x.shape), x)[0], x)
    with refused("upsample_param.scale must be at least 1; got 0"):
        build(upsample("scale: 0"), x.shape)
    with refused("the bottom must have 4 axes, (N, C, H, W); got (2, 3)"):
        build(upsample("scale: 2"), (2, 3))


# -- SegNet --------------------------------------------------------------------------------------------------

SIZES = [
    ("", (8, 12)),
    ("scale: 3", (12, 18)),
    ("scale_h: 2 scale_w: 3", (8, 18)),
    ("pad_out_h: true", (7, 12)),
    ("scale: 2 pad_out_h: true pad_out_w: true", (7, 11)),
    ("scale_h: 3 scale_w: 2 pad_out_w: true", (12, 11)),
    ("upsample_h: 9 upsample_w: 8", (9, 8)),
]
SHAPE = (2, 3, 4, 6)


def places(size: Shape, shape: Shape = SHAPE, repeated: bool = False) -> Tensor:
    """A mask of random places, other ones in each plane."""
    random, count = np.random.default_rng(3), shape[2] * shape[3]
    drawn = [
        random.integers(0, size[0] * size[1], count) if repeated
        else random.permutation(size[0] * size[1])[:count]
        for _ in range(shape[0] * shape[1])
    ]  # fmt: skip
    return torch.from_numpy(np.array(drawn, np.float32).reshape(shape))


def unpooled(data: Tensor, mask: Tensor, size: Shape) -> NDArray[np.float32]:
    """Value by value, in memory order."""
    top = np.zeros((*data.shape[:2], size[0] * size[1]), np.float32)
    for place in np.ndindex(*data.shape):
        top[place[0], place[1], int(mask[place])] = data[place]
    return top.reshape(*data.shape[:2], *size)


@pytest.mark.parametrize(("fields", "size"), SIZES)
def test_unpooling(fields: str, size: tuple[int, int]) -> None:
    data, text = normal(*SHAPE), upsample(fields)
    for repeated in (False, True):
        mask = places(size, repeated=repeated)
        layer = build(text, SHAPE, SHAPE)
        assert layer.checked_top_shapes([SHAPE, SHAPE]) == [(2, 3, *size)]
        assert layer.index_count(1, [SHAPE, SHAPE]) == size[0] * size[1]
        (top,) = run(layer, data, mask)
        assert torch.equal(top, torch.from_numpy(unpooled(data, mask, size)))
        top_diff = normal(2, 3, *size, seed=1)
        (got, none) = diffs(layer, data, mask, top_diffs=[top_diff])
        assert none is None
        assert got is not None
        flat = top_diff.flatten(2).numpy()
        for place in np.ndindex(*SHAPE):
            assert got[place] == flat[place[0], place[1], int(mask[place])]
    mask = places(size)
    check_contract(text, data, mask)
    check_gradient(text, data, mask, constant=(1,))
    check_onnx(text, data, mask)


def test_unpooling_follows_the_size_of_the_bottom() -> None:
    layer = build(upsample("scale: 2"), SHAPE, SHAPE)
    data, mask = normal(1, 2, 3, 3), places((6, 6), (1, 2, 3, 3))
    assert torch.equal(run(layer, data, mask)[0], torch.from_numpy(unpooled(data, mask, (6, 6))))
    empty = build(upsample("upsample_h: 5 upsample_w: 5"), (0, 3, 4, 6), (0, 3, 4, 6))
    assert run(empty, torch.zeros(0, 3, 4, 6), torch.zeros(0, 3, 4, 6))[0].shape == (0, 3, 5, 5)


@pytest.mark.parametrize("place", [96, 1000, -1])
def test_places_outside_of_the_plane(place: int, monkeypatch: pytest.MonkeyPatch) -> None:
    mask = places((8, 12))
    mask[1, 2, 3, 4] = place
    words = f"upsample top index {place} out of range - check scale settings match input pooling layer's"
    layer = build(upsample(""), SHAPE, SHAPE)
    with refused(words):
        layer(normal(*SHAPE), mask)
    # As on a device, where the host does not wait for the result.
    monkeypatch.setattr(LabelReader, "at_once", staticmethod(lambda label: False))
    layer(normal(*SHAPE), mask)
    (reader,) = [module for module in layer.modules() if isinstance(module, LabelReader)]
    with refused(words):
        reader.check()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ("scale_h: 2", "upsample_h & upsample_w are required, else (DEPRECATED) scale OR scale_h & scale_w"),
        ("scale: 2 scale_h: 2 scale_w: 2", "scale OR scale_h & scale_w are required."),
        ("upsample_h: 4 scale_w: 2", "upsample_h & upsample_w are required"),
        ("scale: 1", "scale, scale_h and scale_w must be above 1; got (1, 1)"),
        ("scale_h: 2 scale_w: 0", "scale, scale_h and scale_w must be above 1; got (2, 0)"),
        ("upsample_h: 1 upsample_w: 5", "upsample_h and upsample_w must be above 1; got (1, 5)"),
        ("scale: 3 pad_out_h: true", "Output height padding compensation requires scale_h == 2"),
        ("scale_h: 2 scale_w: 3 pad_out_w: true", "Output width padding compensation requires scale_w == 2"),
    ],
)
def test_errors(fields: str, message: str) -> None:
    with refused(message):
        build(upsample(fields), SHAPE, SHAPE)


def test_shapes_that_do_not_fit() -> None:
    with refused("the mask must have the shape of the data, (2, 3, 4, 6); got (2, 3, 4, 5)"):
        build(upsample(""), SHAPE, (2, 3, 4, 5))
    with refused("Input must have 4 axes, corresponding to (num, channels, height, width); got (2, 3)"):
        build(upsample(""), (2, 3), (2, 3))


def test_fields_that_another_one_overrules_are_listed() -> None:
    def leftovers(fields: str) -> list[str]:
        return build(upsample(fields), SHAPE, SHAPE).leftovers

    assert leftovers("scale: 2 upsample_h: 8 upsample_w: 12 pad_out_h: true") == [
        "upsample_param.scale",
        "upsample_param.pad_out_h",
    ]
    assert leftovers("upsample_h: 8") == ["upsample_param.upsample_h"]
    assert leftovers("scale: 2") == []


def test_a_net_that_pools_and_unpools_in_onnx(tmp_path: Path) -> None:
    net = parse_net(
        """layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 6 dim: 9 } } }
        layer { name: "bn" type: "BN" bottom: "x" top: "bn" bn_param { scale_filler { value: 2 } } }
        layer { name: "pool" type: "Pooling" bottom: "bn" top: "pool" top: "mask"
                pooling_param { kernel_size: 2 stride: 2 } }
        layer { name: "shift" type: "Power" bottom: "pool" top: "shift" power_param { shift: 1 } }
        layer { name: "up" type: "Upsample" bottom: "shift" bottom: "mask" top: "up"
                upsample_param { upsample_h: 6 upsample_w: 9 } }
        layer { name: "interp" type: "Interp" bottom: "up" top: "y" interp_param { zoom_factor: 2 } }"""
    )
    for opset in (13, 18, 22):
        result = export_file(net, None, tmp_path / f"{opset}.onnx", ExportOptions(opset=opset))
        assert result.difference <= tolerance("onnx").rtol * result.largest
