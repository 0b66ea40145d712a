"""Every layer type against what Caffe computed: forward, backward, parameters, statistics."""

from pathlib import Path

import pytest
import reference


@pytest.mark.parametrize(
    "path", reference.find("layers/*/*.npz"), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_layer_computes_what_caffe_computed(path: Path) -> None:
    case = reference.load(path)
    assert case.meta["kind"] == "net"
    assert reference.replay(case) > 0


@pytest.mark.parametrize("path", reference.find("nets/*.npz"), ids=lambda path: path.stem)
def test_net_computes_what_caffe_computed(path: Path) -> None:
    assert reference.replay(reference.load(path)) > 0
