"""The memories that a script may see the blobs of a net in."""

from collections.abc import Iterator

import pytest
import torch

import imae.pycaffe as caffe
from imae.layers.utility import synced_memory


@pytest.fixture(params=["seen", "copied", "cuda"])
def memory(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nets whose blobs scripts see as they are, or by copies, or by copies of what is on a GPU."""
    if request.param == "copied":
        monkeypatch.setattr(synced_memory, "in_cpu_memory", lambda tensor: False)
    elif request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        caffe.set_mode_gpu()
    yield
    caffe.set_mode_cpu()
