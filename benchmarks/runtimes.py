"""Does an exported model compute the same in every runtime?

    python -m benchmarks runtimes [--only NAME] [--python RUNTIME=PATH] [--node-modules FOLDER]
                                  [--output docs/runtimes.md]

Nets by our own makers, with random weights whose values stay of one size, and a net of one layer for each
type that can be exported, are exported, and run in each runtime on random inputs of batch size 1 and 3. A
cell is the largest difference from imae's own net, divided by the largest value, or "refused".

ONNX Runtime and OpenCV are imae's own requirements. OpenVINO is `pip install openvino`; --python names
another Python for a runtime. onnxruntime-web is `npm install onnxruntime-web`: --node-modules names the
folder node_modules, which is else looked for here and above. A runtime that is not there is left out.

Each runtime runs in a process of its own, with one thread. One that refuses a model, or crashes, is started
again for the next.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray

from benchmarks.measure import machine
from benchmarks.runtime_nets import NETS, layer_nets
from benchmarks.zoo import fill
from imae.converters.check_onnx import batch_axes, open_axes, random_inputs
from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import DEFAULT_OPSET, ExportOptions, export_net
from imae.converters.quantize_onnx import to_fp16, to_int8
from imae.files.errors import ImaeError, printable
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import NetParameter

Array = NDArray[Any]
HERE = Path(__file__).parent
# By name of the table: the argument of runtime_process.py; None: onnxruntime-web.
RUNTIMES: dict[str, str | None] = {
    "ONNX Runtime": "ort",
    "onnxruntime-web": None,
    "OpenCV, new engine": "opencv-new",
    "OpenCV, classic engine": "opencv-classic",
    "OpenVINO": "openvino",
    "onnx.checker": "checker",
}
BATCHES = (1, 3)
AIM = 1e-4  # of the largest value, in single precision
SECONDS = 300  # for one model
LONGEST = 200  # characters of what a runtime says
CALIBRATION = 8  # batches

NO_LOOP = "it has no Loop"
NO_EMPTY = "it has no values whose size depends on other values"
CONSTANT = "it refuses a model whose output depends on its inputs' shapes alone"
# Runtime -> net, or variant -> why it does not run, or computes something else; each looked into by hand.
# What is not here is expected to agree. tests/converters/test_runtimes.py compares it with what happens.
KNOWN: dict[str, dict[str, str]] = {
    "OpenCV, new engine": {
        **dict.fromkeys(("Filter", "Python:ProposalLayer"), "it has no Compress"),
        "ROIPooling": "it has no MaxRoiPool",
    },
    "OpenCV, classic engine": {
        "fp16": "it has no half precision",
        **dict.fromkeys(("LSTM", "RNN", "Lstm"), NO_LOOP),
        **dict.fromkeys(("Filter", "Python:ProposalLayer"), "it has no Compress"),
        "ROIPooling": "it has no MaxRoiPool",
        **dict.fromkeys(("Proposal", "SSD, small", "YoloDetectionOutput", "Yolov3DetectionOutput"), NO_EMPTY),
        **dict.fromkeys(("PriorBox", "PriorBoxClustered"), CONSTANT),
        "Crop": "it refuses an input of which only the shape is used",
        "PSROIPooling": "it refuses a Transpose, whose input has other axes than it supposes",
        "Upsample": "it runs with batch 1 alone",
        "ResNet-20": "it runs with batch 1 alone where a shortcut appends zeros; --fold makes of it a "
        "convolution, which runs with any",
        "Flip": "it refuses Slice with a step of -1",
        "GoogLeNet": "its AveragePool passes over count_include_pad, so windows on the border, which Caffe "
        "divides by their whole size, have other averages: its error, not that of the model",
    },
    "OpenVINO": {
        "Proposal": "its TopK puts equal scores in another order than ONNX wants (the lower index first), "
        "and here most boxes are too small, so that their score is 0",
    },
}


@dataclass(frozen=True)
class Variant:
    """How a net is exported."""

    name: str
    opset: int = DEFAULT_OPSET
    fold: bool = False
    to: str = ""


VARIANTS = (
    Variant(f"opset {DEFAULT_OPSET}"),
    Variant("opset 13", opset=13),
    Variant("opset 22", opset=22),
    Variant("--fold", fold=True),
    Variant("fp16", to="fp16"),
    Variant("--fold, int8", fold=True, to="int8"),
)
EXACT = tuple(variant for variant in VARIANTS if not variant.to and not variant.fold)  # for single layers


@dataclass
class Model:
    """An exported model in a file, inputs for it, and what the net makes of them.

    batches     name of an input -> (its file, its values), for each batch size
    expected    output -> values, for each batch size
    rows        outputs whose items may be in any order -> the axis of the items
    """

    path: Path
    outputs: list[str]
    batches: list[dict[str, tuple[Path, Array]]]
    expected: list[dict[str, Array]]
    rows: dict[str, int]


@dataclass
class Row:
    """A line of the table: what each runtime made of a net's variant; for several nets, the worst of them.

    quantized   to fp16 or int8, so that all differ from the net
    cells       runtime -> difference, or what it said; of several nets the largest, without those of `named`
    named       runtime -> net -> what it said, or a difference above the aim; of several nets
    """

    net: str
    variant: str
    quantized: bool = False
    cells: dict[str, float | str] = field(default_factory=dict)
    named: dict[str, dict[str, float | str]] = field(default_factory=dict)


class Runtime:
    """A process that runs models in one runtime; see runtime_process.py."""

    def __init__(self, command: Sequence[str]) -> None:
        """RuntimeError, with what it says, where the runtime is not there."""
        self._command = command
        self._log = tempfile.TemporaryFile(  # noqa: SIM115  # closed with the process
            "w+", encoding="utf-8", errors="replace"
        )
        try:
            self.version: str = self._start()
        except RuntimeError:
            self._log.close()
            raise

    def _start(self) -> Any:
        self._log.seek(0)
        self._log.truncate()
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=self._log, text=True
        )
        return self._answer()

    def _answer(self) -> Any:
        """The next line; RuntimeError where the process ends instead, or takes too long."""
        timer = threading.Timer(SECONDS, self._process.kill)
        timer.start()
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        timer.cancel()
        if line:
            return json.loads(line)
        self.close(keep_log=True)
        self._log.seek(0)
        log = self._log.read()
        last = (log.strip().splitlines() or ["it says nothing"])[-1]
        if found := re.search(r"Unsupported operations:\s*\n((?:\t\w+\n)+)", log):  # OpenCV's new engine
            last += f": it has no {', '.join(found[1].split())}"
        status = self._process.returncode
        raise RuntimeError(last if status > 0 else f"it crashes: {signal.Signals(-status).name}")

    def run(self, model: Model) -> list[list[Array]]:
        """The outputs for each batch; RuntimeError with what the runtime says where it refuses the model."""
        if self._process.poll() is not None:
            self._start()
        batches = [
            {name: (str(path), value.shape) for name, (path, value) in batch.items()}
            for batch in model.batches
        ]
        request = {"model": str(model.path), "outputs": model.outputs, "batches": batches}
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        made = []
        for batch in self._answer():
            made.append([np.fromfile(path, "<f4").reshape(shape) for path, shape in batch])
            for path, _ in batch:
                Path(path).unlink()
        return made

    def close(self, keep_log: bool = False) -> None:
        assert self._process.stdin is not None and self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()
        if not keep_log:
            self._log.close()


def command_of(name: str, pythons: Mapping[str, str], node_modules: Path | None) -> list[str]:
    """What starts a runtime's process, from any folder; RuntimeError where it cannot be there.

    pythons        runtime -> a Python that has it; default this one
    node_modules   the folder with onnxruntime-web; None: it is looked for
    """
    script = RUNTIMES[name]
    if script is not None:
        python = shutil.which(pythons.get(script, sys.executable))
        if python is None:
            raise RuntimeError(f"there is no Python {pythons[script]!r}")
        return [os.path.abspath(python), str(HERE / "runtime_process.py"), script]
    node, folder = shutil.which("node"), node_modules or find_node_modules()
    if node is None:
        raise RuntimeError("there is no node")
    if folder is None:
        raise RuntimeError("there is no node_modules/onnxruntime-web here or above")
    return [node, str(HERE / "runtime_process.mjs"), os.path.abspath(folder)]


def find_node_modules() -> Path | None:
    """The folder node_modules with onnxruntime-web, here or above."""
    here = Path.cwd()
    folders = (parent / "node_modules" for parent in (here, *here.parents))
    return next((folder for folder in folders if (folder / "onnxruntime-web").is_dir()), None)


def start_runtimes(
    names: Sequence[str], pythons: Mapping[str, str], node_modules: Path | None, stack: ExitStack
) -> tuple[dict[str, Runtime], dict[str, str]]:
    """The runtimes that are there, to be closed by the stack, and of the others why not."""
    runtimes, absent = {}, {}
    for name in names:
        try:
            runtimes[name] = Runtime(command_of(name, pythons, node_modules))
            stack.callback(runtimes[name].close)
        except RuntimeError as error:
            absent[name] = str(error)
    return runtimes, absent


def make_net(param: NetParameter, filled: bool = True) -> Net:
    """The deployed net with random weights, the same in every call."""
    net = Net(deploy_net(param), Run(CaffeRandom(1)))
    if filled:
        fill(net)
    return net


def make_model(param: NetParameter, variant: Variant, folder: Path, *, filled: bool = True) -> Model:
    """Export a net; ImaeError where that cannot be done."""
    net = make_net(param, filled)
    dynamic = True
    try:
        exported = export_net(net, ExportOptions(opset=variant.opset, fold=variant.fold))
    except ImaeError:  # a net for one batch size only
        exported = export_net(net, ExportOptions(opset=variant.opset, fold=variant.fold, dynamic_batch=False))
        dynamic = False
    if filled and len(exported.not_compared) == len(exported.outputs):
        return make_model(param, variant, folder, filled=False)
    axes = batch_axes(net) if dynamic else None
    model = exported.model
    if variant.to == "fp16":
        model = to_fp16(model)
    elif variant.to == "int8":
        batches = (random_inputs(net, 3, axes, batch) for batch in range(2, 2 + CALIBRATION))
        model = to_int8(model, ((batch[net.inputs[0]], None) for batch in batches))
    path = folder / "model.onnx"
    onnx.save(model, path)
    feeds = [random_inputs(net, size, axes) for size in (BATCHES if dynamic else (0,))]
    files = []
    for number, batch in enumerate(feeds):
        places = (folder / f"{number}.{index}" for index in range(len(batch)))
        files.append(dict(zip(batch, zip(places, batch.values(), strict=True), strict=True)))
        for file, value in files[-1].values():
            value.astype("<f4").tofile(file)
    rows = {name: axes[0] for name, axes in open_axes(net).items() if axes and name in exported.outputs}
    expected = [_expected(make_net(param, filled), batch, exported.outputs) for batch in feeds]
    return Model(path, exported.outputs, files, expected, rows)


def _expected(net: Net, feeds: Mapping[str, Array], outputs: Sequence[str]) -> dict[str, Array]:
    """By a new net, as some go on from the states of the pass before."""
    with torch.inference_mode():
        tops = net({name: torch.from_numpy(value) for name, value in feeds.items()}, keep=outputs)
    return {name: tops[name].numpy() for name in outputs}


def difference(
    model: Model, made: Sequence[Sequence[Array]], summary: Callable[[Array], Any] = np.max
) -> float | str:
    """The largest difference from the net, divided by the largest value; or what has another shape.

    summary   of an output's differences, instead of their largest. Of quantized models that is one number's,
              which one program rounds up and another down; a Softmax makes much of a step of int8
    """
    worst = 0.0
    for values, expected in zip(made, model.expected, strict=True):
        for name, value in zip(model.outputs, values, strict=True):
            want = expected[name]
            if want.shape == () and value.shape == (1,):  # OpenCV has no scalars
                want = want.reshape(1)
            if value.shape != want.shape:
                return f"output {name} has shape {list(value.shape)}, not {list(want.shape)}"
            largest = float(np.abs(want[np.isfinite(want)]).max(initial=0)) or 1.0
            if name in model.rows:
                found = _rows_apart(value, want, model.rows[name])
            else:
                found = float(summary(_apart(value, want))) if want.size else 0.0
            worst = max(worst, found / largest)
    return worst


def _apart(value: Array, want: Array) -> Array:
    """0 where both are NaN or equal, infinite where one is not finite."""
    with np.errstate(invalid="ignore"):  # infinity - infinity, which are equal
        apart = np.where((value == want) | (np.isnan(value) & np.isnan(want)), 0, np.abs(value - want))
    return np.nan_to_num(apart, nan=np.inf)


def _rows_apart(value: Array, want: Array, axis: int) -> float:
    """Each item from the nearest one of the other side: rounding may exchange two of nearly equal scores."""
    rows, others = (np.moveaxis(side, axis, 0).reshape(side.shape[axis], -1) for side in (value, want))
    return max(
        (
            float(_apart(right, row).max(1).min())
            for left, right in ((rows, others), (others, rows))
            for row in left
        ),
        default=0.0,
    )


def result_of(runtime: Runtime, model: Model, summary: Callable[[Array], Any] = np.max) -> float | str:
    """The `difference`, or what the runtime says; 0 from one that computes nothing."""
    try:
        made = runtime.run(model)
    except RuntimeError as error:
        return plain(str(error))
    return difference(model, made, summary) if any(made) else 0.0


def plain(text: str) -> str:
    """What a runtime says, in short: the last of errors within errors, without its machine's places."""
    text = text[max(text.rfind("error: (-"), 0) :]
    text = re.sub(r"(?:[A-Za-z]:)?[\w.~-]*[/\\][\w./\\~-]*[/\\]", "", printable(text))
    text = re.sub(r"0x[0-9a-f]{6,}", "0x..", text).replace("|", "/").replace("`", "'")
    return text if len(text) <= LONGEST else f"{text[:LONGEST]} ..."


