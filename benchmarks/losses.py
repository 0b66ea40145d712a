"""The losses of docs/losses.md on digits of which 60 % have wrong labels; and the figure of their weights.

The net, the data and the schedule are those of `imae demo`; only the loss differs. One run for each loss and
seed, one after the other, with one thread, in the folder data/losses; a run that is there is not repeated.

    python -m benchmarks losses                     # runs all losses, prints the table
    python -m benchmarks losses --only SCE,NCE      # some of them
    python -m benchmarks losses --figure losses.png # draws the weights, runs nothing
"""

from __future__ import annotations

import argparse
import os
import shlex
import subprocess
from pathlib import Path

import cv2
import torch

from imae import losses
from imae.files.atomic import write_atomically
from imae.files.caffe_log import read_log
from imae.files.program import imae_program
from imae.losses.loss import Loss
from imae.paper.demo import DATA, MODELS, WRONG
from imae.prototxt import NetParameter, SolverParameter
from imae.prototxt.text import parse_text, read_text, to_text

FOLDER = Path("data", "losses")
KEPT, WRONG_EACH = 1 - WRONG, WRONG / 9
# The true one: a wrong label is each of the nine other classes with the same probability.
MATRIX = " ".join(f"transition: {KEPT if i == j else WRONG_EACH:.6f}" for i in range(10) for j in range(10))
BY_SUM = "normalizer: SUM_OF_WEIGHTS"
# The loss layers of the table, by the names in it.
LAYERS = {
    "CCE": 'type: "SoftmaxWithLoss"',
    "MAE": 'type: "MAELoss"',
    "MSE": 'type: "MSELoss"',
    "GCE": 'type: "GCELoss"',
    "IMAE": f'type: "IMAELoss" imae_loss_param {{ {BY_SUM} }}',
    "DM": f'type: "DMLoss" dm_loss_param {{ lambda: 0.5 {BY_SUM} }}',
    "SCE": 'type: "SCELoss"',
    "NCE": 'type: "NCELoss"',
    "NCE times 10": 'type: "NCELoss" loss_weight: 10',
    "NCE + RCE": 'type: "NCELoss" nce_loss_param { passive: RCE }',
    "NCE + MAE": 'type: "NCELoss" nce_loss_param { passive: MAE }',
    "NFL": 'type: "NCELoss" nce_loss_param { gamma: 0.5 }',
    "NFL times 10": 'type: "NCELoss" nce_loss_param { gamma: 0.5 } loss_weight: 10',
    "forward correction": f'type: "CorrectionLoss" correction_loss_param {{ {MATRIX} }}',
    "AUL": 'type: "AULLoss"',
    "AGCE": 'type: "AGCELoss"',
    "label smoothing": 'type: "LabelSmoothingLoss"',
    "soft bootstrapping": 'type: "BootstrappingLoss"',
    "hard bootstrapping": 'type: "BootstrappingLoss" bootstrapping_loss_param { kind: HARD }',
    "AEL": 'type: "AELLoss"',
    "AEL times 10": 'type: "AELLoss" loss_weight: 10',
    "TCE": 'type: "TCELoss"',
    "backward correction": f'type: "CorrectionLoss" correction_loss_param {{ direction: BACKWARD {MATRIX} }}',
}
# The curves of the figure: the losses whose weight depends on p alone, and those for which the other classes
# must be known. Each is drawn relative to its largest weight; AUL, AEL and TCE then look like MAE and AGCE.
OF_P = ("CCE", "MAE", "MSE", "GCE", "IMAE", "SCE", "AGCE")
OF_ALL = ("CCE", "NCE", "LabelSmoothing", "Bootstrapping", "ForwardCorrection")
CLASSES = 10


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", default=",".join(LAYERS), help="names of losses, with commas between them")
    parser.add_argument("--seeds", type=int, default=1, help="runs per loss")
    parser.add_argument("--figure", type=Path, help="draw the weights into this file, and train nothing")


def main(arguments: argparse.Namespace) -> None:
    if arguments.figure:
        draw(arguments.figure)
        return
    FOLDER.mkdir(parents=True, exist_ok=True)
    for path, command in DATA.items():
        if not Path(path).exists():
            run(command)
    print(
        f"3,000 iterations, seeds: {arguments.seeds}; CPU, 1 of {os.cpu_count()} cores; "
        f"torch {torch.__version__}\n"
    )
    print("| loss | test, best | test, final | given labels, final |\n| --- | ---: | ---: | ---: |")
    for name in arguments.only.split(","):
        results = [train(name, seed) for seed in range(1, arguments.seeds + 1)]
        means = [sum(column) / len(column) for column in zip(*results, strict=True)]
        print(f"| {name} | " + " | ".join(f"{mean:.3f}" for mean in means) + " |", flush=True)


