"""Which public nets read, build and export, and what does the exported model compute?

    python -m benchmarks zoo FOLDER [--time] [--opencv-python PYTHON] [--output docs/zoo.md]

benchmarks/zoo_nets.tsv lists public nets by repository, path and SHA-256; no file of theirs is part of this
project. FOLDER holds them as the user has them: FOLDER/OWNER+NAME/PATH, or anywhere below it, found by their
digests. A file with another digest does not count.

Each net runs in a process of its own, deployed, with the batch that its file names, with its public weights
where these are listed and found, else with random weights of a fixed seed. The columns:

    blobs, parameters   of the net of phase TEST
    exported            largest difference of the ONNX model's outputs, in ONNX Runtime, from the net's, on
                        random inputs, divided by the largest output
    OpenCV              the same for OpenCV 4's reader of Caffe's files, where there are public weights;
                        OpenCV 5 has none: --opencv-python names a Python with opencv-python-headless<5
    ms, ORT ms, ratio   --time: a forward pass of that batch by the net, as `imae test` runs it, and by ONNX
                        Runtime, medians in turns, and their ratio; before each turn the threads of the
                        last one come to rest (REST in benchmarks/measure.py)
"""

from __future__ import annotations

import argparse
import csv
import hashlib
import json
import math
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks.measure import REST, in_turns, machine
from imae.converters.check_onnx import random_inputs
from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import ExportOptions, export_net
from imae.files.errors import ImaeError, printable
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.device import keep_freed_memory
from imae.net.inference import plan_inference
from imae.net.net import Net
from imae.net.weights import load_caffemodel
from imae.prototxt.dialects import read_net_text

TOP = Path(__file__).parent.parent
NETS = Path(__file__).with_name("zoo_nets.tsv")
SUFFIXES = (".prototxt", ".pt", ".caffemodel")
LARGEST = 1 << 28  # bytes of a file that is looked at
SECONDS = 600  # for one net
TIMED_SECONDS = 60  # of them for its timing, about; then it has fewer rounds
LEAST_ROUNDS = 2
VARIANCES = {"BatchNorm": 1, "BN": 3}  # type -> the blob of variances
NOT_SEEN = ("not in the folder", "not tried")
LONGEST = 200  # characters of what stops a net
KNOWN = re.compile(r" \(known types: .*\)$")
OPENCV = """
import sys, cv2, numpy as np
proto, weights, given, got = sys.argv[1:]
net = cv2.dnn.readNetFromCaffe(proto, weights)
with np.load(given) as feeds:
    for name in feeds.files:
        net.setInput(feeds[name], name)
names = open(given + ".outputs").read().split("\\n")
np.savez(got, **dict(zip(names, net.forward(names))))
"""


@dataclass(frozen=True)
class Entry:
    """A line of zoo_nets.tsv: the net, and its public weights if there are small ones ("" if not)."""

    name: str
    repository: str
    path: str
    sha256: str
    weights: str
    weights_sha256: str


def main(arguments: argparse.Namespace) -> None:
    if arguments.folder is None:
        print("no FOLDER with the public nets is given (python -m benchmarks zoo FOLDER): nothing is tried")
        return
    if arguments.one:
        print(json.dumps(examine(json.loads(arguments.one))))
        return
    chosen = [
        entry for entry in entries() if arguments.only in f"{entry.name} {entry.repository} {entry.path}"
    ]
    digests = _Digests(Path(arguments.folder))
    results: list[dict[str, Any]] = [{"stops": NOT_SEEN[1]} for _ in chosen]
    for index, entry in enumerate(chosen):
        results[index] = _in_process(entry, digests, arguments)
        print(
            f"{index + 1} of {len(chosen)}: {entry.name}: {results[index].get('stops', 'ok')}",
            file=sys.stderr,
        )
        if arguments.output:  # after each net, as it may take long
            text = as_markdown(chosen, results, arguments.time)
            Path(arguments.output).write_text(text, encoding="utf-8")
    if not arguments.output:
        print(as_markdown(chosen, results, arguments.time))


def entries() -> list[Entry]:
    """The nets of zoo_nets.tsv."""
    with NETS.open(encoding="utf-8", newline="") as file:
        return [Entry(**row) for row in csv.DictReader(file, delimiter="\t")]


