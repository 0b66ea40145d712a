"""Fields of the solvers of SSD, Intel and NVIDIA: rates, momentum, decay, rates of single blobs, plateau.

Nothing of these forks is recorded. The references are independent: formulas as they stand in the forks'
solvers, in Python, number by number and in double precision.
"""

from __future__ import annotations

import logging
import math
import re
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tiny_solver import TINY_NET
from tolerances import tolerance

from imae.files.caffe_log import read_log
from imae.files.errors import PrototxtError
from imae.layers.ranks import Ranks
from imae.layers.utility.synced_memory import parameter_diff
from imae.prototxt import SolverParameter, SolverState
from imae.prototxt.text import parse_solver
from imae.train.lr_policy import Plateau, advance_step, learning_rate
from imae.train.solver import Solver
from imae.train.solverstate import read_state

Array = NDArray[np.float64]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rates(text: str, count: int) -> list[float]:
    param, found, step = parse_solver(text), [], 0
    for iteration in range(count):
        step = advance_step(param, iteration, step)
        found.append(learning_rate(param, iteration, step))
    return found


def close(got: list[float], want: list[float]) -> None:
    rtol, atol, _ = tolerance("formula")
    np.testing.assert_allclose(got, want, rtol=rtol, atol=atol)


# -- the rate ------------------------------------------------------------------------------------------------


def test_rampup_is_a_parabola() -> None:
    text = 'lr_policy: "fixed" base_lr: 0.8 rampup_interval: 4'
    close(rates(text, 6), [0, 0.05, 0.2, 0.45, 0.8, 0.8])
    close(rates(text + " rampup_lr: 0.4", 6), [0.4, 0.425, 0.5, 0.625, 0.8, 0.8])


def test_warmup_is_a_line() -> None:
    text = 'lr_policy: "fixed" base_lr: 0.8 warmup_iter: 4'
    close(rates(text, 6), [0, 0.2, 0.4, 0.6, 0.8, 0.8])
    close(rates(text + " warmup_start_lr: 0.4", 6), [0.4, 0.5, 0.6, 0.7, 0.8, 0.8])


@pytest.mark.parametrize("warmup", ["rampup_interval: 3 rampup_lr: 1", "warmup_iter: 3 warmup_start_lr: 1"])
def test_a_policy_goes_on_where_a_warmup_ends(warmup: str) -> None:
    common = f"base_lr: 1 gamma: 0.5 {warmup}"
    close(rates(f'lr_policy: "step" stepsize: 2 {common}', 6), [1, 1, 1, 0.5, 0.25, 0.25])
    # Stepvalues within the warm-up come after it, one an iteration.
    multistep = f'lr_policy: "multistep" stepvalue: 1 stepvalue: 2 {common}'
    close(rates(multistep, 6), [1, 1, 1, 0.5, 0.25, 0.25])


def test_min_lr() -> None:
    close(
        rates('lr_policy: "step" base_lr: 1 gamma: 0.5 stepsize: 1 min_lr: 0.2', 5), [1, 0.5, 0.25, 0.2, 0.2]
    )
    close(rates('lr_policy: "fixed" base_lr: 1 rampup_interval: 4 min_lr: 0.1', 3), [0.1, 0.1, 0.25])
    poly = 'lr_policy: "poly" base_lr: 1 power: 2 max_iter: 4 min_lr: 0.2'
    close(rates(poly, 5), [0.2 + 0.8 * (1 - i / 4) ** 2 for i in range(5)])
    assert math.isnan(learning_rate(parse_solver(poly.replace("power: 2", "power: 0.5")), 5, 0))


