"""A command whose output has the name of one of its inputs stops before it replaces the file."""

from __future__ import annotations

from pathlib import Path

import pytest

from imae.cli.main import main


@pytest.mark.parametrize(
    ("command", "option", "kept"),
    [
        ("to-caffe --model a.prototxt --weights w.pt --output w.pt", "--weights", "w.pt"),
        ("to-caffe --model a.prototxt --weights w.pt --output ./link", "--weights", "w.pt"),
        ("export --model net --output net", "--model", "net"),
        ("export --model a.prototxt --mean m.npy --output sub/../m.npy", "--mean", "m.npy"),
        ("quantize net.onnx net.onnx --to fp16", "the model to quantize", "net.onnx"),
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
    assert line.endswith(f"is also {option}, and would be lost; give it another name")
    assert Path(kept).read_bytes() == b"as it was"
