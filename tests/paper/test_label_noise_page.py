"""docs/label-noise.md: its blocks run, in their order, in one folder; with a hundredth of the iterations."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path
from typing import cast

import pytest

from imae.cli.main import main
from imae.converters.corrupt_labels import KINDS
from imae.paper import demo, processes, sweep

PAGE = Path(__file__).parents[2] / "docs" / "label-noise.md"
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

    monkeypatch.setattr(sweep, "_start", start)
    monkeypatch.setattr(processes, "POLL_INTERVAL", 0.01)
    outputs: dict[str, str] = {}
    for language, text in re.findall(r"(?ms)^```(\w+)\n(.*?)^```$", TEXT):
        if language == "sh":
            for line in text.splitlines():
                outputs[line.split()[1]] = command(line)
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
    for lmdb in ("digits_train_noisy60", "pairs", "by_image"):
        assert Path("data", f"{lmdb}_lmdb.clean_labels.npz").exists()


def test_the_page_names_each_kind_of_noise() -> None:
    table = TEXT[TEXT.index("| `--noise`") : TEXT.index("Papers mean")]
    assert sorted(re.findall(r"`([a-z0-9-]+)`", table.replace("`--noise`", ""))) == sorted(KINDS)