def net_rows(only: str, runtimes: Mapping[str, Runtime], variants: Sequence[Variant]) -> Iterator[Row]:
    """The nets' rows."""
    for name, maker in NETS.items():
        for variant in variants:
            row = Row(name, variant.name, bool(variant.to))
            if only not in f"{row.net}, {row.variant}":
                continue
            with tempfile.TemporaryDirectory() as folder:
                param = maker()
                if variant.to == "int8" and len(make_net(param).inputs) != 1:
                    continue  # a model is quantized for one input
                model = make_model(param, variant, Path(folder))
                for runtime, process in runtimes.items():
                    row.cells[runtime] = result_of(process, model)
            yield row


def layer_rows(only: str, runtimes: Mapping[str, Runtime], variants: Sequence[Variant]) -> Iterator[Row]:
    """The rows of single layers; a runtime's cell is its largest difference."""
    for variant in variants:
        results: dict[str, dict[str, float | str]] = {runtime: {} for runtime in runtimes}
        if only not in f"single layers, {variant.name}":
            continue
        for name, param in layer_nets():
            with tempfile.TemporaryDirectory() as folder:
                try:
                    model = make_model(param, variant, Path(folder))
                except ImaeError:
                    continue  # losses, and what else is left out of a deployed net
                for runtime, process in runtimes.items():
                    results[runtime][name] = result_of(process, model)
        row = Row(f"{len(next(iter(results.values())))} single layers", variant.name)
        for runtime, cells in results.items():
            row.named[runtime] = {
                name: cell for name, cell in cells.items() if isinstance(cell, str) or not cell <= AIM
            }
            good = (cell for name, cell in cells.items() if name not in row.named[runtime])
            row.cells[runtime] = max((cell for cell in good if not isinstance(cell, str)), default=math.nan)
        yield row


