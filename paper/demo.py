"""The demo: label noise on handwritten digits; each step is a command that a user could type.

60 % of the training labels are made wrong. The same net is trained with CCE, with MAE and with IMAE, with
several seeds each. The test digits have right labels. The accuracy on the training digits is measured against
the labels that they are trained with. A net that recognises every digit and has memorised no wrong label
would score 0.40 there. A higher score means that it has memorised wrong labels, a lower score that it has not
fitted the right ones.
"""

from __future__ import annotations

import re
import shlex
import shutil
import statistics
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import imae.prototxt
from imae.files.atomic import write_atomically
from imae.files.caffe_log import read_log
from imae.files.errors import FileError, ImaeError
from imae.files.program import imae_program
from imae.prototxt import SolverParameter
from imae.prototxt.text import read_text, to_text
from imae.train.signals import terminated_as_interrupted
from imae.train.snapshot_lock import writing_alone

MODELS = Path(imae.prototxt.__path__[0], "models", "digits")
FOLDER = Path("data", "demo")
WRONG = 0.6  # share of the training labels
DATA = {
    "data/digits_train_lmdb": "imae convert-digits data",
    "data/digits_train_noisy60_lmdb": "imae corrupt-labels data/digits_train_lmdb "
    f"data/digits_train_noisy60_lmdb --noise symmetric-exclusive --rate {WRONG} --seed 1",
}
LOSSES = ("cce", "mae", "imae")
COLOURS = {"cce": "#c8500a", "mae": "#0a66b0", "imae": "#00805c"}
TRAIN = "imae train {solver} --threads 1"
TEST = "imae test --model {net} --stage test --weights {weights} --iterations 3"
EXPORT = "imae export --model {net} --stage test --weights {weights} --output {onnx} --fold"
RUN = "imae run {onnx} --lmdb data/digits_test_lmdb"
POLL_INTERVAL = 0.1  # seconds between two checks of the processes


class Trained(NamedTuple):
    """A finished run: its accuracies at each test, on the test digits and on the given training labels."""

    loss: str
    seed: int
    iterations: list[int]
    test: list[float]
    given: list[float]
    weights: Path


def demo(seeds: int = 3, jobs: int = 2) -> None:
    """Run all steps in this folder; ImaeError if one fails or the accuracies of net and ONNX model differ.

    seeds   runs per loss
    jobs    runs at a time
    """
    for option, value in (("seeds", seeds), ("jobs", jobs)):
        if value < 1:
            raise ImaeError(f"--{option} must be at least 1, got {value}")
    try:
        FOLDER.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(MODELS / "train_val.prototxt", FOLDER / "train_val.prototxt")
    except OSError as error:
        raise FileError(f"cannot write into the folder '{FOLDER}': {error.strerror}") from None
    with writing_alone(str(FOLDER / "demo"), "another imae demo runs in this folder now; wait for its end"):
        for made, command in DATA.items():
            if not Path(made).exists():
                _step(command)
        wanted = [(loss, seed) for loss in LOSSES for seed in range(1, seeds + 1)]
        with terminated_as_interrupted():
            runs = _train_all(wanted, jobs)
        print_results(runs)
        draw(runs, FOLDER / "curves.png")
        print(f"wrote {FOLDER / 'curves.png'}")
        _export(best_run(runs))


def _train_all(wanted: Sequence[tuple[str, int]], jobs: int) -> list[Trained]:
    """Train each loss with each seed, `jobs` runs at a time; print the result of each run."""
    waiting, trained = list(wanted), list[Trained]()
    running: list[tuple[str, int, subprocess.Popen[bytes]]] = []
    print(
        f"\n{len(wanted)} runs, {jobs} at a time, about a minute each where nothing else computes; "
        f"their logs are in {FOLDER}:",
        flush=True,
    )
    try:
        while waiting or running:
            while waiting and len(running) < jobs:
                running.append((*waiting[0], _start(*waiting.pop(0))))
            time.sleep(POLL_INTERVAL)
            for entry in [entry for entry in running if entry[2].poll() is not None]:
                running.remove(entry)
                loss, seed, process = entry
                if process.returncode:
                    last = _name(loss, seed, "log").read_text(encoding="utf-8").strip().splitlines()[-1:]
                    raise ImaeError(f"the training with {loss.upper()} failed: {''.join(last)}")
                trained.append(_read(loss, seed))
                best, final = max(trained[-1].test), trained[-1].test[-1]
                print(f"  {loss.upper():5} seed {seed}: test best {best:.4f}, final {final:.4f}", flush=True)
    finally:
        for *_, process in running:
            process.terminate()
        for *_, process in running:
            process.wait()
    return sorted(trained, key=lambda run: (LOSSES.index(run.loss), run.seed))


def _name(loss: str, seed: int, ending: str) -> Path:
    return FOLDER / f"{loss}_seed{seed}.{ending}"


def _start(loss: str, seed: int) -> subprocess.Popen[bytes]:
    """Start a training with the solver that ships with imae and this seed."""
    param = read_text(MODELS / f"{loss}_solver.prototxt", SolverParameter)
    param.net = str(FOLDER / "train_val.prototxt")
    param.snapshot_prefix = str(FOLDER / f"{loss}_seed{seed}")
    param.random_seed = seed
    solver = _name(loss, seed, "solver.prototxt")
    write_atomically(solver, to_text(param).encode())
    command = TRAIN.format(solver=solver)
    print(f"$ {command}", flush=True)
    with open(_name(loss, seed, "log"), "wb") as log:
        return subprocess.Popen(_program(command), stdout=log, stderr=log)


