"""The seven fillers: the initial values of parameter blobs, and the tops of DummyData.

    constant           value
    uniform            U(min, max)
    gaussian           N(mean, std^2); with sparse >= 0 each value is kept with probability sparse / shape[0]
    positive_unitball  U(0, 1), divided by the sum over its slice along axis 0
    xavier             U(-s, s), s = sqrt(3 / f)       Glorot and Bengio 2010
    msra               N(0, 2 / f)                     He et al. 2015; the variance times scale^2 (Intel's
                       fork), divided by 1 + alpha^2 (caffe-windows)
    bilinear           (1 - |x / h - c|) (1 - |y / h - c|), h = ceil(w / 2), c = (w - 1) / (2 h), w x w kernel

f is by variance_norm: FAN_IN count / shape[0], FAN_OUT count / shape[1] (the count where there is one axis),
AVERAGE their mean. It depends on the shape only, whatever the axes mean to the layer. As in Caffe, a field
that a filler does not use is ignored (GoogLeNet's deploy.prototxt gives an std to xavier).

Caffe: filler.hpp, also of intel/caffe and happynear/caffe-windows. Differs: Caffe lets bilinear fill a blob
of no values.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from imae.files.errors import LayerError
from imae.files.limits import blob_problem
from imae.files.nearest import did_you_mean
from imae.layers.caffe_random import CaffeRandom
from imae.prototxt import FillerParameter

if TYPE_CHECKING:
    from imae.layers.layer import Shape

f32 = np.float32
Values = NDArray[np.float32]


def fill(shape: Shape, filler: FillerParameter, random: CaffeRandom) -> Values:
    """A new array of `shape`, filled with draws of `random`; LayerError for a filler that Caffe refuses."""
    if filler.type not in FILLERS:
        hint = did_you_mean(filler.type, FILLERS, "'")
        raise LayerError(f"Unknown filler name: {filler.type}{hint} (known names: {', '.join(FILLERS)})")
    if math.prod(shape) == 0:
        raise _refusal(filler, f"the blob of shape {shape} has no values to fill")
    if problem := blob_problem(shape):
        raise LayerError(problem)
    if filler.type != "gaussian" and filler.sparse != -1:
        raise _refusal(filler, f"sparse is for gaussian only, got {filler.sparse}; leave it out")
    return FILLERS[filler.type](shape, filler, random)


def constant(shape: Shape, filler: FillerParameter, random: CaffeRandom) -> Values:
    if filler.value == 0 and math.copysign(1, filler.value) > 0:
        return np.zeros(shape, f32)  # takes no memory before it is used, as the weights of most deploy nets
    return np.full(shape, filler.value, f32)


def uniform(shape: Shape, filler: FillerParameter, random: CaffeRandom) -> Values:
    if not -math.inf < filler.min <= filler.max < math.inf:
        raise _refusal(filler, f"min <= max, both finite, are needed; got {filler.min:g} and {filler.max:g}")
    return random.uniform(math.prod(shape), filler.min, filler.max).reshape(shape)


def gaussian(shape: Shape, filler: FillerParameter, random: CaffeRandom) -> Values:
    if not filler.std > 0:
        raise _refusal(filler, f"std must be greater than 0, got {filler.std:g}")
    if filler.sparse < -1:
        raise _refusal(filler, f"sparse must be -1 (off) or more, got {filler.sparse}")
    count = math.prod(shape)
    values = random.gaussian(count, filler.mean, filler.std)
    if filler.sparse >= 0:
        outputs = _leading(shape, filler)
        if filler.sparse > outputs:
            raise _refusal(filler, f"sparse must be at most {outputs} for shape {shape}, got {filler.sparse}")
        values *= random.bernoulli_single(count, float(f32(filler.sparse) / f32(outputs)))
    return values.reshape(shape)


def positive_unitball(shape: Shape, filler: FillerParameter, random: CaffeRandom) -> Values:
    slices = random.uniform(math.prod(shape), 0, 1).reshape(_leading(shape, filler), -1)
    sums: Values = np.add.accumulate(slices, axis=1)[:, -1:]  # adds one value after another, unlike np.sum
    return (slices / sums).reshape(shape)


def xavier(shape: Shape, filler: FillerParameter, random: CaffeRandom) -> Values:
    bound = float(np.sqrt(f32(3) / _fan(shape, filler)))
    return random.uniform(math.prod(shape), -bound, bound).reshape(shape)


def msra(shape: Shape, filler: FillerParameter, random: CaffeRandom) -> Values:
    alpha = f32(filler.alpha)
    std = f32(filler.scale) * np.sqrt(f32(2) / _fan(shape, filler) / (f32(1) + alpha * alpha))
    if not 0 < std < math.inf:
        raise _refusal(filler, f"scale must be greater than 0, got {filler.scale:g}, alpha {filler.alpha:g}")
    return random.gaussian(math.prod(shape), 0, float(std)).reshape(shape)


def bilinear(shape: Shape, filler: FillerParameter, random: CaffeRandom) -> Values:
    if len(shape) != 4 or shape[2] != shape[3]:
        raise _refusal(filler, f"the blob must have 4 axes and a square kernel, got shape {shape}")
    width = shape[3]
    half = math.ceil(width / 2)
    centre = f32((width - 1) / (2 * half))
    weight = f32(1) - np.abs(np.arange(width, dtype=f32) / f32(half) - centre)
    return np.broadcast_to(np.outer(weight, weight), shape).copy()


FILLERS: dict[str, Callable[[Shape, FillerParameter, CaffeRandom], Values]] = {
    "constant": constant,
    "uniform": uniform,
    "gaussian": gaussian,
    "positive_unitball": positive_unitball,
    "xavier": xavier,
    "msra": msra,
    "bilinear": bilinear,
}


def _fan(shape: Shape, filler: FillerParameter) -> np.float32:
    count = math.prod(shape)
    fan_in = count // _leading(shape, filler)
    fan_out = count // shape[1] if len(shape) > 1 else count
    if filler.variance_norm == filler.AVERAGE:
        return f32(fan_in + fan_out) / f32(2)
    return f32(fan_out if filler.variance_norm == filler.FAN_OUT else fan_in)


def _leading(shape: Shape, filler: FillerParameter) -> int:
    """shape[0]."""
    if not shape:
        raise _refusal(filler, "the blob is a scalar; at least one axis is needed")
    return shape[0]


def _refusal(filler: FillerParameter, message: str) -> LayerError:
    return LayerError(f"filler {filler.type!r}: {message}")
