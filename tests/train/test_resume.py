"""A run survives kills, damaged snapshots, the removal of old ones, signals, a loss that is not finite."""

from __future__ import annotations

import json
import logging
import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import killed_runs
import pytest
import torch
from tiny_solver import DATA, FIVE_OUTPUTS, LOSS, TINY_SOLVER, write_solver
from tiny_solver import made_files as names
from waiting import FOR_EVER

from imae.cli.main import main
from imae.files.errors import FileError, NotFiniteError, SnapshotError
from imae.prototxt.text import parse_solver
from imae.train.options import Options
from imae.train.signals import Action, SignalRequests
from imae.train.snapshots import find_snapshots
from imae.train.solver import Solver
from imae.train.solverstate import read_state

POWER = 'layer { name: "b" type: "Power" bottom: "a" top: "b" }\n'
NET = DATA + FIVE_OUTPUTS + POWER + LOSS.replace('bottom: "a"', 'bottom: "b"')
SOLVER = TINY_SOLVER + "max_iter: 10\n"
DIVERGES = SOLVER.replace("base_lr: 0.1", "base_lr: 1e38")


@pytest.fixture
def here(here: Path) -> Path:
    """A working directory with net.prototxt and solver.prototxt."""
    write_solver(SOLVER, NET)
    return here


def snapshots(*iterations: int, end: str = "") -> set[str]:
    return {f"s_iter_{i}.{kind}{end}" for i in iterations for kind in ("caffemodel", "solverstate")}


