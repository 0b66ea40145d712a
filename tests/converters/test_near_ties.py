"""The check of an export where rounding decides which of several values is the maximum."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from single_layer import build, normal, run

import imae.layers.vision.pooling as pooling
from imae.converters.export_onnx import export_file
from imae.files.errors import ExportError
from imae.layers.near_ties import near_ties_as
from imae.prototxt.text import parse_net

NET = """
    layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 6 } } }
    layer { name: "pool" type: "Pooling" bottom: "x" top: "pool" top: "mask"
            pooling_param { kernel_size: 2 stride: 2 } }
    layer { name: "up" type: "Upsample" bottom: "pool" bottom: "mask" top: "y" }"""


def test_a_decision_is_taken_over_where_the_values_are_all_but_equal() -> None:
    values = torch.tensor([[1.0, 3, 3.00001, 2], [5, -5, 0, 4.9]])
    own = torch.tensor([[2.0], [0]])

    def places(*decided: float) -> list[float]:
        return near_ties_as(torch.tensor(decided), own, values, 1).flatten().tolist()

    assert near_ties_as(None, own, values, 1) is own
    assert places(1, 0) == [1, 0]
    assert places(3, 3) == [2, 0]  # 2 and 4.9 are less
    assert places(0, 1) == [2, 0]
    assert places(-1, 9) == [2, 0]  # no places
    none = torch.tensor([[-1.0], [0]])
    assert near_ties_as(torch.tensor([0.0, 0]), none, values, 1).flatten().tolist() == [-1, 0]


def test_pooling_and_argmax_take_over_decisions() -> None:
    x = torch.ones(1, 1, 2, 4)
    pool = build('type: "Pooling" top: "t" top: "m" pooling_param { kernel_size: 2 stride: 2 }', x.shape)
    assert pool.decision_top == 1
    pool.decided = torch.tensor([5.0, 2]).reshape(1, 1, 1, 2)
    assert run(pool, x)[1].flatten().tolist() == [5, 2]
    x[0, 0, 1, 1] = 0.5
    assert run(pool, x)[1].flatten().tolist() == [0, 2]
    assert build('type: "Pooling" pooling_param { kernel_size: 2 }', (1, 1, 4, 4)).decision_top is None
    scores = torch.tensor([[2.0, 1, 2], [0, 3, 2]])
    for text, shape in (("", (2, 1, 1)), ("axis: 1", (2, 1))):
        layer = build(f'type: "ArgMax" argmax_param {{ {text} }}', (2, 3))
        assert layer.decision_top == 0
        layer.decided = torch.tensor([0.0, 2]).reshape(shape)
        assert run(layer, scores)[0].flatten().tolist() == [0, 1]
    for text in ("out_max_val: true", "top_k: 2"):
        assert build(f'type: "ArgMax" argmax_param {{ {text} }}', (2, 3)).decision_top is None


def shift_masks(monkeypatch: pytest.MonkeyPatch) -> None:
    """The net's masks: the last pixel of a window of 2 x 2 whose first one is the maximum."""
    real: Callable[..., Any] = pooling.max_pool_with_mask

    def shifted(x: torch.Tensor, windows: pooling.PoolWindows) -> tuple[torch.Tensor, torch.Tensor]:
        top, mask = real(x, windows)
        return top, (mask + x.shape[3] + 1).clamp(max=x.shape[2] * x.shape[3] - 1)

    monkeypatch.setattr(pooling, "max_pool_with_mask", shifted)


def test_an_export_is_no_worse_for_near_ties(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of equal values the model takes the first, and here the net takes the last."""
    shift_masks(monkeypatch)
    monkeypatch.setattr(
        "imae.converters.check_onnx.random_inputs",
        lambda net, size, axes, batch: {"x": np.ones((size, 3, 4, 6), np.float32)},
    )
    result = export_file(parse_net(NET), None, tmp_path / "x.onnx")
    assert (result.difference, result.largest, result.outputs) == (0, 1, ["y"])


def test_a_wrong_place_is_still_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shift_masks(monkeypatch)
    with pytest.raises(ExportError, match=r"the ONNX model's outputs are .* away from the net's"):
        export_file(parse_net(NET), None, tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()


def test_the_decisions_are_no_outputs_of_the_model(tmp_path: Path) -> None:
    result = export_file(parse_net(NET), None, tmp_path / "x.onnx")
    assert [output.name for output in result.model.graph.output] == ["y"]
    layer = build('type: "Pooling" top: "t" top: "m" pooling_param { kernel_size: 2 }', (1, 1, 4, 4))
    assert layer.decided is None and run(layer, normal(1, 1, 4, 4))[1].shape == (1, 1, 3, 3)
