"""Files of forks: NVIDIA's raw blobs, BatchNorm of five blobs and prototxts; any fork's names and blobs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from google.protobuf.message import Message
from numpy.typing import NDArray
from tolerances import tolerance

import imae.pycaffe as caffe
from imae.cli.main import main
from imae.files.errors import CaffemodelError, PrototxtError, SnapshotError
from imae.net.net import Net
from imae.net.weights import load_caffemodel, save_caffemodel
from imae.prototxt import TEST, BlobProto, LayerParameter, NetParameter, SolverState
from imae.prototxt.dialects import (
    DIALECTS,
    read_net_dialect,
    read_net_text,
    read_solver_dialect,
    read_state_dialect,
)
from imae.prototxt.text import parse_net, read_binary, read_net, read_solver, to_text
from imae.train.options import Options
from imae.train.solver import Solver
from imae.train.solverstate import read_state

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
        CaffemodelError,
        match=r"layer 'conv', blob 0: .*, or its numbers are in the fields 10 to 13 .*--dialect nvidia reads",
    ):
        load_caffemodel(net_of(), path)
    path.write_bytes(nvidia_015())
    with pytest.raises(CaffemodelError, match=r"layer bn: the file has 5, as NVIDIA.*say --dialect nvidia"):
        load_caffemodel(net_of(), path)


def test_a_dialect_that_lacks_the_numbers_says_whose_they_are(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(nvidia_017())
    with pytest.raises(
        CaffemodelError, match=r"w\.caffemodel: .* its numbers are in .*--dialect nvidia reads"
    ):
        load_caffemodel(net_of(), path, "other")
    with pytest.raises(PrototxtError, match=r"w\.caffemodel: its numbers are in .*--dialect nvidia reads"):
        read_net_dialect(path, "other")
    path.write_bytes(nvidia_state("", HISTORY))
    with pytest.raises(SnapshotError, match=r"w\.caffemodel: its numbers are in .*--dialect nvidia reads"):
        read_state(path, "other")
    unknown = with_fields(LayerParameter(name="conv"), field(7, field(7, field(1, b"\x01")) + field(40, 1)))
    path.write_bytes(field(100, unknown))
    with pytest.raises(
        CaffemodelError, match=r"layer 'conv', blob 0: .*, or a fork's, which --dialect reads"
    ):
        load_caffemodel(net_of(), path)


# The net as NVIDIA's prototxts have it.
NVIDIA_NET = f"""
default_forward_type: FLOAT16  default_conv_algos_override: "1,1,1"  global_grad_scale: 128
layer {{ name: "in" type: "Input" top: "data" input_param {{ shape {{ dim: 3 dim: 2 dim: 7 dim: 4 }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv" forward_math: FLOAT
        convolution_param {{ num_output: {CHANNELS} kernel_size: 3 bias_term: false
                            cudnn_convolution_algo_seeker: FINDEX }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "conv" top: "bn"
        param {{ lr_mult: 0 }} param {{ lr_mult: 0 }} param {{ lr_mult: 0 }} param {{ lr_mult: 2 }}
        batch_norm_param {{ scale_bias: true scale_filler {{ value: 3 }} eps: 1e-8 engine: CUDNN }} }}
layer {{ name: "plain" type: "BatchNorm" bottom: "bn" top: "plain" batch_norm_param {{ scale_bias: false }} }}
"""


def test_nvidias_prototxt_is_read(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(NVIDIA_NET)
    with pytest.raises(PrototxtError, match=r'message "caffe\.NetParameter" has no field "default_forward'):
        read_net_text(path)
    net = read_net_text(path, "nvidia")
    assert [(layer.name, layer.type) for layer in net.layer] == [
        ("in", "Input"), ("conv", "Convolution"), ("bn", "BatchNorm"), ("bn_scale", "Scale"),
        ("plain", "BatchNorm"),
    ]  # fmt: skip
    _, conv, norm, scale, plain = net.layer
    assert conv.convolution_param.num_output == CHANNELS
    assert [spec.lr_mult for spec in norm.param] == [0, 0, 0] and norm.batch_norm_param.eps == np.float32(
        1e-5
    )
    # NVIDIA Caffe: scale and bias learn with 1, whatever the prototxt has.
    assert (list(scale.bottom), list(scale.top), [spec.lr_mult for spec in scale.param]) == (
        ["bn"],
        ["bn"],
        [1],
    )
    assert scale.scale_param.bias_term and scale.scale_param.filler.value == 3
    assert list(plain.bottom) == ["bn"]
    assert caplog.messages == [
        f"{path}: left out, as Caffe has no such fields: BatchNormParameter.engine, "
        "ConvolutionParameter.cudnn_convolution_algo_seeker, LayerParameter.forward_math, "
        "NetParameter.default_conv_algos_override, NetParameter.default_forward_type, "
        "NetParameter.global_grad_scale"
    ]
    assert text_format.Parse(to_text(net), NetParameter()) == net


IMPLIED = """
layer {{ name: "in" type: "Input" top: "data" input_param {{ shape {{ dim: 3 dim: 2 dim: 7 dim: 4 }} }} }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param {{ num_output: 5 kernel_size: 3 bias_term: false }} }}
layer {{ name: "bn" type: "BatchNorm" bottom: "conv" top: "bn" {params} batch_norm_param {{ {fields} }} }}
"""
FILLERS = 'scale_filler { type: "constant" value: 1 } bias_filler { type: "constant" value: 0 }'
LEARNT = "param { lr_mult: 1 decay_mult: 0 } " * 2


@pytest.mark.parametrize("data", [nvidia_017(), nvidia_015()], ids=["0.17", "0.15"])
@pytest.mark.parametrize("fields", [FILLERS, "scale_bias: true", "bias_filler { }", "scale_filler { }", ""])
@pytest.mark.parametrize("params", ["", LEARNT, LEARNT * 2])
def test_scale_and_bias_that_are_implied(data: bytes, fields: str, params: str, tmp_path: Path) -> None:
    """By a filler, by a fourth param, or, in 0.15, by nothing at all: then the weights tell."""
    net, weights = tmp_path / "net.prototxt", tmp_path / "w.caffemodel"
    net.write_text(IMPLIED.format(fields=fields, params=params))
    weights.write_bytes(data)
    check_outputs(caffe.Net(net, caffe.TEST, weights=weights, dialect="nvidia").module)
    late = caffe.Net(net, caffe.TEST, dialect="nvidia")
    if fields or params == LEARNT * 2:
        late.copy_from(weights, "nvidia")
        check_outputs(late.module)
        return
    before = late.params["bn"][0].data.copy()
    with pytest.raises(
        CaffemodelError,
        match=r"blobs for layer bn: the file has 5, .* no Scale layer .*scale_bias: true",
    ):
        late.copy_from(weights, "nvidia")
    np.testing.assert_array_equal(late.params["bn"][0].data, before)


def test_five_blobs_and_no_scale_are_an_error_without_a_dialect_too(tmp_path: Path) -> None:
    path = tmp_path / "w.caffemodel"
    path.write_bytes(nvidia_015())
    without = net_of(NET[: NET.index('layer { name: "gain"')])
    for dialect in (None, "other", "nvidia"):
        with pytest.raises(
            CaffemodelError, match=r"Incompatible number of blobs for layer bn: the file has 5"
        ):
            load_caffemodel(without, path, dialect)
    with h5py.File(tmp_path / "w.h5", "w") as file:
        for index, values in enumerate((MEAN, VARIANCE, ONE, SCALE, BIAS)):
            file[f"data/bn/{index}"] = values
    with pytest.raises(
        CaffemodelError, match=r"the file has 5, as NVIDIA.*HDF5 files are not read; write a bin"
    ):
        load_caffemodel(without, tmp_path / "w.h5")


@pytest.mark.parametrize("data", [nvidia_017(), nvidia_015()], ids=["0.17", "0.15"])
def test_a_scale_that_the_net_has_already_is_the_one(data: bytes, tmp_path: Path) -> None:
    net, weights = tmp_path / "net.prototxt", tmp_path / "w.caffemodel"
    net.write_text(NET)
    weights.write_bytes(data)
    module = caffe.Net(net, caffe.TEST, weights=weights, dialect="nvidia").module
    assert module.layer_names == ["in", "conv", "bn", "gain"]
    check_outputs(module)


def test_commands_look_at_the_weights_before_they_build_the_net(training: Path) -> None:
    Path("net.prototxt").write_text(IMPLIED.format(fields="", params=""))
    Path("w.caffemodel").write_bytes(nvidia_015())
    files = ["--model", "net.prototxt", "--weights", "w.caffemodel", "--dialect", "nvidia"]
    assert main(["export", *files, "--output", "x.onnx"]) == 0
    Path("solver.prototxt").write_text(SOLVER + ' weights: "w.caffemodel"')
    solver = Solver(read_solver("solver.prototxt"), Options(dialect="nvidia"))
    assert solver.net.layer_names[-1] == "bn_scale"
    check_outputs_of(solver.net)


def test_nvidias_batch_norm_sets_its_own_mults_and_goes_by_the_phase(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, weights = tmp_path / "net.prototxt", tmp_path / "w.caffemodel"
    fields = "use_global_stats: false eps: 1e-7"
    path.write_text(IMPLIED.format(fields=fields, params="param { lr_mult: 3 } param { lr_mult: 4 }"))
    (norm,) = read_net_text(path, "nvidia").layer[2:]
    assert [(spec.lr_mult, spec.decay_mult) for spec in norm.param] == [(0, 0)] * 2
    assert norm.batch_norm_param.eps == np.float32(1e-5)
    assert not norm.batch_norm_param.HasField("use_global_stats")
    assert "use_global_stats of bn: NVIDIA Caffe 0.16 and 0.17 pass over it" in caplog.text
    weights.write_bytes(nvidia_015())  # 0.15 follows the prototxt, and has scale and bias first
    norm, scale = read_net_text(path, "nvidia", [weights]).layer[2:]
    assert [spec.lr_mult for spec in scale.param] == [3, 4] and not norm.param
    assert norm.batch_norm_param.eps == np.float32(1e-7) and norm.batch_norm_param.HasField(
        "use_global_stats"
    )


def test_caffes_own_prototxt_is_the_same_in_every_dialect(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text(NET)
    for dialect in (None, *DIALECTS):
        assert read_net_text(path, dialect) == read_net(path)


def test_nvidias_other_fields_are_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    path.write_text('layer { name: "a" type: "Split" trt_param { top_k: 5 } }')
    with pytest.raises(PrototxtError, match=r':1:\d+: message "caffe.LayerParameter" has no field "trt_par'):
        read_net_text(path, "nvidia")


def test_nvidias_prototxt_becomes_caffes(tmp_path: Path) -> None:
    old, new, weights = tmp_path / "old", tmp_path / "new", tmp_path / "w"
    old.write_text(NVIDIA_NET[: NVIDIA_NET.index('layer { name: "plain"')])
    assert main(["upgrade-net-proto-text", str(old), str(new)]) == 2
    assert main(["upgrade-net-proto-text", "--dialect", "other", str(old), str(new)]) == 2
    assert main(["upgrade-net-proto-text", "--dialect", "nvidia", str(old), str(new)]) == 0
    for data in (nvidia_017(), nvidia_015()):
        weights.write_bytes(data)
        net = net_of(new.read_text())
        assert load_caffemodel(net, weights, "nvidia").fresh == []
        check_outputs(net)


def nvidia_state(model: str, history: Sequence[NDArray[np.floating]]) -> bytes:
    """A solver state of NVIDIA Caffe 0.17, beyond whose history it has two fields more."""
    blobs = (field(3, raw_blob(blob, 1)) for blob in history)
    last = field(4, 2) + field(6, 9)
    return field(1, 12) + field(2, model.encode()) + b"".join(blobs) + last


SOLVER = 'net: "net.prototxt" base_lr: 1 lr_policy: "fixed" snapshot_prefix: "s" momentum: 0.5'
HISTORY = [rng.normal(size=shape).astype(np.float32) for shape in ((CHANNELS, 2, 3, 3), *[(CHANNELS,)] * 4)]
HISTORY.insert(3, ONE)  # the correction of BatchNorm


@pytest.fixture
def training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with NVIDIA's net, weights and solver state."""
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NVIDIA_NET[: NVIDIA_NET.index('layer { name: "plain"')])
    Path("solver.prototxt").write_text(SOLVER)
    Path("w.caffemodel").write_bytes(nvidia_017())
    Path("s.solverstate").write_bytes(nvidia_state("w.caffemodel", HISTORY))
    return tmp_path


def test_a_training_goes_on_from_nvidias_files(training: Path) -> None:
    solver = Solver(read_solver("solver.prototxt"), Options(dialect="nvidia"))
    solver.restore("s.solverstate", dialect="nvidia")
    assert (solver.iteration, solver.current_step) == (12, 2)
    check_outputs_of(solver.net)
    for blob, want in zip(solver.history, HISTORY, strict=True):
        np.testing.assert_array_equal(blob, want)
    with pytest.raises(
        SnapshotError, match=r"state: history: .*, or its numbers are in the .* --dialect nvidia"
    ):
        solver.restore("s.solverstate")


def check_outputs_of(train_net: Net) -> None:
    """Those of the net with a train net's parameters in phase TEST."""
    net = net_of(NET.replace('"gain"', '"bn_scale"'))
    net.share_with(train_net)
    check_outputs(net)


@pytest.mark.parametrize(
    "flags",
    [
        ["--weights", "w.caffemodel", "--dialect", "nvidia"],
        ["--snapshot", "s.solverstate", "--dialect", "nvidia"],
    ],
)
def test_train_reads_dialects(flags: list[str], training: Path) -> None:
    Path("solver.prototxt").write_text(SOLVER + " max_iter: 0")
    assert main(["train", "solver.prototxt", *flags[:2]]) == 2
    assert main(["train", "solver.prototxt", *flags]) == 0
    net = net_of(NET.replace('"gain"', '"bn_scale"'))
    (model,) = training.glob("s_iter_*.caffemodel")
    load_caffemodel(net, model)  # what it wrote is Caffe's
    check_outputs(net)


def test_other_solver_states(training: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Fields of another fork whose bytes make no sense, and numbers where Caffe has them."""
    solver = Solver(read_solver("solver.prototxt"), Options(dialect="nvidia"))
    state = SolverState(iter=7, history=[BlobProto.FromString(plain_blob(blob)) for blob in HISTORY])
    Path("other").write_bytes(with_fields(state, field(2000, b"\xff"), field(4, 3)))
    solver.restore("other", dialect="other")
    assert (solver.iteration, solver.current_step) == (7, 3)
    np.testing.assert_array_equal(solver.history[1], HISTORY[1])


def test_solver_states_that_are_refused(training: Path) -> None:
    solver = Solver(read_solver("solver.prototxt"), Options(dialect="nvidia"))
    Path("damaged").write_bytes(field(3, field(7, field(1, b"\x03")) + field(10, 1) + field(12, b"12345678")))
    with pytest.raises(SnapshotError, match="damaged: history blob 0: its raw data is not 3 doubles, floats"):
        solver.restore("damaged", dialect="nvidia")
    with pytest.raises(SnapshotError, match=r"s\.solverstate\.h5: dialects are of binary files"):
        solver.restore("s.solverstate.h5", dialect="nvidia")
    with pytest.raises(SnapshotError, match="nope: no such file"):
        solver.restore("nope", dialect="other")


def test_pycaffe_reads_dialects(training: Path) -> None:
    check_outputs_of(caffe.Net("net.prototxt", caffe.TEST, weights="w.caffemodel", dialect="nvidia").module)
    net = caffe.Net("net.prototxt", caffe.TEST, dialect="nvidia")
    with pytest.raises(CaffemodelError, match="--dialect"):
        net.copy_from("w.caffemodel")
    net.copy_from("w.caffemodel", "nvidia")
    check_outputs_of(net.module)
    assert net.params["bn_scale"][0].data.tolist() == SCALE.tolist()


def test_commands_read_dialects_of_nets(training: Path) -> None:
    data = NVIDIA_NET[: NVIDIA_NET.index('layer { name: "plain"')].replace(
        'type: "Input" top: "data" input_param', 'type: "DummyData" top: "data" dummy_data_param'
    )
    Path("net.prototxt").write_text(data)
    weights, dialect = ["--weights", "w.caffemodel"], ["--dialect", "nvidia"]
    for command in (
        ["test", "--model", "net.prototxt", *weights, "--iterations", "1"],
        ["time", "--model", "net.prototxt", "--iterations", "1"],
        ["export", "--model", "net.prototxt", *weights, "--output", "x.onnx"],
        ["extract-features", "w.caffemodel", "net.prototxt", "bn", "out", "1", "lmdb"],
    ):
        assert main(command) == 2
        assert main([*command, *dialect]) == 0


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
    path = Path(__file__).parents[1] / "cases" / "weights" / "weights_v1_legacy_dims" / "v1.caffemodel"
    want = read_binary(path, NetParameter)
    got = read_net_dialect(path, "other")
    assert [layer.name for layer in got.layers] == [layer.name for layer in want.layers]
    assert [list(layer.blobs) for layer in got.layers] == [list(layer.blobs) for layer in want.layers]
    assert any(layer.blobs for layer in got.layers)


def test_what_is_refused(tmp_path: Path) -> None:
    for read in (read_net_dialect, read_state_dialect, read_net_text):
        with pytest.raises(PrototxtError, match="unknown dialect 'intel'; known: nvidia, other"):
            read(tmp_path / "w", "intel")
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


# -- solvers -------------------------------------------------------------------------------------------------

NVIDIA_SOLVER = """
    base_lr: 0.5 lr_policy: "poly" power: 2 max_iter: 4 random_seed: 1 momentum: 0.5
    rampup_interval: 2 rampup_lr: 0.125 min_lr: 0.0625 momentum_policy: "poly" larc: true larc_policy: "clip"
    store_blobs_in_old_format: true solver_data_type: FLOAT snapshot_prefix: "s"
    test_iter: 1 test_interval: 2
"""


def test_nvidias_solvers_are_read(training: Path, caplog: pytest.LogCaptureFixture) -> None:
    fields = NVIDIA_NET[NVIDIA_NET.index('layer { name: "conv"') :]
    data = """layer { name: "in" type: "DummyData" top: "data"
        dummy_data_param { shape { dim: 3 dim: 2 dim: 7 dim: 4 } } }"""
    loss = """layer { name: "sum" type: "Reduction" bottom: "plain" top: "sum" loss_weight: 1 }
        layer { name: "smooth" type: "SoftmaxWithLoss" bottom: "plain" bottom: "y" top: "smooth"
                loss_param { label_smoothing: 0.1 } include { stage: "never" } }"""
    net = f"default_forward_type: FLOAT16 {data} {fields} {loss}"
    Path("solver.prototxt").write_text(f"{NVIDIA_SOLVER} net_param {{ {net} }}")
    with pytest.raises(PrototxtError, match=r'has no field "default_forward_type"; NVIDIA .*--dialect nvi'):
        read_solver("solver.prototxt")
    param = read_solver_dialect("solver.prototxt", "nvidia")
    assert [layer.name for layer in param.net_param.layer][1:5] == ["conv", "bn", "bn_scale", "plain"]
    assert "left out, as Caffe has no such fields: BatchNormParameter.engine" in caplog.text
    assert not param.test_initialization
    loss_param = param.net_param.layer[-1].loss_param
    assert loss_param.nvidia_label_smoothing == np.float32(0.1) and not loss_param.HasField("label_smoothing")
    assert main(["train", "solver.prototxt"]) == 2
    assert main(["train", "solver.prototxt", "--dialect", "nvidia"]) == 0
    assert (training / "s_iter_4.caffemodel").exists()
    names = caffe.get_solver("solver.prototxt", dialect="nvidia").net.params.keys()
    assert names == {"conv", "bn", "bn_scale", "plain"}
    assert main(["upgrade-solver-proto-text", "solver.prototxt", "caffes.prototxt"]) == 2
    command = ["upgrade-solver-proto-text", "--dialect", "nvidia", "solver.prototxt", "caffes.prototxt"]
    assert main(command) == 0
    again = read_solver("caffes.prototxt")
    assert again == param


def test_nvidias_shuffle_needs_its_cache(tmp_path: Path) -> None:
    path = tmp_path / "net.prototxt"
    for fields, cache in (("", False), ("cache: true", True), ("cache: false", False)):
        path.write_text(f'layer {{ name: "d" type: "Data" data_param {{ shuffle: true {fields} }} }}')
        (layer,) = read_net_text(path, "nvidia").layer
        assert layer.data_param.HasField("cache") and layer.data_param.cache == cache
        assert read_net(path).layer[0].data_param.HasField("cache") == bool(fields)


@pytest.mark.parametrize(
    ("fields", "delta"),
    [('type: "Adam"', 1e-4), ("solver_type: RMSPROP delta: 1e-6", 1e-4), ('type: "AdaGrad" delta: 0.5', 0.5),
     ('type: "AdaDelta"', 1e-3), ('type: "SGD"', 1e-8)],
)  # fmt: skip
def test_nvidias_smallest_deltas(fields: str, delta: float, training: Path) -> None:
    Path("solver.prototxt").write_text(f"{SOLVER} {fields} test_initialization: true")
    param = read_solver_dialect("solver.prototxt", "nvidia")
    assert (param.delta, param.test_initialization) == (np.float32(delta), True)
    assert read_solver_dialect("solver.prototxt", None) == read_solver("solver.prototxt")


# -- weights of any fork, without a dialect ------------------------------------------------------------------

PLAIN = field(7, plain_blob(WEIGHTS))


def net_with(*fields: bytes, name: str = "conv", kind: str = "Convolution") -> bytes:
    """A binary net of one layer with these fields besides its blob."""
    layer = LayerParameter(name=name, type=kind, bottom=["data"], top=["conv"])
    return field(100, with_fields(layer, *fields, PLAIN))


# Fields that forks put under numbers where Caffe has others, or that Caffe lacks: by whose files they occur.
CLASHES = {
    "DeepLab's interp_param, Caffe's input_param": net_with(field(143, field(1, 65)), kind="Interp"),
    "yjxiong's bn_param, Caffe's embed_param": net_with(
        field(137, field(1, field(1, b"constant"))), kind="BN"
    ),
    "SphereFace's margin_inner_product_param, Caffe's swish_param": net_with(field(147, field(1, 10))),
    "Intel's smooth_l1_loss_param, Caffe's clip_param": net_with(
        field(148, b"\x0d\0\0@@"), kind="SmoothL1Loss"
    ),
    "SSD's permute_param": net_with(field(202, field(1, 0) + field(1, 2)), kind="Permute"),
    "R-FCN's box_annotator_ohem_param": net_with(field(10000, field(1, 128))),
    "R-FCN's psroi_pooling_param": net_with(field(10001, b"\x0d\0\0\0?" + field(2, 21) + field(3, 7))),
    "Faster R-CNN's roi_pooling_param": net_with(field(8266711, field(1, 7) + field(2, 7))),
    "a number of another wire type": net_with(field(143, 5), field(146, 1)),
    "a message whose bytes make no sense": net_with(field(143, b"\xff\xff"), field(106, b"\x0f")),
    "a string that is not UTF-8": net_with(field(121, field(1, b"\xff"))),
    "SSD's transform_param": net_with(field(100, field(10, field(1, 5)))),
    "Intel's fields of the net": field(9, b"MKL2017") + field(10, field(1, 1)) + net_with(),
}
RIGHT_AS_WEIGHTS = pytest.mark.parametrize("data", CLASHES.values(), ids=CLASHES)


@RIGHT_AS_WEIGHTS
@pytest.mark.parametrize("dialect", [None, "other"])
def test_weights_of_forks_are_read_by_name_and_blobs(
    data: bytes, dialect: str | None, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, net = tmp_path / "w.caffemodel", net_of()
    path.write_bytes(data)
    report = load_caffemodel(net, path, dialect)
    assert report.copied == ["conv"]
    np.testing.assert_array_equal(net.params["conv"][0].detach(), WEIGHTS.astype(np.float32))
    assert not [record for record in caplog.records if record.levelname == "WARNING"]


@RIGHT_AS_WEIGHTS
def test_forks_nets_in_binary_are_refused(
    data: bytes, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the file is a net, not weights: what has the fork's numbers must not be lost or misread."""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(data)
    capsys.readouterr()
    assert main(["upgrade-net-proto-binary", str(old), str(new)]) == 2
    assert not new.exists()
    (line,) = capsys.readouterr().err.splitlines()
    if "cut short" not in line:  # the bytes of some make no message
        assert f"{old}: a fork wrote this net, by whose numbers its fields cannot be read: " in line
    assert main(["upgrade-net-proto-binary", "--dialect", "other", str(old), str(new)]) == 0
    (layer,) = NetParameter.FromString(new.read_bytes()).layer
    assert [entry.name for entry, _ in layer.ListFields()] == ["name", "type", "bottom", "top", "blobs"]


def test_old_weights_of_forks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DeepLab's layers of the form V1: a type and a parameter that Caffe's V1 lacks; V0 with clashes."""
    v1 = field(4, b"conv") + field(5, 43) + field(43, field(1, 65)) + field(2, b"data") + field(10, b"\xff")
    v0 = field(1, field(1, b"conv") + field(2, b"interp") + field(50, plain_blob(WEIGHTS)) + field(1001, 3))
    path = tmp_path / "w.caffemodel"
    for layer in (v1 + field(6, plain_blob(WEIGHTS)), v0 + field(2, b"data")):
        path.write_bytes(field(1, b"net") + field(3, b"data") + field(4, 1) + field(2, layer))
        net = net_of()
        assert load_caffemodel(net, path).copied == ["conv"]
        np.testing.assert_array_equal(net.params["conv"][0].detach(), WEIGHTS.astype(np.float32))
    path.write_bytes(field(2, v1.replace(field(10, b"\xff"), b"")))
    assert main(["upgrade-net-proto-binary", str(path), str(tmp_path / "new")]) == 2
    assert "fields cannot be read: V1LayerParameter." in capsys.readouterr().err


def test_our_own_nets_in_binary_are_no_forks(tmp_path: Path) -> None:
    text = """
        layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 2 dim: 3 dim: 4 dim: 4 } } }
        layer { name: "p" type: "Permute" bottom: "x" top: "y" permute_param { order: 0 order: 2 } }
        layer { name: "l" type: "LSTM" bottom: "y" top: "l" recurrent_param { num_output: 2 } }
        layer { name: "e" type: "ELU" bottom: "x" top: "e" elu_param { alpha: 2 } }"""
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(parse_net(text).SerializeToString())
    assert main(["upgrade-net-proto-binary", str(old), str(new)]) == 0
    assert read_binary(new, NetParameter) == parse_net(text)