class _Digests:
    """Finds the files below a folder by their SHA-256; where they should lie, first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._by_digest: dict[str, Path] | None = None

    def find(self, repository: str, path: str, digest: str) -> Path | None:
        """The file, or None."""
        place = self.folder / repository.replace("/", "+") / path
        if place.is_file() and _digest(place) == digest:
            return place
        if self._by_digest is None:
            self._by_digest = {_digest(file): file for file in self._files()}
        return self._by_digest.get(digest)

    def _files(self) -> Iterator[Path]:
        for folder, _, names in os.walk(self.folder):
            for name in names:
                file = Path(folder, name)
                if name.endswith(SUFFIXES) and file.is_file() and file.stat().st_size <= LARGEST:
                    yield file


def _digest(file: Path) -> str:
    with file.open("rb") as opened:
        return hashlib.file_digest(opened, "sha256").hexdigest()


def _in_process(entry: Entry, digests: _Digests, arguments: argparse.Namespace) -> dict[str, Any]:
    """What `examine` gives for a net, in a process of its own."""
    file = digests.find(entry.repository, entry.path, entry.sha256)
    if file is None:
        return {"stops": NOT_SEEN[0]}
    weights = digests.find(entry.repository, entry.weights, entry.weights_sha256) if entry.weights else None
    request = {
        "file": str(file),
        "weights": str(weights) if weights else "",
        "rounds": arguments.rounds if arguments.time else 0,
        "opencv": arguments.opencv_python,
    }
    command = [sys.executable, "-m", "benchmarks", "zoo", str(digests.folder), "--one", json.dumps(request)]
    try:
        done = subprocess.run(command, cwd=TOP, capture_output=True, text=True, timeout=SECONDS)
    except subprocess.TimeoutExpired:
        return {"stops": f"it takes more than {SECONDS} seconds"}
    lines = done.stdout.strip().splitlines()
    if done.returncode or not lines:
        last = (done.stderr.strip().splitlines() or [""])[-1]
        return {"stops": f"ended with status {done.returncode}: {last}"}
    answer: dict[str, Any] = json.loads(lines[-1])
    return answer


def examine(request: Mapping[str, Any]) -> dict[str, Any]:
    """Read, build, export and compare one net.

    request   file; weights, or ""; rounds of timing, or 0; opencv: a Python with OpenCV 4, or ""
    """
    result: dict[str, Any] = {}
    keep_freed_memory()
    try:
        param = read_net_text(request["file"])
        result["reads"] = True
        net = Net(deploy_net(param), Run(CaffeRandom(1)))
        result |= {
            "builds": True,
            "blobs": len(net.blob_shapes),
            "parameters": sum(math.prod(blob.shape) for blob in net.learnable),
        }
        fill(net)
        if request["weights"]:
            result["weights"] = not load_caffemodel(net, request["weights"]).fresh
        exported = export_net(net, ExportOptions(dynamic_batch=False))
        result["exported"] = exported.difference / (exported.largest or 1)
        result["compared"] = len(exported.outputs) > len(exported.not_compared)
        if request["rounds"]:
            result |= _times(net, exported.model.SerializeToString(), exported.outputs, request["rounds"])
        if request["weights"] and request["opencv"]:
            result["opencv"] = _opencv(net, exported.outputs, request)
    except ImaeError as error:
        text = KNOWN.sub("", str(error).replace(f"{request['file']}:", "line "))
        result["stops"] = text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."
    return result


def fill(net: Net) -> None:
    """Random weights whose values stay of the same size from layer to layer; variances are positive."""
    generator = torch.Generator().manual_seed(1)

    def normal(blob: Tensor, scale: float, mean: float = 0.0) -> None:
        blob.copy_(torch.randn(blob.shape, generator=generator).mul_(scale).add_(mean))  # one array for all

    with torch.no_grad():
        for layer in net.layers:
            for index, blob in enumerate(layer.blobs):
                if index == VARIANCES.get(layer.type):
                    blob.copy_(torch.rand(blob.shape, generator=generator) + 0.5)
                elif layer.type == "BatchNorm":
                    normal(blob, 0.1)
                    if index == 2:
                        blob.fill_(1)
                elif layer.type == "BN":  # a fork's: scale, shift, mean, variance
                    normal(blob, 0.1, 0.0 if index else 1.0)
                elif blob.dim() > 1:
                    normal(blob, 1.3 / math.sqrt(max(blob[0].numel(), 1)))
                else:
                    normal(blob, 0.1, 0.2 if index else 0.5)


def _times(net: Net, model: bytes, outputs: Sequence[str], rounds: int) -> dict[str, float]:
    """Medians of the seconds of a forward pass by the net and by ONNX Runtime, with as many threads."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    feeds = random_inputs(net, 1, None)
    tensors = {name: torch.from_numpy(value) for name, value in feeds.items()}
    plan = plan_inference(net)

    def forward() -> None:
        with torch.inference_mode():
            plan.run(tensors)

    ways: dict[str, Callable[[], object]] = {
        "net": forward,
        "ort": lambda: session.run(list(outputs), feeds),
    }
    begun = time.perf_counter()
    in_turns(ways, rounds=1, warm_up=0, rest=REST)
    rounds = min(rounds, max(LEAST_ROUNDS, int(TIMED_SECONDS / (time.perf_counter() - begun))))
    timings = in_turns(ways, rounds, warm_up=1, rest=REST)
    return {
        "ms": 1e3 * timings["net"].median,
        "ort_ms": 1e3 * timings["ort"].median,
        "ratio": timings["net"].ratio(timings["ort"]),
    }


