"""`import imae.pycaffe as caffe`: pycaffe's API over imae's Net and Solver.

    import imae.pycaffe
    imae.pycaffe.install_as_caffe()      # from here on `import caffe` means this package
    import caffe
    from caffe import layers as L, params as P
    from caffe.proto import caffe_pb2

A net with a Python layer calls `install_as_caffe` by itself, because the layer's module says `import caffe`.

Caffe: python/caffe. Differs: what Caffe prints is logged, and visible after `init_log()`; errors are
exceptions.
"""

import sys

if __name__ != "imae.pycaffe":
    raise ImportError(f"import this package as imae.pycaffe, not as {__name__}")

from imae.prototxt import TEST, TRAIN, caffe_pb2
from imae.pycaffe import _caffe, classifier, coord_map, detector, draw, net_spec, proto, pycaffe
from imae.pycaffe import caffe_io as io
from imae.pycaffe._caffe import (
    NCCL,
    AdaDeltaSolver,
    AdaGradSolver,
    AdamSolver,
    Blob,
    Layer,
    NesterovSolver,
    Net,
    RMSPropSolver,
    SGDSolver,
    Timer,
    __version__,
    get_solver,
    has_nccl,
    init_log,
    layer_type_list,
    log,
    set_device,
    set_mode_cpu,
    set_mode_gpu,
    set_multiprocess,
    set_random_seed,
    set_solver_count,
    set_solver_rank,
    solver_count,
    solver_rank,
)
from imae.pycaffe.classifier import Classifier
from imae.pycaffe.detector import Detector
from imae.pycaffe.net_spec import NetSpec, layers, params, to_proto
from imae.pycaffe.solver import AdamWSolver
from imae.pycaffe.visible_names import add_visible_names

__all__ = [
    "TEST", "TRAIN", "Blob", "Layer", "Net", "install_as_caffe", "layer_type_list",
    "AdaDeltaSolver", "AdaGradSolver", "AdamSolver", "NesterovSolver", "RMSPropSolver", "SGDSolver",
    "AdamWSolver", "get_solver", "set_device", "set_mode_cpu", "set_mode_gpu", "set_random_seed",
    "Classifier", "Detector", "io", "draw", "coord_map", "proto",
    "NetSpec", "layers", "params", "to_proto", "net_spec",
    "NCCL", "has_nccl", "solver_count", "set_solver_count", "solver_rank", "set_solver_rank",
    "set_multiprocess",
    "Timer", "init_log", "log", "__version__", "pycaffe",
]  # fmt: skip

# Caffe's modules, under Caffe's names.
_MODULES = {
    "_caffe": _caffe,
    "pycaffe": pycaffe,
    "io": io,
    "net_spec": net_spec,
    "draw": draw,
    "coord_map": coord_map,
    "classifier": classifier,
    "detector": detector,
    "proto": proto,
    "proto.caffe_pb2": caffe_pb2,
}
sys.modules.update({f"{__name__}.{name}": module for name, module in _MODULES.items()})
add_visible_names(sys.modules[__name__], _MODULES)


def install_as_caffe() -> bool:
    """Make `import caffe` and `import caffe.io` find this package, unless another caffe is already imported.

    Return whether they find it. Python layers call this function, as an entry point (pyproject.toml).
    """
    this = sys.modules[__name__]
    if sys.modules.setdefault("caffe", this) is not this:
        return False
    sys.modules.update({f"caffe.{name}": module for name, module in _MODULES.items()})
    return True
