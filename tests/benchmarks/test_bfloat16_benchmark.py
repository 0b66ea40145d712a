"""The benchmark of bfloat16: its trainings, and the plain PyTorch that it compares with."""

from __future__ import annotations

import argparse
from pathlib import Path

import pytest
import torch
from tolerances import tolerance

from benchmarks import bfloat16
from benchmarks.peers import training_step


def test_both_precisions_learn_the_same_at_first(tmp_path: Path) -> None:
    runs = [bfloat16.learn(tmp_path, 1, 4, dtype, every=2) for dtype in (None, torch.bfloat16)]
    rtol = tolerance("loss in bfloat16").rtol
    single, reduced = runs
    assert len(single) == len(reduced) == 2
    assert single[0].train_loss != reduced[0].train_loss
    assert reduced[0].train_loss == pytest.approx(single[0].train_loss, rel=rtol)
    assert all(0 <= point.accuracy <= 1 for run in runs for point in run)


def test_autocast_reduces_plain_pytorchs_step(monkeypatch: pytest.MonkeyPatch) -> None:
    types: list[torch.dtype] = []
    convolve = torch.nn.Conv2d.forward

    def note(self: torch.nn.Conv2d, x: torch.Tensor) -> torch.Tensor:
        top = convolve(self, x)
        types.append(top.dtype)
        return top

    monkeypatch.setattr(torch.nn.Conv2d, "forward", note)
    for reduced, dtype in ((None, torch.float32), (torch.bfloat16, torch.bfloat16)):
        types.clear()
        training_step(1, 8, channels_last=True, reduced=reduced)()
        assert set(types) == {dtype}


def test_the_processor_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    bfloat16.main(argparse.Namespace(rounds=0, seeds=0))
    out = capsys.readouterr().out
    assert "products of bfloat16" in out and "ernels in C" in out
