"""pycaffe's solvers: steps, updates, callbacks, snapshots."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tolerances import tolerance

import imae.pycaffe as caffe
from imae.files.errors import PrototxtError
from imae.layers.utility import synced_memory
from imae.pycaffe.solver import SOLVERS, Solver

NET = """
layer { name: "data" type: "DummyData" top: "x" top: "t"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 }
                           data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }
"""
SOLVER = """
net: "net.prototxt" base_lr: 0.5 lr_policy: "step" stepsize: 2 gamma: 0.1 max_iter: 5
snapshot_after_train: false snapshot_prefix: "it" random_seed: 3 test_iter: 2 test_interval: 100
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)


def make(text: str = "", cls: Any = caffe.SGDSolver) -> Solver:
    Path("solver.prototxt").write_text(SOLVER + text)
    solver: Solver = cls("solver.prototxt")
    return solver


def test_solver_steps_and_tells(memory: None) -> None:
    solver = make()
    assert (solver.iter, solver.param.max_iter, len(solver.test_nets)) == (0, 5, 1)
    assert solver.lr == pytest.approx(0.5)
    before = solver.net.params["ip"][0].data.copy()
    solver.step(3)
    assert solver.iter == 3 and solver.lr == pytest.approx(0.05)
    assert (solver.net.params["ip"][0].data != before).any()
    assert solver.net.blobs["loss"].data > 0 and solver.net.blobs["ip"].diff.any()
    np.testing.assert_array_equal(solver.test_nets[0].params["ip"][0].data, solver.net.params["ip"][0].data)
    solver.solve()
    assert solver.iter == 5


def test_runs_are_the_same_wherever_the_memory_is(monkeypatch: pytest.MonkeyPatch) -> None:
    runs = []
    for seen in (True, False):
        monkeypatch.setattr(synced_memory, "in_cpu_memory", lambda tensor, seen=seen: seen)
        solver = make("momentum: 0.9")
        for _ in range(3):
            solver.step(1)
            solver.net.params["ip"][0].data[0, 0] += 1
            _ = solver.net.params["ip"][0].diff, solver.net.blobs["ip"].diff
        runs.append(solver.net.params["ip"][0].data.copy())
    np.testing.assert_array_equal(*runs)


def test_apply_update_uses_the_diffs_as_they_stand(memory: None) -> None:
    solver = make()
    weights, bias = solver.net.params["ip"]
    weights.data[...], bias.data[...] = 0, 0
    weights.diff[...], bias.diff[...] = 1, 2
    solver.apply_update()
    rtol, atol, _ = tolerance("formula")
    np.testing.assert_allclose(weights.data, np.full((2, 3), -0.5), rtol=rtol, atol=atol)
    np.testing.assert_allclose(bias.data, np.full(2, -1), rtol=rtol, atol=atol)
    assert solver.iter == 1


def test_forward_backward_update_by_hand_is_a_step(memory: None) -> None:
    solver = make("test_initialization: false")
    for _ in range(2):
        solver.net.clear_param_diffs()
        solver.net.forward()
        solver.net.backward()
        solver.apply_update()
    other = make("test_initialization: false")  # random_seed starts the draws anew
    other.step(2)
    np.testing.assert_array_equal(solver.net.params["ip"][0].data, other.net.params["ip"][0].data)


def test_callbacks_come_before_the_pass_and_before_the_update(memory: None) -> None:
    solver = make()
    calls: list[object] = []

    def on_gradients_ready() -> None:
        calls.append(float(abs(solver.net.params["ip"][0].diff).sum()) > 0)
        solver.net.params["ip"][0].diff[...] = 0  # counts

    def on_start() -> None:
        calls.append(solver.iter)
        solver.net.params["ip"][0].data[...] = 7

    solver.add_callback(on_start, on_gradients_ready)
    solver.add_callback(lambda: calls.append("a"), lambda: calls.append("b"))
    solver.step(2)
    assert calls == [0, "a", True, "b", 1, "a", True, "b"]
    assert (solver.net.params["ip"][0].data == 7).all()


def test_the_learning_rate_can_be_changed(memory: None) -> None:
    solver = make()
    solver.param.base_lr = 0
    before = solver.net.params["ip"][0].data.copy()
    solver.step(1)
    np.testing.assert_array_equal(solver.net.params["ip"][0].data, before)


LATE = """
layer { name: "x" type: "DummyData" top: "x" dummy_data_param { shape { dim: 2 dim: 1 }
        data_filler { type: "constant" value: 1 } } }
layer { name: "t" type: "DummyData" top: "t" dummy_data_param { shape { dim: 2 dim: 1 } } }
layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
        inner_product_param { num_output: 1 bias_term: false weight_filler { type: "constant" value: 1 } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "t" top: "loss" }
"""
LATE_SOLVER = """
net: "late.prototxt" base_lr: 0.1 lr_policy: "multistep" gamma: 0.5 stepvalue: 3 stepvalue: 3 max_iter: 9
snapshot_prefix: "late" snapshot_after_train: false
"""


