"""LSTM, RNN, LSTMUnit and Lstm in ONNX: any number of time steps and streams, `cont`, states, whole nets."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from single_layer import build, normal, run
from tolerances import tolerance
from torch import Tensor

from imae.cli.main import main
from imae.converters.check_onnx import batch_axes
from imae.converters.export_onnx import ExportOptions, export_net
from imae.converters.graph import Graph
from imae.files.errors import ExportError
from imae.layers.layer import Layer
from imae.net.net import Net
from imae.net.weights import save_caffemodel
from imae.prototxt.text import parse_net

FILLED = 'weight_filler { type: "uniform" min: -1 max: 1 } bias_filler { type: "uniform" min: -1 max: 1 }'
STATES = {"LSTM": 2, "RNN": 1}
D = 3


def recurrent(kind: str, static: bool, exposed: bool) -> str:
    count = STATES[kind] if exposed else 0
    names = "".join(f'bottom: "b{i}" ' for i in range(2 + static + count))
    names += "".join(f'top: "t{i}" ' for i in range(1 + count))
    fields = f"num_output: {D} {FILLED} expose_hidden: {str(exposed).lower()}"
    return f'type: "{kind}" {names} recurrent_param {{ {fields} }}'


def bottoms(kind: str, static: bool, exposed: bool, steps: int, streams: int) -> list[Tensor]:
    """cont has 0 in the middle, too, and 1 in the first step."""
    cont = (normal(steps, streams, seed=7) > -0.3).float()
    cont[0, 0] = 1
    more = [normal(streams, 3, 2, seed=3)] if static else []
    states = [normal(1, streams, D, seed=4 + i) for i in range(STATES[kind])] if exposed else []
    return [normal(steps, streams, 2, 2, seed=steps), cont, *more, *states]


def shapes_of(tensors: list[Tensor]) -> list[tuple[int, ...]]:
    return [tuple(tensor.shape) for tensor in tensors]


def model_of(layer: Layer, shapes: list[tuple[int, ...]], opset: int) -> onnx.ModelProto:
    """A model with all axes open."""
    names, tops = list(layer.param.bottom), list(layer.param.top)
    blobs = dict(zip([*names, *tops], [*shapes, *layer.checked_top_shapes(shapes)], strict=True))
    graph = Graph(opset, blobs)
    layer.to_onnx(graph, names, tops)

    def info(name: str) -> onnx.ValueInfoProto:
        axes = [f"{name}_{axis}" for axis in range(len(blobs[name]))]
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, axes)

    made = helper.make_graph(graph.nodes, "it", [*map(info, names)], [*map(info, tops)], graph.initializers)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    onnx.checker.check_model(model, full_check=True)
    return model


def session_of(model: onnx.ModelProto) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model.SerializeToString(), options, ["CPUExecutionProvider"])


def assert_close(got: NDArray[Any], want: Tensor) -> None:
    rtol, atol, _ = tolerance("onnx")
    assert got.shape == tuple(want.shape)
    np.testing.assert_allclose(got, want.detach().numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("opset", [13, 17, 18, 22])
@pytest.mark.parametrize("exposed", [False, True], ids=["", "exposed"])
@pytest.mark.parametrize("static", [False, True], ids=["", "static"])
@pytest.mark.parametrize("kind", STATES)
def test_layers_at_several_lengths(kind: str, static: bool, exposed: bool, opset: int) -> None:
    text = recurrent(kind, static, exposed)
    layer = build(text, *shapes_of(bottoms(kind, static, exposed, 5, 2)))
    session = session_of(model_of(layer, shapes_of(bottoms(kind, static, exposed, 5, 2)), opset))
    for steps, streams in ((5, 2), (1, 1), (7, 4)):
        values = bottoms(kind, static, exposed, steps, streams)
        fresh = build(text, *shapes_of(values))
        fresh.load_state_dict(layer.state_dict())
        feeds = {name: value.numpy() for name, value in zip(layer.param.bottom, values, strict=True)}
        got: list[NDArray[Any]] = session.run(list(layer.param.top), feeds)
        for value, want in zip(got, run(fresh, *values), strict=True):
            assert_close(value, want)


@pytest.mark.skipif(cv2.__version__ < "5", reason="OpenCV has Loop from version 5 on")
@pytest.mark.parametrize("kind", [*STATES, "Lstm"])
def test_opencv_computes_the_same(kind: str, tmp_path: Path) -> None:
    if kind == "Lstm":
        text = f'type: "Lstm" bottom: "b0" bottom: "b1" top: "t0" lstm_param {{ num_output: {D} {FILLED} }}'
        values = [normal(6, 5), torch.tensor([0.0, 1, 1, 0, 1, 1])]
    else:
        text, values = recurrent(kind, False, False), bottoms(kind, False, False, 5, 2)
    layer = build(text, *shapes_of(values))
    path = tmp_path / "it.onnx"
    onnx.save(model_of(layer, shapes_of(values), 17), path)
    net = cv2.dnn.readNetFromONNX(str(path))
    for name, value in zip(layer.param.bottom, values, strict=True):
        net.setInput(value.numpy(), name)
    assert_close(net.forward(), run(layer, *values)[0])


# -- whole nets --------------------------------------------------------------------------------------------

SENTENCES = f"""
name: "sentences"
layer {{ name: "in" type: "Input" top: "cont" top: "words" top: "image"
        input_param {{ shape {{ dim: [4, 2] }} shape {{ dim: [4, 2] }} shape {{ dim: [2, 6] }} }} }}
