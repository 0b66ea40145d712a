"""eval_type "detection": average precisions of hand-made rows, and against a slow implementation.

Nothing is recorded; the slow implementation goes through the points of the curve one by one, in fractions.
"""

from __future__ import annotations

import logging
from fractions import Fraction
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from tolerances import tolerance

from imae.cli.main import main
from imae.files.caffe_log import number
from imae.files.errors import DataError, PrototxtError
from imae.net.net import Net
from imae.net.score import score
from imae.net.weights import save_caffemodel
from imae.prototxt.text import parse_net, parse_solver
from imae.train.detection_evaluation import AP_VERSIONS, ClassRows, DetectionEvaluation, average_precision
from imae.train.solver import Solver


def slow_precision(scores: list[float], hits: list[bool], objects: int, version: str) -> Fraction:
    """One point of the curve after another."""
    ranked = sorted(range(len(scores)), key=lambda i: (-scores[i], i))
    points: list[tuple[Fraction, Fraction]] = []
    true = 0
    for count, i in enumerate(ranked, 1):
        true += hits[i]
        points.append((Fraction(true, objects), Fraction(true, count)))
    if version == "11point":
        # The fork compares a recall in single with a tenth in double precision: 7 of 10 are below 0.7.
        singles = [(np.float32(r.numerator) / np.float32(r.denominator), p) for r, p in points]
        tops = [max((p for r, p in singles if float(r) >= t / 10), default=Fraction(0)) for t in range(11)]
        return sum(tops, Fraction(0)) / 11
    total, before = Fraction(0), Fraction(0)
    for k, (recall, precision) in enumerate(points):
        if version == "MaxIntegral":
            # A step up to a recall has the largest precision from the point before it on: where the curve
            # begins, from its first point on.
            precision = max(p for _, p in points[max(k - 1, 0) :])
        total += (recall - before) * precision
        before = recall
    return total


def rows(scores: list[float], hits: list[bool]) -> ClassRows:
    return ClassRows(np.array(scores, np.float32), np.array(hits))


@pytest.mark.parametrize("version", AP_VERSIONS)
def test_average_precision_is_that_of_the_slow_implementation(version: str) -> None:
    rng = np.random.default_rng(0)
    rtol, atol, _ = tolerance("same arithmetic")
    for trial in range(300):
        count, objects = int(rng.integers(1, 40)), int(rng.integers(1, 30))
        hits = rng.random(count) < rng.random()
        hits[np.flatnonzero(hits)[objects:]] = False
        # Few values, so that scores are equal; recalls on tenths, where 11point decides.
        scores = rng.integers(0, 8, count) / 8 if trial % 2 else rng.random(count)
        got = average_precision(rows(scores.tolist(), hits.tolist()), objects, version)
        assert got.dtype == np.float32
        want = slow_precision(scores.astype(np.float32).tolist(), hits.tolist(), objects, version)
        np.testing.assert_allclose(got, float(want), rtol=rtol, atol=atol)


# Scores 0.9 hit, 0.8 miss, 0.7 hit, 0.6 miss, of 4 objects:
# precision 1, 1/2, 2/3, 1/2; recall 1/4, 1/4, 1/2, 1/2.
BY_HAND = {
    "Integral": 1 / 4 + 1 / 4 * 2 / 3,
    # From recall 1/4 to 1/2 the fork takes the larger precision of both ends and beyond: 2/3.
    "MaxIntegral": 1 / 4 + 1 / 4 * 2 / 3,
    # Recalls 0, 0.1, 0.2: 1; 0.3, 0.4, 0.5: 2/3.
    "11point": (3 + 3 * 2 / 3) / 11,
}


