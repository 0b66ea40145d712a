"""ROIPooling and PSROIPooling beyond the recorded cases.

The references are loops over ROIs, bins and cells, written from the description of the forks' sources.
ROIPooling's backward pass is recorded nowhere: `roi_pooling_diff` is the GPU code's, cell by cell.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from single_layer import build, check_contract, check_gradient, check_onnx, diffs, normal, refused, run
from tolerances import tolerance
from torch import Tensor

from imae.files.errors import ExportError
from imae.layers.forks.roi_pooling import ROIPooling
from imae.layers.forks.rois import round_away

Array = NDArray[np.floating]
ROI = 'type: "ROIPooling" roi_pooling_param {{ pooled_h: {} pooled_w: {} spatial_scale: {} }}'
PSROI = 'type: "PSROIPooling" psroi_pooling_param {{ output_dim: {} group_size: {} spatial_scale: {} }}'


def some_rois(count: int, images: int, height: int, width: int, scale: float, seed: int = 0) -> Tensor:
    """Also beyond the map, with corners in the wrong order, and at whole and half places."""
    generator = np.random.default_rng(seed)
    corners = (generator.random((count, 4)) * 1.6 - 0.3) * [width, height, width, height]
    corners[::3] = np.round(corners[::3])
    corners[1::3] = np.round(corners[1::3]) + 0.5
    image = generator.integers(0, images, (count, 1))
    return torch.from_numpy(np.concatenate([image, corners / scale], 1)).float()


def c_round(value: np.floating) -> int:
    return (
        int(math.copysign(math.floor(abs(float(value)) + 0.5), value))
        if abs(value) % 1 == 0.5
        else round(value)
    )


def roi_bins(roi: Array, pooled: int, scale: float, cells: int, axis: int) -> Iterator[tuple[int, range]]:
    kind = roi.dtype.type
    first = c_round(roi[1 + axis] * kind(scale))
    last = c_round(roi[3 + axis] * kind(scale))
    size = kind(max(last - first + 1, 1)) / kind(pooled)
    for index in range(pooled):
        start = int(np.floor(kind(index) * size)) + first
        end = int(np.ceil(kind(index + 1) * size)) + first
        yield index, range(min(max(start, 0), cells), min(max(end, 0), cells))


def roi_pooling(
    features: Array, rois: Array, pooled: tuple[int, int], scale: float
) -> tuple[Array, NDArray[np.int64]]:
    """The top, and the cell of each maximum: h W + w, or -1."""
    _, channels, height, width = features.shape
    top = np.zeros((len(rois), channels, *pooled), features.dtype)
    cells = np.full(top.shape, -1)
    for r, roi in enumerate(rois):
        for i, rows in roi_bins(roi, pooled[0], scale, height, 1):
            for j, columns in roi_bins(roi, pooled[1], scale, width, 0):
                for c in range(channels):
                    best = -np.inf
                    for h in rows:
                        for w in columns:
                            if features[int(roi[0]), c, h, w] > best:
                                best = top[r, c, i, j] = features[int(roi[0]), c, h, w]
                                cells[r, c, i, j] = h * width + w
    return top, cells


def roi_pooling_diff(
    features: Array, rois: Array, cells: NDArray[np.int64], top_diff: Array, scale: float
) -> Array:
    """For each cell, the bins that may have its value are looked for, as on the GPU."""
    kind = features.dtype.type
    pooled = cells.shape[2:]
    diff = np.zeros_like(features)
    for n, c, h, w in np.ndindex(features.shape):
        for r, roi in enumerate(rois):
            x1, y1, x2, y2 = (c_round(corner * kind(scale)) for corner in roi[1:])
            if int(roi[0]) != n or not (x1 <= w <= x2 and y1 <= h <= y2):
                continue
            bin_h = kind(max(y2 - y1 + 1, 1)) / kind(pooled[0])
            bin_w = kind(max(x2 - x1 + 1, 1)) / kind(pooled[1])
            for i in bins_of(kind(h - y1), bin_h, pooled[0]):
                for j in bins_of(kind(w - x1), bin_w, pooled[1]):
                    if cells[r, c, i, j] == h * features.shape[3] + w:
                        diff[n, c, h, w] += top_diff[r, c, i, j]
    return diff


def bins_of(offset: np.floating, size: np.floating, pooled: int) -> range:
    start, end = int(np.floor(offset / size)), int(np.ceil((offset + 1) / size))
    return range(min(max(start, 0), pooled), min(max(end, 0), pooled))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("size", "pooled", "scale"),
    [((9, 13), (7, 7), 0.0625), ((6, 5), (2, 3), 1), ((1, 1), (3, 2), 0.5), ((14, 3), (6, 6), 0.3)],
)
def test_roi_pooling_is_the_reference(
    size: tuple[int, int], pooled: tuple[int, int], scale: float, dtype: torch.dtype
) -> None:
    features = normal(2, 3, *size, dtype=dtype).round(decimals=1)  # with equal values
    rois = some_rois(25, 2, *size, scale).to(dtype)
    layer = build(ROI.format(*pooled, scale), features.shape, rois.shape)
    (top,) = run(layer, features, rois)
    scale = layer.param.roi_pooling_param.spatial_scale  # in single precision
    want, cells = roi_pooling(features.numpy(), rois.numpy(), pooled, scale)
    rtol, atol, _ = tolerance("moved")
    np.testing.assert_allclose(top.numpy(), want, rtol=rtol, atol=atol)
    top_diff = normal(*top.shape, seed=1, dtype=dtype)
    diff, of_rois = diffs(layer, features, rois, top_diffs=[top_diff])
    assert of_rois is None
    assert diff is not None
    want = roi_pooling_diff(features.numpy(), rois.numpy(), cells, top_diff.numpy(), scale)
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(diff.numpy(), want, rtol=rtol, atol=atol * np.abs(want).max())


def test_some_gradients_are_lost() -> None:
    """An ROI in the wrong order has one cell, which the GPU's backward pass does not find."""
    features = normal(1, 1, 3, 3)
    rois = torch.tensor([[0.0, 2, 1, 1, 1], [0, 1, 1, 1, 1]])
    layer = build(ROI.format(1, 1, 1), (1, 1, 3, 3), (2, 5))
    (top,) = run(layer, features, rois)
    assert top.flatten().tolist() == [features[0, 0, 1, 2], features[0, 0, 1, 1]]
    diff, _ = diffs(layer, features, rois)
    assert diff is not None
    assert diff.nonzero().tolist() == [[0, 0, 1, 1]]


