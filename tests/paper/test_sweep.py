"""`imae sweep`: a net with several losses, noise rates and seeds, on the digits; at a tiny size."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import cast

import numpy as np
import pytest

from imae.cli.main import main
from imae.converters.label_file import read_labels
from imae.paper import processes, sweep
from imae.paper.sweep import Run, all_runs, output_name, prepared_net, read_record, read_sweep, tables
from imae.prototxt import NetParameter, SolverParameter
from imae.prototxt.text import read_net, read_text

NET = """
layer { name: "digits" type: "Data" top: "data" top: "label" include { phase: TRAIN }
        data_param { source: "data/digits_train_lmdb" batch_size: 10 backend: LMDB } }
layer { name: "digits" type: "Data" top: "data" top: "label" include { phase: TEST }
        data_param { source: "data/digits_test_lmdb" batch_size: 99 backend: LMDB } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip"
        inner_product_param { num_output: 10 weight_filler { type: "xavier" } } }
layer { name: "accuracy" type: "Accuracy" bottom: "ip" bottom: "label" top: "accuracy"
        include { phase: TEST } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss"
        include { phase: TRAIN not_stage: "mae" } }
layer { name: "loss" type: "MAELoss" bottom: "ip" bottom: "label" top: "loss"
        include { phase: TRAIN stage: "mae" } }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.001 lr_policy: "fixed" max_iter: 6 display: 2 test_iter: 3
test_interval: 2 solver_mode: CPU
"""
SWEEP = """solver = "solver.prototxt"
train = "data/digits_train_lmdb"
noise = "symmetric-exclusive"
rates = [0, 0.5]
seeds = [1, 2]