@pytest.mark.parametrize("version", AP_VERSIONS)
def test_average_precision_by_hand(version: str) -> None:
    rtol, atol, _ = tolerance("formula")
    scores, hits = [0.6, 0.9, 0.7, 0.8], [False, True, True, False]
    got = average_precision(rows(scores, hits), 4, version)
    np.testing.assert_allclose(got, BY_HAND[version], rtol=rtol, atol=atol)
    assert average_precision(rows([0.5, 0.4], [True, True]), 2, version) == pytest.approx(1, rel=rtol)
    assert average_precision(rows([0.5], [False]), 3, version) == 0
    assert average_precision(rows([], []), 3, version) == 0
    assert average_precision(rows([0.5], [False]), 0, version) == 0
    with pytest.raises(DataError, match="2 true positives of 1 objects"):
        average_precision(rows([0.5, 0.4], [True, True]), 1, version)


def test_of_equal_scores_the_first_counts_first() -> None:
    assert average_precision(rows([0.5, 0.5], [True, False]), 1, "Integral") == 1
    assert average_precision(rows([0.5, 0.5], [False, True]), 1, "Integral") == 0.5


# Two batches of two images: rows of objects first, then detections. Class 3 has objects and no detection.
BATCHES = np.array([
    [[-1, 1, 2, -1, -1], [-1, 2, 1, -1, -1], [-1, 3, 1, -1, -1],
     [0, 1, 0.9, 1, 0], [0, 1, 0.3, 0, 1], [1, 2, 0.5, 0, 1]],
    [[-1, 1, 2, -1, -1], [-1, 2, 0, -1, -1], [-1, 3, 0, -1, -1],
     [0, 1, 0.6, 1, 0], [1, 2, 0.6, 1, 0], [1, 2, 0.55, 0, 0]],
], np.float32)  # fmt: skip
# Class 1: hit, hit, miss of 4 objects: 1/4 + 1/4; class 2: hit, miss of 1: 1; class 3: 0.
MEAN = (0.5 + 1 + 0) / 3


def evaluated(batches: NDArray[np.float32]) -> DetectionEvaluation:
    found = DetectionEvaluation()
    for batch in batches:
        found.add({"eval": batch[None, None]})
    return found


def test_batches_add_up() -> None:
    found = evaluated(BATCHES)
    assert found.objects == {"eval": {1: 4, 2: 1, 3: 1}}
    precisions = found.precisions("eval", "Integral")
    assert precisions is not None
    assert precisions.of_class == {1: 0.5, 2: 1, 3: None}
    assert precisions.mean == np.float32(MEAN)


