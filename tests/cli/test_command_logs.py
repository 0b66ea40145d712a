"""parse-log, plot-log and compare-logs: Caffe's tables to the byte, pictures, the places where logs part."""

from __future__ import annotations

import csv
import importlib
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
from reference import CASES

from imae.cli.main import main
from imae.files.caffe_log import LogNumber, compare, read_log
from imae.train.curve_style import COLOURS, new_figure
from imae.train.plot_log import Chart, curves, draw_panel, log_names, looks, panels

RUNS = CASES / "runs"
TABLES = sorted(RUNS.glob("*/*.log.train")) + sorted(RUNS.glob("*/*.log.test"))
assert len(TABLES) == 9
DIGITS = str(RUNS / "digits_lenet" / "train.log")
OTHER_KERNELS = str(RUNS / "digits_lenet" / "train_other_blas_kernels.log")
ADAM = str(RUNS / "adam_multi_test" / "train.log")
CIFAR = str(RUNS / "cifar_crop_mirror_dropout" / "train.log")
NAN = str(RUNS / "bn_nan_at_iteration_0" / "train.log")


def last_line(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().err.splitlines()[-1]


# -- parse-log -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("table", TABLES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_tables_are_caffes_to_the_byte(table: Path, tmp_path: Path) -> None:
    assert main(["parse-log", str(table.with_suffix("")), str(tmp_path)]) == 0
    assert (tmp_path / table.name).read_bytes() == table.read_bytes()


def test_the_folder_of_the_tables_is_made(tmp_path: Path) -> None:
    assert main(["parse-log", DIGITS, str(tmp_path / "tables" / "csv")]) == 0
    assert {path.name for path in (tmp_path / "tables" / "csv").iterdir()} == {
        "train.log.train", "train.log.test",
    }  # fmt: skip


def test_the_only_row_of_a_log_is_kept(tmp_path: Path) -> None:
    assert main(["parse_log", str(RUNS / "sigint_and_resume" / "resume.log"), str(tmp_path)]) == 0
    text = (tmp_path / "resume.log.test").read_text()
    assert (
        text == "NumIters,Seconds,LearningRate,accuracy,loss\n1500.0,0.248574,0.00906403,0.902357,0.326031\n"
    )


def test_nan_is_kept(tmp_path: Path) -> None:
    assert main(["parse-log", NAN, str(tmp_path)]) == 0
    with open(tmp_path / "train.log.test", newline="") as file:
        first = next(csv.DictReader(file))
    assert first == {
        "NumIters": "0.0",
        "Seconds": "0.015276",
        "LearningRate": "0.01",
        "accuracy": "1.0",
        "loss": "nan",
    }


def test_a_prefix_with_a_year_changes_nothing(tmp_path: Path) -> None:
    lines = Path(DIGITS).read_text().splitlines(keepends=True)
    assert lines[0].startswith("I1121 ")
    (tmp_path / "train.log").write_text("".join(line.replace("1121 ", "20231121 ", 1) for line in lines))
    assert main(["parse-log", str(tmp_path / "train.log"), str(tmp_path)]) == 0
    for what in ("train", "test"):
        assert (tmp_path / f"train.log.{what}").read_bytes() == Path(f"{DIGITS}.{what}").read_bytes()


def test_a_table_for_each_test_net(tmp_path: Path) -> None:
    assert main(["parse-log", ADAM, str(tmp_path), "--per-net", "--delimiter=;"]) == 0
    assert {path.name for path in tmp_path.iterdir()} == {
        "train.log.train",
        "train.log.test.0",
        "train.log.test.1",
        "train.log.test.2",
    }
    head, first, *rest = (tmp_path / "train.log.test.1").read_text().splitlines()
    assert head == "NumIters;Seconds;LearningRate;accuracy;class_loss;rec_loss;top3"
    assert first == "40;0.004511;nan;0.757576;1.37376;2.72817;0.868687"
    assert len(rest) == 2
    assert "per_class[9]" in (tmp_path / "train.log.test.2").read_text()


def test_verbose_says_what_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("a.log").write_text("I1121 02:14:03.648222  3477 solver.cpp:239] Iteration 3, loss = 0.5\n")
    assert main(["parse-log", "a.log", ".", "--verbose"]) == 0
    assert capsys.readouterr().out == (
        "Not writing a.log.train; no lines to write\nNot writing a.log.test; no lines to write\n"
    )
    assert main(["parse-log", DIGITS, ".", "--verbose"]) == 0
    assert capsys.readouterr().out == "Wrote train.log.train\nWrote train.log.test\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nope.log", "."], "cannot read the log 'nope.log': No such file or directory"),
        ([__file__, "."], "no loss, rate or output in it; expected the log of a training"),
        ([DIGITS, f"{__file__}/csv"], f"cannot make the folder '{__file__}/csv': Not a directory"),
        ([DIGITS, ".", "--delimiter", "ab"], "--delimiter must be one character, got 'ab'"),
    ],
)
def test_parse_log_refuses(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["parse-log", *arguments]) == 2
    assert message in last_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_numbers_that_are_none_are_passed_over(tmp_path: Path) -> None:
    prefix = "I1121 02:14:03.648222  3477 solver.cpp:239] "
    good = "Iteration 3, loss = 0.5"
    bad = [
        "Iteration 4, loss = 1.2.3",
        "Iteration 5, loss = abc",
        "Iteration 6, lr = ",
        f"Iteration {'9' * 5000}, loss = 1",
        "    Test net output #99999999999: a = 1",
    ]
    (tmp_path / "a.log").write_text("".join(f"{prefix}{line}\n" for line in (*bad, good, *bad)))
    assert [n.value for n in read_log(tmp_path / "a.log")] == [0.5]


NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label"
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 }
                           data_filler { type: "gaussian" } data_filler { value: 1 } } }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc"
        inner_product_param { num_output: 5 weight_filler { type: "xavier" } } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "fc" bottom: "label" top: "loss" }
layer { name: "accuracy" type: "Accuracy" bottom: "fc" bottom: "label" top: "accuracy"
        include { phase: TEST } }
"""
SOLVER = """net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 3 display: 1 random_seed: 1
test_iter: 2 test_interval: 1 snapshot_after_train: false
"""


def test_our_own_logs_have_the_same_columns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(SOLVER)
    for name in ("a.log", "b.log"):
        assert main(["train", "solver.prototxt"]) == 0
        Path(name).write_text(capsys.readouterr().err)
        assert main(["parse-log", name, "."]) == 0
    for what in ("train", "test"):
        ours, caffes = (Path(path).read_text().splitlines() for path in (f"a.log.{what}", f"{DIGITS}.{what}"))
        assert ours[0] == caffes[0]
        assert len(ours) == {"train": 4, "test": 5}[what]
    assert main(["compare-logs", "a.log", "b.log", "--rtol", "0"]) == 0


# -- plot-log ------------------------------------------------------------------------------------------------


def picture(path: Path) -> np.ndarray:
    image = cv2.imread(str(path))
    assert image is not None
    return image


def test_several_logs_in_one_picture(tmp_path: Path) -> None:
    one, two = tmp_path / "one.png", tmp_path / "two.png"
    assert main(["plot-log", "6", str(one), DIGITS]) == 0
    assert main(["plot-log", "6", str(two), DIGITS, NAN]) == 0
    assert picture(one).shape == picture(two).shape == (600, 960, 3)
    assert (picture(one) != picture(two)).any()


def test_the_format_is_that_of_the_ending(tmp_path: Path) -> None:
    path = tmp_path / "p.svg"
    assert main(["plot-log", "test", str(path), ADAM, "--seconds"]) == 0
    text = path.read_text()
    assert "<svg" in text
    # matplotlib leaves what is drawn in comments.
    for words in (
        *("test accuracy", "accuracy", "test loss", "loss", "test outputs", "value", "seconds"),
        *("accuracy (test net #1)", "per_class[9] (test net #2)"),
    ):
        assert f"<!-- {words} -->" in text


@pytest.mark.parametrize(
    ("chart", "title", "x"),
    [
        ("0", "test accuracy", "iterations"),
        ("1", "test accuracy", "seconds"),
        ("2", "test loss", "iterations"),
        ("4", "learning rate", "iterations"),
        ("7", "smoothed loss", "seconds"),
        ("lr", "learning rate", "iterations"),
        ("train:loss", "train loss", "iterations"),
    ],
)
def test_charts_have_caffes_numbers(chart: str, title: str, x: str, tmp_path: Path) -> None:
    assert main(["plot-log", chart, str(tmp_path / "p.svg"), DIGITS]) == 0
    text = (tmp_path / "p.svg").read_text()
    assert f"<!-- {title} -->" in text
    assert f"<!-- {x} -->" in text


def test_loss_and_accuracy_have_axes_of_their_own() -> None:
    logs = [("a", read_log(DIGITS)), ("b", read_log(OTHER_KERNELS))]
    accuracy, loss = panels(logs, Chart("test"))
    assert (accuracy.title, accuracy.y) == ("test accuracy", "accuracy")
    assert (loss.title, loss.y) == ("test loss", "loss")
    assert [label for _, label, _ in accuracy.curves] == ["a", "b"]
    assert [index for index, *_ in loss.curves] == [0, 1]


def test_a_run_has_a_colour_and_the_rate_is_drawn_as_steps() -> None:
    """Of several logs; of one log each curve has a colour."""
    figure = new_figure(8, 5)
    axes = figure.subplots()
    logs = [("a", read_log(ADAM)), ("b", read_log(DIGITS))]
    for panel in panels(logs, Chart("test", word="accuracy")):
        draw_panel(axes, panel, seconds=False)
    colours = {line.get_label(): line.get_color() for line in axes.get_lines()}
    assert len(colours) == 5
    assert {colour for label, colour in colours.items() if label.startswith("a: ")} == {COLOURS[0]}
    assert colours["b: accuracy"] == COLOURS[1]  # named, as there are several outputs
    dashes = {str(line.get_linestyle()) + str(line._dash_pattern) for line in axes.get_lines()[:4]}
    assert len(dashes) == 4
    one = figure.subplots()
    (panel,) = panels(logs[:1], Chart("test", word="accuracy"))
    draw_panel(one, panel, seconds=False)
    assert [line.get_color() for line in one.get_lines()] == list(COLOURS[:4])
    rate = figure.subplots()
    draw_panel(rate, *panels(logs, Chart("lr")), seconds=False)
    assert {line.get_drawstyle() for line in rate.get_lines()} == {"steps-post"}
    assert rate.get_ylabel() == "learning rate"


def test_labels_in_a_legend_look_different_and_one_label_looks_the_same() -> None:
    of_one, of_two = ([("a", read_log(ADAM)), ("b", read_log(DIGITS))][:count] for count in (1, 2))
    parts = panels(of_one, Chart("test"))
    styles = looks(parts)
    assert len(styles) == sum(len(panel.curves) for panel in parts) == 22
    assert len({str(sorted(style.items())) for style in styles.values()}) == 22
    assert not any(label.startswith("a: ") for label in styles)  # there is no other log
    # A run has one look where its panels have one curve of it.
    assert set(looks(panels([*of_two[1:], ("c", read_log(OTHER_KERNELS))], Chart("test")))) == {"b", "c"}
    figure = new_figure(8, 5)
    axes = figure.subplots()
    draw_panel(axes, parts[1], seconds=False, styles=styles)
    assert [line.get_color() for line in axes.get_lines()] == [
        styles[label]["color"] for _, label, _ in parts[1].curves
    ]


def test_a_rate_is_drawn_to_the_end_and_over_decades_where_it_drops_by_as_much() -> None:
    figure = new_figure(8, 5)
    for log, scale in ((DIGITS, "linear"), (CIFAR, "log")):
        axes = figure.subplots()
        numbers = read_log(log)
        (panel,) = panels([("a", numbers)], Chart("lr"))
        draw_panel(axes, panel, seconds=False)
        (line,) = axes.get_lines()
        assert axes.get_yscale() == scale
        assert line.get_xdata()[-1] == numbers[-1].iteration
        assert line.get_ydata()[-1] == line.get_ydata()[-2]


@pytest.mark.parametrize(
    ("paths", "names"),
    [
        (["x/a.log", "y/b.log"], ["a.log", "b.log"]),
        (["/runs/x/train.log", "/runs/y/train.log"], ["x/train.log", "y/train.log"]),
        (["runs/train.log", "runs/y/train.log"], ["train.log", "y/train.log"]),
        (["train.log", "y/train.log"], ["train.log", "y/train.log"]),
        (["train.log", "train.log"], ["train.log", "train.log"]),
    ],
)
def test_logs_are_named_from_where_their_paths_part(paths: list[str], names: list[str]) -> None:
    assert log_names(paths) == names


def test_a_curve_has_the_numbers_of_the_log() -> None:
    numbers = read_log(ADAM)
    accuracies = curves(numbers, Chart("test", word="accuracy"))
    assert [curve.label for curve in accuracies] == [
        "accuracy",
        "accuracy (test net #1)",
        "accuracy (test net #2)",
        "accuracy_again (test net #2)",
    ]
    assert accuracies[1].iterations == [40, 80, 120]
    assert accuracies[1].values == [0.757576, 0.818182, 0.929293]
    per_class = curves(numbers, Chart("test", name="per_class"))
    assert [curve.values[0] for curve in per_class] == [
        0.9, 0.3, 0.888889, 1, 1, 0.818182, 1, 0.8, 0.454545, 0.545455
    ]  # fmt: skip
    (loss,) = curves(read_log(NAN), Chart("test", name="loss"))
    assert math.isnan(loss.values[0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["8", "p.png", DIGITS],
            "cannot draw '8'; expected 0 to 7, loss, lr, test_loss, train, test, train:NAME",
        ),
        (["lr:x", "p.png", DIGITS], "cannot draw 'lr:x'; expected"),
        (
            ["test:top9", "p.png", DIGITS],
            "there is no test top9 in these logs; there is loss, lr, test:accuracy",
        ),
        (["6", "p.bmpp", DIGITS], "'p.bmpp': the ending must be that of an image: "),
        (["6", "p", DIGITS], "'p': the ending must be that of an image: "),
        (["6", "p.png", "nope.log"], "cannot read the log 'nope.log': No such file or directory"),
    ],
)
def test_plot_log_refuses(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["plot-log", *arguments]) == 2
    assert message in last_line(capsys)
    assert list(tmp_path.iterdir()) == []


def test_without_matplotlib(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("matplotlib.figure")
    assert main(["plot-log", "6", "p.png", DIGITS]) == 2
    assert last_line(capsys) == "imae: a figure needs the package matplotlib: pip install matplotlib"


# -- compare-logs --------------------------------------------------------------------------------------------

TABLE = """\
 what  both  missing  extra    max abs     max rel  parts at     worst
 test    12        0      0   0.000485  0.00145472       400  400 loss
 loss    26        0      0   0.000801   0.0122725       360  400 loss
