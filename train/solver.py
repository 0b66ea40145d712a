"""Solver: trains a net as its SolverParameter describes, in Caffe's order.

One iteration:

    clear the gradients; test, if due
    iter_size times forward and backward, adding up the gradients; display, if due
    where several ranks train together: average their gradients
    rate -> clip the summed gradients -> divide by iter_size -> regularise (decay_mult)
         -> update rule (lr_mult, the rate inside the history) -> subtract
    iteration + 1; snapshot, if due or requested

Caffe: solver.cpp, sgd_solver.cpp.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from imae.files.caffe_log import log_line, number
from imae.files.read import AnyPath
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data_resources import DataResources
from imae.layers.ranks import ALONE, Flags, Ranks
from imae.layers.run import Run
from imae.net.executor import Result
from imae.net.score import check_same_shapes
from imae.net.streams import Streams, draw_on_device
from imae.prototxt import SolverParameter
from imae.prototxt.text import to_text
from imae.train.detection_evaluation import DetectionEvaluation, log_precisions
from imae.train.executors import make_executor, with_debug_info
from imae.train.from_device import Array, host_array
from imae.train.loss_watch import LossWatch
from imae.train.lr_policy import Plateau, advance_step, check_policy, is_warming_up, learning_rate
from imae.train.options import Options
from imae.train.run_position import RunPosition
from imae.train.schedules import momentum_at, weight_decay_at
from imae.train.signals import Action
from imae.train.smoothed_loss import SmoothedLoss
from imae.train.snapshots import Restored, Snapshots, check_writable
from imae.train.solver_check import check_param
from imae.train.solver_nets import build_test_nets, build_train_net
from imae.train.training_log import DataWait, TrainingLog
from imae.train.update import Update
from imae.train.update_rules import update_rule

logger = logging.getLogger(__name__)

f32 = np.float32

# The lines about a new current_step, by lr_policy: their place in Caffe's or SSD's sources, and their words.
STEP_LINES = {"multistep": ("sgd_solver.cpp:50", "MultiStep"), "plateau": ("sgd_solver.cpp:76", "Plateau")}
# With one of these fields, NVIDIA's, the line of the rate has momentum and weight decay, too.
LOGGED_WITH_MOMENTUM = (
    "rampup_interval", "min_lr", "momentum_policy", "weight_decay_policy", "larc",
)  # fmt: skip


class Solver:
    """A train net, its test nets, and the update of the weights.

    param           SolverParameter; `net:` and other paths are relative to the working directory, as in Caffe
    options         settings beside the solver file (options.py)
    random          the run's random numbers; by default a new stream
    ranks           the processes that train this net together (layers/ranks.py)
    data_resources  memory and threads for the data layers of all nets
    dtype           the type of the nets and the update; learning rates and the smoothed loss are float32, as
                    in Caffe

    iteration       updates made so far
    device          where the nets compute
    net, test_nets  in Caffe's order; the test nets use the train net's parameters, and only rank 0 has them
    update          computes new weights from gradients; holds the history (update.py)
    snapshots       writes and restores snapshots (snapshots.py)
    request         called after each iteration and each test batch: returns the action that a signal requests

    To watch a training, append functions to these lists:

    on_start            called before the forward pass of each iteration
    on_gradients_ready  called before the update of each iteration
    on_test             called with a test net's index and the means of its outputs, {} if a signal stopped it
    on_snapshot         called with the path of a solver state that was written

    PrototxtError for invalid fields, FileError where snapshots cannot be written or removed.
    """

    def __init__(
        self,
        param: SolverParameter,
        options: Options = Options(),  # noqa: B008  # frozen
        *,
        random: CaffeRandom | None = None,
        ranks: Ranks = ALONE,
        data_resources: DataResources | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self.param, self.options, self.ranks = param, options, ranks
        self.device = device = torch.device(options.device)
        rule = update_rule(param)  # an unknown type is refused before anything is logged
        text = f"Initializing solver from parameters: \n{to_text(param)}".rstrip("\n")
        log_line("solver.cpp:45", text, lines=True)
        first = ranks.rank == 0
        check_param(param, device.type, writes=first, removes=first and options.keep > 0)
        self.iteration = self.current_step = 0
        self.request: Callable[[], Action] = lambda: Action.NONE
        self.on_start: list[Callable[[], object]] = []
        self.on_gradients_ready: list[Callable[[], object]] = []
        self.on_test: list[Callable[[int, dict[str, Array]], object]] = []
        self.on_snapshot: list[Callable[[str], object]] = []
        self._stopped = self._keep_loss = False
        self._before_tests: dict[str, Any] | None = None
        self.random = self._seeded(random)
        self.net = build_train_net(param, Run(self.random, ranks, data_resources, dtype), options.dialect)
        run = make_executor(self.net, options, param.iter_size)
        self.test_nets = build_test_nets(param, self.net, options.dialect) if first else []
        nets = [self.net, *self.test_nets]
        runs = [run, *(make_executor(net, options, param.iter_size) for net in self.test_nets)]
        masks = options.gpu_dropout == "device" and draw_on_device(self.net, device, self.random.seed)
        streams = Streams(self.random, nets, device, masks)
        self._loss_watch = LossWatch(self.net, streams, param.iter_size, options.on_nan)
        self._run, *self._run_test = with_debug_info(runs, nets, param.debug_info, device)
        self.update = Update(param, rule, self.net, device, options.recorder, options.fast)
        self._loss, self._plateau = SmoothedLoss(param.average_loss), Plateau()
        self._position = RunPosition(streams, self._loss, dtype, ranks)
        self.snapshots = Snapshots(
            param, options, ranks, self.net, self.update, self._position, self._plateau
        )
        self._log = TrainingLog(param, device)
        self._log.line("solver.cpp:57", "Solver scaffolding done.")

    def _seeded(self, random: CaffeRandom | None) -> CaffeRandom:
        """The random numbers of the run for this rank."""
        seeded = random if random is not None else CaffeRandom(None)
        if self.param.random_seed >= 0:
            seeded.reseed(self.param.random_seed + self.ranks.rank)
        elif random is None:
            seeded.reseed(self.ranks.broadcast_int(seeded.seed) + self.ranks.rank)
            logger.info("random_seed was not specified; this run's seed is %d", seeded.seed)
        return seeded

    # -- the solver's state ---------------------------------------------------------------------------------

    @property
    def history(self) -> list[Tensor]:
        """The history blobs, in Caffe's order (update.py)."""
        return self.update.history

    @property
    def smoothed_loss(self) -> float:
        """The loss that the log shows, a mean over average_loss iterations; waits for the device."""
        return float(self._loss.read())

    @property
    def last_read_loss(self) -> float | None:
        """The smoothed loss when it was last read, for a display; None before. Waits for nothing."""
        return self._loss.last_read

    @property
    def stopped(self) -> bool:
        """Whether a signal has stopped the training before max_iter."""
        return self._stopped

    @property
    def last_good(self) -> str:
        """The last solver state, written or restored, after which a finite loss was shown; or ""."""
        return self.snapshots.marks.last_good

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        step = self._next_step(replace(self._plateau))
        return learning_rate(self.param, self.iteration, step)

    def _next_step(self, plateau: Plateau) -> int:
        """current_step of the next update; `plateau` is moved on to it."""
        if self.param.lr_policy != "plateau":
            return advance_step(self.param, self.iteration, self.current_step)
        return plateau.advance(self.param, self.iteration, self.current_step, self._loss.read())

    def get_learning_rate(self) -> float:
        """The rate of the next update; current_step is advanced to that update's step.

        Caffe: GetLearningRate. It runs once in each update and, in pycaffe, whenever a script reads
        `solver.lr`. Where several stepvalues are due at once, each call advances by one of them. The property
        `lr` here advances nothing.
        """
        step = self._next_step(self._plateau)
        if self.param.lr_policy == "plateau":  # each rank has a loss of its own
            step = self.ranks.broadcast_int(step)
        if step != self.current_step and self.param.lr_policy in STEP_LINES:
            place, words = STEP_LINES[self.param.lr_policy]
            self._log.line(place, f"{words} Status: Iteration {self.iteration}, step = {step}")
        self.current_step = step
        self._log_minimum()
        return learning_rate(self.param, self.iteration, step)

    def _log_minimum(self) -> None:
        """With lr_policy "plateau": log a minimum or a step since the last display."""
        param, plateau = self.param, self._plateau
        if param.lr_policy != "plateau" or is_warming_up(param, self.iteration):
            return
        if self._due(param.display) and plateau.last_event > self.iteration - param.display:
            self._log.line(
                "sgd_solver.cpp:83",
                f"Plateau Status: Iteration {self.iteration}, current minimum_loss = "
                f"{number(plateau.minimum_loss)}",
            )

    # -- training -------------------------------------------------------------------------------------------

    def solve(self, resume_file: str | None = None) -> None:
        """Train up to max_iter, then snapshot, log the loss and test, as Caffe does at the end."""
        param, log = self.param, self._log
        wait = DataWait([self.net, *self.test_nets])
        log.line("solver.cpp:289", f"Solving {self.net.name}")
        log.line("solver.cpp:290", f"Learning Rate Policy: {param.lr_policy}")
        self._stopped = False
        if param.snapshot_after_train and self.ranks.rank == 0:
            check_writable(param.snapshot_prefix)  # now rather than after days of training
        if resume_file is not None:
            log.line("solver.cpp:296", f"Restoring previous solver status from {resume_file}")
            self.restore(resume_file)
        self.ranks.broadcast([p.detach() for p in self.net.learnable])
        self.step(param.max_iter - self.iteration)
        due = not param.snapshot or self.iteration % param.snapshot
        if param.snapshot_after_train and due and not self.snapshots.is_current(self.iteration):
            self.snapshot()
        if self._stopped:
            wait.log()
            log.line("solver.cpp:311", "Optimization stopped early.")
            return
        if self._due(param.display) and self.ranks.rank == 0:
            self._loss_watch.before_display()
            loss, _ = self._run.forward()
            self._loss.add(loss)
            self.net.check_labels()
            log.line("solver.cpp:327", f"Iteration {self.iteration}, loss = {number(self._loss.read())}")
            self._watch_loss()
        if self._test_due():
            self.test_all()
        wait.log()
        log.line("solver.cpp:332", "Optimization Done.")

    def step(self, iterations: int) -> None:
        """Run `iterations` iterations, or fewer if a signal stops the training."""
        param = self.param
        if iterations > 0:
            check_policy(param)  # before the first pass rather than after it
        if not self._keep_loss:
            self._loss.clear()
        self._keep_loss, self._before_tests = False, None
        self._log.start_lap(self.iteration)
        stop = self.iteration + iterations
        while self.iteration < stop:
            self.update.clear_diffs()
            if self._test_due() and (self.iteration > 0 or param.test_initialization):
                self.test_all()
                if self._stopped:
                    break
            for callback in self.on_start:
                callback()
            display = self._due(param.display)
            self.net.debug_info = display and param.debug_info
            if display:
                self._loss_watch.before_display()
            loss, outputs = self._forward_backward()
            if param.display or param.lr_policy == "plateau":
                self._loss.add(loss)
            if display:
                self.net.check_labels()
                self._log.display(self.iteration, self._loss.read(), self.net, outputs)
                self._watch_loss()
            for callback in self.on_gradients_ready:
                callback()
            self.ranks.average(self.update.diffs(), self._requested)
            if param.disabled_update:
                self._log_rate()
                self.iteration += 1
            else:
                self.apply_update()
            to_snapshot, to_stop = self.ranks.any_rank(self._requested)
            if self._due(param.snapshot) or to_snapshot:
                self.snapshot()
            if to_stop:
                self._stopped = True
                break
        self._log.flush()

    def _requested(self) -> Flags:
        """Whether a signal requests a snapshot, and whether one requests to stop."""
        action = self.request()
        return action is Action.SNAPSHOT, action is Action.STOP

    def _due(self, interval: int) -> bool:
        return interval != 0 and self.iteration % interval == 0

    def _test_due(self) -> bool:
        """Whether a test is due; test_offset (Intel) moves the iterations of tests."""
        param = self.param
        return param.test_interval != 0 and (self.iteration - param.test_offset) % param.test_interval == 0

    def _forward_backward(self) -> Result:
        """Run iter_size passes; returns the mean loss, and the outputs of the last pass."""
        loss, outputs = self._run.forward_backward()
        for _ in range(self.param.iter_size - 1):
            pass_loss, outputs = self._run.forward_backward()
            loss = loss + pass_loss
        return loss / self.param.iter_size, outputs

    def _watch_loss(self) -> None:
        """NotFiniteError for a displayed loss that is not finite, if `on_nan` is "stop"."""
        if self._loss_watch.is_finite(self._loss.read(), self.iteration, self.last_good):
            self.snapshots.finite_loss(self.iteration)

    @torch.no_grad()
    def apply_update(self) -> None:
        """Update weights and history from the current gradients; increment `iteration`."""
        rate = self._log_rate()
        self._log.clipped(self.update(rate, self.iteration))
        self.iteration += 1

    def _log_rate(self) -> float:
        """The rate of the next update; logged, where a display is due."""
        rate = self.get_learning_rate()
        if self._due(self.param.display):
            line = f"Iteration {self.iteration}, lr = {number(rate)}"
            self._log.line("sgd_solver.cpp:112", line + self._schedules(rate))
        return rate

    def _schedules(self, rate: float) -> str:
        """The end of the line of the rate where the solver has fields of NVIDIA's fork, as that has it."""
        param = self.param
        if not any(param.HasField(name) for name in LOGGED_WITH_MOMENTUM):
            return ""
        momentum = f32(momentum_at(param, self.iteration, rate))
        decay = weight_decay_at(param, self.iteration)
        with np.errstate(all="ignore"):  # a momentum of 1
            scaled = f32(rate) / (f32(1) - momentum)
        return f", m = {number(momentum)}, lrm = {number(scaled)}, wd = {number(decay)}, gs = 1"

    # -- testing --------------------------------------------------------------------------------------------

    def test_all(self) -> None:
        """Test every test net, unless a signal stops it.

        Ranks other than 0 have no test nets. They snapshot and stop when a signal to rank 0 requests it.
        """
        self._before_tests = self._position.get_state()
        for index in range(len(self.test_nets)):
            if not self._stopped:
                self.test(index)
        own = Action.STOP if self._stopped else Action.NONE
        while (action := Action(self.ranks.broadcast_str(own.value))) is Action.SNAPSHOT:
            self.snapshot()
        self._stopped = action is Action.STOP
        if not self._stopped:
            self._before_tests = None

    def test(self, index: int) -> dict[str, Array]:
        """Run test_iter batches of a test net; returns the means of its outputs, {} if a signal stops it.

        With eval_type "detection" the mean is that of the average precisions (detection_evaluation.py).
        """
        net, log = self.test_nets[index], self._log
        log.line("solver.cpp:347", f"Iteration {self.iteration}, Testing net (#{index})")
        names = set(net.layer_names)
        for name in self.net.layer_names:
            if name not in names:
                log.line("net.cpp:678", f"Ignoring source layer {name}")
        found = DetectionEvaluation() if self.param.eval_type == "detection" else None
        means = self._test_means(index, found)
        if means is None:
            log.line("solver.cpp:396", "Test interrupted.")
            means = {}
        elif found is not None:
            means = log_precisions(log.line, found, self.param.ap_version, self.param.show_per_class_result)
        else:
            log.outputs("solver.cpp:414", "Test", net, means)
            self._loss_watch.warn_of_test(means)
        for callback in self.on_test:
            callback(index, means)
        return means

    def _test_means(self, index: int, found: DetectionEvaluation | None) -> dict[str, Array] | None:
        """Run the batches of a test; returns the means of its outputs, None if a signal stopped it.

        found   collects the outputs instead
        """
        param, run = self.param, self._run_test[index]
        total: Tensor | float = 0.0
        sums: dict[str, Tensor] = {}
        for _ in range(param.test_iter[index]):
            self._act_on_requests()
            if self._stopped:
                return None
            loss, outputs = run.forward()
            total = total + loss
            if found is not None:
                found.add({name: host_array(blob) for name, blob in outputs.items()})
                continue
            check_same_shapes(sums, outputs)
            sums = {name: sums[name] + blob if name in sums else blob for name, blob in outputs.items()}
        self.test_nets[index].check_labels()
        batches = f32(param.test_iter[index])
        with np.errstate(all="ignore"):  # NaN and infinity are logged
            if param.test_compute_loss:
                mean_loss = f32(float(total)) / batches
                self._log.line("solver.cpp:401", f"Test loss: {number(mean_loss)}")
            return {name: host_array(blob) / batches for name, blob in sums.items()}

    def _act_on_requests(self) -> None:
        """During a test: snapshot, or note that the training must stop, as signals request."""
        while (action := self.request()) is not Action.NONE:
            if action is Action.SNAPSHOT:
                self.ranks.broadcast_str(action.value)
                self.snapshot()
            else:
                self._stopped = True

    # -- snapshots ------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """Write the model, then the solver state; remove snapshots beyond `keep`; returns the state's path.

        All ranks call this; rank 0 writes the states of all.
        """
        self._log.flush()
        # A snapshot during a test, or after a stopped test, holds the state before it: the test runs again.
        run = self._before_tests or self._position.get_state()
        path = self.snapshots.save(self.iteration, self.current_step, run)
        for callback in self.on_snapshot:
            callback(path)
        return path

    def restore(self, path: AnyPath, *, as_caffe: bool = False, dialect: str | None = None) -> None:
        """Continue from a solver state; SnapshotError if it or its model is missing, damaged or foreign.

        as_caffe   start the data at the first record and the random numbers at the seed, as Caffe does, even
                   where the state holds the run's position
        dialect    the fork that wrote the state and its model; None: Caffe, or this program
        """
        self._log.flush()
        self._continue_from(self.snapshots.restore(os.fspath(path), as_caffe=as_caffe, dialect=dialect))

    def restore_newest(self, *, as_caffe: bool = False) -> str:
        """Continue from the newest whole snapshot under snapshot_prefix; returns its state's path, or "".

        Snapshots that are damaged, incomplete, of another net, or with weights that are not finite are
        skipped, with a warning. SnapshotError where a whole one cannot be continued: the data have changed. A
        snapshot of an earlier version may be damaged in this case; it is skipped, too, if there is another.
        """
        self._log.flush()
        restored = self.snapshots.restore_newest(as_caffe=as_caffe)
        if restored is None:
            return ""
        self._continue_from(restored)
        return restored.path

    def _continue_from(self, restored: Restored) -> None:
        self.iteration, self.current_step = restored.iteration, restored.current_step
        self._keep_loss = self._keep_loss or restored.exact
        self._log.end_lap()
