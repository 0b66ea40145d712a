"""The kernel that suppresses boxes keeps the same boxes as layers/forks/boxes.py."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from imae.layers.caffe_random import CaffeRandom
from imae.layers.forks.boxes import suppress
from imae.layers.run import Run
from imae.net.inference import plan_inference
from imae.net.inference_operations import Detection
from imae.net.kernels import fast_suppress, native
from imae.net.net import Net
from imae.prototxt import TEST
from imae.prototxt.text import parse_net

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")


def boxes(count: int, seed: int = 1, grid: int = 12) -> Tensor:
    """Corners on a grid, so that many boxes are equal, touch each other, or have corners on a wrong side."""
    drawn = torch.randint(0, grid, (count, 4), generator=torch.Generator().manual_seed(seed)) / grid
    proper = torch.cat(
        [torch.minimum(drawn[:, :2], drawn[:, 2:]), torch.maximum(drawn[:, :2], drawn[:, 2:])], 1
    )
    return torch.where(torch.arange(count)[:, None] % 5 == 0, drawn, proper)


@built
@pytest.mark.parametrize("threshold", [0.0, 1 / 3, 0.45, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("count", [0, 1, 2, 33, 300, 700])
def test_the_same_boxes_stay(count: int, threshold: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAE_KERNELS", raising=False)
    on_a_grid, anywhere = boxes(count), boxes(count, 2, 10**6)
    for some in (on_a_grid, anywhere, on_a_grid * 300):
        assert torch.equal(native.suppress(some, threshold), suppress(some, threshold))
        assert torch.equal(fast_suppress(some, threshold), suppress(some, threshold))


@built
def test_nan_and_infinity() -> None:
    some = boxes(400, 3)
    places = torch.randint(0, some.numel(), (60,), generator=torch.Generator().manual_seed(4))
    for value in (torch.nan, torch.inf, -torch.inf):
        some.view(-1)[places[:20]], places = value, places[20:]
    assert torch.equal(native.suppress(some, 0.3), suppress(some, 0.3))


@built
def test_other_boxes_are_not_the_kernels() -> None:
    some = boxes(50)
    for wrong in (some.double(), some[:, :3], some[0]):
        with pytest.raises(ValueError, match="no kernel"):
            native.suppress(wrong, 0.5)
    assert torch.equal(fast_suppress(some.double(), 0.5), suppress(some.double(), 0.5))
    assert torch.equal(fast_suppress(some, 0.8, 0.9), suppress(some, 0.8, 0.9))


def test_without_kernels_it_is_that_of_the_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("IMAE_KERNELS", "none")
    monkeypatch.setattr(native, "suppress", lambda *_: pytest.fail("the kernel was called"))
    assert torch.equal(fast_suppress(boxes(50), 0.5), suppress(boxes(50), 0.5))


def test_a_net_finds_the_same_boxes() -> None:
    net = parse_net(
        """
        layer { name: "in" type: "Input" top: "loc" top: "conf" top: "prior" input_param {
            shape { dim: [2, 240] } shape { dim: [2, 180] } shape { dim: [1, 2, 240] } } }
        layer { name: "softmax" type: "Softmax" bottom: "conf" top: "scores" }
        layer { name: "out" type: "DetectionOutput" top: "found"
                bottom: "loc" bottom: "scores" bottom: "prior"
                detection_output_param { num_classes: 3 keep_top_k: 50 confidence_threshold: 0.005
                                         nms_param { nms_threshold: 0.3 top_k: 40 } } }
        """
    )
    net.state.phase = TEST
    made = Net(net, Run(CaffeRandom(1)))
    generator = torch.Generator().manual_seed(5)
    corners = torch.rand(60, 2, generator=generator) * 0.7
    prior = torch.stack([torch.cat([corners, corners + 0.2], 1).flatten(), torch.full((240,), 0.1)])[None]
    values = {
        "loc": torch.randn(2, 240, generator=generator),
        "conf": torch.randn(2, 180, generator=generator),
        "prior": prior,
    }
    plan = plan_inference(made)
    for _ in range(2):
        assert torch.equal(plan.run(values)["found"], made.forward(values)["found"])
    assert plan._graph is not None
    assert isinstance(plan._graph.nodes[-1].operation, Detection)
    (layer,) = (layer for layer in made.layers if layer.type == "DetectionOutput")
    assert layer.suppress is suppress
