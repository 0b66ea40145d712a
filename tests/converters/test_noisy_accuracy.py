"""`imae test --clean-labels`: accuracies on intact and corrupted records, against given and true labels."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from imae.cli.main import main
from imae.converters.corrupt_labels import corrupt_labels
from imae.converters.lmdb_writer import write_lmdb
from imae.prototxt import Datum, NetParameter

# The scores are the pixels: a record of three channels is classified by its brightest one.
NET = """
layer { name: "data" type: "Data" top: "data" top: "label" ORDER include { phase: TEST stage: "train" }
        data_param { source: "noisy" batch_size: 7 backend: LMDB } }
layer { name: "data" type: "Data" top: "data" top: "label" include { phase: TEST stage: "test" }
        data_param { source: "clean" batch_size: 10 backend: LMDB } }
layer { name: "scores" type: "Flatten" bottom: "data" top: "scores" }
layer { name: "top2" type: "Accuracy" bottom: "data" bottom: "label" top: "top2"
        accuracy_param { top_k: 2 } }
layer { name: "accuracy" type: "Accuracy" bottom: "scores" bottom: "label" top: "accuracy" }
"""
TRUE = [0, 1, 2, 0, 1, 2, 0, 1, 2, 0]
GIVEN = [0, 1, 2, 0, 1, 2, 1, 2, 0, 1]  # the last four are wrong
PREDICTED = [0, 1, 2, 0, 0, 0, 0, 1, 0, 1]
TABLE = """\
records         number    against given labels    against true labels
all                 10                  0.6000                 0.6000
intact               6                  0.6667                 0.6667
corrupted            4                  0.5000                 0.5000
"""
COMMAND = ["test", "net.prototxt", "--stage", "train", "--weights", "w.caffemodel", "--clean-labels"]
FILE = "noisy.clean_labels.npz"


@pytest.fixture(autouse=True)
def _prepared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    records = []
    for i, (label, predicted) in enumerate(zip(TRUE, PREDICTED, strict=True)):
        pixels = [1, 2, 3]
        pixels[predicted] = 9
        records.append((b"%03d" % i, Datum(channels=3, height=1, width=1, data=bytes(pixels), label=label)))
    write_lmdb("clean", records)
    np.save("given.npy", GIVEN)
    corrupt_labels("clean", "noisy", "file", labels="given.npy")
    Path("net.prototxt").write_text(NET.replace("ORDER", ""))
    Path("w.caffemodel").write_bytes(NetParameter(name="w").SerializeToString())


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, FILE]) == 0
    printed = capsys.readouterr()
    assert printed.out == TABLE
    assert "Running for 2 iterations." in printed.err  # all ten records in batches of seven


def test_the_order_of_the_records_does_not_matter(capsys: pytest.CaptureFixture[str]) -> None:
    """Nor that of the file: records are matched by key, and counted once."""
    Path("net.prototxt").write_text(NET.replace("ORDER", "data_order_param { order: SHUFFLED }"))
    with np.load(FILE) as kept:
        arrays = {name: kept[name][::-1] for name in ("key", "clean", "noisy")}
    np.savez("mixed.npz", **arrays)
    assert main([*COMMAND, "mixed.npz", "--iterations", "9"]) == 0
    assert capsys.readouterr().out == TABLE


@pytest.mark.parametrize("cache", ["0", "1M"])
def test_records_that_are_not_read_are_told(cache: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, FILE, "--iterations", "1", "--data-cache", cache]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split() == ["all", "7", "0.5714", "0.7143"]
    assert lines[3].split() == ["corrupted", "1", "0.0000", "1.0000"]
    assert lines[4] == "3 of 10 records were not read; raise --iterations"


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*COMMAND, FILE, "--json", "-"]) == 0
    printed = capsys.readouterr()
    result = json.loads(printed.out)
    assert TABLE in printed.err
    assert result["corrupted"] == {"records": 4, "given": 0.5, "true": 0.5}
    assert result["all"] == {"records": 10, "given": 0.6, "true": 0.6}
    assert (result["clean_labels"], result["iterations"], result["records_of_file"]) == (FILE, 2, 10)
    assert set(result["outputs"]) == {"accuracy", "top2"}


def test_json_of_a_plain_test(capsys: pytest.CaptureFixture[str]) -> None:
    plain = ["test", "net.prototxt", "--stage", "test", "--weights", "w.caffemodel", "--iterations", "1"]
    assert main([*plain, "--json", "r.json"]) == 0
    assert capsys.readouterr().out == ""
    result = json.loads(Path("r.json").read_text())
    assert result["iterations"] == 1
    assert result["outputs"]["accuracy"] == pytest.approx(0.6)


def test_no_record_is_corrupted(capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree("noisy")
    corrupt_labels("clean", "noisy2", "symmetric", rate=0)
    Path("noisy2").rename("noisy")
    assert main([*COMMAND, "noisy2.clean_labels.npz", "--json", "r.json"]) == 0
    assert capsys.readouterr().out.splitlines()[3].split() == ["corrupted", "0", "-", "-"]
    assert json.loads(Path("r.json").read_text())["corrupted"]["true"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([*COMMAND, "none.npz"], "cannot read the labels 'none.npz': No such file or directory"),
        ([*COMMAND, "given.npy"], "'given.npy': expected the file of clean labels"),
        ([*COMMAND, "plain.npz"], "'plain.npz' has no array 'key'"),
        ([*COMMAND, "short.npz"], "'short.npz' has no labels for records of 'noisy', e.g. b'005'"),
        ([*COMMAND, "other.npz"], "'other.npz': the given label of b'000' is 1, in 'noisy' 0"),
        (
            ["test", "dummy.prototxt", "--weights", "w.caffemodel", "--clean-labels", FILE],
            "--clean-labels needs a net with one Data layer",
        ),
        (
            [*COMMAND[:3], "test", *COMMAND[4:], FILE],
            "in 'clean' 0; it must be the file of the LMDB that is read (--phase TRAIN reads",
        ),
        (["test", "plain.prototxt", *COMMAND[2:], FILE], "--clean-labels needs an Accuracy layer"),
        (["test", "wide.prototxt", *COMMAND[2:], FILE], "one class a record, (N, C) scores; tall has the"),
    ],
)
def test_refused(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with np.load(FILE) as kept:
        arrays = {name: kept[name] for name in ("key", "clean", "noisy")}
    np.savez("plain.npz", clean=arrays["clean"], noisy=arrays["noisy"])
    np.savez("short.npz", **{name: array[:5] for name, array in arrays.items()})
    np.savez("other.npz", **{**arrays, "noisy": arrays["noisy"][::-1]})
    net = NET.replace("ORDER", "")
    Path("plain.prototxt").write_text(net[: net.index('layer { name: "top2"')])
    tiles = """
