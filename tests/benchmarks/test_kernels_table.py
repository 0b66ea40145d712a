"""The table of the convolutions' kernels has a row for each thing that a layer does."""

from __future__ import annotations

import argparse

import pytest

from benchmarks import kernels
from imae.net.kernels import ConvolutionLayer, available

LAYERS = {
    "first": ConvolutionLayer(3, 16, 6, 1, 2),
    "plain": ConvolutionLayer(16, 16, 6, 1, 2),
    "strided": ConvolutionLayer(16, 32, 6, 2, 2),
}


@pytest.mark.skipif(not available(), reason="the kernels in C were not built")
def test_the_table(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(kernels, "LAYERS", LAYERS)
    monkeypatch.setattr(kernels, "SIZE", 8)
    kernels.main(argparse.Namespace(rounds=1, threads=0))
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| ")]
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| first", "weights' gradient"],
        ["| plain", "top"],
        ["| plain", "bottom's gradient"],
        ["| plain", "weights' gradient"],
        ["| strided", "weights' gradient"],
    ]
    assert len({line.count("|") for line in lines}) == 1
