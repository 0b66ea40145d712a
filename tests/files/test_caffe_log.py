"""Caffe's log lines: written, parsed (with the tables of Caffe's own parse_log.py as oracle), compared."""

from __future__ import annotations

import csv
import logging
import math
import re

import numpy as np
import pytest
from reference import CASES

from imae.files.caffe_log import GlogFormatter, LogNumber, compare, number, parse_log, read_log, rows

RUNS = CASES / "runs"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0.0976431, "0.0976431"),
        (2.3, "2.3"),
        (1e-5, "1e-05"),
        (1250.0, "1250"),
        (1052.6316, "1052.63"),
        (12345678.0, "1.23457e+07"),
        (0.0, "0"),
        (-0.0, "-0"),
        (math.inf, "inf"),
        (-math.inf, "-inf"),
        (math.nan, "nan"),
        (-math.nan, "-nan"),
        (np.float32(0.1), "0.1"),
        (np.float32("nan"), "nan"),
    ],
)
def test_numbers_as_a_cpp_stream_prints_them(value: float, text: str) -> None:
    assert number(value) == text


def record(level: int, message: str, **extra: str) -> logging.LogRecord:
    logger = logging.getLogger("imae.test")
    return logger.makeRecord(logger.name, level, "/x/solver.py", 12, message, (), None, extra=extra)


def test_prefix_is_glogs() -> None:
    line = GlogFormatter().format(record(logging.INFO, "Iteration 0", caffe="solver.cpp:239"))
    assert re.fullmatch(r"I\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ solver\.cpp:239\] Iteration 0", line)
    line = GlogFormatter().format(record(logging.ERROR, "no place of Caffe's"))
    assert re.match(r"E\d{4} \S+ +\d+ solver\.py:12\] no place", line)


@pytest.mark.parametrize("what", ["train", "test"])
def test_rows_are_those_of_caffes_parser(what: str) -> None:
    path = RUNS / "digits_lenet" / "train.log"
    with open(f"{path}.{what}", encoding="utf-8") as file:
        want = [{name: float(value) for name, value in row.items()} for row in csv.DictReader(file)]
    got = rows(read_log(path), what)
    assert len(got) == len(want) > 5
    assert list(got[0]) == list(want[0])
    for ours, theirs in zip(got, want, strict=True):
        assert {k: v for k, v in ours.items() if k != "LearningRate"} == pytest.approx(
            {k: v for k, v in theirs.items() if k != "LearningRate"}, abs=1e-9
        )


def test_learning_rate_is_that_of_the_row() -> None:
    """parse_log.py gives a row the rate of the row before it."""
    path = RUNS / "digits_lenet" / "train.log"
    with open(f"{path}.train", encoding="utf-8") as file:
        theirs = [float(row["LearningRate"]) for row in csv.DictReader(file)]
    ours = [row["LearningRate"] for row in rows(read_log(path))]
    assert ours[:-1] == theirs[1:]
    assert ours[0] == 0.01


def test_several_test_nets_and_vector_outputs() -> None:
    numbers = read_log(RUNS / "adam_multi_test" / "train.log")
    per_net = [rows(numbers, "test", net) for net in range(3)]
    assert [[row["NumIters"] for row in table] for table in per_net] == [[40, 80, 120]] * 3
    assert [len(table[0]) for table in per_net] == [6, 7, 18]
    assert per_net[2][0]["per_class[1]"] == 0.3
    assert per_net[1][0]["top3"] == 0.868687
    losses = [n.value for n in numbers if n.what == "test_loss"]
    assert len(losses) == 9
    assert losses[0] == 1.0876


def test_nan_is_read() -> None:
    """parse_log.py fails on `-nan`."""
    numbers = read_log(RUNS / "bn_nan_at_iteration_0" / "train.log")
    first, *_ = rows(numbers, "test")
    assert first["accuracy"] == 1
    assert math.isnan(first["loss"])
    assert len(rows(numbers, "train")) == 21


def test_prefix_with_a_year_is_read() -> None:
    lines = [
        "I20241231 23:59:59.500000  3203 solver.cpp:289] Solving x\n",
        "I20250101 00:00:01.750000  3203 solver.cpp:239] Iteration 5 (2 iter/s, 1s/5 iters), loss = 0.5\n",
        "I20250101 00:00:01.750000  3203 solver.cpp:258]     Train net output #0: a b = 1\n",
        "I20250101 00:00:02.000000  3203 solver.cpp:258]     Train net output #0: a = -1e-05 (* 1 = ...)\n",
    ]
    got = list(parse_log(lines))
    assert got == [
        LogNumber("loss", 5, 0, 0, "loss", 0.5, 2.25),
        LogNumber("train", 5, 0, 0, "a", -1e-5, 2.5),
    ]


def test_new_year_without_a_year_in_the_prefix() -> None:
    lines = [
        "I1231 23:59:59.500000  3203 solver.cpp:289] Solving x",
        "I0101 00:00:01.750000  3203 sgd_solver.cpp:112] Iteration 5, lr = 0.5",
        "I0229 00:00:01.750000  3203 sgd_solver.cpp:112] Iteration 6, lr = 0.5",
        "not a line of a log: Iteration 7, lr = 0.5",
    ]
    assert [n.seconds for n in parse_log(lines, year=2024)] == [2.25, 2.25]


def test_compare() -> None:
    path = RUNS / "digits_lenet" / "train.log"
    numbers = read_log(path)
    for difference in compare(numbers, numbers):
        assert (difference.missing, difference.extra, difference.absolute, difference.relative) == (
            0,
            0,
            0,
            0,
        )
    changed = [n._replace(value=n.value * 1.1) if (n.what, n.iteration) == ("lr", 40) else n for n in numbers]
    lr = next(d for d in compare(numbers, changed[:-2]) if d.what == "lr")
    assert (lr.common, lr.missing, lr.extra, lr.iteration) == (25, 0, 0, 40)
    assert lr.relative == pytest.approx(0.1)
    test = next(d for d in compare(numbers, changed[:-2]) if d.what == "test")
    assert (test.common, test.missing) == (10, 2)


def test_compare_with_nan() -> None:
    one = [LogNumber("loss", 1, 0, 0, "loss", math.nan, 0.0)]
    other = [LogNumber("loss", 1, 0, 0, "loss", 1.0, 0.0)]
    assert compare(one, one)[0].absolute == 0
    assert compare(one, other)[0].absolute == math.inf
    assert compare(other, one)[0].relative == math.inf
