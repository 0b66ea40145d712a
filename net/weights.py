"""Weights: .caffemodel (a binary NetParameter) and .caffemodel.h5 <-> the parameter blobs of a net.

Loading goes by layer name, as in Caffe: layers that the net lacks are ignored, layers that the file lacks
keep their values, and layers of the same name must have blobs of the same shape. Of a binary file only names
and blobs are read, which any fork writes alike; NVIDIA's is converted first, if its dialect is given
(prototxt/dialects.py).

h5py is imported only where it is needed: most trainings read and write no HDF5.

Caffe: net.cpp, CopyTrainedLayersFrom, ToProto, ToHDF5. Differs: a file with nothing for the net is an error.
"""

from __future__ import annotations

import io
import logging
import os
import zlib
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from imae.files.atomic import write_atomically
from imae.files.caffe_log import log_line
from imae.files.errors import CaffemodelError, PrototxtError
from imae.files.read import AnyPath
from imae.layers.activation.scale import Scale
from imae.layers.blob import blob_from_array, exact_array_from_blob, shape_string, single_or_double
from imae.layers.layer import Layer, LossLayer, Shape
from imae.layers.normalization.batch_norm import BatchNorm
from imae.net.net import Net
from imae.prototxt import LayerParameter, NetParameter, ParamSpec
from imae.prototxt.dialects import fork_hint, is_nvidia, read_net_dialect, read_weights
from imae.prototxt.upgrade import upgrade_net

logger = logging.getLogger(__name__)

Array = NDArray[np.floating[Any]]


@dataclass
class Report:
    """Which layers with blobs were loaded.

    copied    layers whose blobs were loaded
    ignored   layers of the file that the net lacks
    fresh     layers of the net that the file lacks, unless a loaded layer shares their blobs; they keep their
              values
    """

    copied: list[str] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    fresh: list[str] = field(default_factory=list)


def load_caffemodel(net: Net, path: AnyPath, dialect: str | None = None) -> Report:
    """Load the blobs of a .caffemodel of any age, or of a .caffemodel.h5, into the layers of the same names.

    dialect   the fork that wrote the binary file, one of DIALECTS; None: Caffe. The scale and bias of a
              fork's BatchNorm go to the Scale layer that reads its top.

    CaffemodelError where the file cannot be read or does not fit; the net is then unchanged.
    """
    from imae.files.hdf5_file import is_hdf5

    try:
        hdf5 = is_hdf5(path)
    except (OSError, ValueError):  # cannot be read: the binary reader says why
        hdf5 = False
    if hdf5 and dialect:
        raise CaffemodelError(f"{path}: dialects are of binary files, this is HDF5; leave out --dialect")
    sources = _read_hdf5(path) if hdf5 else _read_binary(path, dialect, _scales_after_batch_norms(net))
    layers: dict[str, Layer] = {}
    for step in net.steps:
        layers.setdefault(step.layer.name, step.layer)
    shared = _shared_blobs(net)
    report = Report()
    loads: list[tuple[nn.Parameter, Array]] = []
    clashes: dict[str, CaffemodelError] = {}
    for name, blobs in sources.items():
        layer = layers.get(name)
        if layer is None:
            # Caffe names layers without blobs here, too.
            log_line("net.cpp:801" if hdf5 else "net.cpp:746", f"Ignoring source layer {name}")
            if blobs:
                report.ignored.append(name)
            continue
        if isinstance(layer, BatchNorm) and len(blobs) == 5:
            raise CaffemodelError(
                f"{path}: Incompatible number of blobs for layer {name}: the file has 5, as NVIDIA Caffe's "
                "and those of Intel's fork "
                + (
                    "have, whose HDF5 files are not read; write a binary one with it"
                    if hdf5
                    else "have; say --dialect nvidia, and add a Scale layer after it"
                )
            )
        try:
            loads += _loads_of_layer(layer, blobs, path, shared if hdf5 else frozenset())
        except CaffemodelError as error:
            if len(blobs) in layer.advice_by_blob_count:
                raise
            clashes[name] = error
            continue
        if layer.blobs:
            report.copied.append(name)
    loaded = {id(parameter) for parameter, _ in loads}
    report.fresh = [
        name
        for name, layer in layers.items()
        if name not in clashes and any(id(parameter) not in loaded for parameter in layer.blobs)
    ]
    if clashes:
        first = next(iter(clashes.values()))
        raise CaffemodelError(f"{first}{_other_net(net, list(clashes), report)}")
    if report.fresh and report.ignored and not report.copied:
        raise CaffemodelError(
            f"{path}: the model of another net: it has blobs for {_shortened(report.ignored)}, the net needs "
            f"{_shortened(report.fresh)}"
        )
    with torch.no_grad():
        for parameter, values in loads:
            parameter.copy_(torch.from_numpy(values).view(parameter.shape))
    if report.fresh:
        logger.info(
            "%s has no blobs for the layers %s: they keep their values", path, ", ".join(report.fresh)
        )
    return report


