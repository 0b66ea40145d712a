"""An error inside code that is not imae's, of a plugin or of a Python layer, as one line.

An error of imae's own code is a fault of imae, and its traceback is the report of it. An error of such code
is bad input: the line names the plugin, the layer, its type, the method and the place.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from types import FrameType, TracebackType

from imae.files.errors import ImaeError

TRACEBACK = "IMAE_TRACEBACK"  # of the environment: whether an error is printed with its traceback
PYTHON_LAYER = "imae.layers.utility.python"  # the module of the layers of type Python


class UserCodeError(ImaeError):
    """An error inside the code of a plugin or of a Python layer."""


class UserCode(AbstractContextManager["UserCode"]):
    """Raises a UserCodeError instead of an error inside such code.

    others   parts of the messages of errors that are of the system, not of the code
    """

    def __init__(self, others: Collection[str] = ()) -> None:
        self.others = others

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not isinstance(error, Exception) or isinstance(error, ImaeError | MemoryError | BrokenPipeError):
            return
        if any(words in str(error) for words in self.others):
            return
        if fault := _fault(trace):
            message = " ".join(str(error).split())
            raise UserCodeError(
                f"{fault} raised {type(error).__name__}{': ' if message else ''}{message}; mend it there "
                f"({TRACEBACK}=1 in the environment prints the traceback)"
            ) from error


def _fault(trace: TracebackType | None) -> str | None:
    """ "layer 'x' (Xyz): forward of the plugin imae-xyz, line 3 of layer.py,"; None for our own code."""
    if "imae.layers.layer" not in sys.modules:  # no layer has been made
        return None
    frames = list(traceback.walk_tb(trace))
    layer = ""
    for index, (frame, _) in enumerate(frames):
        layer = f"{named}: " if (named := _layer_of(frame)) else layer
        if _is_import(frame):
            inner = [place for place in frames[index + 1 :] if _package(place[0]) != "importlib"]
            return f"{layer}the import of {frame.f_locals['module_name']}{_line(inner)}"
        if owner := _owner(frame, frames[index - 1][0] if index else None):
            inner = [place for place in frames[index:] if _package(place[0]) == _package(frame)]
            return f"{layer}{frame.f_code.co_name} of {owner}{_line(inner)}"
    return None


def _is_import(frame: FrameType) -> bool:
    """Whether a Python layer was about to import its module."""
    return _module(frame) == PYTHON_LAYER and frame.f_code.co_name == "_import"


def _owner(frame: FrameType, caller: FrameType | None) -> str | None:
    """Whose code a frame runs: a plugin, or the class of a Python layer; None if imae's or a library's."""
    from imae.layers.registry import plugin_of_module

    if plugin := plugin_of_module(_module(frame)):
        return f"the plugin {plugin}"
    if caller is not None and _module(caller) == PYTHON_LAYER:
        from imae.layers.utility.python_blobs import PythonLayerBase

        first = _first_argument(frame)
        if isinstance(first, PythonLayerBase):
            return f"{type(first).__module__}.{type(first).__name__}"
    return None


def _layer_of(frame: FrameType) -> str | None:
    """ "layer 'conv1' (Convolution)", if the frame is a layer's method or a pass of its in autograd."""
    from imae.layers.layer import Layer
    from imae.layers.plugin_checks import LAYER
    from imae.prototxt import LayerParameter

    first = _first_argument(frame)
    if isinstance(first, Layer) and {"name", "type"} <= vars(first).keys():
        return f"layer {first.name!r} ({first.type})"
    metadata = getattr(first, "metadata", None)
    if isinstance(metadata, dict) and LAYER in metadata:
        name, layer_type = metadata[LAYER]
        return f"layer {name!r} ({layer_type})"
    if isinstance(param := frame.f_locals.get("param"), LayerParameter):  # of a layer that is being made
        return f"layer {param.name!r} ({param.type})"
    return None


def _first_argument(frame: FrameType) -> object:
    """`self`, `cls`, `ctx` or another first argument of the function that a frame runs."""
    code = frame.f_code
    return frame.f_locals.get(code.co_varnames[0]) if code.co_argcount else None


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _package(frame: FrameType) -> str:
    return _module(frame).partition(".")[0]


def _line(places: Sequence[tuple[FrameType, int]]) -> str:
    """ ", line 3 of imae_xyz/layer.py": where the last of these frames was."""
    if not places:
        return ""
    frame, number = places[-1]
    return f", line {number} of {'/'.join(Path(frame.f_code.co_filename).parts[-2:])},"