NET = """
layer { name: "data" type: "DummyData" top: "data" top: "label" include { phase: TRAIN }
        dummy_data_param { shape { dim: 4 dim: 3 } shape { dim: 4 } } }
layer { name: "ip" type: "InnerProduct" bottom: "data" top: "ip" include { phase: TRAIN }
        inner_product_param { num_output: 2 } }
layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss"
        include { phase: TRAIN } }
layer { name: "detection_eval" type: "HDF5Data" top: "rows" include { phase: TEST }
        hdf5_data_param { source: "list" batch_size: 1 } }
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write(BATCHES)
    return tmp_path


def write(batches: NDArray[np.float32], name: str = "rows") -> None:
    with h5py.File("rows.h5", "w") as file:
        file[name] = batches[:, None]
    Path("list").write_text("rows.h5")


def solver(more: str, net: str = NET) -> Solver:
    return Solver(parse_solver(
        f"""net_param {{ {net} }} base_lr: 0.1 lr_policy: "fixed" max_iter: 1 test_iter: 2 test_interval: 1
        snapshot_after_train: false {more}"""
    ))  # fmt: skip


def test_the_solver_logs_what_the_fork_logs(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = solver('eval_type: "detection" ap_version: "11point" show_per_class_result: true')
    tests = []
    made.on_test.append(lambda index, means: tests.append((index, means)))
    caplog.clear()
    got = made.test(0)
    first = (6 * 1) / 11  # recalls 0 to 0.5
    mean = (first + 1) / 3
    assert caplog.messages[:1] == ["Iteration 0, Testing net (#0)"]
    assert caplog.messages[-4:] == [
        f"class1: {number(first)}",
        "class2: 1",
        "Missing true_pos for label: 3",
        f"    Test net output #0: rows = {number(mean)}",
    ]
    assert [caplog.records[i].caffe for i in (-4, -1)] == ["solver.cpp:540", "solver.cpp:546"]
    assert list(got) == ["rows"] and got["rows"] == pytest.approx(mean)
    assert tests == [(0, got)]


def test_tests_are_part_of_a_training(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    made = solver('eval_type: "detection" test_compute_loss: true')
    made.solve()
    lines = [line for line in caplog.messages if "Test net output" in line]
    assert lines == [f"    Test net output #0: rows = {number(MEAN)}"] * 2  # before and after the iteration
    assert caplog.messages.count("Test loss: 0") == 2
    assert not any(line.startswith("class1") for line in caplog.messages)


def test_a_test_that_is_stopped_logs_nothing(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    from imae.train.signals import Action

    made = solver('eval_type: "detection"')
    actions = iter([Action.STOP, Action.NONE])
    made.request = lambda: next(actions)
    caplog.set_level(logging.INFO)
    assert made.test(0) == {}
    assert caplog.messages[-1] == "Test interrupted."


def test_without_detections_there_is_no_mean(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    write(BATCHES[:, :3])
    assert solver('eval_type: "detection"').test(0) == {}
    assert "Test net output rows has no detection, so it has no mean average precision" in caplog.messages


def test_other_outputs_are_refused(folder: Path) -> None:
    write(BATCHES[:, :, :4])
    with pytest.raises(DataError, match=r"output rows has the shape \(1, 1, 6, 4\); eval_type"):
        solver('eval_type: "detection"').test(0)
    no_objects = BATCHES.copy()
    no_objects[:, :3] = [5, 1, 0.5, 0, 1]
    for place, value, message in (
        ((0, 3, 4), 1, "a true and a false positive at once"),
        ((0, 3, 1), np.nan, "rows that are no numbers"),
        ((slice(2), 0, 2), [0, 1], "2 true positives of 1 objects"),
        (slice(2), no_objects, "has no rows with the numbers of objects"),
    ):
        wrong = BATCHES.copy()
        wrong[place] = value
        write(wrong)
        with pytest.raises(DataError, match=message):
            solver('eval_type: "detection"').test(0)


def test_rows_that_grow_have_no_mean(folder: Path) -> None:
    """As those of DetectionEvaluate in a test by Caffe's rules, which would add foreign memory."""

    def grows(net: Net) -> None:
        shapes = iter([(1, 1, 2, 5), (1, 1, 3, 5)])
        (layer,) = net.data_layers()
        layer.next_batch = lambda: (torch.zeros(next(shapes)),)  # type: ignore[method-assign]

    net = Net(parse_net(NET))
    grows(net)
    with pytest.raises(DataError, match=r"output rows has the shape \(1, 1, 3, 5\) in this batch and"):
        score(net, torch.device("cpu"), 2)
    made = solver("")
    grows(made.test_nets[0])
    with pytest.raises(DataError, match="let the solver have eval_type"):
        made.test(0)


def test_unknown_words_are_refused(folder: Path) -> None:
    with pytest.raises(PrototxtError, match="Unknown evaluation type: boxes"):
        solver('eval_type: "boxes"')
    with pytest.raises(PrototxtError, match="Unknown ap_version: VOC"):
        solver('eval_type: "detection" ap_version: "VOC"')


