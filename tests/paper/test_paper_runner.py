"""The paper's runs: named, sized, prepared, trained, measured; a stopped run ends as if it had not been."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from op_recorder import OpRecorder
from tolerances import tolerance

from imae.cli import main
from imae.converters.convert_cifar import read_cifar
from imae.files.errors import DataError, DeviceError, FileError, ImaeError
from imae.layers.data.transformer import read_mean_file
from imae.layers.labels import LabelReader
from imae.net.kernels import native
from imae.paper import data, grid, training
from imae.paper.data import CLASSES, OTHER_WORDS, Cifar10, Images, Labelled
from imae.paper.experiments import GRIDS, VARYING, Run, Scale, runs
from imae.paper.record import RECORDS, Point, Record, read_record, read_records, write_record
from imae.paper.recorded_net import digest, recorded_net
from imae.paper.results import gather
from imae.prototxt import TEST
from imae.prototxt.text import to_text
from imae.train.signals import Action
from imae.train.snapshot_lock import writing_alone

TINY = Run("resnet8", "IMAE", 8.0, "symmetric", 0.5, iterations=80, images=100, test_images=100)


def make_cifar10(folder: Path) -> Path:
    """CIFAR-10's binary version with 200 training and 100 test images: noise around the class's grey."""
    folder.mkdir()
    random = np.random.default_rng(1)
    for name, count in [(f"data_batch_{i}.bin", 40) for i in range(1, 6)] + [("test_batch.bin", 100)]:
        labels = np.arange(count) % 10
        grey = random.integers(0, 40, (count, 3072)) + 20 * labels[:, None]
        np.concatenate([labels[:, None], grey], axis=1).astype(np.uint8).tofile(folder / name)
    return folder


def labelled(clean: list[int], noisy: list[int]) -> Labelled:
    return Labelled(Path("x"), np.array(clean), np.array(noisy))


def test_names_tell_runs_apart() -> None:
    every = [
        run
        for scale in (Scale(), Scale(800, 2000), Scale(800, 2000, 4000), Scale(800, 1000))
        for run in runs(GRIDS, [1, 2], scale)
    ]
    names = {run.name for run in every}
    assert len(names) == len({replace(run, test_images=0) for run in every})
    ours = "shuffled_after-mean"
    assert f"resnet20_imae-8_symmetric50_seed1_{ours}_sum-of-weights_epsilon1e-06_fp32" in names
    assert f"resnet20_imae-8_symmetric50_seed1_{ours}_batch-size_epsilon0_fp32" in names
    assert f"resnet20_cce_human-worst_seed2_800x2000_{ours}_fp32" in names
    assert f"resnet20_mae_symmetric50_seed2_800x2000_{ours}_batch-size_fp32" in names
    assert f"resnet20_imae-0.5_symmetric50_seed1_heldout20_{ours}_sum-of-weights_epsilon1e-06_fp32" in names
    # Protocol 1, the first records.
    assert "resnet20_imae-8_symmetric50_seed2_800x2000_sum-of-weights" in names
    assert "resnet20_imae-0.5_clean_seed1_authors-loss" in names


def test_a_variant_is_named_after_what_it_changes_and_has_a_base() -> None:
    run = Run("resnet20", "MAE", None, "symmetric", 0.5, seed=3, iterations=640, images=1000, protocol=1)
    assert run.changes == [] and run.base == run
    every = replace(run, normalizer="SUM_OF_WEIGHTS", weight_decay=0.0, base_lr=0.03, order="CLASS_BALANCED")
    assert every.name == f"{run.name}_sum-of-weights_decay0_rate0.03_class-balanced"
    assert every.base == run
    assert replace(run, order="SHUFFLED").name == f"{run.name}_shuffled"


def test_a_protocol_fills_in_what_is_not_said_and_translates() -> None:
    first, second = (Run("resnet20", "IMAE", 8.0, "symmetric", 0.5, protocol=number) for number in (1, 2))
    assert (first.order, first.padding, first.epsilon) == ("SEQUENTIAL", "BEFORE_MEAN", 0.0)
    assert (second.order, second.padding, second.epsilon) == ("SHUFFLED", "AFTER_MEAN", 1e-6)
    assert first.under(2) == second and second.under(1) == first and first.changes == second.changes == []
    cce = Run("resnet20", "CCE")
    assert (cce.normalizer, cce.epsilon) == ("BATCH_SIZE", None)
    exact = replace(second, epsilon=0.0, order="SEQUENTIAL", padding="BEFORE_MEAN")
    assert exact.changes == ["epsilon0", "sequential", "before-mean"] and exact.base == second
    with pytest.raises(ImaeError, match="protocol must be 1, 2, 3, got 4"):
        Run("resnet20", "CCE", protocol=4)


def test_grids_are_the_papers() -> None:
    one = {name: len(make()) for name, make in GRIDS.items()}
    assert one["table1"] == 9 and one["table2"] == 18 and one["figure6"] == 14 and one["figure8"] == 3
    assert {run.t for run in GRIDS["table1"]()} == {None, 0.5}
    assert {run.t for run in GRIDS["table2"]()} == {None, 8.0}
    # What two experiments share is trained once: IMAE-0.5 clean, IMAE-8 at 50 %.
    assert len(runs(["table1", "table2", "figure6"], [1], Scale())) == 9 + 18 + 14 - 2


def test_solver_of_the_papers_size_is_the_papers() -> None:
    param = training.solver_param(Run("resnet20", "CCE"), Path("n"), Path("p"), {"test": 10000}, gpu=True)
    assert (param.max_iter, list(param.stepvalue), param.test_interval) == (64000, [32000, 48000], 1000)
    assert (param.base_lr, param.weight_decay) == (pytest.approx(0.1), pytest.approx(0.0001))
    assert list(param.test_iter) == [100]


def test_nets_differ_in_the_loss_alone_and_forget_in_proportion() -> None:
    images = Images(labelled([0], [0]), labelled([0], [0]), labelled([0], [0]), "")
    nets = [
        training.train_val(Run("resnet20", loss, t, iterations=n), images)
        for loss, t, n in [("CCE", None, 64000), ("IMAE", 8.0, 64000), ("CCE", None, 800)]
    ]
    pairs = zip(nets[0].layer, nets[1].layer, strict=True)
    different = [(a.name, b.type, b.imae_loss_param.t) for a, b in pairs if a != b]
    assert different == [("loss", "IMAELoss", 8.0)]
    norms = [layer.batch_norm_param for net in nets for layer in net.layer if layer.type == "BatchNorm"]
    fractions = [norm.moving_average_fraction for norm in norms]
    assert fractions[0] == pytest.approx(0.999) and fractions[-1] == pytest.approx(0.92)
    stages = [
        layer.include[0].stage[:]
        for layer in nets[0].layer
        if layer.include and layer.include[0].phase == TEST
    ]
    assert stages == [["test"], ["train"], ["held_out"], []]


def test_variants_change_the_net_and_the_solver_as_they_say() -> None:
    images = Images(labelled([0], [0]), labelled([0], [0]), None, "")
    base = Run("resnet20", "IMAE", 8.0, protocol=1)
    own = training.train_val(base, images)

    def changed(**changes: object) -> list[str]:
        net = training.train_val(replace(base, **changes), images)  # type: ignore[arg-type]  # fields by name
        return [to_text(b) for a, b in zip(own.layer, net.layer, strict=True) if a != b]

    (loss,) = changed(normalizer="SUM_OF_WEIGHTS")
    assert 'type: "IMAELoss"' in loss and "t: 8" in loss and "normalizer: SUM_OF_WEIGHTS" in loss
    (loss,) = changed(epsilon=1e-6)
    assert "epsilon: 1e-06" in loss and "normalizer: BATCH_SIZE" in loss
    data = changed(padding="AFTER_MEAN")
    assert len(data) == 3 and all("mean_file" in text and "mean_value" not in text for text in data)
    (loss,) = changed(authors_loss=True)
    assert 'type: "UnifiedWeightLoss"' in loss and "lamda_p: 1" in loss and "scale: 8" in loss
    (data,) = changed(order="SHUFFLED")
    assert "order: SHUFFLED" in data and "phase: TRAIN" in data
    (data,) = changed(order="CLASS_BALANCED")
    assert "classes_per_batch: 8" in data and "images_per_class: 16" in data
    assert changed(weight_decay=0.01, base_lr=0.2) == []
    solvers = [
        training.solver_param(run, Path("n"), Path("p"), {"test": 10000}, gpu=False)
        for run in (base, replace(base, weight_decay=0.01, base_lr=0.2))
    ]
    assert [solver.weight_decay for solver in solvers] == pytest.approx([0.0001, 0.01])
    assert [solver.base_lr for solver in solvers] == pytest.approx([0.1, 0.2])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"loss": "CCE", "t": None, "epsilon": None, "normalizer": "SUM_OF_WEIGHTS"},
            "CCE has no normalizer SUM_OF_WEIGHTS",
        ),
        ({"loss": "MAE", "t": None, "authors_loss": True}, "the authors' layer is one of IMAE"),
        ({"authors_loss": True, "epsilon": 0.0}, "with a normalizer and an epsilon of its own"),
        ({"loss": "MAE", "t": None, "epsilon": 1e-6}, "MAE has no epsilon"),
        ({"padding": "NONE"}, "padding must be AFTER_MEAN or BEFORE_MEAN, got 'NONE'"),
        ({"order": "RANDOM"}, "order must be SEQUENTIAL, SHUFFLED, CLASS_BALANCED, got 'RANDOM'"),
    ],
)
def test_variants_that_there_are_not(changes: dict[str, object], message: str) -> None:
    images = Images(labelled([0], [0]), labelled([0], [0]), None, "")
    run = replace(Run("resnet20", "IMAE", 8.0), **changes)  # type: ignore[arg-type]  # fields by name
    with pytest.raises(ImaeError, match=message):
        training.train_val(run, images)


def test_a_variant_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "BATCH", 16)
    cifar10 = Cifar10(Path("work"), str(make_cifar10(tmp_path / "cifar")))
    run = replace(TINY, authors_loss=True, order="CLASS_BALANCED", weight_decay=0.01)
    record = training.train(run, cifar10.images(run), Path("run"), Path("records"), torch.device("cpu"))
    assert read_record(Path("records", f"{run.name}.json")) == record
    assert record.final.certain is not None and record.final.hopeless is not None
    net = Path("run", "train_val.prototxt").read_bytes()
    assert b"order: CLASS_BALANCED" in net and b"UnifiedWeightLoss" in net
    assert record.net_sha256 == hashlib.sha256(net).hexdigest()


def test_a_recorded_run_has_the_accuracies_of_a_launched_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With operations replayed on the CPU, as a GPU replays CUDA graphs."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "BATCH", 16)
    monkeypatch.setattr(LabelReader, "at_once", staticmethod(lambda label: False))
    monkeypatch.setattr(native, "available", lambda: False)  # its kernels are no operations of torch's
    cifar10, made = Cifar10(Path("work"), str(make_cifar10(tmp_path / "cifar"))), list[OpRecorder]()

    def recorder() -> OpRecorder:
        made.append(OpRecorder())
        return made[-1]

    cpu = torch.device("cpu")
    points = [
        training.train(TINY, cifar10.images(TINY), Path(name), Path(name), cpu, how).points
        for name, how in (("launched", None), ("recorded", recorder))
    ]
    assert points[0] == points[1]
    assert sum(one.replays > 0 for one in made) == 4  # a training pass, the update, two test nets


def test_measures() -> None:
    images = Images(
        train=labelled([0, 1, 2, 3, 4], [0, 1, 2, 0, 0]),
        test=labelled([5, 6, 7, 8], [5, 6, 7, 8]),
        held_out=labelled([1, 2], [1, 3]),
        words="",
    )
    predicted = [
        training.Predictions(np.array(classes), np.array(log_odds, np.float32))
        for classes, log_odds in (
            ([5, 6, 0, 0], [0, 0, 0, 0]),
            ([0, 1, 0, 0, 4], [14, 13, -13, -14, 15]),  # 13.8 is that of 1 - 1e-6
            ([1, 2], [0, 0]),
        )
    ]
    point = training.measure(10, 0.5, images, predicted)
    assert point == Point(10, 0.5, 0.5, 0.6, 0.6, 0.5, 0.666667, 0.5, 1.0, 0.4, 0.2)
    clean = Images(labelled([0, 1], [0, 1]), images.test, None, "")
    zeros = training.Predictions(np.array([0, 0]), np.zeros(2, np.float32))
    assert training.measure(10, None, clean, [predicted[0], zeros]).noisy_subset is None


def test_log_odds_by_hand() -> None:
    odds = training.log_odds(
        torch.tensor([[0.0, math.log(2), math.log(5)], [900.0, 0, 0]]), torch.tensor([2.0, 1])
    )
    bound = tolerance("formula", "float32").rtol
    assert odds[0].item() == pytest.approx(math.log(5 / 3), rel=bound)
    assert odds[1].item() == -900  # where p itself would be 0


def test_a_stopped_run_ends_as_if_it_had_not_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "BATCH", 16)
    cifar10 = Cifar10(Path("work"), str(make_cifar10(tmp_path / "cifar")))
    records = tmp_path / "records"

    def start(run: Run, *rest: object) -> subprocess.Popen[bytes]:
        folder = grid.run_folder(cifar10.work, run.name)
        training.train(run, cifar10.images(run), folder, records, torch.device("cpu"))
        return subprocess.Popen([sys.executable, "-c", ""])

    monkeypatch.setattr(grid, "_start", start)
    grid.train_all([TINY], cifar10, records, jobs=1, options=["--threads", "1"])
    assert "convert-cifar" in capsys.readouterr().out
    whole = read_record(records / f"{TINY.name}.json")
    assert [point.iteration for point in whole.points] == list(range(10, 81, 10))
    assert whole.wrong_labels == pytest.approx(45, abs=25) and whole.train_images == 100
    assert whole.run == TINY and whole.complete and len(whole.net_sha256) == 64
    assert whole.data == "images that are not CIFAR-10's original pixels" and len(whole.images_sha256) == 64
    assert "shuffled" not in whole.data and read_records(records) == [whole]
    assert grid.is_done(TINY, records)
    with pytest.raises(DataError, match="of another run"):
        grid.is_done(replace(TINY, test_images=99), records)

    count = iter(range(1000))
    with monkeypatch.context() as patch:
        patch.setattr(
            training.SignalRequests, "__call__", lambda _: Action.STOP if next(count) == 33 else Action.NONE
        )
        part = training.train(TINY, cifar10.images(TINY), Path("again"), tmp_path / "2", torch.device("cpu"))
    assert not part.complete and not list((tmp_path / "2").glob("*.json"))
    assert not [record for record in [part] if record.final.iteration >= 40]
    rest = training.train(TINY, cifar10.images(TINY), Path("again"), tmp_path / "2", torch.device("cpu"))
    assert rest.points == whole.points and rest.began == part.began and rest.seconds > part.seconds


def test_a_run_that_is_killed_goes_on_in_a_copy_of_its_folder(tmp_path: Path) -> None:
    """As on another machine: prototxts, snapshots and record have no path of where they were."""
    source = make_cifar10(tmp_path / "cifar")
    images = Cifar10(tmp_path / "first", str(source)).images(TINY)
    assert images.words == OTHER_WORDS

    def command(work: str, records: str) -> list[str]:
        run = ["paper", "run", "--run", json.dumps(asdict(TINY)), "--threads", "1"]
        place = ["--work", str(tmp_path / work), "--records", str(tmp_path / records)]
        return [sys.executable, "-m", "imae.cli.main", *run, *place]

    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    subprocess.run(command("whole", "records"), check=True, capture_output=True, cwd=tmp_path)
    whole = read_record(tmp_path / "records" / f"{TINY.name}.json")
    process = subprocess.Popen(
        command("first", "none"), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=tmp_path
    )
    half = grid.run_folder(tmp_path / "first", TINY.name) / "resnet8_iter_40.solverstate"
    while not half.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    assert not list((tmp_path / "none").glob("*.json"))
    (tmp_path / "first").rename(tmp_path / "second")
    (tmp_path / "other").mkdir()
    subprocess.run(command("second", "none"), check=True, capture_output=True, cwd=tmp_path / "other")
    rest = read_record(tmp_path / "none" / f"{TINY.name}.json")
    assert rest.points == whole.points and rest.began != whole.began
    assert (rest.solver, rest.net_sha256) == (whole.solver, whole.net_sha256)
    assert str(tmp_path) not in (tmp_path / "none" / f"{TINY.name}.json").read_text()
    for file in ("solver.prototxt", "train_val.prototxt"):
        assert str(tmp_path) not in (grid.run_folder(tmp_path / "second", TINY.name) / file).read_text()


def test_one_run_takes_paths_of_the_folder_that_it_is_started_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_cifar10(tmp_path / "cifar")
    seen = {}

    def images(self: Cifar10, run: Run) -> Images:
        seen.update(source=self.source, human=self.human_labels, within=self.within_class)
        raise ImaeError("seen")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(Cifar10, "images", images)
    arguments = ["paper", "run", "--run", json.dumps(asdict(TINY)), "--work", "work", "--threads", "1"]
    files = ["--cifar10", "cifar", "--human-labels", "human.npz", "--within-class", "within.npz"]
    assert main.main([*arguments, *files]) == 2
    names = {"source": "cifar", "human": "human.npz", "within": "within.npz"}
    assert seen == {what: str(tmp_path / name) for what, name in names.items()}


def test_commands_that_begin_together_make_the_images_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Both found no images, and the second one was refused what the first had written in the meantime."""
    monkeypatch.setattr(data, "POLL", 0.01)
    source, work = str(make_cifar10(tmp_path / "cifar")), tmp_path / "work"
    made, step = list[str](), data._step

    def note(*words: object) -> None:
        made.append(str(words[0]))
        step(*words)

    monkeypatch.setattr(data, "_step", note)
    with ThreadPoolExecutor() as threads:
        first, second = threads.map(lambda _: Cifar10(work, source).images(TINY), range(2))
    assert (first.sha256, first.words) == (second.sha256, second.words)
    assert sorted(made) == ["compute-image-mean", "convert-cifar", "corrupt-labels"]
    assert capsys.readouterr().out.count(f"another process makes images in '{work}'; waiting for it") == 1
    with pytest.raises(ImaeError, match="there is no CIFAR-10 in"):
        Cifar10(tmp_path / "none").images(TINY)
    assert not (tmp_path / "none").exists()


