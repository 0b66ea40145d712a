"""The help of commands with many options is in groups; errors of the command line say what to write."""

from __future__ import annotations

import re

import pytest

from imae.cli.main import main

# Groups of options, in their order, and one option of each.
EXPORT = {
    "options": "--verbose",
    "the net": "--no-python-layers",
    "what is written": "--output",
    "the ONNX model": "--fixed-batch",
    "how images are prepared, in place of what the net says": "--mean",
    "the preparation of images as a part of the model": "--embed-resize",
    "what the model says of itself": "--labels",
    "a page that runs the model in a browser": "--html",
}
RUN = {
    "positional arguments": "MODEL.onnx",
    "options": "--lmdb",
    "what is shown and written": "--draw",
    "how images are prepared, in place of what the model says": "--mean",
    "how it is run": "--provider",
}


@pytest.mark.parametrize(("name", "groups"), [("export", EXPORT), ("run", RUN)])
def test_options_are_in_groups(name: str, groups: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main([name, "--help"])
    usage, *parts = re.split(r"^(\w.*):$", capsys.readouterr().out, flags=re.MULTILINE)
    assert len(usage.splitlines()[0]) < 100 and parts[::2] == list(groups)
    for (head, option), part in zip(groups.items(), parts[1::2], strict=True):
        assert re.search(rf"^  (-\w, )?{re.escape(option)}\b", part, re.MULTILINE), head


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--embed-preprocess"], "argument --embed-preprocess: expected one argument, one of rgb, bgr, gray"),
        (["--mean"], "argument --mean: expected one argument"),
        (
            ["--mean", "104", "117", "123"],
            "unrecognized arguments: 117 123; several numbers of an option are ",
        ),
        (["more.prototxt", "117"], "unrecognized arguments: more.prototxt 117"),
    ],
)
def test_an_option_without_its_value(
    options: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["export", "--model", "a.prototxt", "--output", "a.onnx", *options]) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"imae: export: {message}")
    assert line.endswith(message) or message.endswith(" ")
