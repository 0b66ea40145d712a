"""A command whose output has the name of one of its inputs stops before it replaces the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from imae.cli.main import main


@pytest.mark.parametrize(
    ("command", "option", "kept"),
    [
        ("to-caffe --model a.prototxt --weights w.pt --output w.pt", "--output", "w.pt"),
        ("to-caffe --model a.prototxt --weights w.pt --output ./link", "--output", "w.pt"),
        ("export --model net --output net", "--output", "net"),
        ("export --model a.prototxt --mean m.npy --output sub/../m.npy", "--output", "m.npy"),
        ("quantize net.onnx net.onnx --to fp16", "OUTPUT", "net.onnx"),
    ],
)
def test_an_input_is_not_replaced(
    command: str, option: str, kept: str, here: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """`imae to-caffe --weights w.pt --output w.pt` wrote a caffemodel over the weights that were trained."""
    Path("sub").mkdir()
    Path(kept).write_bytes(b"as it was")
    Path("link").symlink_to("w.pt")
    assert main(command.split()) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"{option} would replace a file that is read; give another name")
    assert Path(kept).read_bytes() == b"as it was"
