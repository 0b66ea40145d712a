"""Build a net: make the layers of a NetParameter, connect and check them, in Caffe's order.

Caffe: net.cpp, Net::Init, AppendBottom, AppendTop, AppendParam, ShareTrainedLayersWith.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from imae.files.caffe_log import log_line
from imae.files.errors import LayerError
from imae.layers.blob import shape_string
from imae.layers.layer import AUTOMATIC, DataLayer, Layer, Shape
from imae.layers.plugin_checks import check_tops
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.net.in_place import note_in_place
from imae.net.step import Step, mark_frees
from imae.prototxt import LayerParameter, NetParameter, ParamSpec, Phase
from imae.prototxt.insert_splits import insert_splits
from imae.prototxt.leftovers import report_leftovers
from imae.prototxt.state import filter_by_state
from imae.prototxt.text import to_text

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Built:
    """The parts of a net that has been built.

    param           the message that was built: include and exclude rules applied, splits inserted
    steps           in order, automatic splits included
    blob_shapes     shape of every blob, in order of first appearance
    inputs          tops that the user provides; outputs: blobs that no layer consumes, in byte order of their
                    names
    learnable       parameter blobs in Caffe's order, a shared one only once (its owner's); lr_mults and
                    decay_mults in the same order
    loss_weights    weight by blob name, of the blobs that have one
    memory          for each blob that in Caffe lies in another blob's memory: the name of that blob
    """

    param: NetParameter
    steps: tuple[Step, ...]
    blob_shapes: Mapping[str, Shape]
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    learnable: tuple[nn.Parameter, ...]
    lr_mults: tuple[float, ...]
    decay_mults: tuple[float, ...]
    loss_weights: Mapping[str, float]
    memory: Mapping[str, str]


def build(param: NetParameter, run: Run, share_from: Sequence[Step] | None = None) -> Built:
    """Build the layers that `param.state` includes, and log what Caffe logs.

    share_from   the steps of a net whose parameters are used where layer names agree

    LayerError for layers that do not fit together.
    """
    filtered = filter_by_state(param, param.state)
    if logger.isEnabledFor(logging.INFO):
        text = f"Initializing net from parameters: \n{to_text(filtered)}".rstrip("\n")
        log_line("net.cpp:53", text, lines=True)
    inserted = insert_splits(filtered)
    blobs, parameters = _Blobs(run.dtype), _Parameters()
    steps = [_add_layer(source, param.state.phase, run, blobs, parameters) for source in inserted.layer]
    _report_leftovers(param, steps)
    _prune_backward(steps, blobs.loss_weights)
    if param.force_backward:
        _force_backward(steps)
    outputs = sorted(blobs.available, key=lambda name: name.encode())
    for name in outputs:
        log_line("net.cpp:244", f"This network produces output {name}")
    for parameter, lr_mult in zip(parameters.learnable, parameters.lr_mults, strict=True):
        parameter.requires_grad_(lr_mult != 0 or param.force_backward)
    for step in steps:
        step.layer.to(run.dtype)
    learnable = parameters.learnable
    if share_from is not None:
        learnable = share_parameters(steps, learnable, share_from)
    _tell_layers(steps)
    memory = note_in_place(steps, param.state.phase)
    mark_frees(steps)
    log_line("net.cpp:257", "Network initialization done.")
    return Built(
        param=inserted,
        steps=tuple(steps),
        blob_shapes=blobs.shapes,
        inputs=tuple(blobs.inputs),
        outputs=tuple(outputs),
        learnable=tuple(learnable),
        lr_mults=tuple(parameters.lr_mults),
        decay_mults=tuple(parameters.decay_mults),
        loss_weights=blobs.loss_weights,
        memory=memory,
    )


class _Blobs:
    """The blobs of a net that is being built.

    available       blobs that no layer has consumed so far
    need_backward   by blob: whether it depends on parameters that learn
    """

    def __init__(self, dtype: torch.dtype) -> None:
        self.shapes: dict[str, Shape] = {}
        self.loss_weights: dict[str, float] = {}
        self.inputs: list[str] = []
        self.available: set[str] = set()
        self.need_backward: dict[str, bool] = {}
        self._itemsize, self._values = dtype.itemsize, 0

    def consume(self, param: LayerParameter, index: int) -> bool:
        """Consume bottom `index` of a layer; returns whether it gets a gradient. Caffe: AppendBottom."""
        bottom = param.bottom[index]
        if bottom not in self.available:
            raise LayerError(f"Unknown bottom blob '{bottom}' (layer '{param.name}', bottom index {index})")
        log_line("net.cpp:408", f"{param.name} <- {bottom}")
        self.available.discard(bottom)
        if param.propagate_down:
            return param.propagate_down[index]
        return self.need_backward[bottom]

    def name_tops(self, param: LayerParameter, layer: Layer) -> list[str]:
        """The tops of a layer, including automatic ones that the prototxt leaves out. Caffe: AppendTop."""
        seen: set[str] = set()
        for index, top in enumerate(param.top):
            if index < len(param.bottom) and param.bottom[index] == top:
                log_line("net.cpp:369", f"{param.name} -> {top} (in-place)")
            elif top in self.shapes or top in seen:
                raise LayerError(param, f"Top blob '{top}' produced by multiple sources.")
            else:
                log_line("net.cpp:382", f"{param.name} -> {top}")
                self.need_backward[top] = False
            self.available.add(top)
            seen.add(top)
            if layer.is_fed:
                self.inputs.append(top)
        tops = list(param.top)
        if layer.auto_tops:
            while len(tops) < max(layer.min_tops, layer.num_tops or 0):
                log_line("net.cpp:382", f"{param.name} -> {AUTOMATIC}")
                # Caffe gives all such blobs one name; here each has its own (see blob_name).
                tops.append(f"{AUTOMATIC}{param.name}:{len(tops)}")
                self.need_backward[tops[-1]] = False
        return tops

    def set_tops(self, layer: Layer, tops: Sequence[str], shapes: Sequence[Shape]) -> None:
        """Note shapes and loss weights of a layer's tops."""
        log_line("net.cpp:124", f"Setting up {layer.name}")
        for top, shape, weight in zip(tops, shapes, _loss_weights(layer, len(tops)), strict=True):
            self.shapes[top] = shape
            self._values += math.prod(shape)
            log_line("net.cpp:131", f"Top shape: {shape_string(shape)}")
            if weight:
                self.loss_weights[top] = weight
                log_line("net.cpp:134", f"    with loss weight {weight:g}")
        log_line("net.cpp:139", f"Memory required for data: {self._values * self._itemsize}")