layer { name: "t" type: "Tile" bottom: "data" top: "tall" tile_param { axis: 2 tiles: 2 } }
layer { name: "u" type: "Tile" bottom: "label" top: "labels" tile_param { axis: 0 tiles: 2 } }
layer { name: "accuracy" type: "Accuracy" bottom: "tall" bottom: "labels" top: "accuracy" }
"""
    Path("wide.prototxt").write_text(net[: net.index('layer { name: "scores"')] + tiles)
    Path("dummy.prototxt").write_text(
        'layer { name: "d" type: "DummyData" top: "d" dummy_data_param { shape { dim: 1 } } }'
    )
    before = sorted(path.name for path in Path().iterdir())
    assert main([*arguments, "--json", "r.json"]) == 2
    assert message in capsys.readouterr().err.strip().splitlines()[-1]
    assert sorted(path.name for path in Path().iterdir()) == before


def test_an_onnx_model(capsys: pytest.CaptureFixture[str]) -> None:
    """`imae run` prints the same table."""
    export = ["export", "--model", "net.prototxt", "--stage", "test", "--weights", "w.caffemodel"]
    assert main([*export, "--output", "net.onnx"]) == 0
    capsys.readouterr()
    assert main(["run", "net.onnx", "--lmdb", "noisy", "--clean-labels", FILE]) == 0
    assert capsys.readouterr().out.endswith(TABLE)
    assert main(["run", "net.onnx", "--lmdb", "clean", "--clean-labels", FILE]) == 2
    assert "the given label of b'006' is 1, in 'clean' 0" in capsys.readouterr().err
    assert main(["run", "net.onnx", "--images", "x.png", "--clean-labels", FILE]) == 2
    assert "--clean-labels is for an LMDB of imae corrupt-labels" in capsys.readouterr().err