def _opencv(net: Net, outputs: Sequence[str], request: Mapping[str, Any]) -> float | str:
    """The difference from OpenCV's outputs, relative to the largest, or why there is none."""
    feeds = random_inputs(net, 1, None)
    with torch.inference_mode():
        want = net({name: torch.from_numpy(value) for name, value in feeds.items()}, keep=outputs)
    with tempfile.TemporaryDirectory() as name:
        given, got = Path(name, "given.npz"), Path(name, "got.npz")
        np.savez(given, **feeds)  # type: ignore[arg-type]  # NumPy's stubs demand allow_pickle
        Path(f"{given}.outputs").write_text("\n".join(outputs))
        command = [request["opencv"], "-c", OPENCV, request["file"], request["weights"], str(given), str(got)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            return "cannot: " + (done.stderr.strip().splitlines() or ["?"])[-1][:100]
        with np.load(got, allow_pickle=False) as arrays:
            theirs = {output: arrays[output] for output in outputs}
    difference, largest = 0.0, 0.0
    for output in outputs:
        mine = want[output].numpy()
        values = theirs[output].reshape(-1)
        if not values[mine.size :].any():  # it fills up the rows of a detector with zeros
            values = values[: mine.size]
        if values.size != mine.size:
            return f"cannot: {output} has {values.size} values, not {mine.size}"
        difference = max(difference, float(np.abs(values - mine.reshape(-1)).max(initial=0)))
        largest = max(largest, float(np.abs(mine).max(initial=0)))
    return difference / (largest or 1)


HEAD = """# The zoo: public nets

Which public nets read, build and export, unchanged. Nothing of theirs is part of this project: the nets are
named by repository, path and SHA-256 (`benchmarks/zoo_nets.tsv`). Made by one command from files that the
user has:

    python -m benchmarks zoo FOLDER --time --opencv-python PYTHON --output docs/zoo.md

FOLDER holds the files as OWNER+NAME/PATH, or anywhere, found by their digests.
`python -m benchmarks zoo --help` says what the columns are; "-" is what was not measured in this run.
"""


def as_markdown(chosen: Sequence[Entry], results: Sequence[Mapping[str, Any]], timed: bool) -> str:
    """The page."""
    found = [result for result in results if result.get("stops") not in NOT_SEEN]
    counts = {word: sum(bool(result.get(word)) for result in found) for word in ("reads", "builds")}
    exported = [result for result in found if "exported" in result]
    compared = sum(result.get("compared", True) for result in exported)
    lines = [
        HEAD,
        f"{machine() if timed else 'Not timed in this run.'}\n",
        f"{len(chosen)} nets of {len({entry.repository for entry in chosen})} repositories, {len(found)} of "
        f"them in the folder: {counts['reads']} read, {counts['builds']} build, {len(exported)} export, "
        f"and {compared} exported models compute the same as their net, to 1e-3 of its largest value or "
        "better.\n",
        "| net | repository, path | SHA-256 | reads | builds | blobs | parameters | weights | exported "
        "| OpenCV | ms | ORT ms | ratio |",
        "| --- | --- | --- | --- | --- | ---: | ---: | --- | ---: | ---: | ---: | ---: | ---: |",
    ]
    lines += [
        "| " + " | ".join(_cells(entry, result)) + " |" for entry, result in zip(chosen, results, strict=True)
    ]
    stopped = [
        (entry, result["stops"]) for entry, result in zip(chosen, results, strict=True) if "stops" in result
    ]
    if stopped:
        lines += ["\nWhat stops the others:\n"]
        lines += [f"- {entry.name} ({entry.repository}): {_plain(stops)}" for entry, stops in stopped]
    return "\n".join(lines) + "\n"


def _cells(entry: Entry, result: Mapping[str, Any]) -> list[str]:
    def number(key: str, form: str) -> str:
        value = result.get(key)
        return "-" if value is None else format(value, form)

    opencv = result.get("opencv")
    weights = {None: "random", True: "public", False: "public, in part"}[result.get("weights")]
    return [
        entry.name,
        f"{entry.repository} {entry.path}",
        f"`{entry.sha256[:12]}`",
        *("yes" if result.get(word) else "no" if result.get("stops") not in NOT_SEEN else "-"
          for word in ("reads", "builds")),
        number("blobs", "d"),
        number("parameters", ",d"),
        weights if "exported" in result else "-",
        number("exported", ".1e") if result.get("compared", True) else "nothing compared",
        _plain(opencv) if isinstance(opencv, str) else number("opencv", ".1e"),
        number("ms", ".3g"),
        number("ort_ms", ".3g"),
        number("ratio", ".2f"),
    ]  # fmt: skip


def _plain(text: str) -> str:
    return printable(text).replace("|", "/")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", nargs="?", metavar="FOLDER", help="the files of the public nets")
    parser.add_argument("--time", action="store_true", help="time forward passes, too")
    parser.add_argument("--rounds", type=int, default=10, help="of the timing (10)")
    parser.add_argument("--opencv-python", default="", metavar="PYTHON", help="a Python with OpenCV 4")
    parser.add_argument("--only", default="", help="only nets with these characters in name or path")
    parser.add_argument("--output", default="", metavar="FILE", help="write the page here")
    parser.add_argument("--one", default="", help=argparse.SUPPRESS)
