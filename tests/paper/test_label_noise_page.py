"""docs/label-noise.md: its blocks run, in their order, in one folder; with a hundredth of the iterations."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
import types
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from numpy.typing import NDArray

from imae.cli.main import main
from imae.converters.corrupt_labels import KINDS
from imae.paper import demo, out_of_fold, processes, sweep
from imae.paper.experiments import table_2
from imae.paper.sweep import all_runs, prepared_net, read_sweep
from imae.prototxt import TRAIN, NetState
from imae.prototxt.state import filter_by_state, in_state

PAGE = Path(__file__).parents[2] / "docs" / "label-noise.md"
Labels, Probabilities = NDArray[np.int64], NDArray[np.float32]
TEXT = PAGE.read_text(encoding="utf-8")


class Finished:
    """A training that has run in this process."""

    returncode = 0

    def poll(self) -> int:
        return self.returncode


def test_the_page(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    models = Path("prototxt", "models", "digits")
    shutil.copytree(demo.MODELS, models)
    for path in models.iterdir():
        text = path.read_text().replace("test_interval: 100", "test_interval: 15")
        path.write_text(re.sub(r"(max_iter|snapshot): 3000", r"\1: 30", text))

    def command(line: str) -> str:
        """Run a command of the page; returns what it prints."""
        line, _, log = line.partition(" 2> ")
        words = shlex.split(line.replace("_iter_3000.", "_iter_30."))
        if words[0] == "mkdir":
            Path(words[1]).mkdir()
            return ""
        if words[0] == "sed":
            subprocess.run(line, shell=True, check=True)
            return ""
        capfd.readouterr()
        assert words[0] == "imae" and main(words[1:]) == 0, line
        printed = capfd.readouterr()
        if log:
            Path(log).write_text(printed.err)
        return printed.out

    def start(folder: Path, options: list[str]) -> subprocess.Popen[bytes]:
        line = f"imae train {folder / 'solver.prototxt'} {shlex.join(options)} 2> {folder / 'log'}"
        command(line)
        return cast("subprocess.Popen[bytes]", Finished())

    def find_label_issues(labels: Labels, pred_probs: Probabilities) -> NDArray[np.bool_]:
        """A stand-in for cleanlab's: it returns a mask."""
        assert labels.shape == (1500,) and pred_probs.shape == (1500, 10)
        return np.asarray(pred_probs[np.arange(1500), labels] < 0.05)

    cleanlab = types.ModuleType("cleanlab.filter")
    monkeypatch.setattr(cleanlab, "find_label_issues", find_label_issues, raising=False)
    monkeypatch.setitem(sys.modules, "cleanlab", types.ModuleType("cleanlab"))
    monkeypatch.setitem(sys.modules, "cleanlab.filter", cleanlab)
    monkeypatch.setattr(sweep, "_start", start)
    monkeypatch.setattr(out_of_fold, "start_training", start)
    monkeypatch.setattr(processes, "POLL_INTERVAL", 0.01)
    outputs: dict[str, str] = {}
    for language, text in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", TEXT):
        if language == "sh":
            for line in text.splitlines():
                outputs[line.split()[1]] = command(line)
        elif language == "python":
            exec(compile(text, str(PAGE), "exec"), {})
        else:
            assert language in ("csv", "toml")
            name = re.match(r"# ([\w.]+)", text)
            assert name is not None
            Path(name[1]).write_text(text)
    assert [line.split()[0] for line in outputs["test"].splitlines()[1:]] == ["all", "intact", "corrupted"]
    assert "imae.log" in outputs["compare"]
    assert Path("runs.png").read_bytes().startswith(b"\x89PNG")
    assert Path("runs.csv").exists()
    assert outputs["sweep"].endswith("wrote digits/report.html\n")
    assert len(list(Path("digits", "records").iterdir())) == 12
    assert "\nwrote pred_probs.npz: 1500 records, 10 classes" in outputs["out-of-fold"]
    for lmdb in ("digits_train_noisy60", "pairs", "by_image", "kept", "issues", "relabelled"):
        assert Path("data", f"{lmdb}_lmdb.clean_labels.npz").exists()


def test_the_page_names_each_kind_of_noise() -> None:
    table = TEXT[TEXT.index("| `--noise`") : TEXT.index("Papers mean")]
    assert sorted(re.findall(r"`([a-z0-9-]+)`", table.replace("`--noise`", ""))) == sorted(KINDS)


def test_table_2_of_the_paper_as_a_sweep(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its runs are those of `imae paper table2` with one net and seed 1."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo.MODELS.parent / "cifar10", Path("prototxt", "models", "cifar10"))
    (text,) = re.findall(r"(?ms)^```toml\n(# table2.toml.*?)^```$", TEXT)
    Path("table2.toml").write_text(text)
    table = read_sweep("table2.toml")
    losses = set()
    for run in all_runs(table):
        net, stages = prepared_net(table, run, Path("noisy_lmdb"))
        param = in_state(net, TRAIN, NetState(stage=stages))
        layers = filter_by_state(param, param.state).layer
        assert [layer.data_param.source for layer in layers if layer.type == "Data"] == ["noisy_lmdb"]
        (loss,) = (layer for layer in layers if "Loss" in layer.type)
        t = loss.imae_loss_param.t if loss.type == "IMAELoss" else None
        losses.add((loss.type, t, run.rate, table.noise, table.noise_seed))
    types_of = {"CCE": "SoftmaxWithLoss", "MAE": "MAELoss", "IMAE": "IMAELoss"}
    paper = [run for run in table_2() if run.net == "resnet20" and run.seed == 1]
    assert losses == {(types_of[run.loss], run.t, run.rate, run.noise, 123) for run in paper}
    assert len(paper) == 9