def main(arguments: argparse.Namespace) -> None:
    logging.disable(logging.WARNING)
    pythons = dict(pair.partition("=")[::2] for pair in arguments.python)
    if unknown := pythons.keys() - {script for script in RUNTIMES.values() if script}:
        raise SystemExit(f"--python: there is no runtime {', '.join(sorted(unknown))}; see --help")
    with ExitStack() as stack:
        runtimes, absent = start_runtimes(list(RUNTIMES), pythons, arguments.node_modules, stack)
        rows: list[Row] = []
        for makers in (net_rows, layer_rows):
            variants = VARIANTS if makers is net_rows else EXACT
            for row in makers(arguments.only, runtimes, variants):
                rows.append(row)
                cells = " | ".join(_cells(row, runtimes))
                print(f"{row.net}, {row.variant}: {cells}", file=sys.stderr, flush=True)
        versions = {name: runtime.version for name, runtime in runtimes.items()}
    text = as_markdown(rows, versions, absent)
    if arguments.output:
        Path(arguments.output).write_text(text, encoding="utf-8")
    else:
        print(text)


HEAD = """# The runtimes: one model, the same numbers

What an exported model computes in each runtime, compared with imae's own net. Made by one command:

    pip install -c constraints.txt -e '.[runtimes]'
    npm install onnxruntime-web
    python -m benchmarks runtimes --output docs/runtimes.md

- A cell is the largest difference from the net on random inputs of batch size 1 and 3, divided by the largest
  value. What is refused or differs is explained below the table.
- In float32 the aim is at most 1e-4. fp16 and int8 round; there all runtimes should be as near to the net.
- The weights are random, of a size that keeps the values of one size from layer to layer. int8 is better with
  trained weights. Classifiers end in logits, as a softmax hides differences.
- int8 is for models with one input. ROIPooling is exported up to opset 21: ONNX Runtime has no newer kernel.
- onnx.checker computes nothing: "valid" is its `full_check`.

## Other programs' formats

`imae export --fold` makes model.onnx. The numbers are differences as in the table, of the digits' net.

- OpenVINO's IR, by OpenVINO 2026.4.1: 2.6e-4, as it halves the weights' precision

      ovc model.onnx --output_model model.xml

- the same in float32: 2.1e-7

      python -c 'import openvino as o; o.save_model(o.convert_model("model.onnx"), "model.xml", False)'

- OpenVINO without conversion, as in the table: `openvino.compile_model("model.onnx", "CPU")`
- an engine of TensorRT for 1 to 32 images; `data` is the input's name. NOT TRIED: there was no GPU

      trtexec --onnx=model.onnx --saveEngine=model.engine --minShapes=data:1x3x224x224 \\
          --optShapes=data:8x3x224x224 --maxShapes=data:32x3x224x224

What to know of them:

- OpenVINO keeps the metadata (`imae.input.*`: how an image becomes the input), in its IR, too:
  `model.get_rt_info(["framework", "imae.input.mean"]).value`
- By its documentation OpenVINO computes in bfloat16 on processors that have it, unless
  `INFERENCE_PRECISION_HINT` is `f32`, as here.
- With openvino comes openvino-telemetry. It writes `~/intel` and reports to Intel, also where a model is only
  run. `pip uninstall openvino-telemetry` ends that; what is run here does without.
- OpenCV begins with its new engine, and takes the classic one for a model that the new one cannot read.
- On a GPU: `imae run --provider CUDA`; BENCHMARKS.md has figures.
"""


