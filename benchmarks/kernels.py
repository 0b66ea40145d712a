"""How fast are the convolutions' kernels in C, for each instruction set of this processor, beside oneDNN's?

    python -m benchmarks kernels [--rounds 15] [--threads N]

Windows of 3x3: the layers of ResNet-20 with a batch of 128, and two wider ones. All ways take turns.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from benchmarks.measure import in_turns, machine, matrix_product
from imae.net import kernels

SIZE = 1024  # of the matrix product
LAYERS = {
    "3 to 16 channels, 32x32": kernels.ConvolutionLayer(3, 16, 32, 1, 128),
    "16 channels, 32x32": kernels.ConvolutionLayer(16, 16, 32, 1, 128),
    "16 to 32 channels, 32x32, stride 2": kernels.ConvolutionLayer(16, 32, 32, 2, 128),
    "32 channels, 16x16": kernels.ConvolutionLayer(32, 32, 16, 1, 128),
    "32 to 64 channels, 16x16, stride 2": kernels.ConvolutionLayer(32, 64, 16, 2, 128),
    "64 channels, 8x8": kernels.ConvolutionLayer(64, 64, 8, 1, 128),
    "128 channels, 28x28": kernels.ConvolutionLayer(128, 128, 28, 1, 16),
    "256 channels, 14x14": kernels.ConvolutionLayer(256, 256, 14, 1, 16),
}
OPERATIONS = {"winograd": ("top", "bottom's gradient"), "winograd_weight": ("weights' gradient",)}


def main(arguments: argparse.Namespace) -> None:
    torch.set_num_threads(arguments.threads or torch.get_num_threads())
    ways = kernels.convolution_ways()
    base, *isas = ways
    product = {"": matrix_product(SIZE)}
    print(machine() + "\n")
    cells = [f"{base}, ms", *(f"{isa} / {base}" for isa in isas)]
    print(f"| layer | what | {' | '.join(cells)} | the fastest's rate / a matrix product's |")
    print("| --- | --- |" + " ---: |" * (len(cells) + 1))
    for name, layer in LAYERS.items():
        of_ways = {way: kernels.convolution_calls(layer, functions) for way, functions in ways.items()}
        for kernel in of_ways[base]:
            for place, what in enumerate(OPERATIONS.get(kernel, ("weights' gradient",))):
                functions = {way: functions[kernel][place] for way, functions in of_ways.items()}
                timings = in_turns(functions | product, arguments.rounds)
                ratios = {way: timings[way].ratio(timings[base]) for way in ways}
                best = timings[min(ratios, key=ratios.__getitem__)]
                cells = [f"{1e3 * timings[base].median:.2f}", *(f"{ratios[isa]:.2f}" for isa in isas)]
                cells.append(f"{_operations(layer) / (2 * SIZE**3) / best.ratio(timings['']):.2f}")
                print(f"| {name} | {what} | {' | '.join(cells)} |", flush=True)
    print(f"\n- {arguments.rounds} rounds; the median over the rounds of oneDNN's time, and of the ratios")
    print("- Winograd's algorithm multiplies 16 times for 36, so that it can exceed a matrix product's rate")
    uses = kernels.description(torch.float32).replace(str(Path.home()), "~")
    print(f"- a training uses here: {uses}")


def _operations(layer: kernels.ConvolutionLayer) -> int:
    """Multiplications and additions of a convolution, without Winograd's algorithm."""
    side = (layer.side - 1) // layer.stride + 1
    return 2 * 9 * layer.channels * layer.outputs * side * side * layer.images


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=0, help="default: torch's")
