"""Solver states: Caffe's read, ours written, exact resume, what is refused, and a process that is killed."""

from __future__ import annotations

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch
from digits_runs import RUNS, prepared
from tiny_solver import FIVE_OUTPUTS
from tiny_solver import TINY_NET as NET
from waiting import FOR_EVER

from imae.files.errors import CaffemodelError, FileError, SnapshotError
from imae.net.weights import load_caffemodel
from imae.prototxt import NetParameter, SolverParameter, SolverState
from imae.prototxt.dialects import DIALECTS
from imae.prototxt.text import parse_solver, read_binary, read_net, read_solver
from imae.train.solver import Solver
from imae.train.solverstate import State, read_state, seal, write_state

CAFFES = RUNS / "digits_lenet" / "lenet_iter_500.solverstate"

SOLVER = (
    'base_lr: 0.1 lr_policy: "step" stepsize: 4 gamma: 0.5 momentum: 0.9 random_seed: 1 snapshot_prefix: "s" '
    f"net_param {{ {NET} }}"
)
ENDS = {"BINARYPROTO": "", "HDF5": ".h5"}
KINDS = [(1, "caffemodel"), (1, "solverstate"), (2, "caffemodel")]


def same(one: Solver, other: Solver) -> bool:
    """Whether weights and histories agree bit by bit."""
    pairs = zip([*one.net.learnable, *one.history], [*other.net.learnable, *other.history], strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


# -- files ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_sealed_state_read_by_a_dialect(here: Path, caplog: pytest.LogCaptureFixture, dialect: str) -> None:
    """Its seal is no field of a fork; and a pipe, which can be read once, will do."""
    history = [np.arange(3, dtype=np.float32)]
    write_state(State(7, "m.caffemodel", 2, history, {"model": 5}), "s.solverstate")
    with open("s.solverstate", "rb") as file:
        reading, writing = os.pipe()
        os.write(writing, file.read())
        os.close(writing)
    for path in ("s.solverstate", f"/dev/fd/{reading}"):
        state = read_state(path, dialect)
        assert (state.iteration, state.run, state.sealed) == (7, {"model": 5}, True)
        np.testing.assert_array_equal(state.history[0], history[0])
    os.close(reading)
    assert not caplog.records


RUN: dict[str, Any] = {
    "count": 3,
    "text": "ä",
    "bytes": b"\x00\xff",
    "list": [{"a": 1.5}, {}],
    "array": np.arange(6, dtype=np.uint32).reshape(2, 3),
}


@pytest.mark.parametrize("end", ENDS.values())
@pytest.mark.parametrize("run", [{}, RUN])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_write_then_read_is_the_identity(
    here: Path, end: str, run: dict[str, Any], dtype: type[np.floating[Any]]
) -> None:
    history = [
        np.random.default_rng(i).standard_normal(shape).astype(dtype)
        for i, shape in enumerate([(2, 3), (5,), ()])
    ]
    state = State(12, "some/where.caffemodel", 4, history, run)
    write_state(state, f"s{end}")
    got = read_state(f"s{end}")
    assert (got.iteration, got.learned_net, got.current_step) == (12, "some/where.caffemodel", 4)
    assert [h.dtype for h in got.history] == [dtype] * 3
    for a, b in zip(got.history, history, strict=True):
        assert a.shape == b.shape
        np.testing.assert_array_equal(a, b)
    if run:
        np.testing.assert_array_equal(got.run.pop("array"), RUN["array"])
        assert got.run == {key: value for key, value in run.items() if key != "array"}
    else:
        assert got.run == {}


def test_caffes_state_is_read_and_written_again_the_same(here: Path) -> None:
    state = read_state(CAFFES)
    assert (state.iteration, state.learned_net, state.current_step) == (500, "lenet_iter_500.caffemodel", 0)
    assert [h.shape for h in state.history[:3]] == [(12, 1, 3, 3), (12,), (24, 12, 3, 3)]
    assert state.run == {}
    write_state(state, "s")
    assert Path("s").read_bytes() == CAFFES.read_bytes()


def test_hdf5_has_caffes_groups(here: Path) -> None:
    write_state(State(7, "m.h5", 2, [np.ones((2, 3), np.float32)] * 11), "s.h5")
    with h5py.File("s.h5") as file:
        assert sorted(file) == ["current_step", "history", "iter", "learned_net"]
        assert (file["iter"].dtype, file["iter"].shape, file["iter"][0]) == (np.int32, (1,), 7)
        assert (file["current_step"].dtype, file["current_step"].shape, file["current_step"][0]) == (
            np.int32,
            (1,),
            2,
        )
        # Caffe reads the name up to a zero byte.
        assert (file["learned_net"].dtype, file["learned_net"].shape) == (np.dtype("S5"), ())
        assert sorted(file["history"], key=int) == [str(i) for i in range(11)]


@pytest.mark.parametrize("end", ENDS.values())
def test_damaged_states_are_refused(here: Path, end: str) -> None:
    path = Path(f"s{end}")
    write_state(State(7, "m", 2, [np.ones((20, 3), np.float32)]), path)
    data = path.read_bytes()
    for broken in (data[:-1], data[: len(data) // 2], b"", b"no state at all"):
        path.write_bytes(broken)
        with pytest.raises(SnapshotError, match=re.escape(str(path))) as caught:
            read_state(path)
        assert "\n" not in str(caught.value)
    with pytest.raises(SnapshotError, match=f"nope{re.escape(end)}: no such file"):
        read_state(f"nope{end}")


def test_a_state_that_is_not_made_of_plain_values_is_refused(here: Path) -> None:
    with pytest.raises(TypeError, match="got object"):
        write_state(State(1, "", 0, [], {"x": object()}), "s")


# -- snapshots -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "end"), ENDS.items())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_resumed_run_is_the_run_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, end: str, dtype: torch.dtype
) -> None:
    """Crops, mirrors, dropout, a place amid an epoch, a window of losses, test batches: bit by bit."""
    folder = prepared("digits_lenet", tmp_path)
    monkeypatch.chdir(folder)
    param = read_solver("solver.prototxt")
    net = read_net("net.prototxt")
    for layer in net.layer[:2]:
        layer.transform_param.mirror = True
        layer.transform_param.crop_size = 6
    dropout = net.layer.add(name="drop", type="Dropout", bottom=["ip1"], top=["ip1"])
    param.ClearField("net")
    param.net_param.CopyFrom(net)
    del param.net_param.layer[:]
    for layer in net.layer[:-1]:
        param.net_param.layer.add().CopyFrom(layer)
        if layer.name == "relu1":
            param.net_param.layer.add().CopyFrom(dropout)
    param.max_iter, param.snapshot, param.test_interval, param.test_iter[:] = 70, 52, 20, [2]
    param.snapshot_format = SolverParameter.SnapshotFormat.Value(kind)  # type: ignore[assignment]
    whole = Solver(param, dtype=dtype)
    whole.solve()
    assert {blob.dtype for blob in (*whole.net.learnable, *whole.history)} == {dtype}
    model = Path(f"lenet_iter_70.caffemodel{end}").read_bytes()
    state = Path(f"lenet_iter_70.solverstate{end}").read_bytes()
    resumed = Solver(param, dtype=dtype)
    resumed.restore(f"lenet_iter_52.solverstate{end}")
    assert resumed.iteration == 52
    resumed.solve()
    assert same(whole, resumed)
    if kind == "BINARYPROTO":
        assert Path("lenet_iter_70.caffemodel").read_bytes() == model
        assert Path("lenet_iter_70.solverstate").read_bytes() == state
    as_caffe = Solver(param, dtype=dtype)
    as_caffe.restore(f"lenet_iter_52.solverstate{end}", as_caffe=True)
    as_caffe.solve()
    assert not same(whole, as_caffe)


@pytest.mark.parametrize("end", ENDS.values())
def test_a_run_goes_on_in_the_precision_that_it_had(here: Path, end: str) -> None:
    param = parse_solver(SOLVER + (" snapshot_format: HDF5" if end else ""))
    for dtype, other, hint in (
        (torch.float64, torch.float32, "it was written with --double; give that, too"),
        (torch.float32, torch.float64, "it was written without --double; leave that out, too"),
    ):
        written = Solver(param, dtype=dtype)
        written.step(3)
        path = written.snapshot()
        with pytest.raises(SnapshotError, match=f"the run cannot go on exactly: {hint} .--resume-as-caffe"):
            Solver(param, dtype=other).restore(path)
        with pytest.raises(SnapshotError, match=hint):  # passed over it would be lost
            Solver(param, dtype=other).restore_newest()
        as_caffe = Solver(param, dtype=other)
        as_caffe.restore(path, as_caffe=True)
        pairs = [*zip(as_caffe.net.learnable, written.net.learnable, strict=True)]
        pairs += zip(as_caffe.history, written.history, strict=True)  # type: ignore[arg-type]  # tensors all
        assert all(torch.equal(a, b.to(other)) for a, b in pairs)


def test_double_precision_is_written_as_caffe_writes_it(here: Path) -> None:
    """In double_data, which Caffe reads into nets of either precision, not in data."""
    solver = Solver(parse_solver(SOLVER + " snapshot_diff: true"), dtype=torch.float64)
    solver.step(2)
    state = read_binary(solver.snapshot(), SolverState)
    model = read_binary("s_iter_2.caffemodel", NetParameter)
    weight, bias = solver.net.learnable
    assert weight.grad is not None
    blob = model.layer[1].blobs[0]
    assert np.array_equal(blob.double_data, weight.detach().numpy().ravel())
    assert np.array_equal(blob.double_diff, weight.grad.numpy().ravel())
    assert np.array_equal(state.history[1].double_data, solver.history[1].numpy())
    assert not any(len(field) for field in (blob.data, blob.diff, state.history[1].data))
    single = Solver(parse_solver(SOLVER))
    load_caffemodel(single.net, "s_iter_2.caffemodel")
    assert torch.equal(single.net.learnable[1], bias.float())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_recurrent_state_goes_on(here: Path, dtype: torch.dtype) -> None:
    net = """
    layer { name: "x" type: "DummyData" top: "x" top: "cont" top: "y"
            dummy_data_param {
                shape { dim: 3 dim: 2 dim: 4 } shape { dim: 3 dim: 2 } shape { dim: 3 dim: 2 dim: 5 }
                data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } data_filler { } } }
    layer { name: "r" type: "LSTM" bottom: "x" bottom: "cont" top: "r"
            recurrent_param { num_output: 5 weight_filler { type: "uniform" min: -0.5 max: 0.5 } } }
    layer { name: "loss" type: "EuclideanLoss" bottom: "r" bottom: "y" top: "loss" }
    """
    param = parse_solver(SOLVER.replace(NET, net))
    whole, resumed, as_caffe = (Solver(param, dtype=dtype) for _ in range(3))
    whole.step(3)
    path = whole.snapshot()
    whole.step(2)
    resumed.restore(path)
    resumed.step(2)
    assert same(whole, resumed)
    as_caffe.restore(path, as_caffe=True)
    as_caffe.random.set_state(read_state(path).run["random"])
    as_caffe.step(2)
    assert not same(whole, as_caffe)  # the LSTM began with an empty state


def test_caffes_snapshot_is_restored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(prepared("digits_lenet", tmp_path))
    solver = Solver(read_solver("solver.prototxt"))
    solver.restore("lenet_iter_500.solverstate")
    assert solver.iteration == 500
    message = read_binary(CAFFES, SolverState)
    for blob, recorded in zip(solver.history, message.history, strict=True):
        np.testing.assert_array_equal(blob.numpy().ravel(), recorded.data)
    means = solver.test(0)
    assert f"{means['accuracy']:.6g}" == "0.929293"  # the last line of train.log
    assert f"{means['loss']:.6g}" == "0.213141"


@pytest.mark.parametrize("end", ENDS.values())
def test_names_and_contents(here: Path, end: str) -> None:
    param = parse_solver(SOLVER + (" snapshot_format: HDF5" if end else ""))
    solver = Solver(param)
    solver.step(9)
    assert solver.snapshot() == f"s_iter_9.solverstate{end}"
    assert sorted(path.name for path in here.iterdir()) == [
        f"s_iter_9.caffemodel{end}",
        f"s_iter_9.solverstate{end}",
    ]
    state = read_state(f"s_iter_9.solverstate{end}")
    assert (state.iteration, state.learned_net, state.current_step) == (9, f"s_iter_9.caffemodel{end}", 2)


def test_resuming_at_max_iter_trains_nothing_and_writes_a_snapshot(here: Path) -> None:
    solver = Solver(parse_solver(SOLVER + " max_iter: 2"))
    solver.solve()
    state = Path("s_iter_2.solverstate").read_bytes()
    other = Solver(parse_solver(SOLVER + " max_iter: 2"))
    other.restore("s_iter_2.solverstate")
    Path("s_iter_2.solverstate").unlink()
    other.solve()
    assert other.iteration == 2
    assert Path("s_iter_2.solverstate").read_bytes() == state
    os.utime("s_iter_2.solverstate", (1, 1))
    for as_caffe in (False, True):  # one that goes on exactly has it
        other.restore("s_iter_2.solverstate", as_caffe=as_caffe)
        other.solve()
        assert (os.stat("s_iter_2.solverstate").st_mtime == 1) == (not as_caffe)


def test_states_that_do_not_fit_are_refused_and_leave_the_solver_alone(here: Path) -> None:
    solver = Solver(parse_solver(SOLVER))
    solver.step(3)
    path = solver.snapshot()
    adam = Solver(parse_solver(SOLVER + ' type: "Adam"'))
    message = "Incorrect length of history blobs: it has 2, a solver of type Adam has 4 for this net"
    with pytest.raises(SnapshotError, match=message):
        adam.restore(path)
    wide = Solver(parse_solver(SOLVER.replace("num_output: 5", "num_output: 7")))
    message = re.escape("history blob 0 has shape 5 3 (15), this net needs 7 3 (21)")
    with pytest.raises(SnapshotError, match=message):
        wide.restore(path)
    Path("s_iter_3.caffemodel").write_bytes(b"damaged")
    fresh, untouched = Solver(parse_solver(SOLVER)), Solver(parse_solver(SOLVER))
    with pytest.raises(
        SnapshotError, match=r"s_iter_3\.solverstate: s_iter_3\.caffemodel is damaged, or anoth"
    ):
        fresh.restore(path)
    with pytest.raises(SnapshotError, match=r"s_iter_3\.solverstate: s_iter_3\.caffemodel: not a binary"):
        fresh.restore(path, as_caffe=True)
    Path("s_iter_3.caffemodel").unlink()
    message = r"s_iter_3\.solverstate: File not found: s_iter_3\.caffemodel, the model that belongs to it"
    with pytest.raises(SnapshotError, match=message):
        fresh.restore(path)
    assert fresh.iteration == 0
    assert same(fresh, untouched)


def test_an_old_state_with_four_axes_fits(here: Path) -> None:
    solver = Solver(parse_solver(SOLVER))
    solver.step(2)
    path = solver.snapshot()
    message = read_binary(path, SolverState)
    for blob in message.history:
        dims = [1] * (4 - len(blob.shape.dim)) + list(blob.shape.dim)
        blob.ClearField("shape")
        blob.num, blob.channels, blob.height, blob.width = dims
    message.DiscardUnknownFields()  # type: ignore[attr-defined]  # left out of the stubs
    Path(path).write_bytes(seal(message.SerializeToString()))
    other = Solver(parse_solver(SOLVER))
    other.restore(path)
    assert same(solver, other)


def test_a_run_that_cannot_go_on_exactly_is_refused(here: Path) -> None:
    solver = Solver(parse_solver(SOLVER))
    solver.step(2)
    path = solver.snapshot()
    state = read_state(path)
    for run in ({"random": b"short"}, {"no": 1}, {**state.run, "loss": {}}):
        write_state(State(2, state.learned_net, 0, state.history, run), path)
        with pytest.raises(SnapshotError, match=r"the run cannot go on exactly: .*--resume-as-caffe"):
            Solver(parse_solver(SOLVER)).restore(path)
        Solver(parse_solver(SOLVER)).restore(path, as_caffe=True)


@pytest.mark.parametrize("end", ENDS.values())
def test_a_snapshot_that_fails_leaves_the_last_one(here: Path, end: str) -> None:
    """No space for the state: the model of this iteration is there, its state is not, and nothing half."""
    solver = Solver(parse_solver(SOLVER + (" snapshot_format: HDF5" if end else "")))
    solver.step(1)
    solver.snapshot()
    solver.step(1)
    size = os.path.getsize(f"s_iter_1.caffemodel{end}")
    assert size < os.path.getsize(f"s_iter_1.solverstate{end}")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))  # as if the disk were full then
    try:
        with pytest.raises(FileError, match=rf"cannot write 's_iter_2\.solverstate{end}': File too large"):
            solver.snapshot()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    names = {path.name for path in here.iterdir()}
    assert names == {f"s_iter_{it}.{kind}{end}" for it, kind in KINDS}
    assert read_state(f"s_iter_1.solverstate{end}").iteration == 1


