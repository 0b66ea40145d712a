"""Python: a layer that the user has written in Python against pycaffe's interface.

    layer { type: "Python" ... python_param { module: "my_layers" layer: "Affine" param_str: "2.5,-1" } }

    import caffe
    class Affine(caffe.Layer):
        def setup(self, bottom, top): ...                       once; may call self.blobs.add_blob(*shape)
        def reshape(self, bottom, top): ...                     before every forward: top[0].reshape(*dims)
        def forward(self, bottom, top): ...                     top[0].data[...] = f(bottom[0].data)
        def backward(self, top, propagate_down, bottom): ...    bottom[0].diff[...] = ...

bottom, top are lists of `PythonBlob`s. self.phase and self.param_str (also as self.param_str_) are set before
setup; self.blobs are the parameters themselves. What a layer writes into a bottom's data is lost.

The module is imported with the working directory on the path, and a warning is logged: a prototxt with such
a layer runs code. prototxt/python_layers.py can forbid it. An exception from that code is passed on; the
command line makes one line of it (net/user_code.py). A few modules of well-known projects are built in and
not imported (layers/registry.py: register_python_layer).
share_in_parallel has no effect, as every rank is a process of its own.

Parameter diffs add up only if the layer adds to them: self.blobs[i].diff[...] += ..., as in Caffe.

Caffe: python_layer.hpp, _caffe.cpp. Differs: bottom diffs are 0 when backward begins.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import os
import sys
from collections.abc import Callable, Sequence
from importlib.metadata import entry_points
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from imae.files.errors import LayerError
from imae.layers.autograd import apply_for_several
from imae.layers.layer import Layer, Shape
from imae.layers.registry import python_layer_class, register_layer
from imae.layers.run import Run
from imae.layers.utility.python_blobs import PythonBlob, PythonLayerBase, RawBlobVec
from imae.layers.utility.synced_memory import take_back
from imae.prototxt import LayerParameter
from imae.prototxt.python_layers import check_python_layers

logger = logging.getLogger(__name__)

# Entry points: functions that make `import caffe` find a module with Caffe's interface, unless another one is
# imported already. pycaffe, which imports this part, registers itself in this way (pyproject.toml); it is
# imported when the first Python layer is made.
GROUP = "imae.python_layers"


@register_layer("Python")
class Python(Layer):
    makes_input = True  # where it has no bottoms
    is_user_code = True
    blob_names = ()  # only the user knows what they are
    device_and_dtype: Tensor

    @classmethod
    def variant(cls, param: LayerParameter) -> type[Layer]:
        """The built-in layer for modules of well-known projects, which are then not imported."""
        python = param.python_param
        return python_layer_class(python.module, python.layer) or cls

    def __init__(self, param: LayerParameter) -> None:
        super().__init__(param)
        check_python_layers([param])  # a net has checked already, but not a layer built on its own
        python = param.python_param
        for field in ("module", "layer"):
            if not getattr(python, field):
                raise self.error(f"python_param.{field} must be given")
        user_class = self._import(python.module, python.layer)
        self.user_layer: Any = user_class(param)
        self.bottom_blobs = RawBlobVec(PythonBlob() for _ in param.bottom)
        self.top_blobs = RawBlobVec(PythonBlob() for _ in param.top)
        self.register_buffer("device_and_dtype", torch.empty(0), persistent=False)  # the net's

    def use_run(self, run: Run) -> None:
        self.ranks = run.ranks_in(self.phase)

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        if self.ranks.size > 1 and not self.bottom_blobs:
            logger.warning(
                "layer %r: each of %d ranks runs it; by RANK in the environment its code can tell them apart",
                self.name,
                self.ranks.size,
            )
        for blob, shape in zip(self.bottom_blobs, bottom_shapes, strict=True):
            blob.reshape(*shape)
        self._method("setup")(self.bottom_blobs, self.top_blobs)
        for name in ("reshape", "forward"):
            self._method(name)  # fail now rather than at the first pass
        for index, blob in enumerate(self.user_layer.blobs):
            self.blobs.append(nn.Parameter(torch.from_numpy(blob.data)))
            self.blob_shapes.append(blob.shape)
            blob.bind(self, index)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        for blob, shape in zip(self.bottom_blobs, bottom_shapes, strict=True):
            blob.reshape(*shape)
        self._method("reshape")(self.bottom_blobs, self.top_blobs)
        if len(self.user_layer.blobs) != len(self.blobs):
            raise self.error("add_blob was called too late, the net has its parameters; call it in setup")
        return [blob.shape for blob in self.top_blobs]

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return []  # the forward pass calls the user's reshape, as Caffe does

    @property
    def capturable(self) -> bool:
        return False

    @property
    def repeatable(self) -> bool:
        return False

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        parameters = [self.blob(index) for index in range(len(self.blobs))]
        return apply_for_several(_Passes, self, *bottoms, *parameters)

    def forward_pass(self, bottoms: Sequence[Tensor]) -> tuple[Tensor, ...]:
        """Run the user's forward."""
        for blob in (*self.bottom_blobs, *self.top_blobs):
            blob.cast(self.device_and_dtype.cpu().numpy().dtype)
        for blob, tensor in zip(self.bottom_blobs, bottoms, strict=True):
            blob.load(tensor)
        self._method("reshape")(self.bottom_blobs, self.top_blobs)
        self._method("forward")(self.bottom_blobs, self.top_blobs)
        take_back(self.blobs)
        like = bottoms[0] if bottoms else self.device_and_dtype
        return tuple(torch.tensor(blob.data).to(like) for blob in self.top_blobs)

    def backward_pass(
        self, top_diffs: Sequence[Tensor], propagate_down: Sequence[bool]
    ) -> list[NDArray[np.float32]]:
        """Run the user's backward on the blobs as the forward pass left them; returns the bottom diffs."""
        for blob in self.bottom_blobs:
            blob.diff[...] = 0
        for blob, diff in zip(self.top_blobs, top_diffs, strict=True):
            blob.diff[...] = diff.cpu().numpy()
        self._method("backward")(self.top_blobs, list(propagate_down), self.bottom_blobs)
        take_back(self.blobs)
        return [blob.diff for blob in self.bottom_blobs]

    def _method(self, name: str) -> Callable[..., object]:
        method: Callable[..., object] | None = getattr(self.user_layer, name, None)
        if not callable(method):
            python = self.param.python_param
            raise self.error(f"class {python.module}.{python.layer} has no method {name!r}")
        return method

    def _import(self, module_name: str, class_name: str) -> Callable[[LayerParameter], Any]:
        if "" in module_name.split(".") or "\0" in module_name:
            raise self.error(
                f"python_param.module {module_name!r} is no module's name; write it as `import` has it"
            )
        make_caffe_importable()
        if os.getcwd() not in sys.path:  # permanently: the user's code may import more when it runs
            sys.path.append(os.getcwd())
        if module_name not in sys.modules:
            importlib.invalidate_caches()
            package = importlib.util.find_spec(module_name.partition(".")[0])
            logger.warning(
                "layer %r: the prototxt makes this process import and run code: module %s, %s",
                self.name, module_name, package.origin if package else "which is not found",
            )  # fmt: skip
        try:
            module = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if not error.name or not f"{module_name}.".startswith(f"{error.name}."):
                raise  # the module exists, but not one that it imports
            raise self.error(
                f"{error.msg}; it must lie in the working directory, {os.getcwd()}, or on PYTHONPATH"
            ) from error
        user_class = getattr(module, class_name, None)
        if not isinstance(user_class, type):
            raise self.error(f"module {module_name} has no class {class_name!r}; mend python_param.layer")
        if not issubclass(user_class, PythonLayerBase):
            raise self.error(
                f"{module_name}.{class_name} is not a caffe.Layer of imae.pycaffe; `import caffe` finds "
                f"{getattr(sys.modules.get('caffe'), '__file__', 'nothing')}"
            )
        return user_class


