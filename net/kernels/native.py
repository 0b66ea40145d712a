"""Kernels in C for the CPU (kernels.c), built when the package is installed and there is a C compiler.

Without them torch's operations do the same work: more slowly, and the gradient of a convolution's weights
less exactly. `available` tells whether they were built, `chosen` which of them this process uses: by default
the fastest on this processor. With AVX-512 there are three ways to convolve: oneDNN's, or our kernels with
vectors of 8 or of 16 numbers, which give the same bits. Which one is the fastest depends on the processor,
so there they are timed, once (fastest.py). Two environment variables choose others, to try what another
processor uses:

    IMAE_KERNELS       auto (the fastest), none, batch_norm (convolutions by torch), all (also where torch is
                       faster)
    IMAE_KERNELS_ISA   the instruction set of the kernels: auto (the newest that the processor has; for
                       convolutions the fastest), default (of any processor; none for convolutions), avx2,
                       avx512f. With a given one nothing is timed
"""

from __future__ import annotations

import ctypes
import math
import os
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imae.files.errors import DeviceError
from imae.net.kernels import fastest
from imae.net.kernels.norm_call import NormCall
from imae.net.kernels.sources import sources_hash

CHANNELS_AT_ONCE = 8  # outputs, and for `winograd` channels, come in multiples of it
TILE_CHANNELS = 16  # outputs and channels for the kernel that uses AMX's tiles, likewise
PRODUCTS_OF_A_THREAD = 100_000  # a pass without gradients uses another thread only for as many
KERNELS = ("auto", "none", "batch_norm", "all")  # values of IMAE_KERNELS
ISAS = ("default", "avx2", "avx512f")  # of IMAE_KERNELS_ISA, besides auto; from the oldest to the newest
VECTORS = {"avx2": 8, "avx512f": 16}  # numbers at once in the convolutions' kernels, likewise

_ADDRESS, _SIZE, _NUMBER, _INT = ctypes.c_void_p, ctypes.c_int64, ctypes.c_double, ctypes.c_int
_FORWARD = [*[_ADDRESS, _SIZE, _SIZE], *[_ADDRESS] * 3, _NUMBER, _INT, _INT, *[_ADDRESS] * 4]
_BY_STATISTICS = [*[_ADDRESS, _SIZE, _SIZE], *[_ADDRESS] * 5, _NUMBER, _INT, _INT, _ADDRESS]
_BACKWARD = [*[_ADDRESS] * 3, _SIZE, _SIZE, *[_ADDRESS] * 4, _INT, _INT, *[_ADDRESS] * 4]
_WEIGHT_GRADIENT = [_ADDRESS, _ADDRESS, _ADDRESS, _INT, _ADDRESS]
_ARGUMENTS: dict[str, list[Any]] = {
    "batch_norm": _FORWARD,
    "batch_norm_by_statistics": _BY_STATISTICS,
    "batch_norm_gradients": _BACKWARD,
    "conv_weight": _WEIGHT_GRADIENT,
    "conv_weight_bfloat16": _WEIGHT_GRADIENT,
    "depthwise": [*[_ADDRESS] * 5, _INT, _ADDRESS],
    "direct": [*[_ADDRESS] * 6, _INT, _ADDRESS],
    "pixels": [*[_ADDRESS] * 3, ctypes.c_float, _ADDRESS],
    "lrn": [*[_ADDRESS] * 2, *[_SIZE] * 3, _NUMBER, _NUMBER, _INT, _ADDRESS],
    "sgd": [_SIZE, *[_ADDRESS] * 4, *[_NUMBER] * 3, _INT],
    "suppress": [_ADDRESS, _SIZE, ctypes.c_float, _ADDRESS],
    "winograd": [_ADDRESS, _ADDRESS, _ADDRESS, _INT, _ADDRESS, _ADDRESS, _INT, _ADDRESS],
    "winograd_by_transformed": [*[_ADDRESS] * 4, _INT, _ADDRESS, _INT, _ADDRESS],
    "winograd_transform": [_ADDRESS, _ADDRESS, _INT, _ADDRESS, _INT, _ADDRESS],
    "winograd_weight": _WEIGHT_GRADIENT,
}
_TYPES = {torch.float32: "float", torch.float64: "double", torch.bfloat16: "bfloat16"}  # of blobs


