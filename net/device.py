"""What computes, and how: the GPU that was asked for, or an error; precision; threads, memory on the CPU."""

from __future__ import annotations

import argparse
import ctypes
import os
import sys

import torch

from imae.files.errors import DeviceError, ImaeError
from imae.files.limits import memory_size
from imae.layers.data.data_resources import DataResources, most_threads, usable_cores


def gpu(wanted: str, asked_by: str, instead: str) -> torch.device:
    """The device of an id, or of `all` where there is one GPU; from now on CUDA's current one.

    asked_by   what asked for it, `instead` what to do without one, both for the DeviceError
    """
    ids = gpus(wanted, asked_by, instead)
    if len(ids) > 1:
        count = torch.cuda.device_count()
        raise DeviceError(f"{asked_by}: one GPU computes, {count} are here; choose one, as in --gpu 0")
    return use_gpu(ids[0])


def gpus(wanted: str, asked_by: str, instead: str) -> list[int]:
    """The ids in a list `0,1`, or those of all GPUs; DeviceError, as of `gpu`, where they are not there."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if not count:
        raise DeviceError(f"{asked_by}: no CUDA device is available here; {instead} to compute on the CPU")
    if wanted == "all":
        return list(range(count))
    ids = [int(part) if part.isdecimal() else -1 for part in wanted.split(",")]
    if not all(0 <= index < count for index in ids):
        raise DeviceError(f"{asked_by}: expected the id of a GPU, 0 to {count - 1}, or all; got {wanted!r}")
    if len(set(ids)) < len(ids):
        raise DeviceError(f"{asked_by}: a GPU is in the list twice")
    return ids


def use_gpu(index: int) -> torch.device:
    """Make this GPU CUDA's current one; what it computes twice is the same twice."""
    torch.backends.cudnn.deterministic = True  # or a resumed run would not be the one that was not stopped
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


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


def set_precision(wanted: str, device: torch.device) -> torch.dtype | None:
    """Let torch compute as --precision says; the dtype that blobs are reduced to, None for none.

    DeviceError where the device cannot.
    """
    if wanted == "tf32" and device.type == "cpu":
        raise DeviceError("--precision tf32 is of GPUs; give --gpu, too, or use fp32 or bf16")
    # torch lets cuDNN round to TF32 unless told otherwise.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = wanted == "tf32"
    return torch.bfloat16 if wanted == "bf16" else None


def device_budget(device: torch.device, share: float = 0.25) -> int:
    """Bytes that the records of one data layer may take on a device: a share of what is free there."""
    return int(torch.cuda.mem_get_info(device)[0] * share)


def keep_freed_memory() -> None:
    """Let the C library keep the memory of one iteration's blobs for the next one.

    glibc gives large blocks back to the system as soon as they are freed; the next iteration then waits for
    the system to clear thousands of pages. Other C libraries are left as they are.
    """
    trim_threshold, mmap_threshold = -1, -3  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD of malloc.h
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(trim_threshold, 2**31 - 1)
        library.mallopt(mmap_threshold, 2**30)


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


def set_threads(count: int | None, processes: int = 1) -> None:
    """Let torch compute with so many threads; None leaves it to torch, which takes all cores.

    processes   like this one on the machine: with None each takes its share of the cores. torchrun sets
                OMP_NUM_THREADS to 1 where it is not set, however many cores there are; a larger one counts
    """
    if count is None and processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        count = max(1, usable_cores() // processes)
    if count is not None:
        if not 1 <= count <= most_threads():
            raise ImaeError(f"--threads must be 1 to {most_threads()} on this machine, got {count}")
        torch.set_num_threads(count)
