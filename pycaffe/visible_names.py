"""Names that Caffe's Python modules have only because they import them. Scripts use them nevertheless.

    model = caffe.io.caffe_pb2.NetParameter()

Names from packages that imae does not need (scikit-image, SciPy, six, pydot) are imported at the first
access, if the package is installed.

Caffe: the imports of python/caffe/*.py.
"""

from __future__ import annotations
import __future__

import importlib
import itertools
import os
import sys
from collections import OrderedDict
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any

import numpy as np
from google import protobuf

from imae.prototxt import caffe_pb2

# The names that each module imports, by the module's name.
IMPORTED: dict[str, dict[str, Any]] = {
    "io": {"caffe_pb2": caffe_pb2, "np": np, "sys": sys},
    "net_spec": {"caffe_pb2": caffe_pb2, "protobuf": protobuf},
    "pycaffe": {"OrderedDict": OrderedDict, "izip_longest": itertools.zip_longest, "np": np},
    "classifier": {"np": np},
    "detector": {"np": np, "os": os},
    "draw": {"caffe_pb2": caffe_pb2},
    "coord_map": {"division": __future__.division, "np": np},
}
# The same for optional packages: for each name the module that provides it.
FROM_PACKAGES = {
    "io": {"skimage": "skimage.io", "resize": "skimage.transform", "zoom": "scipy.ndimage"},
    "net_spec": {"six": "six"},
    "pycaffe": {"six": "six"},
    "draw": {"pydot": "pydot"},
}
IMPORT_CAFFE = ("pycaffe", "classifier", "detector")  # modules that import the package itself, as `caffe`


def add_visible_names(package: ModuleType, modules: Mapping[str, ModuleType]) -> None:
    """Add the names to `modules`, a mapping from Caffe's module names."""
    for name, imported in IMPORTED.items():
        vars(modules[name]).update(imported)
    for name in IMPORT_CAFFE:
        vars(modules[name])["caffe"] = package
    for name, providers in FROM_PACKAGES.items():
        vars(modules[name])["__getattr__"] = _importing_getattr(f"caffe.{name}", providers)


def _importing_getattr(module: str, providers: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` for `module` that imports the names of `providers` when they are accessed."""

    def get(name: str) -> Any:
        if name not in providers:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            provider = importlib.import_module(providers[name])
        except ModuleNotFoundError as error:
            raise AttributeError(
                f"{module}.{name} comes from {providers[name]}, which is not installed: {error}"
            ) from error
        package = providers[name].partition(".")[0]
        return sys.modules[package] if name == package else getattr(provider, name)

    return get
