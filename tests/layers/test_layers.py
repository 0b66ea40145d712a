"""Every layer type against what Caffe computed: forward, backward, parameters, statistics."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

from imae.layers.run import Run

LAYERS = pytest.mark.parametrize(
    "path", reference.find("layers/*/*.npz"), ids=lambda path: f"{path.parent.name}-{path.stem}"
)


@LAYERS
def test_layer_computes_what_caffe_computed(path: Path) -> None:
    case = reference.load(path)
    assert case.meta["kind"] == "net"
    assert reference.replay(case) > 0


@LAYERS
def test_layer_computes_in_double_precision(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, and nothing on the way is of another type."""
    monkeypatch.setattr("imae.pycaffe.net.Run", partial(Run, dtype=torch.float64))
    case = reference.load(path)
    assert reference.replay(case) > 0
    assert case.dtypes == {np.dtype(np.float64)}


@pytest.mark.parametrize("path", reference.find("nets/*.npz"), ids=lambda path: path.stem)
def test_net_computes_what_caffe_computed(path: Path) -> None:
    assert reference.replay(reference.load(path)) > 0
