"""imae.pycaffe.Net: blobs, passes, batches, weights; on the CPU, and with blobs whose memory is elsewhere."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from tolerances import tolerance

import imae.pycaffe as caffe
from imae.files.errors import CaffemodelError, DeviceError, ImaeError
from imae.layers.utility import synced_memory
from imae.pycaffe import mode

INPUT = """
name: "small" force_backward: true
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 3 dim: 2 dim: 5 dim: 7 } } }
layer { name: "conv" type: "Convolution" bottom: "x" top: "conv"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
        inner_product_param { num_output: 6 weight_filler { type: "xavier" } } }
"""
LOSS = """
layer { name: "more" type: "Input" top: "t" input_param { shape { dim: 3 dim: 6 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" loss_weight: 2 }
"""


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Treat all tensors like those of a GPU, whose memory scripts cannot see."""
    monkeypatch.setattr(synced_memory, "in_cpu_memory", lambda tensor: False)


@pytest.fixture(params=["seen", "copied", "cuda"])
def memory(request: pytest.FixtureRequest) -> Iterator[str]:
    """Nets whose blobs scripts see as they are, or by copies, or by copies of what is on a GPU."""
    if request.param == "copied":
        request.getfixturevalue("elsewhere")
    elif request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("there is no GPU")
        caffe.set_mode_gpu()
    yield request.param
    caffe.set_mode_cpu()


def make(
    tmp_path: Path, text: str = INPUT, phase: int = caffe.TRAIN, seed: int = 1, **more: Any
) -> caffe.Net:
    (tmp_path / "net.prototxt").write_text(text)
    caffe.set_random_seed(seed)
    return caffe.Net(tmp_path / "net.prototxt", phase, **more)


def normal(*shape: int, seed: int = 0) -> caffe.net.Array:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_net_tells_what_it_is_made_of(tmp_path: Path) -> None:
    net = make(tmp_path, INPUT + LOSS)
    assert (net.name, net.phase) == ("small", caffe.TRAIN)
    assert net.inputs == ["x", "t"] and net.outputs == ["loss"]
    assert list(net.blobs) == ["x", "conv", "ip", "t", "loss"]
    assert [net.blobs[name].shape for name in ("x", "conv", "loss")] == [(3, 2, 5, 7), (3, 4, 3, 5), ()]
    assert net.blob_loss_weights == {"x": 0, "conv": 0, "ip": 0, "t": 0, "loss": 2}
    assert list(net.layer_dict) == ["in", "conv", "relu", "ip", "more", "loss"] == list(net._layer_names)
    assert [layer.type for layer in net.layers[:3]] == ["Input", "Convolution", "ReLU"]
    assert net.top_names["relu"] == net.bottom_names["relu"] == ["conv"]
    assert net.bottom_names["loss"] == ["ip", "t"] and net.bottom_names["in"] == []
    assert {name: [blob.shape for blob in blobs] for name, blobs in net.params.items()} == {
        "conv": [(4, 2, 3, 3), (4,)],
        "ip": [(6, 60), (6,)],
    }
    assert net.layer_dict["ip"].blobs is net.params["ip"]
    blob = net.blobs["conv"]
    assert (blob.num, blob.channels, blob.height, blob.width, blob.count) == (3, 4, 3, 5, 180)
    assert blob.data.dtype == np.float32
    assert net._inputs == [0, 3] and net._outputs == [4] and net._bottom_ids(5) == [2, 3]
    assert net._top_ids(1) == [1] and net._blob_names[1] == "conv" and net._blobs[1] is blob
    assert net._blob_loss_weights == [0, 0, 0, 0, 2]


def test_a_name_that_two_layers_have_still_finds_the_blobs(tmp_path: Path) -> None:
    """Caffe: `params` goes over all layers, `layer_dict` ends with the last layer of a name."""
    text = INPUT.replace('name: "relu"', 'name: "conv"')
    net = make(tmp_path, text)
    assert list(net._layer_names) == ["in", "conv", "conv", "ip"]
    assert list(net.params) == ["conv", "ip"]
    assert net.layer_dict["conv"].type == "ReLU" and net.params["conv"] is net.layers[1].blobs
    again = text + (
        'layer { name: "conv" type: "InnerProduct" bottom: "ip" top: "y" '
        "inner_product_param { num_output: 2 } }"
    )
    net = make(tmp_path, again)
    assert list(net.params) == ["conv", "ip"] and net.params["conv"] is net.layers[4].blobs


def test_share_with_takes_the_first_layer_of_a_name_that_two_have(tmp_path: Path) -> None:
    """Caffe: ShareTrainedLayersWith goes over the other net's layers, each to the first of its name here."""
    twice = INPUT + (
        'layer { name: "ip" type: "InnerProduct" bottom: "ip" top: "y" '
        'inner_product_param { num_output: 6 bias_term: false weight_filler { type: "xavier" } } }'
    ).replace('bottom: "ip"', 'bottom: "conv"')
    twice = twice.replace("num_output: 6 weight", "num_output: 6 bias_term: false weight", 1)
    net, other = make(tmp_path, twice), make(tmp_path, twice, seed=2)
    own = net.layers[-1].blobs[0].data.copy()
    net.share_with(other)
    first, last = (net.layers[net._layer_names.index("ip")], net.layers[-1])
    np.testing.assert_array_equal(first.blobs[0].data, other.layers[-1].blobs[0].data)
    np.testing.assert_array_equal(last.blobs[0].data, own)


def test_tops_that_the_net_adds_are_called_automatic(tmp_path: Path) -> None:
    """Caffe: all have one name, by which the last is found; they are no outputs."""
    loss = LOSS.replace(' top: "loss"', "")
    net = make(tmp_path, INPUT + loss)
    assert net._blob_names[-1] == "(automatic)" and net.top_names["loss"] == ["(automatic)"]
    assert net.blobs["(automatic)"] is net._blobs[4] and net.blob_loss_weights["(automatic)"] == 2
    assert net.outputs == [] and net._top_ids(5) == [4]
    net = make(
        tmp_path, INPUT + loss + loss.replace("more", "m").replace('"t"', '"u"').replace("loss", "l", 1)
    )
    assert list(net._blob_names).count("(automatic)") == 2
    assert net.blobs["(automatic)"] is net._blobs[-1] and net.inputs == ["x", "t", "u"]
    assert net._top_ids(6) != net._top_ids(8)


def test_forward_takes_inputs_and_gives_outputs(tmp_path: Path, memory: str) -> None:
    net = make(tmp_path)
    x = normal(3, 2, 5, 7)
    out = net.forward(x=x, blobs=["conv"])
    assert set(out) == {"ip", "conv"}
    weights, bias = (blob.data for blob in net.params["ip"])
    rtol, atol, _ = tolerance("same arithmetic")
    want = net.blobs["conv"].data.reshape(3, -1) @ weights.T + bias
    np.testing.assert_allclose(out["ip"], want, rtol=rtol, atol=atol)
    net.blobs["conv"].data[...] = 1
    part = net.forward(start="ip", end="ip")
    np.testing.assert_allclose(part["ip"], np.ones((3, 60)) @ weights.T + bias, rtol=rtol, atol=atol * 10)
    assert set(net.forward(end="relu")) == {"conv"}


def test_backward_takes_top_diffs_and_gives_input_diffs(tmp_path: Path, memory: str) -> None:
    net = make(tmp_path)
    net.forward(x=normal(3, 2, 5, 7))
    diff = normal(3, 6, seed=1)
    out = net.backward(ip=diff, diffs=["conv"])
    assert set(out) == {"x", "conv"} and out["x"].any()
    part = net.backward(start="ip", end="ip")
    rtol, atol, _ = tolerance("same arithmetic")
    want = (diff @ net.params["ip"][0].data).reshape(3, 4, 3, 5)
    np.testing.assert_allclose(part["conv"], want, rtol=rtol, atol=atol)


def test_parameter_diffs_add_up_until_they_are_cleared(tmp_path: Path, memory: str) -> None:
    net = make(tmp_path)
    net.forward(x=normal(3, 2, 5, 7))
    for times in (1, 2, 3):
        net.backward(ip=np.ones((3, 6), np.float32))
        np.testing.assert_array_equal(net.params["ip"][1].diff, np.full(6, 3 * times))
    net.params["ip"][1].diff[...] = 5
    net.backward(ip=np.ones((3, 6), np.float32))
    np.testing.assert_array_equal(net.params["ip"][1].diff, np.full(6, 8))
    net.clear_param_diffs()
    assert not any(blob.diff.any() for blobs in net.params.values() for blob in blobs)


def test_what_scripts_write_counts(tmp_path: Path, memory: str) -> None:
    net = make(tmp_path)
    net.params["ip"][0].data[...] = 0
    net.params["ip"][1].data[...] = np.arange(6)
    np.testing.assert_array_equal(net.forward(x=normal(3, 2, 5, 7))["ip"], np.tile(np.arange(6), (3, 1)))
    net.params["ip"][1].data[0] += 7
    np.testing.assert_array_equal(net.forward()["ip"][:, 0], [7, 7, 7])

    def overwrite(index: int) -> None:
        if net._layer_names[index] == "relu":
            net.blobs["conv"].data[...] = 1

    net.after_forward(overwrite)
    net.params["ip"][0].data[...] = 1
    np.testing.assert_array_equal(net.forward()["ip"][:, 1], [61, 61, 61])


def test_callbacks_are_called_with_the_layers_index(tmp_path: Path) -> None:
    net = make(tmp_path)
    calls: list[tuple[str, int]] = []
    net.before_forward(lambda index: calls.append(("before forward", index)))
    net.after_forward(lambda index: calls.append(("after forward", index)))
    net.before_backward(lambda index: calls.append(("before backward", index)))
    net.after_backward(lambda index: calls.append(("after backward", index)))
    net.forward(start="relu")
    net.backward(end="ip")
    assert calls == [
        (f"{when} {what}", index)
        for what, places in (("forward", (2, 3)), ("backward", (3,)))
        for index in places
        for when in ("before", "after")
    ]


@pytest.mark.parametrize("count", [1, 3, 7])
def test_forward_all_runs_any_number_of_inputs_in_batches(tmp_path: Path, count: int) -> None:
    net = make(tmp_path)
    x = normal(count, 2, 5, 7)
    outs = net.forward_all(x=x, blobs=["conv"])
    assert outs["ip"].shape == (count, 6) and outs["conv"].shape == (count, 4, 3, 5)
    net.blobs["x"].reshape(count, 2, 5, 7)
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(outs["ip"], net.forward(x=x)["ip"], rtol=rtol, atol=atol)


def test_forward_backward_all_gives_blobs_and_diffs(tmp_path: Path) -> None:
    net = make(tmp_path)
    x, diff = normal(5, 2, 5, 7), normal(5, 6, seed=1)
    outs, diffs = net.forward_backward_all(x=x, ip=diff, diffs=["conv"])
    assert outs["ip"].shape == (5, 6) and diffs["conv"].shape == (5, 4, 3, 5)
    net.blobs["x"].reshape(5, 2, 5, 7)
    net.forward(x=x)
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(diffs["x"], net.backward(ip=diff)["x"], rtol=rtol, atol=atol)
    with pytest.raises(ImaeError, match="give the inputs: x"):
        net.forward_all()


def test_a_loss_is_one_value_a_batch(tmp_path: Path) -> None:
    net = make(tmp_path, INPUT + LOSS)
    outs = net.forward_all(x=normal(6, 2, 5, 7), t=normal(6, 6, seed=1))
    assert outs["loss"].shape == (2,)


def test_backward_without_forward_computes_from_the_bottoms(tmp_path: Path) -> None:
    net, other = make(tmp_path), make(tmp_path)
    diff = normal(3, 6)
    net.forward(x=normal(3, 2, 5, 7))
    net.backward(start="ip", end="ip", ip=diff)
    other.blobs["conv"].data[...] = net.blobs["conv"].data
    other.blobs["ip"].diff[...] = diff
    np.testing.assert_array_equal(other.backward(start="ip", end="ip")["conv"], net.blobs["conv"].diff)
    np.testing.assert_array_equal(other.params["ip"][0].diff, net.params["ip"][0].diff)
    assert net.blobs["conv"].diff.any() and not other.blobs["ip"].data.any()


def test_reshape_goes_through_the_net(tmp_path: Path, memory: str) -> None:
    net = make(tmp_path, INPUT[: INPUT.index('layer { name: "ip"')])
    net.blobs["x"].reshape(2, 2, 9, 8)
    assert net.blobs["conv"].shape == (3, 4, 3, 5)
    net.reshape()
    assert net.blobs["conv"].shape == (2, 4, 7, 6)
    net.blobs["x"].reshape(2, 2, 3, 4)
    assert net.forward(x=normal(2, 2, 3, 4))["conv"].shape == (2, 4, 1, 2)


def test_a_blob_keeps_its_memory_unless_it_grows(tmp_path: Path, memory: str) -> None:
    blob = make(tmp_path).blobs["x"]
    x = normal(3, 2, 5, 7)
    blob.data[...] = x
    blob.reshape(1, 2, 5, 7)
    np.testing.assert_array_equal(blob.data, x[:1])
    blob.reshape(3, 70)
    np.testing.assert_array_equal(blob.data, x.reshape(3, 70))
    blob.reshape(4, 70)
    assert not blob.data.any() and blob.diff.shape == (4, 70)


def test_net_surgery(tmp_path: Path, memory: str) -> None:
    net = make(tmp_path)
    conv = net.params["conv"][0]
    values = conv.data.copy()
    conv.reshape(4, 18)
    np.testing.assert_array_equal(conv.data, values.reshape(4, 18))
    conv.reshape(4, 2, 3, 3)
    bias = net.params["ip"][1]
    bias.reshape(7)
    assert bias.shape == bias.diff.shape == (7,) and not bias.data.any()


@pytest.mark.parametrize("hdf5", [False, True])
def test_weights_come_back_from_a_file(tmp_path: Path, memory: str, hdf5: bool) -> None:
    net, other = make(tmp_path), make(tmp_path, seed=2)
    net.params["ip"][1].data[...] = 3  # at once, without a pass in between
    other.params["ip"][1].data[...] = 4
    path = tmp_path / "weights"
    if hdf5:
        net.save_hdf5(path)
        other.load_hdf5(path)
    else:
        net.save(path)
        other.copy_from(path)
    third = make(tmp_path, seed=3, weights=path)
    for name, blobs in net.params.items():
        for index, blob in enumerate(blobs):
            np.testing.assert_array_equal(other.params[name][index].data, blob.data)
            np.testing.assert_array_equal(third.params[name][index].data, blob.data)
    assert (net.params["ip"][1].data == 3).all()


def test_the_older_order_of_arguments(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    net = make(tmp_path)
    net.save(tmp_path / "weights")
    with caplog.at_level(logging.WARNING):
        other = caffe.Net(tmp_path / "net.prototxt", tmp_path / "weights", caffe.TEST)
    assert "DEPRECATION WARNING" in caplog.text
    assert other.phase == caffe.TEST
    np.testing.assert_array_equal(other.params["ip"][0].data, net.params["ip"][0].data)


def test_nets_share_parameters(tmp_path: Path, memory: str) -> None:
    net, other = make(tmp_path), make(tmp_path, seed=2)
    other.share_with(net)
    net.params["ip"][0].data[...] = 2
    assert (other.params["ip"][0].data == 2).all()
    other.params["ip"][0].data[...] = 0
    other.params["ip"][1].data[...] = 1
    assert (net.forward(x=normal(3, 2, 5, 7))["ip"] == 1).all()


def test_blobs_outlive_their_net(tmp_path: Path) -> None:
    net = make(tmp_path)
    blobs, params = list(net.blobs.values()), net.params["ip"]
    weights = params[0].data.copy()
    del net
    assert all(blob.data.sum() == 0 for blob in blobs)
    np.testing.assert_array_equal(params[0].data, weights)


def test_level_and_stages_choose_layers(tmp_path: Path) -> None:
    text = (
        INPUT
        + """
    layer { name: "a" type: "ReLU" bottom: "ip" top: "a" include { stage: "one" } }
    layer { name: "b" type: "ReLU" bottom: "ip" top: "b" include { min_level: 2 } }
    """
    )
    assert make(tmp_path, text).outputs == ["ip"]
    assert make(tmp_path, text, stages=["one"]).outputs == ["a"]
    assert make(tmp_path, text, level=2, stages=["one"]).outputs == ["a", "b"]


def test_set_input_arrays_feeds_memory_data(tmp_path: Path) -> None:
    net = make(tmp_path, """
    layer { name: "data" type: "MemoryData" top: "x" top: "y"
            memory_data_param { batch_size: 2 channels: 1 height: 3 width: 5 } }
    """)  # fmt: skip
    data = normal(4, 1, 3, 5)
    net.set_input_arrays(data, np.arange(4, dtype=np.float32))
    for batch in ([0, 1], [2, 3], [0, 1]):
        out = net.forward()
        np.testing.assert_array_equal(out["x"], data[batch])
        np.testing.assert_array_equal(out["y"].ravel(), batch)
    with pytest.raises(RuntimeError, match="if the net has a MemoryData layer"):
        make(tmp_path).set_input_arrays(data, np.arange(4, dtype=np.float32))


def test_messages(tmp_path: Path) -> None:
    net = make(tmp_path)
    with pytest.raises(RuntimeError, match=r"Could not open file nowhere\.prototxt"):
        caffe.Net("nowhere.prototxt", caffe.TEST)
    with pytest.raises(ImaeError, match=r"Could not open file nowhere\.caffemodel"):
        make(tmp_path, weights="nowhere.caffemodel")
    with pytest.raises(ImaeError, match=r"do not match net inputs\. expected x, got y"):
        net.forward(y=normal(3, 6))
    with pytest.raises(ImaeError, match="Input is not batch sized: x has 4, its blob 3"):
        net.forward(x=normal(4, 2, 5, 7))
    with pytest.raises(ImaeError, match=r"Top diff arguments do not match net outputs\. expected ip, got x"):
        net.backward(x=normal(3, 2, 5, 7))
    with pytest.raises(ImaeError, match="no layer 'conv9'; it has in, conv, relu, ip"):
        net.forward(start="conv9")
    (tmp_path / "broken").write_bytes(b"\0\1\2")
    with pytest.raises(CaffemodelError):
        net.copy_from(tmp_path / "broken")


def test_gpu_mode_needs_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    caffe.set_device(1)  # only remembered
    with pytest.raises(DeviceError, match=r"no CUDA device is available here; call set_mode_cpu\(\)"):
        caffe.set_mode_gpu()
    assert mode.current_device() == torch.device("cpu")
    caffe.set_device(0)


@pytest.mark.usefixtures("elsewhere")
@pytest.mark.parametrize(
    "path",
    [*reference.find("nets/*.npz"), *reference.find("python/*.npz")],
    ids=lambda path: path.stem,
)
def test_nets_compute_the_same_with_memory_elsewhere(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(path.parent))
    assert reference.replay(reference.load(path)) > 0


def test_weights_may_change_between_a_forward_and_a_backward_pass(tmp_path: Path) -> None:
    """Caffe: the backward pass reads the weights as they are then, however they were changed."""
    net, other = make(tmp_path), make(tmp_path, seed=2)
    diffs = []
    for change in ("array", "load"):
        net.forward(x=normal(3, 2, 5, 7))
        if change == "load":
            net.share_with(make(tmp_path))
            net.forward(x=normal(3, 2, 5, 7))
            other.save(tmp_path / "weights")
            net.copy_from(tmp_path / "weights")
        else:
            for name, blobs in net.params.items():
                for blob, source in zip(blobs, other.params[name], strict=True):
                    blob.data[...] = source.data
        diffs.append(net.backward(ip=normal(3, 6, seed=1))["x"].copy())
    np.testing.assert_array_equal(*diffs)