def test_what_is_no_number_is_never_the_largest() -> None:
    lowest = -torch.finfo(torch.float32).max
    features = torch.tensor([[torch.nan, -2.0], [-torch.inf, torch.nan]]).view(1, 1, 2, 2)
    rois = torch.tensor([[0.0, 0, 0, 1, 1], [0, 0, 0, 0, 0], [0, 0, 1, 0, 1]])
    layer = build(ROI.format(1, 1, 1), (1, 1, 2, 2), (3, 5))
    (top,) = run(layer, features, rois)
    assert top.flatten().tolist() == [-2, lowest, lowest]
    diff, _ = diffs(layer, features, rois)
    assert diff is not None
    assert diff.flatten().tolist() == [0, 1, 0, 0]


def test_large_maps_need_many_levels() -> None:
    features, rois = normal(1, 2, 40, 70), torch.tensor([[0.0, 0, 0, 69, 39], [0, 3, 2, 68, 38]])
    (top,) = run(build(ROI.format(1, 1, 1), features.shape, rois.shape), features, rois)
    want = torch.stack([features.amax((2, 3))[0], features[0, :, 2:39, 3:69].amax((1, 2))])
    torch.testing.assert_close(top[:, :, 0, 0], want, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("text", "limit"), [(ROI, "roi_pooling.TABLE"), (PSROI, "psroi_pooling.SUMS")], ids=["ROI", "PSROI"]
)
@pytest.mark.parametrize("size", [1, 2000])
def test_some_at_a_time(text: str, limit: str, size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Channels of ROIPooling, ROIs of PSROIPooling."""
    features, rois = normal(2, 12, 9, 13), some_rois(20, 2, 9, 13, 0.5)
    layer = build(text.format(3, 2, 0.5), features.shape, rois.shape)
    whole, diff = run(layer, features, rois)[0], diffs(layer, features, rois)[0]
    monkeypatch.setattr(f"imae.layers.forks.{limit}", size)
    rtol, atol, _ = tolerance("same arithmetic")
    torch.testing.assert_close(run(layer, features, rois)[0], whole, rtol=rtol, atol=atol)
    torch.testing.assert_close(diffs(layer, features, rois)[0], diff, rtol=rtol, atol=atol)


def test_a_device_is_asked_for_nothing() -> None:
    """The largest bin is not asked for there; with as many levels as the map needs the result is the same."""
    features, rois = normal(2, 3, 9, 13, dtype=torch.float32), some_rois(20, 2, 9, 13, 0.5)
    with torch.device("meta"):
        layer = build(ROI.format(3, 4, 0.5), features.shape, rois.shape)
    assert isinstance(layer, ROIPooling)
    top = layer.to("meta")(features.to("meta").requires_grad_(), rois.to("meta"))
    assert top.shape == (20, 3, 3, 4)
    top.sum().backward()


def psroi_pooling(features: Array, rois: Array, dim: int, groups: int, scale: float) -> Array:
    kind = features.dtype.type
    _, _, height, width = features.shape
    top = np.zeros((len(rois), dim, groups, groups), features.dtype)
    for r, roi in enumerate(rois):
        x1, y1 = (kind(c_round(corner)) * kind(scale) for corner in roi[1:3])
        x2, y2 = (kind(c_round(corner) + 1) * kind(scale) for corner in roi[3:])
        bin_w = max(x2 - x1, kind(0.1)) / kind(groups)
        bin_h = max(y2 - y1, kind(0.1)) / kind(groups)
        for c, i, j in np.ndindex(dim, groups, groups):
            rows = range(*cut(kind(i) * bin_h + y1, kind(i + 1) * bin_h + y1, height))
            columns = range(*cut(kind(j) * bin_w + x1, kind(j + 1) * bin_w + x1, width))
            values = [
                features[int(roi[0]), (c * groups + i) * groups + j, h, w] for h in rows for w in columns
            ]
            top[r, c, i, j] = sum(values) / len(values) if values else 0
    return top


def cut(start: np.floating, end: np.floating, cells: int) -> tuple[int, int]:
    return min(max(int(np.floor(start)), 0), cells), min(max(int(np.ceil(end)), 0), cells)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("size", "groups", "scale"), [((9, 13), 7, 0.0625), ((6, 5), 3, 1), ((1, 1), 2, 0.5), ((14, 3), 1, 0.3)]
)
def test_psroi_pooling_is_the_reference(
    size: tuple[int, int], groups: int, scale: float, dtype: torch.dtype
) -> None:
    features = normal(2, 2 * groups**2, *size, dtype=dtype)
    rois = some_rois(25, 2, *size, scale).to(dtype)
    layer = build(PSROI.format(2, groups, scale), features.shape, rois.shape)
    (top,) = run(layer, features, rois)
    scale = layer.param.psroi_pooling_param.spatial_scale  # in single precision
    want = psroi_pooling(features.numpy(), rois.numpy(), 2, groups, scale)
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(top.numpy(), want, rtol=rtol, atol=atol * np.abs(want).max())


TEXTS = [ROI.format(2, 3, 0.5), PSROI.format(3, 2, 0.5)]
FEATURES = normal(2, 12, 5, 8)
INSIDE = torch.tensor([[0.0, 1, 2, 12, 7], [1, 0, 0, 15, 9], [0, 6, 2, 6, 4], [1, 2.5, 4.5, 9, 9]])


@pytest.mark.parametrize("text", TEXTS)
def test_contract_and_gradients(text: str) -> None:
    check_contract(text, FEATURES, INSIDE)
    check_contract(text, FEATURES, INSIDE.view(4, 5, 1, 1))
    check_gradient(text, FEATURES[:, :, :3, :2], INSIDE, constant=(1,))


@pytest.mark.parametrize("text", TEXTS)
def test_rois_get_no_gradient(text: str) -> None:
    layer = build(text, FEATURES.shape, INSIDE.shape)
    assert [layer.allows_force_backward(index) for index in range(2)] == [True, False]
    assert diffs(layer, FEATURES, INSIDE)[1] is None


@pytest.mark.parametrize("text", TEXTS)
def test_onnx(text: str) -> None:
    opsets = (13, 17, 18, 21) if "PSROI" not in text else (13, 17, 18, 22)
    check_onnx(text, FEATURES, INSIDE, opsets=opsets)
    check_onnx(text, FEATURES, INSIDE.view(4, 5, 1, 1), opsets=opsets)


def test_onnx_runtime_has_no_newer_max_roi_pool() -> None:
    with pytest.raises(ExportError, match="no MaxRoiPool of operator set 22; export with opset 21 at most"):
        check_onnx(TEXTS[0], FEATURES, INSIDE, opsets=(22,))


@pytest.mark.parametrize("scale", [1, 0.5, 0.0625, 0.125, 0.3])
@pytest.mark.parametrize("size", [(1, 1), (9, 13), (12, 7), (3, 17)])
def test_onnx_has_the_same_bins(size: tuple[int, int], scale: float) -> None:
    """MaxRoiPool of ONNX Runtime, and the products of matrices."""
    for seed, bins in enumerate((1, 3, 6, 7)):
        rois = some_rois(60, 2, *size, scale, seed)
        check_onnx(ROI.format(bins, bins, scale), normal(2, 2, *size), rois, opsets=(17,))
        features = normal(2, 2 * bins**2, *size)
        check_onnx(PSROI.format(2, bins, scale), features, rois, opsets=(17,))


def test_halves_are_rounded_away_from_zero() -> None:
    below = np.nextafter(np.float32(0.5), np.float32(0))
    values = torch.tensor([0.5, 1.5, 2.5, -0.5, -2.5, below, -below, 2.4, torch.nan, torch.inf])
    assert round_away(values).tolist() == [1, 2, 3, -1, -3, 0, 0, 2, 0, 2**30]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("image", [-1.0, 2])
def test_an_image_that_is_not_there(text: str, image: float) -> None:
    rois = INSIDE.clone()
    rois[2, 0] = image
    with refused(f"an ROI is of image {image:g}, but the map has 2 images, so they are 0 to 1"):
        run(build(text, FEATURES.shape, rois.shape), FEATURES, rois)


@pytest.mark.parametrize(
    ("text", "shapes", "message"),
    [
        (ROI.format(0, 1, 1), [(1, 1, 2, 2), (1, 5)], "roi_pooling_param.pooled_h must be > 0"),
        (ROI.format(1, 0, 1), [(1, 1, 2, 2), (1, 5)], "roi_pooling_param.pooled_w must be > 0"),
        (ROI.format(1, 1, 1), [(1, 1, 2, 2), (3, 4)], "bottom[1] must be (R, 5), for each of R ROIs"),
        (ROI.format(1, 1, 1), [(1, 1, 2, 2, 2), (1, 5)], "bottom[0] may have four axes at most"),
        (ROI.format(1, 1, 1), [(1, 1, 2, 2)], "takes 2 bottom blob(s)"),
        (PSROI.format(0, 1, 1), [(1, 1, 2, 2), (1, 5)], "psroi_pooling_param.output_dim must be > 0, got 0"),
        (
            PSROI.format(1, -1, 1),
            [(1, 1, 2, 2), (1, 5)],
            "psroi_pooling_param.group_size must be > 0, got -1",
        ),
        (PSROI.format(2, 3, 1), [(1, 17, 2, 2), (1, 5)], "output_dim * group_size^2 = 18 channels, got 17"),
        (PSROI.format(2, 3, 1), [(1, 18, 2, 2), (5,)], "bottom[1] must be (R, 5), for each of R ROIs"),
    ],
)
def test_errors(text: str, shapes: list[tuple[int, ...]], message: str) -> None:
    with refused(message):
        build(text, *shapes)


def test_required_fields() -> None:
    with refused("psroi_pooling_param.spatial_scale must be given"):
        build('type: "PSROIPooling"', (1, 1, 2, 2), (1, 5))


@pytest.mark.parametrize("text", TEXTS)
def test_an_empty_list_of_rois(text: str) -> None:
    layer = build(text, FEATURES.shape, (0, 5))
    (top,) = run(layer, FEATURES, torch.empty(0, 5))
    assert top.shape == layer.top_shapes([FEATURES.shape, (0, 5)])[0]
    diff, _ = diffs(layer, FEATURES, torch.empty(0, 5))
    assert diff is not None
    assert not diff.any()
