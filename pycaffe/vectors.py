"""The list types of Caffe's C++ interface; BlobVec and RawBlobVec are in imae.layers.utility.python_blobs.

Caffe: python/caffe/_caffe.cpp. Differs: they are Python lists, with all methods of lists.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from imae.pycaffe.net import Net


class LayerVec(list[Any]):
    """The layers of a net."""


class NetVec(list["Net"]):
    """The test nets of a solver."""


class StringVec(list[str]):
    """Names."""


class IntVec(list[int]):
    """Indices of blobs."""


class DtypeVec(list[float]):
    """Loss weights."""


class BoolVec(list[bool]):
    """Which bottoms get a gradient."""