class _Parameters:
    """The parameter blobs of a net that is being built: each has one owner, and layers that share it."""

    def __init__(self) -> None:
        self.learnable: list[nn.Parameter] = []
        self.lr_mults: list[float] = []
        self.decay_mults: list[float] = []
        self._explicit_mults: list[tuple[bool, bool]] = []
        self._owners: dict[str, tuple[int, Layer, int]] = {}

    def add(self, layer: Layer) -> None:
        """Let a layer own its blobs, or share those of another layer. Caffe: AppendParam."""
        for index, spec in enumerate(layer.param_specs()):
            owner = self._owners.get(spec.name) if spec.name else None
            if owner is None:
                self._own(layer, index, spec)
            else:
                self._share(layer, index, spec, owner)

    def _own(self, layer: Layer, index: int, spec: ParamSpec) -> None:
        if spec.name:
            self._owners[spec.name] = (len(self.learnable), layer, index)
        self.learnable.append(layer.blobs[index])
        self.lr_mults.append(spec.lr_mult)
        self.decay_mults.append(spec.decay_mult)
        self._explicit_mults.append((spec.HasField("lr_mult"), spec.HasField("decay_mult")))

    def _share(self, layer: Layer, index: int, spec: ParamSpec, owner: tuple[int, Layer, int]) -> None:
        learnable_id, owner_layer, owner_index = owner
        log_line(
            "net.cpp:485",
            f"Sharing parameters '{spec.name}' owned by layer '{owner_layer.name}', param index "
            f"{owner_index}",
        )
        theirs, ours = owner_layer.blobs[owner_index], layer.blobs[index]
        shapes = f"Owner layer param shape is {shape_string(theirs.shape)}; sharing layer "
        prefix = (
            f"Cannot share param '{spec.name}' owned by layer '{owner_layer.name}' with layer '{layer.name}'"
        )
        if spec.share_mode == ParamSpec.PERMISSIVE:
            if theirs.numel() != ours.numel():
                raise LayerError(f"{prefix}; count mismatch.  {shapes}shape is {shape_string(ours.shape)}")
        elif theirs.shape != ours.shape:
            raise LayerError(f"{prefix}; shape mismatch.  {shapes}expects shape {shape_string(ours.shape)}")
        self._settle_mults(layer, spec, learnable_id)
        layer.blobs[index] = theirs

    def _settle_mults(self, layer: Layer, spec: ParamSpec, learnable_id: int) -> None:
        """Use a sharing layer's lr_mult and decay_mult; LayerError if other values were given before."""
        mults = (self.lr_mults, self.decay_mults)
        explicit = list(self._explicit_mults[learnable_id])
        for which, name in enumerate(("lr_mult", "decay_mult")):
            if spec.HasField(name):
                value = getattr(spec, name)
                if explicit[which] and mults[which][learnable_id] != value:
                    raise LayerError(
                        f"Shared param '{spec.name}' has mismatched {name}: "
                        f"{mults[which][learnable_id]:g} and, in layer '{layer.name}', {value:g}"
                    )
                mults[which][learnable_id], explicit[which] = value, True
        self._explicit_mults[learnable_id] = (explicit[0], explicit[1])