[losses]
CCE = 'type: "SoftmaxWithLoss"'
IMAE-8 = 'type: "IMAELoss" imae_loss_param { t: 8 }'
MAE = { stage = "mae" }
"""


class Finished:
    """A training that has run in this process."""

    def __init__(self, status: int) -> None:
        self.returncode = status

    def poll(self) -> int:
        return self.returncode


@pytest.fixture(autouse=True)
def _prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(processes, "POLL_INTERVAL", 0.01)
    assert main(["convert-digits", "data"]) == 0
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)
    Path("s.toml").write_text(SWEEP)


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> list[str]:
    """The names of the runs that are started, which run in this process, without waiting for a new one."""
    names: list[str] = []

    def start(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
        names.append(folder.name)
        capfd.readouterr()
        status = main(["train", str(folder / "solver.prototxt"), "--resume", "auto", *options])
        with open(folder / "log", "a") as log:
            log.write(capfd.readouterr().err)
        return cast("subprocess.Popen[bytes]", Finished(status))

    monkeypatch.setattr(sweep, "_start", start)
    return names


def test_a_sweep(started: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    """Each loss with each rate and seed; what has a record is not run again."""
    assert main(["sweep", "s.toml", "--threads", "1"]) == 0
    assert len(started) == len(set(started)) == 12
    assert "IMAE-8_noise0.5_seed2" in started
    out = capfd.readouterr().out
    assert out.endswith("\nwrote s/report.html\n")
    records = [read_record(path) for path in Path("s", "records").iterdir()]
    assert len(records) == 12
    for record in records:
        accuracy = record.outputs["accuracy"]
        assert accuracy["iterations"] == [0, 2, 4, 6]
        assert record.best("accuracy") == max(accuracy["values"])
        assert record.wrong_labels == (0 if record.rate == 0 else pytest.approx(750, abs=100))
    # A seed has the same net and the same labels for each loss; seeds differ.
    first = {
        (r.rate, r.seed, r.outputs["accuracy"]["values"][0]) for r in records if r.loss in ("CCE", "MAE")
    }
    assert len(first) == 4
    (table,) = tables(read_sweep("s.toml"), records)
    assert table.title == "accuracy: mean ± standard deviation of 2 seeds"
    assert [row[0] for row in table.rows] == ["CCE", "IMAE-8", "MAE"]
    assert all(re.fullmatch(r"0\.\d+ ± \S+", cell) for row in table.rows for cell in row[1:])
    page = Path("s", "report.html").read_text()
    assert page.count("<svg xmlns") == 2  # a panel for each rate
    for text in ("IMAE-8_noise0.5_seed2", "noise 50 %", "&quot;IMAELoss&quot;", table.rows[1][1]):
        assert text in page
    report = Path("s", "report.html").read_bytes()
    started.clear()
    Path("s", "records", "MAE_noise0_seed1.json").unlink()
    assert main(["sweep", "s.toml", "--threads", "1"]) == 0
    assert started == ["MAE_noise0_seed1"]
    assert len(Path("s", "report.html").read_bytes()) == pytest.approx(len(report), abs=500)


def test_the_nets_and_solvers_of_the_runs() -> None:
    Path("other.prototxt").write_text(NET.replace('name: "ip"', 'name: "another"'))
    Path("s.toml").write_text(SWEEP + 'own = { net = "other.prototxt" }\n')
    read = read_sweep("s.toml")
    assert len(all_runs(read)) == 16
    nets = {}
    for loss in read.losses:
        net, stages = prepared_net(read, Run(loss, 0.5, 1), Path("noisy"))
        nets[loss] = net
        sources = [layer.data_param.source for layer in net.layer if layer.type == "Data"]
        assert sources == ["noisy", "data/digits_test_lmdb"]
        assert stages == (["mae"] if loss == "MAE" else [])
    loss = nets["IMAE-8"].layer[4]
    assert (loss.type, loss.name, list(loss.bottom), list(loss.top)) == (
        "IMAELoss", "loss", ["ip", "label"], ["loss"]
    )  # fmt: skip
    assert loss.imae_loss_param.t == 8 and loss.include[0].not_stage[:] == ["mae"]
    assert nets["MAE"] == nets["CCE"]
    assert nets["own"].layer[2].name == "another"


def test_the_nets_data_layers_may_name_another_lmdb() -> None:
    Path("s.toml").write_text(f'replaces = "data/digits_test_lmdb"\n{SWEEP}')
    read = read_sweep("s.toml")
    net, _ = prepared_net(read, Run("CCE", 0, 1), Path("noisy"))
    assert [layer.data_param.source for layer in net.layer[:2]] == ["data/digits_train_lmdb", "noisy"]


def test_outputs_have_the_names_of_the_test_nets_stages() -> None:
    solver = SolverParameter()
    assert output_name("accuracy (test net #1)", solver) == "accuracy (test net #1)"
    solver.test_state.add(stage=["test"])
    assert output_name("accuracy", solver) == "accuracy"
    solver.test_state.add(stage=["train"])
    solver.test_state.add()
    names = ["accuracy", "accuracy (test net #1)", "accuracy (test net #2)"]
    assert [output_name(name, solver) for name in names] == [
        *("accuracy (test)", "accuracy (train)", "accuracy (test net #2)")
    ]


def test_the_files_of_a_run(started: list[str]) -> None:
    Path("s.toml").write_text(SWEEP.replace("[1, 2]", "[3]").replace("[0, 0.5]", "[0.5]"))
    assert main(["sweep", "s.toml", "--threads", "1"]) == 0
    folder = Path("s", "runs", "MAE_noise0.5_seed3")
    solver = read_text(folder / "solver.prototxt", SolverParameter)
    assert (solver.random_seed, solver.net, solver.train_state.stage[:]) == (
        3, str(folder / "net.prototxt"), ["mae"]
    )  # fmt: skip
    assert isinstance(read_net(folder / "net.prototxt"), NetParameter)
    assert (folder / "run_iter_6.caffemodel").exists()
    noisy = Path("s", "data", "symmetric-exclusive_0.5_seed123_lmdb.clean_labels.npz")
    clean, given = (read_labels(f"{noisy}:{name}").labels for name in ("clean", "noisy"))
    record = read_record(Path("s", "records", f"{folder.name}.json"))
    assert record.wrong_labels == int(np.sum(clean != given))
    assert record.train_records == len(clean) == 1500


def test_a_stopped_run_goes_on_from_its_snapshot(
    started: list[str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """It has no record; the same command resumes it, and its record is the one of a run left alone."""
    one = SWEEP[: SWEEP.index("IMAE-8")].replace("[1, 2]", "[1]").replace("[0, 0.5]", "[0]")
    Path("s.toml").write_text(one)
    Path("whole.toml").write_text(one)
    assert main(["sweep", "whole.toml", "--threads", "1"]) == 0
    whole = sweep._start

    def stopped(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
        """As stopped by Ctrl-C after four iterations: exit status 0."""
        solver = folder / "solver.prototxt"
        text = solver.read_text()
        solver.write_text(text.replace("max_iter: 6", "max_iter: 4"))
        whole(folder, options)
        solver.write_text(text)
        return cast("subprocess.Popen[bytes]", Finished(0))

    monkeypatch.setattr(sweep, "_start", stopped)
    assert main(["sweep", "s.toml", "--threads", "1"]) == 2
    assert "1 of 1 runs have not ended: CCE_noise0_seed1; their logs are" in capfd.readouterr().err
    assert not Path("s", "records").exists()
    monkeypatch.setattr(sweep, "_start", whole)
    assert main(["sweep", "s.toml", "--threads", "1"]) == 0
    log = Path("s", "runs", "CCE_noise0_seed1", "log").read_text()
    assert "Resuming from " in log and "_iter_4.solverstate" in log
    ours, expected = (
        json.loads(Path(name, "records", "CCE_noise0_seed1.json").read_text())["outputs"]
        for name in ("s", "whole")
    )
    assert ours == expected


def test_processes(capfd: pytest.CaptureFixture[str]) -> None:
    """Trainings as they are really started; one fails, and is told."""
    Path("bad.prototxt").write_text(NET.replace("num_output: 10", "num_output: 3"))
    text = SWEEP[: SWEEP.index("IMAE-8")] + 'bad = { net = "bad.prototxt" }\n'
    Path("s.toml").write_text(text.replace("[1, 2]", "[1]").replace("[0, 0.5]", "[0]"))
    assert main(["sweep", "s.toml", "--jobs", "2", "--threads", "1"]) == 2
    captured = capfd.readouterr()
    error = captured.err.strip().splitlines()[-1]
    assert error.startswith("imae: 1 of 2 runs have not ended: bad_noise0_seed1; their logs are s/runs/bad_")
    assert "CCE_noise0_seed1: accuracy 0." in captured.out
    assert "bad_noise0_seed1: exit status 2: imae: " in captured.out
    assert [path.name for path in Path("s", "records").iterdir()] == ["CCE_noise0_seed1.json"]


def test_a_sweep_that_has_changed_is_refused(started: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    Path("s.toml").write_text(
        SWEEP[: SWEEP.index("IMAE-8")].replace("[1, 2]", "[1]").replace("[0, 0.5]", "[0]")
    )
    assert main(["sweep", "s.toml", "--threads", "1"]) == 0
    Path("solver.prototxt").write_text(SOLVER.replace("0.001", "0.002"))
    assert main(["sweep", "s.toml", "--threads", "1"]) == 2
    assert "solver.prototxt' is of another run: the sweep's net, solver or data" in capfd.readouterr().err
    Path("solver.prototxt").write_text(SOLVER)
    Path("s", "records", "CCE_noise0_seed1.json").write_text("{}")
    assert main(["sweep", "s.toml", "--threads", "1"]) == 2
    assert "is not a record of a sweep" in capfd.readouterr().err
    assert len(started) == 1


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("train = ", "replaces = 3\ntrain = ", "'s.toml': 'replaces' must be given as a str"),
        ("rates", "rate", "'s.toml': unknown 'rate'; did you mean rates?"),
        ("rates", "iterations", "replaces; iterations, learning rate and tests are the solver's)"),
        ("seeds = [1, 2]", "", "'s.toml': 'seeds' must be given as a list that is not empty"),
        ("[0, 0.5]", "[]", "'rates' must be given as a list that is not empty"),
        ("[0, 0.5]", "[0, 1.5]", "rates must be numbers from 0 to 1; got 1.5"),
        ("[0, 0.5]", "[0, 0.0]", "rates has a value twice"),
        ("[1, 2]", '["1"]', "seeds must be whole numbers from 0 to 4294967295; got '1'"),
        ("symmetric-exclusive", "matrix", "noise must be one of symmetric, symmetric-exclusive, "),
        ('{ stage = "mae" }', "3", "the loss MAE must be a layer's text, { stage"),
        ('{ stage = "mae" }', '{ phase = "x" }', "the loss MAE must be a layer's text, { stage"),
        ("IMAE-8 = ", "IMAE-0.5 = ", "a name with a dot is written in quotes"),
        ("MAE = ", '"../x" = ', "the name of a loss is also that of files"),
        ("= [1, 2]", "= [1, ", "'s.toml' is no sweep in TOML: "),
        ("solver.prototxt", "none.prototxt", "none.prototxt"),
        (
            "digits_train_lmdb",
            "other_lmdb",
            "no Data layer reads 'data/other_lmdb', which the",
        ),
        ('"SoftmaxWithLoss"', '"Softmax"', 'the loss loss: type "Softmax" is no loss'),
        ('"SoftmaxWithLoss"', '"NoLoss"', "Unknown layer type: NoLoss"),
        ("{ t: 8 }", "{ tt: 8 }", "tt"),
    ],
)
def test_refused(
    old: str, new: str, message: str, started: list[str], capfd: pytest.CaptureFixture[str]
) -> None:
    assert old in SWEEP
    Path("s.toml").write_text(SWEEP.replace(old, new))
    assert main(["sweep", "s.toml"]) == 2
    assert message in capfd.readouterr().err.strip().splitlines()[-1]
    assert started == []


def test_a_sweep_that_is_not_there(capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "none.toml"]) == 2
    assert "cannot read the sweep 'none.toml': No such file or directory" in capfd.readouterr().err
    assert main(["sweep", "s.toml", "--jobs", "0"]) == 2
    assert "--jobs must be at least 1, got 0" in capfd.readouterr().err
    Path("s.toml").rename("s")
    assert main(["sweep", "s"]) == 2
    assert "the name of a sweep must have an ending" in capfd.readouterr().err
