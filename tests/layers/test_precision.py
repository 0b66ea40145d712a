"""Boxes and statistics in a net whose blobs are in bfloat16: as of the same values in single precision."""

from __future__ import annotations

import pytest
import torch
from layer_cases import CASES, make
from single_layer import build, normal, run
from torch import Tensor

from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer
from imae.layers.registry import class_of
from imae.layers.run import Run

KEYS = """PriorBox PriorBoxClustered Proposal Python:ProposalLayer YoloDetectionOutput Yolov3DetectionOutput
    DetectionOutput BN BN:SegNet BN:CaffeMex Normalize"""


def tops(key: str, bottoms: list[Tensor], reduced: bool) -> tuple[Layer, list[Tensor]]:
    param = make(key, {})
    layer = class_of(param)(param)
    layer.build([tuple(bottom.shape) for bottom in bottoms], Run(CaffeRandom(1)))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=reduced):
        made = layer(*bottoms)
    return layer, [made] if isinstance(made, Tensor) else list(made)


@pytest.mark.parametrize("key", KEYS.split())
def test_coordinates_and_statistics_have_more_bits_than_features(key: str) -> None:
    # What comes out of a convolution is in bfloat16; an image's size, which is fed, is not.
    reduced = [bottom.bfloat16() if bottom.dim() == 4 else bottom for bottom in CASES[key].bottoms]
    one, got = tops(key, reduced, True)
    other, want = tops(key, [bottom.float() for bottom in reduced], False)
    for a, b in zip([*got, *one.blobs], [*want, *other.blobs], strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("key", ["Lstm", "MarginInnerProduct"])
def test_a_layer_with_products_in_its_own_backward_pass_trains(key: str) -> None:
    """Top and diffs as of the same values in single precision."""
    seen = []
    for reduced in (False, True):
        bottoms = [bottom.bfloat16() for bottom in CASES[key].bottoms]
        if not reduced or key == "MarginInnerProduct":  # to which a net gives single precision, as to losses
            bottoms = [bottom.float() for bottom in bottoms]
        bottoms[0].requires_grad_()
        param = make(key, {})
        layer = class_of(param)(param)
        layer.build([tuple(bottom.shape) for bottom in bottoms], Run(CaffeRandom(1)))
        with torch.autocast("cpu", torch.bfloat16, enabled=reduced):
            made = layer(*bottoms)
        top = made if isinstance(made, Tensor) else made[0]
        assert top.dtype == torch.float32
        top.square().sum().backward()
        seen.append([top.detach(), *(blob.grad for blob in layer.blobs)])
    for got, want in zip(seen[1], seen[0], strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize(
    ("text", "top"),
    [
        ('type: "Pooling" top: "y" top: "mask" pooling_param { kernel_size: 2 stride: 2 }', 1),
        ('type: "Pooling" top: "y" top: "mask" pooling_param { kernel_size: 3 stride: 2 pad: 2 }', 1),
        ('type: "ArgMax"', 0),
        ('type: "ArgMax" argmax_param { axis: 3 }', 0),
    ],
)
def test_positions_are_whole_numbers_beyond_256(text: str, top: int) -> None:
    """SegNet's Upsample puts values where a Pooling's mask says."""
    x = normal(1, 1, 40, 600, seed=2).bfloat16()
    want, got = (run(build(text, tuple(x.shape)), bottom)[top] for bottom in (x.float(), x))
    assert got.dtype == torch.float32 and want.max() > 256
    assert torch.equal(got, want)
