"""Recorded passes and updates train as launched ones do, bit for bit; what cannot be recorded is refused.

The recorder here replays operations on the CPU (op_recorder.py). On a GPU, test_gpu.py does the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import reference
import torch
from fed_nets import unfilled
from op_recorder import ASKS_THE_HOST, OpRecorder
from small_resnet import IMAGES_BYTES, net_on, numbers_of, solver_param, write_images
from tolerances import tolerance
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from imae.files.errors import LayerError
from imae.layers.blob import blob_from_array
from imae.layers.caffe_random import CaffeRandom
from imae.layers.common.dropout import Dropout
from imae.layers.data.data import Data
from imae.layers.labels import LabelReader
from imae.layers.run import Run
from imae.net.cuda_graph import WARM_UP
from imae.net.executor import NetExecutor
from imae.net.kernels import native
from imae.net.net import Net
from imae.prototxt import TEST, TRAIN, NetState, Phase, SolverParameter
from imae.prototxt.dialects import read_net_text
from imae.prototxt.state import in_state
from imae.prototxt.text import parse_net
from imae.train.options import Options
from imae.train.solver import Solver

STEPS = 9  # three calls are launched, the fourth is recorded
RULES = {
    "SGD": "momentum: 0.9 weight_decay: 0.001",
    "SGD, clipped, several passes": "momentum: 0.9 clip_gradients: 0.5 iter_size: 2 weight_decay: 0.001",
    "Nesterov": 'type: "Nesterov" momentum: 0.9',
    "Adam": 'type: "Adam" momentum: 0.9 momentum2: 0.99 delta: 0.001',
    "AdamW": 'type: "AdamW" momentum: 0.9 momentum2: 0.99 delta: 0.001 weight_decay: 0.001',
    "AdaGrad": 'type: "AdaGrad" delta: 0.001 regularization_type: "L1" weight_decay: 0.001',
    "RMSProp": 'type: "RMSProp" rms_decay: 0.9 delta: 0.001',
    "AdaDelta": 'type: "AdaDelta" momentum: 0.9 delta: 0.001',
    "SGD, NVIDIA's fields": 'momentum: 0.5 momentum_policy: "poly" weight_decay: 0.001 '
    'max_weight_decay: 0.01 weight_decay_policy: "poly" larc: true larc_policy: "clip" '
    "larc_eta: 0.1 rampup_interval: 3",
    "SGD, Intel's fields": "momentum: 0.9 weight_decay: 0.001 local_lr_auto: true local_gw_ratio: 0.1",
}


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("images"))


@pytest.fixture(autouse=True)
def labels_checked_as_on_a_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """On the CPU they would be looked at while the pass is recorded."""
    monkeypatch.setattr(LabelReader, "at_once", staticmethod(lambda label: False))


@pytest.fixture(autouse=True)
def torch_does_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a device; what the kernels in C do is no operation that could be noted."""
    monkeypatch.setattr(native, "available", lambda: False)


def solver(
    database: str, fields: str, loss: str = "IMAELoss", **arguments: Any
) -> tuple[Solver, list[OpRecorder]]:
    """A small ResNet's solver whose rate drops on the way, and its recorders."""
    made: list[OpRecorder] = []

    def recorder() -> OpRecorder:
        made.append(OpRecorder())
        return made[-1]

    param = solver_param(net_on(database, loss), STEPS, fields)
    if arguments.pop("recorded", True):
        arguments["recorder"] = recorder
    return Solver(param, Options(**arguments)), made


