"""The outline of weights: what the whole message has, without its numbers; damage is an error."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reference import CASES

from imae.files.errors import CaffemodelError
from imae.layers.blob import blob_from_array
from imae.prototxt import BlobProto, NetParameter, SolverState
from imae.prototxt.outline import blob_outline, net_outline, state_outline

MODELS = sorted(CASES.rglob("*.caffemodel"))
STATES = sorted(CASES.rglob("*.solverstate"))
assert len(MODELS) > 5 and len(STATES) > 2


def shape_of(blob: BlobProto) -> tuple[int, ...]:
    if blob.HasField("shape"):
        return tuple(blob.shape.dim)
    return blob.num, blob.channels, blob.height, blob.width


@pytest.mark.parametrize("path", MODELS, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_it_is_that_of_the_message(path: Path) -> None:
    whole, outline = NetParameter.FromString(path.read_bytes()), net_outline(path)
    layers = [*whole.layer, *(v1.layer if v1.HasField("layer") else v1 for v1 in whole.layers)]
    assert outline.name == whole.name
    assert [layer.name for layer in outline.layers] == [layer.name for layer in layers]
    for mine, theirs in zip(outline.layers, layers, strict=True):
        assert [blob.shape for blob in mine.blobs] == [shape_of(blob) for blob in theirs.blobs]
        for blob, proto in zip(mine.blobs, theirs.blobs, strict=True):
            assert blob.raw or blob.count == len(proto.data) + len(proto.double_data)


@pytest.mark.parametrize("path", STATES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_states_have_one_too(path: Path) -> None:
    whole, outline = SolverState.FromString(path.read_bytes()), state_outline(path)
    assert (outline.iteration, outline.learned_net) == (whole.iter, whole.learned_net)
    assert [blob.shape for blob in outline.history] == [shape_of(blob) for blob in whole.history]


def test_a_file_that_is_cut_anywhere_is_an_error_or_has_fewer_layers(here: Path) -> None:
    net = NetParameter(name="n")
    for name in ("a", "b"):
        net.layer.add(name=name, type="Bias").blobs.append(blob_from_array(np.ones((2, 3), np.float32)))
    data = net.SerializeToString()
    errors = 0
    for size in range(len(data)):
        Path("w.caffemodel").write_bytes(data[:size])
        try:
            assert len(net_outline("w.caffemodel").layers) < 2
        except CaffemodelError as error:
            assert "w.caffemodel: damaged or cut short: " in str(error)
            errors += 1
    assert errors == len(data) - 3  # nothing, the net's name, and its name and the first layer are messages


def test_numbers_that_do_not_fill_the_shape_are_noticed(here: Path) -> None:
    blob = BlobProto(data=[1, 2, 3])
    blob.shape.dim.extend([2, 2])
    Path("mean.binaryproto").write_bytes(blob.SerializeToString())
    outline = blob_outline("mean.binaryproto")
    assert (outline.shape, outline.count, outline.is_whole) == ((2, 2), 3, False)
    blob.data.append(4)
    Path("mean.binaryproto").write_bytes(blob.SerializeToString())
    assert blob_outline("mean.binaryproto").is_whole


def test_a_length_beyond_the_file_reserves_nothing(here: Path) -> None:
    huge = b"\xa2\x06" + b"\xff\xff\xff\xff\xff\xff\xff\xff\x7f"  # layer, of 2^63 bytes
    Path("w.caffemodel").write_bytes(huge)
    with pytest.raises(CaffemodelError, match="leads out of the file or of its message"):
        net_outline("w.caffemodel")
    dims = b"".join(b"\x08\x01" for _ in range(40))  # a shape of 40 axes
    Path("mean.binaryproto").write_bytes(bytes([0x3A, len(dims)]) + dims)
    with pytest.raises(CaffemodelError, match="more than 32 axes"):
        blob_outline("mean.binaryproto")