def _add_layer(
    source: LayerParameter, phase: Phase, run: Run, blobs: _Blobs, parameters: _Parameters
) -> Step:
    """Make a layer and connect it."""
    param = LayerParameter()
    param.CopyFrom(source)
    if not param.HasField("phase"):
        param.phase = phase
    if param.propagate_down and len(param.propagate_down) != len(param.bottom):
        raise LayerError(
            param,
            "propagate_down param must be specified either 0 or bottom_size times; "
            f"got {len(param.propagate_down)} for {len(param.bottom)} bottoms",
        )
    log_line("layer_factory.hpp:77", f"Creating layer {param.name}")
    layer = class_of(param)(param)
    log_line("net.cpp:86", f"Creating Layer {param.name}")
    bottom_need_backward = [blobs.consume(param, index) for index in range(len(param.bottom))]
    need_backward = any(blobs.need_backward[bottom] for bottom in param.bottom)
    tops = blobs.name_tops(param, layer)
    bottom_shapes = [blobs.shapes[bottom] for bottom in param.bottom]
    shapes = layer.build(bottom_shapes, run)
    if len(shapes) != len(tops):
        raise LayerError(param, f"{len(shapes)} tops are made, {len(tops)} are named: {', '.join(tops)}")
    blobs.set_tops(layer, tops, shapes)
    need_backward |= _has_learned_blobs(layer)
    parameters.add(layer)
    if need_backward:
        blobs.need_backward.update(dict.fromkeys(tops, True))
    return Step(
        layer,
        partial(_next_tops, layer, run.dtype) if isinstance(layer, DataLayer) else layer,
        tuple(param.bottom),
        tuple(tops),
        bottom_need_backward,
        need_backward,
        shapes=bottom_shapes,
    )


def _next_tops(layer: DataLayer, dtype: torch.dtype) -> tuple[Tensor, ...]:
    batch = layer.next_batch()
    if layer.plugin:
        check_tops(layer, (), batch)
    return tuple(top.to(dtype).contiguous() for top in batch)


def _loss_weights(layer: Layer, num_tops: int) -> list[float]:
    weights = list(layer.param.loss_weight)
    if weights:
        if len(weights) != num_tops:
            raise layer.error(
                f"loss_weight must be unspecified or specified once per top blob; got {len(weights)} for "
                f"{num_tops} tops"
            )
        return weights
    return [float(layer.default_loss_weight(index)) for index in range(num_tops)]