layer {{ name: "embed" type: "Embed" bottom: "words" top: "embed"
        embed_param {{ num_output: 5 input_dim: 9 {FILLED} }} }}
layer {{ name: "lstm" type: "LSTM" bottom: "embed" bottom: "cont" bottom: "image" top: "lstm"
        recurrent_param {{ num_output: 3 {FILLED} }} }}
layer {{ name: "drop" type: "Dropout" bottom: "lstm" top: "lstm" }}
layer {{ name: "fc" type: "InnerProduct" bottom: "lstm" top: "fc"
        inner_product_param {{ num_output: 7 axis: 2 {FILLED} }} }}
"""
PROB = 'layer { name: "prob" type: "Softmax" bottom: "fc" top: "prob" softmax_param { axis: 2 } }'
# LRCN's deploy_lstm.prototxt, smaller: images in the order of time, 3 of each of 2 videos
LRCN = f"""
name: "lrcn"
input: "data" input_shape {{ dim: [6, 2, 5, 5] }}
input: "clip_markers" input_shape {{ dim: [6, 1, 1, 1] }}
layer {{ name: "conv" type: "Convolution" bottom: "data" top: "conv"
        convolution_param {{ num_output: 3 kernel_size: 3 {FILLED} }} }}
layer {{ name: "fc6" type: "InnerProduct" bottom: "conv" top: "fc6"
        inner_product_param {{ num_output: 4 {FILLED} }} }}
layer {{ name: "reshape-data" type: "Reshape" bottom: "fc6" top: "fc6-reshape"
        reshape_param {{ shape {{ dim: 3 dim: 2 dim: 4 }} }} }}
layer {{ name: "reshape-cm" type: "Reshape" bottom: "clip_markers" top: "reshape-cm"
        reshape_param {{ shape {{ dim: 3 dim: 2 }} }} }}
layer {{ name: "lstm1" type: "LSTM" bottom: "fc6-reshape" bottom: "reshape-cm" top: "lstm1"
        recurrent_param {{ num_output: 3 {FILLED} }} }}
layer {{ name: "fc8-final" type: "InnerProduct" bottom: "lstm1" top: "fc"
        inner_product_param {{ num_output: 5 axis: 2 {FILLED} }} }}
"""


def dims(values: Any) -> dict[str, list[int | str]]:
    return {
        value.name: [dim.dim_param or dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in values
    }


def test_the_batch_of_time_steps_is_their_second_axis() -> None:
    net = Net(parse_net(SENTENCES + PROB))
    result = export_net(net)
    assert dims(result.model.graph.input) == {
        "cont": [4, "batch"], "words": [4, "batch"], "image": ["batch", 6]
    }  # fmt: skip
    assert dims(result.model.graph.output) == {"prob": [4, "batch", 7]}
    assert result.batch_sizes == (1, 3) and not result.not_compared
    axes = batch_axes(net)
    assert [axes[name] for name in ("embed", "lstm", "fc", "prob", "image")] == [1, 1, 1, 1, 0]
    rng = np.random.default_rng(0)
    feeds = {
        "cont": rng.integers(0, 2, (4, 5)),
        "words": rng.integers(0, 9, (4, 5)),
        "image": rng.random((5, 6)),
    }
    feeds = {name: value.astype(np.float32) for name, value in feeds.items()}
    fresh = Net(parse_net(SENTENCES + PROB))
    fresh.load_state_dict(net.state_dict())
    want = fresh({name: torch.from_numpy(value) for name, value in feeds.items()})["prob"]
    assert_close(session_of(result.model).run(["prob"], feeds)[0], want)


def test_a_fixed_batch_is_that_of_the_streams() -> None:
    result = export_net(Net(parse_net(SENTENCES)), ExportOptions(dynamic_batch=False))
    assert dims(result.model.graph.input) == {"cont": [4, 2], "words": [4, 2], "image": [2, 6]}
    assert result.batch_sizes == (2,)


def test_exposed_states_of_a_net() -> None:
    text = f"""layer {{ name: "in" type: "Input" top: "x" top: "cont" input_param {{
                    shape {{ dim: [4, 2, 5] }} shape {{ dim: [4, 2] }} }} }}
        layer {{ name: "states" type: "Input" top: "h0" top: "c0" input_param {{
                    shape {{ dim: [1, 2, 3] }} shape {{ dim: [1, 2, 3] }} }} }}
        layer {{ name: "lstm" type: "LSTM" bottom: "x" bottom: "cont" bottom: "h0" bottom: "c0" top: "y"
                top: "h" top: "c" recurrent_param {{ num_output: 3 expose_hidden: true {FILLED} }} }}"""
    graph = export_net(Net(parse_net(text))).model.graph
    assert dims(graph.input)["c0"] == [1, "batch", 3]
    assert dims(graph.output) == {"c": [1, "batch", 3], "h": [1, "batch", 3], "y": [4, "batch", 3]}


def test_lstm_unit_of_a_net() -> None:
    text = """layer { name: "in" type: "Input" top: "c0" top: "x" top: "cont" input_param {
        shape { dim: [1, 2, 3] } shape { dim: [1, 2, 12] } shape { dim: [1, 2] } } }
        layer { name: "unit" type: "LSTMUnit" bottom: "c0" bottom: "x" bottom: "cont" top: "c" top: "h" }"""
    graph = export_net(Net(parse_net(text))).model.graph
    assert dims(graph.output) == {"c": [1, "batch", 3], "h": [1, "batch", 3]}


def test_lrcn(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Its Reshapes are for one number of videos, which the error says; with --fixed-batch it is exported."""
    text = LRCN + PROB
    (tmp_path / "net.prototxt").write_text(text)
    save_caffemodel(Net(parse_net(text)), tmp_path / "net.caffemodel")
    arguments = ["export", "--model", str(tmp_path / "net.prototxt"), "--output", str(tmp_path / "x.onnx")]
    arguments += ["--weights", str(tmp_path / "net.caffemodel")]
    assert main(arguments) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "layer 'reshape-data' (Reshape)" in last and last.endswith("use --fixed-batch")
    assert main([*arguments, "--fixed-batch"]) == 0
    assert "layer 'lstm1': each run of the model starts from states of 0" in capsys.readouterr().err
    graph = onnx.load(tmp_path / "x.onnx").graph
    assert dims(graph.input) == {"data": [6, 2, 5, 5], "clip_markers": [6, 1, 1, 1]}
    assert dims(graph.output) == {"prob": [3, 2, 5]}
    assert [node.op_type for node in graph.node].count("Loop") == 1


