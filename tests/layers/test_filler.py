"""The fillers against recorded blobs, bit by bit, and their refusals."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from google.protobuf import text_format
from numpy.typing import NDArray

from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.filler import FILLERS, fill
from imae.prototxt import FillerParameter, LayerParameter, NetParameter

CASES = Path(__file__).parents[1] / "cases"
FILLED = sorted(path.stem for path in (CASES / "fillers").glob("*.npz"))


def load(path: str) -> tuple[dict[str, NDArray[np.float32]], CaffeRandom, NetParameter]:
    """Arrays, generator and net of a recorded case."""
    with np.load(CASES / f"{path}.npz", allow_pickle=False) as case:
        arrays = dict(case)
    net = text_format.Parse((CASES / f"{path}.prototxt").read_text(), NetParameter())
    return arrays, CaffeRandom(json.loads(str(arrays["meta"]))["seed"]), net


def fillers(layer: LayerParameter) -> list[FillerParameter]:
    """The fillers of a layer's parameter blobs, in order; bias terms that are switched off included."""
    match layer.type:
        case "InnerProduct":
            return [layer.inner_product_param.weight_filler, layer.inner_product_param.bias_filler]
        case "Convolution" | "Deconvolution":
            return [layer.convolution_param.weight_filler, layer.convolution_param.bias_filler]
        case "Embed":
            return [layer.embed_param.weight_filler, layer.embed_param.bias_filler]
        case "Scale":
            return [layer.scale_param.filler, layer.scale_param.bias_filler]
        case "PReLU":
            return [layer.prelu_param.filler]
        case "Bias":
            return [layer.bias_param.filler]
        case "LSTM" | "RNN":
            weight, bias = layer.recurrent_param.weight_filler, layer.recurrent_param.bias_filler
            return [weight, bias, weight] if layer.type == "LSTM" else [weight, bias, weight, weight, bias]
    return []


def fills(layer: LayerParameter, shapes: list[tuple[int, ...]], steps: int) -> Iterator[int]:
    """Which blob is filled, in the order of the draws; the first fill of a blob is kept."""
    if layer.type == "LSTM":
        yield from [0, 1, *[2] * steps]
    elif layer.type == "RNN":
        yield from [0, 1, *[2, 3, 4] * steps]
    else:
        yield from range(len(shapes))


def test_every_case_is_here() -> None:
    assert len(FILLED) == 18
    used = {
        filler.type
        for name in FILLED
        for layer in load(f"fillers/{name}")[2].layer
        for filler in fillers(layer)
    }
    assert used == set(FILLERS)


@pytest.mark.parametrize("name", FILLED)
def test_recorded_fill(name: str) -> None:
    arrays, rng, net = load(f"fillers/{name}")
    shared: dict[str, NDArray[np.float32]] = {}
    checked = 0
    for layer in net.layer:
        expected = [value for key, value in arrays.items() if key.startswith(f"init:{layer.name}:")]
        if layer.type == "BatchNorm":
            continue
        kept: dict[int, NDArray[np.float32]] = {}
        for index in fills(layer, [blob.shape for blob in expected], steps=3):
            values = fill(expected[index].shape, fillers(layer)[index], rng)
            assert values.dtype == np.float32
            kept.setdefault(index, values)
        for index, blob in enumerate(expected):
            values = kept[index]
            if index < len(layer.param) and layer.param[index].name:
                values = shared.setdefault(layer.param[index].name, values)
            assert values.tobytes() == blob.tobytes(), f"{layer.name} {index}"
            checked += 1
    assert checked == sum(key.startswith("init:") for key in arrays) - 3 * name.startswith("net_mixed")


@pytest.mark.parametrize("name", ["dummydata_gaussian", "dummydata_mixed"])
def test_recorded_refill(name: str) -> None:
    arrays, rng, net = load(f"random/{name}")
    layer = net.layer[0]
    for step in ("", "@1", "@2"):
        for index, top in enumerate(layer.top):
            expected = arrays[f"out{step}:{top}"]
            values = fill(expected.shape, layer.dummy_data_param.data_filler[index], rng)
            assert values.tobytes() == expected.tobytes(), f"{top}{step}"


