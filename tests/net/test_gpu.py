"""What only a GPU can show: its numbers are the CPU's, and recorded iterations are the launched ones."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from small_resnet import IMAGES_BYTES, net_on, numbers_of, solver_param, write_images
from tolerances import tolerance

from imae.cli.main import main
from imae.layers.caffe_random import CaffeRandom
from imae.layers.data.data import Data
from imae.layers.run import Run
from imae.net.cuda_graph import CudaRecorder
from imae.net.net import Net
from imae.prototxt import TRAIN, NetState
from imae.prototxt.state import in_state
from imae.train.options import Options
from imae.train.solver import Solver

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

GPU = torch.device("cuda", 0)


@pytest.fixture(autouse=True)
def single_precision() -> Iterator[None]:
    """As `imae train` sets it; and the same sums each time."""
    cudnn, products = torch.backends.cudnn, torch.backends.cuda.matmul
    before = cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic
    cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic = False, False, True
    yield
    cudnn.allow_tf32, products.allow_tf32, cudnn.deterministic = before


@pytest.fixture(scope="module")
def database(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_images(tmp_path_factory.mktemp("images"))


def trained(database: str, iterations: int, fields: str = "momentum: 0.9", **arguments: Any) -> Solver:
    """A solver after so many iterations of ResNet-20 with batches of 32."""
    param = solver_param(net_on(database, depth=20, batch=32), iterations, f"{fields} weight_decay: 0.0001")
    solver = Solver(param, Options(**{"device": GPU, **arguments}))
    solver.solve()
    return solver


def check_close(got: Solver, want: Solver, kind: str, parts: Sequence[str] = ("weights", "history")) -> None:
    """The L2 distance of all weights and of all histories, relative to their norms."""
    half = len(want.net.learnable)
    for what in parts:
        part = slice(half) if what == "weights" else slice(half, None)
        ours, theirs = (torch.cat([b.flatten() for b in numbers_of(solver)[part]]) for solver in (got, want))
        assert float((ours - theirs).norm() / theirs.norm()) < tolerance(f"{what} {kind}").rtol


@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("recorded", [False, True])
def test_one_iteration_gives_the_numbers_of_the_cpu(
    database: str, recorded: bool, compiled: bool, last: bool
) -> None:
    recorder = (lambda: CudaRecorder(GPU)) if recorded else None
    got = trained(database, 1, recorder=recorder, compiled=compiled, channels_last=last)
    check_close(got, trained(database, 1, device="cpu", fast=False), "on a GPU")


@pytest.mark.parametrize(
    "fields",
    ["momentum: 0.9", "momentum: 0.9 clip_gradients: 0.5 iter_size: 2", 'type: "Adam" momentum: 0.9'],
)
def test_recorded_training_is_the_launched_one(database: str, fields: str) -> None:
    recorded = trained(database, 12, fields, recorder=lambda: CudaRecorder(GPU))
    check_close(recorded, trained(database, 12, fields), "recorded")


def test_resident_batches_are_those_of_the_cpu(database: str) -> None:
    layers = []
    for _ in range(2):
        net = Net(in_state(net_on(database), TRAIN, NetState()), Run(CaffeRandom(5)))
        (layer,) = net.data_layers()
        assert isinstance(layer, Data)
        layers.append(layer)
    assert layers[0].make_resident(GPU, IMAGES_BYTES)
    for _ in range(20):
        for got, want in zip(layers[0].next_batch(), layers[1].next_batch(), strict=True):
            assert got.is_cuda
            torch.testing.assert_close(got.cpu(), want, rtol=0, atol=0)


@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_reduced_precision_trains_near_single_precision(database: str, precision: str) -> None:
    want = trained(database, 2)
    if precision == "tf32":
        torch.backends.cudnn.allow_tf32 = True
    got = trained(database, 2, reduced=torch.bfloat16 if precision == "bf16" else None)
    check_close(got, want, "in bfloat16", ["weights"])


@pytest.mark.parametrize(
    "flags", [[], ["--cuda-graph"], ["--cuda-graph", "--compile"], ["--cuda-graph", "--precision", "bf16"]]
)
def test_command_line_resumes_exactly(
    database: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flags: list[str]
) -> None:
    """8 iterations at once, and 4 and 4: the same weights, bit for bit."""
    monkeypatch.chdir(tmp_path)
    for name, iterations in (("whole", 8), ("part", 4)):
        param = solver_param(net_on(database), iterations, f'momentum: 0.9 snapshot_prefix: "{name}"')
        param.snapshot_after_train = True
        Path(f"{name}.prototxt").write_text(str(param), encoding="utf-8")
        assert main(["train", f"{name}.prototxt", "--gpu", "0", *flags]) == 0
    text = Path("part.prototxt").read_text(encoding="utf-8")
    Path("part.prototxt").write_text(text.replace("max_iter: 4", "max_iter: 8"), encoding="utf-8")
    command = ["train", "part.prototxt", "--snapshot", "part_iter_4.solverstate", "--gpu", "0", *flags]
    assert main(command) == 0
    assert Path("part_iter_8.caffemodel").read_bytes() == Path("whole_iter_8.caffemodel").read_bytes()