@cache
def _library() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(str(Path(__file__).with_name("_kernels.so")))
        library.imae_sources_hash.restype = ctypes.c_char_p
        built_from: bytes = library.imae_sources_hash()
    except (OSError, AttributeError):  # not built, for another machine, or before there was a hash
        return None
    return library if built_from.decode() == sources_hash() else None


def available() -> bool:
    """Whether the kernels were built, from the current sources."""
    return _library() is not None


class Chosen(NamedTuple):
    """Which kernels are used."""

    batch_norm: bool
    convolutions: str  # the instruction set of the convolutions' kernels; none; or fastest
    isa: str  # the instruction set of BatchNorm's kernels


def chosen() -> Chosen:
    """The kernels for this processor, or those that IMAE_KERNELS and IMAE_KERNELS_ISA ask for.

    DeviceError for an unknown value, or kernels that were not built or need another processor.
    """
    asked = (os.environ.get(name) or "auto" for name in ("IMAE_KERNELS", "IMAE_KERNELS_ISA"))
    return _choose(*asked, _library())


@cache
def _choose(kernels: str, isa: str, library: ctypes.CDLL | None) -> Chosen:
    if kernels not in KERNELS:
        raise DeviceError(f"IMAE_KERNELS must be one of {', '.join(KERNELS)}; got {kernels!r}")
    if isa not in ("auto", *ISAS):
        raise DeviceError(f"IMAE_KERNELS_ISA must be one of auto, {', '.join(ISAS)}; got {isa!r}")
    if kernels == "none":
        return Chosen(False, "none", "default")
    if library is None:
        asked = [f"IMAE_KERNELS={kernels}"] * (kernels != "auto") + [f"IMAE_KERNELS_ISA={isa}"] * (
            isa != "auto"
        )
        if asked:
            raise DeviceError(
                f"{' '.join(asked)}: the kernels in C were not built; install imae again where there is a C "
                f"compiler, or use auto"
            )
        return Chosen(False, "none", "default")
    isas = supported_isas()
    if isa not in ("auto", *isas):
        raise DeviceError(
            f"IMAE_KERNELS_ISA={isa}: this processor has none of it; use auto, {', '.join(isas)}"
        )
    timed = kernels == isa == "auto"
    isa = isas[-1] if isa == "auto" else isa
    of_convolutions = [] if isa == "default" else _convolution_isas()
    if kernels == "all" and not of_convolutions:
        raise DeviceError(
            f"IMAE_KERNELS=all: the convolutions' kernels need AVX2 and FMA, and IMAE_KERNELS_ISA is {isa}; "
            f"use IMAE_KERNELS=batch_norm"
        )
    if kernels == "batch_norm" or not of_convolutions:
        return Chosen(True, "none", isa)
    if timed and len(of_convolutions) > 1:
        return Chosen(True, "fastest", isa)
    return Chosen(True, isa if isa in of_convolutions else of_convolutions[-1], isa)


def supported_isas() -> list[str]:
    """The values of IMAE_KERNELS_ISA, besides auto, with which this processor can run the kernels."""
    library = _library()
    if library is None:
        return []
    return [isa for isa in ISAS if isa == "default" or getattr(library, f"imae_has_{isa}")()]


def _convolution_isas() -> list[str]:
    """The instruction sets with which this processor can run the convolutions' kernels."""
    library = _library()
    return [isa for isa in supported_isas() if isa in VECTORS and library and library.imae_has_fma()]


class Convolutions(NamedTuple):
    """The instruction sets of the convolutions' kernels that are used; None: torch's convolution."""

    winograd: str | None
    winograd_weight: str | None
    conv_weight: str | None
    timed: str = ""  # how the fastest ones are known


