"""pycaffe's functions for several solvers. Only one solver is supported, as in a Caffe built without NCCL."""

from __future__ import annotations

from typing import NoReturn

from imae.files.errors import DeviceError

ONE_SOLVER = "one solver computes here, and there is no NCCL; train on one device and leave this out"


class NCCL:
    """Caffe's link between solvers on several GPUs. It is not supported: every call raises a DeviceError."""

    def __init__(self, solver: object, uid: str | bytes) -> None:
        self.new_uid()

    @staticmethod
    def new_uid() -> NoReturn:
        """DeviceError."""
        raise DeviceError(f"NCCL: {ONE_SOLVER}")


def has_nccl() -> bool:
    """False."""
    return False


def solver_count() -> int:
    """1."""
    return 1


def set_solver_count(count: int) -> None:
    """Accepts 1; DeviceError for more."""
    if count != 1:
        raise DeviceError(f"set_solver_count({count}): {ONE_SOLVER}")


def solver_rank() -> int:
    """0."""
    return 0


def set_solver_rank(rank: int) -> None:
    """Accepts 0; DeviceError for others."""
    if rank != 0:
        raise DeviceError(f"set_solver_rank({rank}): {ONE_SOLVER}")


def set_multiprocess(multiprocess: bool) -> None:
    """Accepted without effect, because there is only one solver."""
