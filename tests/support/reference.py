"""Replay cases recorded with Caffe: a prototxt and an npz with inputs, parameters and expected arrays.

tests/cases/README.md explains the keys.
"""

from __future__ import annotations

import contextlib
import fnmatch
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import imae.pycaffe as caffe

CASES = Path(__file__).parents[1] / "cases"


@dataclass
class Case:
    """One npz file: `meta` and arrays by key.

    dtypes   the dtypes of the arrays that were compared
    """

    path: Path
    meta: dict[str, Any]
    arrays: dict[str, NDArray[Any]]
    dtypes: set[np.dtype[Any]] = field(default_factory=set)

    @property
    def prototxt(self) -> Path:
        return self.path.with_name(self.meta.get("prototxt", f"{self.path.stem}.prototxt"))

    def of(self, word: str, step: int) -> dict[str, NDArray[Any]]:
        """The arrays of `word` at `step`, by the rest of their keys."""
        head = f"{word}@{step}:" if step else f"{word}:"
        return {key[len(head) :]: value for key, value in self.arrays.items() if key.startswith(head)}

    def check(self, word: str, step: int, name: str, got: NDArray[Any]) -> None:
        """Compare with the recorded array within the case's own tolerance; a missing record is an error."""
        key = f"{word}@{step}:{name}" if step else f"{word}:{name}"
        want = self.arrays[key]
        self.dtypes.add(got.dtype)
        rtol, atol = self.meta.get("rtol", 1e-4), self.meta.get("atol", 1e-5)
        for pattern, (r, a) in (self.meta.get("keytol") or {}).items():
            if fnmatch.fnmatch(key, pattern):
                rtol, atol = max(rtol, r), max(atol, a)
        assert got.shape == want.shape, f"{key}: shape {got.shape}, Caffe's is {want.shape}"
        finite = np.isfinite(want)
        scale = 1.0 if self.meta.get("absolute") else (np.abs(want[finite]).max(initial=0) or 1.0)
        np.testing.assert_allclose(got, want, rtol=rtol, atol=atol * scale, err_msg=f"{self.path.name} {key}")


def load(path: Path) -> Case:
    """Read a case; `phase` may be in the meta text or an array of its own."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {key: file[key] for key in file.files}
    meta = json.loads(str(arrays.pop("meta")))
    if "phase" in arrays:
        meta.setdefault("phase", str(arrays.pop("phase")))
    return Case(path, meta, arrays)


def find(pattern: str) -> list[Path]:
    """Case files under tests/cases; an empty glob is an error, not an empty test."""
    paths = sorted(CASES.glob(pattern))
    assert paths, f"no case matches {pattern}"
    return paths


def replay(case: Case) -> int:
    """Run a case of kind "net" and compare every recorded array. Return the number of arrays compared.

    Files that the net names are read from the case's folder.
    """
    with contextlib.chdir(case.path.parent):
        return _replay(case)


def _replay(case: Case) -> int:
    meta = case.meta
    steps = meta.get("steps", 1)
    phases = meta.get("phases") or [meta["phase"]] * steps
    if meta.get("seed") is not None:
        caffe.set_random_seed(meta["seed"])
    nets: dict[str, caffe.Net] = {}
    inputs: dict[str, NDArray[Any]] = {}
    compared, previous = 0, None
    for step in range(steps):
        phase = phases[step]
        if phase not in nets:
            nets[phase] = caffe.Net(
                case.prototxt,
                caffe.TRAIN if phase == "TRAIN" else caffe.TEST,
                level=meta.get("level") or 0,
                stages=meta.get("stages"),
            )
        net = nets[phase]
        if previous is not None and previous is not net:
            for name, blobs in net.params.items():
                for blob, source in zip(blobs, previous.params.get(name, []), strict=False):
                    blob.data[...] = source.data
        previous = net
        if step == 0:
            compared += _compare_params(case, net, "init", 0, "data")
        for seed in case.of("seed", step).values():
            caffe.set_random_seed(int(seed))
        for name, value in case.of("param", step).items():
            layer, index = name.rsplit(":", 1)
            net.params[layer][int(index)].data[...] = value
        inputs.update(case.of("in", step))
        for name, value in inputs.items():
            if net.blobs[name].shape != value.shape:
                net.blobs[name].reshape(*value.shape)
                net.reshape()
            net.blobs[name].data[...] = value
        for _ in range(meta.get("forward_repeat", 1)):
            net.forward()
        for name in case.of("out", step):
            value = net.blobs[name].data.copy()
            case.check("out", step, name, np.sort(value, axis=0) if meta.get("sort_out") else value)
            compared += 1
        compared += _compare_params(case, net, "after", step, "data")
        if meta.get("backward", True):
            if not meta.get("accumulate"):
                net.clear_param_diffs()
            for name, value in case.of("topdiff", step).items():
                net.blobs[name].diff[...] = value
            net.backward()
            for name in case.of("indiff", step):
                case.check("indiff", step, name, net.blobs[name].diff)
                compared += 1
            compared += _compare_params(case, net, "paramdiff", step, "diff")
    return compared


def _compare_params(case: Case, net: caffe.Net, word: str, step: int, side: str) -> int:
    recorded = case.of(word, step)
    for name in recorded:
        layer, index = name.rsplit(":", 1)
        case.check(word, step, name, getattr(net.params[layer][int(index)], side))
    return len(recorded)
