"""Layer.repeatable: run twice, a layer makes the same tops and changes nothing, or says so."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from layer_cases import CASES, make, write_files
from single_layer import run

from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.prototxt import TEST, TRAIN

# Fields that change the answer.
VARIANTS: dict[str, dict[str, Any]] = {
    "Dropout": {"dropout_param.sample_weights_test": True},
    "BatchNorm": {"batch_norm_param.use_global_stats": False},
    "InnerProduct": {"inner_product_param.normalize": True},
    "InnerDistance": {"inner_distance_param.normalize": True},
}
NEVER = ("Python", "HDF5Output")  # other people's code; a file for one pass
LAYERS = [(key, {}) for key in sorted(CASES) if CASES[key].bottoms and key not in NEVER]
LAYERS += VARIANTS.items()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("files")
    write_files(folder)
    return folder


@pytest.fixture(autouse=True)
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))


def state(layer: Layer) -> list[bytes]:
    """All that a pass may change."""
    tensors = [*layer.blobs, *layer.buffers()]
    return [tensor.detach().numpy().tobytes() for tensor in tensors] + [layer.random.get_state()]


@pytest.mark.parametrize("phase", [TRAIN, TEST], ids=["TRAIN", "TEST"])
@pytest.mark.parametrize(
    ("key", "fields"), LAYERS, ids=[f"{key}{'*' if fields else ''}" for key, fields in LAYERS]
)
def test_a_layer_states_whether_it_is_repeatable(key: str, fields: dict[str, Any], phase: int) -> None:
    param = make(key, fields)
    param.phase = phase  # type: ignore[assignment]
    layer, bottoms = class_of(param)(param), CASES[key].bottoms
    layer.build([tuple(bottom.shape) for bottom in bottoms], Run(CaffeRandom(1)))
    for blob in layer.blobs:  # not the fixed points that fillers make
        blob.data.add_(0.25)
    before = state(layer)
    first = [top.clone() for top in run(layer, *bottoms)]
    same = state(layer) == before
    second = run(layer, *bottoms)
    same &= all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert layer.repeatable is same


@pytest.mark.parametrize("key", NEVER)
def test_layers_that_never_are(key: str) -> None:
    param = make(key, {})
    layer = class_of(param)(param)
    layer.build([tuple(bottom.shape) for bottom in CASES[key].bottoms], Run(CaffeRandom(1)))
    assert not layer.repeatable
