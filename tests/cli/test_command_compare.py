"""`imae compare`: the best and last numbers of any number of logs, grouped by seeds, drawn and written."""

from __future__ import annotations

import csv
import json
import statistics
from pathlib import Path

import pytest

from imae.cli.main import main
from imae.files.caffe_log import read_log
from imae.train import compare_runs
from imae.train.compare_runs import band, read_groups, summarise

LINE = "I1121 02:14:{:02d}.000000  3477 solver.cpp:239] {}\n"


def write_log(path: Path, accuracies: list[float], losses: list[float], step: int = 10) -> None:
    """A log with a test each 10 iterations, one second each."""
    lines = [LINE.format(0, "Solving net")]
    for i, (accuracy, loss) in enumerate(zip(accuracies, losses, strict=True)):
        lines += [
            LINE.format(i, f"Iteration {step * i}, Testing net (#0)"),
            LINE.format(i, f"    Test net output #0: accuracy = {accuracy}"),
            LINE.format(i, f"    Test net output #1: loss = {loss} (* 1 = {loss} loss)"),
            LINE.format(i, f"Iteration {step * i} (10 iter/s, 1s/10 iters), loss = {loss + 1}"),
            LINE.format(i, f"Iteration {step * i}, lr = {0.1 if i < 2 else 0.01}"),
        ]
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(lines))


@pytest.fixture(autouse=True)
def _prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_log(Path("cce_seed1.log"), [0.1, 0.9, 0.7], [2.5, 0.5, 0.75])
    write_log(Path("cce_seed2.log"), [0.1, 0.8, 0.6], [2.5, 0.75, 0.5])
    write_log(Path("imae_seed1.log"), [0.1, 0.85, 0.875], [2.5, 1, 1])


LOGS = ["cce_seed1.log", "cce_seed2.log", "imae_seed1.log"]
TABLE = """\
           run  accuracy best  at   last  loss best  at  last  train loss  iterations  seconds
 cce_seed1.log            0.9  10    0.7        0.5  10  0.75        1.75          20        2
 cce_seed2.log            0.8  10    0.6        0.5  20   0.5         1.5          20        2
imae_seed1.log          0.875  20  0.875          1  10     1           2          20        2
"""
GROUPED = """\
 run  seeds  accuracy best  at          last  loss best  at          last    train loss  iterations  seconds
 cce      2   0.85 ± 0.071  10  0.65 ± 0.071    0.5 ± 0  15  0.625 ± 0.18  1.625 ± 0.18          20        2
imae      1          0.875  20         0.875          1  10             1             2          20        2
"""


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    """Accuracies are best where they are highest, losses where they are lowest; of equal ones the first."""
    assert main(["compare", *LOGS]) == 0
    assert capsys.readouterr().out == TABLE


def test_seeds_are_grouped_by_a_pattern(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *LOGS, "--group", r"_seed\d+\.log"]) == 0
    assert capsys.readouterr().out == GROUPED


def test_seeds_are_grouped_by_folder(capsys: pytest.CaptureFixture[str]) -> None:
    for seed in (1, 2):
        write_log(Path("cce", f"{seed}.log"), [0.1, 0.9], [2, 1])
    write_log(Path("mae", "1.log"), [0.1, 0.5], [2, 1])
    assert main(["compare", "cce/1.log", "cce/2.log", "mae/1.log", "--group-folders"]) == 0
    lines = [line.split()[:2] for line in capsys.readouterr().out.splitlines()]
    assert lines == [["run", "seeds"], ["cce", "2"], ["mae", "1"]]


def test_csv_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    group = ["--group", "_seed[0-9]+.log"]
    assert main(["compare", *LOGS, *group, "--csv", "r.csv", "--json", "-"]) == 0
    printed = capsys.readouterr()
    assert printed.err == GROUPED
    with open("r.csv", newline="") as file:
        first, second = csv.DictReader(file)
    assert (first["run"], first["seeds"], second["run"]) == ("cce", "2", "imae")
    assert float(first["accuracy best"]) == statistics.fmean([0.9, 0.8])
    assert float(first["accuracy best std"]) == statistics.stdev([0.9, 0.8])
    assert (first["loss best iteration"], second["accuracy last std"]) == ("15.0", "")
    runs = json.loads(printed.out)["runs"]
    assert [run["run"] for run in runs] == ["cce", "imae"]
    assert runs[0]["seeds"][1]["outputs"]["accuracy"] == {"best": 0.8, "best_iteration": 10, "last": 0.6}
    assert runs[0]["seeds"][1]["log"] == "cce_seed2.log"