def _read(loss: str, seed: int) -> Trained:
    """Read the accuracies of a run from its log."""
    tests = [n for n in read_log(_name(loss, seed, "log")) if (n.what, n.name) == ("test", "accuracy")]
    on_test, on_given = ([n for n in tests if n.net == net] for net in (0, 1))
    iterations = [number.iteration for number in on_test]
    weights = FOLDER / f"{loss}_seed{seed}_iter_{iterations[-1]}.caffemodel"
    test, given = ([number.value for number in numbers] for numbers in (on_test, on_given))
    return Trained(loss, seed, iterations, test, given, weights)


def best_run(runs: Sequence[Trained]) -> Trained:
    """The loss with the best mean final test accuracy; of its runs, the one with the best final accuracy."""
    final = {
        loss: statistics.fmean(run.test[-1] for run in runs if run.loss == loss)
        for loss in dict.fromkeys(run.loss for run in runs)
    }
    best = max(final, key=final.__getitem__)
    return max((run for run in runs if run.loss == best), key=lambda run: run.test[-1])


def print_results(runs: Sequence[Trained]) -> None:
    """Print mean and standard deviation over the seeds, and how to read them."""
    print(
        f"\n{100 * WRONG:.0f} % of the 1,500 training labels are wrong; 297 test digits have right labels.\n"
    )
    print(f"{'loss':6}{'test, best':>18}{'test, final':>18}{'given labels, final':>22}")
    for loss in LOSSES:
        of_loss = [run for run in runs if run.loss == loss]
        columns = (
            [max(run.test) for run in of_loss],
            [run.test[-1] for run in of_loss],
            [run.given[-1] for run in of_loss],
        )
        cells = (f"{_mean(values):>{width}}" for values, width in zip(columns, (18, 18, 22), strict=True))
        print(f"{loss.upper():6}{''.join(cells)}")
    seeds = len({run.seed for run in runs})
    print(
        f"\nMean and standard deviation of {seeds} seeds. Given labels: accuracy on the training digits\n"
        f"against the labels that they are trained with; {1 - WRONG:.2f} is that of a net that knows every\n"
        "digit and no wrong label. Above it wrong labels are memorised, below it right ones not fitted.\n"
    )


def _mean(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.3f}" if len(values) > 1 else ""
    return f"{statistics.fmean(values):.3f}{spread}"


def draw(runs: Sequence[Trained], path: Path) -> None:
    """Plot the accuracies along the training: means over the seeds, in a band from lowest to highest."""
    from imae.train.curve_style import write_picture  # here: matplotlib takes a while to load

    def both(figure: Any) -> None:
        left, right = figure.subplots(1, 2)
        for axes, title, field in (
            (left, "test digits, right labels", "test"),
            (right, f"training digits, labels as given ({100 * WRONG:.0f} % wrong)", "given"),
        ):
            for loss in LOSSES:
                of_loss = [run for run in runs if run.loss == loss]
                columns = list(zip(*(getattr(run, field) for run in of_loss), strict=True))
                iterations, colour = of_loss[0].iterations, COLOURS[loss]
                axes.plot(iterations, list(map(statistics.fmean, columns)), color=colour, label=loss.upper())
                axes.fill_between(
                    iterations,
                    list(map(min, columns)),
                    list(map(max, columns)),
                    color=colour,
                    alpha=0.18,
                    linewidth=0,
                )
            axes.set_title(title, fontsize=10)
            axes.set_xlabel("iterations")
            axes.set_ylabel("accuracy")
            axes.grid(alpha=0.3)
        right.axhline(1 - WRONG, color="#57606a", linestyle="--", linewidth=1)
        right.annotate(
            "every digit known, no wrong label",
            (1, 1 - WRONG),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            xytext=(-4, -11),
            ha="right",
            fontsize=8,
            color="#57606a",
        )
        left.legend(loc="lower right")

    write_picture(path, both, height=3.6)


def _export(best: Trained) -> None:
    """Test a run, export it, run the ONNX model; ImaeError if the accuracies differ in four digits."""
    names = {"net": FOLDER / "train_val.prototxt", "weights": best.weights, "onnx": FOLDER / "digits.onnx"}
    net = _accuracy(_step(TEST.format(**names), show=r"\] accuracy = "))
    _step(EXPORT.format(**names), show=r"^(wrote|largest)")
    onnx = _accuracy(_step(RUN.format(**names)))
    if f"{net:.4f}" != f"{onnx:.4f}":
        raise ImaeError(
            f"{best.weights}: the net's accuracy is {net:.4f}, the ONNX model's {onnx:.4f}; they must be "
            "equal"
        )
    print(f"\n{names['onnx']}: {best.loss.upper()}, seed {best.seed}; accuracy {onnx:.4f}, as the net's")


def _program(command: str) -> list[str]:
    """The arguments that run a command with this Python."""
    _, *words = shlex.split(command)
    return [*imae_program(), *words]


def _step(command: str, show: str = "") -> str:
    """Print and run a command; print its output, or the lines that match `show`. Return the output."""
    print(f"\n$ {command}", flush=True)
    lines = []
    with subprocess.Popen(
        _program(command), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            if not show or re.search(show, line):
                print(line, end="", flush=True)
    if process.returncode:
        raise ImaeError(
            f"`{command}` failed with exit status {process.returncode}: {''.join(lines[-1:]).strip()}"
        )
    return "".join(lines)


def _accuracy(output: str) -> float:
    """The last accuracy that a command printed."""
    return float(re.findall(r"accuracy = (\S+)", output)[-1])
