"""A small SSD (small_ssd.py) learns to find rectangles: data, loss, evaluation, resume, export."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest
import small_ssd
import torch
from tolerances import tolerance

from imae.cli.main import main
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.prototxt import TEST, NetState, SolverParameter, read_net, read_solver
from imae.prototxt.state import in_state
from imae.train.solver import Solver

ROOT = Path(__file__).parents[2]
BEFORE, AFTER = 0.3, 0.8  # mAP, at 0.5 overlap: below it without training, above it after 120 iterations


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A folder with all files and the trained weights, and the log of the training."""
    folder = tmp_path_factory.mktemp("ssd")
    small_ssd.write_all(folder)
    command = [sys.executable, str(ROOT / "train" / "solve.py"), "solver.prototxt", "--threads", "1"]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return folder, done.stderr


def test_its_mean_average_precision_rises(trained: tuple[Path, str]) -> None:
    means = [float(word) for word in re.findall(r"Test net output #0: evaluation = (\S+)", trained[1])]
    assert len(means) == 3
    assert means[0] < BEFORE and means[-1] > AFTER
    assert len(re.findall(r"class[12]: [0-9.e-]+\n", trained[1])) == 6


def test_imae_test_gives_the_mean_average_precision(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As high as in the solver's last test; not its digits, as rounding may exchange two of near scores."""
    monkeypatch.chdir(trained[0])
    weights = ["--weights", "ssd_iter_120.caffemodel", "--iterations", "4", "--ap-version", "11point"]
    assert main(["test", "net.prototxt", *weights, "--per-class"]) == 0
    found = re.findall(r"(class[12]|evaluation)(?:: | = )(\S+)\n", capsys.readouterr().err)
    assert [name for name, _ in found] == ["class1", "class2", "evaluation"]
    first, second, mean = (float(value) for _, value in found)
    assert mean > AFTER
    rtol, atol, _ = tolerance("logged")
    np.testing.assert_allclose(mean, (first + second) / 2, rtol, atol)


def test_it_is_exported(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The model finds in ONNX Runtime and OpenCV what the net finds, and that is where the rectangles are."""
    monkeypatch.chdir(trained[0])
    arguments = ["export", "--model", "net.prototxt", "--weights", "ssd_iter_120.caffemodel"]
    assert main([*arguments, "--output", "ssd.onnx"]) == 0
    assert "inputs data, outputs detections" in capsys.readouterr().out
    param = in_state(read_net("net.prototxt"), TEST, NetState())
    net = Net(param)
    load_caffemodel(net, "ssd_iter_120.caffemodel")
    (source,) = net.data_layers()
    images, truths = source.next_batch()
    session = onnxruntime.InferenceSession("ssd.onnx", providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {"data": images.numpy()})
    source.next_batch = lambda: (images, truths)  # type: ignore[method-assign]
    with torch.no_grad():
        blobs = net({}, keep=["detections"])
    want = blobs["detections"].numpy()
    assert found.shape == want.shape
    np.testing.assert_array_equal(found[..., :2], want[..., :2])
    rtol, atol, _ = tolerance("onnx")
    np.testing.assert_allclose(found, want, rtol=rtol, atol=atol)
    in_opencv = cv2.dnn.readNetFromONNX("ssd.onnx")
    in_opencv.setInput(images.numpy())
    np.testing.assert_allclose(in_opencv.forward(), want, rtol=rtol, atol=atol)
    best = found[0, 0, found[0, 0, :, 2] > 0.3]
    hits = 0
    for image, label, _, *box, _ in truths[0, 0].tolist():
        mine = best[(best[:, 0] == image) & (best[:, 1] == label), 3:]
        hits += any(overlap(other.tolist(), box) > 0.5 for other in mine)
    assert hits > 0.7 * truths.shape[2]


def test_imae_run_finds_and_draws_them(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """In image files of another size and aspect, in their own pixels, with the names of the label map."""
    model = tmp_path / "ssd.onnx"
    monkeypatch.chdir(trained[0])
    export = ["export", "--model", "net.prototxt", "--weights", "ssd_iter_120.caffemodel"]
    assert main([*export, "--output", str(model)]) == 0
    rng, names, truths = np.random.default_rng(7), ["none", "red", "green"], {}
    for number in range(12):
        record = small_ssd.record(rng)
        image = cv2.imdecode(np.frombuffer(record.datum.data, np.uint8), cv2.IMREAD_COLOR)
        enlarged = cv2.resize(image, (128, 192), interpolation=cv2.INTER_NEAREST)
        cv2.imwrite(str(tmp_path / f"{number}.png"), enlarged)
        truths[str(tmp_path / f"{number}.png")] = [
            (names[group.group_label], [128 * a.xmin, 192 * a.ymin, 128 * a.xmax, 192 * a.ymax])
            for group in record.annotation_group
            for a in (annotation.bbox for annotation in group.annotation)
        ]
    results, drawings = tmp_path / "r.json", tmp_path / "found"
    command = ["run", str(model), str(tmp_path), "--labels", "labelmap.prototxt", "--threshold", "0.3"]
    assert main([*command, "--json", str(results), "--draw", str(drawings), "--threads", "1"]) == 0
    hits = []
    for entry in json.loads(results.read_text())["images"]:
        assert (entry["height"], entry["width"]) == (192, 128)
        for name, box in truths[entry["image"]]:
            mine = [[b["xmin"], b["ymin"], b["xmax"], b["ymax"]] for b in entry["boxes"] if b["name"] == name]
            hits.append(any(overlap(other, box) > 0.5 for other in mine))
        drawn = np.asarray(cv2.imread(str(drawings / Path(entry["image"]).name)))
        plain = np.asarray(cv2.imread(entry["image"]))
        assert drawn.shape == plain.shape and bool((drawn != plain).any()) == bool(entry["boxes"])
    assert len(hits) > 12 and np.mean(hits) > 0.7


def overlap(a: list[float], b: list[float]) -> float:
    """The shared area by that of both."""
    width, height = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
    shared = max(width, 0) * max(height, 0)
    return shared / ((a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared)


def test_a_resumed_training_has_the_same_bits(
    trained: tuple[Path, str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(trained[0])
    param = read_solver("solver.prototxt")
    short = SolverParameter()
    short.CopyFrom(param)
    short.max_iter, short.snapshot, short.snapshot_prefix = 4, 2, str(tmp_path / "short")
    del short.test_iter[:]
    whole = Solver(short)
    whole.step(4)
    resumed = Solver(short)
    resumed.restore(tmp_path / "short_iter_2.solverstate")
    resumed.step(2)
    for a, b in zip(whole.net.learnable, resumed.net.learnable, strict=True):
        assert torch.equal(a, b)
