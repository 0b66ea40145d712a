"""What the benchmark of inference compares computes the same probabilities."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from tolerances import tolerance

from benchmarks.forward import WAYS
from benchmarks.inference import write_models


def test_ways_to_compute_a_forward_pass_agree(tmp_path: Path) -> None:
    write_models(tmp_path, "", "")
    images, want = np.load(tmp_path / "images.npy"), np.load(tmp_path / "probabilities.npy")
    rtol, atol, _ = tolerance("fused")
    for way in ("plain", "folded", "torch_onnx", "imae", "imae_folded", "eager", "last"):
        got = WAYS[way][1](tmp_path, "cpu")(images)
        np.testing.assert_allclose(got, want, rtol, atol, err_msg=way)
    for way in ("fp16", "int8"):
        got = WAYS[way][1](tmp_path, "cpu")(images)
        assert got.shape == want.shape and (got.argmax(1) == want.argmax(1)).mean() > 0.8