def _has_learned_blobs(layer: Layer) -> bool:
    """Whether the layer needs a backward pass for its own blobs.

    Caffe: decided by the prototxt's lr_mult, even where a layer (BatchNorm) sets lr_mult to 0 itself.
    """
    specs = layer.param.param
    if len(specs) > len(layer.blobs):
        raise layer.error(
            f"Too many params specified for layer {layer.name}: {len(specs)} for {len(layer.blobs)} blobs"
        )
    return any(specs[i].lr_mult != 0 if i < len(specs) else True for i in range(len(layer.blobs)))


def _report_leftovers(param: NetParameter, steps: Sequence[Step]) -> None:
    layers = [step.layer for step in steps]
    lines = [f"layer '{layer.name}' ({layer.type}): {', '.join(layer.leftovers)}"
             for layer in layers if layer.leftovers]  # fmt: skip
    report_leftovers(logger, f"net '{param.name}' ({Phase.Name(param.state.phase)})", lines, LayerError)


def _prune_backward(steps: Sequence[Step], loss_weights: Mapping[str, float]) -> None:
    """Remove the backward passes that do not contribute to a loss's gradients."""
    under_loss: set[str] = set()
    skip: set[str] = set()
    for step in reversed(steps):
        contributes = any(top in loss_weights or top in under_loss for top in step.tops)
        if not contributes or (step.need_backward and all(top in skip for top in step.tops)):
            step.need_backward = False
            step.bottom_need_backward = [False] * len(step.bottoms)
        if contributes:
            under_loss.update(step.bottoms)
        skip.update(b for b, need in zip(step.bottoms, step.bottom_need_backward, strict=True) if not need)
        if step.need_backward:
            log_line("net.cpp:200", f"{step.layer.name} needs backward computation.")
        else:
            log_line("net.cpp:202", f"{step.layer.name} does not need backward computation.")


def _force_backward(steps: Sequence[Step]) -> None:
    """Give every layer a backward pass, and a gradient to every bottom that may have one."""
    for step in steps:
        step.need_backward = True
        step.bottom_need_backward = [
            need or step.layer.allows_force_backward(index)
            for index, need in enumerate(step.bottom_need_backward)
        ]


def _tell_layers(steps: Sequence[Step]) -> None:
    """Tell each layer which bottoms get a gradient; detach those that propagate_down cuts."""
    for step in steps:
        needs = step.bottom_need_backward if step.need_backward else [False] * len(step.bottoms)
        step.layer.bottom_need_backward = tuple(needs)
        if step.layer.param.propagate_down:
            step.detach = tuple(not need for need in step.bottom_need_backward)


def share_parameters(
    steps: Sequence[Step], learnable: Sequence[nn.Parameter], other: Sequence[Step]
) -> list[nn.Parameter]:
    """Use the parameters of another net's steps where layer names agree; returns `learnable` with them.

    Caffe: ShareTrainedLayersWith.
    """
    mine: dict[str, Layer] = {}
    for step in steps:
        mine.setdefault(step.layer.name, step.layer)  # Caffe: the first layer of a name
    replaced: dict[int, nn.Parameter] = {}
    for step in other:
        source = step.layer
        target = mine.get(source.name)
        if target is None:
            continue
        if len(target.blobs) != len(source.blobs):
            raise LayerError(
                f"Incompatible number of blobs for layer {source.name}: "
                f"{len(source.blobs)} vs. {len(target.blobs)}"
            )
        for index, blob in enumerate(source.blobs):
            if blob.shape != target.blobs[index].shape:
                raise LayerError(
                    f"Cannot share param {index} weights from layer '{source.name}'; shape mismatch.  "
                    f"Source param shape is {shape_string(blob.shape)}; target param shape is "
                    f"{shape_string(target.blobs[index].shape)}"
                )
            replaced[id(target.blobs[index])] = blob
    for step in steps:
        for index, old in enumerate(step.layer.blobs):
            if (new := replaced.get(id(old), old)) is not old:
                step.layer.blobs[index] = new
    return [replaced.get(id(old), old) for old in learnable]