def convolutions() -> Convolutions:
    """What `chosen().convolutions` means on this processor; it may be timed at the first call."""
    return _convolutions(chosen().convolutions, _library())


@cache
def _convolutions(isa: str, library: ctypes.CDLL | None) -> Convolutions:
    if isa == "none":
        return Convolutions(None, None, None)
    if isa != "fastest":
        return Convolutions(isa, isa, isa)
    ways, note = fastest.fastest(convolution_ways())
    isas = {kernel: None if way == fastest.ONEDNN else way for kernel, way in ways.items()}
    return Convolutions(isas["winograd"], isas["winograd_weight"], isas["conv_weight"], note)


def convolution_ways() -> dict[str, fastest.Way]:
    """All ways to convolve on this processor, by name: oneDNN's, and the kernels of each instruction set."""

    def way(isa: str) -> fastest.Way:
        def weight_gradient(x: Tensor, weight: Tensor, top_diff: Tensor, stride: int) -> Tensor:
            if stride == 1 and weight.shape[1] % CHANNELS_AT_ONCE == 0:
                return winograd_weight_gradient(x, top_diff, weight.shape, (1, 1), isa)
            return conv_weight_gradient(x, top_diff, weight.shape, (stride, stride), (1, 1), isa)

        return fastest.Way(
            lambda x, weight: winograd(x, weight, None, (1, 1), isa=isa),
            lambda x, weight, top_diff: winograd_bottom_gradient(top_diff, weight, (1, 1), isa),
            weight_gradient,
        )

    return {fastest.ONEDNN: fastest.onednn(), **{isa: way(isa) for isa in _convolution_isas()}}


def description(dtype: torch.dtype) -> str:
    """The log line that names the kernels which a run in this type uses."""
    if not available():
        return "The kernels in C were not built (is there a C compiler?); training is slower without them"
    use = chosen()
    names = []
    if use.batch_norm and dtype in _TYPES:
        names += [f"BatchNorm ({use.isa})", "LRN and the update of SGD"]
    if dtype == torch.bfloat16 and uses_tiles():
        names.append("the gradient of a convolution's weights (AMX)")
    if dtype != torch.float32:
        return f"Kernels in C: {', '.join(names) or 'none'}"
    of_convolutions = convolutions()
    names += [
        f"{name} ({isa})"
        for name, isa in (
            ("the gradient of a convolution's weights", of_convolutions.conv_weight),
            ("Winograd's convolution", of_convolutions.winograd),
            ("Winograd's gradient of the weights", of_convolutions.winograd_weight),
        )
        if isa
    ]
    timed = f"; the fastest of {', '.join(convolution_ways())}, {of_convolutions.timed}"
    return f"Kernels in C: {', '.join(names) or 'none'}{timed if of_convolutions.timed else ''}"


def batch_norm_supports(*blobs: Tensor | None, values: Sequence[Tensor | None] = ()) -> bool:
    """Whether BatchNorm's kernels are used, and support these tensors: on the CPU, all of one type.

    values   statistics and factors of the channels; where blobs are in bfloat16, these are in float
    """
    return (
        _same_float_type_on_cpu(*blobs)
        and all(_are_values_of(blobs[0], value) for value in values if value is not None)
        and available()
        and chosen().batch_norm
    )


