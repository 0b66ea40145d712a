"""Solver: trains a net as a SolverParameter says, in Caffe's order.

One iteration:

    clear the gradients; test, if due
    iter_size times forward and backward, gradients adding up; display, if due
    where several ranks train together: the mean of their gradients
    rate -> clip the summed gradients -> divide by iter_size -> regularise (decay_mult)
         -> update rule (lr_mult, the rate inside the history) -> subtract
    iteration + 1; snapshot, if due or asked for

Caffe: solver.cpp, sgd_solver.cpp.
"""

from __future__ import annotations

import logging
import math
import os
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from imae.files.caffe_log import log_line, number, output_text
from imae.files.errors import (
    CaffemodelError,
    FileError,
    NotFiniteError,
    PrototxtError,
    SnapshotError,
)
from imae.layers.blob import shape_string
from imae.layers.caffe_random import CaffeRandom
from imae.layers.common.dropout import Dropout
from imae.layers.data.data_resources import DataResources
from imae.layers.ranks import ALONE
from imae.layers.run import Run
from imae.layers.utility.synced_memory import parameter_diff
from imae.layers.vision.pooling import PoolingMethod
from imae.net.cuda_graph import GraphExecutor, Recorded, Recorder
from imae.net.executor import Executor, NetExecutor, Result, StepwiseExecutor
from imae.net.net import Net
from imae.net.not_finite import Tracer, all_finite
from imae.net.stepwise import Stepwise
from imae.net.streams import Streams
from imae.net.weights import load_caffemodel, save_caffemodel
from imae.prototxt import SolverParameter
from imae.prototxt.text import to_text
from imae.train.lr_policy import advance_step, learning_rate
from imae.train.ranks import Group
from imae.train.signals import Action
from imae.train.smoothed_loss import SmoothedLoss
from imae.train.snapshot import (
    State,
    check_removable,
    file_checksum,
    find_snapshots,
    pack,
    read_state,
    remove_older,
    unpack,
    write_state,
)
from imae.train.solver_nets import build_test_nets, build_train_net
from imae.train.unused_fields import warn_of_unused_fields
from imae.train.update_rules import update_rule

logger = logging.getLogger(__name__)

Array = NDArray[np.floating[Any]]
f32 = np.float32
MAX_PENDING = 1000  # numbers for the log that may wait on the device
# Fields of which NaN or infinity would make NaN of the weights.
FINITE = ("base_lr", "delta", "gamma", "momentum", "momentum2", "power", "rms_decay", "weight_decay")


@dataclass
class _Group:
    """Learnable parameters with one lr_mult and one decay_mult, by their places in `net.learnable`.

    rate   learning rate * lr_mult, on the device
    """

    places: list[int]
    lr_mult: float
    decay_mult: float
    rate: Tensor