def test_a_run_that_another_process_trains_is_refused(tmp_path: Path) -> None:
    """Each would remove the other's snapshots and write over its record."""
    images = Cifar10(tmp_path / "work", str(make_cifar10(tmp_path / "cifar"))).images(TINY)
    folder = tmp_path / "run"
    folder.mkdir()
    with (
        writing_alone(str(folder / TINY.net)),
        pytest.raises(FileError, match="another training writes its snapshots"),
    ):
        training.train(TINY, images, folder, tmp_path / "records", torch.device("cpu"))
    assert not (folder / "train_val.prototxt").exists()


def test_a_run_does_not_go_on_with_other_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run = Run("resnet20", "CCE", iterations=8)
    points = (Point(4, 0.5, 0.5, 0.6, 0.6, 0.5, 0.7, 0.6), Point(8, 0.5, 0.5, 0.6, 0.6, 0.5, 0.7, 0.6))
    earlier = Record(run, "", 100, 100, 0, "s", "A", {}, "2026", 1.0, points, images_sha256="a", commit="c1")
    now = replace(earlier, device="B", commit="c2", points=())
    joined = training._earlier(now, earlier, 8)
    assert (joined.device, joined.commit, joined.points) == ("A, then B", "c1, then c2", points[:1])
    assert training._earlier(replace(now, device="A"), joined, 8).device == "A, then B"
    with pytest.raises(ImaeError, match="was begun with other images; remove its folder"):
        training._earlier(replace(now, images_sha256="b"), earlier, 8)