@pytest.mark.parametrize("fields", RULES.values(), ids=RULES.keys())
def test_recorded_training_is_the_launched_one(
    database: str, fields: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Weights, statistics, histories, and the log's losses and test outputs."""
    logs, results = [], []
    for recorded in (False, True):
        trained, recorders = solver(database, fields, recorded=recorded)
        caplog.clear()
        with caplog.at_level("INFO", "imae"):
            trained.solve()
        logs.append(
            [r.getMessage() for r in caplog.records if "loss" in r.getMessage() or "output" in r.getMessage()]
        )
        results.append(numbers_of(trained))
    assert any(recorder.replays > 1 for recorder in recorders)
    for launched, again in zip(*results, strict=True):
        torch.testing.assert_close(again, launched, rtol=0, atol=0)
    losses = [[line.partition("loss = ")[2] for line in log] for log in logs]
    assert losses[0] == losses[1]
    assert len(losses[0]) > STEPS // 2


def test_the_replays_do_the_work(database: str) -> None:
    """Each kind of pass and the update are recorded once, and replayed for every further call."""
    trained, recorders = solver(database, RULES["SGD"])
    trained.step(STEPS)
    replays = sorted(recorder.replays for recorder in recorders)
    # Of five kinds two never come: the train net forward alone, the test net backward. 3 tests of 2 batches.
    assert replays == [0, 0, 3 * 2 - WARM_UP, STEPS - WARM_UP, STEPS - WARM_UP]
    assert all(recorder.operations for recorder in recorders if recorder.replays)


def test_diffs_of_blobs_that_are_not_learned_are_cleared(database: str) -> None:
    """A pass that replaces the diffs leaves none of an earlier update."""
    trained, _ = solver(database, RULES["SGD"])
    trained.step(STEPS)
    for parameter, lr_mult in zip(trained.net.learnable, trained.net.lr_mults, strict=True):
        if lr_mult == 0:
            assert parameter.grad is not None
            assert not parameter.grad.any()


LAYERS = {
    "Dropout": 'type: "Dropout" bottom: "data" top: "x" ',
    "Filter": 'type: "Filter" bottom: "data" bottom: "label" top: "x"',
}


@pytest.mark.parametrize("kind", LAYERS)
def test_layers_that_need_the_host_are_refused(database: str, kind: str) -> None:
    net = net_on(database)
    net.MergeFrom(parse_net(f'layer {{ name: "it" {LAYERS[kind]} }}'))
    param = SolverParameter(base_lr=0.1, lr_policy="fixed", net_param=unfilled(net))
    trained = Solver(param, Options(recorder=OpRecorder))
    with pytest.raises(LayerError, match=f"CUDA graph cannot hold a layer of type {kind}.*--cuda-graph"):
        trained.step(1)


def test_work_that_asks_the_host_is_not_recorded() -> None:
    """The recorder of these tests would see it."""
    x = torch.ones(3)
    with pytest.raises(RuntimeError, match="capturing"):
        OpRecorder().record(lambda: x.sum().item())


# -- reduced precision ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss", ["IMAELoss", "SoftmaxWithLoss"])
@pytest.mark.parametrize("recorded", [False, True])
def test_bfloat16_trains_near_single_precision(database: str, loss: str, recorded: bool) -> None:
    """Parameters, diffs and the loss stay in single precision; the first updates are near those of fp32."""
    trained: dict[bool, Solver] = {}
    for reduced in (False, True):
        trained[reduced], _ = solver(
            database,
            RULES["SGD"],
            loss,
            recorded=recorded,
            reduced=torch.bfloat16 if reduced else None,
        )
        trained[reduced].step(2)
    results = [numbers_of(trained[reduced]) for reduced in (True, False)]
    assert {blob.dtype for blob in results[0]} == {torch.float32}
    half = len(results[0]) // 2
    for part, what in ((slice(half), "weights"), (slice(half, None), "history")):
        got, want = (torch.cat([blob.flatten() for blob in blobs[part]]) for blobs in results)
        distance = float((got - want).norm() / want.norm())
        assert 0 < distance < tolerance(f"{what} in bfloat16").rtol
    got, want = (torch.tensor(float(trained[reduced]._loss.read())) for reduced in (True, False))
    assert got != want
    torch.testing.assert_close(got, want, rtol=tolerance("loss in bfloat16").rtol, atol=0)


def test_blobs_between_layers_are_in_bfloat16(database: str) -> None:
    trained, _ = solver(database, RULES["SGD"], recorded=False, reduced=torch.bfloat16)
    run = NetExecutor(trained.net, trained.device, keep=("conv1", "loss"), reduced=torch.bfloat16)
    run.forward()
    assert {name: blob.dtype for name, blob in run.kept.items()} == {
        "conv1": torch.bfloat16,
        "loss": torch.float32,
    }


# -- records that lie on the device --------------------------------------------------------------------------

TRANSFORMS = {
    "crop, mirror, means": "crop_size: 32 mirror: true mean_value: 104 mean_value: 117.25 mean_value: 123",
    "crop, scale": "crop_size: 33 scale: 0.00390625 mean_value: 127.5",
    "mirror": "mirror: true",
    "nothing": "",
    "the authors' crops": "crop_size: 32 mirror: true exclude_last_crop: true mean_value: 125.3",
    "mean file": 'crop_size: 31 mirror: true scale: 0.017 mean_file: "MEAN"',
}


@pytest.mark.parametrize("phase", [TRAIN, TEST], ids=["TRAIN", "TEST"])
@pytest.mark.parametrize("order", ["SEQUENTIAL", "SHUFFLED"])
@pytest.mark.parametrize("transform", TRANSFORMS.values(), ids=TRANSFORMS.keys())
def test_batches_of_resident_records_are_the_same(
    database: str, tmp_path: Path, transform: str, order: str, phase: Phase
) -> None:
    """Bit for bit, over several rounds, and after going back to a saved place."""
    mean = np.random.default_rng(2).random((1, 3, 40, 40), np.float32) * 200
    (tmp_path / "mean").write_bytes(blob_from_array(mean).SerializeToString())
    text = f"""layer {{ name: "data" type: "Data" top: "data" top: "label"
        transform_param {{ {transform.replace("MEAN", str(tmp_path / "mean"))} }}
        data_param {{ source: "{database}" batch_size: 7 backend: LMDB }}
        data_order_param {{ order: {order} }} }}"""
    layers = []
    for _ in range(2):
        layer = Net(in_state(parse_net(text), phase, NetState()), Run(CaffeRandom(5))).data_layers()[0]
        assert isinstance(layer, Data)
        layers.append(layer)
    plain, resident = layers
    plain.next_batch()
    resident.next_batch()  # some batches wait already
    assert not resident.make_resident(torch.device("cpu"), IMAGES_BYTES - 1)
    assert resident.make_resident(torch.device("cpu"), IMAGES_BYTES)
    saved = resident.get_state()
    for rounds in range(2):
        if rounds:
            plain.set_state(saved)
            resident.set_state(saved)
        for _ in range(16):
            for got, want in zip(resident.next_batch(), plain.next_batch(), strict=True):
                assert got.shape == want.shape
                torch.testing.assert_close(got, want, rtol=0, atol=0)


@pytest.mark.parametrize("loss", ["MAELoss", "MSELoss", "GCELoss", "DMLoss", "SoftmaxWithLoss"])
def test_every_loss_can_be_recorded(database: str, loss: str) -> None:
    trained, recorders = solver(database, RULES["SGD"], loss)
    trained.step(WARM_UP + 2)
    assert max(recorder.replays for recorder in recorders) == 2


# -- which layers a graph can hold ---------------------------------------------------------------------------


class NothingOfTheHost(TorchDispatchMode):
    """Refuses what would make the host wait, and the host's tensors, in work of the device `meta`."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = func.overloadpacket.__name__
        given = [leaf for leaf in tree_leaves((args, kwargs or {})) if isinstance(leaf, torch.Tensor)]
        assert name not in ASKS_THE_HOST, f"{name} makes the host wait"
        assert all(tensor.is_meta for tensor in given), f"{name} reads the host's memory"
        return func(*args, **kwargs or {})


@pytest.mark.parametrize(
    "path", reference.find("layers/*/*.npz"), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_layers_need_nothing_of_the_host_unless_they_say_so(path: Path) -> None:
    """Both passes of each recorded case, on a device that has shapes only: no value can be asked for."""
    case = reference.load(path)
    phase = TEST if case.meta.get("phase", "TRAIN") == "TEST" else TRAIN
    with contextlib.chdir(path.parent):
        net = Net(in_state(read_net_text(str(case.prototxt)), phase, NetState()), Run(CaffeRandom(1)))
    for step in net.steps:
        if isinstance(step.layer, Dropout):
            step.layer.device_masks = True
    excepted = {step.layer.type for step in net.steps if not step.layer.capturable}
    assert excepted <= {"DummyData", "Filter", "HDF5Output", "Python"}
    if excepted or net.data_layers():
        return
    net.to("meta")
    fixed = {
        bottom
        for step in net.steps
        for index, bottom in enumerate(step.bottoms)
        if not step.layer.allows_force_backward(index)
    }
    blobs = {
        name: torch.empty(net.blob_shapes[name], device="meta", requires_grad=name not in fixed)
        for name in net.inputs
    }
    with NothingOfTheHost():
        tops = net(blobs)
        ends = [top.sum() for top in tops.values() if top.requires_grad]
        if ends:
            torch.autograd.backward(sum(ends[1:], start=ends[0]))


@pytest.mark.parametrize("fields", RULES.values(), ids=RULES.keys())
def test_an_iteration_needs_nothing_of_the_host(database: str, fields: str) -> None:
    """Passes and update of the faster plan, on a device that has shapes only."""
    trained, _ = solver(database, fields, recorded=False, device="meta")
    # torch makes new parameters for this device, unlike for a GPU.
    trained.net.learnable = [blob for step in trained.net.steps for blob in step.layer.blobs]
    trained.update.history = [blob.to("meta") for blob in trained.history]
    run = trained._run
    assert isinstance(run, NetExecutor)
    given = run._placed(run._fetch())
    with NothingOfTheHost():
        run._pass(given, backward=True)
        trained.update.launch()
        run._pass(given, backward=False)
