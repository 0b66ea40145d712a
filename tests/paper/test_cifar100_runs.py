"""The authors' later runs, on CIFAR-100: net and solver are theirs, a small one trains, tables show ours."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from test_paper_report import made

from imae.files.errors import ImaeError
from imae.paper import figures, results_page, tables, training
from imae.paper.claims import HELD, NO_DATA, NOT_HELD
from imae.paper.data import Cifar10, Cifar100, Sources, named_images
from imae.paper.evidence import EVIDENCE, noise_of
from imae.paper.experiments import LATER_RATES, Run, Scale, cifar100, later_run, runs
from imae.paper.record import read_record
from imae.paper.recorded_net import recorded_net
from imae.paper.results import gather
from imae.prototxt import TEST, TRAIN, NetParameter, SolverParameter
from imae.prototxt.state import filter_net
from imae.prototxt.text import parse_text

AUTHORS = Path(__file__).parents[2] / "prototxt" / "models" / "cifar100"
IMAE = later_run("IMAE", 8, "symmetric-exclusive", 0.4)
CCE = later_run("CCE", 8, "symmetric-exclusive", 0.4)


def committed(name: str, message: type) -> NetParameter | SolverParameter:
    return parse_text((AUTHORS / name).read_text(encoding="utf-8"), message, name)


@pytest.mark.parametrize(
    ("run", "stage"), [(IMAE, "imae-8"), (CCE, "cce"), (later_run("GCE", 8, "none", 0), "gce")]
)
def test_the_net_is_the_authors(run: Run, stage: str) -> None:
    """That of prototxt/models, in the stage of its loss; only the sources differ."""
    theirs = committed("authors_resnet44.prototxt", NetParameter)
    ours = training.train_val(run, named_images(run, Path("work")))
    for phase in (TRAIN, TEST):
        a, b = filter_net(theirs, phase, 0, [stage]), filter_net(ours, phase, 0, ["test"])
        for net in (a, b):
            for layer in net.layer:
                del layer.include[:], layer.exclude[:]
                if layer.type == "Data":
                    layer.data_param.source = ""
        assert list(map(str, a.layer)) == list(map(str, b.layer))


def test_the_solver_is_the_authors() -> None:
    theirs = committed("authors_resnet44_solver.prototxt", SolverParameter)
    ours = training.solver_param(IMAE, Path("n"), Path("p"), {"test": 10000}, gpu=False)
    for param in (theirs, ours):
        for field in ("net", "snapshot_prefix", "train_state", "test_state"):
            param.ClearField(field)
    assert str(theirs) == str(ours)
    short = training.solver_param(replace(IMAE, iterations=3000), Path(), Path(), {}, gpu=False)
    assert (short.max_iter, list(short.stepvalue)) == (3000, [1500, 2200])


def test_the_grid_has_the_authors_rates_and_t() -> None:
    grid = cifar100()
    assert [run.t for run in grid if run.loss == "IMAE"][:4] == [6, 8, 8, 2]
    assert {run.rate for run in grid if not run.noise.startswith("asym")} == set(LATER_RATES)
    assert {noise_of(run) for run in grid} == {
        *("clean", "sym 0.2", "sym 0.4", "sym 0.6", "asym 0.2", "asym 0.3", "asym 0.4")
    }
    assert not any(run.changes or run.is_scaled for run in grid)
    full, small = (runs(["cifar100"], [1], scale) for scale in (Scale(), Scale(640, 1000, 1000)))
    assert {run.iterations for run in full} == {30000} and {run.iterations for run in small} == {640}
    assert IMAE.name == (
        "cifar100_resnet44_imae-8_symmetric-exclusive40_seed1_class-balanced_resized_"
        "sum-of-weights_epsilon1e-06_fp32"
    )


def test_there_is_no_variant_and_other_protocols_have_no_gce() -> None:
    with pytest.raises(ImaeError, match="no variant decay0"):
        training.train_val(replace(IMAE, weight_decay=0.0), named_images(IMAE, Path()))
    with pytest.raises(ImaeError, match="loss of a run must be CCE, MAE, IMAE, got 'GCE'"):
        Run("resnet20", "GCE")
    with pytest.raises(ImaeError, match="IMAE needs a T"):
        training.train_val(replace(IMAE, t=None), named_images(IMAE, Path()))


def make_images(folder: Path) -> Path:
    """100 classes with eight training images and a test image each."""
    generator = np.random.default_rng(0)
    for part, count in (("train", 8), ("test", 1)):
        for label in range(100):
            place = folder / part / f"class{label:02}"
            place.mkdir(parents=True)
            for i in range(count):
                cv2.imwrite(str(place / f"{i}.png"), generator.integers(0, 256, (32, 32, 3), np.uint8))
    return folder


def test_a_small_one_trains(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(training, "TESTS", 1)
    source = make_images(tmp_path / "png")
    sources = Sources(Cifar10(Path("work")), Cifar100(Path("work"), str(source)))
    run = replace(IMAE, net="resnet8", iterations=1, images=800, test_images=100)
    images = sources.images(run)
    assert images.words == "images that are not CIFAR-100's original pixels, resized to 36x36"
    assert "--resize-height 36 --resize-width 36 --interpolation bicubic" in capsys.readouterr().out
    record = training.train(run, images, Path("work/runs/one"), Path("records"), torch.device("cpu"))
    assert read_record(Path("records", f"{run.name}.json")) == record and record.complete
    assert 0 < record.wrong_labels < 800
    assert recorded_net(record).text.count("UnifiedWeightLoss") == 1
    with pytest.raises(ImaeError, match=r"there is no CIFAR-10 in .*: give --cifar10 PATH"):
        sources.images(Run("resnet20", "CCE"))
    with pytest.raises(ImaeError, match=r"there is no CIFAR-100 in .*: give --cifar100 PATH"):
        Cifar100(tmp_path / "none").images(run)


# -- tables, figures, claims ---------------------------------------------------------------------------------


def test_our_runs_stand_beside_the_authors() -> None:
    records = [made(CCE, (0.53, 0.5)), made(IMAE, (0.56, 0.55))]
    (table,) = tables.tables("cifar100", records)
    rows = {row[:2]: row[2:] for row in table.rows}
    assert table.title.endswith("; full size") and "32 classes x 8 images" in " ".join(table.notes)
    assert rows["IMAE", "sym 0.4"] == ("54.7", "IMAE-8", "54.68", "52.99", "56.0", "55.0", "+1.3", "1")
    assert rows["IMAE", "sym 0.6"] == ("43.9", "IMAE-2", "43.91", "41.67", "–", "–", "–", "0")
    (results,) = gather(records)
    ours = {item.claim.text: item.ours(results).verdict for item in EVIDENCE if item.claim.where == "sym 0.4"}
    assert ours["IMAE's best test accuracy is above CCE's"] == HELD
    assert ours["GCE's best test accuracy is above IMAE's"] == NO_DATA
    (results,) = gather([made(CCE, (0.53, 0.5)), made(IMAE, (0.52, 0.5))])
    (item,) = (e for e in EVIDENCE if e.claim.text.endswith("above CCE's") and e.claim.where == "sym 0.4")
    assert item.ours(results).verdict == NOT_HELD
    with_ours, without = tables.evidence_table(records=records), tables.evidence_table()
    assert with_ours and without and len(with_ours.columns) == len(without.columns) + 1
    assert "ours: IMAE 56.00, CCE 53.00" in results_page.results_page(records)
    assert "**Later version, tables 3 and 4: CIFAR-100, ResNet-44; full size**" in results_page.results_page(
        records
    )


def test_our_curves_lie_over_theirs() -> None:
    charts = figures.charts("later-tables", [made(IMAE, (0.2, 0.5, 0.4))])
    drawn = {panel.title: {line.label: line for line in panel.lines} for panel in charts[0].panels}
    assert "IMAE, ours" not in drawn["noise 20 %"] and "IMAE, ours" not in str(charts[1])
    line = drawn["noise 40 %"]["IMAE, ours"]
    assert (list(line.x), list(line.y)) == ([10, 20, 30], [pytest.approx(v) for v in (20, 50, 40)])
    small = [made(replace(IMAE, iterations=800))]
    assert not any(
        "ours" in line.label
        for c in figures.charts("later-tables", small)
        for p in c.panels
        for line in p.lines
    )


def test_they_are_in_no_table_of_cifar10() -> None:
    records = [made(run) for run in cifar100()]
    assert all(not tables.claim_tables(records, name) for name in ("table1", "table2", "figure6"))
    for name in ("table1", "table2", "human-noise"):
        (table,) = tables.tables(name, records)
        assert table.title.endswith("no runs yet")
