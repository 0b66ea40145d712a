"""Python layers in nets and solvers, as Caffe users' projects have them."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

import imae.pycaffe as caffe
from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net as ModuleNet
from imae.net.stepwise import Stepwise
from imae.prototxt.text import parse_net
from imae.pycaffe.mode import current_device

MODULE = '''
import caffe
import numpy as np


class Batches(caffe.Layer):
    """x = its number of calls, of the size that param_str says"""

    def setup(self, bottom, top):
        self.size = int(self.param_str_)  # the name of 2015
        self.calls = 0

    def reshape(self, bottom, top):
        top[0].reshape(self.size, 2)

    def forward(self, bottom, top):
        self.calls += 1
        top[0].data[...] = self.calls

    def backward(self, top, propagate_down, bottom):
        pass


class Shift(caffe.Layer):
    """y = x + b, its gradient assigned or added, as param_str says"""

    def setup(self, bottom, top):
        self.blobs.add_blob(bottom[0].shape[1])
        self.b = self.blobs[0]
        self.b.data[...] = 1

    def reshape(self, bottom, top):
        top[0].reshape(*bottom[0].shape)

    def forward(self, bottom, top):
        top[0].data[...] = bottom[0].data + self.b.data
        if self.phase == caffe.TEST:
            top[0].data[...] += 100

    def backward(self, top, propagate_down, bottom):
        if self.param_str == "assign":
            self.b.diff[...] = top[0].diff.sum(0)
        else:
            self.b.diff[...] += top[0].diff.sum(0)
        if propagate_down[0]:
            bottom[0].diff[...] = top[0].diff


class Late(caffe.Layer):
    def setup(self, bottom, top):
        pass

    def reshape(self, bottom, top):
        self.blobs.add_blob(1)
        top[0].reshape(1)

    def forward(self, bottom, top):
        pass
'''

NET = """
layer { name: "data" type: "Python" top: "x"
        python_param { module: "user_layers" layer: "Batches" param_str: "4"
                       share_in_parallel: true } }
layer { name: "shift" type: "Python" bottom: "x" top: "y"
        python_param { module: "user_layers" layer: "Shift" param_str: "MODE" } }
layer { name: "loss" type: "Reduction" bottom: "y" top: "loss" loss_weight: 1 }
"""


pytestmark = pytest.mark.usefixtures("memory")


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    Path("user_layers.py").write_text(MODULE)
    yield
    sys.modules.pop("user_layers", None)


def make(phase: int = caffe.TRAIN, mode: str = "add", text: str = NET) -> caffe.Net:
    Path("net.prototxt").write_text(text.replace("MODE", mode))
    return caffe.Net("net.prototxt", phase)


def test_layers_make_data_and_know_their_phase() -> None:
    for phase, more in ((caffe.TRAIN, 0), (caffe.TEST, 100)):
        net = make(phase)
        for calls in (1, 2):
            net.forward()
            assert (net.blobs["x"].data == np.full((4, 2), calls)).all()
            assert (net.blobs["y"].data == calls + 1 + more).all()


def test_the_net_lists_the_users_objects() -> None:
    net = make()
    data, shift = net.layers[0], net.layer_dict["shift"]
    assert type(data).__name__ == "Batches" and (data.type, data.size) == ("Python", 4)
    net.forward()
    assert data.calls == 1
    data.size = 3
    net.forward()
    assert net.blobs["y"].shape == (3, 2)
    assert net.params["shift"] is shift.blobs and list(net.params) == ["shift"]


def test_a_net_of_double_precision_has_double_arrays() -> None:
    param = parse_net("state { phase: TRAIN }" + NET.replace("MODE", "add"))
    module = ModuleNet(param, Run(CaffeRandom(1), dtype=torch.float64))
    net = caffe.Net.around(Stepwise(module, current_device()))
    blob = net.params["shift"][0]
    blob.data[...] = near_1 = 1 + 2**-50
    net.forward()
    net.blobs["y"].diff[...] = near_1
    net.backward(start="shift")
    assert (net.blobs["y"].data == 1 + near_1).all() and (blob.diff == 4 * near_1).all()
    assert {a.dtype for b in (blob, net.blobs["y"]) for a in (b.data, b.diff)} == {np.dtype(np.float64)}


@pytest.mark.parametrize(("mode", "want"), [("add", [4, 8, 12]), ("assign", [4, 4, 4])])
def test_the_layer_decides_whether_its_diffs_add_up(mode: str, want: list[int]) -> None:
    net = make(mode=mode)
    for diff in want:
        net.forward()
        net.backward()
        assert net.params["shift"][0].diff.tolist() == [diff, diff]
        assert net.layers[1].b.diff.tolist() == [diff, diff]


def test_parameters_are_one_memory_for_layer_net_and_files() -> None:
    net, other = make(), make()
    net.params["shift"][0].data[...] = [5, 6]
    assert net.layers[1].b.data.tolist() == [5, 6]
    net.save("weights")
    other.copy_from("weights")
    assert other.layers[1].b.data.tolist() == [5, 6]
    third = make()
    third.share_with(net)
    net.layers[1].b.data[...] = [7, 8]
    assert third.params["shift"][0].data.tolist() == [7, 8]
    third.forward()
    assert third.blobs["y"].data[0].tolist() == [8, 9]


def test_python_layers_learn() -> None:
    Path("net.prototxt").write_text(NET.replace("MODE", "add"))
    Path("solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.25 lr_policy: "fixed" max_iter: 3 iter_size: 2 snapshot_prefix: "it"'
        " test_iter: 1 test_interval: 2 snapshot_after_train: false"
    )
    solver = caffe.SGDSolver("solver.prototxt")
    solver.step(1)
    assert solver.net.params["shift"][0].data.tolist() == [0, 0]  # 1 - 0.25 * 4
    solver.solve()
    assert solver.net.layers[1].b.data.tolist() == [-2, -2]
    assert solver.test_nets[0].layers[1].b.data.tolist() == [-2, -2]
    assert solver.net.layers[0].calls == 6


def test_a_parameter_that_comes_too_late_is_refused() -> None:
    text = 'layer { name: "it" type: "Python" top: "y" python_param { module: "user_layers" layer: "Late" } }'
    with pytest.raises(LayerError, match=r"add_blob was called too late.*; call it in setup"):
        make(text=text)
