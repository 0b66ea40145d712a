"""The layers of Caffe's forks against what the forks' own code computed: forward, backward, parameters."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import reference
import torch

import imae.pycaffe as caffe
from imae.files.errors import ImaeError
from imae.layers.run import Run

CASES = reference.find("forks/*/*/*.npz")


# The exact value of these arrays is 0: a convolution's bias has no effect where a BN takes the mean away.
# Recorded are the fork's rounding errors.
ZERO = {"segnet/nets/small_segnet.npz": "paramdiff:c1:1"}


def name(path: Path) -> str:
    return "-".join((*path.parts[-3:-1], path.stem))


def load(path: Path) -> reference.Case:
    case = reference.load(path)
    if key := ZERO.get("/".join(path.parts[-3:])):
        assert np.abs(case.arrays[key]).max() < 1e-8
        case.arrays[key] = np.zeros_like(case.arrays[key])
    return case


@pytest.mark.parametrize("path", [path for path in CASES if path.parent.name != "fatal"], ids=name)
def test_layer_computes_what_the_fork_computed(path: Path) -> None:
    assert reference.replay(load(path)) > 0


@pytest.mark.parametrize("path", [path for path in CASES if path.parent.name != "fatal"], ids=name)
def test_layer_computes_in_double_precision(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same numbers, and nothing on the way is of another type."""
    monkeypatch.setattr("imae.pycaffe.net.Run", partial(Run, dtype=torch.float64))
    case = load(path)
    assert reference.replay(case) > 0
    assert case.dtypes == {np.dtype(np.float64)}


@pytest.mark.parametrize("path", [path for path in CASES if path.parent.name == "fatal"], ids=name)
def test_what_the_fork_refuses_is_refused(path: Path) -> None:
    """When the net is built, or in the forward pass, where the fork stops there."""
    case = reference.load(path)
    with pytest.raises(ImaeError):
        net = caffe.Net(case.prototxt, caffe.TEST if case.meta.get("phase") == "TEST" else caffe.TRAIN)
        for key, value in case.of("in", 0).items():
            net.blobs[key].data[...] = value
        net.forward()
