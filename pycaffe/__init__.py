"""`import imae.pycaffe as caffe`: pycaffe's API over imae's Net and Solver.

Python layers say `import caffe`; where no other caffe is imported, that is this package (`install_as_caffe`).
"""

import sys

from imae.layers.registry import layer_types
from imae.layers.utility import python as python_layer
from imae.layers.utility.python import PythonBlob as Blob
from imae.layers.utility.python import PythonLayerBase as Layer
from imae.prototxt import TEST, TRAIN
from imae.pycaffe.mode import set_device, set_mode_cpu, set_mode_gpu, set_random_seed
from imae.pycaffe.net import Net
from imae.pycaffe.solver import (
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    NesterovSolver,
    RMSPropSolver,
    SGDSolver,
    get_solver,
)

layer_type_list = layer_types

__all__ = [
    "TEST", "TRAIN", "Blob", "Layer", "Net", "install_as_caffe", "layer_type_list",
    "AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "RMSPropSolver", "SGDSolver",
    "get_solver", "set_device", "set_mode_cpu", "set_mode_gpu", "set_random_seed",
]  # fmt: skip


def install_as_caffe() -> None:
    """Let `import caffe` find this package, unless a caffe is imported already."""
    sys.modules.setdefault("caffe", sys.modules[__name__])


python_layer.import_caffe_hook = install_as_caffe