def value_type(dtype: torch.dtype) -> torch.dtype:
    """The type of statistics, factors and their gradients, for blobs of this type."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def _are_values_of(blob: Tensor | None, value: Tensor) -> bool:
    return blob is not None and value.is_cpu and value.dtype == value_type(blob.dtype)


def _same_float_type_on_cpu(*tensors: Tensor | None) -> bool:
    """Whether the tensors are on the CPU, and all float, all double or all bfloat16."""
    dtype = None
    for tensor in tensors:
        if tensor is not None:
            dtype = dtype or tensor.dtype
            if tensor.dtype != dtype or not tensor.is_cpu:
                return False
    return dtype in _TYPES


def requires_grad_any(*tensors: Tensor | None) -> bool:
    """Whether autograd will compute a gradient for at least one of these tensors."""
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def batch_norm(call: NormCall) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The top of NormCall's formula, and the batch's mean, unbiased variance and factor, (C) each.

        factor = 1 / sqrt(biased variance + eps)

    x, shortcut, top   (N, C, H, W) with the channels last in memory
    """
    x, weight, bias, eps, relu, shortcut = call
    channels, top = x.shape[1], torch.empty_like(x)
    _check_layout(x, x if shortcut is None else shortcut, x.shape, weight, bias)
    mean, variance, factor = (_new_values(x) for _ in range(3))
    failed = _kernel("batch_norm", x.dtype)(
        x.data_ptr(), x.numel() // channels, channels, *map(_address, (weight, bias, shortcut)),
        eps, relu, torch.get_num_threads(), *map(_address, (top, mean, variance, factor)),
    )  # fmt: skip
    if failed:
        raise MemoryError
    return top, mean, variance, factor