class Solver:
    """A train net, its test nets, and the update of the weights.

    param           SolverParameter; `net:` and the like are relative to the working directory, as in Caffe
    device          where the nets compute
    random          the run's random numbers; by default a stream of its own
    executor        makes the object that runs a net (see executor.py)
    fast            for the default executor
    on_nan          "stop": a train loss that is NaN or infinite is a NotFiniteError at the next display.
                    "continue": it is shown and that is all, as in Caffe
    keep            how many snapshots stay, the newest ones, once they are whole; besides them the last good
                    one (before there is one, that from which this run goes on), and the last one whose
                    weights are finite. 0: all stay
    gpu_dropout     "device": a GPU draws dropout masks, and the pixels of stochastic pooling, itself.
                    "caffe": they come from `random`, as Caffe's on the CPU, which takes longer
    reduced         what convolutions and matrix products compute in, for the default executor (executor.py)
    compiled, last  as for the default executor (executor.py)
    recorder        makes what records passes and updates to replay them (cuda_graph.py); for the default
                    executor. None: each is launched anew
    dtype           of all that the nets and the update compute with; learning rates and the smoothed loss are
                    float32 as Caffe's
    dialect         the fork that the files of nets and weights are of; None: Caffe's own
    ranks           the processes that train this net together; None: this one alone (see ranks.py)
    data_resources  memory and threads for the data layers of all nets

    iteration       updates made so far
    net, test_nets  in Caffe's order; the test nets use the train net's parameters, and rank 0 alone has them
    history         history blobs in Caffe's order: one per learnable parameter, then a second one where the
                    rule has two
    last_good       the last solver state, written or restored, after which a finite loss was shown; or ""
    request         asked after each iteration and each test batch: what a signal wants
    on_start, on_gradients_ready    called before the forward pass and before the update of each iteration

    PrototxtError for fields that make no sense, FileError where snapshots could not be written or removed.
    """

    def __init__(
        self,
        param: SolverParameter,
        *,
        device: str | torch.device = "cpu",
        random: CaffeRandom | None = None,
        executor: Callable[[Net], Executor] | None = None,
        fast: bool = True,
        on_nan: Literal["stop", "continue"] = "continue",
        keep: int = 0,
        gpu_dropout: Literal["caffe", "device"] = "device",
        reduced: torch.dtype | None = None,
        compiled: bool = False,
        last: bool | None = None,
        recorder: Callable[[], Recorder] | None = None,
        dtype: torch.dtype = torch.float32,
        dialect: str | None = None,
        ranks: Group | None = None,
        data_resources: DataResources | None = None,
    ) -> None:
        self.param, self.ranks = param, ranks
        self._rank = ranks.rank if ranks is not None else 0
        self.device, self.dtype = torch.device(device), dtype
        self.on_nan, self.keep = on_nan, keep
        self.last_good = self._last_finite = ""
        self._spared = ""  # the last good solver state, or else the one from which this run goes on
        self._exact_from = ""  # the solver state with which this run goes on exactly
        self.rule = update_rule(param)
        self.iteration = self.current_step = 0
        self.request: Callable[[], Action] = lambda: Action.NONE
        self.on_start: list[Callable[[], object]] = []
        self.on_gradients_ready: list[Callable[[], object]] = []
        self._stopped = self._keep_loss = self._said_test_not_finite = False
        self._lap: tuple[float, int] | None = None
        self._norms: list[Tensor] = []
        self._before_tests: dict[str, Any] | None = None
        text = f"Initializing solver from parameters: \n{to_text(param)}".rstrip("\n")
        log_line("solver.cpp:45", text, lines=True)
        self._check_param()
        self.random = random if random is not None else CaffeRandom(None)
        if param.random_seed >= 0:
            self.random.reseed(param.random_seed + self._rank)
        elif random is None:
            if ranks is not None:
                self.random.reseed(ranks.of_first(self.random.seed) + self._rank)
            logger.info("random_seed was not specified; this run's seed is %d", self.random.seed)
        make = executor or self._executor_maker(fast, recorder, reduced=reduced, compiled=compiled, last=last)
        run = Run(self.random, ranks or ALONE, data_resources, dtype)
        self.net = build_train_net(param, run, dialect)
        self._run = make(self.net)
        self.test_nets = [] if self._rank else build_test_nets(param, self.net, dialect)
        self._run_test = [make(net) for net in self.test_nets]
        masks = gpu_dropout == "device" and self._let_device_draw_masks()
        self._streams = Streams(self.random, [self.net, *self.test_nets], self.device, masks)
        self._tracer = Tracer(self.net, self._streams, param.iter_size) if on_nan == "stop" else None
        self._prepare_debug_info()
        self.history = [
            torch.zeros_like(p.detach()) for _ in range(self.rule.histories) for p in self.net.learnable
        ]
        self._groups = self._group_parameters()
        self._update = (
            self._update_weights if recorder is None else Recorded(self._update_weights, recorder())
        )
        self._loss = SmoothedLoss(param.average_loss)
        self._say("solver.cpp:57", "Solver scaffolding done.")

    def _executor_maker(
        self, fast: bool, recorder: Callable[[], Recorder] | None, **options: Any
    ) -> Callable[[Net], Executor]:
        def make(net: Net) -> Executor:
            if recorder is None:
                return NetExecutor(net, self.device, fast, **options)
            return GraphExecutor(net, self.device, recorder, replaces=self.param.iter_size == 1, **options)

        return make

    def _check_param(self) -> None:
        param = self.param
        for name in ("display", "max_iter", "snapshot", "test_interval"):
            if (value := getattr(param, name)) < 0:
                raise PrototxtError(f"{name} must be at least 0, got {value}")
        if param.test_iter and min(param.test_iter) < 0:
            raise PrototxtError(f"test_iter must be at least 0, got {min(param.test_iter)}")
        for name in FINITE:
            if not math.isfinite(value := getattr(param, name)):
                raise PrototxtError(f"{name} must be a finite number, got {value}")
        if math.isnan(param.clip_gradients):
            raise PrototxtError("clip_gradients must be the largest L2 norm, or below 0 (off); got nan")
        if param.average_loss < 1:
            raise PrototxtError(
                f"average_loss should be non-negative: it must be at least 1, got {param.average_loss}"
            )
        if param.iter_size < 1:
            raise PrototxtError(f"iter_size must be at least 1, got {param.iter_size}")
        if param.regularization_type not in ("L1", "L2"):
            raise PrototxtError(
                f"Unknown regularization type: {param.regularization_type} (known types: L1, L2)"
            )
        if "\0" in param.snapshot_prefix:
            raise PrototxtError(f"there is a zero byte in snapshot_prefix '{param.snapshot_prefix}'")
        if param.snapshot:
            if not param.HasField("snapshot_prefix"):
                raise PrototxtError("In solver params, snapshot is specified but snapshot_prefix is not")
            self._check_prefix()
        if self.keep and self._rank == 0:
            check_removable(param.snapshot_prefix)
        warn_of_unused_fields(param, self.device.type)

    def _let_device_draw_masks(self) -> bool:
        """Let a GPU draw dropout masks and the like, from its own stream, which begins at the run's seed."""
        drawing = [
            layer
            for layer in self.net.layers
            if isinstance(layer, Dropout) or (isinstance(layer, PoolingMethod) and layer.draws)
        ]
        if self.device.type == "cpu" or not drawing:
            return False
        for layer in drawing:
            layer.device_masks = True
        with torch.cuda.device(self.device):
            torch.cuda.manual_seed(self.random.seed)
        logger.info(
            "The random numbers of %s layers are drawn by the GPU, so they are not those of the CPU; "
            "--gpu-dropout caffe draws those, more slowly",
            " and ".join(sorted({layer.type for layer in drawing})),
        )
        return True

    def _prepare_debug_info(self) -> None:
        """Executors for what `debug_info` is to log. Caffe: the solver's takes the place of the nets' own."""

        def layer_by_layer(run: Executor, net: Net) -> Executor:
            return run if isinstance(run, StepwiseExecutor) else StepwiseExecutor(Stepwise(net, self.device))

        wanted = self.param.debug_info
        if not wanted and any(net.debug_info for net in (self.net, *self.test_nets)):
            logger.warning("debug_info of a net has no effect here: the solver's counts, which is false")
        for net in self.test_nets:
            net.debug_info = wanted
        # The train net's own counts up to the first iteration.
        self._run_debug = layer_by_layer(self._run, self.net) if wanted or self.net.debug_info else self._run
        if wanted:
            self._run_test = list(map(layer_by_layer, self._run_test, self.test_nets))

    def _check_prefix(self) -> None:
        """Raise FileError where snapshots could not be written."""
        if self._rank:
            return
        prefix = self.param.snapshot_prefix
        try:
            with tempfile.TemporaryFile(dir=os.path.dirname(prefix) or "."):
                pass
        except OSError as error:
            raise FileError(
                f"Cannot write to snapshot prefix '{prefix}'.  Make sure that the directory exists and is "
                f"writable. ({error.strerror})"
            ) from None

    def _group_parameters(self) -> list[_Group]:
        places: dict[tuple[float, float], list[int]] = {}
        for place, mults in enumerate(zip(self.net.lr_mults, self.net.decay_mults, strict=True)):
            places.setdefault(mults, []).append(place)
        rate = torch.zeros((), dtype=self.dtype, device=self.device)
        return [_Group(found, *mults, rate.clone()) for mults, found in places.items()]

    # -- training -------------------------------------------------------------------------------------------

    @property
    def lr(self) -> float:
        """The learning rate of the next update."""
        return learning_rate(
            self.param, self.iteration, advance_step(self.param, self.iteration, self.current_step)
        )

    def get_learning_rate(self) -> float:
        """The rate of the next update, and current_step is moved on to it.

        Caffe: GetLearningRate. It runs once in each update and, in pycaffe, whenever a script reads
        `solver.lr`. Where several stepvalues are due at once each run moves on by one of them; `lr` moves
        nothing.
        """
        step = advance_step(self.param, self.iteration, self.current_step)
        if self.param.lr_policy == "multistep" and step != self.current_step:
            self._say("sgd_solver.cpp:50", f"MultiStep Status: Iteration {self.iteration}, step = {step}")
        self.current_step = step
        return learning_rate(self.param, self.iteration, step)

    def solve(self, resume_file: str | None = None) -> None:
        """Train up to max_iter, with the snapshot, the line and the test that Caffe puts at the end."""
        param = self.param
        begun, waited = time.monotonic(), self._waited()
        self._say("solver.cpp:289", f"Solving {self.net.name}")
        self._say("solver.cpp:290", f"Learning Rate Policy: {param.lr_policy}")
        self._stopped = False
        if param.snapshot_after_train:
            self._check_prefix()  # rather now than after days of training
        if resume_file is not None:
            self._say("solver.cpp:296", f"Restoring previous solver status from {resume_file}")
            self.restore(resume_file)
        if self.ranks is not None:
            self.ranks.broadcast([p.detach() for p in self.net.learnable])
        self.step(param.max_iter - self.iteration)
        due = not param.snapshot or self.iteration % param.snapshot
        if param.snapshot_after_train and due and not self._is_just_resumed():
            self.snapshot()
        if self._stopped:
            self._say_waited(begun, waited)
            self._say("solver.cpp:311", "Optimization stopped early.")
            return
        if self._due(param.display) and self._rank == 0:
            self._before_display()
            loss, _ = (self._run_debug if self.net.debug_info else self._run).forward()
            self._loss.add(loss)
            self.net.check_labels()
            self._say("solver.cpp:327", f"Iteration {self.iteration}, loss = {number(self._loss.read())}")
            self._watch()
        if self._due(param.test_interval):
            self.test_all()
        self._say_waited(begun, waited)
        self._say("solver.cpp:332", "Optimization Done.")

    def step(self, iterations: int) -> None:
        """Make so many updates, or fewer if a signal stops the training."""
        param = self.param
        if iterations > 0:
            _ = self.lr  # an unknown policy is refused before the first pass rather than after it
        if not self._keep_loss:
            self._loss.clear()
        self._keep_loss, self._before_tests = False, None
        if self._lap is None:
            self._lap = time.monotonic(), self.iteration
        stop = self.iteration + iterations
        while self.iteration < stop:
            self._clear_diffs()
            if self._due(param.test_interval) and (self.iteration > 0 or param.test_initialization):
                self.test_all()
                if self._stopped:
                    break
            for callback in self.on_start:
                callback()
            display = self._due(param.display)
            self.net.debug_info = display and param.debug_info
            if display:
                self._before_display()
            loss, outputs = self._forward_backward()
            if param.display:
                self._loss.add(loss)
            if display:
                self._display(outputs)
                self._watch()
            for callback in self.on_gradients_ready:
                callback()
            if self.ranks is not None:
                diffs = [parameter_diff(p) for p in self.net.learnable]
                wanted = self.ranks.average(diffs, self.request())
            self.apply_update()
            if self.ranks is None:
                wanted = {self.request()}
            if self._due(param.snapshot) or Action.SNAPSHOT in wanted:
                self.snapshot()
            if Action.STOP in wanted:
                self._stopped = True
                break
        self._say_clipped()

    def _said(self, text: str) -> str:
        """What rank 0 says; all ranks must ask."""
        return text if self.ranks is None else self.ranks.said(text)

    def _due(self, interval: int) -> bool:
        return interval != 0 and self.iteration % interval == 0

    def _clear_diffs(self) -> None:
        if self.net.learnable:
            torch._foreach_zero_([parameter_diff(p) for p in self.net.learnable])

    def _forward_backward(self) -> Result:
        """iter_size passes; the mean loss, and the outputs of the last pass."""
        run = self._run_debug if self.net.debug_info else self._run
        loss, outputs = run.forward_backward()
        for _ in range(self.param.iter_size - 1):
            further, outputs = run.forward_backward()
            loss = loss + further
        return loss / self.param.iter_size, outputs

    def _before_display(self) -> None:
        if self._tracer is not None:
            self._tracer.remember()

    def _display(self, outputs: dict[str, Tensor]) -> None:
        self.net.check_labels()
        loss = self._loss.read()
        assert self._lap is not None
        begun, first = self._lap
        lapse = f32(int((time.monotonic() - begun) * 1000) / 1000)  # Caffe: cut to milliseconds
        speed = f32(self.iteration - first) / (lapse or f32(1))
        self._say(
            "solver.cpp:239",
            f"Iteration {self.iteration} ({number(speed)} iter/s, {number(lapse)}s/{self.param.display} "
            f"iters), loss = {number(loss)}",
        )
        self._lap = time.monotonic(), self.iteration
        self._say_outputs(
            "solver.cpp:258", "Train", self.net, {n: _array(blob) for n, blob in outputs.items()}
        )

    def _watch(self) -> None:
        """NotFiniteError for a shown loss that is not finite, if that is asked for."""
        loss = self._loss.read()
        if np.isfinite(loss):
            if self.last_good != self._last_finite:
                self.last_good = self._spared = self._last_finite
                self._remove_older()
        elif self._tracer is not None:
            raise NotFiniteError(
                f"Iteration {self.iteration}: the loss is {number(loss)}; {self._tracer.culprit()}; last "
                f"good snapshot: {self.last_good or 'none'}; lower base_lr or mend the data, or give "
                f"--on-nan continue"
            )

    @torch.no_grad()
    def apply_update(self) -> None:
        """Update the weights from the gradients as they stand, and the history; count the iteration."""
        rate = self.get_learning_rate()
        if self._due(self.param.display):
            self._say("sgd_solver.cpp:112", f"Iteration {self.iteration}, lr = {number(rate)}")
        for group in self._groups:
            group.rate.fill_(self.rule.corrected(rate, self.iteration) * group.lr_mult)
        if self._groups:
            self._note_norm(self._update())
        self.iteration += 1

    @torch.no_grad()
    def _update_weights(self) -> Tensor | None:
        """From the summed gradients to the new weights; work of the device alone.

        The L2 norm of the gradients, where it is limited.
        """
        param, learnable = self.param, self.net.learnable
        diffs = [parameter_diff(p) for p in learnable]
        datas = [p.detach() for p in learnable]
        norm = self._clip(diffs)
        if param.iter_size != 1:
            torch._foreach_mul_(diffs, 1 / param.iter_size)
        for group in self._groups:
            weights = [datas[place] for place in group.places]
            group_diffs = [diffs[place] for place in group.places]
            decay = param.weight_decay * group.decay_mult
            if decay:
                l2 = param.regularization_type == "L2"
                torch._foreach_add_(group_diffs, weights if l2 else torch._foreach_sign(weights), alpha=decay)
            starts = range(0, len(self.history), len(learnable))
            histories = [[self.history[start + place] for place in group.places] for start in starts]
            self.rule.update(group_diffs, histories, group.rate)
            torch._foreach_sub_(weights, group_diffs)
        return norm

    def _clip(self, diffs: list[Tensor]) -> Tensor | None:
        """Scale all diffs down together so that their L2 norm is at most clip_gradients; what it was."""
        limit = self.param.clip_gradients
        if limit < 0:
            return None
        norm: Tensor = torch.stack(torch._foreach_norm(diffs)).norm()
        torch._foreach_mul_(diffs, torch.where(norm > limit, limit / norm, 1.0))
        return norm

    def _note_norm(self, norm: Tensor | None) -> None:
        """Keep a norm for the log. On a device it stays there until the next line, so that nothing waits."""
        if norm is None:
            return
        self._norms.append(norm.clone())  # a replay writes to the same memory again
        if self.device.type == "cpu" or len(self._norms) == MAX_PENDING:
            self._say_clipped()

    # -- testing --------------------------------------------------------------------------------------------

    def test_all(self) -> None:
        """Test every test net, unless a signal stops it; ranks other than 0 do what that one hears then."""
        self._before_tests = self._run_state()
        for index in range(len(self.test_nets)):
            if not self._stopped:
                self.test(index)
        mine = Action.STOP if self._stopped else Action.NONE
        while (wanted := Action(self._said(mine.value))) is Action.SNAPSHOT:
            self.snapshot()
        self._stopped = wanted is Action.STOP
        if not self._stopped:
            self._before_tests = None

    def test(self, index: int) -> dict[str, Array]:
        """Run test_iter batches through a test net; the means of its outputs ({} if a signal stopped it)."""
        param, net, run = self.param, self.test_nets[index], self._run_test[index]
        self._say("solver.cpp:347", f"Iteration {self.iteration}, Testing net (#{index})")
        names = set(net.layer_names)
        for name in self.net.layer_names:
            if name not in names:
                self._say("net.cpp:678", f"Ignoring source layer {name}")
        total: Tensor | float = 0.0
        sums: dict[str, Tensor] = {}
        for _ in range(param.test_iter[index]):
            while (wanted := self.request()) is not Action.NONE:
                if wanted is Action.SNAPSHOT:
                    self._said(wanted.value)
                    self.snapshot()
                else:
                    self._stopped = True
            if self._stopped:
                self._say("solver.cpp:396", "Test interrupted.")
                return {}
            loss, outputs = run.forward()
            total = total + loss
            sums = {name: sums[name] + blob if name in sums else blob for name, blob in outputs.items()}
        net.check_labels()
        batches = f32(param.test_iter[index])
        with np.errstate(all="ignore"):  # NaN and infinity are to be shown
            if param.test_compute_loss:
                self._say("solver.cpp:401", f"Test loss: {number(f32(float(total)) / batches)}")
            means = {name: _array(blob) / batches for name, blob in sums.items()}
        self._say_outputs("solver.cpp:414", "Test", net, means)
        self._warn_of_test(means)
        return means

    def _warn_of_test(self, means: dict[str, Array]) -> None:
        """Say once where a test is not finite. It need not be the training's fault."""
        broken = [name for name, mean in means.items() if not np.isfinite(mean).all()]
        if broken and self.on_nan == "stop" and not self._said_test_not_finite:
            self._said_test_not_finite = True
            logger.warning(
                "Test net output %s is not finite. That alone does not stop the training: a BatchNorm that "
                "has no statistics yet can do it",
                ", ".join(broken),
            )

    # -- snapshots ------------------------------------------------------------------------------------------

    def snapshot(self) -> str:
        """Write the model, then the solver state, remove what `keep` has too many; the path of the state.

        Rank 0 does it, with the states of all ranks, which all call this.
        """
        hdf5 = self.param.snapshot_format == SolverParameter.HDF5
        kind = "HDF5 file" if hdf5 else "binary proto file"
        model, path = self._snapshot_paths()
        # A test that a signal broke off, or looked into, is made again from its beginning.
        run = self._before_tests or self._run_state()
        finite = all_finite([*(p.detach() for p in self.net.learnable), *self.history])
        if self.ranks is not None:
            run = {**run, "ranks": [unpack(data, path) for data in self.ranks.gather(pack(run))[1:]]}
        if self._rank:
            self._last_finite = path if finite else self._last_finite
            return path
        self._say("solver.cpp:474" if hdf5 else "solver.cpp:464", f"Snapshotting to {kind} {model}")
        # Not of the file read again: another program may have removed or replaced it.
        checksum = save_caffemodel(self.net, model, hdf5=hdf5, diff=self.param.snapshot_diff)
        place = "sgd_solver.cpp:296" if hdf5 else "sgd_solver.cpp:284"
        self._say(place, f"Snapshotting solver state to {kind} {path}")
        history = [_array(blob) for blob in self.history]
        run = {**run, "model": checksum, "finite": finite}
        write_state(State(self.iteration, model, self.current_step, history, run), path)
        if finite:
            self._last_finite = path
        self._remove_older()
        return path

    def _remove_older(self) -> None:
        """Remove what `keep` has too many; a run that goes bad leaves what it can be resumed from."""
        if self.keep and self._rank == 0:
            spared = (self._spared, self._last_finite)
            remove_older(self.param.snapshot_prefix, self.iteration, self.keep, spared)

    def _snapshot_paths(self) -> tuple[str, str]:
        """The model and the solver state of this iteration's snapshot."""
        stem = f"{self.param.snapshot_prefix}_iter_{self.iteration}"
        end = ".h5" if self.param.snapshot_format == SolverParameter.HDF5 else ""
        return f"{stem}.caffemodel{end}", f"{stem}.solverstate{end}"

    def _is_just_resumed(self) -> bool:
        """Whether the run goes on exactly from the snapshot that it would write now; Caffe rewrites it."""
        model, path = self._snapshot_paths()
        its_own = os.path.realpath(path) == self._exact_from
        return bool(self._said("yes" if its_own and os.path.isfile(path) and os.path.isfile(model) else ""))

    def restore(
        self, path: str | os.PathLike[str], *, as_caffe: bool = False, dialect: str | None = None
    ) -> None:
        """Go on from a solver state; SnapshotError: it or its model is missing, damaged or foreign.

        as_caffe   start the data at the first record and the random numbers at the seed, as Caffe does, even
                   where the state says how the run stood
        dialect    the fork that wrote it and its model; None: Caffe, or this program
        """
        self._go_on(path, self._load(path, as_caffe=as_caffe, dialect=dialect), as_caffe)

    def restore_newest(self, *, as_caffe: bool = False) -> str:
        """Go on from the newest whole snapshot under snapshot_prefix; its state's path, "" where none is.

        One that is damaged, half there, of another net, or of weights that are not finite is passed over with
        a line in the log. SnapshotError where one is whole and cannot be gone on with: the data have changed.
        One of an earlier version may also be damaged then: it is passed over, too, if there is another one.
        """
        prefix = self.param.snapshot_prefix
        if self._rank:
            path, _, model = self._said("").partition("\0")
            if path:
                self._go_on(path, self._load(path, model, as_caffe=as_caffe), as_caffe)
            return path
        snapshots, failed = find_snapshots(prefix), None
        for snapshot in snapshots:
            try:
                if not snapshot.state or not snapshot.model:
                    there, lacks = ("model", "state") if snapshot.model else ("state", "model")
                    raise SnapshotError(f"{snapshot.model or snapshot.state}: a {there} without a {lacks}")
                state = self._load(snapshot.state, snapshot.model, as_caffe=as_caffe)
            except SnapshotError as error:
                logger.warning("Passing over a snapshot: %s", error)
                continue
            self._say("caffe.cpp:235", f"Resuming from {snapshot.state}")
            self._said(f"{snapshot.state}\0{snapshot.model}")
            try:
                self._go_on(snapshot.state, state, as_caffe)
            except SnapshotError as error:
                if state.sealed or self.ranks is not None:
                    raise
                logger.warning("Passing over a snapshot: %s", error)
                failed = error
                continue
            return snapshot.state
        if failed is not None:  # some of it has been taken already: there is no start from scratch any more
            raise failed
        self._said("")
        which = "whole snapshot" if snapshots else "snapshot"
        logger.info("There is no %s %s_iter_*: the training starts from scratch", which, prefix)
        return ""

    def _load(
        self, path: str | os.PathLike[str], model: str = "", *, as_caffe: bool, dialect: str | None = None
    ) -> State:
        """Read a state and load its model, `model` or the one that it names, into the net.

        SnapshotError, and a solver as it was, where one of them is missing, damaged or foreign.
        """
        state = read_state(path, dialect)
        if len(state.history) != len(self.history):
            raise SnapshotError(
                f"{path}: Incorrect length of history blobs: it has {len(state.history)}, a solver of type "
                f"{self.param.type} has {len(self.history)} for this net; it was written by another type of "
                f"solver or for another net"
            )
        for index, (values, blob) in enumerate(zip(state.history, self.history, strict=True)):
            if not _same_shape(values.shape, tuple(blob.shape)):
                raise SnapshotError(
                    f"{path}: history blob {index} has shape {shape_string(values.shape)}, this net needs "
                    f"{shape_string(blob.shape)}: it was written for another net"
                )
        if self.on_nan == "stop" and not state.run.get("finite", True):
            raise SnapshotError(
                f"{path}: its weights are not finite; take an earlier one, or --on-nan continue"
            )
        if model := model or state.learned_net:
            if not os.path.isfile(model):
                raise SnapshotError(
                    f"{path}: File not found: {model}, the model that belongs to it; its path is relative to "
                    f"the working directory, start where the snapshot was taken"
                )
            written_with = None if as_caffe else state.run.get("model")
            try:
                damaged = written_with not in (None, file_checksum(model))
            except OSError as error:
                raise SnapshotError(f"{path}: {model}: cannot be read: {error.strerror}") from None
            if damaged:
                raise SnapshotError(
                    f"{path}: {model} is damaged, or another model than it was written with "
                    f"(--resume-as-caffe takes it all the same)"
                )
            try:
                load_caffemodel(self.net, model, dialect)
            except CaffemodelError as error:
                raise SnapshotError(f"{path}: {error}") from None
        return state

    def _go_on(self, path: str | os.PathLike[str], state: State, as_caffe: bool) -> None:
        """Take the history, and where the run stood, from a state whose model is loaded."""
        if not os.fspath(path).endswith(".h5"):  # Caffe: silent there
            self._say("sgd_solver.cpp:336", "SGDSolver: restoring history")
        for values, blob in zip(state.history, self.history, strict=True):
            blob.copy_(torch.from_numpy(values).view(blob.shape))
        self.iteration, self.current_step = state.iteration, state.current_step
        self._lap, self._exact_from = None, ""
        if state.run.get("finite", True):
            self._last_finite = self._spared = os.fspath(path)
        if state.run and not as_caffe:
            try:
                self._set_run_state(state.run)
                self._exact_from = os.path.realpath(path)
            except (ValueError, LookupError, TypeError, AttributeError, ArithmeticError) as error:
                raise SnapshotError(
                    f"{path}: the run cannot go on exactly: {error} (--resume-as-caffe starts the data anew)"
                ) from error

    def _run_state(self) -> dict[str, Any]:
        """What an exact resume needs beyond weights and history."""
        double = self.dtype == torch.float64
        return {**self._streams.get_state(), "loss": self._loss.get_state(), "double": double}

    def _set_run_state(self, run: dict[str, Any]) -> None:
        ranks, size = [run, *run.get("ranks", ())], self.ranks.size if self.ranks is not None else 1
        if len(ranks) != size:
            raise SnapshotError(
                f"it was written by {len(ranks)} rank(s), and {size} would go on; start {len(ranks)}, with "
                f"torchrun --nproc-per-node {len(ranks)}"
            )
        run = ranks[self._rank]
        double = bool(run.get("double"))
        if double != (self.dtype == torch.float64):
            raise SnapshotError(
                "it was written with --double; give that, too"
                if double
                else "it was written without --double; leave that out, too"
            )
        self._streams.set_state(run)
        self._loss.set_state(run["loss"])
        self._keep_loss = True
        logger.info("The data and the random numbers go on where the snapshot was taken")

    # -- the log --------------------------------------------------------------------------------------------

    def _say(self, place: str, message: str) -> None:
        self._say_clipped()
        log_line(place, message)

    def _say_clipped(self) -> None:
        """The lines about clipped gradients that are still to be written."""
        if not self._norms:
            return
        norms, self._norms = torch.stack(self._norms).tolist(), []
        limit = f32(self.param.clip_gradients)
        for norm in norms:
            if norm > limit:
                log_line(
                    "sgd_solver.cpp:99",
                    f"Gradient clipping: scaling down gradients (L2 norm {number(norm)} > {number(limit)}) "
                    f"by scale factor {number(limit / f32(norm))}",
                )

    def _waited(self) -> float:
        """Seconds that this process has waited so far for layers which make their batches ahead."""
        return sum(layer.waited for net in (self.net, *self.test_nets) for layer in net.data_layers())

    def _say_waited(self, begun: float, waited_before: float) -> None:
        """The share of the time since `begun`; a line that Caffe lacks."""
        if not any(layer.prefetches for net in (self.net, *self.test_nets) for layer in net.data_layers()):
            return
        waited, seconds = self._waited() - waited_before, time.monotonic() - begun
        logger.info(
            "Waited for data: %.1f s of %.1f s of training (%.1f %%)",
            waited,
            seconds,
            100 * waited / max(seconds, 1e-9),
        )

    def _say_outputs(self, place: str, which: str, net: Net, values: dict[str, Array]) -> None:
        """One line per element of each output blob."""
        outputs = [(name, value) for name, blob in values.items() for value in blob.ravel()]
        for index, (name, value) in enumerate(outputs):
            text = output_text(name, value, f32(net.loss_weights.get(name, 0)))
            self._say(place, f"    {which} net output #{index}: {text}")


def _same_shape(values: tuple[int, ...], wanted: tuple[int, ...]) -> bool:
    """Whether the shapes agree; old files fill a shape up with 1s in front to 4 axes."""
    return values in (wanted, (1,) * (4 - len(wanted)) + wanted)


def _array(blob: Tensor) -> Array:
    array: Array = blob.detach().cpu().contiguous().numpy()
    return array
