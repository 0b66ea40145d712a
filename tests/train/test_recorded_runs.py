"""Caffe's recorded runs again, from the solver files alone: every printed number against its log.

Single precision follows a log until a near-tie (of a max pooling, at the kink of a ReLU) is decided otherwise
than in Caffe; when that is depends on the processor. So the long runs are compared in double precision, which
is the same everywhere, and single precision over the first iterations.
"""

from __future__ import annotations

import os
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from digits_runs import RUNS, numbers, prepared
from tolerances import tolerance

from imae.cli.main import main
from imae.files.caffe_log import parse_log, read_log

CIFAR = RUNS / "cifar_crop_mirror_dropout"

Numbers = dict[tuple[str, int, int, int, str], float]


@pytest.fixture
def log(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Log:
    return Log(capsys, monkeypatch)


class Log:
    """The logs of trainings that it runs."""

    def __init__(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        self.capsys, self.monkeypatch = capsys, monkeypatch

    def of(self, folder: Path, *arguments: str) -> str:
        """That of `imae train` with these arguments, in the folder."""
        self.monkeypatch.chdir(folder)
        self.capsys.readouterr()
        assert main(["train", *arguments]) == 0
        return self.capsys.readouterr().err


def change(path: Path, *fields: tuple[str, str]) -> None:
    """Give fields that a solver file has other values."""
    text = path.read_text(encoding="utf-8")
    for name, value in fields:
        text, count = re.subn(rf"(?m)^{name}: .*$", f"{name}: {value}", text)
        assert count
    path.write_text(text, encoding="utf-8")


def check(log: str, recorded: Path, least: int, strictly: int = 100) -> None:
    """Compare all that our log shows, at least so many numbers, with the recorded one.

    strictly   over how many iterations no near-tie may be decided otherwise
    """
    ours: Numbers = {number[:5]: number.value for number in parse_log(log.splitlines())}
    theirs: Numbers = {number[:5]: number.value for number in read_log(recorded)}
    assert len(ours) >= least and ours.keys() <= theirs.keys()
    start = min(key[1] for key in theirs)
    for early, what in ((True, "same decisions"), (False, "run")):
        keys = [key for key in ours if (key[1] - start <= strictly) == early]
        rtol, atol, _ = tolerance(what)
        got, want = ([values[key] for key in keys] for values in (ours, theirs))
        np.testing.assert_allclose(got, want, rtol, atol, err_msg=f"{recorded}: {keys}")


def read_whole(recorded: Path) -> int:
    """How many numbers a recorded log has."""
    return len({number[:5] for number in read_log(recorded)})


def test_lenet(log: Log, tmp_path: Path) -> None:
    """With its other kernels Caffe decides as double precision does."""
    ours = log.of(prepared("digits_lenet", tmp_path), "solver.prototxt", "--double")
    for name, strictly in (("train.log", 100), ("train_other_blas_kernels.log", 500)):
        recorded = RUNS / "digits_lenet" / name
        check(ours, recorded, read_whole(recorded), strictly)


@pytest.mark.parametrize("threads", [1, 2])
def test_lenet_in_single_precision(log: Log, tmp_path: Path, threads: int) -> None:
    """One of Caffe's two logs, up to the first near-tie; which of them depends on processor and threads."""
    folder = prepared("digits_lenet", tmp_path)
    change(folder / "solver.prototxt", ("max_iter", "200"))
    before = torch.get_num_threads()
    try:
        lines = log.of(folder, "solver.prototxt", "--plain", "--threads", str(threads)).splitlines()
    finally:
        torch.set_num_threads(before)
    ours: Numbers = {number[:5]: number.value for number in parse_log(lines)}
    errors = []
    for name in ("train.log", "train_other_blas_kernels.log"):
        theirs: Numbers = {number[:5]: number.value for number in read_log(RUNS / "digits_lenet" / name)}
        keys = [key for key in ours if key in theirs]
        assert max(key[1] for key in keys) == 200 and len(keys) >= 30
        errors.append(max(abs(ours[key] / theirs[key] - 1) for key in keys))
    assert min(errors) <= tolerance("before a near-tie").rtol


def test_adam_with_three_test_nets(log: Log, tmp_path: Path) -> None:
    """And stages, two weighted losses, a vector output, clipped gradients."""
    recorded = RUNS / "adam_multi_test" / "train.log"
    ours = log.of(prepared("adam_multi_test", tmp_path), "solver.prototxt", "--double")
    check(ours, recorded, read_whole(recorded), 120)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
def test_run_on_a_gpu(log: Log, tmp_path: Path) -> None:
    recorded = RUNS / "digits_lenet" / "train.log"
    ours = log.of(prepared("digits_lenet", tmp_path), "solver.prototxt", "--double", "--gpu", "0")
    check(ours, recorded, read_whole(recorded))


def test_debug_info(log: Log, tmp_path: Path) -> None:
    ours = log.of(prepared("digits_lenet", tmp_path), "solver_debug_info.prototxt", "--double")
    recorded = (RUNS / "digits_lenet" / "train_debug_info.log").read_text(encoding="utf-8")
    got, want = (
        numbers("\n".join(re.findall(r".*\[(?:Forward|Backward)\].*", text))) for text in (ours, recorded)
    )
    rtol, atol, _ = tolerance("logged")
    np.testing.assert_allclose(got, want, rtol, atol)
    assert len(got) > 100


@pytest.mark.parametrize(
    "runs",
    [
        ["straight_300 solver_second.prototxt"],
        [
            "first_150 solver_first.prototxt",
            "second_150_to_300 solver_second.prototxt --snapshot part_iter_150.solverstate --resume-as-caffe",
        ],
        ["finetune_from_300 solver_first.prototxt --weights part_iter_300.caffemodel"],
        ["sighup_then_sigint solver.prototxt"],
        ["resume solver_resume.prototxt --snapshot sig_iter_1205.solverstate"],
    ],
    ids=lambda runs: runs[-1].split()[0],
)
def test_stopped_resumed_finetuned(log: Log, tmp_path: Path, runs: list[str]) -> None:
    """One was stopped by a signal in iteration 1205. Finetuning and the last one begin with Caffe's files."""
    folder = prepared("sigint_and_resume", tmp_path)
    change(folder / "solver.prototxt", ("max_iter", "1205"))
    for name, *arguments in map(str.split, runs):
        recorded = RUNS / "sigint_and_resume" / f"{name}.log"
        check(log.of(folder, *arguments, "--double"), recorded, read_whole(recorded))


@pytest.mark.parametrize("flags", [["--double"], ["--plain"], []])
def test_crops_mirrors_and_dropout(log: Log, tmp_path: Path, flags: list[str]) -> None:
    """All 200 iterations in double precision, else the first 10. The pictures are CIFAR-10's."""
    recorded = os.environ.get("IMAE_CAFFE_RUNS")
    if not recorded:
        pytest.skip("CIFAR-10 is not here; IMAE_CAFFE_RUNS must name the folder of the runs and their _db")
    shutil.copytree(Path(recorded, "_db"), tmp_path / "_db")
    folder = tmp_path / "run"
    shutil.copytree(CIFAR, folder)
    if flags != ["--double"]:
        change(
            folder / "solver.prototxt", ("max_iter", "10"), ("test_interval", "50 test_initialization: false")
        )
    ours = log.of(folder, "solver.prototxt", *flags)
    check(ours, CIFAR / "train.log", read_whole(CIFAR / "train.log") if flags == ["--double"] else 4)


def test_a_test_without_statistics_is_not_finite(log: Log, tmp_path: Path) -> None:
    """A deep net whose BatchNorms have no statistics yet: NaN in Caffe's test, and training goes on.

    Over 2 iterations: at a rate of 0.01 such a net magnifies rounding, and later ones part in any arithmetic.
    """
    folder = prepared("bn_nan_at_iteration_0", tmp_path)
    change(folder / "solver.prototxt", ("max_iter", "2"))
    check(log.of(folder, "solver.prototxt", "--plain"), RUNS / "bn_nan_at_iteration_0" / "train.log", 8)
