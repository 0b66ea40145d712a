"""Weight files: Caffe's own, ours read by the same rules, and what is refused."""

from __future__ import annotations

import json
import logging
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from reference import CASES
from tolerances import tolerance

from imae.files.errors import CaffemodelError, FileError
from imae.net.net import Net
from imae.net.weights import Report, load_caffemodel, net_to_proto, save_caffemodel
from imae.prototxt import TEST, NetParameter
from imae.prototxt.text import parse_net, read_binary, read_net

WEIGHTS = CASES / "weights"
WITH_WEIGHTS = ["c1", "bn1", "sc1", "pr1", "d1", "ip1", "s1", "s2"]


def net_of(text: str) -> Net:
    param = parse_net(text)
    param.state.phase = TEST
    return Net(param)


def recorded_net(folder: str) -> Net:
    param = read_net(WEIGHTS / folder / "net.prototxt")
    param.state.phase = TEST
    return Net(param)


def values(net: Net) -> dict[str, NDArray[np.float32]]:
    return {
        f"{name}:{index}": blob.detach().numpy().copy()
        for name, blobs in net.params.items()
        for index, blob in enumerate(blobs)
    }


TINY = """
layer { name: "data" type: "Input" top: "data" input_param { shape { dim: 2 dim: 3 } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b"
        inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
"""


@pytest.mark.parametrize("folder", ["weights_binaryproto", "weights_hdf5", "weights_v1_legacy_dims"])
def test_caffes_files_are_loaded(folder: str) -> None:
    with np.load(WEIGHTS / folder / f"{folder}.npz", allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays["meta"]))
    net = recorded_net(folder)
    for name in meta["files"]:
        report = load_caffemodel(net, WEIGHTS / folder / name)
    want = {key.removeprefix("weight:"): value for key, value in arrays.items() if key.startswith("weight:")}
    got = values(net)
    assert got.keys() == want.keys()
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, key)
    old = folder == "weights_v1_legacy_dims"
    fresh = [name for name in WITH_WEIGHTS if name not in report.copied]
    assert report.fresh == fresh
    assert (fresh != []) == old
    if "out:out" in arrays:
        rtol, atol, _ = tolerance("golden")
        out = net.forward({"data": torch.from_numpy(arrays["in:data"])})["out"].detach().numpy()
        np.testing.assert_allclose(out, arrays["out:out"], rtol, atol * np.abs(arrays["out:out"]).max())


def test_what_is_saved_is_what_caffe_saves() -> None:
    path = WEIGHTS / "weights_binaryproto" / "w.caffemodel"
    net = recorded_net("weights_binaryproto")
    load_caffemodel(net, path)
    assert net_to_proto(net) == read_binary(path, NetParameter)


@pytest.mark.parametrize("hdf5", [False, True])
@pytest.mark.parametrize("diff", [False, True])
def test_write_then_read_is_the_identity(tmp_path: Path, hdf5: bool, diff: bool) -> None:
    net, other = recorded_net("weights_hdf5"), recorded_net("weights_hdf5")
    with torch.no_grad():
        for index, blob in enumerate(net.learnable):
            blob.copy_(torch.randn(blob.shape, generator=torch.Generator().manual_seed(index)))
            blob.grad = -blob.detach()
    path = tmp_path / "w"  # the content tells the format
    save_caffemodel(net, path, hdf5=hdf5, diff=diff)
    assert load_caffemodel(other, path) == Report(copied=WITH_WEIGHTS if not hdf5 else sorted(WITH_WEIGHTS))
    want, got = values(net), values(other)
    for key, value in want.items():
        np.testing.assert_array_equal(got[key], value, key)
    if hdf5:
        with h5py.File(path) as file:
            assert list(file) == (["data", "diff"] if diff else ["data"])
            assert list(file["data"]) == sorted(net.layer_names)
            assert list(file["data/s2"]) == []  # shared blobs lie at their owner
            if diff:
                np.testing.assert_array_equal(file["diff/s2/0"], -want["s2:0"])
    else:
        blob = read_binary(path, NetParameter).layer[1].blobs[0]
        assert len(blob.diff) == (want["c1:0"].size if diff else 0)


def test_saved_again_it_is_the_same(tmp_path: Path) -> None:
    net = recorded_net("weights_binaryproto")
    load_caffemodel(net, WEIGHTS / "weights_binaryproto" / "w.caffemodel")
    save_caffemodel(net, tmp_path / "w")
    assert (tmp_path / "w").read_bytes() == (WEIGHTS / "weights_binaryproto" / "w.caffemodel").read_bytes()


