"""One run: its net and solver, the training, and the measurements during it.

Each test runs the net on the test images, the training images without augmentation, and the held-out images;
all accuracies come from these predictions. A run that was stopped continues exactly from its last snapshot.
"""

from __future__ import annotations

import hashlib
import math
import os
import platform
import subprocess
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from imae.files.atomic import write_atomically
from imae.files.errors import ImaeError
from imae.net.cuda_graph import GraphExecutor, Recorder
from imae.net.device import set_precision
from imae.net.executor import Executor, NetExecutor, Result
from imae.net.net import Net
from imae.paper.data import Images, Labelled
from imae.paper.experiments import LATER, PROTOCOLS, Run
from imae.paper.record import CERTAIN, Point, Record, read_record, write_record
from imae.prototxt import TEST, TRAIN, LayerParameter, NetParameter, SolverParameter
from imae.prototxt.caffe_pb2 import DataOrderParameter
from imae.prototxt.models.net_parts import loss_layer
from imae.prototxt.models.resnet import (
    CIFAR10_MEAN_BGR,
    authors_data,
    authors_loss,
    authors_resnet,
    authors_solver,
    paper_solver,
    resnet,
)
from imae.prototxt.text import to_text
from imae.train.options import Options
from imae.train.progress import training_bar
from imae.train.signals import SignalRequests
from imae.train.snapshot_lock import writing_alone
from imae.train.solver import Solver

LOSS_TYPES = {"CCE": "SoftmaxWithLoss", "MAE": "MAELoss", "IMAE": "IMAELoss"}
BATCH, TEST_BATCH = 128, 100
ORDERS = {
    "SEQUENTIAL": DataOrderParameter.SEQUENTIAL,
    "SHUFFLED": DataOrderParameter.SHUFFLED,
    "CLASS_BALANCED": DataOrderParameter.CLASS_BALANCED,
}
PADDINGS = ("AFTER_MEAN", "BEFORE_MEAN")
PREDICTED = ("fc", "label")  # the blobs that predictions are made from
CLASSES_PER_BATCH = 8  # in class-balanced batches
FORGET = 0.001  # 1 - Caffe's default moving_average_fraction, for runs of full length
# Fields of the record that must not change between the parts of a run, and what to call a change in errors.
FIXED_FIELDS = {
    "run": "other choices",
    "solver": "another solver",
    "net_sha256": "another net",
    "images_sha256": "other images",
}
TESTS = 8  # number of tests in a short run; a long run has a test every TEST_INTERVAL iterations
TEST_INTERVAL = 1000


def train_val(run: Run, images: Images) -> NetParameter:
    """The net with a Data layer for training and, in phase TEST, one Data layer per set of images, by stage.

    With padding AFTER_MEAN the mean image is subtracted, as He et al. do; for padded images it is 0 in the
    border. With BEFORE_MEAN each channel's mean is subtracted, also from the black border.

    BatchNorm's moving average covers the same share of every run: about 1,000 of 64,000 iterations, as by
    Caffe's default, and proportionally fewer in shorter runs.
    """
    if run.protocol == LATER:
        return _later_train_val(run, images)
    loss = _loss(run)
    try:
        body = resnet(int(run.net.removeprefix("resnet")), loss=loss)
    except ValueError as error:
        raise ImaeError(f"{run.name}: {error}") from None
    net = NetParameter(name=body.name)
    if run.padding not in PADDINGS:
        raise ImaeError(f"padding must be {' or '.join(PADDINGS)}, got {run.padding!r}")
    after_mean = run.padding == "AFTER_MEAN"
    data = _data(net, images.train, BATCH, after_mean)
    data.include.add(phase=TRAIN)
    _set_order(data, run.order)
    for stage, tested in images.tested.items():
        _data(net, tested, TEST_BATCH, after_mean).include.add(phase=TEST, stage=[stage])
    net.layer.extend(body.layer)
    _shorten_averages(net, run)
    return net