def test_each_reading_of_lr_moves_on_by_one_stepvalue(caplog: pytest.LogCaptureFixture) -> None:
    """Caffe: solver.lr is GetLearningRate(). The weight w follows dw = w, so each update is w -= rate * w."""
    Path("late.prototxt").write_text(LATE)
    Path("solver.prototxt").write_text(LATE_SOLVER)
    rates = {}
    for readings in (0, 1):
        solver = caffe.SGDSolver("solver.prototxt")
        weight = solver.net.params["ip"][0].data
        found = []
        for _ in range(5):
            before = weight[0, 0]
            if readings:
                assert hasattr(solver, "lr")  # which is a reading
            solver.step(1)
            found.append(float(1 - weight[0, 0] / before))
        rates[readings] = found
    assert rates[0] == pytest.approx([0.1, 0.1, 0.1, 0.05, 0.025], rel=tolerance("same arithmetic")[0])
    assert rates[1] == pytest.approx([0.1, 0.1, 0.1, 0.025, 0.025], rel=tolerance("same arithmetic")[0])
    with caplog.at_level("INFO", "imae.caffe"):
        late = caffe.SGDSolver("solver.prototxt")
        late.step(3)
        assert [late.lr, late.lr, late.lr] == pytest.approx([0.05, 0.025, 0.025])
    status = [record.getMessage() for record in caplog.records if "MultiStep" in record.getMessage()]
    assert status == [f"MultiStep Status: Iteration 3, step = {step}" for step in (1, 2)]


def test_a_snapshot_holds_the_step_that_a_reading_moved_on_to() -> None:
    Path("late.prototxt").write_text(LATE)
    Path("solver.prototxt").write_text(LATE_SOLVER)
    solver = caffe.SGDSolver("solver.prototxt")
    solver.step(3)
    _ = solver.lr
    solver.snapshot()
    state = caffe.proto.caffe_pb2.SolverState.FromString(Path("late_iter_3.solverstate").read_bytes())
    assert (state.iter, state.current_step) == (3, 1)


def test_weights_written_before_a_step_count(memory: None) -> None:
    solver = make()
    solver.param.base_lr = 0
    for blob in solver.net.params["ip"]:
        blob.data[...] = 1
        blob.diff[...] = 100  # cleared by the step
    solver.step(1)
    assert (solver.net.params["ip"][1].data == 1).all()
    x = solver.net.blobs["x"].data
    rtol, atol, _ = tolerance("same arithmetic")
    np.testing.assert_allclose(solver.net.blobs["ip"].data[:, 0], x.sum(1) + 1, rtol=rtol, atol=atol)


def test_snapshot_and_restore(memory: None) -> None:
    solver = make("momentum: 0.9")
    solver.step(2)
    solver.net.params["ip"][1].data[...] = 5
    solver.snapshot()
    weights = [blob.data.copy() for blob in solver.net.params["ip"]]
    other = make("momentum: 0.9")
    _ = other.net.params["ip"][1].data  # asked for before and after
    other.restore("it_iter_2.solverstate")
    assert other.iter == 2
    for blob, values in zip(other.net.params["ip"], weights, strict=True):
        np.testing.assert_array_equal(blob.data, values)
    third = make("momentum: 0.9")
    third.solve("it_iter_2.solverstate")
    assert third.iter == 5


def test_share_weights() -> None:
    solver = make()
    net = caffe.Net("net.prototxt", caffe.TEST)
    solver.share_weights(net)
    solver.step(1)
    np.testing.assert_array_equal(net.params["ip"][0].data, solver.net.params["ip"][0].data)


def test_nets_outlive_their_solver() -> None:
    solver = make()
    net, test_net = solver.net, solver.test_nets[0]
    del solver
    net.forward()
    net.backward()
    assert test_net.forward()["loss"] > 0


@pytest.mark.parametrize("name", sorted(SOLVERS))
def test_get_solver_makes_the_type_that_the_file_names(name: str) -> None:
    rates = {"Adam": "momentum: 0.9", "AdaDelta": "momentum: 0.9 delta: 1e-6", "Nesterov": "momentum: 0.9"}
    solver = make(f'type: "{name}" {rates.get(name, "")}', caffe.get_solver)
    assert type(solver) is SOLVERS[name] is getattr(caffe, f"{name}Solver")
    solver.step(1)
    assert solver.iter == 1


def test_the_class_decides_whatever_the_file_says() -> None:
    solver = make('type: "AdaGrad"')
    assert solver.param.type == "SGD"


def test_messages() -> None:
    Path("solver.prototxt").write_text(SOLVER + 'type: "Magic"')
    with pytest.raises(
        PrototxtError, match=r"Unknown solver type: Magic \(known types: AdaDelta, AdaGrad, Adam"
    ):
        caffe.get_solver("solver.prototxt")
    with pytest.raises(PrototxtError, match=r"nowhere\.prototxt: no such file"):
        caffe.SGDSolver("nowhere.prototxt")