def as_markdown(rows: Sequence[Row], versions: Mapping[str, str], absent: Mapping[str, str]) -> str:
    """The page."""
    lines = [HEAD, "## The table\n", f"{machine()}\n"]
    lines += [f"- {name}: {version}" for name, version in versions.items()]
    lines += [f"- {name} was not there: {plain(why)}" for name, why in absent.items()]
    lines += [
        "\n| net | export | " + " | ".join(versions) + " |",
        "| --- | --- |" + " ---: |" * len(versions),
    ]
    lines += [f"| {row.net} | {row.variant} | " + " | ".join(_cells(row, versions)) + " |" for row in rows]
    for name in versions:
        notes = _notes(rows, name)
        if notes:
            lines += [f"\n## What {name} refuses or computes otherwise\n", *notes]
    return "\n".join(lines) + "\n"


def _cells(row: Row, runtimes: Iterable[str]) -> list[str]:
    cells = []
    for runtime in runtimes:
        value = row.cells[runtime]
        if runtime == "onnx.checker" and value == 0:
            cell = "valid"
        elif isinstance(value, str):
            cell = "refused"
        elif _is_off(row, value):
            cell = f"{value:.1e}, differs"
        else:
            cell = f"{value:.1e}"
        named = row.named.get(runtime, {})
        for word, count in (
            ("refused", sum(isinstance(what, str) for what in named.values())),
            ("differ", sum(not isinstance(what, str) for what in named.values())),
        ):
            cell += f", {count} {word}" if count else ""
        cells.append(cell)
    return cells


