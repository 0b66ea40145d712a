"""Sizes that no memory can hold, and sizes that only look so: one line, or the right numbers, at once."""

from __future__ import annotations

import pytest
import torch
from single_layer import build, normal, refused, run
from torch import Tensor

X = normal(2, 3, 4, 6)
MOST = 2**31 - 1


@pytest.mark.parametrize("region", ["ACROSS_CHANNELS", "WITHIN_CHANNEL"])
def test_the_neighbourhood_of_lrn(region: str) -> None:
    field = f'type: "LRN" lrn_param {{ norm_region: {region} local_size: '
    for size in (2**31 + 1, 2**32 - 1):
        with refused(f"layer 'it' (LRN): lrn_param.local_size must be at most {MOST}; got {size}"):
            build(f"{field}{size} }}", X.shape)
    (top,) = run(build(f"{field}{MOST} alpha: 1e9 }}", X.shape), X)
    x = X.double()
    energy = (x * x).sum(1 if region == "ACROSS_CHANNELS" else (2, 3), keepdim=True)
    count = MOST if region == "ACROSS_CHANNELS" else MOST**2
    torch.testing.assert_close(top.double(), x * (1 + 1e9 * energy / count) ** -0.75, rtol=1e-5, atol=0)


@pytest.mark.parametrize("stride", [5000, MOST, 2**32 - 1])
@pytest.mark.parametrize(("kernel", "pad"), [(2, 0), (3, 2), (1, 0)])
def test_a_stride_of_a_convolution_beyond_its_bottom(stride: int, kernel: int, pad: int) -> None:
    """There is a window at the beginning, and that is all; its backward pass took gigabytes."""

    def passes(stride: int) -> list[Tensor]:
        layer = build(
            f'type: "Convolution" convolution_param {{ num_output: 2 kernel_size: {kernel} pad: {pad} '
            f'stride: {stride} weight_filler {{ type: "uniform" }} }}',
            X.shape,
        )
        x = X.clone().requires_grad_()
        (top,) = run(layer, x)
        top.sum().backward()
        assert x.grad is not None
        return [top.detach(), x.grad, layer.blobs[0].grad]

    for one, other in zip(passes(stride), passes(100), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            'type: "Convolution" convolution_param { num_output: 2147483647 kernel_size: 3 }',
            "blob 0: blob size",
        ),
        (
            'type: "Convolution" convolution_param { num_output: 1 kernel_size: 4294967295 }',
            "blob 0: a blob's a",
        ),
        (
            'type: "Convolution" convolution_param { num_output: 1 kernel_size: 2 pad: 4294967295 }',
            "a blob's a",
        ),
        (
            'type: "Deconvolution" convolution_param { num_output: 1 kernel_size: 2 stride: 99999 }',
            "blob size",
        ),
        (
            'type: "InnerProduct" inner_product_param { num_output: 4294967295 }',
            "blob 0: a blob's axes are 0 to",
        ),
        (
            'type: "Embed" embed_param { num_output: 4294967295 input_dim: 9 }',
            "blob 0: a blob's axes are 0 to",
        ),
        ('type: "Tile" tile_param { tiles: 2147483647 }', "a blob's axes are 0 to"),
        ('type: "SPP" spp_param { pyramid_height: 4294967295 }', "pyramid_height"),
        ('type: "Im2col" convolution_param { kernel_size: 2 pad: 2147483647 }', "a blob's axes are 0 to"),
        ('type: "Upsample" upsample_param { scale: 4294967295 }', "layer 'it' ("),
        ('type: "Interp" interp_param { zoom_factor: 2147483647 }', "layer 'it' ("),
        ('type: "Reshape" reshape_param { shape { dim: 4611686018427387904 dim: -1 } }', "layer 'it' ("),
        ('type: "Crop" bottom: "a" bottom: "b" crop_param { axis: 2 offset: 4294967295 }', "layer 'it' ("),
    ],
)
def test_what_no_memory_can_hold(text: str, words: str) -> None:
    shapes = [tuple(X.shape)] * (2 if "bottom:" in text else 1)
    with refused(words):
        build(text, *shapes)