class _Passes(torch.autograd.Function):
    """The parameters are arguments so that autograd tracks them; the user's backward writes their diffs."""

    @staticmethod
    def forward(ctx: Any, layer: Python, *tensors: Tensor) -> tuple[Tensor, ...]:
        bottoms = tensors[: len(layer.bottom_blobs)]
        ctx.layer, ctx.bottoms = layer, [(bottom.device, bottom.dtype) for bottom in bottoms]
        return layer.forward_pass(bottoms)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *top_diffs: Tensor) -> tuple[Tensor | None, ...]:
        needed = ctx.needs_input_grad[1 : 1 + len(ctx.bottoms)]
        diffs = [
            torch.tensor(diff).to(device, dtype) if is_needed else None
            for diff, is_needed, (device, dtype) in zip(
                ctx.layer.backward_pass(top_diffs, needed), needed, ctx.bottoms, strict=True
            )
        ]
        return None, *diffs, *[None] * len(ctx.layer.blobs)


def make_caffe_importable() -> None:
    """Make `import caffe` in users' modules find the entry points' module; LayerError if there is none."""
    entries = entry_points(group=GROUP)
    if not entries and "caffe" not in sys.modules:
        raise LayerError(
            f"Python layers import caffe, and need an entry point in the group {GROUP}; there is none: "
            "install imae again (pip install -e .)"
        )
    for entry in entries:
        entry.load()()