def test_snapshot_diff(here: Path) -> None:
    solver = Solver(parse_solver(SOLVER + " snapshot_diff: true snapshot_format: HDF5"))
    solver.step(1)
    solver.snapshot()
    with h5py.File("s_iter_1.caffemodel.h5") as file:
        diff = solver.net.learnable[0].grad
        assert diff is not None
        np.testing.assert_array_equal(file["diff/a/0"], diff.numpy())


def test_killed_at_any_moment_the_last_snapshot_is_whole(here: Path) -> None:
    """kill -9 while snapshots are written all the time; the training goes on from the last state."""
    Path("solver.prototxt").write_text(SOLVER + " max_iter: 1000000 snapshot: 1")
    command = [sys.executable, "-c", "from imae.cli.main import main; main(['train', 'solver.prototxt'])"]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + FOR_EVER
        while not Path("s_iter_3.solverstate").exists():
            assert process.poll() is None and time.monotonic() < deadline, "no snapshot was written"
            time.sleep(0.01)
        time.sleep(random.uniform(0, 0.2))
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    states = sorted(here.glob("s_iter_*.solverstate"), key=lambda path: int(path.stem.rpartition("_")[2]))
    assert len(states) >= 3
    models = {path.name for path in here.glob("s_iter_*.caffemodel")}
    for path in states:
        assert read_state(path).learned_net in models
    left = {path.suffix for path in here.iterdir()} - {".tmp", ".lock"}  # the next training takes the lock
    assert left == {".solverstate", ".caffemodel", ".prototxt"}
    last = read_state(states[-1])
    resumed, straight = (Solver(parse_solver(SOLVER)) for _ in range(2))
    resumed.restore(states[-1].name)
    assert resumed.iteration == last.iteration == int(states[-1].stem.rpartition("_")[2])
    resumed.step(3)
    straight.step(last.iteration + 3)
    assert same(resumed, straight)