def test_the_mean_can_be_read_from_the_log(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.prototxt").write_text(NET)
    Path("solver.prototxt").write_text(
        'net: "net.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1 test_iter: 2 test_interval: 1 '
        'eval_type: "detection" snapshot_after_train: false'
    )
    assert main(["train", "--solver", "solver.prototxt"]) == 0
    Path("log").write_text(capsys.readouterr().err)
    assert main(["parse-log", "log", "."]) == 0
    table = Path("log.test").read_text().splitlines()
    assert table[0].split(",")[-1] == "rows" and float(table[1].split(",")[-1]) == pytest.approx(0.5)


EVALUATED = """
layer { name: "data" type: "HDF5Data" top: "found" top: "truths"
        hdf5_data_param { source: "boxes.txt" batch_size: 1 } }
layer { name: "total" type: "Reduction" bottom: "truths" top: "total" }
layer { name: "eval" type: "DetectionEvaluate" bottom: "found" bottom: "truths" top: "eval"
        detection_evaluate_param { num_classes: 3 overlap_threshold: 0.5 } }
"""
# Batches: a hit of class 1 of two objects; then a miss of class 1, and a hit of class 2.
BOX = [0.1, 0.1, 0.5, 0.5]
FAR = [0.6, 0.6, 0.9, 0.9]
FOUND = [[[0, 1, 0.9, *BOX], [0, -1, 0, *BOX]], [[0, 1, 0.8, *FAR], [0, 2, 0.7, *BOX]]]
TRUTHS = [[[0, 1, 0, *BOX, 0], [0, 1, 1, *FAR, 0]], [[0, 2, 0, *BOX, 0], [-1, 0, 0, *BOX, 0]]]


@pytest.mark.parametrize(("flags", "more"), [([], []), (["--per-class"], ["class1: 0.5", "class2: 1"])])
def test_imae_test_of_a_net_with_detection_evaluate(
    folder: Path, capsys: pytest.CaptureFixture[str], flags: list[str], more: list[str]
) -> None:
    """The mean of 1/2 (class 1: one of two objects) and 1 (class 2); the other output has its mean."""
    Path("net.prototxt").write_text(EVALUATED)
    save_caffemodel(Net(parse_net(NET)), "w.caffemodel")
    with h5py.File("boxes.h5", "w") as file:
        for name, values in (("found", FOUND), ("truths", TRUTHS)):
            file[name] = np.array(values, np.float32)[:, None]
    Path("boxes.txt").write_text("boxes.h5\n")
    command = ["test", "net.prototxt", "--weights", "w.caffemodel", "--iterations", "2", *flags]
    assert main(command) == 0
    lines = [line.partition("] ")[2] for line in capsys.readouterr().err.splitlines()]
    assert lines[lines.index("Running for 2 iterations.") + 1 :] == [
        f"Batch 0, total = {number(np.sum(TRUTHS[0]))}",
        f"Batch 1, total = {number(np.sum(TRUTHS[1]))}",
        "Loss: 0",
        f"total = {number(np.sum(TRUTHS) / 2)}",
        *more,
        "eval = 0.75",
    ]


@pytest.mark.parametrize("given", [["s.prototxt"], ["--solver", "s.prototxt"], ["-model=s.prototxt"]])
def test_imae_test_of_a_solver_names_its_net(
    folder: Path, capsys: pytest.CaptureFixture[str], given: list[str]
) -> None:
    Path("s.prototxt").write_text('net: "train_val.prototxt" base_lr: 0.1 lr_policy: "fixed" max_iter: 1')
    assert main(["test", *given, "--weights", "w.caffemodel"]) == 2
    assert capsys.readouterr().err == (
        "imae: s.prototxt is a solver; a test needs its net: imae test --model train_val.prototxt "
        "--weights W\n"
    )


def test_imae_test_runs_batches_of_one_shape(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The fork's `caffe test` knows of no detection: it adds up the numbers of the rows."""
    Path("net.prototxt").write_text(NET)
    save_caffemodel(Net(parse_net(NET)), "w.caffemodel")
    arguments = ["test", "--model", "net.prototxt", "--weights", "w.caffemodel", "--iterations", "2"]
    assert main(arguments) == 0
    assert "rows = -1" in capsys.readouterr().err