def _loads_of_layer(
    layer: Layer, blobs: Mapping[int, _Source], path: AnyPath, shared: Collection[tuple[str, int]]
) -> list[tuple[nn.Parameter, Array]]:
    """The blobs of a layer and their values in the file; CaffemodelError where they do not fit.

    shared   (layer, index) of blobs that the file need not have
    """
    loads = []
    for index in range(max(len(layer.blobs), *(i + 1 for i in blobs), 0)):
        if index not in blobs and (layer.name, index) in shared:
            continue  # HDF5 files hold a shared blob once, at its owner
        if index not in blobs or index >= len(layer.blobs):
            advice = layer.advice_by_blob_count.get(len(blobs), "rename the layer to learn it from scratch")
            raise CaffemodelError(
                f"{path}: Incompatible number of blobs for layer {layer.name}: the file has {len(blobs)}, "
                f"the net {len(layer.blobs)}; {advice}"
            )
        loads.append((layer.blobs[index], _fitted(blobs[index], layer, index, path)))
    return loads


def _other_net(net: Net, clashes: list[str], report: Report) -> str:
    """What more to say where blobs do not fit: that the file is of another net, unless one layer differs.

    clashes   the layers whose blobs do not fit
    report    the other layers
    """
    if len(clashes) < 2 and not (report.fresh and report.ignored):
        return ""
    total = len({step.layer.name for step in net.steps if step.layer.blobs})
    parts = [f"{len(report.copied)} of the {total} layers with blobs fit"]
    for names, verb in (
        (clashes, "differ in shape"),
        (report.fresh, "are not in the file"),
        (report.ignored, "are only there"),
    ):
        if names:
            parts.append(f"{len(names)} {verb} ({_shortened(names)})")
    return f" These look like the weights of another net: {', '.join(parts)}; give those of this net."


def unused_text(report: Report) -> str:
    """What to add where the file lacks layers: those that it has instead, as another net's model does."""
    return f", it has some for {_shortened(report.ignored)}, which the net lacks" if report.ignored else ""


def load_to_use(net: Net, path: AnyPath, dialect: str | None = None) -> None:
    """Load weights for a net that is not trained any further, and warn of layers that have none."""
    report = load_caffemodel(net, path, dialect)
    if missing := report.fresh:
        logger.warning(
            "the results are those of random numbers in the layers %s: %s has no blobs for them%s",
            ", ".join(missing), path, unused_text(report),
        )  # fmt: skip


def save_caffemodel(net: Net, path: AnyPath, *, hdf5: bool = False, diff: bool = False) -> int:
    """Write the net's blobs (and diffs), as a binary NetParameter or as HDF5; FileError where that fails.

    Blobs of double precision are written in double precision, as Caffe does; Caffe reads them into any net.
    Returns the CRC-32 of the file.
    """
    data = _to_hdf5(net, diff) if hdf5 else net_to_proto(net, diff).SerializeToString()
    write_atomically(path, data)
    return zlib.crc32(data)


def net_to_proto(net: Net, diff: bool = False) -> NetParameter:
    """The net as Caffe saves it: its name, and each layer, splits included, with phase and blobs."""
    proto = NetParameter(name=net.name)
    for step in net.steps:
        layer = proto.layer.add()
        layer.CopyFrom(step.layer.param)
        del layer.blobs[:]
        # Caffe: layers fill in their own LayerParameter at set-up, and it is saved like that.
        if isinstance(step.layer, LossLayer) and not layer.loss_weight:
            layer.loss_weight.append(1)
        layer.param.extend(s for s in step.layer.param_specs()[len(layer.param) :] if s != ParamSpec())
        for index, parameter in enumerate(step.layer.blobs):
            shape = step.layer.blob_shapes[index]
            layer.blobs.append(
                blob_from_array(_data(parameter, shape), _diff(parameter, shape) if diff else None)
            )
    return proto


@dataclass
class _Source:
    """A blob of a file. `legacy`: its shape is (num, channels, height, width), padded with leading 1s."""

    values: Array
    legacy: bool = False


def _scales_after_batch_norms(net: Net) -> dict[str, str | None]:
    """The name of the Scale layer that reads a BatchNorm layer's top, or None; by the BatchNorm's name."""
    scales: dict[str, str | None] = {
        step.layer.name: None for step in net.steps if isinstance(step.layer, BatchNorm)
    }
    unread: dict[str, str] = {}  # tops of BatchNorm layers, and their names
    for step in net.steps:
        for bottom in step.bottoms:
            norm = unread.pop(bottom, None)
            if norm is not None and isinstance(step.layer, Scale):
                scales[norm] = step.layer.name
        if isinstance(step.layer, BatchNorm):
            unread[step.tops[0]] = step.layer.name
    return scales