def test_multifixed() -> None:
    stages = "stagelr: 0.1 stagelr: 0.3 stagelr: 0.2 stageiter: 1 stageiter: 3 stageiter: 4"
    close(rates(f'lr_policy: "multifixed" {stages}', 7), [0.1, 0.1, 0.3, 0.3, 0.2, 0.2, 0.2])


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            'lr_policy: "multifixed"',
            "needs a stagelr for each stageiter, and at least one; got 0 stagelr and 0",
        ),
        ('lr_policy: "multifixed" stagelr: 1', "got 1 stagelr and 0 stageiter"),
        ('lr_policy: "fixed" min_lr: -1', "min_lr must be at least 0, got -1"),
        ('lr_policy: "poly" base_lr: 1 min_lr: 2', "base_lr must be at least min_lr, got 1 and 2"),
        ('lr_policy: "plateau" gamma: -1', "lr_policy 'plateau': gamma must be at least 0, got -1"),
        ('lr_policy: "fixed" rampup_interval: 1 warmup_iter: 1', "rampup_interval is a warm-up of NVIDIA's"),
    ],
)
def test_rates_that_are_refused(text: str, message: str) -> None:
    with pytest.raises(PrototxtError, match=re.escape(message)):
        learning_rate(parse_solver(text), 0, 0)


# -- plateau -------------------------------------------------------------------------------------------------


def steps_by_hand(losses: list[float], sizes: list[int]) -> list[int]:
    """current_step of each iteration."""
    least, event, step, steps = math.inf, 0, 0, []
    for iteration, loss in enumerate(losses):
        if loss < least:
            least, event = loss, iteration
        if step < len(sizes) and iteration - event >= sizes[step]:
            step, event = step + 1, iteration
        steps.append(step)
    return steps


@pytest.mark.parametrize("sizes", [[], [2], [3, 2], [0, 1], [1, 1, 1, 1]])
def test_plateau_steps_where_the_loss_stays(sizes: list[int]) -> None:
    param = parse_solver('lr_policy: "plateau" base_lr: 1 gamma: 0.5')
    param.plateau_winsize.extend(sizes)
    losses, plateau, step, steps = [5, 4, 4, 4.5, 4, 3, 3, 3, 3, 2, 3, math.nan, 3], Plateau(), 0, []
    for iteration, loss in enumerate(losses):
        step = plateau.advance(param, iteration, step, np.float32(loss))
        steps.append(step)
        assert learning_rate(param, iteration, step) == 0.5**step
    assert steps == steps_by_hand(losses, sizes)
    assert plateau.minimum_loss == 2


PLATEAU = """
    base_lr: 1 lr_policy: "plateau" gamma: 0.5 plateau_winsize: 2 plateau_winsize: 3 plateau_winsize: 2
    average_loss: 2 random_seed: 3 snapshot_prefix: "s" max_iter: 16
"""


def solver_of(text: str, net: str = TINY_NET) -> Solver:
    return Solver(parse_solver(f"net_param {{ {net} }} {text}"))


@pytest.mark.parametrize("display", ["display: 2", ""])
def test_a_training_with_plateau(display: str, caplog: pytest.LogCaptureFixture) -> None:
    solver, losses, got = solver_of(PLATEAU + display), [], []
    solver.on_gradients_ready.append(lambda: losses.append(solver.smoothed_loss))
    with caplog.at_level(logging.INFO):
        for _ in range(16):
            solver.on_gradients_ready[1:] = [lambda: got.append(solver.lr)]
            solver.step(1)
    # Each call of step begins a new mean, so these are the losses themselves.
    steps = steps_by_hand(losses, [2, 3, 2])
    assert got == [0.5**step for step in steps] and steps[-1] > 1
    lines = [line for line in caplog.messages if "Plateau Status" in line]
    moved = [i for i in range(1, 16) if steps[i] > steps[i - 1]]
    assert [line for line in lines if "step =" in line] == [
        f"Plateau Status: Iteration {i}, step = {steps[i]}" for i in moved
    ]
    minima = [line for line in lines if "minimum_loss" in line]
    assert bool(minima) == bool(display)
    if display:
        assert minima[0] == f"Plateau Status: Iteration 0, current minimum_loss = {losses[0]:.6g}"


