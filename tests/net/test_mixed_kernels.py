"""A layer computes one part by torch and another by our kernels, as the times say: the same numbers."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from c_kernels import conv_supported
from tolerances import sum_rounding
from torch import Tensor

from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.layers.vision.conv import Convolution
from imae.net.kernels import conv, native
from imae.net.kernels.conv import FastConvolution
from imae.net.net import Net
from imae.prototxt.text import parse_net

NET = """
layer { name: "data" type: "Input" top: "a" input_param { shape { dim: [2, 16, 9, 9] } } }
layer { name: "conv" type: "Convolution" bottom: "a" top: "c"
        convolution_param { num_output: 16 pad: 1 kernel_size: 3 weight_filler { type: "msra" } } }
"""


@pytest.mark.skipif(not conv_supported(), reason="no AVX2, or no kernels in C")
@pytest.mark.parametrize(("top", "weights", "others"), [*product([True, False], repeat=3)])
def test_each_part_by_its_fastest_way(
    top: bool, weights: bool, others: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    isas = native.Convolutions(*("avx2" if used else None for used in (top, weights, others)))
    monkeypatch.setattr(native, "convolutions", lambda: isas)
    monkeypatch.setattr(native, "uses_tiles", lambda: False)
    monkeypatch.setattr(conv, "MIN_TILES", 1)
    monkeypatch.setattr(conv, "MIN_TILES_FOR_WEIGHTS", 1)
    used: set[str] = set()

    def noted(name: str) -> Callable[..., Tensor]:
        function = getattr(native, name)

        def call(*args: Any) -> Tensor:
            used.add(name)
            result: Tensor = function(*args)
            return result

        return call

    for name in ("winograd_bottom_gradient", "winograd_weight_gradient", "conv_weight_gradient"):
        monkeypatch.setattr(native, name, noted(name))
    layer = Net(parse_net(NET), Run(CaffeRandom(1))).steps[-1].layer
    assert isinstance(layer, Convolution)
    assert FastConvolution.is_faster(layer, (2, 16, 9, 9)) == any((top, weights, others))
    x, top_diff = (
        torch.randn(2, 16, 9, 9, generator=torch.Generator().manual_seed(seed)).contiguous(
            memory_format=torch.channels_last
        )
        for seed in (1, 2)
    )
    leaves = [x.requires_grad_(), *layer.blobs]
    computed = FastConvolution(layer)(x)
    assert isinstance(computed, Tensor)
    got = [computed, *torch.autograd.grad(computed, leaves, top_diff)]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    want_top = F.conv2d(*exact, padding=1)
    want = [want_top, *torch.autograd.grad(want_top, exact, top_diff.double())]
    for ours, theirs in zip(got, want, strict=True):
        # The longest sums are those of the bias's gradient, over 162 places.
        error = (ours.detach().double() - theirs.detach()).abs().max() / theirs.detach().abs().max()
        assert float(error) <= sum_rounding(162)
    wanted = {"winograd_bottom_gradient": top, "winograd_weight_gradient": weights}
    wanted["conv_weight_gradient"] = others and not weights
    assert used == {name for name, is_used in wanted.items() if is_used}