def batch_norm_by_statistics(call: NormCall, mean: Tensor, variance: Tensor) -> Tensor:
    """The top as in `batch_norm`, by a given mean and variance, (C) each."""
    x, weight, bias, eps, relu, shortcut = call
    channels, top = x.shape[1], torch.empty_like(x)
    _check_layout(x, x if shortcut is None else shortcut, x.shape, weight, bias, mean, variance)
    failed = _kernel("batch_norm_by_statistics", x.dtype)(
        x.data_ptr(), x.numel() // channels, channels,
        *map(_address, (weight, bias, shortcut, mean, variance)),
        eps, relu, torch.get_num_threads(), top.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError
    return top


def batch_norm_gradients(
    call: NormCall, top: Tensor | None, top_diff: Tensor, mean: Tensor, factor: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The gradients of x, weight, bias and shortcut in a call of `batch_norm`; call.shortcut is not read.

    top            returned by `batch_norm`, if the call has a shortcut and a ReLU; else None
    mean, factor   returned by `batch_norm`
    """
    x, weight, bias, _, relu, _ = call
    channels, diff = x.shape[1], torch.empty_like(x)
    for blob in (top_diff, x if top is None else top):
        _check_layout(x, blob, x.shape, weight, bias, mean, factor)
    masked = None if top is None else torch.empty_like(x)
    weight_diff, bias_diff = _new_values(x), _new_values(x)
    failed = _kernel("batch_norm_gradients", x.dtype)(
        *map(_address, (x, top, top_diff)), x.numel() // channels, channels,
        *map(_address, (weight, bias, mean, factor)), relu, torch.get_num_threads(),
        *map(_address, (masked, diff, weight_diff, bias_diff)),
    )  # fmt: skip
    if failed:
        raise MemoryError
    return diff, weight_diff, bias_diff, top_diff if masked is None else masked


def _new_values(x: Tensor) -> Tensor:
    """Memory for a value of each channel."""
    return x.new_empty(x.shape[1], dtype=value_type(x.dtype))


def lrn_supports(x: Tensor) -> bool:
    """Whether LRN's kernel is used, and supports this bottom: on the CPU, channels last in memory."""
    return (
        batch_norm_supports(x)
        and x.dim() == 4
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def lrn(x: Tensor, size: int, alpha: float, k: float, top_diff: Tensor | None = None) -> Tensor:
    """LRN across channels with beta 3/4: the top; with a top_diff the bottom's gradient.

    x, top_diff   (N, C, H, W) with the channels last in memory
    """
    result, channels = torch.empty_like(x), x.shape[1]
    _check_layout(x, x if top_diff is None else top_diff, x.shape)
    if size < 1 or size % 2 == 0:
        raise ValueError(f"no kernel for {size} channels around each")
    failed = _kernel("lrn", x.dtype)(
        x.data_ptr(), _address(top_diff), x.numel() // channels, channels, size, alpha, k,
        torch.get_num_threads(), result.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError
    return result


def sgd_supports(weights: Sequence[Tensor], diffs: Sequence[Tensor], histories: Sequence[Tensor]) -> bool:
    """Whether SGD's kernel is used, and supports these: on the CPU, of one type, the same order in memory."""
    return (
        bool(weights)
        and weights[0].dtype != torch.bfloat16
        and batch_norm_supports(*weights, *diffs, *histories)
        and all(map(_same_order, weights, diffs, histories))
    )


def _same_order(weight: Tensor, diff: Tensor, history: Tensor) -> bool:
    """Whether number i in the memory of the weight belongs to number i in the others'."""
    if not weight.shape == diff.shape == history.shape:
        return False
    if weight.stride() == diff.stride() == history.stride():  # mostly so, and it is asked for in each update
        return weight.is_contiguous() or weight.is_contiguous(memory_format=torch.channels_last)
    return _both_in_order(weight, diff) and _both_in_order(weight, history)


def _both_in_order(a: Tensor, b: Tensor) -> bool:
    if a.is_contiguous():
        return b.is_contiguous()
    order = torch.channels_last
    return a.dim() == 4 and a.is_contiguous(memory_format=order) and b.is_contiguous(memory_format=order)


def sgd(
    weights: Sequence[Tensor],
    diffs: Sequence[Tensor],
    histories: Sequence[Tensor],
    decay: float,
    momentum: float,
    rate: float,
) -> None:
    """Change the tensors in-place, those for which `sgd_supports` holds:

    diff <- rate (diff + decay weight) + momentum history;  history <- diff;  weight <- weight - diff
    """
    if not sgd_supports(weights, diffs, histories):
        raise ValueError("no kernel for these tensors")
    count = len(weights)
    sizes = _int64_array([weight.numel() for weight in weights])
    addresses = [
        (ctypes.c_void_p * count)(*(tensor.data_ptr() for tensor in tensors))
        for tensors in (weights, diffs, histories)
    ]
    _kernel("sgd", weights[0].dtype)(
        count, ctypes.addressof(sizes), *map(ctypes.addressof, addresses),
        decay, momentum, rate, torch.get_num_threads(),
    )  # fmt: skip
    torch.autograd.graph.increment_version([*weights, *diffs, *histories])


def pixels_kernel() -> Callable[..., int] | None:
    """The kernel that makes numbers of pixels; None where the kernels are not built, or not used."""
    use = chosen()
    if not use.batch_norm:
        return None
    return _exported("pixels", "imae_pixels_default" if use.isa == "default" else "imae_pixels_avx2")


def uses_conv_weight() -> bool:
    """Whether `conv_weight_gradient` is used: it is faster than torch on this processor, or requested."""
    return available() and convolutions().conv_weight is not None


def uses_winograd() -> bool:
    """Whether `winograd` is used for tops and for bottoms' gradients, likewise."""
    return available() and convolutions().winograd is not None


def uses_winograd_weight() -> bool:
    """Whether `winograd_weight_gradient` is used, likewise."""
    return available() and convolutions().winograd_weight is not None


def uses_tiles() -> bool:
    """Whether `conv_weight_gradient_bfloat16` is used: with AVX-512's kernels, where there is AMX."""
    if not available():
        return False
    use = chosen()
    return use.convolutions != "none" and use.isa == "avx512f" and _has_amx()


def weight_gradient_by_tiles() -> Callable[..., Tensor] | None:
    """`conv_weight_gradient_bfloat16`, to be timed; None where it is not used."""
    return conv_weight_gradient_bfloat16 if uses_tiles() else None


@cache
def _has_amx() -> bool:
    library = _library()
    return library is not None and bool(library.imae_has_amx())


def uses_suppress() -> bool:
    """Whether `suppress` is used: everywhere but with IMAE_KERNELS=none."""
    return available() and chosen().batch_norm


def suppress(boxes: Tensor, threshold: float) -> Tensor:
    """`suppress` of layers/forks/boxes.py with an eta of 1, of boxes (n, 4) in single precision: a mask."""
    if boxes.dtype != torch.float32 or boxes.dim() != 2 or boxes.shape[1] != 4 or not boxes.is_cpu:
        raise ValueError(f"no kernel for {boxes.dtype} {tuple(boxes.shape)} on {boxes.device}")
    boxes, stays = boxes.contiguous(), torch.empty(len(boxes), dtype=torch.bool)
    if _exported("suppress", "imae_suppress")(boxes.data_ptr(), len(boxes), threshold, stays.data_ptr()):
        raise MemoryError
    return stays


def most_threads(products: int) -> int:
    """How many threads are worth their start for so many products."""
    return max(1, products // PRODUCTS_OF_A_THREAD)


def uses_direct() -> bool:
    """Whether the kernels of direct.h are used: where `winograd` is, with vectors of 8 numbers."""
    return available() and convolutions().winograd == "avx2"


def direct_kernel(name: str) -> Callable[..., int]:
    """One of direct.h: "direct" or "depthwise"."""
    return _exported(name, f"imae_{name}_avx2_float")


def conv_supports(x: Tensor, weight: Tensor) -> bool:
    """Whether the convolutions' kernels support this bottom: on the CPU, float, channels last in memory."""
    return (
        _same_float_type_on_cpu(x, weight)
        and available()
        and x.dtype == torch.float32
        and x.numel() > 0
        and x.is_contiguous(memory_format=torch.channels_last)
    )


def conv_weight_gradient(
    x: Tensor,
    top_diff: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    isa: str | None = None,
) -> Tensor:
    """The gradient of a convolution's weights, (outputs, channels, kernel_h, kernel_w), channels last.

    x         the bottom, (N, C, H, W); top_diff: (N, outputs, H', W'); both with the channels last in memory
    outputs   a multiple of CHANNELS_AT_ONCE
    isa       the instruction set, instead of the chosen one
    """
    kernel = _convolution_kernel("conv_weight", shape[:1], isa)
    return _weight_gradient(kernel, x, top_diff, shape, stride, pad)


def conv_weight_gradient_bfloat16(
    x: Tensor, top_diff: Tensor, shape: Sequence[int], pad: Sequence[int]
) -> Tensor:
    """The same of blobs in bfloat16, by AMX; the gradient is in single precision.

    The stride is 1, x and top_diff are of one size, channels and outputs multiples of TILE_CHANNELS.
    """
    outputs, channels, *kernel = shape
    if outputs % TILE_CHANNELS or channels % TILE_CHANNELS or kernel != [2 * p + 1 for p in pad]:
        raise ValueError(f"no kernel for weights {tuple(shape)}, padding {tuple(pad)}")
    run = _exported("conv_weight_bfloat16", "imae_conv_weight_bfloat16")
    return _weight_gradient(run, x, top_diff, shape, (1, 1), pad, torch.bfloat16)


def winograd_weight_gradient(
    x: Tensor, top_diff: Tensor, shape: Sequence[int], pad: Sequence[int], isa: str | None = None
) -> Tensor:
    """The same for windows of 3x3 and a stride of 1, faster; channels are a multiple of CHANNELS_AT_ONCE."""
    _check_winograd(shape)
    kernel = _convolution_kernel("winograd_weight", shape[:2], isa)
    return _weight_gradient(kernel, x, top_diff, shape, (1, 1), pad)


def _weight_gradient(
    kernel: Callable[..., int],
    x: Tensor,
    top_diff: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """By a kernel for blobs of this type."""
    _check_layout(x, top_diff, _top_shape(x, shape, stride, pad, dtype))
    diff = torch.empty(*shape, dtype=value_type(dtype), memory_format=torch.channels_last)
    if shape[0] % CHANNELS_AT_ONCE:
        raise ValueError(f"no kernel for {shape[0]} outputs")
    conv = _conv_sizes(x, top_diff.shape, shape[2:], stride, pad)
    failed = kernel(
        x.data_ptr(), top_diff.data_ptr(), ctypes.addressof(conv), torch.get_num_threads(), diff.data_ptr()
    )
    if failed:
        raise MemoryError
    return diff


def winograd(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    pad: Sequence[int],
    rotated: bool = False,
    isa: str | None = None,
) -> Tensor:
    """A convolution with windows of 3x3 and a stride of 1: (N, outputs, H', W'), channels last.

    x        (N, C, H, W) with the channels last in memory; weight: (outputs, C, 3, 3); bias: (outputs)
    rotated  whether the windows are rotated by 180 degrees
    isa      the instruction set, instead of the chosen one
    """
    _check_winograd(weight.shape)
    shape = _top_shape(x, weight.shape, (1, 1), pad)
    top = torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    _check_layout(x, top, shape)
    _check_factors(x, weight, bias)
    conv, strides = _conv_sizes(x, shape, (3, 3), (1, 1), pad), _int64_array(weight.stride())
    bias = None if bias is None else bias.contiguous()  # with a name, so that the memory stays
    failed = _convolution_kernel("winograd", weight.shape[:2], isa)(
        x.data_ptr(), weight.data_ptr(), ctypes.addressof(strides), rotated,
        _address(bias),
        ctypes.addressof(conv), torch.get_num_threads(), top.data_ptr(),
    )  # fmt: skip
    if failed:
        raise MemoryError
    return top


def plan_winograd(
    bottom: Sequence[int],
    weight: Tensor,
    bias: Tensor | None,
    pad: Sequence[int],
    activation: int = 0,
    slopes: Tensor | None = None,
) -> Callable[[Tensor], Tensor]:
    """`winograd` for bottoms of one shape, without gradients; checks, sizes and weights are made once.

    activation, slopes   what follows: a number of activation.h; of SLOPES, the outputs' slopes
    """
    example = torch.empty(*bottom, dtype=weight.dtype, device="meta")
    _check_winograd(weight.shape)
    shape = _top_shape(example, weight.shape, (1, 1), pad)
    _check_factors(example, weight, bias)
    _check_factors(example, weight, slopes)
    conv, strides = _conv_sizes(example, shape, (3, 3), (1, 1), pad), _int64_array(weight.stride())
    bias, slopes = (None if values is None else values.contiguous() for values in (bias, slopes))
    transformed = torch.empty(16, *weight.shape[:2], dtype=torch.float32)
    sizes, last = ctypes.addressof(conv), torch.channels_last
    _convolution_kernel("winograd", weight.shape[:2], part="_transform")(
        weight.data_ptr(), ctypes.addressof(strides), False, sizes, torch.get_num_threads(),
        transformed.data_ptr(),
    )  # fmt: skip
    kernel = _convolution_kernel("winograd", weight.shape[:2], part="_by_transformed")
    most = most_threads(math.prod(shape) * weight[0].numel())
    before = (transformed.data_ptr(), _address(bias), _address(slopes), activation, sizes)

    def convolve(x: Tensor, memory: Sequence[object] = (transformed, bias, slopes, conv)) -> Tensor:
        if x.shape != example.shape or x.dtype != example.dtype or not x.is_contiguous(memory_format=last):
            raise ValueError(f"planned for {tuple(bottom)}, got {x.dtype} {tuple(x.shape)} {x.stride()}")
        top = torch.empty(shape, dtype=x.dtype, memory_format=last)
        if kernel(x.data_ptr(), *before, min(most, torch.get_num_threads()), top.data_ptr()):
            raise MemoryError
        return top

    return convolve


def winograd_bottom_gradient(
    top_diff: Tensor, weight: Tensor, pad: Sequence[int], isa: str | None = None
) -> Tensor:
    """The gradient of the bottom of a convolution by `winograd`, with a padding of at most 2."""
    return winograd(top_diff, weight.transpose(0, 1), None, [2 - p for p in pad], True, isa)


def _top_shape(
    x: Tensor,
    shape: Sequence[int],
    stride: Sequence[int],
    pad: Sequence[int],
    dtype: torch.dtype = torch.float32,
) -> tuple[int, ...]:
    """The shape of the convolution of x with weights of this shape."""
    outputs, channels, *kernel = shape
    counts = [
        (size + 2 * p - k) // s + 1 for size, p, k, s in zip(x.shape[2:], pad, kernel, stride, strict=True)
    ]
    if x.dtype != dtype or channels != x.shape[1] or min(pad, default=0) < 0 or min(*counts, x.numel()) < 1:
        raise ValueError(f"no kernel for {x.dtype}, bottom {tuple(x.shape)}, weights {tuple(shape)}")
    return x.shape[0], outputs, *counts


def _check_winograd(shape: Sequence[int]) -> None:
    outputs, channels, *kernel = shape
    if kernel != [3, 3] or outputs % CHANNELS_AT_ONCE or channels % CHANNELS_AT_ONCE:
        raise ValueError(f"no kernel for weights {tuple(shape)}")


def _check_factors(x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if weight.dtype != x.dtype or (
        bias is not None and (bias.dtype != x.dtype or bias.shape != weight.shape[:1])
    ):
        raise ValueError(f"no kernel for {x.dtype} and weights {weight.dtype}")


def _conv_sizes(
    x: Tensor, top: Sequence[int], kernel: Sequence[int], stride: Sequence[int], pad: Sequence[int]
) -> ctypes.Array[ctypes.c_int64]:
    num, channels, height, width = x.shape
    _, outputs, top_height, top_width = top
    return _int64_array(
        (num, height, width, channels, top_height, top_width, outputs, *kernel, *stride, *pad)
    )


def _int64_array(values: Sequence[int]) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def _check_layout(x: Tensor, blob: Tensor, shape: Sequence[int], *values: Tensor | None) -> None:
    """ValueError for shapes, types or strides with which the kernels would read wrong memory."""
    order = torch.channels_last
    for tensor in (x, blob):
        if not tensor.is_contiguous(memory_format=order):
            raise ValueError(f"strides {tensor.stride()} are not those of channels last")
    if tuple(blob.shape) != tuple(shape) or blob.dtype != x.dtype:
        raise ValueError(f"got {blob.dtype} {tuple(blob.shape)}, expected {x.dtype} {tuple(shape)}")
    for value in values:
        if value is None:
            continue
        if value.dtype != value_type(x.dtype) or value.shape != x.shape[1:2] or not value.is_contiguous():
            raise ValueError(f"got {value.dtype} {tuple(value.shape)} for {x.shape[1]} channels of {x.dtype}")


def _kernel(name: str, dtype: torch.dtype) -> Callable[..., int]:
    """A kernel for this type in the chosen instructions."""
    return _exported(name, f"imae_{name}_{_batch_norm_isa()}_{_TYPES[dtype]}")


def _convolution_kernel(
    name: str, counts: Sequence[int], isa: str | None = None, part: str = ""
) -> Callable[..., int]:
    """A convolution's kernel; tests call these even where torch's convolution is used.

    counts   of the channels that come in whole vectors: without them the vectors of 8 numbers are used
    part     the end of the name of a part of this kernel, which has its instruction set
    """
    isa = isa or getattr(convolutions(), name) or _newest_convolution_isa()
    name += part
    if any(count % VECTORS[isa] for count in counts):
        isa = "avx2"
    return _exported(name, f"imae_{name}_{isa}_float")


def _newest_convolution_isa() -> str:
    return _choose("all", os.environ.get("IMAE_KERNELS_ISA") or "auto", _library()).convolutions


def _batch_norm_isa() -> str:
    """The instruction set of BatchNorm's kernels; tests call these even where IMAE_KERNELS is `none`."""
    isa = os.environ.get("IMAE_KERNELS_ISA") or "auto"
    return _choose("batch_norm", isa, _library()).isa


@cache
def _exported(name: str, exported: str) -> Callable[..., int]:
    function: ctypes._NamedFuncPointer = getattr(_library(), exported)
    function.argtypes = _ARGUMENTS[name]
    return function


def _address(tensor: Tensor | None) -> int | None:
    return None if tensor is None else tensor.data_ptr()
