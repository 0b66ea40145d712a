"""Is training in bfloat16 faster than in single precision, on processors with AMX? Does it learn the same?

    python -m benchmarks bfloat16 [--rounds 9] [--batch 128] [--depth 20] [--seeds 3] [--iterations 300]

Not part of `python -m benchmarks`: on a processor without products of bfloat16 all of it is slow, plain
PyTorch most of all (try --batch 16 --rounds 3 there). The speed is that of ResNet-20, as in the benchmark
`training`. What is learnt is what ResNet-20 learns of the 1,500 handwritten digits that come with imae, from
the same seeds in both precisions. --rounds 0 leaves the speed out, --seeds 0 what is learnt.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from google.protobuf import text_format

from benchmarks.measure import in_turns, machine, matrix_product, table
from benchmarks.peers import operations, training_step
from benchmarks.training import PRODUCT, SIZE, make_solver
from imae.converters.convert_digits import convert_digits
from imae.net import kernels
from imae.net.device import keep_freed_memory
from imae.prototxt import TEST, TRAIN, SolverParameter
from imae.prototxt.models.net_parts import lmdb_data, with_data
from imae.prototxt.models.resnet import resnet
from imae.train.options import Options
from imae.train.solver import Solver

OURS, SINGLE = "imae bf16", "imae fp32"
PEERS = {
    "PyTorch bf16 (autocast), channels-last": {},
    "PyTorch bf16 (autocast), compiled, channels-last": {"compiled": True},
}
EVERY = 50  # iterations between two tests
BATCH = 100


def main(arguments: argparse.Namespace) -> None:
    keep_freed_memory()
    print(machine() + "\n")
    print(f"{kernels.slow_bfloat16() or 'This processor has products of bfloat16.'}\n")
    print(f"{kernels.description(kernels.product_type(torch.bfloat16))}\n")
    if arguments.rounds and kernels.weight_gradient_by_tiles():
        _compare_kernels(arguments.rounds)
    with tempfile.TemporaryDirectory() as folder:
        if arguments.rounds:
            _compare_speed(Path(folder), arguments.rounds, arguments.batch, arguments.depth)
        if arguments.seeds:
            _compare_learning(Path(folder), range(1, arguments.seeds + 1), arguments.iterations)


def _compare_kernels(rounds: int) -> None:
    """The weights' gradient of ResNet-20's kinds of layers and of wider ones: by AMX, beside oneDNN."""
    by_tiles = kernels.weight_gradient_by_tiles()
    assert by_tiles is not None
    print("| weights' gradient in bfloat16 | oneDNN, ms | ours, ms | ours / oneDNN |")
    print("| --- | ---: | ---: | ---: |")
    for images, channels, side in ((128, 16, 32), (128, 32, 16), (128, 64, 8), (16, 64, 56), (16, 128, 28)):
        x, top_diff = (
            torch.randn(images, channels, side, side).bfloat16().contiguous(memory_format=torch.channels_last)
            for _ in range(2)
        )
        weight = torch.randn(channels, channels, 3, 3).bfloat16()
        weight = weight.contiguous(memory_format=torch.channels_last)
        shape, mask = weight.shape, [False, True, False]
        ways = {
            "oneDNN": lambda x=x, top_diff=top_diff, weight=weight, mask=mask: (
                torch.ops.aten.convolution_backward(
                    top_diff, x, weight, None, [1, 1], [1, 1], [1, 1], False, [0, 0], 1, mask
                )
            ),
            "ours": partial(by_tiles, x, top_diff, shape, (1, 1)),
        }
        timings = in_turns(ways, 3 * rounds, rest=0)
        ours, other = timings["ours"], timings["oneDNN"]
        cells = f"{1e3 * other.median:.2f} | {1e3 * ours.median:.2f} | {ours.ratio(other):.2f}"
        print(f"| {channels} channels, {side}x{side}, {images} images | {cells} |", flush=True)
    print()


def _compare_speed(folder: Path, rounds: int, batch: int, depth: int) -> None:
    reduced = torch.bfloat16
    ways: dict[str, Callable[[], object]] = {
        OURS: partial(make_solver(folder, batch, depth, "SoftmaxWithLoss", reduced=reduced).step, 1),
        SINGLE: partial(make_solver(folder, batch, depth, "SoftmaxWithLoss").step, 1),
    }
    for name, how in PEERS.items():
        ways[name] = training_step(batch, depth, channels_last=True, reduced=reduced, **how)
    timings = in_turns({**ways, PRODUCT: matrix_product(SIZE)}, rounds, warm_up=3, rest=0)
    product, ours = timings.pop(PRODUCT), timings[OURS]
    best = max(PEERS, key=lambda name: ours.ratio(timings[name]))
    print(table(f"ResNet-{depth}, batch {batch}, one training iteration", timings, SINGLE))
    rate = operations(depth, batch) / (2 * SIZE**3) / ours.ratio(product)
    print(
        f"- imae bf16 / imae fp32: {ours.ratio(timings[SINGLE]):.2f}, the median over the rounds (aim: 0.45)"
    )
    print(f"- imae bf16 / {best}: {ours.ratio(timings[best]):.2f} (aim: below 1)")
    print(f"- imae bf16's rate / that of an fp32 matrix product in the same round: {rate:.2f}\n")


class Point(NamedTuple):
    """What a run has reached: the mean train loss since the last test, test loss, test accuracy."""

    train_loss: float
    test_loss: float
    accuracy: float


def learn(
    folder: Path, seed: int, iterations: int, reduced: torch.dtype | None, every: int = EVERY
) -> list[Point]:
    """Train on the digits; a point after each `every` iterations. `folder` gets the digits' databases."""
    if not (folder / "digits_train_lmdb").exists():
        convert_digits(folder, pad=1)
    solver = Solver(digits_solver(folder, seed, iterations, every), Options(reduced=reduced))
    points: list[Point] = []
    solver.on_test.append(
        lambda _, means: points.append(
            Point(solver.smoothed_loss, float(means["loss"]), float(means["accuracy"]))
        )
    )
    solver.solve()
    return points


