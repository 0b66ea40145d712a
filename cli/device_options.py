"""The options that say what computes, and how: --gpu, --double, --precision, --cuda-graph and others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

import torch

from imae.files.errors import DeviceError, ImaeError
from imae.files.limits import memory_size
from imae.layers.data.data_resources import DataResources
from imae.net.cuda_graph import CudaRecorder, Recorder
from imae.net.device import GpuRequest


def add_gpu_option(parser: argparse.ArgumentParser) -> None:
    """--gpu, for commands that one GPU computes."""
    parser.add_argument("--gpu", nargs="?", const="0", metavar="ID", help="compute on this GPU")


def requested_gpu(flag: str | None) -> GpuRequest | None:
    """What --gpu asks for; None where it is not given."""
    return None if flag is None else GpuRequest(flag, f"--gpu {flag}", "leave --gpu out")


def add_threads_option(parser: argparse.ArgumentParser, what: str) -> None:
    """--threads; `what` says which threads these are."""
    parser.add_argument("--threads", type=int, metavar="N", help=what)


def add_double_option(parser: argparse.ArgumentParser) -> None:
    """--double, for commands that run nets."""
    parser.add_argument(
        "--double",
        action="store_true",
        help="compute in double precision: slower, a reference where single precision decides near-ties",
    )


def chosen_dtype(args: argparse.Namespace) -> torch.dtype:
    """What --double asks for."""
    return torch.float64 if args.double else torch.float32


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """--precision, for commands that train nets."""
    parser.add_argument(
        "--precision",
        choices=["fp32", "tf32", "bf16"],
        default="fp32",
        help="what convolutions and matrix products compute in: fp32 (default); tf32, on a GPU only: inputs "
        "rounded to 10 bits behind the point; bf16: blobs between layers are in bfloat16, too. Parameters, "
        "diffs, losses and the update stay in single precision",
    )


def add_data_cache_option(parser: argparse.ArgumentParser) -> None:
    """--data-cache, for commands whose nets read databases."""
    parser.add_argument(
        "--data-cache",
        type=_memory,
        metavar="SIZE",
        help="memory for decoded records, of all Data layers and all ranks of a machine together: 4G, 512M, "
        "a share of it such as 25%% (default), or 0; what does not fit is read and decoded anew each time",
    )


def chosen_data_resources(args: argparse.Namespace, ranks: int = 1) -> DataResources:
    """What --data-cache and --threads leave each of so many ranks on this machine."""
    return DataResources(args.data_cache, args.threads, ranks)


def _memory(text: str) -> int:
    try:
        return memory_size(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def add_launch_options(parser: argparse.ArgumentParser) -> None:
    """--cuda-graph and --compile, for commands that train."""
    parser.add_argument(
        "--cuda-graph",
        action="store_true",
        help="on a GPU: record the passes and the update as CUDA graphs and replay them, which spares the "
        "host the launching of each kernel",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="on a GPU: let torch.compile make one kernel of BatchNorm, Scale, a sum and ReLU, which takes "
        "some seconds before the first iteration",
    )


def chosen_recorder(
    args: argparse.Namespace, device: torch.device, plain: bool = False
) -> Callable[[], Recorder] | None:
    """What --cuda-graph asks for; `plain`: whether --plain is given, too."""
    if not args.cuda_graph:
        return None
    if device.type == "cpu":
        raise DeviceError("--cuda-graph is of GPUs; give --gpu, too, or leave it out")
    if plain:
        raise ImaeError("--plain runs the layers one by one, --cuda-graph all at once; give one")
    return partial(CudaRecorder, device)


def chosen_compiled(args: argparse.Namespace, device: torch.device, plain: bool = False) -> bool:
    """Whether --compile asks for it."""
    if args.compile and device.type == "cpu":
        raise DeviceError("--compile is of GPUs; give --gpu, too, or leave it out")
    if args.compile and plain:
        raise ImaeError("--plain runs the layers one by one, --compile joins some; give one")
    return bool(args.compile)