def test_layers_go_by_name(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    save_caffemodel(net_of(TINY), tmp_path / "w")
    net = net_of(TINY.replace('name: "b"', 'name: "c"'))
    before = values(net)
    with caplog.at_level(logging.INFO, "imae"):
        caplog.clear()
        report = load_caffemodel(net, tmp_path / "w")
    assert report == Report(copied=["a"], ignored=["b"], fresh=["c"])
    messages = [record.getMessage() for record in caplog.records]
    assert messages == [
        "Ignoring source layer b",
        f"{tmp_path / 'w'} has no blobs for the layers c: they keep their values",
    ]
    np.testing.assert_array_equal(values(net)["c:0"], before["c:0"])


@pytest.mark.parametrize("hdf5", [False, True])
def test_another_shape_is_refused_and_nothing_is_loaded(tmp_path: Path, hdf5: bool) -> None:
    save_caffemodel(net_of(TINY), tmp_path / "w", hdf5=hdf5)
    net = net_of(TINY.replace("num_output: 7", "num_output: 11"))
    before = values(net)
    message = (
        "Cannot copy param 0 weights from layer 'b'; shape mismatch.  Source param shape is 7 5 (35); target "
        "param shape is 11 5 (55). To learn this layer's parameters from scratch rather than copying from a "
        "saved net, rename the layer."
    )
    with pytest.raises(CaffemodelError, match=re.escape(message)):
        load_caffemodel(net, tmp_path / "w")
    for key, value in values(net).items():
        np.testing.assert_array_equal(value, before[key], key)


@pytest.mark.parametrize("hdf5", [False, True])
@pytest.mark.parametrize(("file_has", "net_has"), [(2, 1), (1, 2)])
def test_another_number_of_blobs_is_refused(tmp_path: Path, hdf5: bool, file_has: int, net_has: int) -> None:
    texts = {2: TINY, 1: TINY.replace("num_output: 7", "num_output: 7 bias_term: false")}
    save_caffemodel(net_of(texts[file_has]), tmp_path / "w", hdf5=hdf5)
    message = f"Incompatible number of blobs for layer b: the file has {file_has}, the net {net_has}"
    with pytest.raises(CaffemodelError, match=message):
        load_caffemodel(net_of(texts[net_has]), tmp_path / "w")


def test_the_model_of_another_net_of_the_family_is_recognised(tmp_path: Path) -> None:
    """Some layers have other shapes, some are missing on either side: not the case of one renamed layer."""
    save_caffemodel(net_of(TINY), tmp_path / "w")
    two = TINY.replace("num_output: 7", "num_output: 11").replace("num_output: 5", "num_output: 6")
    both = (
        " rename the layer. These look like the weights of another net: 0 of the 2 layers with blobs fit, "
        "2 differ in shape (a, b); give those of this net."
    )
    with pytest.raises(CaffemodelError, match=re.escape(both)):
        load_caffemodel(net_of(two), tmp_path / "w")
    renamed = TINY.replace("num_output: 5", "num_output: 6").replace('name: "b"', 'name: "c"')
    mixed = (
        "0 of the 2 layers with blobs fit, 1 differ in shape (a), 1 are not in the file (c), 1 are only "
        "there (b); give those of this net."
    )
    with pytest.raises(CaffemodelError, match=re.escape(mixed)):
        load_caffemodel(net_of(renamed), tmp_path / "w")
    one = TINY.replace("num_output: 7", "num_output: 11")  # as before fine-tuning
    with pytest.raises(CaffemodelError, match=r"rename the layer\.$"):
        load_caffemodel(net_of(one), tmp_path / "w")


def test_the_model_of_another_net_is_refused(tmp_path: Path) -> None:
    save_caffemodel(net_of(TINY), tmp_path / "w")
    other = net_of(TINY.replace('name: "a"', 'name: "x"').replace('name: "b"', 'name: "y"'))
    message = "the model of another net: it has blobs for a, b, the net needs x, y"
    with pytest.raises(CaffemodelError, match=message):
        load_caffemodel(other, tmp_path / "w")


@pytest.mark.parametrize("hdf5", [False, True])
def test_a_damaged_file_is_refused(tmp_path: Path, hdf5: bool) -> None:
    path = tmp_path / "w"
    save_caffemodel(net_of(TINY), path, hdf5=hdf5)
    data = path.read_bytes()
    for size in (len(data) - 1, len(data) // 2, 9):
        path.write_bytes(data[:size])
        with pytest.raises(CaffemodelError, match=re.escape(str(path))) as caught:
            load_caffemodel(net_of(TINY), path)
        assert "\n" not in str(caught.value)


def test_missing_text_and_foreign_files_are_refused(tmp_path: Path) -> None:
    net = net_of(TINY)
    (tmp_path / "net.prototxt").write_text(TINY)
    with h5py.File(tmp_path / "other.h5", "w") as file:
        file["x"] = np.zeros(3)
    with pytest.raises(CaffemodelError, match=r"nope\.caffemodel: no such file"):
        load_caffemodel(net, tmp_path / "nope.caffemodel")
    with pytest.raises(CaffemodelError, match=r"not a binary caffe\.NetParameter"):
        load_caffemodel(net, tmp_path / "net.prototxt")
    with pytest.raises(CaffemodelError, match="not a caffemodel in HDF5"):
        load_caffemodel(net, tmp_path / "other.h5")


def test_a_blob_that_does_not_hold_what_it_says_is_refused(tmp_path: Path) -> None:
    proto = net_to_proto(net_of(TINY))
    del proto.layer[1].blobs[0].data[-1]
    (tmp_path / "w").write_bytes(proto.SerializeToString())
    with pytest.raises(
        CaffemodelError, match=r"layer 'a', blob 0: a blob of shape \(5, 3\) holds 14 numbers"
    ):
        load_caffemodel(net_of(TINY), tmp_path / "w")


def test_nothing_is_written_where_that_is_impossible(tmp_path: Path) -> None:
    with pytest.raises(FileError, match="cannot write"):
        save_caffemodel(net_of(TINY), tmp_path / "no" / "w")
    assert list(tmp_path.iterdir()) == []