def test_outputs_are_chosen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *LOGS, "--output", "loss"]) == 0
    assert "accuracy" not in capsys.readouterr().out


def test_an_output_that_a_log_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    text = Path("imae_seed1.log").read_text().replace(": accuracy =", ": top5 =")
    Path("imae_seed1.log").write_text(text)
    assert main(["compare", *LOGS]) == 0
    assert "accuracy" not in capsys.readouterr().out  # what all have
    assert main(["compare", *LOGS, "--output", "accuracy", "--output", "top5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[1:7] == ["0.9", "10", "0.7", "-", "-", "-"]
    assert lines[3].split()[1:7] == ["-", "-", "-", "0.875", "20", "0.875"]


def test_a_run_that_was_stopped_and_resumed() -> None:
    """Its log is appended to: numbers that come again replace those before, and the seconds add up."""
    write_log(Path("part1.log"), [0.1, 0.9, 0.7], [2.5, 0.5, 0.75])
    write_log(Path("part2.log"), [0.2, 0.4, 0.6, 0.5], [2, 1, 0.5, 0.25])
    Path("all.log").write_text(Path("part1.log").read_text() + Path("part2.log").read_text())
    training = summarise("all", read_log("all.log"))
    assert training.outputs["accuracy"] == (0.6, 20, 0.5)
    assert (training.iterations, training.seconds, training.loss) == (30, 5, 1.25)


def test_nan_is_never_the_best() -> None:
    write_log(Path("nan.log"), [float("nan"), 0.5, float("nan")], [float("nan"), 1, float("nan")])
    training = summarise("nan", read_log("nan.log"))
    assert training.outputs["accuracy"][:2] == (0.5, 10)
    assert training.outputs["loss"][:2] == (1, 10)
    assert main(["compare", "nan.log", "--json", "r.json"]) == 0
    (seed,) = json.loads(Path("r.json").read_text())["runs"][0]["seeds"]
    assert seed["outputs"]["accuracy"] == {"best": 0.5, "best_iteration": 10, "last": None}


def test_the_curve_of_several_seeds_is_their_mean_in_a_band() -> None:
    (group, _) = read_groups(LOGS, r"_seed\d+\.log")
    curve = band(group.trainings, "accuracy")
    assert curve is not None
    assert curve.iterations == [0, 10, 20]
    assert curve.mean == pytest.approx([0.1, 0.85, 0.65])
    assert (curve.low, curve.high) == ([0.1, 0.8, 0.6], [0.1, 0.9, 0.7])
    rate = band(group.trainings, "learning rate")
    assert rate is not None and rate.mean == [0.1, 0.1, 0.01]
    assert band(group.trainings, "top5") is None


def test_the_figure(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *LOGS, "--group", r"_seed\d+\.log", "--figure", "p.svg"]) == 0
    text = Path("p.svg").read_text()
    for words in ("test: accuracy", "accuracy", "test: loss", "loss", "learning rate", "iterations", "cce"):
        assert f"<!-- {words} -->" in text
    assert text.count("<!-- cce -->") == 1  # one legend
    assert main(["compare", *LOGS, "--picture", "p.xyz"]) == 2  # its name in the first release
    assert "the ending must be that of an image" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none.log"], "cannot read the log 'none.log': No such file or directory"),
        ([*LOGS, "--output", "top5"], "no log has a test output 'top5'; there is accuracy, loss"),
        ([*LOGS, "--group", "("], "--group '(' is no regular expression: "),
        ([*LOGS, "--group", "x", "--group-folders"], "grouped by --group or by --group-folders; give one"),
        ([*LOGS, "--csv", "-", "--json", "-"], "cannot both be written to the standard output"),
    ],
)
def test_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare", *arguments]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]


def test_every_name_of_an_image_has_a_title() -> None:
    titles = [compare_runs._titles(name) for name in ("accuracy", "train loss", "learning rate", "top5")]
    assert [y for _, y in titles] == ["accuracy", "loss", "learning rate", "value"]
