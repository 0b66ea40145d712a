"""The device of a run: the requested GPU or an error; precision; threads and freed memory on the CPU."""

from __future__ import annotations

import ctypes
import os
import sys

import torch

from imae.files.errors import DeviceError, ImaeError
from imae.layers.data.data_resources import most_threads, usable_cores
from imae.net.device_log import DeviceLog as DeviceLog
from imae.net.device_log import GpuRequest as GpuRequest


def gpu(wanted: str, asked_by: str, instead: str) -> torch.device:
    """The GPU of an id, or of `all` where there is one GPU; it becomes CUDA's current device.

    asked_by   the option that asks for it, for the DeviceError; `instead`: what to do without a GPU
    """
    ids = gpus(wanted, asked_by, instead)
    if len(ids) > 1:
        count = torch.cuda.device_count()
        raise DeviceError(f"{asked_by}: one GPU computes, {count} are here; choose one, as in --gpu 0")
    return use_gpu(ids[0])


def gpus(wanted: str, asked_by: str, instead: str) -> list[int]:
    """The ids in a list `0,1`, or those of all GPUs; DeviceError, as in `gpu`, where one is missing."""
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


def gpus_of_ranks(wanted: str, asked_by: str, instead: str, count: int) -> list[int]:
    """The GPUs for `count` ranks on this machine: those of a list, or the first ones for `0` and `all`."""
    from_first = wanted in ("0", "all")
    ids = gpus("all" if from_first else wanted, asked_by, instead)
    if len(ids) < count or (len(ids) > count and not from_first):
        raise DeviceError(f"{asked_by}: one GPU is needed for each of {count} ranks here; got {len(ids)}")
    return ids[:count]


def choose_device(
    request: GpuRequest | None, log: DeviceLog | None = None, ranks: tuple[int, int] | None = None
) -> torch.device:
    """The requested GPU, or the CPU without a request; DeviceError where the GPU does not exist.

    log     logs which device it is
    ranks   this process's number among the processes on this machine that compute together, and how many
            these are; each uses a different GPU
    """
    if request is None:
        device, ids = torch.device("cpu"), list[int]()
    elif ranks is None:
        device = gpu(*request)
        ids = [device.index]
    else:
        rank, count = ranks
        ids = gpus_of_ranks(*request, count)
        device = use_gpu(ids[rank])
    if log is not None:
        log.write(ids)
    return device


def use_gpu(index: int) -> torch.device:
    """Make this GPU CUDA's current device, with deterministic results."""
    torch.backends.cudnn.deterministic = True  # else a resumed run would differ from an uninterrupted one
    device = torch.device("cuda", index)
    torch.cuda.set_device(device)
    return device


def set_precision(wanted: str, device: torch.device) -> torch.dtype | None:
    """Set torch's precision to that of --precision; returns the reduced dtype of blobs, None for none.

    DeviceError where the device does not support it.
    """
    if wanted == "tf32" and device.type == "cpu":
        raise DeviceError("--precision tf32 is of GPUs; give --gpu, too, or use fp32 or bf16")
    # torch lets cuDNN round to TF32 unless told otherwise.
    torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = wanted == "tf32"
    return torch.bfloat16 if wanted == "bf16" else None


def device_budget(device: torch.device, share: float = 0.25) -> int:
    """Bytes that the records of one data layer may use on a device: a share of its free memory."""
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


def set_threads(count: int | None, processes: int = 1) -> None:
    """Let torch compute with `count` threads; None: with torch's own choice, all cores.

    processes   how many processes like this one run on the machine. With None each uses its share of the
                cores, unless OMP_NUM_THREADS is larger than 1 (torchrun sets it to 1 where it is not set)
    """
    if count is None and processes > 1 and os.environ.get("OMP_NUM_THREADS", "1") == "1":
        count = max(1, usable_cores() // processes)
    if count is not None:
        if not 1 <= count <= most_threads():
            raise ImaeError(f"--threads must be 1 to {most_threads()} on this machine, got {count}")
        torch.set_num_threads(count)
