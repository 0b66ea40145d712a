"""What new users stumbled over: one line each, where there is no other test of the command."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from imae.cli.main import main
from imae.converters import quantize_onnx, run_onnx
from imae.converters.export_onnx import DEFAULT_OPSET, NEWEST_OPSET, OLDEST_OPSET
from imae.converters.run_onnx import Result, Speed
from imae.pycaffe import TEST, Net


@pytest.mark.parametrize("command", ["convert-imageset", "convert-annoset"])
@pytest.mark.parametrize(
    ("backend", "error"),
    [
        ("leveldb", "Caffe's LevelDB is read, not written; leave --backend out and write backend: LMDB into"),
        ("LevelDB", "Caffe's LevelDB is read, not written"),
        ("hdf5", "the database that is written is an lmdb, got 'hdf5'"),
    ],
)
def test_the_backend_that_is_not_written(
    command: str, backend: str, error: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([command, "--backend", backend, "images/", "list.txt", "out_lmdb"]) == 2
    assert f"imae: {command}: argument --backend: {error}" in capsys.readouterr().err
    assert not any(here.iterdir())


def test_a_mean_image_without_a_file_says_so(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert-digits", "data"]) == 0
    capsys.readouterr()
    assert main(["compute-image-mean", "data/digits_test_lmdb"]) == 0
    assert "no mean image is written" in capsys.readouterr().err.splitlines()[-1]
    assert main(["compute-image-mean", "data/digits_test_lmdb", "mean.binaryproto"]) == 0
    assert "no mean image is written" not in capsys.readouterr().err
    assert Path("mean.binaryproto").exists()


def test_the_help_of_export_has_the_opsets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["export", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert re.search(rf"operator set, {OLDEST_OPSET} to {NEWEST_OPSET} \({DEFAULT_OPSET}\)", words)


@pytest.mark.parametrize(("seconds", "slower"), [(0.5, False), (2.0, True)])
def test_a_quantized_model_that_is_slower(
    seconds: float,
    slower: bool,
    here: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    times = {"a.onnx": 1.0, "b.onnx": seconds}

    def measured(path: str, *, speed: bool, **_: object) -> Result:
        assert speed
        return Result(0.5, [1] * 100, [], speed=Speed(100, 1 / times[path], 100 * times[path]))

    monkeypatch.setattr(quantize_onnx, "quantize_file", lambda *_: Path("b.onnx").touch())
    monkeypatch.setattr(run_onnx, "run_file", measured)
    Path("a.onnx").touch()
    assert main(["quantize", "a.onnx", "b.onnx", "--to", "int8", "--lmdb", "x_lmdb"]) == 0
    printed = capsys.readouterr()
    assert len(printed.out.splitlines()) == 3
    assert ("a batch takes 2.00 times as long" in printed.err) is slower


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        (["summary", "a.prototxt"], "required: --model; write --model a.prototxt"),
        (
            ["export", "a.prototxt", "b c.caffemodel", "d.onnx"],
            "required: --model, --output; write --model a.prototxt --weights 'b c.caffemodel'",
        ),
        (
            ["export", "--model", "a.prototxt", "b.caffemodel", "--output", "d.onnx"],
            "unrecognized arguments: b.caffemodel; write --weights b.caffemodel",
        ),
        (["train", "a.prototxt", "b.caffemodel"], "arguments: b.caffemodel; write --weights b.caffemodel"),
        (["export", "--model", "a.prototxt"], "required: --output"),
    ],
)
def test_a_file_without_its_option(
    arguments: list[str], advice: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(arguments) == 2
    assert capsys.readouterr().err.endswith(f"{advice}\n")


@pytest.mark.parametrize(
    "arguments",
    [
        ["test", "--model", "deploy.prototxt", "--weights", "w.caffemodel"],
        ["extract-features", "w.caffemodel", "deploy.prototxt", "fc", "fc_lmdb", "1", "lmdb"],
    ],
)
def test_a_net_without_data(arguments: list[str], here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("deploy.prototxt").write_text(
        'layer { name: "x" type: "Input" top: "x" input_param { shape { dim: 1 dim: 2 } } }\n'
        'layer { name: "fc" type: "InnerProduct" bottom: "x" top: "fc" '
        "        inner_product_param { num_output: 2 } }"
    )
    Net("deploy.prototxt", TEST).save("w.caffemodel")
    assert main(arguments) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "imae: net '': input x is not given, and no data layer makes it; give it by its name, or use the "
        "prototxt that has data layers"
    )
    assert not Path("fc_lmdb").exists()


def test_the_help_of_demo_says_how_long_it_takes(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["demo", "--help"])
    assert "3 to 6 minutes on two cores" in " ".join(capsys.readouterr().out.split())


def test_the_help_of_plot_log_says_what_the_numbers_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["plot-log", "--help"])
    words = " ".join(capsys.readouterr().out.split())
    assert "0 (test accuracy), 2 (test loss), 4 (learning rate), 6 (train loss), over iterations" in words


@pytest.mark.parametrize("name", ["train", "--version"])
def test_the_word_caffe_may_be_typed(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["caffe", name]) == (2 if name == "train" else 0)
    printed = capsys.readouterr()
    assert "imae 0." in printed.out if name == "--version" else "Need a solver" in printed.err


@pytest.mark.parametrize(
    ("name", "program"),
    [
        ("classify.py", "imae export, then imae run; or imae.pycaffe.Classifier"),
        ("plot_training_log.py", "imae plot-log"),
        ("train_net", "imae train SOLVER"),
    ],
)
def test_a_program_of_caffes_that_has_another_name_here(
    name: str, program: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([name]) == 2
    assert capsys.readouterr().err.endswith(f"; what Caffe's program of this name did: {program}\n")


def test_a_solver_without_its_option(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["out-of-fold", "my_solver.prototxt"]) == 2
    assert capsys.readouterr().err.endswith("; write --solver my_solver.prototxt\n")


def test_a_chart_that_is_not_there_says_what_to_write(capsys: pytest.CaptureFixture[str]) -> None:
    log = Path(__file__).parents[1] / "cases" / "runs" / "digits_lenet" / "train.log"
    assert main(["plot-log", "test:acc", "acc.png", str(log)]) == 2
    last = capsys.readouterr().err
    assert "test:accuracy" in last and last.endswith(": write one of these as WHAT\n")


def test_a_required_option_says_what_it_may_be(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["quantize", "a.onnx", "b.onnx"]) == 2
    assert capsys.readouterr().err.endswith("required: --to; --to is one of fp16, int8\n")