@pytest.mark.parametrize(
    ("width", "weights"), [(1, [1]), (2, [3, 3]), (5, [2, 4, 6, 4, 2]), (6, [1, 3, 5, 5, 3, 1])]
)
def test_bilinear_of_other_widths(width: int, weights: list[float]) -> None:
    kernel = fill((2, 3, width, width), FillerParameter(type="bilinear"), CaffeRandom(1))
    weight = np.array(weights) / (1 if width == 1 else 6)
    assert np.abs(kernel - np.outer(weight, weight)).max() <= np.finfo(np.float32).eps
    kernel[0, 0] = 7  # every slice has memory of its own
    assert kernel[1, 2, 0, 0] != 7


@pytest.mark.parametrize("name", FILLERS)
def test_each_call_makes_a_new_writable_array(name: str) -> None:
    shape = (3, 2, 5, 5)
    one, other = (fill(shape, FillerParameter(type=name), CaffeRandom(2)) for _ in range(2))
    assert one.shape == shape
    assert one.flags.writeable and one.flags.c_contiguous
    assert not np.shares_memory(one, other)
    np.testing.assert_array_equal(one, other)


def test_fan_of_vectors_and_scalars() -> None:
    """The fan-out of one axis is the count; a scalar has no fan."""
    out = fill((48,), FillerParameter(type="xavier", variance_norm=FillerParameter.FAN_OUT), CaffeRandom(3))
    np.testing.assert_array_equal(out, CaffeRandom(3).uniform(48, -0.25, 0.25))
    for name in ("xavier", "msra", "positive_unitball"):
        with pytest.raises(LayerError, match=f"filler '{name}': the blob is a scalar; at least one axis"):
            fill((), FillerParameter(type=name), CaffeRandom(3))
    assert fill((), FillerParameter(value=2), CaffeRandom(3)) == 2


def test_fields_that_a_filler_has_no_use_for_are_ignored() -> None:
    plain, odd = FillerParameter(type="xavier"), FillerParameter(type="xavier", std=-1, min=5, max=2)
    np.testing.assert_array_equal(fill((4, 3), plain, CaffeRandom(1)), fill((4, 3), odd, CaffeRandom(1)))


KNOWN = "(known names: constant, uniform, gaussian, positive_unitball, xavier, msra, bilinear)"
REFUSED = [
    ("gausian", "", (2,), f"Unknown filler name: gausian; did you mean 'gaussian'? {KNOWN}"),
    ("zzz", "", (2,), f"Unknown filler name: zzz {KNOWN}"),
    ("constant", "", (3, 0), "the blob of shape (3, 0) has no values to fill"),
    ("msra", "sparse: 3", (2,), "sparse is for gaussian only, got 3; leave it out"),
    ("uniform", "min: 2 max: 1", (2,), "min <= max, both finite, are needed; got 2 and 1"),
    ("uniform", "max: inf", (2,), "min <= max, both finite, are needed; got 0 and inf"),
    ("uniform", "min: nan", (2,), "min <= max, both finite, are needed; got nan and 1"),
    ("gaussian", "std: 0", (2,), "std must be greater than 0, got 0"),
    ("gaussian", "std: nan", (2,), "std must be greater than 0, got nan"),
    ("gaussian", "sparse: -2", (2,), "sparse must be -1 (off) or more, got -2"),
    ("gaussian", "sparse: 3", (2, 9), "sparse must be at most 2 for shape (2, 9), got 3"),
    ("gaussian", "sparse: 0", (), "the blob is a scalar; at least one axis is needed"),
    ("bilinear", "", (2, 3, 3), "the blob must have 4 axes and a square kernel, got shape (2, 3, 3)"),
    ("bilinear", "", (2, 1, 3, 4), "the blob must have 4 axes and a square kernel, got shape (2, 1, 3, 4)"),
]


@pytest.mark.parametrize(("name", "fields", "shape", "message"), REFUSED)
def test_refusals(name: str, fields: str, shape: tuple[int, ...], message: str) -> None:
    filler = text_format.Parse(f"type: '{name}' {fields}", FillerParameter())
    with pytest.raises(LayerError) as error:
        fill(shape, filler, CaffeRandom(1))
    assert str(error.value) == (message if "Unknown" in message else f"filler '{name}': {message}")
