"""The solver: Caffe's runs again, update rules against their formulas, what is logged when, messages."""

from __future__ import annotations

import logging
import math
import os
import re
import signal
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_runs import RUNS, numbers, prepared, worded
from numpy.typing import NDArray
from tiny_solver import DATA
from tolerances import tolerance
from torch import Tensor

from imae.cli.main import main
from imae.files.errors import FileError, ImaeError, LayerError, PrototxtError
from imae.layers.utility.synced_memory import parameter_diff
from imae.net.executor import Result, StepwiseExecutor
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.prototxt import BlobProto, NetParameter, SolverParameter, SolverState
from imae.prototxt.text import parse_solver, read_binary
from imae.train.options import Options
from imae.train.signals import Action, SignalRequests, action
from imae.train.smoothed_loss import SmoothedLoss
from imae.train.solver import Solver
from imae.train.update_rules import RULES

f64 = np.float64
Array = NDArray[np.float64]

NET = f'name: "tiny"\n{DATA}'
NET += """
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a"
        param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { lr_mult: 0.5 } param { lr_mult: 0 }
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "b" bottom: "label" top: "loss" }
"""


def solver_param(text: str, net: str = NET) -> SolverParameter:
    """A solver of the tiny net; fields in `text` come on top."""
    return parse_solver(f"net_param {{ {net} }} random_seed: 1 snapshot_after_train: false {text}")


class Scripted:
    """Stands for the net: adds gradients that are known beforehand to those of the parameters."""

    def __init__(self, net: Net) -> None:
        self.net, self.runs = net, 0

    def forward_backward(self) -> Result:
        for place, parameter in enumerate(self.net.learnable):
            parameter_diff(parameter).add_(gradient(self.runs, place, parameter.shape))
        self.runs += 1
        return torch.tensor(float(self.runs)), {"loss": torch.tensor(float(self.runs))}

    def forward(self) -> Result:
        self.runs += 1
        return torch.tensor(float(self.runs)), {"loss": torch.tensor(float(self.runs))}


def gradient(run: int, place: int, shape: torch.Size) -> Tensor:
    values = np.random.default_rng([run, place]).standard_normal(tuple(shape))
    return torch.from_numpy(values.astype(np.float32))


# -- Caffe's runs again --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def lenet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return prepared("digits_lenet", tmp_path_factory.mktemp("lenet"))


def train(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str
) -> str:
    """The log of `imae train`, run in the folder."""
    monkeypatch.chdir(folder)
    capsys.readouterr()
    assert main(["train", *arguments]) == 0
    return capsys.readouterr().err