def test_images_are_told_by_their_pixels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same digest from CIFAR-10's own files and from PNGs; only CIFAR-10's is called original."""
    source = make_cifar10(tmp_path / "cifar")
    own = Cifar10(tmp_path / "own", str(source)).images(TINY)
    _, train, test = read_cifar(source)
    for ending in ("png", "jpg"):
        for part, images in (("train", train), ("test", test)):
            for place, (pixels, label) in enumerate(zip(images.images, images.labels, strict=True)):
                folder = tmp_path / ending / part / CLASSES[label]
                folder.mkdir(parents=True, exist_ok=True)
                bgr = np.ascontiguousarray(pixels[::-1].transpose(1, 2, 0))
                assert cv2.imwrite(str(folder / f"{(place * 7) % 1000:03}.{ending}"), bgr)
    pictures = Cifar10(tmp_path / "pngs", str(tmp_path / "png")).images(TINY)
    assert (own.words, pictures.words) == (OTHER_WORDS, f"{OTHER_WORDS}, shuffled once")
    assert own.sha256 == pictures.sha256
    mean = read_mean_file(str(pictures.train.mean), "")
    assert mean.shape == (3, 40, 40) and (mean[:, :4] == 0).all() and (mean[:, 4:36, 4:36] > 0).all()
    assert np.array_equal(read_mean_file(str(pictures.test.mean), ""), mean[:, 4:36, 4:36])
    monkeypatch.setattr(data, "ORIGINAL_PIXELS", own.sha256)
    assert Cifar10(tmp_path / "own2", str(source)).images(TINY).words == "CIFAR-10, original pixels"
    again = Cifar10(tmp_path / "pngs2", str(tmp_path / "png")).images(TINY)
    assert again.words == "CIFAR-10, original pixels, shuffled once"
    lossy = Cifar10(tmp_path / "jpegs", str(tmp_path / "jpg")).images(TINY)
    assert lossy.words == "CIFAR-10, images from JPEG files (recompressed), shuffled once"
    assert lossy.sha256 != own.sha256


def test_precision_is_of_the_training_alone_and_kept_apart(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "BATCH", 16)
    cifar10 = Cifar10(Path("work"), str(make_cifar10(tmp_path / "cifar")))
    run = replace(TINY, precision="bf16")
    made = [
        training.train(each, cifar10.images(each), Path(each.name), Path("records"), torch.device("cpu"))
        for each in (TINY, run)
    ]
    assert made[0].points != made[1].points and made[1].run.name.endswith("_bf16")
    assert [results.setting.precision for results in gather(made)] == ["bf16", "fp32"]
    with pytest.raises(DeviceError, match="tf32 is of GPUs"):
        other = replace(TINY, precision="tf32")
        training.train(other, cifar10.images(other), Path("x"), Path("records"), torch.device("cpu"))


def test_a_run_that_fails_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    cifar10 = Cifar10(Path("work"), str(make_cifar10(tmp_path / "cifar")))
    run = replace(TINY, net="resnet9")  # no depth of a ResNet
    with pytest.raises(ImaeError, match=f"1 of 1 runs have not ended: {run.name}"):
        grid.train_all([run], cifar10, tmp_path / "records", jobs=1, options=["--threads", "1"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["table2"], "there is no CIFAR-10 in 'data/paper': give --cifar10 PATH"),
        (["later-tables"], "; --show trains nothing, and shows what there is without"),
        (["table2", "--scale", "800"], "--scale must be ITERATIONS:IMAGES"),
        (["table2", "--scale", "810:2000"], "iterations must be a multiple of 40"),
        (["table2", "--scale", "8040:2000"], "iterations must be a multiple of 1000"),
        (["table2", "--scale", "800:2050"], "images must be a multiple of 100"),
        (["table2", "--only", "resnet21"], "no run of table2 has one of these words in its name: resnet21"),
        (["table2", "--seeds", "1,x"], "--seeds must be whole numbers"),
        (["table2", "--jobs", "0"], "--jobs must be at least 1"),
        (["run", "--run", "{}"], "--run must be the fields of a run as JSON"),
        (["run", "--run", '{"net": "vgg", "loss": "CCE"}'], "net of a run must be resnet20 or the like"),
        (["run", "--run", '{"net": "resnet20", "loss": "CCE", "iterations": 0}'], "iterations of a run must"),
        (["run", "--run", '{"net": "resnet20", "loss": "CCE", "held_out": NaN}'], "held_out of a run must"),
        (["net"], "imae paper net needs a record"),
        (["net", "resnet20_unheard"], "got 'resnet20_unheard'"),
        (["table4", "resnet20"], "imae paper table4 takes no record; got 'resnet20'"),
        (["run", "--run", '{"net": "resnet/../..20", "loss": "CCE"}'], "net of a run must be resnet20 or"),
        (["run", "--run", '{"net": 5, "loss": "CCE"}'], "net of a run must be a string, got 5"),
        (["run", "--run", '{"net": "resnet20", "loss": "GCE"}'], "loss of a run must be CCE, MAE, IMAE, got"),
        (["run", "--run", '{"net": "resnet20", "loss": "CCE", "rate": "a"}'], "rate of a run must be a num"),
        (["run", "--run", '{"net": "resnet20", "loss": "CCE", "seed": true}'], "seed of a run must be a wh"),
        (["run", "--run", '{"net": "resnet20", "loss": "IMAE", "t": "8"}'], "must be a number, or null"),
    ],
)
def test_bad_arguments(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["paper", *arguments, "--records", "records"]) == 2
    assert message in capsys.readouterr().err


def test_dry_run_lists(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main.main(["paper", "table1", "--dry-run", "--scale", "800:2000", "--only", "resnet56"]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"resnet56_{loss}_fp32"
        for loss in (
            "cce_clean_seed1_800x2000_shuffled_after-mean",
            "mae_clean_seed1_800x2000_shuffled_after-mean_batch-size",
            "imae-0.5_clean_seed1_800x2000_shuffled_after-mean_sum-of-weights_epsilon1e-06",
        )
    ]


def test_records_that_are_none_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    run = '{"format": 2, "points": [], "run": {"net": "resnet20", "loss": "CCE", "protocol": 3}}'
    record = (RECORDS / "resnet20_cce_clean_seed1_640x1000.json").read_text()
    counts = [
        record.replace(' "test_images": 4000,\n "wrong', f' "test_images": {n},\n "wrong') for n in (0, '"x"')
    ]
    counts.append(record.replace('"intact": 0.365', '"intact": null'))
    assert record not in counts
    for text in (
        *counts,
        "",
        "{}",
        '{"format": 4}',
        '{"format": 3}',
        '{"format": 1, "points": []}',
        "[1]",
        run,
    ):
        path.write_text(text)
        with pytest.raises(DataError, match="is not a record of a run"):
            read_records(tmp_path)


def test_records_from_before_there_were_variants_are_read(tmp_path: Path) -> None:
    run = Run("resnet20", "IMAE", 8.0, iterations=8, protocol=1)
    points = (Point(8, 0.5, 0.5, 0.6, 0.6, 0.5, 0.7),)
    record = Record(run, "", 100, 100, 0, "s", "d", {}, "2026", 1.0, points)
    path = tmp_path / f"{run.name}.json"
    write_record(record, path)
    content = json.loads(path.read_text())
    content["points"][0]["hybrid"] = 0.6
    content["format"], content["net_file"] = 1, "nets/n.prototxt"
    for field in (*VARYING, "protocol", "precision"):
        del content["run"][field]
    for field in ("net_sha256", "images_sha256", "commit"):
        del content[field]
    for field in ("certain", "hopeless"):
        del content["points"][0][field]
    path.write_text(json.dumps(content))
    assert read_records(tmp_path) == [record] and grid.is_done(run, tmp_path)


def test_committed_records_are_whole() -> None:
    for path in sorted(RECORDS.glob("*.json")):
        record = read_record(path)
        assert record.complete and record.run.name == path.stem, path
        assert len(record.net_sha256) == 64, path
        if record.run.protocol == 1:
            assert record.solver.count('"data/paper/') == 2, f"{path}: paths of a machine"
        else:
            assert record.solver.count('"runs/') == 2, f"{path}: paths of a machine"
            assert record.commit and "dirty" not in record.commit, path


@pytest.mark.parametrize("path", sorted(RECORDS.glob("*.json")), ids=lambda path: path.stem)
def test_the_net_of_a_committed_record_is_made_again(path: Path) -> None:
    """Byte by byte: its digest is that of the record.

    But for the first runs of IMAE. Their nets gave no epsilon, when the layer was exact by default; today's
    nets say that it is 0, and without these words they have the record's digest.
    """
    record = read_record(path)
    net = recorded_net(record)
    first_imae = record.run.protocol == 1 and record.run.loss == "IMAE" and not record.run.authors_loss
    if not first_imae:
        assert net.note == "" and digest(net.text) == record.net_sha256
        return
    given = ["normalizer: BATCH_SIZE"] if record.run.normalizer == "BATCH_SIZE" else []
    lacking = [*given, "epsilon: 0"]
    assert f"lacks {' and '.join(lacking)}, which" in net.note
    shorter = "".join(line for line in net.text.splitlines(True) if line.strip() not in lacking)
    assert digest(shorter) == record.net_sha256


def test_names_of_images_are_those_that_are_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "TRAIN_IMAGES", 200)
    monkeypatch.setattr(data, "TEST_IMAGES", 100)
    cifar10 = Cifar10(tmp_path / "work", str(make_cifar10(tmp_path / "cifar")))
    labels = np.arange(200) % 40 % 10
    np.savez(tmp_path / "human.npz", clean=labels, human_worst=(labels + 1) % 10)
    cifar10.human_labels = str(tmp_path / "human.npz")
    human = replace(TINY, noise="human", rate=0.0, human="worst")
    for run in (
        replace(TINY, noise="none", rate=0.0, images=200),
        replace(TINY, seed=3, rate=0.25),
        replace(human, images=200),
        replace(human, padding="BEFORE_MEAN"),
        replace(TINY, held_out=0.5),
        replace(TINY, held_out=0.2, images=200),
    ):
        images = cifar10.images(run)
        text = to_text(training.train_val(run, images))
        assert text == to_text(training.train_val(run, data.named_images(run, tmp_path / "work")))
        record = recorded(run, tmp_path / "work", text)
        assert recorded_net(record) == (text, "")


def recorded(run: Run, work: Path, net: str) -> Record:
    """A record of a run whose net is this text."""
    folder = work / "runs" / run.name
    solver = training.solver_param(run, folder / "train_val.prototxt", folder / run.net, {"test": 100}, False)
    sha256 = digest(net)
    return Record(
        run, "", 100, 100, 0, to_text(solver), "d", {}, "2026", 1.0, (), net_sha256=sha256, commit="c0"
    )


def test_a_record_whose_net_cannot_be_made_again_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record = recorded(TINY, Path("work"), "other")
    path = tmp_path / "a.json"
    write_record(record, path)
    assert main.main(["paper", "net", str(path)]) == 0
    note, _, text = capsys.readouterr().out.partition("\n")
    assert f"this is not the text of the record, whose SHA-256 is {digest('other')}" in note
    assert note.startswith(f"# {TINY.name}: ") and "by other code, commit c0" in note
    assert 'source: "work/train_symmetric50_seed123_n100"' in text
    write_record(replace(record, run=replace(TINY, net="resnet9")), path)
    assert main.main(["paper", "net", str(path)]) == 2
    assert (
        "resnet9_imae-8_symmetric50" in (error := capsys.readouterr().err) and "depth must be 6n + 2" in error
    )
    write_record(replace(record, run=replace(TINY, noise="a/../\n", precision="\0")), path)
    assert main.main(["paper", "net", str(path)]) == 0
    assert capsys.readouterr().out.splitlines()[1] == 'name: "ResNet8"'
    write_record(replace(record, net_sha256=""), path)
    assert main.main(["paper", "net", str(path)]) == 0
    assert "no digest of its net" in capsys.readouterr().out.splitlines()[0]
    write_record(replace(record, net_sha256=digest(text)), tmp_path / f"{TINY.name}.json")
    assert main.main(["paper", "net", TINY.name, "--records", str(tmp_path)]) == 0
    assert capsys.readouterr().out == text


def test_records_of_today_that_older_code_writes_are_read(tmp_path: Path) -> None:
    """Format 2 had a net_file, which was empty."""
    record = recorded(TINY, Path(), "net")
    path = tmp_path / "a.json"
    write_record(record, path)
    content = json.loads(path.read_text())
    assert content["format"] == 3 and "net_file" not in content
    path.write_text(json.dumps({**content, "net_file": ""}))
    assert read_record(path) == record


def test_human_labels_of_images_in_another_order_are_refused(tmp_path: Path) -> None:
    cifar10 = Cifar10(tmp_path / "work", str(make_cifar10(tmp_path / "cifar")))
    run = replace(TINY, noise="human", rate=0.0, human="worst")
    with pytest.raises(ImaeError, match="human labels are needed"):
        cifar10.images(run)
    labels = np.arange(200) % 10
    for name, clean in (("right", labels % 40 % 10), ("other", labels[::-1])):
        path = tmp_path / f"{name}.npz"
        np.savez(path, clean=clean, human_worst=(clean + 1) % 10)
        cifar10.human_labels = str(path)
        if name == "other":
            cifar10.work.joinpath("train_human-worst").rename(tmp_path / "first")
            with pytest.raises(ImaeError, match="is not in the order of"):
                cifar10.images(run)
        else:
            assert (cifar10.images(run).train.noisy != cifar10.images(run).train.clean).all()


def test_a_level_out_of_range(capsys: pytest.CaptureFixture[str]) -> None:
    for command in (["train", "x"], ["test", "--model", "x", "--weights", "y"]):
        assert main.main([*command, "--level", "99999999999"]) == 2
        assert "a level must be from" in capsys.readouterr().err
