"""imae doctor: exit status, where the page is written, and that its help waits for no library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from listing import set_of_names as names

from imae.cli.main import main

NET = """
input: "data" input_shape { dim: 1 dim: 3 }
layer { name: "fc" type: "InnerProduct" bottom: "data" top: "fc" inner_product_param { num_output: 2 } }
"""


def test_all_is_well(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("project").mkdir()
    Path("project/net.prototxt").write_text(NET)
    assert main(["doctor", "project", "--json", "--html", "report.html"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["all_well"] and [file["exports"] for file in report["files"]] == ["yes"]
    assert Path("report.html").read_text().startswith("<!DOCTYPE html>")
    assert names(here / "project") == {"net.prototxt"}


def test_something_stops(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("net.prototxt").write_text(NET.replace("InnerProduct", "OuterProduct"))
    for name in "abc":
        Path(f"{name}.prototxt").write_text(Path("net.prototxt").read_text())
    assert main(["doctor", "."]) == 1
    out, err = capsys.readouterr()
    assert "    4  Unknown layer type: OuterProduct; did you mean 'InnerProduct'? [the file]" in out
    assert "\x1b" not in out
    assert "stops:" not in out and err == ""
    assert main(["doctor", ".", "--all"]) == 1
    assert capsys.readouterr().out.count("    stops: Unknown layer type: OuterProduct") == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "the following arguments are required: PATH"),
        (["nowhere"], "no such file or folder: 'nowhere'"),
        ([".", "--seconds", "0"], "must be greater than 0 and less than a million, got 0"),
        ([".", "--html", "report.html"], "--html report.html lies in the project, where nothing is written"),
        (["link", "--html", "./report.html"], "lies in the project, where nothing is written"),
        (["project.prototxt", "--html", "project.prototxt"], "lies in the project, where nothing is written"),
    ],
)
def test_bad_arguments(
    here: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    Path("link").symlink_to(".")
    assert main(["doctor", *arguments]) == 2
    assert message in capsys.readouterr().err
    assert names(here) == {"link"}


def test_its_help_and_its_walk_import_no_torch() -> None:
    program = (
        "import sys, imae.cli.main as m\n"
        "try: m.main(['doctor', '--help'])\n"
        "except SystemExit as end: print(end.code, 'torch' in sys.modules, 'onnx' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.startswith("usage: imae doctor ") and done.stdout.endswith("0 False False\n")