def _is_off(row: Row, value: float) -> bool:
    return not row.quantized and not value <= AIM


def _notes(rows: Sequence[Row], runtime: str) -> list[str]:
    """A line for each reason why a runtime refuses nets, or computes otherwise."""
    known = KNOWN.get(runtime, {})
    seen: dict[str, dict[str, str]] = {}
    for row in rows:
        named = row.named[runtime] if runtime in row.named else {row.net: row.cells[runtime]}
        for net, what in named.items():
            if isinstance(what, str) or _is_off(row, what):
                who = row.variant if net not in known and row.variant in known else net
                text = f"it says `{what}`" if isinstance(what, str) else f"differs by {what:.1e}"
                seen.setdefault(known.get(who, "not yet looked into"), {}).setdefault(who, text)
    return [
        f"- {'; '.join(names)}: {reason} ({next(iter(names.values()))})" for reason, names in seen.items()
    ]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default="", metavar="TEXT", help="only rows with these characters")
    parser.add_argument(
        "--python", action="append", default=[], metavar="RUNTIME=PATH",
        help=f"a Python that has a runtime: {', '.join(s for s in RUNTIMES.values() if s)}",
    )  # fmt: skip
    parser.add_argument("--node-modules", type=Path, metavar="FOLDER", help="that has onnxruntime-web")
    parser.add_argument("--output", default="", metavar="FILE", help="write the page here")