@pytest.mark.parametrize(("first", "second"), [("fc/a", "fc/b"), ("fc/a", "fc"), ("fc", "fc/a")])
def test_layers_whose_names_have_a_slash_are_read_again_from_hdf5(
    here: Path, first: str, second: str
) -> None:
    """They are groups within groups. (Caffe itself ends there.)"""
    layer = 'layer { name: "a" type: "InnerProduct" bottom: "data" top: "a"'
    more = f'layer {{ name: "{second}" type: "InnerProduct" bottom: "a" top: "b"'
    fill = 'inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }'
    text = SOLVER.replace(layer, layer.replace('name: "a"', f'name: "{first}"'))
    text = text.replace('bottom: "a" bottom: "label"', 'bottom: "b" bottom: "label"')
    text = text.replace('layer { name: "loss"', f'{more} {fill} layer {{ name: "loss"')
    param = parse_solver(f"{text} snapshot_format: HDF5 snapshot_diff: true max_iter: 2")
    solver, again = Solver(param), Solver(param)
    solver.step(2)
    solver.snapshot()
    assert again.restore_newest() == "s_iter_2.solverstate.h5"
    assert same(solver, again)


def test_two_layers_of_one_name_do_not_go_into_hdf5(here: Path) -> None:
    more = FIVE_OUTPUTS.replace("\n", " ").replace('top: "a"', 'top: "z"')
    text = SOLVER.replace('layer { name: "loss"', more + ' layer { name: "loss"')
    with pytest.raises(CaffemodelError, match="two layers with blobs are called 'a', which HDF5 cannot hold"):
        Solver(parse_solver(f"{text} snapshot_format: HDF5")).snapshot()


def test_groups_with_many_names_take_no_time(here: Path) -> None:
    with h5py.File("w.h5", "w") as file:
        group = file.create_group("data")
        for _ in range(30):
            inner = group.create_group("x")
            group["y"] = inner
            group = inner
    with h5py.File("circle.h5", "w") as file:
        group = file.create_group("data/a")
        group["b"] = group
    net = Solver(parse_solver(SOLVER)).net
    for name in ("w.h5", "circle.h5"):
        with pytest.raises(CaffemodelError, match="is nested too deeply, or has another name"):
            load_caffemodel(net, name)
