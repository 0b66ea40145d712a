"""Binary nets of forks: NVIDIA's raw blobs and BatchNorm of five blobs, and any fork's names and blobs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from google.protobuf.message import Message
from numpy.typing import NDArray
from tolerances import tolerance

from imae.converters.caffemodel import load_caffemodel, save_caffemodel
from imae.layers.net import Net
from imae.prototxt import TEST, BlobProto, LayerParameter, NetParameter
from imae.prototxt.dialects import read_net_dialect
from imae.prototxt.errors import CaffemodelError, PrototxtError
from imae.prototxt.text import parse_net, read_binary
from imae.train.main import main

CHANNELS = 5
NET = f"""
layer {{ name: "in" type: "Input" top: "data" input_param {{ shape {{ dim: 3 dim: 2 dim: 7 dim: 4 }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param {{ num_output: {CHANNELS} kernel_size: 3 bias_term: false }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" }}
layer {{ name: "gain" type: "Scale" bottom: "bn" top: "bn" scale_param {{ bias_term: true }} }}
"""

rng = np.random.default_rng(1)
WEIGHTS = rng.normal(size=(CHANNELS, 2, 3, 3)).astype(np.float16)
MEAN, VARIANCE, SCALE, BIAS = rng.uniform(0.5, 2, (4, CHANNELS)).astype(np.float32)
ONE, RESERVED = np.ones(1, np.float32), np.zeros(1, np.float32)


def field(number: int, value: int | bytes) -> bytes:
    """A field of the wire format: a varint, or bytes."""
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def varint(value: int) -> bytes:
    head = b""
    while value > 127:
        head += bytes([value & 127 | 128])
        value >>= 7
    return head + bytes([value])


def with_fields(message: Message, *fields: bytes) -> bytes:
    return message.SerializeToString() + b"".join(fields)


def raw_blob(values: NDArray[np.floating], kind: int) -> bytes:
    """A BlobProto of NVIDIA Caffe 0.16 and 0.17."""
    shape = b"".join(map(varint, values.shape))
    return field(7, field(1, shape)) + field(10, kind) + field(12, values.tobytes())


def plain_blob(values: NDArray[np.floating]) -> bytes:
    blob = BlobProto(data=values.astype(np.float32).ravel())
    blob.shape.dim.extend(values.shape)
    return blob.SerializeToString()


def nvidia_017() -> bytes:
    """conv (half precision) and bn (five blobs), as NVIDIA Caffe 0.17 writes them."""
    types = (field(145, 2), field(146, 2), field(147, 1), field(148, 1))
    conv = LayerParameter(name="conv", type="Convolution", bottom=["data"], top=["conv"])
    norm = LayerParameter(name="bn", type="BatchNorm", bottom=["conv"], top=["bn"])
    for index in range(5):
        norm.param.add(lr_mult=index > 2, decay_mult=index > 2)
    filler = field(1, b"constant")
    norm_param = field(1, 0) + field(5, filler) + field(6, filler) + field(7, 1)
    blobs = (MEAN, VARIANCE, ONE, SCALE, BIAS)
    layers = [
        with_fields(conv, *types, field(7, raw_blob(WEIGHTS, 2))),
        with_fields(norm, *types, field(139, norm_param), *(field(7, raw_blob(blob, 1)) for blob in blobs)),
        with_fields(LayerParameter(name="rnn", type="RNN"), field(151, field(1, 7))),
    ]
    return with_fields(NetParameter(name="n"), field(11, 2), *(field(100, layer) for layer in layers))


def nvidia_015() -> bytes:
    """The same as NVIDIA Caffe 0.15 writes it: floats, and another order of the five."""
    conv = LayerParameter(name="conv", type="Convolution", bottom=["data"], top=["conv"])
    norm = LayerParameter(name="bn", type="BatchNorm", bottom=["conv"], top=["bn"])
    blobs = (SCALE, BIAS, MEAN, VARIANCE, RESERVED)
    layers = [
        with_fields(conv, field(7, plain_blob(WEIGHTS))),
        with_fields(norm, *(field(7, plain_blob(blob)) for blob in blobs)),
    ]
    return with_fields(NetParameter(name="n"), *(field(100, layer) for layer in layers))


def net_of(text: str = NET) -> Net:
    param = parse_net(text)
    param.state.phase = TEST
    return Net(param)


def check_outputs(net: Net) -> None:
    """What NVIDIA Caffe computes in TEST: statistics that are no sums, then scale and bias."""
    data = np.random.default_rng(2).normal(size=(3, 2, 7, 4))
    conv = torch.nn.functional.conv2d(torch.from_numpy(data), torch.from_numpy(WEIGHTS).double()).numpy()
    mean, variance, scale, bias = (v.astype(np.float64)[:, None, None] for v in (MEAN, VARIANCE, SCALE, BIAS))
    want = (conv - mean) / np.sqrt(variance + 1e-5) * scale + bias
    got = net.forward({"data": torch.from_numpy(data.astype(np.float32))})["bn"].detach().numpy()
    rtol, atol, _ = tolerance("golden")
    np.testing.assert_allclose(got, want, rtol, atol * np.abs(want).max())


@pytest.mark.parametrize("data", [nvidia_017(), nvidia_015()], ids=["0.17", "0.15"])
def test_nvidias_weights_are_loaded(data: bytes, tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(data)
    net = net_of()
    report = load_caffemodel(net, path, "nvidia")
    assert (report.copied, report.fresh) == (["conv", "bn", "gain"], [])
    check_outputs(net)


@pytest.mark.parametrize("data", [nvidia_017(), nvidia_015()], ids=["0.17", "0.15"])
def test_nvidias_file_becomes_caffes(data: bytes, tmp_path: Path) -> None:
    path, new = tmp_path / "w.caffemodel", tmp_path / "new.caffemodel"
    path.write_bytes(data)
    assert main(["upgrade-net-proto-binary", "--dialect", "nvidia", str(path), str(new)]) == 0
    net = net_of(NET.replace('"gain"', '"bn_scale"'))
    assert load_caffemodel(net, new).fresh == []
    check_outputs(net)


def test_the_layers_of_the_converted_net(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(nvidia_017())
    conv, norm, scale, rnn = read_net_dialect(path, "nvidia").layer
    assert (norm.type, [len(blob.data) for blob in norm.blobs]) == ("BatchNorm", [5, 5, 1])
    assert not norm.batch_norm_param.HasField("use_global_stats")
    assert [spec.lr_mult for spec in norm.param] == [0, 0, 0]
    assert (scale.name, scale.type, scale.bottom, scale.top) == ("bn_scale", "Scale", ["bn"], ["bn"])
    assert [spec.lr_mult for spec in scale.param] == [1, 1]
    assert (scale.scale_param.bias_term, scale.scale_param.filler.type) == (True, "constant")
    assert rnn.recurrent_param.num_output == 7
    assert not conv.HasField("recurrent_param")
    left_out = [f"LayerParameter.{number}" for number in (145, 146, 147, 148)]
    assert [record.getMessage() for record in caplog.records] == [
        f"{path}: left out, as Caffe has no such fields: {', '.join([*left_out, 'NetParameter.11'])}"
    ]


@pytest.mark.parametrize(("kind", "dtype"), [(0, "f8"), (1, "f4"), (2, "f2")])
def test_raw_numbers(kind: int, dtype: str, tmp_path: Path) -> None:
    values = np.array([[1.5, -2, 3]], dtype)
    layer = with_fields(LayerParameter(name="x"), field(7, raw_blob(values, kind)))
    (tmp_path / "w").write_bytes(field(100, layer))
    (blob,) = read_net_dialect(tmp_path / "w", "nvidia").layer[0].blobs
    assert list(blob.double_data if dtype == "f8" else blob.data) == [1.5, -2, 3]
    assert list(blob.shape.dim) == [1, 3]


def test_without_the_dialect_the_error_says_so(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(nvidia_017())
    with pytest.raises(
        CaffemodelError, match=r"layer 'conv', blob 0: .*, or a fork's, which --dialect reads"
    ):
        load_caffemodel(net_of(), path)
    path.write_bytes(nvidia_015())
    with pytest.raises(CaffemodelError, match=r"layer bn: the file has 5, as NVIDIA.*say --dialect nvidia"):
        load_caffemodel(net_of(), path)


def test_commands_read_dialects(tmp_path: Path) -> None:
    (tmp_path / "w").write_bytes(nvidia_015())
    (tmp_path / "net.prototxt").write_text(NET)
    model = ["--model", str(tmp_path / "net.prototxt"), "--weights", str(tmp_path / "w")]
    output = str(tmp_path / "x.onnx")
    assert main(["export", *model, "--output", output]) == 2
    assert main(["export", *model, "--output", output, "--dialect", "nvidia"]) == 0


@pytest.mark.parametrize(
    "blob",
    [
        field(7, field(1, b"\x03")) + field(10, 1) + field(12, b"12345678"),  # two floats of three
        field(7, field(1, b"\x02")) + field(10, 3) + field(12, b"12345678"),  # integers
        field(7, field(1, b"\x02")) + field(12, b"12345678"),  # of no type
        field(7, field(1, b"\x02")) + field(10, 1) + field(12, 5),  # no bytes
    ],
)
def test_damaged_raw_blobs(blob: bytes, tmp_path: Path) -> None:
    layer = with_fields(LayerParameter(name="x"), field(7, blob))
    (tmp_path / "w").write_bytes(field(100, layer))
    with pytest.raises(
        CaffemodelError, match=r"w: layer 'x', blob 0: its raw data is not [23] doubles, floats"
    ):
        read_net_dialect(tmp_path / "w", "nvidia")


def test_other_forks_fields_are_not_looked_at(tmp_path: Path) -> None:
    """Fields whose bytes make no sense under Caffe's numbers: read as Caffe's, the file is refused."""
    path = tmp_path / "w.caffemodel"
    norm = LayerParameter(name="ip", type="InnerProduct", bottom=["x"], top=["y"])
    layer = with_fields(
        norm, field(137, field(2, b"\xff\xff")), field(106, b"\xff\xff"), field(7, plain_blob(WEIGHTS))
    )
    path.write_bytes(with_fields(NetParameter(name="n"), field(100, layer), field(6, b"\xff")))
    with pytest.raises(PrototxtError, match=r"not a binary caffe\.NetParameter"):
        read_binary(path, NetParameter)
    net = read_net_dialect(path, "other")
    want = LayerParameter(name="ip", type="InnerProduct", bottom=["x"], top=["y"])
    want.blobs.append(BlobProto.FromString(plain_blob(WEIGHTS)))
    assert net == NetParameter(name="n", layer=[want])


def test_other_reads_old_nets(tmp_path: Path) -> None:
    path = Path(__file__).parent / "cases" / "weights" / "weights_v1_legacy_dims" / "v1.caffemodel"
    want = read_binary(path, NetParameter)
    got = read_net_dialect(path, "other")
    assert [layer.name for layer in got.layers] == [layer.name for layer in want.layers]
    assert [list(layer.blobs) for layer in got.layers] == [list(layer.blobs) for layer in want.layers]
    assert any(layer.blobs for layer in got.layers)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(PrototxtError, match="unknown dialect 'intel'; known: nvidia, other"):
        read_net_dialect(tmp_path / "w", "intel")
    for dialect in ("nvidia", "other"):
        with pytest.raises(CaffemodelError, match="no such file"):
            load_caffemodel(net_of(), tmp_path / "nope", dialect)
    save_caffemodel(net_of(), tmp_path / "w.h5", hdf5=True)
    with pytest.raises(CaffemodelError, match="dialects are of binary files, this is HDF5"):
        load_caffemodel(net_of(), tmp_path / "w.h5", "nvidia")
    broken = with_fields(LayerParameter(name="rnn"), field(151, b"\xff"))
    (tmp_path / "w").write_bytes(field(100, broken))
    with pytest.raises(CaffemodelError, match="w: "):
        read_net_dialect(tmp_path / "w", "nvidia")
