"""Options for the device and the way of computing: --gpu, --double, --precision, --cuda-graph and others."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from imae.files.errors import DeviceError, ImaeError
from imae.files.limits import memory_size
from imae.layers.data.data_resources import DataResources
from imae.net.device_log import GpuRequest

if TYPE_CHECKING:
    import torch

    from imae.net.cuda_graph import Recorder


def add_gpu_option(parser: argparse.ArgumentParser) -> None:
    """--gpu, for commands that run on one GPU, and --cpu."""
    devices = parser.add_mutually_exclusive_group()
    devices.add_argument("--gpu", nargs="?", const="0", metavar="ID", help="compute on this GPU")
    devices.add_argument("--cpu", action="store_true", help="compute on the CPU (the default)")


def requested_gpu(flag: str | None) -> GpuRequest | None:
    """The request that --gpu makes; None without --gpu."""
    return None if flag is None else GpuRequest(flag, f"--gpu {flag}", "leave --gpu out")


def add_threads_option(parser: argparse.ArgumentParser, description: str) -> None:
    """--threads; `description` is its help."""
    parser.add_argument("--threads", type=int, metavar="N", help=description)


def add_double_option(parser: argparse.ArgumentParser) -> None:
    """--double, for commands that run nets."""
    parser.add_argument(
        "--double",
        action="store_true",
        help="compute in double precision: slower, a reference where single precision decides near-ties",
    )


def chosen_dtype(args: argparse.Namespace) -> torch.dtype:
    """The dtype of the blobs: float64 with --double, else float32."""
    import torch

    return torch.float64 if args.double else torch.float32


def add_precision_option(parser: argparse.ArgumentParser) -> None:
    """--precision, for commands that train nets."""
    parser.add_argument(
        "--precision",
        choices=["fp32", "tf32", "bf16"],
        default="fp32",
        help="precision of convolutions and matrix products: fp32 (default); tf32, on a GPU only: inputs "
        "rounded to a mantissa of 10 bits; bf16: blobs between layers are in bfloat16, too; on the CPU it is "
        "faster only with AMX or AVX-512 BF16. Parameters, diffs, statistics, losses and the update stay in "
        "single precision",
    )


def add_data_cache_option(parser: argparse.ArgumentParser) -> None:
    """--data-cache, for commands whose nets read databases."""
    parser.add_argument(
        "--data-cache",
        type=_memory,
        metavar="SIZE",
        help="memory for decoded records, shared by all Data layers and all ranks of a machine: 4G, 512M, "
        "a share of the memory such as 25%% (default), or 0; records that do not fit are read and decoded "
        "again each time",
    )


def chosen_data_resources(args: argparse.Namespace, ranks: int = 1) -> DataResources:
    """The data cache and threads of one of `ranks` ranks on this machine, by --data-cache and --threads."""
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
        help="on a GPU: record the passes and the update as CUDA graphs and replay them, which saves the "
        "cost of launching each kernel",
    )
    parser.add_argument(
        "--compile",
        action="store_true",
        help="on a GPU: let torch.compile fuse BatchNorm, Scale, a sum and ReLU into one kernel; compiling "
        "takes some seconds before the first iteration",
    )


def chosen_recorder(
    args: argparse.Namespace, device: torch.device, plain: bool = False
) -> Callable[[], Recorder] | None:
    """The maker of recorders if --cuda-graph is given, else None; `plain`: whether --plain is given, too."""
    from imae.net.cuda_graph import CudaRecorder

    if not args.cuda_graph:
        return None
    if device.type == "cpu":
        raise DeviceError("--cuda-graph is of GPUs; give --gpu, too, or leave it out")
    if plain:
        raise ImaeError("--plain runs the layers one by one, --cuda-graph all at once; give one")
    return partial(CudaRecorder, device)


def chosen_compiled(args: argparse.Namespace, device: torch.device, plain: bool = False) -> bool:
    """Whether --compile is given; `plain`: whether --plain is given, too."""
    if args.compile and device.type == "cpu":
        raise DeviceError("--compile is of GPUs; give --gpu, too, or leave it out")
    if args.compile and plain:
        raise ImaeError("--plain runs the layers one by one, --compile fuses some; give one")
    return bool(args.compile)
