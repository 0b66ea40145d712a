"""Run ONNX models in one runtime, for benchmarks/runtimes.py: `python runtime_process.py RUNTIME`.

A script for any Python that has NumPy and the runtime; imae need not be there. It prints its version, then
for each line of standard input, a request, one line with the answer, both JSON:

    request   {"model": PATH, "outputs": [NAME, ...], "batches": [{NAME: [PATH, SHAPE], ...}, ...]}
    answer    [[[PATH, SHAPE], ...], ...]: each batch's outputs

Arrays are files of float32, little-endian. What the runtime refuses ends this process: its error is the last
line on standard error.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import redirect_stdout
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Run = Callable[[dict[str, Array], list[str]], list[Array]]


def ort() -> tuple[str, Callable[[str], Run]]:
    import onnxruntime

    def load(path: str) -> Run:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        return lambda feeds, outputs: list(session.run(outputs, feeds))

    return onnxruntime.__version__, load


def opencv(engine: str) -> tuple[str, Callable[[str], Run]]:
    import cv2

    cv2.setNumThreads(1)
    if not hasattr(cv2.dnn, engine):
        raise SystemExit(f"OpenCV {cv2.__version__} has no {engine}; 5 has")

    def load(path: str) -> Run:
        net = cv2.dnn.readNetFromONNX(path, getattr(cv2.dnn, engine))
        if net.empty():
            raise SystemExit("it does not read the model")

        def run(feeds: dict[str, Array], outputs: list[str]) -> list[Array]:
            for name, value in feeds.items():
                # As a Mat: else a last axis of up to 4 is taken for the channels of an image.
                net.setInput(cv2.Mat(value), name)
            return [np.array(value) for value in net.forward(outputs)]

        return run

    return cv2.__version__, load


def openvino() -> tuple[str, Callable[[str], Run]]:
    sys.modules["openvino_telemetry"] = None  # type: ignore[assignment]  # which would send usage statistics
    import openvino

    core = openvino.Core()
    # f32: on processors that have bfloat16, it would compute in that.
    settings = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}

    def load(path: str) -> Run:
        model = core.compile_model(path, "CPU", settings)

        def run(feeds: dict[str, Array], outputs: list[str]) -> list[Array]:
            results = model(feeds)
            return [np.array(results[name]) for name in outputs]

        return run

    return openvino.__version__.partition("-")[0], load


def checker() -> tuple[str, Callable[[str], Run]]:
    import onnx

    def load(path: str) -> Run:
        onnx.checker.check_model(path, full_check=True)
        return lambda feeds, outputs: []

    return onnx.__version__, load


RUNTIMES = {
    "ort": ort,
    "opencv-classic": lambda: opencv("ENGINE_CLASSIC"),
    "opencv-new": lambda: opencv("ENGINE_NEW"),
    "openvino": openvino,
    "checker": checker,
}


def answers(name: str, lines: Iterator[str]) -> Iterator[Any]:
    """The version, then what each request is answered."""
    version, load = RUNTIMES[name]()
    yield version
    for line in lines:
        request = json.loads(line)
        run = load(request["model"])
        made = []
        for number, batch in enumerate(request["batches"]):
            feeds = {name: np.fromfile(path, "<f4").reshape(shape) for name, (path, shape) in batch.items()}
            made.append([])
            for index, value in enumerate(run(feeds, request["outputs"])):
                path = f"{request['model']}.{name}.{number}.{index}"
                value.astype("<f4").tofile(path)
                made[-1].append([path, value.shape])
        yield made


def main() -> None:
    sys.excepthook = lambda kind, error, _: print(  # an error may have many lines
        f"{kind.__name__}: {' '.join(str(error).split())}", file=sys.stderr
    )
    # What a runtime prints must not stand among the answers.
    printed = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with redirect_stdout(sys.stderr):
        for answer in answers(sys.argv[1], iter(sys.stdin.readline, "")):
            print(json.dumps(answer), file=printed, flush=True)


if __name__ == "__main__":
    main()
