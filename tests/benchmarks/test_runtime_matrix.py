"""The matrix of runtimes: differences are noticed, a crashed runtime starts again, the page says why."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from benchmarks import runtimes
from benchmarks.runtimes import Model, Row, Runtime, as_markdown, difference
from imae.converters.check_onnx import random_inputs

# In place of a runtime: doubles its input, refuses a model "bad", crashes with a model "crash".
DOUBLES = """
import json, os, signal, sys
import numpy as np
print(json.dumps("1.2"), flush=True)
for line in sys.stdin:
    request = json.loads(line)
    if "bad" in request["model"]:
        raise SystemExit("no such operator")
    if "crash" in request["model"]:
        os.kill(os.getpid(), signal.SIGKILL)
    made = []
    for number, batch in enumerate(request["batches"]):
        (path, shape), = batch.values()
        np.fromfile(path, "<f4").__mul__(2).tofile(path + ".out")
        made.append([[path + ".out", shape]])
    print(json.dumps(made), flush=True)
"""


def model_of(folder: Path, name: str) -> Model:
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    file = folder / "x"
    x.tofile(file)
    return Model(folder / name, ["y"], [{"x": (file, x)}], [{"y": 2 * x}], {})


def test_a_runtime_that_stops_is_started_again(tmp_path: Path) -> None:
    runtime = Runtime([sys.executable, "-c", DOUBLES])
    try:
        assert runtime.version == "1.2"
        for name, says in (("bad", "no such operator"), ("crash", "it crashes: SIGKILL")):
            assert runtimes.result_of(runtime, model_of(tmp_path, name)) == says
            assert runtimes.result_of(runtime, model_of(tmp_path, "good")) == 0
    finally:
        runtime.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x"]


def test_a_runtime_that_is_not_there_says_why() -> None:
    with pytest.raises(RuntimeError, match=r"^no such library$"):
        Runtime([sys.executable, "-c", "raise SystemExit('no such library')"])


def test_commands_hold_in_any_folder(here: Path) -> None:
    Path("python").symlink_to(sys.executable)
    command = runtimes.command_of("OpenVINO", {"openvino": "./python"}, None)
    assert command[0] == str(here / "python") and command[2] == "openvino"
    with pytest.raises(RuntimeError, match="there is no Python 'nowhere'"):
        runtimes.command_of("OpenVINO", {"openvino": "nowhere"}, None)
    (here / "node_modules" / "onnxruntime-web").mkdir(parents=True)
    assert runtimes.find_node_modules() == here / "node_modules"


@pytest.mark.parametrize(
    ("got", "result"),
    [
        ([1.0, 4.0], 0.0),
        ([1.0, 3.5], 0.125),
        ([1.0, np.nan], np.inf),
        ([[1.0, 4.0]], "output y has shape [1, 2], not [2]"),
    ],
)
def test_differences(got: list[float], result: float | str) -> None:
    model = Model(Path(), ["y"], [], [{"y": np.array([1.0, 4.0], np.float32)}], {})
    made = difference(model, [[np.array(got, np.float32)]])
    assert made == result


def test_rows_may_be_in_any_order() -> None:
    rows = np.array([[0, 0.9, 1], [1, 0.8, 2], [1, 0.7, 4]], np.float32)
    model = Model(Path(), ["y"], [], [{"y": rows}], {"y": 0})
    assert difference(model, [[rows[[2, 0, 1]]]]) == 0
    assert difference(model, [[rows[[0, 0, 1]]]]) == pytest.approx(2 / 4)


def test_the_page_says_what_is_refused_and_why() -> None:
    classic, new = "OpenCV, classic engine", "OpenCV, new engine"
    rows = [
        Row("LSTM", "opset 17", False, {new: 1e-7, classic: "no Loop: it says"}),
        Row("LeNet", "fp16", True, {new: 1e-3, classic: "CV_16F"}),
        Row("LeNet", "--fold", False, {new: 2e-3, classic: 1e-7}),
        Row(
            "2 single layers", "opset 17", False, {new: 1e-7, classic: 1e-6},
            {new: {"Filter": "unread"}, classic: {"Filter": "unread", "GoogLeNet": 0.5}},
        ),
    ]  # fmt: skip
    page = as_markdown(rows, {new: "5", classic: "5"}, {"OpenVINO": "No module named openvino"})
    assert "| LSTM | opset 17 | 1.0e-07 | refused |" in page
    assert "| LeNet | fp16 | 1.0e-03 | refused |" in page
    assert "| LeNet | --fold | 2.0e-03, differs | 1.0e-07 |" in page
    assert "| 2 single layers | opset 17 | 1.0e-07, 1 refused | 1.0e-06, 1 refused, 1 differ |" in page
    assert "- LSTM: it has no Loop (it says `no Loop: it says`)" in page
    assert "- fp16: it has no half precision" in page
    assert "- LeNet: not yet looked into (differs by 2.0e-03)" in page
    assert "- OpenVINO was not there: No module named openvino" in page


def test_what_a_runtime_says_names_no_place_of_its_machine() -> None:
    says = "error: OpenCV: error: (-2:x) /io/opencv/src/net.cpp:449: | C:\\build\\x\\a.cpp at 0x7f3a2b1c0"
    assert runtimes.plain(says) == "error: (-2:x) net.cpp:449: / a.cpp at 0x.."
    assert len(runtimes.plain("x" * 1000)) < 400


def test_each_net_has_the_inputs_that_it_is_given() -> None:
    for name in ("LeNet", "LSTM", "FCN, small"):
        net = runtimes.make_net(runtimes.NETS[name]())
        assert random_inputs(net, 1, None).keys() == set(net.inputs)
