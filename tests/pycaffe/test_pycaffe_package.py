"""imae.pycaffe as a package: what it offers, under which names, and what it refuses."""

from __future__ import annotations

import importlib
import logging
import re
import subprocess
import sys
import types
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import imae.pycaffe as caffe
from imae.files.errors import DeviceError
from imae.prototxt import caffe_pb2
from imae.pycaffe import mode

IMPORTS = """
import sys
import imae.pycaffe
print(sorted({"cv2", "onnx", "lmdb"} & set(sys.modules)))
print(imae.pycaffe.install_as_caffe())
import caffe
import caffe.io, caffe.draw, caffe.coord_map, caffe._caffe, caffe.pycaffe, caffe.classifier, caffe.net_spec
from caffe._caffe import RawBlobVec
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


NAMES = (
    Path(__file__).parents[1] / "support" / "pycaffe_names.txt"
)  # what Caffe 1.0's modules and classes have; names only
# Packages that Caffe's modules import and this one does without: found there if they are installed.
OTHER_PACKAGES = {
    "caffe.io": {"resize", "skimage", "zoom"},
    "caffe.net_spec": {"six"},
    "caffe.pycaffe": {"six"},
    "caffe.draw": {"pydot"},
}
# A user's layer has them. Caffe's base class has them too, and they call themselves without end.
OF_THE_USERS_CLASS = {"caffe._caffe.Layer": {"setup", "reshape"}}


def public_names() -> dict[str, set[str]]:
    """The names of pycaffe_names.txt, by module or class."""
    entries = re.sub(r"\n +", " ", NAMES.read_text(encoding="utf-8")).splitlines()
    return {owner: set(names.split()) for owner, _, names in (entry.partition(": ") for entry in entries)}


def make_owners(folder: Path) -> dict[str, object]:
    """An object of each class of the list, since many attributes are made with the object."""
    folder.joinpath("net.prototxt").write_text(
        'layer { name: "in" type: "Input" top: "x" input_param { shape { dim: 1 dim: 3 dim: 4 dim: 4 } } } '
        'layer { name: "ip" type: "InnerProduct" bottom: "x" top: "y" inner_product_param { num_output: 2 } }'
    )
    folder.joinpath("solver.prototxt").write_text(
        f'train_net: "{folder}/net.prototxt" base_lr: 1 lr_policy: "fixed" max_iter: 1'
    )
    net_file, weights = str(folder / "net.prototxt"), str(folder / "w.caffemodel")
    net = caffe.Net(net_file, caffe.TEST)
    net.save(weights)
    solver = caffe.SGDSolver(folder / "solver.prototxt")
    top = caffe.layers.Input()
    library = "caffe._caffe"
    return {
        f"{library}.Blob": net.blobs["x"],
        f"{library}.BlobVec": net.params["ip"],
        f"{library}.Layer": net.layers[1],
        f"{library}.Net": net,
        f"{library}.SGDSolver": solver,
        f"{library}.Solver": solver,
        f"{library}.SolverParameter": solver.param,
        f"{library}.Timer": caffe.Timer(),
        "caffe.classifier.Classifier": caffe.Classifier(net_file, weights),
        "caffe.detector.Detector": caffe.Detector(net_file, weights),
        "caffe.io.Transformer": caffe.io.Transformer({"x": (1, 3, 4, 4)}),
        "caffe.net_spec.Function": top.fn,
        "caffe.net_spec.NetSpec": caffe.NetSpec(),
        "caffe.net_spec.Top": top,
    }


def test_every_name_of_caffes_modules_and_classes_is_there(tmp_path: Path) -> None:
    owners = make_owners(tmp_path)
    names = public_names()
    assert len(names) > 20 and set(owners) <= set(names)
    missing = {}
    for owner, wanted in names.items():
        there = owners.get(owner) or importlib.import_module(f"imae.py{owner}")  # imae.pycaffe.io
        without = OTHER_PACKAGES.get(owner, set()) | OF_THE_USERS_CLASS.get(owner, set())
        assert without <= wanted, owner
        if absent := sorted(name for name in wanted - without if not hasattr(there, name)):
            missing[owner] = absent
    assert missing == {}
    assert set(caffe.__all__) <= set(dir(caffe))
    assert (caffe.TRAIN, caffe.TEST, caffe.__version__) == (0, 1, "1.0.0")
    assert {"Convolution", "Data", "Python"} <= set(caffe.layer_type_list())
    assert caffe.proto.caffe_pb2 is caffe_pb2 is caffe.io.caffe_pb2


def test_what_scripts_do_with_those_names(tmp_path: Path) -> None:
    """A mean image as the AgeGender notebook reads it; the vector types of what a net hands out."""
    saved = caffe.io.array_to_blobproto(np.ones((1, 3, 2, 2))).SerializeToString()
    mean = caffe.io.caffe_pb2.BlobProto.FromString(saved)
    assert caffe.io.blobproto_to_array(mean).sum() == 12
    library = importlib.import_module("imae.pycaffe._caffe")
    owners = make_owners(tmp_path)
    net, solver = owners["caffe._caffe.Net"], owners["caffe._caffe.Solver"]
    assert isinstance(net, library.Net) and isinstance(solver, library.Solver)
    kinds = {
        library.BlobVec: net.params["ip"],
        library.RawBlobVec: net._blobs,
        library.LayerVec: net.layers,
        library.StringVec: net._layer_names,
        library.IntVec: net._top_ids(1),
        library.DtypeVec: net._blob_loss_weights,
        library.NetVec: solver.test_nets,
    }
    assert all(type(value) is kind for kind, value in kinds.items())
    assert isinstance(net.layers[1], caffe.Layer) and net.layers[1].type == "InnerProduct"
    assert isinstance(net.blobs["x"], library.Blob) and library.Net is caffe.Net
    message = caffe_pb2.DESCRIPTOR.message_types_by_name["ConvolutionParameter"]
    assert message.fields_by_name["num_output"].number == 1
    assert caffe_pb2._V1LAYERPARAMETER_LAYERTYPE.values_by_name["CONVOLUTION"].number == 4
    assert caffe_pb2._PHASE.values_by_number[1].name == "TEST"
    assert caffe_pb2._NETPARAMETER.fields_by_name["layer"].number == 100
    assert caffe.net_spec.param_name_dict()["InnerProduct"] == "inner_product"


def test_names_of_packages_that_are_not_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "skimage.transform", None)  # as where it is not installed
    with pytest.raises(AttributeError, match=r"io\.resize comes from skimage\.transform, which is not"):
        _ = caffe.io.resize
    with pytest.raises(AttributeError, match=r"module 'caffe\.io' has no attribute 'nothing'"):
        _ = caffe.io.nothing
    module = types.ModuleType("six")
    monkeypatch.setitem(sys.modules, "six", module)
    assert caffe.net_spec.six is module


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