@pytest.mark.parametrize("form", ["BINARYPROTO", "HDF5"])
@pytest.mark.parametrize("stop", [1, 5, 9])
def test_a_resumed_plateau_is_the_run_that_was_not_stopped(form: str, stop: int) -> None:
    text = f"{PLATEAU} snapshot_format: {form}"
    whole, first, second = (solver_of(text) for _ in range(3))
    whole.step(16)
    first.step(stop)
    second.restore(first.snapshot())
    second.step(16 - stop)
    assert second.current_step == whole.current_step > 0
    assert second._plateau == whole._plateau
    for got, want in zip(
        [*second.net.learnable, *second.history], [*whole.net.learnable, *whole.history], strict=True
    ):
        assert torch.equal(got, want)


def test_rank_0_decides_for_all() -> None:
    """Each rank has a loss of its own; with steps of their own their weights would part."""

    class Led(Ranks):
        def broadcast_int(self, number: int) -> int:
            return 2

    param = parse_solver(f"net_param {{ {TINY_NET} }} {PLATEAU}")
    solver = Solver(param, ranks=Led())
    assert solver.get_learning_rate() == 0.25
    assert solver.current_step == 2


def test_the_states_of_plateau_are_ssds() -> None:
    """The names and numbers that SSD, Intel and NVIDIA share, in both formats; and their defaults."""
    solver = solver_of(PLATEAU)
    solver.step(5)
    message = SolverState.FromString(Path(solver.snapshot()).read_bytes())
    fields = SolverState.DESCRIPTOR.fields_by_name
    assert (fields["minimum_loss"].number, fields["iter_last_event"].number) == (5, 6)
    assert message.minimum_loss == solver._plateau.minimum_loss
    assert message.iter_last_event == solver._plateau.last_event
    solver.param.snapshot_format = SolverParameter.HDF5
    with h5py.File(solver.snapshot()) as file:
        assert file["minimum_loss"][0] == solver._plateau.minimum_loss
        assert file["iter_last_event"][0] == solver._plateau.last_event
    fixed = solver_of(PLATEAU.replace('"plateau"', '"fixed"'))
    state = read_state(fixed.snapshot())
    assert (state.minimum_loss, state.last_event) == (np.float32(1e38), 0)
    assert not SolverState.FromString(Path("s_iter_0.solverstate").read_bytes()).HasField("minimum_loss")


# -- the update ----------------------------------------------------------------------------------------------


class Reference:
    """SGD of NVIDIA's and Intel's forks for blobs with these lr_mult and decay_mult, in double precision."""

    def __init__(self, text: str) -> None:
        self.param = parse_solver(text)
        self.history: list[Array] = []

    def momentum(self, iteration: int, rate: float) -> float:
        p = self.param
        if p.momentum_policy == "poly":
            return p.momentum + (p.max_momentum - p.momentum) * (iteration / p.max_iter) ** p.momentum_power
        if p.momentum_policy == "opt":
            best = (1 - math.sqrt(rate) / 2) ** 2
            return min(best, p.max_momentum) if p.HasField("max_momentum") else best
        return p.momentum

    def decay(self, iteration: int) -> float:
        p = self.param
        if p.weight_decay_policy == "poly":
            span = p.max_weight_decay - p.weight_decay
            return p.weight_decay + span * (iteration / p.max_iter) ** p.weight_decay_power
        return p.weight_decay

    def own_rate(self, w: Array, g: Array, lr_mult: float, rate: float, momentum: float) -> float:
        p, w_norm, g_norm = self.param, math.sqrt((w * w).sum()), math.sqrt((g * g).sum())
        own = lr_mult
        if lr_mult > 0 and p.larc:
            own = (1 - momentum) * p.larc_eta * w_norm / g_norm if w_norm and g_norm else 1
        elif lr_mult > 0 and p.local_lr_auto:
            own = p.local_gw_ratio * w_norm / (g_norm + p.weight_decay * w_norm) if w_norm and g_norm else 1
        return min(rate, own) if p.larc and p.larc_policy == "clip" else rate * own

    def update(
        self, iteration: int, rate: float, weights: list[Array], diffs: list[Array],
        mults: list[tuple[float, float]],
    ) -> list[Array]:  # fmt: skip
        self.history = self.history or [np.zeros_like(w) for w in weights]
        momentum, new = self.momentum(iteration, rate), []
        for i, (w, g, (lr_mult, decay_mult)) in enumerate(zip(weights, diffs, mults, strict=True)):
            own = self.own_rate(w, g, lr_mult, rate, momentum)
            term = np.sign(w) if self.param.regularization_type == "L1" else w
            g = g + self.decay(iteration) * decay_mult * term
            self.history[i] = momentum * self.history[i] + own * g
            new.append(w - self.history[i])
        return new


NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 2 }
                           data_filler { type: "gaussian" } data_filler { type: "gaussian" } } }
layer { name: "a" type: "InnerProduct" bottom: "data" top: "a" param { lr_mult: 1 }
        param { lr_mult: 2 decay_mult: 0 }
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "b" type: "InnerProduct" bottom: "a" top: "b" param { lr_mult: 0.5 decay_mult: 2 }
        inner_product_param { num_output: 2 bias_term: false weight_filler { type: "xavier" } } }
layer { name: "loss" type: "EuclideanLoss" bottom: "b" bottom: "label" top: "loss" }
"""
MULTS = [(1.0, 1.0), (2.0, 0.0), (0.5, 2.0)]
COMMON = 'random_seed: 1 base_lr: 0.25 lr_policy: "step" gamma: 0.5 stepsize: 3 max_iter: 7 '


@pytest.mark.parametrize(
    "decay", ["", "weight_decay: 0.125", 'weight_decay: 0.125 regularization_type: "L1"']
)
@pytest.mark.parametrize(
    "fields",
    [
        'momentum: 0.5 momentum_policy: "poly" max_momentum: 0.75 momentum_power: 2',
        'momentum_policy: "opt"',
        'momentum_policy: "opt" max_momentum: 0.625',
        'momentum: 0.5 weight_decay_policy: "poly" max_weight_decay: 0.5 weight_decay_power: 2',
        "momentum: 0.5 larc: true",
        "momentum: 0.5 larc: true larc_eta: 0.5 iter_size: 2 clip_gradients: 0.5",
        'momentum: 0.5 larc: true larc_eta: 0.5 larc_policy: "clip"',
        'larc: true larc_eta: 0.5 momentum: 0.25 momentum_policy: "poly"',
        "momentum: 0.5 local_lr_auto: true",
        "momentum: 0.5 local_lr_auto: true local_gw_ratio: 0.25",
    ],
)
def test_the_update_follows_the_formulas(fields: str, decay: str) -> None:
    text = COMMON + fields + " " + decay
    solver, reference = solver_of(text, NET), Reference(text)
    limit, size = solver.param.clip_gradients, solver.param.iter_size
    wants: list[list[Array]] = []

    def expect() -> None:
        weights = [w.detach().double().numpy() for w in solver.net.learnable]
        diffs = [parameter_diff(w).double().numpy() for w in solver.net.learnable]
        norm = math.sqrt(sum((g * g).sum() for g in diffs))
        scale = limit / norm / size if 0 <= limit < norm else 1 / size
        diffs = [g * scale for g in diffs]
        wants.append(reference.update(solver.iteration, solver.lr, weights, diffs, MULTS))

    solver.on_gradients_ready.append(expect)
    rtol, atol, _ = tolerance("trajectory")
    for _ in range(7):
        solver.step(1)
        for got, want in zip(
            [*solver.net.learnable, *solver.history], [*wants[-1], *reference.history], strict=True
        ):
            np.testing.assert_allclose(got.detach().numpy(), want, rtol=rtol, atol=atol * np.abs(want).max())


def test_a_blob_without_norm_keeps_the_rate() -> None:
    """The bias of `a` is 0 at first: its rate is then the learning rate, without lr_mult."""
    solver = solver_of(COMMON + "larc: true", NET)
    diff: list[torch.Tensor] = []
    solver.on_gradients_ready.append(lambda: diff.append(parameter_diff(solver.net.learnable[1]).clone()))
    solver.step(1)
    assert torch.equal(solver.net.learnable[1], -0.25 * diff[0])


def test_other_types_have_no_rates_of_blobs() -> None:
    one, other = (solver_of(f'{COMMON} type: "Nesterov" {text}', NET) for text in ("", "larc: true"))
    for solver in (one, other):
        solver.step(2)
    assert all(torch.equal(a, b) for a, b in zip(one.net.learnable, other.net.learnable, strict=True))


def test_a_resumed_run_with_nvidias_fields_is_the_run_that_was_not_stopped() -> None:
    text = COMMON + (
        'momentum: 0.5 momentum_policy: "poly" weight_decay: 0.1 weight_decay_policy: "poly" larc: true '
        'rampup_interval: 2 min_lr: 0.01 snapshot_prefix: "s"'
    )
    whole, first, second = (solver_of(text, NET) for _ in range(3))
    whole.step(7)
    first.step(4)
    second.restore(first.snapshot())
    second.step(3)
    for got, want in zip(second.net.learnable, whole.net.learnable, strict=True):
        assert torch.equal(got, want)


def test_nvidias_line_of_the_rate(caplog: pytest.LogCaptureFixture) -> None:
    text = COMMON + 'display: 3 momentum: 0.5 momentum_policy: "poly" max_momentum: 0.75 weight_decay: 0.25'
    with caplog.at_level(logging.INFO):
        solver_of(text, NET).step(4)
    lines = [line for line in caplog.messages if ", lr = " in line]
    momentum = 0.5 + 0.25 * 3 / 7
    assert lines == [
        "Iteration 0, lr = 0.25, m = 0.5, lrm = 0.5, wd = 0.25, gs = 1",
        f"Iteration 3, lr = 0.125, m = {momentum:.6g}, lrm = {0.125 / (1 - momentum):.6g}, wd = 0.25, gs = 1",
    ]
    log = Path("train.log")
    log.write_text("".join(f"I1130 00:00:00.000000  1 sgd_solver.cpp:112] {line}\n" for line in lines))
    assert [(number.iteration, number.value) for number in read_log(log)] == [(0, 0.25), (3, 0.125)]


# -- what else the forks' solvers have -----------------------------------------------------------------------


def test_test_offset_moves_the_tests(caplog: pytest.LogCaptureFixture) -> None:
    text = 'base_lr: 0.1 lr_policy: "fixed" random_seed: 1 max_iter: 8 snapshot_after_train: false'
    for offset, want in ((0, [0, 3, 6]), (2, [2, 5, 8]), (-1, [2, 5, 8]), (3, [0, 3, 6])):
        caplog.clear()
        with caplog.at_level(logging.INFO):
            solver_of(f"{text} test_iter: 1 test_interval: 3 test_offset: {offset}").solve()
        found = [re.findall(r"Iteration (\d+), Testing net", line) for line in caplog.messages]
        assert [int(number) for numbers in found for number in numbers] == want


def test_disabled_update_leaves_the_weights(caplog: pytest.LogCaptureFixture) -> None:
    text = 'base_lr: 1 lr_policy: "multistep" gamma: 0.5 stepvalue: 2 random_seed: 1 display: 1 momentum: 0.5'
    solver = solver_of(f"{text} disabled_update: true")
    before = [w.detach().clone() for w in solver.net.learnable]
    with caplog.at_level(logging.INFO):
        solver.step(3)
    assert (solver.iteration, solver.current_step) == (3, 1)
    assert all(torch.equal(a, b) for a, b in zip(before, solver.net.learnable, strict=True))
    assert [line for line in caplog.messages if ", lr = " in line] == [
        "Iteration 0, lr = 1", "Iteration 1, lr = 1", "Iteration 2, lr = 0.5",
    ]  # fmt: skip