train    25        0      0  0.0025436   0.0271297       300  480 loss
   lr    25        0      0          0           0         -      0 lr
"""


def test_where_and_by_how_much_two_logs_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "both.svg"
    arguments = ["compare-logs", DIGITS, OTHER_KERNELS]
    assert main([*arguments, "--rtol", "1e-3", "--figure", str(path)]) == 1
    assert capsys.readouterr().out == TABLE
    text = path.read_text()
    for title in ("smoothed loss", "learning rate", "train loss", "test accuracy", "test loss"):
        assert f"<!-- {title} -->" in text
    assert "<!-- difference of train_other_blas_kernels.log, relative to train.log -->" in text
    assert main([*arguments, "--rtol", "0.03"]) == 0
    assert main(arguments) == 0  # without --rtol nothing is judged


def test_a_log_is_like_itself(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare_logs", NAN, NAN, "--rtol", "0", "--picture", str(tmp_path / "p.png")]) == 0
    assert picture(tmp_path / "p.png").any()


def test_what_the_second_log_lacks_counts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = Path(DIGITS).read_text().splitlines(keepends=True)
    short = tmp_path / "short.log"
    short.write_text("".join(lines[:-20]))
    assert main(["compare-logs", DIGITS, str(short), "--rtol", "0"]) == 1
    assert main(["compare-logs", str(short), DIGITS, "--rtol", "0"]) == 0
    assert "test    10        0      2" in capsys.readouterr().out


def test_numbers_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare-logs", DIGITS, NAN, "--numbers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["iteration", "what", "name", "net", "first", "second"]
    assert ["0", "test", "loss", "0", "2.32312", "-nan"] in [line.split() for line in lines]
    assert ["1", "lr", "lr", "0", "-", "0.01"] in [line.split() for line in lines]
    assert lines[-5:][0].split()[:2] == ["what", "both"]


@pytest.mark.parametrize("rtol", ["-1", "nan"])
def test_a_tolerance_that_is_none(rtol: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compare-logs", DIGITS, NAN, f"--rtol={rtol}"]) == 2
    assert "--rtol must be 0 or more" in last_line(capsys)


def test_logs_without_a_common_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "a.log"
    path.write_text("I1121 02:14:03.648222  3477 solver.cpp:239] Iteration 3, loss = 0.5\n")
    assert main(["compare-logs", DIGITS, str(path)]) == 2
    assert last_line(capsys).endswith("have no number in common")


def test_the_iteration_where_logs_part() -> None:
    def log(*values: float) -> list[LogNumber]:
        return [LogNumber("loss", 10 * i, 0, 0, "loss", value, 0.0) for i, value in enumerate(values)]

    (same,) = compare(log(1, 2, 3), log(1, 2, 3))
    assert same.parted is None
    (exact,) = compare(log(1, 2, 3), log(1, 2.1, 3))
    assert exact.parted == 10
    (within,) = compare(log(1, 2, 3), log(1.01, 2.1, 30), rtol=0.1)
    assert (within.parted, within.relative) == (20, 9)
    (zero,) = compare(log(0), log(0.5), rtol=0.4)
    assert zero.parted == 0


def test_nobody_reads_the_output() -> None:
    """As under `imae compare-logs ... | head -1`."""
    command = [sys.executable, "-m", "imae.cli.main", "compare-logs", DIGITS, NAN, "--numbers"]
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(command, stdout=write, stderr=subprocess.PIPE, text=True)
    os.close(write)
    assert (done.returncode, done.stderr) == (141, "")
