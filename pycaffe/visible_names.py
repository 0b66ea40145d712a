"""Names that Caffe's Python modules have only because they import them; scripts reach them all the same.

    model = caffe.io.caffe_pb2.NetParameter()

Those of packages that this one does not need (scikit-image, SciPy, six, pydot) are found when they are asked
for, if the package is installed.

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

# By the module's name: what it imports.
IMPORTED: dict[str, dict[str, Any]] = {
    "io": {"caffe_pb2": caffe_pb2, "np": np, "sys": sys},
    "net_spec": {"caffe_pb2": caffe_pb2, "protobuf": protobuf},
    "pycaffe": {"OrderedDict": OrderedDict, "izip_longest": itertools.zip_longest, "np": np},
    "classifier": {"np": np},
    "detector": {"np": np, "os": os},
    "draw": {"caffe_pb2": caffe_pb2},
    "coord_map": {"division": __future__.division, "np": np},
}
# The same of other packages: the module that brings the name.
FROM_PACKAGES = {
    "io": {"skimage": "skimage.io", "resize": "skimage.transform", "zoom": "scipy.ndimage"},
    "net_spec": {"six": "six"},
    "pycaffe": {"six": "six"},
    "draw": {"pydot": "pydot"},
}
KNOWS_THE_PACKAGE = ("pycaffe", "classifier", "detector")  # as `caffe`


def add_visible_names(package: ModuleType, modules: Mapping[str, ModuleType]) -> None:
    """Put them into the modules, which are given by Caffe's names for them."""
    for name, found in IMPORTED.items():
        vars(modules[name]).update(found)
    for name in KNOWS_THE_PACKAGE:
        vars(modules[name])["caffe"] = package
    for name, places in FROM_PACKAGES.items():
        vars(modules[name])["__getattr__"] = _of_packages(f"caffe.{name}", places)


def _of_packages(module: str, places: Mapping[str, str]) -> Callable[[str], Any]:
    """A module's `__getattr__`."""

    def get(name: str) -> Any:
        if name not in places:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        try:
            found = importlib.import_module(places[name])
        except ModuleNotFoundError as error:
            raise AttributeError(
                f"{module}.{name} comes from {places[name]}, which is not installed: {error}"
            ) from error
        package = places[name].partition(".")[0]
        return sys.modules[package] if name == package else getattr(found, name)

    return get