@pytest.mark.parametrize("flags", [["--plain"], []])
def test_lenet_trains_as_in_caffe(
    lenet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    """500 iterations: the same lines in the same order, the same numbers, weights and history."""
    log = train(lenet, capsys, monkeypatch, "-solver=solver.prototxt", *flags)
    recorded = (RUNS / "digits_lenet" / "train.log").read_text(encoding="utf-8")
    assert worded(log) == worded(recorded)
    check_numbers(log, recorded)
    check_snapshots(lenet, "digits_lenet", "lenet_iter_500", 8, 8)


def check_snapshots(folder: Path, run: str, name: str, blobs: int, histories: int) -> None:
    """Compare model and solver state with Caffe's, as far as they were recorded."""
    theirs = read_binary(RUNS / run / f"{name}.solverstate", SolverState)
    ours = read_binary(folder / f"{name}.solverstate", SolverState)
    for field in ("iter", "current_step", "learned_net"):
        assert getattr(ours, field) == getattr(theirs, field)
    compare_blobs(ours.history, theirs.history, histories, "history after a run")
    model = RUNS / run / f"{name}.caffemodel"
    if model.is_file():
        models = [read_binary(path, NetParameter) for path in (folder / model.name, model)]
        pair = [[blob for layer in net.layer for blob in layer.blobs] for net in models]
        compare_blobs(pair[0], pair[1], blobs, "weights after a run")


def compare_blobs(ours: Sequence[BlobProto], theirs: Sequence[BlobProto], count: int, what: str) -> None:
    rtol, atol, _ = tolerance(what)
    assert len(ours) == len(theirs) == count
    for a, b in zip(ours, theirs, strict=True):
        assert a.shape == b.shape
        np.testing.assert_allclose(a.data, b.data, rtol, atol * np.abs(b.data).max())


def check_numbers(log: str, recorded: str, what: str = "run") -> None:
    rtol, atol, _ = tolerance(what)
    np.testing.assert_allclose(numbers(log), numbers(recorded), rtol=rtol, atol=atol)


def test_debug_info_is_logged_as_in_caffe(
    lenet: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = train(lenet, capsys, monkeypatch, "solver_debug_info.prototxt")
    recorded = (RUNS / "digits_lenet" / "train_debug_info.log").read_text(encoding="utf-8")
    assert worded(log) == worded(recorded)
    check_numbers(log, recorded, "logged")


def test_adam_with_three_test_nets_trains_as_in_caffe(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stages, two weighted losses, a vector output, clipped gradients, a smoothed loss."""
    folder = prepared("adam_multi_test", tmp_path)
    log = train(folder, capsys, monkeypatch, "solver.prototxt")
    recorded = (RUNS / "adam_multi_test" / "train.log").read_text(encoding="utf-8")
    assert worded(log) == worded(recorded)
    check_numbers(log, recorded)
    check_snapshots(folder, "adam_multi_test", "adam_iter_120", 0, 12)


# -- update rules --------------------------------------------------------------------------------------------


def by_formula(param: SolverParameter, net: Net, iterations: int) -> tuple[list[Array], list[Array]]:
    """Weights and histories after so many updates with `gradient`, from the formulas, in double precision."""
    w = [p.detach().numpy().astype(f64) for p in net.learnable]
    h, k = ([np.zeros_like(x) for x in w] for _ in range(2))
    m, d = param.momentum, param.delta
    for t in range(iterations):
        rate = param.base_lr * param.gamma ** (t // param.stepsize)
        runs = range(t * param.iter_size, (t + 1) * param.iter_size)
        g = [sum(gradient(run, i, x.shape).numpy().astype(f64) for run in runs) for i, x in enumerate(w)]
        norm = math.sqrt(sum((x * x).sum() for x in g))
        scale = param.clip_gradients / norm if 0 <= param.clip_gradients < norm else 1
        for i, x in enumerate(w):
            r, decay = rate * net.lr_mults[i], param.weight_decay * net.decay_mults[i]
            toward = x if param.regularization_type == "L2" else np.sign(x)
            apart = decay if param.type == "AdamW" else 0
            gi = g[i] * scale / param.iter_size + (decay - apart) * toward
            old = h[i]
            if param.type == "SGD":
                h[i] = m * old + r * gi
                update = h[i]
            elif param.type == "Nesterov":
                h[i] = m * old + r * gi
                update = (1 + m) * h[i] - m * old
            elif param.type == "AdaGrad":
                h[i] = old + gi**2
                update = r * gi / (np.sqrt(h[i]) + d)
            elif param.type == "RMSProp":
                h[i] = param.rms_decay * old + (1 - param.rms_decay) * gi**2
                update = r * gi / (np.sqrt(h[i]) + d)
            elif param.type == "AdaDelta":
                h[i] = m * old + (1 - m) * gi**2
                step = gi * np.sqrt((k[i] + d) / (h[i] + d))
                k[i] = m * k[i] + (1 - m) * step**2
                update = r * step
            else:
                h[i] = m * old + (1 - m) * gi
                k[i] = param.momentum2 * k[i] + (1 - param.momentum2) * gi**2
                c = math.sqrt(1 - param.momentum2 ** (t + 1)) / (1 - m ** (t + 1))
                update = r * c * h[i] / (np.sqrt(k[i]) + d)
            w[i] = x - update - r * apart * x
    return w, h + (k if param.type in ("Adam", "AdamW", "AdaDelta") else [])


@pytest.mark.parametrize(
    "common",
    [
        "",
        "weight_decay: 0.05",
        'weight_decay: 0.02 regularization_type: "L1"',
        "weight_decay: 0.05 iter_size: 3 clip_gradients: 2",
        "clip_gradients: 0 weight_decay: 0.05",
    ],
)
@pytest.mark.parametrize(
    ("rule", "fields"),
    [
        ("SGD", "momentum: 0.9"),
        ("SGD", ""),
        ("Nesterov", "momentum: 0.9"),
        ("AdaGrad", "delta: 1e-3"),
        ("RMSProp", "rms_decay: 0.9 delta: 1e-3"),
        ("AdaDelta", "momentum: 0.9 delta: 1e-3"),
        ("Adam", "momentum: 0.9 momentum2: 0.99 delta: 1e-3"),
        ("AdamW", "momentum: 0.9 momentum2: 0.99 delta: 1e-3"),
    ],
)
def test_update_rules_follow_their_formulas(rule: str, fields: str, common: str) -> None:
    """With lr_mult, decay_mult and a rate that drops on the way."""
    policy = 'base_lr: 0.1 lr_policy: "step" stepsize: 3 gamma: 0.1'
    if rule == "AdamW":  # it has no L1
        common = common.replace('regularization_type: "L1"', "")
    param = solver_param(f'type: "{rule}" {policy} {fields} {common}')
    solver = Solver(param, Options(executor=Scripted))
    weights, history = by_formula(param, solver.net, 7)
    solver.step(7)
    rtol, atol, _ = tolerance("trajectory")
    assert len(solver.history) == len(history)
    for got, want in zip([*solver.net.learnable, *solver.history], [*weights, *history], strict=True):
        np.testing.assert_allclose(
            got.detach().numpy(), want, rtol=rtol, atol=atol * max(1, np.abs(want).max())
        )


def test_every_rule_has_a_trajectory() -> None:
    assert set(RULES) == {"SGD", "Nesterov", "AdaGrad", "RMSProp", "AdaDelta", "Adam", "AdamW"}


def test_adamw_is_torchs() -> None:
    """With a delta that is next to nothing, as torch adds it elsewhere."""
    fields = "momentum: 0.8 momentum2: 0.95 delta: 1e-30 weight_decay: 0.3"
    param = solver_param(f'type: "AdamW" base_lr: 0.05 lr_policy: "fixed" {fields}')
    solver = Solver(param, Options(executor=Scripted))
    mults = list(zip(solver.net.learnable, solver.net.lr_mults, solver.net.decay_mults, strict=True))
    theirs = [p.detach().clone() for p, _, _ in mults]
    groups = [
        {"params": [mine], "lr": 0.05 * lr, "weight_decay": 0.3 * decay}
        for mine, (_, lr, decay) in zip(theirs, mults, strict=True)
    ]
    optimizer = torch.optim.AdamW(groups, betas=(0.8, 0.95), eps=1e-30)
    for t in range(5):
        for i, mine in enumerate(theirs):
            mine.grad = gradient(t, i, mine.shape).to(mine)
        optimizer.step()
    solver.step(5)
    rtol, atol, _ = tolerance("trajectory")
    for got, want in zip(solver.net.learnable, theirs, strict=True):
        np.testing.assert_allclose(got.detach().numpy(), want.numpy(), rtol=rtol, atol=atol)


@pytest.mark.parametrize("rule", ['type: "AdamW" weight_decay: 0.1', ""])
def test_diffs_hold_the_update_afterwards(rule: str) -> None:
    fields = 'base_lr: 0.1 lr_policy: "fixed" momentum: 0.9'
    solver = Solver(solver_param(f"{rule} {fields}"), Options(executor=Scripted))
    before = [p.detach().clone() for p in solver.net.learnable]
    solver.step(1)
    for old, parameter in zip(before, solver.net.learnable, strict=True):
        assert torch.equal(parameter, old - parameter_diff(parameter))


def test_a_frozen_parameter_stays_but_is_in_the_history() -> None:
    param = solver_param('type: "Adam" base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 weight_decay: 1')
    solver = Solver(param)
    frozen = solver.net.params["b"][1]
    with torch.no_grad():
        frozen.fill_(3)
    solver.step(2)
    assert not frozen.requires_grad
    assert torch.equal(frozen, torch.full((2,), 3.0))
    assert (solver.history[3] > 0).all()  # weight decay alone: decay_mult is 1


# -- executors -----------------------------------------------------------------------------------------------

CONVNET = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 3 dim: 2 dim: 7 dim: 5 } shape { dim: 3 }
                           data_filler { type: "gaussian" } data_filler { type: "constant" value: 1 } } }
layer { name: "c" type: "Convolution" bottom: "data" top: "c"
        convolution_param { num_output: 4 kernel_size: 3 weight_filler { type: "xavier" } } }
layer { name: "r" type: "ReLU" bottom: "c" top: "c" }
layer { name: "d" type: "Dropout" bottom: "c" top: "c" }
layer { name: "a" type: "InnerProduct" bottom: "c" top: "a"
        inner_product_param { num_output: 2 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "a" bottom: "label" top: "loss" }
"""


def test_executors_agree() -> None:
    param = solver_param('base_lr: 0.1 lr_policy: "fixed" momentum: 0.9', CONVNET)
    plain, fast = Solver(param, Options(fast=False)), Solver(param)
    stepwise = Solver(param, Options(executor=lambda net: StepwiseExecutor(Stepwise(net))))
    rtol, atol, _ = tolerance("same arithmetic")
    for solver in (plain, fast, stepwise):
        solver.step(4)
        for a, b in zip(solver.net.learnable, plain.net.learnable, strict=True):
            np.testing.assert_allclose(a.detach().numpy(), b.detach().numpy(), rtol=rtol, atol=atol)
    for blob in (fast.net.params["c"][0], fast.history[0]):
        assert blob.is_contiguous(memory_format=torch.channels_last)


# -- what is logged, and when --------------------------------------------------------------------------------


@pytest.fixture
def log(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    with caplog.at_level(logging.INFO, "imae"):
        yield caplog


def said(log: pytest.LogCaptureFixture, *places: str) -> list[str]:
    """The lines of these places in Caffe's sources so far, and none of them again."""
    found = [r.getMessage() for r in log.records if getattr(r, "caffe", "").partition(":")[0] in places]
    log.clear()
    return [re.sub(r"\(.* iter/s, \S+s/", "(", line) for line in found]


def test_smoothed_loss_starts_anew_with_each_step_call(log: pytest.LogCaptureFixture) -> None:
    param = solver_param('base_lr: 0 lr_policy: "fixed" display: 2 average_loss: 3')
    solver = Solver(param, Options(executor=Scripted))  # its losses are 1, 2, 3 ...
    said(log, "solver.cpp")
    solver.step(5)
    solver.step(2)
    assert said(log, "solver.cpp", "sgd_solver.cpp") == [
        "Iteration 0 (2 iters), loss = 1",
        "    Train net output #0: loss = 1 (* 1 = 1 loss)",
        "Iteration 0, lr = 0",
        "Iteration 2 (2 iters), loss = 2",
        "    Train net output #0: loss = 3 (* 1 = 3 loss)",
        "Iteration 2, lr = 0",
        "Iteration 4 (2 iters), loss = 4",
        "    Train net output #0: loss = 5 (* 1 = 5 loss)",
        "Iteration 4, lr = 0",
        "Iteration 6 (2 iters), loss = 6.5",
        "    Train net output #0: loss = 7 (* 1 = 7 loss)",
        "Iteration 6, lr = 0",
    ]


def test_loss_with_iter_size_is_the_mean_of_its_passes(log: pytest.LogCaptureFixture) -> None:
    solver = Solver(solver_param('lr_policy: "fixed" display: 1 iter_size: 3'), Options(executor=Scripted))
    said(log, "solver.cpp")
    solver.step(2)
    assert [line for line in said(log, "solver.cpp") if "Iteration" in line] == [
        "Iteration 0 (1 iters), loss = 2",
        "Iteration 1 (1 iters), loss = 5",
    ]


def test_after_the_last_iteration(
    log: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot, a further forward pass for the last line, a test."""
    monkeypatch.chdir(tmp_path)
    param = solver_param(
        'lr_policy: "fixed" display: 2 max_iter: 4 test_iter: 2 test_interval: 4 snapshot_prefix: "s"'
    )
    param.snapshot_after_train = True
    solver = Solver(param, Options(executor=Scripted))
    said(log, "solver.cpp")
    solver.solve()
    assert said(log, "solver.cpp", "sgd_solver.cpp") == [
        "Solving tiny",
        "Learning Rate Policy: fixed",
        "Iteration 0, Testing net (#0)",
        "    Test net output #0: loss = 1.5 (* 1 = 1.5 loss)",
        "Iteration 0 (2 iters), loss = 1",
        "    Train net output #0: loss = 1 (* 1 = 1 loss)",
        "Iteration 0, lr = 0",
        "Iteration 2 (2 iters), loss = 3",
        "    Train net output #0: loss = 3 (* 1 = 3 loss)",
        "Iteration 2, lr = 0",
        "Snapshotting to binary proto file s_iter_4.caffemodel",
        "Snapshotting solver state to binary proto file s_iter_4.solverstate",
        "Iteration 4, loss = 5",
        "Iteration 4, Testing net (#0)",
        "    Test net output #0: loss = 3.5 (* 1 = 3.5 loss)",
        "Optimization Done.",
    ]


def test_no_display_no_loss_lines(log: pytest.LogCaptureFixture) -> None:
    solver = Solver(solver_param('lr_policy: "fixed" max_iter: 3'))
    said(log, "solver.cpp")
    solver.solve()
    assert said(log, "solver.cpp", "sgd_solver.cpp") == [
        "Solving tiny",
        "Learning Rate Policy: fixed",
        "Optimization Done.",
    ]


def test_multistep_is_logged(log: pytest.LogCaptureFixture) -> None:
    param = solver_param('base_lr: 1 lr_policy: "multistep" gamma: 0.5 stepvalue: 1 stepvalue: 3 display: 1')
    solver = Solver(param, Options(executor=Scripted))
    solver.step(4)
    assert said(log, "sgd_solver.cpp") == [
        "Iteration 0, lr = 1",
        "MultiStep Status: Iteration 1, step = 1",
        "Iteration 1, lr = 0.5",
        "Iteration 2, lr = 0.5",
        "MultiStep Status: Iteration 3, step = 2",
        "Iteration 3, lr = 0.25",
    ]


def test_clipped_gradients_are_logged_in_order_also_where_the_log_must_not_wait(
    log: pytest.LogCaptureFixture,
) -> None:
    param = solver_param('lr_policy: "fixed" display: 3 clip_gradients: 2')
    logs = []
    for device in ("cpu", "cuda"):
        solver = Solver(param, Options(executor=Scripted))
        solver._log.norms_wait = device == "cuda"  # as if they lay on a device
        said(log, "solver.cpp")
        solver.step(7)
        logs.append(said(log, "solver.cpp", "sgd_solver.cpp"))
    assert logs[0] == logs[1]
    assert (
        sum(line.startswith("Gradient clipping: scaling down gradients (L2 norm ") for line in logs[0]) == 7
    )
    assert logs[0][2:4] == ["Iteration 0, lr = 0", logs[0][3]]
    assert "> 2) by scale factor 0." in logs[0][3]


def test_nan_is_printed(log: pytest.LogCaptureFixture) -> None:
    solver = Solver(solver_param('base_lr: 1e30 lr_policy: "fixed" display: 1 momentum: 0.9'))
    said(log, "solver.cpp")
    solver.step(6)
    assert re.search(r"Iteration 5 .*, loss = -?nan\n", "\n".join(said(log, "solver.cpp")))


def test_smoothed_loss() -> None:
    losses = [5.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0]
    window = SmoothedLoss(3)
    for count, loss in enumerate(losses, 1):
        window.add(torch.tensor(loss))
        assert window.read() == pytest.approx(np.mean(losses[max(0, count - 3) : count]), rel=1e-6)
    other = SmoothedLoss(3)
    other.set_state(window.get_state())
    for each in (window, other):
        each.add(torch.tensor(3.0))
    assert other.read() == window.read() == pytest.approx(17, rel=1e-6)


def test_infinities_are_printed_without_warnings() -> None:
    window = SmoothedLoss(2)
    for loss in (math.inf, 1.0, 2.0):
        window.add(torch.tensor(loss))
    assert math.isnan(window.read())


# -- test nets -----------------------------------------------------------------------------------------------

TEST_LAYER = """
layer { name: "acc" type: "Accuracy" bottom: "b" bottom: "label" top: "each" top: "all"
        include { phase: TEST stage: "acc" } }
layer { name: "only_train" type: "Silence" bottom: "a" include { phase: TRAIN } }
"""


def test_test_nets_stand_in_caffes_order_and_share_parameters(
    log: pytest.LogCaptureFixture, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET.replace('"tiny"', '"file"'))
    param = solver_param(
        'test_net: "net.prototxt" test_iter: 1 test_iter: 1 test_iter: 1 test_interval: 1 '
        'test_state {} test_state { level: 3 } test_state { stage: "acc" }',
        NET + TEST_LAYER,
    )
    param.test_net_param.add().CopyFrom(param.net_param)
    param.test_net_param[0].name = "message"
    solver = Solver(param)
    assert [net.name for net in solver.test_nets] == ["message", "file", "tiny"]
    assert [line for line in said(log, "solver.cpp") if "Creating" in line] == [
        "Creating training net specified in net_param.",
        "Creating test net (#0) specified by test_net_param",
        "Creating test net (#1) specified by test_net file: net.prototxt",
        "Creating test net (#2) specified by net_param",
    ]
    assert solver.test_nets[1].param.state.level == 3
    assert solver.test_nets[2].outputs == ["all", "each", "loss"]
    for net in solver.test_nets:
        assert [id(p) for p in net.learnable] == [id(p) for p in solver.net.learnable]
    means = solver.test(2)
    assert {name: value.shape for name, value in means.items()} == {"all": (2,), "each": (), "loss": ()}
    assert [line for line in said(log, "net.cpp", "solver.cpp") if "Ignoring" in line or "#" in line] == [
        "Iteration 0, Testing net (#2)",
        "Ignoring source layer a_a_0_split",
        "Ignoring source layer only_train",
        *(
            f"    Test net output #{i}: {line}"
            for i, line in enumerate(
                [
                    f"all = {means['all'][0]:g}",
                    f"all = {means['all'][1]:g}",
                    f"each = {means['each']:g}",
                    f"loss = {means['loss']:g} (* 1 = {means['loss']:g} loss)",
                ]
            )
        ),
    ]


def test_no_test_batches(log: pytest.LogCaptureFixture) -> None:
    solver = Solver(solver_param("test_iter: 0 test_interval: 1 test_compute_loss: true"))
    said(log, "solver.cpp")
    assert solver.test(0) == {}
    assert said(log, "solver.cpp")[0] == "Iteration 0, Testing net (#0)"


def test_train_state_and_the_nets_own_state_count() -> None:
    both = NET + TEST_LAYER.replace("phase: TEST ", "")
    assert "each" in Solver(solver_param('train_state { stage: "acc" }', both)).net.outputs
    assert "each" in Solver(solver_param("", 'state { stage: "acc" } ' + both)).net.outputs
    assert "each" not in Solver(solver_param("", both)).net.outputs


# -- signals -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "stops", "iterations"),
    [(signal.SIGHUP, False, [2]), (signal.SIGINT, True, [2]), (signal.SIGTERM, True, [2])],
)
def test_signals_act_after_the_iteration(
    number: int,
    stops: bool,
    iterations: list[int],
    log: pytest.LogCaptureFixture,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    param = solver_param('lr_policy: "fixed" max_iter: 5 snapshot_prefix: "s"')
    param.snapshot_after_train = True
    before = signal.getsignal(number)
    with SignalRequests() as requests:
        solver = Solver(param)
        solver.request = requests
        solver.on_start.append(lambda: os.kill(os.getpid(), number) if solver.iteration == 1 else None)
        solver.solve()
    assert signal.getsignal(number) is before
    assert solver.iteration == (2 if stops else 5)
    wanted = {f"s_iter_{i}.{end}" for i in {2, solver.iteration} for end in ("caffemodel", "solverstate")}
    assert {path.name for path in tmp_path.iterdir()} == wanted
    last = said(log, "solver.cpp")[-1]
    assert last == ("Optimization stopped early." if stops else "Optimization Done.")


def test_a_signal_during_a_test_ends_it(log: pytest.LogCaptureFixture) -> None:
    solver = Solver(solver_param('lr_policy: "fixed" max_iter: 5 test_iter: 3 test_interval: 1'))
    asked: list[None] = []

    def request() -> Action:
        asked.append(None)
        return Action.STOP if len(asked) == 2 else Action.NONE

    solver.request = request
    solver.solve()
    assert solver.iteration == 0
    assert said(log, "solver.cpp")[-2:] == ["Test interrupted.", "Optimization stopped early."]


def test_who_watches_is_told_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of each start, of gradients before their update, of each test's means, and of each snapshot."""
    monkeypatch.chdir(tmp_path)
    param = solver_param(
        'lr_policy: "fixed" base_lr: 0.1 max_iter: 2 test_iter: 2 test_interval: 2 display: 1'
    )
    param.snapshot, param.snapshot_prefix = 2, "s"
    solver = Solver(param)
    told: list[object] = []
    solver.on_start.append(lambda: told.append(("start", solver.iteration)))
    solver.on_gradients_ready.append(lambda: told.append(("gradients", solver.smoothed_loss > 0)))
    solver.on_test.append(lambda index, means: told.append(("test", index, means["loss"].shape)))
    solver.on_snapshot.append(lambda path: told.append(("snapshot", path, Path(path).is_file())))
    solver.solve()
    assert told == [
        ("test", 0, ()),
        ("start", 0),
        ("gradients", True),
        ("start", 1),
        ("gradients", True),
        ("snapshot", "s_iter_2.solverstate", True),
        ("test", 0, ()),
    ]


def test_who_watches_is_told_that_a_signal_stopped_a_test() -> None:
    solver = Solver(solver_param('lr_policy: "fixed" max_iter: 5 test_iter: 3 test_interval: 1'))
    requests = iter([Action.NONE, Action.STOP])  # a second batch is not made
    solver.request = lambda: next(requests, Action.NONE)
    told: list[object] = []
    solver.on_test.append(lambda index, means: told.append((index, means)))
    solver.solve()
    assert told == [(0, {})]


def test_effects_of_signals() -> None:
    assert [action(name) for name in ("stop", "snapshot", "none")] == [
        Action.STOP,
        Action.SNAPSHOT,
        Action.NONE,
    ]
    with pytest.raises(ImaeError, match='Invalid signal effect "die" was specified'):
        action("die")
    with SignalRequests(sigint=Action.SNAPSHOT, sighup=Action.NONE) as requests:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGHUP)
        assert [requests() for _ in range(3)] == [Action.NONE, Action.SNAPSHOT, Action.NONE]


# -- what is refused -----------------------------------------------------------------------------------------

FIELDS = "net, net_param, train_net, train_net_param"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", f"SolverParameter must specify a train net using one of these fields: {FIELDS}"),
        (
            'net: "a" train_net: "b"',
            f"one of these fields specifying a train_net: {FIELDS}; got net, train_net",
        ),
        ("net_param {} average_loss: 0", "average_loss should be non-negative: it must be at least 1, got 0"),
        ("net_param {} iter_size: 0", "iter_size must be at least 1, got 0"),
        ('net_param {} regularization_type: "L3"', "Unknown regularization type: L3 (known types: L1, L2)"),
        ("net_param {} snapshot: 5", "In solver params, snapshot is specified but snapshot_prefix is not"),
        ("net_param {} test_iter: 1", "test_iter needs a test_interval greater than 0, got 0"),
        ('net_param {} test_net: "n"', "n: no such file"),
        (
            "net_param {} test_net_param {}",
            "test_iter must be specified for each test network; got 0 test_iter for 1",
        ),
        (
            "train_net_param {} test_iter: 1",
            "test_iter must be specified for each test network; got 1 test_iter for 0",
        ),
        (
            "net_param {} test_iter: 1 test_interval: 1 test_state {} test_state {}",
            "test_state must be unspecified or specified once per test net; got 2 for 1 test nets",
        ),
        (
            'type: "AdamQ"',
            "Unknown solver type: AdamQ (known types: AdaDelta, AdaGrad, Adam, AdamW, Nesterov, RMSProp, ",
        ),
        (
            'type: "AdaGrad" momentum: 0.9',
            "Momentum cannot be used with AdaGrad; got momentum: 0.9, remove it",
        ),
        (
            'type: "RMSProp" momentum: 0.9',
            "Momentum cannot be used with RMSProp; got momentum: 0.9, remove it",
        ),
        ('type: "RMSProp" rms_decay: 1.5', "rms_decay should lie between 0 and 1 (1 left out); got 1.5"),
        ('type: "Adam" momentum: 1', "Adam: momentum must lie between 0 and 1 (1 left out); got 1"),
        ('type: "AdamW" momentum2: 2', "AdamW: momentum2 must lie between 0 and 1 (1 left out); got 2"),
        (
            'type: "AdamW" regularization_type: "L1"',
            "AdamW decays the weights themselves; got regularization_",
        ),
        ('type: "Adam" momentum2: 1.5', "Adam: momentum2 must lie between 0 and 1 (1 left out); got 1.5"),
        ("test_iter: [3, -1]", "test_iter must be at least 0, got -1"),
        *(
            (f"{name}: -1", f"{name} must be at least 0, got -1")
            for name in ("display", "max_iter", "snapshot", "test_interval")
        ),
        *(
            (f"{name}: {value}", f"{name} must be a finite number, got {value}")
            for name in ("base_lr", "delta", "gamma", "momentum", "power", "weight_decay")
            for value in ("nan", "inf", "-inf")
        ),
        ("clip_gradients: nan", "clip_gradients must be the largest L2 norm, or below 0 (off); got nan"),
    ],
)
def test_messages(text: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(PrototxtError, match=re.escape(message)):
        Solver(parse_solver(text))


@pytest.mark.parametrize(
    "field", ["clip_gradients: -1", "clip_gradients: inf", "test_iter: 0 test_interval: 2"]
)
def test_what_caffe_runs_is_not_refused(field: str) -> None:
    """Nothing is clipped; a test runs no batch."""
    common = 'base_lr: 0.1 lr_policy: "fixed" momentum: 0.5'
    solvers = [Solver(solver_param(f"{common} {more}"), Options(executor=Scripted)) for more in (field, "")]
    for solver in solvers:
        solver.step(3)
    pairs = zip(*(solver.net.learnable for solver in solvers), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_an_unknown_policy_is_refused_before_the_first_pass() -> None:
    solver = Solver(solver_param('lr_policy: "cosine"'), Options(executor=Scripted))
    with pytest.raises(PrototxtError, match="Unknown learning rate policy: cosine"):
        solver.step(1)
    solver.step(0)


def test_an_unwritable_prefix_is_refused_at_the_start(tmp_path: Path) -> None:
    prefix = f'snapshot_prefix: "{tmp_path}/no_such_folder/snap"'
    message = "/no_such_folder/snap'.  Make sure that the directory exists and is writable. (No such file or "
    with pytest.raises(FileError, match=re.escape(message)):
        Solver(solver_param(f"{prefix} snapshot: 5"))
    param = solver_param(f'{prefix} lr_policy: "fixed" max_iter: 3')
    Solver(param).solve()
    param.snapshot_after_train = True
    solver = Solver(param)
    with pytest.raises(FileError, match=re.escape(message)):
        solver.solve()
    assert solver.iteration == 0


def test_a_label_out_of_range_stops_the_training() -> None:
    solver = Solver(solver_param('lr_policy: "fixed"', NET.replace("value: 1", "value: 2")))
    with pytest.raises(LayerError, match="label 2 is out of range: there are 2 classes"):
        solver.step(1)


def test_a_seed_that_is_not_given_is_logged(log: pytest.LogCaptureFixture) -> None:
    param = solver_param("")
    param.ClearField("random_seed")
    first = Solver(param)
    (line,) = [r.getMessage() for r in log.records if "seed" in r.getMessage() and "caffe" not in r.__dict__]
    param.random_seed = int(re.fullmatch(r"random_seed was not specified; this run's seed is (\d+)", line)[1])  # type: ignore[index]
    second = Solver(param)
    for a, b in zip(first.net.learnable, second.net.learnable, strict=True):
        assert torch.equal(a, b)
