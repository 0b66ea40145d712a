"""Products of bfloat16 on the CPU: which processors have them, and what takes their place where none are.

A product of two numbers of bfloat16 is exact in single precision, in which AMX and AVX-512 BF16 add products
up. So bottoms and weights are rounded to bfloat16, multiplied and added up by the kernels for single
precision, and the top is rounded: up to the order of the sums these are the numbers of a processor with such
products, and so are the gradients. torch's own operations for other processors take several times as long.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import cache, partial

import torch
from torch import Tensor, nn
from torch.func import functional_call

from imae.layers.common.inner_product import InnerProduct
from imae.layers.layer import Layer
from imae.layers.vision.conv import BaseConvolution

StepRun = Callable[..., Tensor | tuple[Tensor, ...]]

X86 = ("x86_64", "AMD64", "i686")
# Asked of a processor of x86, besides oneDNN: oneDNN also has kernels that only imitate the products.
_X86_PRODUCTS = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")


@cache
def onednn_has_bfloat16() -> bool:
    """Whether oneDNN's kernels for bfloat16 run on this processor; else torch has only very slow ones."""
    return _ask_onednn()


def _ask_onednn() -> bool:
    try:  # It is not part of torch's documented interface.
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    except (AttributeError, RuntimeError):  # another torch: it has none, or was built without oneDNN
        return False


def product_type(dtype: torch.dtype) -> torch.dtype:
    """The type in which the fast plan computes products on the CPU, of blobs of this type."""
    return torch.float32 if dtype == torch.bfloat16 and not onednn_has_bfloat16() else dtype


@cache
def multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for products of bfloat16, and oneDNN uses them."""
    if not onednn_has_bfloat16():
        return False
    if platform.machine() not in X86:
        return True
    asked = (getattr(torch.cpu, name, None) for name in _X86_PRODUCTS)
    return any(function is not None and function() for function in asked)


def slow_bfloat16() -> str:
    """A line for the log where bfloat16 is slower than single precision; "" where it need not be."""
    if multiplies_bfloat16():
        return ""
    if onednn_has_bfloat16():
        how = "oneDNN imitates them"
    else:
        how = "convolutions and inner products are computed in fp32 from rounded numbers"
    return (
        f"bf16 is SLOWER than fp32 here: this processor has no products of bfloat16 (AMX, AVX-512 BF16), so "
        f"{how}. Leave bf16 out, unless its numbers are what you want"
    )


class SingleProducts:
    """A step of a net in bfloat16: a layer of products, by the kernels for single precision.

    layer   a convolution or an inner product
    run     computes its tops from bottoms in single precision: the layer, or what replaces it
    """

    def __init__(self, layer: Layer, run: StepRun) -> None:
        self._module = _Module(layer, run)
        self._names = [name for name, _ in self._module.named_parameters(remove_duplicate=False)]

    @staticmethod
    def supports(layer: Layer) -> bool:
        """Whether the layer is of this kind, and changes none of its blobs."""
        if isinstance(layer, InnerProduct):
            return not layer.normalize
        return isinstance(layer, BaseConvolution) and not layer.is_user_code

    def __call__(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        blobs = {name: _rounded(self._module.get_parameter(name)) for name in self._names}
        rounded = tuple(map(_rounded, bottoms))
        # What autograd saves is bottoms and weights, which bfloat16 holds exactly, in half of the memory.
        saved = torch.autograd.graph.saved_tensors_hooks(Tensor.bfloat16, Tensor.float)
        with torch.autocast("cpu", enabled=False), saved:
            tops = functional_call(self._module, blobs, rounded)
        return tops.bfloat16() if isinstance(tops, Tensor) else tuple(top.bfloat16() for top in tops)


class _Module(nn.Module):
    """So that `functional_call` can give the layer other blobs for the time of a call."""

    def __init__(self, layer: Layer, run: StepRun) -> None:
        super().__init__()
        self.layer = layer
        self.run = partial(run)  # nn.Module would take the layer itself for another child

    def forward(self, *bottoms: Tensor) -> Tensor | tuple[Tensor, ...]:
        return self.run(*bottoms)


def _rounded(x: Tensor) -> Tensor:
    """The nearest numbers of bfloat16, in single precision."""
    return x.bfloat16().float()
