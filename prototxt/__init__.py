"""The language: Caffe's text and binary files as protobuf messages, read, upgraded, filtered and written.

    net = read_net("train_val.prototxt")               # NetParameter, of any age
    train = filter_net(net, TRAIN)

Names are loaded on first use, so that the modules of this package that need no message classes can be
imported even where a broken schema plugin prevents those classes from being made.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if __name__ != "imae.prototxt":
    raise ImportError(f"import this package as imae.prototxt, not as {__name__}")

if TYPE_CHECKING:
    from imae.prototxt.caffe_pb2 import (
        TEST,
        TRAIN,
        BlobProto,
        BlobProtoVector,
        BlobShape,
        Datum,
        FillerParameter,
        LayerParameter,
        NetParameter,
        NetState,
        NetStateRule,
        ParamSpec,
        Phase,
        PoolingParameter,
        SolverParameter,
        SolverState,
        TransformationParameter,
        V0LayerParameter,
        V1LayerParameter,
    )
    from imae.prototxt.state import filter_by_state, filter_net
    from imae.prototxt.text import (
        parse_net,
        parse_solver,
        parse_text,
        read_binary,
        read_net,
        read_net_binary,
        read_solver,
        read_text,
        to_text,
        write_text,
    )
    from imae.prototxt.upgrade import upgrade_net, upgrade_solver

__all__ = [
    "TEST", "TRAIN", "Phase",
    "NetParameter", "NetState", "NetStateRule", "LayerParameter", "ParamSpec", "FillerParameter",
    "PoolingParameter", "TransformationParameter", "V0LayerParameter", "V1LayerParameter",
    "SolverParameter", "SolverState", "BlobProto", "BlobProtoVector", "BlobShape", "Datum",
    "read_net", "parse_net", "read_solver", "parse_solver", "read_net_binary",
    "read_text", "parse_text", "read_binary", "to_text", "write_text",
    "upgrade_net", "upgrade_solver", "filter_net", "filter_by_state",
]  # fmt: skip

# The modules that are searched for a name.
_MODULES = ("caffe_pb2", "text", "upgrade", "state")


def __getattr__(name: str) -> Any:
    for module in _MODULES if name in __all__ else ():
        submodule = import_module(f"{__name__}.{module}")
        if hasattr(submodule, name):
            return globals().setdefault(name, getattr(submodule, name))
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
