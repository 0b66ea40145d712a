"""SSD's Normalize, beyond the recorded cases, and how it is told from NormFace's."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from single_layer import build, check_contract, check_gradient, check_onnx, diffs, normal, refused, run
from tolerances import tolerance

from imae.layers.forks.normalize import Normalize

APART = "across_spatial: false"
VARIANTS = ["", APART, "channel_shared: false", f"{APART} channel_shared: false"]
FILLER = 'scale_filler { type: "uniform" min: 0.5 max: 2 }'


@pytest.mark.parametrize("fields", VARIANTS)
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (2, 3), (2, 3, 4)])
def test_formula(fields: str, shape: tuple[int, ...]) -> None:
    text = f'type: "Normalize" norm_param {{ {fields} {FILLER} eps: 0.5 }}'
    x = normal(*shape)
    layer = build(text, shape)
    axes = (1,) if "across" in fields else tuple(range(1, len(shape)))
    scale = layer.blobs[0].detach().numpy().reshape(-1, *[1] * (len(shape) - 2))
    want = x.numpy() / np.sqrt((x.numpy() ** 2).sum(axes, keepdims=True) + 0.5) * scale
    rtol, atol, _ = tolerance("formula")
    np.testing.assert_allclose(run(layer, x)[0].detach().numpy(), want, rtol=rtol, atol=atol)
    check_contract(text, x)
    check_onnx(text, x)


@pytest.mark.parametrize("fields", VARIANTS)
def test_gradient(fields: str) -> None:
    """The derivative, where all channels have one scale; the recorded cases have the other gradient, too."""
    text = f'type: "Normalize" norm_param {{ {fields} scale_filler {{ value: 3 }} }}'
    check_gradient(text, normal(2, 3, 2, 4))


def test_the_gradient_with_several_scales_is_the_forks() -> None:
    """Each channel's scale times the gradient of the norm alone."""
    text = f'type: "Normalize" norm_param {{ channel_shared: false across_spatial: false {FILLER} }}'
    x, top_diff = normal(2, 3, 4, 5), normal(2, 3, 4, 5, seed=1)
    layer = build(text, x.shape)
    (got,) = diffs(layer, x, top_diffs=[top_diff])
    plain = build('type: "Normalize" norm_param { across_spatial: false }', x.shape)
    (want,) = diffs(plain, x, top_diffs=[top_diff])
    assert got is not None and want is not None
    rtol, atol, _ = tolerance("formula")
    np.testing.assert_allclose(got, want * layer.blobs[0].detach().reshape(3, 1, 1), rtol=rtol, atol=atol)


def test_an_image_of_zeros() -> None:
    text = 'type: "Normalize" norm_param {}'
    layer = build(text, (1, 3, 2, 2))
    (top,) = run(layer, torch.zeros(1, 3, 2, 2))
    assert not top.any()
    (diff,) = diffs(layer, torch.zeros(1, 3, 2, 2))
    assert diff is not None and diff.isfinite().all()


def test_blobs() -> None:
    assert build('type: "Normalize"', (2, 3, 4, 5)).blob_shapes == [()]
    assert build('type: "Normalize"', (2, 3, 4, 5)).blobs[0].item() == 1
    layer = build('type: "Normalize" norm_param { channel_shared: false }', (2, 3, 4, 5))
    assert layer.blob_shapes == [(3,)] and type(layer) is Normalize


def test_bottoms_that_are_refused() -> None:
    for shape in ((2,), (2, 3, 4, 5, 6)):
        with refused("Number of axes of bottom blob must be >=2"):
            build('type: "Normalize"', shape)
    layer = build('type: "Normalize" norm_param { channel_shared: false }', (2, 3, 4, 5))
    with refused("its scale has 3 channels; got a bottom of (2, 4, 4, 5)"):
        layer.reshape([(2, 4, 4, 5)])


def test_ssds_and_normfaces_parameters_together() -> None:
    with refused("norm_param is for SSD's Normalize (weiliu89/caffe), normalize_param for NormFace's"):
        build('type: "Normalize" norm_param {} normalize_param {}', (2, 3, 4, 5))
