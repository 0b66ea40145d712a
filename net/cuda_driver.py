"""The GPUs of this machine, as `caffe device_query` logs them.

Sizes are bytes, the clock rate is in kHz. The numbers come from CUDA's driver: no torch is needed.

Caffe: tools/caffe.cpp, device_query(); common.cpp, DeviceQuery.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from imae.files.caffe_log import log_line
from imae.files.errors import DeviceError

DRIVER = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"

# Line of common.cpp, its label, the driver's attributes for it (CUdevice_attribute in cuda.h).
ATTRIBUTES = (
    (179, "Major revision number:", (75,)),
    (180, "Minor revision number:", (76,)),
    (183, "Total shared memory per block:", (8,)),
    (184, "Total registers per block:", (12,)),
    (185, "Warp size:", (10,)),
    (186, "Maximum memory pitch:", (11,)),
    (187, "Maximum threads per block:", (1,)),
    (188, "Maximum dimension of block:", (2, 3, 4)),
    (191, "Maximum dimension of grid:", (5, 6, 7)),
    (194, "Clock rate:", (13,)),
    (195, "Total constant memory:", (9,)),
    (196, "Texture alignment:", (14,)),
    (197, "Concurrent copy and execution:", (15,)),
    (199, "Number of multiprocessors:", (16,)),
    (200, "Kernel execution timeout:", (17,)),
)
YES_OR_NO = (15, 17)


def log_gpus(wanted: str) -> None:
    """Log what Caffe logs of the GPUs in a list `0,1` or of `all`; of none if `wanted` is empty.

    DeviceError where there is no driver, or no such GPU.
    """
    log_line("caffe.cpp:138", f"Querying GPUs {wanted}")
    if not wanted:
        return
    driver = CudaDriver(wanted)
    for index in _indices(wanted, driver.count()):
        for line, label, text in driver.properties(index):
            log_line(f"common.cpp:{line}", f"{label:<31}{text}")


def _indices(wanted: str, count: int) -> Sequence[int]:
    if wanted == "all":
        return range(count)
    parts = wanted.split(",")
    for part in parts:
        if not (part.isdecimal() and int(part[:9]) < count):
            raise DeviceError(
                f"--gpu {wanted}: there is no GPU {part}; {count} are here, counted from 0, or say all"
            )
    return list(map(int, parts))


class CudaDriver:
    """CUDA's driver, called through its C interface; DeviceError where there is none, or no GPU."""

    def __init__(self, asked_by: str) -> None:
        self._asked_by = asked_by
        try:
            self._library = ctypes.CDLL(DRIVER)
        except OSError:
            raise DeviceError(f"--gpu {asked_by}: CUDA's driver ({DRIVER}) is not installed here") from None
        self._call("cuInit", 0)

    def count(self) -> int:
        """How many GPUs there are."""
        return self._number("cuDeviceGetCount")

    def properties(self, index: int) -> Iterator[tuple[int, str, str]]:
        """(line of common.cpp, its label, value) in the order of the lines."""
        device = self._number("cuDeviceGet", index)
        name = ctypes.create_string_buffer(256)
        self._call("cuDeviceGetName", name, len(name), device)
        memory = ctypes.c_size_t()
        self._call("cuDeviceTotalMem_v2", ctypes.byref(memory), device)
        values = [
            (178, "Device id:", str(index)),
            (181, "Name:", name.value.decode(errors="replace")),
            (182, "Total global memory:", str(memory.value)),
        ]
        for line, label, attributes in ATTRIBUTES:
            numbers = [self._number("cuDeviceGetAttribute", number, device) for number in attributes]
            texts = (["No", "Yes"][bool(n)] if attributes[0] in YES_OR_NO else str(n) for n in numbers)
            values.append((line, label, ", ".join(texts)))
        yield from sorted(values)

    def _number(self, function: str, *arguments: int) -> int:
        value = ctypes.c_int()
        self._call(function, ctypes.byref(value), *arguments)
        return value.value

    def _call(self, function: str, *arguments: Any) -> None:
        status = getattr(self._library, function)(*arguments)
        if status:
            raise DeviceError(f"--gpu {self._asked_by}: CUDA's driver answers {function} with error {status}")