def _read_binary(
    path: AnyPath, dialect: str | None, scales: Mapping[str, str | None]
) -> dict[str, dict[int, _Source]]:
    try:
        layers: Sequence[LayerParameter]
        if is_nvidia(dialect):
            layers = upgrade_net(read_net_dialect(path, "nvidia", scales), os.fspath(path)).layer
        else:
            layers = read_weights(path)
    except PrototxtError as error:
        raise CaffemodelError(str(error)) from None
    return {layer.name: dict(enumerate(_sources(layer, path))) for layer in layers}


def _sources(layer: LayerParameter, path: AnyPath) -> Iterator[_Source]:
    for index, blob in enumerate(layer.blobs):
        try:
            yield _Source(exact_array_from_blob(blob), legacy=not blob.HasField("shape"))
        except CaffemodelError as error:
            raise CaffemodelError(
                f"{path}: layer '{layer.name}', blob {index}: {error}{fork_hint([blob])}"
            ) from None


def _read_hdf5(path: AnyPath) -> dict[str, dict[int, _Source]]:
    """Blobs by layer name and index. A name with a slash is a group within a group: Caffe cannot write it."""
    from imae.files.hdf5_file import HDF5_ERRORS, hdf5_content, open_hdf5

    try:
        with open_hdf5(path) as data_sets:
            return {
                name: {
                    int(index): _Source(single_or_double(data_sets.read(f"data/{name}/{index}")))
                    for index in indices
                }
                for name, indices in data_sets.walk("data")
            }
    except HDF5_ERRORS as error:
        holds = hdf5_content(path, expected="weights")
        raise CaffemodelError(
            f"{path}: not a caffemodel in HDF5{holds or f', or damaged: {error}'}"
        ) from None


def _to_hdf5(net: Net, diff: bool) -> bytes:
    import h5py

    shared = _shared_blobs(net)
    buffer = io.BytesIO()
    with h5py.File(buffer, "w") as file:
        for step in net.steps:
            layer = step.layer
            # The group of a layer "a" already exists if an earlier layer is called "a/b".
            data = file.require_group(f"data/{layer.name}")
            diffs = file.require_group(f"diff/{layer.name}") if diff else None
            if layer.blobs and "0" in data:
                raise CaffemodelError(
                    f"two layers with blobs are called '{layer.name}', which HDF5 cannot hold; rename one, "
                    "or choose the binary format"
                )
            for index, (parameter, shape) in enumerate(zip(layer.blobs, layer.blob_shapes, strict=True)):
                if (layer.name, index) not in shared:
                    data[str(index)] = _data(parameter, shape)
                if diffs is not None:
                    diffs[str(index)] = _diff(parameter, shape)
    return buffer.getvalue()


def _shared_blobs(net: Net) -> set[tuple[str, int]]:
    """(layer, index) of the parameter blobs that belong to an earlier layer."""
    seen: set[int] = set()
    shared = set()
    for step in net.steps:
        for index, parameter in enumerate(step.layer.blobs):
            if id(parameter) in seen:
                shared.add((step.layer.name, index))
            seen.add(id(parameter))
    return shared


def _fitted(source: _Source, layer: Layer, index: int, path: AnyPath) -> Array:
    """The values; CaffemodelError unless they have the shape of the layer's blob."""
    shape = layer.blob_shapes[index]
    wanted = (1,) * (4 - len(shape)) + shape if source.legacy else shape
    same = source.values.shape == wanted
    if layer.trailing_ones_vary:
        same |= _without_trailing_ones(source.values.shape) == _without_trailing_ones(wanted)
    if not same:
        raise CaffemodelError(
            f"{path}: Cannot copy param {index} weights from layer '{layer.name}'; shape mismatch.  "
            f"Source param shape is {shape_string(source.values.shape)}; target param shape is "
            f"{shape_string(shape)}. To learn this layer's parameters from scratch rather than copying from "
            f"a saved net, rename the layer."
        )
    return source.values


def _without_trailing_ones(shape: Shape) -> Shape:
    while shape[-1:] == (1,):
        shape = shape[:-1]
    return shape


def _data(parameter: nn.Parameter, shape: Shape) -> Array:
    return parameter.detach().cpu().contiguous().view(shape).numpy()


def _diff(parameter: nn.Parameter, shape: Shape) -> Array:
    grad = parameter.grad if parameter.grad is not None else torch.zeros_like(parameter)
    return grad.detach().cpu().contiguous().view(shape).numpy()


def _shortened(names: list[str]) -> str:
    return ", ".join(names[:5]) + (" ..." if len(names) > 5 else "")
