"""caffe._caffe: the names that Caffe's C++ library exports to Python.

    from caffe._caffe import RawBlobVec

Caffe: python/caffe/_caffe.cpp.
"""

from imae.layers.registry import layer_types as layer_type_list
from imae.layers.utility.python_blobs import BlobVec, RawBlobVec
from imae.layers.utility.python_blobs import PythonBlob as Blob
from imae.layers.utility.python_blobs import PythonLayerBase as Layer
from imae.prototxt import LayerParameter, SolverParameter
from imae.pycaffe.mode import init_log, log, set_device, set_mode_cpu, set_mode_gpu, set_random_seed
from imae.pycaffe.net import Net
from imae.pycaffe.parallel import (
    NCCL,
    has_nccl,
    set_multiprocess,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from imae.pycaffe.solver import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    Solver,
    get_solver,
)
from imae.pycaffe.timer import Timer
from imae.pycaffe.vectors import BoolVec, DtypeVec, IntVec, LayerVec, NetVec, StringVec

__version__ = "1.0.0"  # the version of Caffe whose API this is

__all__ = [
    "Net", "Blob", "Layer", "LayerParameter", "SolverParameter", "Timer", "__version__",
    "Solver", "SGDSolver", "NesterovSolver", "AdaGradSolver", "RMSPropSolver", "AdaDeltaSolver", "AdamSolver",
    "get_solver", "layer_type_list",
    "BlobVec", "RawBlobVec", "LayerVec", "StringVec", "IntVec", "DtypeVec", "NetVec", "BoolVec",
    "init_log", "log", "set_device", "set_mode_cpu", "set_mode_gpu", "set_random_seed",
    "NCCL", "has_nccl", "solver_count", "set_solver_count", "solver_rank", "set_solver_rank",
    "set_multiprocess",
]  # fmt: skip