def train(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> str:
    """The log of `imae train solver.prototxt ...`."""
    capsys.readouterr()
    assert main(["train", "solver.prototxt", *arguments]) == status
    return capsys.readouterr().err


# -- killed --------------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings are forks of one process")
def test_killed_twenty_times_and_resumed_it_is_the_run_that_was_left_alone(tmp_path: Path) -> None:
    """See killed_runs.py, which does it."""
    script, seed = Path(__file__).parents[1] / "support" / "killed_runs.py", random.randrange(10**6)
    done = subprocess.run(
        [sys.executable, "-W", "error", str(script), str(tmp_path), "--kills", "20", "--seed", str(seed)],
        env=os.environ | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=FOR_EVER,
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    counts = json.loads(done.stdout.splitlines()[-1])
    kinds = ("killed at a byte", "killed at a call", "killed at some time")
    assert [counts[kind] for kind in kinds] == [7, 7, 6]
    assert counts["ended"] > 0 and counts["lines compared"] > 500 and counts["snapshots read"] > 5
    assert counts["writers in place noticed"] == 4


# -- --resume auto -------------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="trainings are forks of one process")
def test_a_life_that_ends_before_it_has_a_log_is_not_judged_by_the_one_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The harness of the test above once read the log of another life, and blamed the training."""
    said = "I1129 00:00:00.000000     1 solver.cpp:290] Learning Rate Policy: fixed\n"
    said += "I1129 00:00:00.000000     1 solver.cpp:239] Iteration 9 (1 iter/s, 1s/1 iters), loss = 1\n"
    for name in ("killed", "undisturbed"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "log").write_text(f"Resuming from s_iter_88.solverstate\n{said}")

    def fork(*arguments: object) -> int:
        number = os.fork()
        if number == 0:
            signal.pause()
        return number

    monkeypatch.setattr(killed_runs, "fork", fork)
    training = killed_runs.Training(tmp_path / "killed", tmp_path / "undisturbed", random.Random(1), 0.1)
    assert training.live("killed at some time") is False
    assert training.counts == {"killed at some time": 1}


def test_without_a_snapshot_auto_starts_from_scratch(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = train(capsys, "--resume", "auto")
    assert "There is no snapshot s_iter_*: the training starts from scratch\n" in log
    assert "Iteration 0 " in log


@pytest.mark.parametrize("end", ["", ".h5"])
def test_auto_takes_the_newest_whole_snapshot(
    here: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    """Not two halves, nor those with a cut model, a cut state, a model of another run."""
    Path("solver.prototxt").write_text(SOLVER + ("snapshot_format: HDF5" if end else ""))
    train(capsys)
    whole = Path(f"s_iter_10.solverstate{end}").read_bytes()
    assert f"Resuming from s_iter_10.solverstate{end}\n" in train(capsys, "--resume", "auto")
    other = Path(f"s_iter_2.caffemodel{end}").read_bytes()
    cut(Path(f"s_iter_8.caffemodel{end}"))
    cut(Path(f"s_iter_6.solverstate{end}"))
    Path(f"s_iter_4.caffemodel{end}").write_bytes(other)
    Path(f"s_iter_10.caffemodel{end}").unlink()
    Path(f"s_iter_12.caffemodel{end}").write_bytes(other)
    log = train(capsys, "--resume", "auto")
    assert re.findall(r"Passing over a snapshot: (.*?: (?:\S+ is )?(?:a \S+|damaged|not a))", log) == [
        f"s_iter_12.caffemodel{end}: a model",
        f"s_iter_10.solverstate{end}: a state",
        f"s_iter_8.solverstate{end}: s_iter_8.caffemodel{end} is damaged",
        f"s_iter_6.solverstate{end}: not a",
        f"s_iter_4.solverstate{end}: s_iter_4.caffemodel{end} is damaged",
    ]
    assert f"Resuming from s_iter_2.solverstate{end}\n" in log
    if not end:
        assert Path("s_iter_10.solverstate").read_bytes() == whole
    for path in here.glob("*.solverstate*"):
        path.unlink()
    assert "There is no whole snapshot s_iter_*: the training starts from scratch\n" in train(
        capsys, "--resume", "auto"
    )


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def test_auto_passes_over_snapshots_of_another_net(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(capsys)
    Path("net.prototxt").write_text(NET.replace("num_output: 5", "num_output: 7"))
    log = train(capsys, "--resume", "auto")
    assert log.count("Passing over a snapshot: ") == 5
    assert "history blob 0 has shape 5 3 (15), this net needs 7 3 (21)" in log
    assert "the training starts from scratch" in log


def test_a_snapshot_that_was_moved_is_found(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The model's path in the state is an old one; the model beside the state counts."""
    train(capsys)
    Path("moved").mkdir()
    for name in snapshots(10):
        Path(name).rename(Path("moved", name))
    Path("solver.prototxt").write_text(SOLVER.replace('"s"', '"moved/s"'))
    assert "Resuming from moved/s_iter_10.solverstate\n" in train(capsys, "--resume", "auto")


def test_auto_as_caffe(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train(capsys)
    exactly = train(capsys, "--resume", "auto")
    as_caffe = train(capsys, "--resume", "auto", "--resume-as-caffe")
    assert ("random numbers go on" in exactly, "random numbers go on" in as_caffe) == (True, False)


def test_a_cut_or_changed_state_is_refused_wherever_that_is(here: Path) -> None:
    solver = Solver(parse_solver(SOLVER.replace('"fixed"', '"step" stepsize: 1 gamma: 0.9')))
    solver.step(2)
    path = Path("s_iter_2.solverstate")
    data = path.read_bytes()
    for length in (*range(0, len(data), 101), *range(len(data) - 200, len(data))):  # run's text is in front
        path.write_bytes(data[:length])
        with pytest.raises(SnapshotError):
            read_state(path)
    place = data.rindex(read_state_history(data))
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with pytest.raises(SnapshotError, match="damaged: its checksum is not that of its content"):
        solver.restore(path)


def read_state_history(data: bytes) -> bytes:
    """The bytes of the first history blob in the file's bytes."""
    Path("whole").write_bytes(data)
    return read_state("whole").history[0].tobytes()


def test_two_ways_to_resume_are_refused(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = train(capsys, "--resume", "auto", "--snapshot", "s_iter_2.solverstate", status=2)
    assert log.endswith("--snapshot names the state to resume from, --resume auto looks for it; give one\n")


# -- --keep --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["", ".h5"])
def test_keep_removes_older_snapshots_and_nothing_else(
    here: Path, capsys: pytest.CaptureFixture[str], end: str
) -> None:
    other = {
        "s_iter_1.caffemodel.tmp", "s_iter_02.caffemodel", "s_iter_1.solverstate.old", "t_iter_1.caffemodel",
        "xs_iter_1.caffemodel", "s_iter_.caffemodel", "s_iter_-1.caffemodel", "s_iter_1.prototxt",
        "s_iter_99.solverstate", "s_iter_1.caffemodel.h5.h5", "S_iter_1.caffemodel", "s_iter_1_caffemodel",
    }  # fmt: skip
    for name in {*other, "s_iter_1.caffemodel", "s_iter_3.solverstate.h5"}:
        Path(name).touch()
    Path("s_iter_5.caffemodel").symlink_to("net.prototxt")
    Path("s_iter_5.solverstate").mkdir()
    Path("solver.prototxt").write_text(SOLVER + ("snapshot_format: HDF5" if end else ""))
    train(capsys, "--keep", "2")
    assert names(here) == {*other, *snapshots(8, 10, end=end), "s_iter_5.caffemodel", "s_iter_5.solverstate"}
    assert Path("net.prototxt").read_text() == NET


def test_nothing_is_removed_before_the_newer_one_is_whole(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At each call that could be the last one, there is a whole snapshot."""
    solver = Solver(parse_solver(SOLVER), Options(keep=1))
    solver.step(2)
    unlink, removed = os.unlink, []

    def checked(path: str) -> None:
        newest = find_snapshots("s")[0]
        assert newest.iteration > int(re.findall(r"\d+", path)[0])
        assert read_state(newest.state).iteration == newest.iteration and newest.model
        removed.append(path)
        unlink(path)

    monkeypatch.setattr(os, "unlink", checked)
    solver.step(4)
    assert removed == ["s_iter_2.solverstate", "s_iter_2.caffemodel"]  # once a loss of number 4 was shown
    assert names(here) == snapshots(4, 6)


def test_later_snapshots_are_of_another_run_and_stay(here: Path) -> None:
    first = Solver(parse_solver(SOLVER))
    first.step(6)
    second = Solver(parse_solver(SOLVER), Options(keep=1))
    second.step(5)
    assert names(here) == snapshots(4, 6)


@pytest.mark.parametrize("prefix", ["../s", "{above}/s", "link/s", "sub/../../s"])
def test_keep_does_not_reach_out_of_the_working_directory(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], prefix: str
) -> None:
    inside = here / "inside"
    (inside / "sub").mkdir(parents=True)
    (inside / "link").symlink_to(here)
    Path("inside/solver.prototxt").write_text(
        SOLVER.replace('"net.', '"../net.').replace('"s"', f'"{prefix.format(above=here)}"')
    )
    monkeypatch.chdir(inside)
    log = train(capsys, "--keep", "1", status=2)
    assert "--keep removes snapshots in the working directory only" in log
    train(capsys)  # written they may be
    assert names(here) == {"inside", *snapshots(2, 4, 6, 8, 10)}
    monkeypatch.chdir(here)
    Solver(parse_solver(SOLVER), Options(keep=1)).step(0)
    with pytest.raises(FileError, match="leads to"):
        Solver(parse_solver(SOLVER.replace('"s"', '"../s"')), Options(keep=1))


def test_keep_takes_no_negative_number(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "--keep must be at least 0 (keep all), got -1" in train(capsys, "--keep", "-1", status=2)


# -- a loss that is not finite -------------------------------------------------------------------------------


def test_a_loss_that_is_not_finite_stops_the_training(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """It is said where, why, and from where one may go on."""
    Path("solver.prototxt").write_text(DIVERGES.replace("snapshot: 2", "snapshot: 1"))
    log = train(capsys, status=2)
    last = log.splitlines()[-1]
    found = re.fullmatch(
        r"imae: Iteration (\d): the loss is -?nan; top 'a' of layer 'a' \(InnerProduct\) is the first not "
        r"finite( \(and so is parameter blob 0, 1 of this layer\))?; last good snapshot: "
        r"s_iter_(?P<good>\d)\.solverstate; lower base_lr or mend the data, or give --on-nan continue",
        last,
    )
    assert found, last
    assert f"Iteration {found[1]} (" in log.splitlines()[-3]  # Caffe's line comes before
    assert int(found["good"]) == int(found[1]) - 1  # what was written after it makes such a loss
    assert names(here) == snapshots(*range(1, int(found[1]) + 1))
    assert "loss = nan" in train(capsys, "--on-nan", "continue").replace("-nan", "nan")
    again = train(capsys, "--resume", "auto", status=2)
    assert "s_iter_10.solverstate: its weights are not finite; take an earlier one" in again
    assert re.search(r"Resuming from s_iter_\d\.solverstate", again)


def test_the_layer_that_makes_the_first_infinity_is_named(here: Path) -> None:
    net = NET.replace(
        'type: "Power" bottom: "a" top: "b"', 'type: "Exp" bottom: "a" top: "b" exp_param { scale: 1e4 }'
    )
    Path("net.prototxt").write_text(net)
    solver = Solver(parse_solver(SOLVER + "iter_size: 2"), Options(on_nan="stop"))
    before = [p.detach().clone() for p in solver.net.learnable]
    with pytest.raises(
        NotFiniteError,
        match=r"Iteration 0: the loss is -?\w+; top 'b' of layer 'b' \(Exp\) is the first not finite; last "
        r"good snapshot: none",
    ):
        solver.step(1)
    assert solver.iteration == 0
    assert all(torch.equal(p, values) for p, values in zip(solver.net.learnable, before, strict=True))


def test_a_loss_of_an_iteration_before_counts_too(here: Path) -> None:
    """An infinity that came and went between two displays."""
    solver = Solver(
        parse_solver(SOLVER.replace("display: 1", "display: 3 average_loss: 5")), Options(on_nan="stop")
    )
    solver.step(2)
    solver._loss.add(torch.tensor(torch.inf))
    solver._keep_loss = True
    with pytest.raises(
        NotFiniteError, match="every top of this iteration is finite, so it comes from one since"
    ):
        solver.step(5)


def test_keep_leaves_the_last_good_snapshot(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("solver.prototxt").write_text(
        DIVERGES.replace("snapshot: 2", "snapshot: 1").replace("display: 1", "")
    )
    train(capsys, "--keep", "1")
    good = [path for path in sorted(here.glob("*.solverstate")) if read_state(path).run["finite"]]
    assert len(good) == 1


# From iteration 6 on a step multiplies the weight by some 1e10: soon its square, the loss, is infinite.
BLOWS_UP = """
net_param {
  layer { name: "data" type: "DummyData" top: "x" top: "y"
          dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 dim: 1 } data_filler { type: "gaussian" }
                             data_filler { type: "constant" value: 1 } } }
  layer { name: "ip" type: "InnerProduct" bottom: "x" top: "ip"
          inner_product_param { num_output: 1 weight_filler { type: "xavier" } } }
  layer { name: "loss" type: "EuclideanLoss" bottom: "ip" bottom: "y" top: "loss" }
}
base_lr: 0.1 lr_policy: "multistep" gamma: 1e11 stepvalue: 6 random_seed: 1 snapshot_prefix: "s"
display: 4 snapshot: 1 max_iter: 20
"""


@pytest.mark.parametrize(("keep", "left"), [(0, range(1, 9)), (1, (4, 8)), (2, (4, 7, 8)), (6, range(3, 9))])
def test_a_snapshot_of_finite_weights_is_not_good_before_a_finite_loss_was_shown(
    here: Path, keep: int, left: Iterable[int]
) -> None:
    """Number 8 has weights that make an infinite loss; it must not cost the one that is known to be good."""
    solver = Solver(parse_solver(BLOWS_UP), Options(on_nan="stop", keep=keep))
    with pytest.raises(
        NotFiniteError,
        match=r"Iteration 8: the loss is inf; top 'loss' .* last good snapshot: s_iter_4\.solverstate;",
    ):
        solver.solve()
    assert names(here) == snapshots(*left)
    assert read_state("s_iter_8.solverstate").run["finite"]
    again = Solver(
        parse_solver(BLOWS_UP.replace("gamma: 1e11", "gamma: 0.1")), Options(on_nan="stop", keep=keep)
    )
    again.restore("s_iter_4.solverstate")
    again.solve()


def test_a_run_that_goes_on_with_an_infinite_loss_leaves_the_last_good_snapshot(here: Path) -> None:
    solver = Solver(parse_solver(BLOWS_UP), Options(on_nan="continue", keep=1))
    solver.solve()
    left = [n for n in range(1, 21) if Path(f"s_iter_{n}.solverstate").exists()]
    assert solver.last_good == "s_iter_4.solverstate"
    assert (left[0], left[-1], len(left)) == (4, 20, 3)
    states = [read_state(f"s_iter_{n}.solverstate").run["finite"] for n in left]
    assert states == [True, True, False]  # known to be good, the last with finite weights, the newest


def test_what_a_run_was_resumed_from_stays_until_a_later_one_is_good(here: Path) -> None:
    first = Solver(parse_solver(BLOWS_UP))
    first.step(5)
    resumed = Solver(
        parse_solver(BLOWS_UP.replace("display: 4", "display: 7")), Options(on_nan="stop", keep=1)
    )
    resumed.restore("s_iter_5.solverstate")
    resumed.step(2)
    assert names(here) == snapshots(5, 7)
    assert resumed.last_good == ""
    resumed.step(1)  # which shows the loss of number 7
    assert resumed.last_good == "s_iter_7.solverstate"
    assert names(here) == snapshots(7, 8)


def test_a_test_that_is_not_finite_is_warned_of_once(here: Path, caplog: pytest.LogCaptureFixture) -> None:
    bad = 'layer { name: "log" type: "Log" bottom: "data" top: "log" include { phase: TEST } }'
    Path("net.prototxt").write_text(NET + bad)
    for on_nan, warnings in (("stop", 1), ("continue", 0)):
        caplog.clear()
        with caplog.at_level(logging.WARNING, "imae"):
            solver = Solver(parse_solver(SOLVER + "test_iter: 1 test_interval: 1"), Options(on_nan=on_nan))  # type: ignore[arg-type]  # the two words
            solver.step(3)
        said = [record.getMessage() for record in caplog.records]
        assert (
            len([line for line in said if line.startswith("Test net output log is not finite")]) == warnings
        )


# -- signals -------------------------------------------------------------------------------------------------


def started(*arguments: str) -> subprocess.Popen[str]:
    """`imae train solver.prototxt ...` in a process of its own, which has begun to train."""
    code = "import sys; from imae.cli.main import main; sys.exit(main(sys.argv[1:]))"
    process = subprocess.Popen(
        [sys.executable, "-c", code, "train", "solver.prototxt", *arguments],
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert process.stderr is not None
    while "Learning Rate Policy" not in (line := process.stderr.readline()):
        assert line, "it ended before it began to train"
    return process


def test_sighup_snapshots_and_sigint_stops_a_process(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("solver.prototxt").write_text(SOLVER.replace("snapshot: 2\nmax_iter: 10", "max_iter: 1000000"))
    process = started()
    process.send_signal(signal.SIGHUP)
    deadline = time.monotonic() + FOR_EVER
    while not (found := find_snapshots("s")) or not found[0].state:
        assert time.monotonic() < deadline and process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=FOR_EVER)
    assert process.returncode == 0
    assert log.rstrip().endswith("caffe.cpp:250] Optimization Done.") and "Optimization stopped early." in log
    last, first = find_snapshots("s")
    assert last.iteration > first.iteration
    Path("solver.prototxt").write_text(SOLVER.replace("max_iter: 10", f"max_iter: {last.iteration + 1}"))
    assert f"Resuming from {last.state}\n" in train(capsys, "--resume", "auto")


def test_a_second_sigint_ends_a_process_at_once(here: Path) -> None:
    """An iteration that takes ages does not come to its end."""
    Path("solver.prototxt").write_text(SOLVER + "iter_size: 1000000000")
    process = started()
    process.send_signal(signal.SIGTERM)  # asks for a stop, too
    with pytest.raises(subprocess.TimeoutExpired):
        process.wait(0.3)
    process.send_signal(signal.SIGINT)
    _, log = process.communicate(timeout=FOR_EVER)
    assert process.returncode == 130
    assert log.endswith("imae: interrupted\n")
    assert names(here) == set()


def test_a_second_sigint_amid_a_snapshot_harms_no_file(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solver = Solver(parse_solver(SOLVER))
    solver.step(3)
    before = {path.name: path.read_bytes() for path in here.iterdir()}
    fsync = os.fsync

    def interrupted(handle: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        fsync(handle)

    with SignalRequests() as requests:
        solver.request = requests
        monkeypatch.setattr(os, "fsync", interrupted)
        with pytest.raises(KeyboardInterrupt):
            solver.snapshot()  # writes two files, so that there are two signals at least
    after = {path.name: path.read_bytes() for path in here.iterdir()}
    assert {name: after[name] for name in before} == before
    for name in set(after) - set(before):
        assert name in snapshots(3)


def test_other_signals_do_not_interrupt() -> None:
    with SignalRequests(sigint=Action.SNAPSHOT) as requests:
        for number in (signal.SIGINT, signal.SIGINT, signal.SIGHUP, signal.SIGHUP):
            os.kill(os.getpid(), number)
        assert [requests() for _ in range(3)] == [Action.SNAPSHOT, Action.SNAPSHOT, Action.NONE]
    with SignalRequests() as requests:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert requests() is Action.STOP


@pytest.mark.parametrize("wanted", [Action.SNAPSHOT, Action.STOP])
def test_a_snapshot_amid_a_test_is_gone_on_with_exactly(
    here: Path, caplog: pytest.LogCaptureFixture, wanted: Action
) -> None:
    """The test is made again from its first batch."""
    text = SOLVER.replace("snapshot: 2", "") + "test_iter: 3 test_interval: 4"

    def outputs() -> list[str]:
        said = [record.getMessage() for record in caplog.records]
        caplog.clear()
        return [re.sub(r"\(.*? iters\)", "", line) for line in said if re.search("net output|, loss", line)]

    caplog.set_level(logging.INFO, "imae")
    whole = Solver(parse_solver(text))
    whole.solve()
    straight = outputs()
    stopped = Solver(parse_solver(text))
    asked = []

    def request() -> Action:
        asked.append(stopped.iteration)
        return wanted if asked.count(4) == 2 and asked[-1] == 4 else Action.NONE

    stopped.request = request
    stopped.solve()
    caplog.clear()
    resumed = Solver(parse_solver(text))
    resumed.restore("s_iter_4.solverstate")
    resumed.solve()
    again = outputs()
    assert again == straight[-len(again) :]
    assert len([line for line in again if "Test net" in line]) == 2
    for a, b in zip(resumed.net.learnable, whole.net.learnable, strict=True):
        assert torch.equal(a, b)
