"""fp16 and int8 models compute nearly what the float32 model computes."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import onnx
import pytest
from tolerances import tolerance

from imae.cli import main
from imae.converters.describe_model import QUANTIZED
from imae.converters.lmdb_writer import write_lmdb
from imae.converters.run_onnx import open_session
from imae.layers.data.datum import datum_from_array
from imae.prototxt import Datum

NET = """
name: "small"
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST }
  transform_param { scale: 0.0039 crop_size: 8 } data_param { source: "lmdb" batch_size: 10 backend: LMDB } }
layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
  convolution_param { num_output: 8 kernel_size: 3 weight_filler { type: "msra" } } }
layer { name: "relu" type: "ReLU" bottom: "conv" top: "conv" }
layer { name: "fc" type: "InnerProduct" bottom: "conv" top: "fc"
  inner_product_param { num_output: 10 weight_filler { type: "msra" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
"""


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """net.onnx with weights from a seed, and an LMDB whose labels are that net's classes."""
    from imae import pycaffe

    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(3).integers(0, 256, (300, 3, 9, 9), np.uint8)

    def write(labels: list[int]) -> None:
        write_lmdb(
            "lmdb", ((b"%05d" % i, datum_from_array(images[i], labels[i])) for i in range(len(images)))
        )

    write([0] * len(images))
    (tmp_path / "net.prototxt").write_text(NET)
    pycaffe.set_random_seed(1)
    net = pycaffe.Net("net.prototxt", pycaffe.TEST)
    net.save("net.caffemodel")
    command = ["export", "--model", "net.prototxt", "--weights", "net.caffemodel", "--output", "net.onnx"]
    assert main.main(command) == 0
    scores = [net.forward(blobs=["fc"])["fc"].copy() for _ in range(30)]
    (tmp_path / "lmdb").rename(tmp_path / "first")
    write(np.concatenate(scores).argmax(1).tolist())
    return tmp_path / "net.onnx"


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_accuracy_stays(kind: str, model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    calibrate = ["--calibrate", "lmdb", "--records", "150"] if kind == "int8" else []
    assert main.main(["quantize", str(model), "q.onnx", "--to", kind, "--lmdb", "lmdb", *calibrate]) == 0
    lines = capsys.readouterr().out.splitlines()
    before, after = (float(line.split("accuracy = ")[1].split()[0]) for line in lines[1:])
    for line in lines[1:]:  # of three batches alone the rate and the median time would disagree
        assert re.search(r" images, \d+ images/s of the model alone, a batch of 100 in \S+ ms, on CPU$", line)
    assert before == 1.0 and 0.9 <= after <= 1.0
    given, made = onnx.load(model), onnx.load("q.onnx")
    old, new = ({p.key: p.value for p in m.metadata_props} for m in (given, made))
    assert old and new.items() >= old.items() and new.keys() - old.keys() == {QUANTIZED}
    assert new[QUANTIZED] == {"fp16": "fp16", "int8": "int8, calibrated on 150 records of lmdb"}[kind]
    assert (made.producer_name, made.graph.name) == ("imae", "small")
    kinds = {tensor.data_type for tensor in made.graph.initializer if len(tensor.dims) > 1}
    assert kinds == {onnx.TensorProto.FLOAT16 if kind == "fp16" else onnx.TensorProto.INT8}
    assert onnx.TensorProto.INT32 not in {tensor.data_type for tensor in made.graph.initializer}  # no bias
    for session in (open_session(model), open_session("q.onnx")):
        assert session.get_inputs()[0].type == "tensor(float)"
        assert session.run(None, {session.get_inputs()[0].name: np.zeros((5, 3, 8, 8), np.float32)})


def test_int8_weights_leave_room_for_sums_in_16_bits(model: Path) -> None:
    """Two products of 255 and 64 fit. Without that room a processor that has no VNNI gives wrong sums."""
    assert main.main(["quantize", str(model), "q.onnx", "--to", "int8", "--calibrate", "lmdb"]) == 0
    tensors = [tensor for tensor in onnx.load("q.onnx").graph.initializer if len(tensor.dims) > 1]
    largest = [np.abs(onnx.numpy_helper.to_array(tensor).astype(int)).max() for tensor in tensors]
    assert len(largest) == 2 and all(63 <= value <= 64 for value in largest)


def test_onnx_runtime_computes_in_integers(model: Path) -> None:
    """Although the biases are float32."""
    import onnxruntime

    assert main.main(["quantize", str(model), "q.onnx", "--to", "int8", "--calibrate", "lmdb"]) == 0
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = "optimized.onnx"
    options.log_severity_level = 4
    onnxruntime.InferenceSession("q.onnx", options, providers=["CPUExecutionProvider"])
    types = [node.op_type for node in onnx.load("optimized.onnx").graph.node]
    assert {"QLinearConv", "QGemm"} <= set(types) and not {"Conv", "FusedConv", "Gemm"} & set(types)


def test_int8_of_a_model_with_a_fixed_batch(model: Path) -> None:
    export = ["export", "--model", "net.prototxt", "--weights", "net.caffemodel", "--output", "fixed.onnx"]
    assert main.main([*export, "--fixed-batch"]) == 0
    assert main.main(["quantize", "fixed.onnx", "q.onnx", "--to", "int8", "--calibrate", "lmdb"]) == 0
    assert main.main(["run", "q.onnx", "--lmdb", "lmdb"]) == 0


@pytest.mark.parametrize("batch", [[], ["--fixed-batch", "--input-shape", "4,3,8,8"]])
def test_records_of_several_sizes_are_all_calibrated_on(model: Path, batch: list[str]) -> None:
    """A model that resizes images itself takes them in batches of one size, which are more and smaller."""
    generator = np.random.default_rng(7)
    records = []
    for i in range(12):
        image = generator.integers(0, 20 + 20 * i, (9 + i % 3, 10, 3), np.uint8)  # the last are the brightest
        png = cv2.imencode(".png", image)[1].tobytes()
        records.append((b"%05d" % i, Datum(data=png, encoded=True, label=0)))
    write_lmdb("several", records)
    export = ["export", "--model", "net.prototxt", "--weights", "net.caffemodel", "--output", "own.onnx"]
    assert main.main([*export, "--embed-preprocess", "bgr", "--embed-resize", *batch]) == 0
    quantize = ["quantize", "own.onnx", "q.onnx", "--to", "int8", "--calibrate", "several", "--records", "11"]
    assert main.main(quantize) == 0
    metadata = {p.key: p.value for p in onnx.load("q.onnx").metadata_props}
    assert metadata[QUANTIZED] == "int8, calibrated on 11 records of several"


@pytest.mark.parametrize("kind", ["fp16", "int8"])
def test_softmax_stays_in_float32(kind: str, model: Path) -> None:
    export = ["export", "--model", "net.prototxt", "--weights", "net.caffemodel", "--output", "prob.onnx"]
    assert main.main([*export, "--softmax"]) == 0
    calibrate = ["--calibrate", "lmdb"] if kind == "int8" else []
    assert main.main(["quantize", "prob.onnx", "q.onnx", "--to", kind, *calibrate]) == 0
    made = onnx.load("q.onnx")
    onnx.checker.check_model(made, full_check=True)
    graph = made.graph
    (softmax,) = (node for node in graph.node if node.op_type == "Softmax")
    assert softmax.output[0] == graph.output[0].name
    images = np.random.default_rng(4).random((20, 3, 8, 8), np.float32)
    (scores,) = open_session("q.onnx").run(None, {"data": images})
    np.testing.assert_allclose(scores.sum(1), 1, rtol=tolerance("same arithmetic").rtol)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--to", "int8"], "--to int8 needs --calibrate LMDB"),
        (["--to", "fp16", "--calibrate", "lmdb"], "--to fp16 takes none"),
        (["--to", "int8", "--calibrate", "lmdb", "--records", "0"], "--records must be at least 1"),
        (["--to", "int8", "--calibrate", "nowhere"], "nowhere"),
        (
            ["--to", "int8", "--calibrate", "larger", "--transform", "scale: 0.0039"],
            "a batch of these images is [2, 3, 9, 8]; use images of",
        ),
    ],
)
def test_bad_arguments(
    arguments: list[str], message: str, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_lmdb("larger", ((b"%d" % i, datum_from_array(np.zeros((3, 9, 8), np.uint8), 0)) for i in range(2)))
    assert main.main(["quantize", str(model), "q.onnx", *arguments]) == 2
    assert message in capsys.readouterr().err and not Path("q.onnx").exists()
    assert main.main(["quantize", str(model), "net.onnx", "--to", "fp16"]) == 2
    assert "OUTPUT would replace a file that is read" in capsys.readouterr().err