def _later_train_val(run: Run, images: Images) -> NetParameter:
    """The net of the authors' later runs, with their layers, batches and crops; LMDBs of 36x36 images.

    In shorter runs BatchNorm's moving average covers proportionally fewer iterations, as in `train_val`.
    """
    if run.changes:
        raise ImaeError(f"{run.name}: the authors' later runs have no variant {', '.join(run.changes)}")
    if run.loss == "IMAE" and run.t is None:
        raise ImaeError(f"{run.name}: IMAE needs a T")
    loss = authors_loss("DM", 1, run.t) if run.t is not None else authors_loss(run.loss)
    try:
        body = authors_resnet(loss, int(run.net.removeprefix("resnet")))
    except ValueError as error:
        raise ImaeError(f"{run.name}: {error}") from None
    net = NetParameter(name=body.name)
    net.layer.append(authors_data(TRAIN, str(images.train.lmdb)))
    for stage, tested in images.tested.items():
        data = net.layer.add()
        data.CopyFrom(authors_data(TEST, str(tested.lmdb)))
        data.include[0].stage.append(stage)
    net.layer.extend(body.layer)
    _shorten_averages(net, run)
    return net


def _shorten_averages(net: NetParameter, run: Run) -> None:
    """Let BatchNorm's moving averages cover the same share of a shorter run."""
    full = PROTOCOLS[run.protocol].iterations
    for layer in net.layer:
        if layer.type == "BatchNorm" and run.iterations != full:
            layer.batch_norm_param.moving_average_fraction = 1 - FORGET * full / run.iterations


def _loss(run: Run) -> LayerParameter:
    """The loss layer; ImaeError for a variant that does not exist."""
    if run.authors_loss:
        own = (run.base.normalizer, run.base.epsilon)
        if run.loss != "IMAE" or run.t is None or (run.normalizer, run.epsilon) != own:
            raise ImaeError(
                f"{run.name}: the authors' layer is one of IMAE, with a normalizer and an epsilon of its own"
            )
        return loss_layer("UnifiedWeightLoss", lamda_p=1, scale=run.t)
    fields: dict[str, float | str] = {} if run.t is None else {"t": run.t}
    if run.epsilon is not None:
        if run.loss != "IMAE":
            raise ImaeError(f"{run.name}: {run.loss} has no epsilon")
        fields |= {"normalizer": run.normalizer, "epsilon": run.epsilon}
    elif run.normalizer != "BATCH_SIZE":
        if run.loss == "CCE":
            raise ImaeError(f"{run.name}: CCE has no normalizer {run.normalizer}")
        fields["normalizer"] = run.normalizer
    return loss_layer(LOSS_TYPES[run.loss], **fields)


def _set_order(data: LayerParameter, order: str) -> None:
    """Set the order of the images, unless it is the LMDB's own."""
    if order not in ORDERS:
        raise ImaeError(f"order must be {', '.join(ORDERS)}, got {order!r}")
    if order != "SEQUENTIAL":
        data.data_order_param.order = ORDERS[order]
    if order == "CLASS_BALANCED":
        data.data_order_param.classes_per_batch = CLASSES_PER_BATCH
        data.data_order_param.images_per_class = BATCH // CLASSES_PER_BATCH


def _data(net: NetParameter, images: Labelled, batch: int, after_mean: bool) -> LayerParameter:
    """A Data layer with 32x32 crops: in training random, mirrored ones of 40x40 images, else central ones."""
    data = net.layer.add(name="data", type="Data", top=["data", "label"])
    if after_mean:
        data.transform_param.mean_file = str(images.mean)
    else:
        data.transform_param.mean_value.extend(CIFAR10_MEAN_BGR)
    data.transform_param.crop_size = 32
    data.transform_param.mirror = batch == BATCH
    data.data_param.source = str(images.lmdb)
    data.data_param.batch_size = batch
    data.data_param.backend = data.data_param.LMDB
    return data


