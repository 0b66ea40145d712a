"""caffe.pycaffe: in Caffe this module adds methods to the C++ classes; here the classes have them already."""

from imae.pycaffe._caffe import (
    NCCL,
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    Net,
    RMSPropSolver,
    SGDSolver,
    Timer,
)

__all__ = [
    "NCCL", "AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "Net", "RMSPropSolver",
    "SGDSolver", "Timer",
]  # fmt: skip
