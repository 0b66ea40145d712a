"""imae.pycaffe as a package: what it offers, under which names, and what it refuses."""

from __future__ import annotations

import logging
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import imae.pycaffe as caffe
from imae.prototxt import caffe_pb2
from imae.prototxt.errors import DeviceError
from imae.pycaffe import mode

IMPORTS = """
import sys
import imae.pycaffe
print(sorted({"cv2", "onnx", "lmdb"} & set(sys.modules)))
print(imae.pycaffe.install_as_caffe())
import caffe
import caffe.io, caffe.draw, caffe.coord_map
from caffe import layers as L, params as P
from caffe.proto import caffe_pb2
import caffe.proto.caffe_pb2
from caffe.io import Transformer
import imae.pycaffe.io
print(caffe is imae.pycaffe, caffe.io is imae.pycaffe.io, caffe.io.Transformer is Transformer)
print(P.Pooling.AVE, caffe_pb2.NetParameter.DESCRIPTOR.full_name, caffe_pb2 is caffe.proto.caffe_pb2)
sys.modules["caffe"] = sys
print(imae.pycaffe.install_as_caffe())
"""


def test_import_caffe_finds_this_package(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", IMPORTS], capture_output=True, text=True, cwd=tmp_path, check=False
    )
    assert done.stdout.splitlines() == [
        "[]",
        "True",
        "True True True",
        "1 caffe.NetParameter True",
        "False",
    ], done.stderr


def test_everything_that_pycaffe_has_is_there() -> None:
    names = """Net SGDSolver NesterovSolver AdaGradSolver RMSPropSolver AdaDeltaSolver AdamSolver NCCL Timer
    init_log log set_mode_cpu set_mode_gpu set_device Layer get_solver layer_type_list set_random_seed
    solver_count set_solver_count solver_rank set_solver_rank set_multiprocess has_nccl TRAIN TEST Classifier
    Detector io layers params NetSpec to_proto __version__"""
    assert [name for name in names.split() if not hasattr(caffe, name)] == []
    assert set(caffe.__all__) <= set(dir(caffe))
    assert (caffe.TRAIN, caffe.TEST, caffe.__version__) == (0, 1, "1.0.0")
    assert {"Convolution", "Data", "Python"} <= set(caffe.layer_type_list())
    assert caffe.proto.caffe_pb2 is caffe_pb2


def test_one_solver_computes() -> None:
    assert (caffe.solver_count(), caffe.solver_rank(), caffe.has_nccl()) == (1, 0, False)
    caffe.set_solver_count(1)
    caffe.set_solver_rank(0)
    caffe.set_multiprocess(True)
    for call in (
        lambda: caffe.set_solver_count(2),
        lambda: caffe.set_solver_rank(1),
        lambda: caffe.NCCL(None, b""),
        caffe.NCCL.new_uid,
    ):
        with pytest.raises(DeviceError, match="one solver computes here, and there is no NCCL"):
            call()


def test_timer(monkeypatch: pytest.MonkeyPatch) -> None:
    times = iter([1.0, 1.5, 3.0, 3.25])
    monkeypatch.setattr("imae.pycaffe.timer.time.perf_counter", lambda: next(times))
    clock = caffe.Timer()
    assert clock.ms == 0
    clock.start()
    clock.start()  # it runs already
    clock.stop()
    assert clock.ms == 500
    clock.stop()
    assert clock.ms == 500
    clock.start()
    assert clock.ms == 250  # which stops it


@pytest.fixture
def log_level() -> Iterator[None]:
    logger = logging.getLogger("imae")
    level = logger.level
    yield
    logger.removeHandler(mode._log_handler)
    logger.setLevel(level)


@pytest.mark.usefixtures("log_level")
def test_the_log_goes_to_stderr_in_caffes_form(capsys: pytest.CaptureFixture[str]) -> None:
    caffe.log("unheard")
    caffe.init_log()
    caffe.log("heard")
    caffe.init_log(1)
    caffe.log("too low")
    mode.logger.warning("warned")
    caffe.init_log(0, False)
    mode.logger.warning("errors only")
    mode.logger.error("erred")
    lines = capsys.readouterr().err.splitlines()
    assert [(line[0], line.rpartition("] ")[2]) for line in lines] == [
        ("I", "heard"),
        ("W", "warned"),
        ("E", "erred"),
    ]


def test_draw_is_what_the_command_draws_with() -> None:
    net = caffe_pb2.NetParameter(name="it")
    net.layer.add(name="ip", type="InnerProduct", bottom=["x"], top=["y"]).inner_product_param.num_output = 5
    assert caffe.draw.get_edge_label(net.layer[0]) == "5"
    assert caffe.draw.get_layer_label(net.layer[0], "TB") == '"ip (InnerProduct)"'
    pytest.importorskip("pydot")
    assert caffe.draw.get_pydot_graph(net, "LR").get_name() == '"it"'
    assert b"ip_InnerProduct" in caffe.draw.draw_net(net, "LR", "raw")