def digits_solver(folder: Path, seed: int, iterations: int, every: int = EVERY) -> SolverParameter:
    """ResNet-20 on the digits of 8x8 pixels, padded by a pixel and cropped; the rate drops once."""
    transform = {"mean_value": (64.0,), "scale": 1 / 64}
    net = with_data(
        resnet(20),
        lmdb_data(TRAIN, str(folder / "digits_train_lmdb"), BATCH, crop_size=8, **transform),
        lmdb_data(TEST, str(folder / "digits_test_lmdb"), 99, **transform),
    )
    for layer in net.layer:
        if layer.type == "BatchNorm":  # by default 0.999: of 300 iterations an average of them all
            layer.batch_norm_param.moving_average_fraction = 0.9
    param = text_format.Parse(
        f"""
        base_lr: 0.02 lr_policy: "step" gamma: 0.1 stepsize: {max(1, iterations * 2 // 3)} momentum: 0.9
        weight_decay: 0.0001 max_iter: {iterations} display: {every} average_loss: {every} test_iter: 3
        test_interval: {every} test_initialization: false random_seed: {seed} snapshot_after_train: false
        solver_mode: CPU
        """,
        SolverParameter(),
    )
    param.net_param.CopyFrom(net)
    return param


def _compare_learning(folder: Path, seeds: Sequence[int], iterations: int) -> None:
    types = {"fp32": None, "bf16": torch.bfloat16}
    runs = {name: [learn(folder, seed, iterations, dtype) for seed in seeds] for name, dtype in types.items()}
    print(f"### ResNet-20 on digits, batch {BATCH}, seeds {', '.join(map(str, seeds))}\n")
    columns = {"train_loss": "train loss", "test_loss": "test loss", "accuracy": "test accuracy"}
    print(
        "| iteration | "
        + " | ".join(f"{title}, {name}" for title in columns.values() for name in runs)
        + " |"
    )
    print("| ---: |" + " ---: |" * len(columns) * len(runs))
    for place in range(len(runs["fp32"][0])):
        cells = [
            " ".join(f"{getattr(points[place], column):.4f}" for points in of_seeds)
            for column in columns
            for of_seeds in runs.values()
        ]
        print(f"| {(place + 1) * EVERY} | " + " | ".join(cells) + " |")
    single, reduced = ([points[-1].accuracy for points in of_seeds] for of_seeds in runs.values())
    apart = max(abs(a - b) for a, b in zip(single, reduced, strict=True))
    print(
        f"\n- test accuracy at the end, mean: fp32 {statistics.mean(single):.4f}, bf16 "
        f"{statistics.mean(reduced):.4f}; of one seed they differ by at most {apart:.4f}, the seeds of fp32 "
        f"by {max(single) - min(single):.4f}"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=300)