def run(command: str, log: Path | None = None) -> None:
    """Run a command `imae ...`; its output goes into the log."""
    program = [*imae_program(), *shlex.split(command)[1:]]
    with open(log or os.devnull, "wb") as output:
        subprocess.run(program, stdout=output, stderr=output, check=True)


def train(name: str, seed: int) -> tuple[float, float, float]:
    """Best and final accuracy on the test digits, and final on the training digits with the given labels."""
    stem = FOLDER / f"{name.replace(' ', '_').replace(',', '')}_seed{seed}"
    log, partial = stem.with_suffix(".log"), stem.with_suffix(".partial")
    if not log.exists():
        net = read_text(MODELS / "train_val.prototxt", NetParameter)
        others = [layer for layer in net.layer if layer.name != "loss"]
        loss = parse_text(
            'layer { name: "loss" bottom: "ip2" bottom: "label" top: "loss" include { phase: TRAIN } '
            f"{LAYERS[name]} }}",
            NetParameter,
            "benchmarks/losses.py",
        )
        del net.layer[:]
        net.layer.extend([*others, *loss.layer])
        solver = read_text(MODELS / "imae_solver.prototxt", SolverParameter)
        solver.net = str(stem.with_suffix(".prototxt"))
        solver.snapshot_prefix, solver.random_seed = str(stem), seed
        write_atomically(Path(solver.net), to_text(net).encode())
        path = stem.with_name(f"{stem.name}_solver.prototxt")
        write_atomically(path, to_text(solver).encode())
        run(f"imae train {shlex.quote(str(path))} --threads 1", partial)
        os.replace(partial, log)
    tests = [entry for entry in read_log(log) if (entry.what, entry.name) == ("test", "accuracy")]
    on_test, on_given = ([entry.value for entry in tests if entry.net == net] for net in (0, 1))
    return max(on_test), on_test[-1], on_given[-1]


def weight_curve(loss: Loss, points: int = 201) -> tuple[list[float], list[float]]:
    """(p, weight): the L1 norm of the logits' gradient where the other classes share 1 - p equally."""
    p = torch.linspace(0, 1, points, dtype=torch.float64)[1:-1]
    odds = torch.log(p) - torch.log1p(-p) + torch.log(torch.tensor(CLASSES - 1.0, dtype=torch.float64))
    logits = torch.zeros(len(p), CLASSES, dtype=torch.float64)
    logits[:, 0] = odds
    logits.requires_grad_()
    loss(logits, torch.zeros(len(p), dtype=torch.long)).backward()
    assert logits.grad is not None
    return p.tolist(), (len(p) * logits.grad.abs().sum(1)).tolist()


def of_name(name: str) -> Loss:
    """A loss with its defaults; the corrections with the matrix of the digits."""
    matrix = torch.full((CLASSES, CLASSES), WRONG_EACH).fill_diagonal_(KEPT)
    made: Loss = getattr(losses, name)(*([matrix] if name.endswith("Correction") else []))
    return made


def draw(path: Path) -> None:
    """The weights of all losses against p, each relative to its largest."""
    from imae.train.plot_log import write_picture  # here: matplotlib takes a while to load

    def both(figure: object) -> None:
        left, right = figure.subplots(1, 2)  # type: ignore[attr-defined]  # matplotlib is imported late
        for axes, names, title in (
            (left, OF_P, "losses of p alone"),
            (right, OF_ALL, f"losses of all {CLASSES} classes, the others share 1 - p"),
        ):
            for name in names:
                p, weight = weight_curve(of_name(name))
                axes.plot(p, [w / max(weight) for w in weight], label=name, linewidth=1.3)
            axes.set_xlabel("p, probability of the annotated label")
            axes.set_ylabel("weight, relative to the largest")
            axes.set_title(title, fontsize=10)
            axes.grid(alpha=0.3)
            axes.legend(fontsize=7, loc="lower center" if axes is left else "upper right")

    write_picture(path, both, height=3)
    if path.suffix == ".png":  # without the channel of opacity: fewer bytes
        _, data = cv2.imencode(".png", cv2.imread(str(path)), [cv2.IMWRITE_PNG_COMPRESSION, 9])
        write_atomically(path, data.tobytes())
    print(f"wrote {path}")