def solver_param(run: Run, net: Path, prefix: Path, sizes: dict[str, int], gpu: bool) -> SolverParameter:
    """The paper's solver (section 5.1), or that of the authors' later runs.

    Shorter runs have drops and tests at the same shares of the run.
    """
    param = authors_solver(run.net) if run.protocol == LATER else paper_solver(run.net)
    param.net, param.snapshot_prefix = str(net), str(prefix)
    full = param.max_iter
    param.max_iter = run.iterations
    param.stepvalue[:] = [run.iterations * step // full for step in param.stepvalue]
    param.test_interval = param.snapshot = min(run.iterations // TESTS, TEST_INTERVAL)
    param.test_iter[:] = [size // TEST_BATCH for size in sizes.values()]
    for stage in sizes:
        param.test_state.add(stage=[stage])
    param.display = param.average_loss = min(100, param.test_interval)
    param.base_lr, param.weight_decay = run.base_lr, run.weight_decay
    param.random_seed = run.seed
    param.solver_mode = SolverParameter.GPU if gpu else SolverParameter.CPU
    return param


def log_odds(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """log(p / (1 - p)) of each label, (N,), computed without p, which loses its precision near 0 and 1."""
    index = labels.long()[:, None]
    others = logits.scatter(1, index, -torch.inf).logsumexp(1)
    return logits.gather(1, index)[:, 0] - others


class Predictions(NamedTuple):
    """A net's predictions: the class of each image, and log(p / (1 - p)) of its label in the LMDB."""

    classes: NDArray[np.int64]
    log_odds: NDArray[np.float32]


class _PredictionExecutor(NetExecutor):
    """Collects the net's predictions, batch after batch; made with keep=PREDICTED."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.predicted: list[tuple[torch.Tensor, torch.Tensor]] = []

    def forward(self) -> Result:
        result = super().forward()
        logits = self.kept["fc"]
        self.predicted.append((logits.argmax(1), log_odds(logits, self.kept["label"])))
        return result

    def read(self) -> Predictions:
        """The predictions since the last call."""
        classes, odds = (torch.cat(parts).cpu().numpy() for parts in zip(*self.predicted, strict=True))
        self.predicted.clear()
        return Predictions(classes, odds)


class _RecordedPredictionExecutor(_PredictionExecutor, GraphExecutor):
    """The same with recorded passes."""


class _Training:
    """A solver that measures the accuracies at each test and writes the record.

    record   the record with the points so far
    """

    def __init__(
        self,
        param: SolverParameter,
        device: torch.device,
        images: Images,
        record: Record,
        path: Path,
        recorder: Callable[[], Recorder] | None,
        compiled: bool,
    ) -> None:
        self._images, self.record, self._path = images, record, path
        self._began = time.monotonic()
        self._tested: list[_PredictionExecutor] = []
        # For training only; tests are in single precision.
        reduced = set_precision(record.run.precision, device)

        def executor(net: Net) -> Executor:
            if net.phase == TEST:
                self._tested.append(
                    _PredictionExecutor(net, device, keep=PREDICTED)
                    if recorder is None
                    else _RecordedPredictionExecutor(net, device, recorder, replaces=True, keep=PREDICTED)
                )
                return self._tested[-1]
            if recorder is None:
                return NetExecutor(net, device, compiled=compiled, reduced=reduced)
            return GraphExecutor(net, device, recorder, replaces=True, compiled=compiled, reduced=reduced)

        options = Options(device=device, executor=executor, recorder=recorder, keep=1, on_nan="continue")
        self.solver = Solver(param, options)
        self.solver.on_test.append(self._note)

    def _note(self, index: int, means: dict[str, Any]) -> None:
        """Add a point to the record after the last test net; if a signal ended the test, add none."""
        if not means:
            for executor in self._tested:
                executor.predicted.clear()
        elif index == len(self._tested) - 1:
            predicted, loss = [executor.read() for executor in self._tested], self.solver.smoothed_loss
            finite = loss if math.isfinite(loss) else None
            point = measure(self.solver.iteration, finite, self._images, predicted)
            self.record = self.record.with_point(point, self.record.seconds + self._lap_seconds())
            write_record(self.record, self._path)

    def _lap_seconds(self) -> float:
        seconds, self._began = time.monotonic() - self._began, time.monotonic()
        return seconds


def measure(iteration: int, loss: float | None, images: Images, predicted: list[Predictions]) -> Point:
    """The accuracies of these predictions, which are for the test, the training and the held-out images."""
    classes = [predictions.classes for predictions in predicted]
    clean, noisy = images.train.clean, images.train.noisy
    hits, right = classes[1] == noisy, clean == noisy
    bound = -math.log(CERTAIN)
    wrong = int((~right).sum())
    point = Point(
        iteration=iteration,
        loss=None if loss is None else round(loss, 6),
        test=_share(int((classes[0] == images.test.clean).sum()), len(images.test.clean)),
        corrupted=_share(int(hits.sum()), len(noisy)),
        intact=_share(int((classes[1] == clean).sum()), len(clean)),
        noisy_subset=_share(int(hits[~right].sum()), wrong) if wrong else None,
        clean_subset=_share(int(hits[right].sum()), int(right.sum())) if right.any() else None,
        certain=_share(int((predicted[1].log_odds > bound).sum()), len(noisy)),
        hopeless=_share(int((predicted[1].log_odds < -bound).sum()), len(noisy)),
    )
    if images.held_out is None:
        return point
    clean, noisy = images.held_out.clean, images.held_out.noisy
    return replace(
        point,
        validation=_share(int((classes[2] == noisy).sum()), len(noisy)),
        validation_clean=_share(int((classes[2] == clean).sum()), len(clean)),
    )


def _share(count: int, total: int) -> float:
    return round(count / total, 6)


def train(
    run: Run,
    images: Images,
    folder: Path,
    records: Path,
    device: torch.device,
    recorder: Callable[[], Recorder] | None = None,
    compiled: bool = False,
) -> Record:
    """Train a run in `folder`, from its last snapshot there if there is one. Return its record.

    If the run has ended, the record is also written to `records`.

    recorder, compiled   see Options (train/options.py)

    FileError if another process is training the run in this folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    records.mkdir(parents=True, exist_ok=True)
    net = folder / "train_val.prototxt"
    net_text = to_text(train_val(run, images))
    sizes = {stage: len(tested.clean) for stage, tested in images.tested.items()}
    for stage, size in sizes.items():
        if size % TEST_BATCH:
            raise ImaeError(
                f"the {stage} images of {run.name} are {size}; a multiple of {TEST_BATCH} is needed"
            )
    param = solver_param(run, net, folder / run.net, sizes, device.type != "cpu")
    with writing_alone(param.snapshot_prefix):
        write_atomically(net, net_text.encode())
        write_atomically(folder / "solver.prototxt", to_text(param).encode())
        path = folder / "record.json"
        record = Record(
            run=run,
            data=images.words,
            images_sha256=images.sha256,
            train_images=sizes["train"],
            test_images=sizes["test"],
            wrong_labels=int((images.train.clean != images.train.noisy).sum()),
            net_sha256=hashlib.sha256(net_text.encode()).hexdigest(),
            solver=to_text(param),
            commit=commit_words(),
            device=device_words(device),
            versions={name: version(name) for name in ("imae", "torch", "numpy")}
            | {"python": platform.python_version()},
            began=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=0.0,
            points=(),
        )
        training = _Training(param, device, images, record, path, recorder, compiled)
        solver = training.solver
        if solver.restore_newest() and path.exists():
            training.record = _earlier(record, read_record(path), solver.iteration)
        with SignalRequests() as requests, training_bar(solver):
            solver.request = requests
            solver.solve()
        if training.record.complete:
            write_record(training.record, records / f"{run.name}.json")
        return training.record


def _earlier(record: Record, earlier: Record, iteration: int) -> Record:
    """The record of the run's earlier part, up to the snapshot that the run resumes from."""
    for field, change in FIXED_FIELDS.items():
        if getattr(earlier, field) != getattr(record, field):
            raise ImaeError(f"{record.run.name} was begun with {change}; remove its folder to start anew")
    points = tuple(point for point in earlier.points if point.iteration < iteration)
    commit = _in_sequence(earlier.commit, record.commit)
    device = _in_sequence(earlier.device, record.device)
    return replace(earlier, points=points, commit=commit, device=device)


def _in_sequence(before: str, now: str) -> str:
    """The commits or devices of a run's parts, in order: "A, then B"."""
    return before if now in before.split(", then ") else f"{before}, then {now}"


def commit_words() -> str:
    """The commit of the running code, with "-dirty" if tracked files differ from it.

    "" if it is not known: without git, or if this file is not part of a checkout.
    """
    commands = (
        ("ls-files", "--error-unmatch", Path(__file__).name),
        ("rev-parse", "HEAD"),
        ("status", "--porcelain", "--untracked-files=no"),
    )
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        _, head, changed = (
            subprocess.run([*git, *words], capture_output=True, text=True, check=True).stdout.strip()
            for words in commands
        )
    except (OSError, subprocess.CalledProcessError):
        return ""
    return head + "-dirty" * bool(changed)


def device_words(device: torch.device) -> str:
    """A description of the device for people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    name = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if "model name" in line
        ]
        name = names[0] if names else name
    return f"CPU, {torch.get_num_threads()} of {os.cpu_count()} cores of {name}"