@pytest.mark.parametrize("text", [SENTENCES, LRCN], ids=["dynamic", "fixed"])
def test_a_softmax_over_sequences_is_not_taken(text: str, caplog: pytest.LogCaptureFixture) -> None:
    result = export_net(Net(parse_net(text)), ExportOptions(softmax=True, dynamic_batch=text is SENTENCES))
    assert "Softmax" not in [node.op_type for node in result.model.graph.node]
    assert "output 'fc' gets no softmax: its axis 1 counts sequences, not classes" in caplog.text


def test_a_net_that_has_run_is_exported_as_in_its_first_pass(caplog: pytest.LogCaptureFixture) -> None:
    """And its states are after the export what they were before."""
    net = Net(parse_net(SENTENCES))
    feeds = {"cont": torch.ones(4, 2), "words": torch.ones(4, 2), "image": torch.ones(2, 6)}
    with torch.no_grad():
        first, _, third = (net(feeds)["fc"] for _ in range(3))
        net.layer("lstm").state0.zero_()
        net.layer("lstm").state1.zero_()
        net(feeds)
        net(feeds)
        with caplog.at_level(logging.WARNING):
            model = export_net(net, ExportOptions(dynamic_batch=False)).model
        assert torch.equal(net(feeds)["fc"], third) and not torch.equal(third, first)
    assert "layer 'lstm': each run of the model starts from states of 0" in caplog.text
    got = session_of(model).run(["fc"], {name: value.numpy() for name, value in feeds.items()})[0]
    assert_close(got, first)


def test_lengths_that_another_layer_fixes_are_an_error() -> None:
    text = SENTENCES + 'layer { name: "r" type: "Reshape" bottom: "fc" top: "r" '
    text += "reshape_param { shape { dim: 56 } } }"
    with pytest.raises(ExportError, match=r"cannot run with a batch of 3: layer 'r' .* use --fixed-batch"):
        export_net(Net(parse_net(text)))
    assert export_net(Net(parse_net(text)), ExportOptions(dynamic_batch=False)).outputs == ["r"]


def test_lstm_of_junhyukoh_in_a_net() -> None:
    text = f"""layer {{ name: "in" type: "Input" top: "x" top: "clip"
        input_param {{ shape {{ dim: [6, 4] }} shape {{ dim: [6, 1] }} }} }}
        layer {{ name: "lstm" type: "Lstm" bottom: "x" bottom: "clip" top: "y"
                lstm_param {{ num_output: 3 batch_size: 1 {FILLED} }} }}"""
    result = export_net(Net(parse_net(text)))
    assert dims(result.model.graph.output) == {"y": ["batch", 3]} and result.batch_sizes == (1, 3)
    with pytest.raises(
        ExportError, match=r"Input size should be multiple of batch size; .* use --fixed-batch"
    ):
        export_net(Net(parse_net(text.replace("batch_size: 1", "batch_size: 2"))))
    fixed = export_net(
        Net(parse_net(text.replace("batch_size: 1", "batch_size: 2"))), ExportOptions(dynamic_batch=False)
    )
    assert fixed.batch_sizes == (6,)
