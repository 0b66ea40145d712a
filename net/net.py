"""Net: a NetParameter made into a torch module that runs its layers in order over named blobs.

The plain net here is the reference. `plan` is what `forward` executes; faster plans over the same layers
(see fuse.py) are made from it and must give the same blobs at their ends.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from imae.files.caffe_log import log_line
from imae.files.errors import LayerError
from imae.layers.blob import shape_string
from imae.layers.data.data_resources import DataResources
from imae.layers.labels import LabelReader
from imae.layers.layer import AUTOMATIC, DataLayer, Layer, Shape
from imae.layers.registry import layer_class
from imae.layers.run import Run
from imae.net.debug_info import log_forward
from imae.net.step import Memory, Step, mark_frees, run_step
from imae.prototxt import TEST, LayerParameter, NetParameter, ParamSpec, Phase
from imae.prototxt.insert_splits import insert_splits
from imae.prototxt.leftovers import report_leftovers
from imae.prototxt.state import filter_by_state
from imae.prototxt.text import to_text

logger = logging.getLogger(__name__)


class Net(nn.Module):
    """The layers of a net, built, connected and checked as Caffe does it.

    param          NetParameter; `state` (phase, level, stage) decides which layers are in
    run            what the layers need of the run: random numbers, which the fillers draw in Caffe's order,
                   ranks, memory and threads for the data layers, dtype
    share_from     a net whose parameters are used where layer names agree (a test net's train net); this
                   net's own blobs are filled all the same, so that the random stream is Caffe's

    name, phase, steps, plan
    layer_names    in order, automatic splits included
    blob_shapes    shape of every blob, in order of first appearance
    inputs         tops of Input layers; outputs: blobs that nobody consumes, in byte order of their names
    params         parameter blobs by layer name
    learnable      one (owner) parameter blob each, in Caffe's order, with lr_mults and decay_mults beside
    loss_weights   weight by blob name, of the blobs that have one
    debug_info     whether passes log the mean absolute values of blobs and diffs; may be set
    """

    def __init__(
        self,
        param: NetParameter,
        run: Run | None = None,
        share_from: Net | None = None,
    ) -> None:
        super().__init__()
        run = Run() if run is None else run
        if run.data_resources is None:
            run = replace(run, data_resources=DataResources(ranks=run.ranks.size))
        self.run = run
        self.name = param.name
        self.phase = param.state.phase
        filtered = filter_by_state(param, param.state)
        if logger.isEnabledFor(logging.INFO):
            text = f"Initializing net from parameters: \n{to_text(filtered)}".rstrip("\n")
            log_line("net.cpp:53", text, lines=True)
        # The message that is built, rules applied and splits inserted; a snapshot's NetParameter comes from
        # it.
        self.param = insert_splits(filtered)
        self.force_backward, self.debug_info = param.force_backward, param.debug_info
        self.layers = nn.ModuleList()
        self.steps: list[Step] = []
        self.blob_shapes: dict[str, Shape] = {}
        self.inputs: list[str] = []
        self.params: dict[str, list[nn.Parameter]] = {}
        self.learnable: list[nn.Parameter] = []
        self.lr_mults: list[float] = []
        self.decay_mults: list[float] = []
        self.loss_weights: dict[str, float] = {}
        self._owners: dict[str, tuple[int, Layer, int]] = {}
        self._given_mults: list[tuple[bool, bool]] = []
        self._available: set[str] = set()
        self._blob_need_backward: dict[str, bool] = {}
        self._memory = 0
        self._layer_params: list[LayerParameter] = []
        self._shared: dict[str, str] = {}
        for layer_param in self.param.layer:
            self._add_layer(layer_param)
        self._report_leftovers()
        self._prune_backward()
        self.outputs = sorted(self._available, key=lambda name: name.encode())
        for name in self.outputs:
            log_line("net.cpp:244", f"This network produces output {name}")
        for parameter, lr_mult in zip(self.learnable, self.lr_mults, strict=True):
            parameter.requires_grad_(lr_mult != 0 or self.force_backward)
        self.to(self.dtype)
        if share_from is not None:
            self.share_with(share_from)
        self._finish_steps()
        self.plan = self.steps
        self._label_readers = [m for m in self.modules() if isinstance(m, LabelReader)]
        log_line("net.cpp:257", "Network initialization done.")

    @property
    def dtype(self) -> torch.dtype:
        """Of parameters and blobs."""
        return self.run.dtype

    @property
    def layer_names(self) -> list[str]:
        return [step.layer.name for step in self.steps]

    def layer(self, name: str) -> Layer:
        """The layer of this name; LayerError lists the names."""
        for step in self.steps:
            if step.layer.name == name:
                return step.layer
        raise LayerError(f"net {self.name!r} has no layer {name!r}; it has {', '.join(self.layer_names)}")

    # -- building --------------------------------------------------------------------------------------------

    def _add_layer(self, source: LayerParameter) -> None:
        param = LayerParameter()
        param.CopyFrom(source)
        if not param.HasField("phase"):
            param.phase = self.phase
        if param.propagate_down and len(param.propagate_down) != len(param.bottom):
            raise LayerError(
                param,
                "propagate_down param must be specified either 0 or bottom_size times; "
                f"got {len(param.propagate_down)} for {len(param.bottom)} bottoms",
            )
        log_line("layer_factory.hpp:77", f"Creating layer {param.name}")
        layer = layer_class(param.type)(param)
        log_line("net.cpp:86", f"Creating Layer {param.name}")
        bottom_need_backward = [self._append_bottom(param, index) for index in range(len(param.bottom))]
        need_backward = any(self._blob_need_backward[bottom] for bottom in param.bottom)
        tops = self._append_tops(param, layer)
        bottom_shapes = [self.blob_shapes[bottom] for bottom in param.bottom]
        shapes = layer.build(bottom_shapes, self.run)
        if len(shapes) != len(tops):
            raise LayerError(param, f"{len(shapes)} tops are made, {len(tops)} are named: {', '.join(tops)}")
        log_line("net.cpp:124", f"Setting up {param.name}")
        weights = self._loss_weights(layer, len(tops))
        for top, shape, weight in zip(tops, shapes, weights, strict=True):
            self.blob_shapes[top] = shape
            if weight:
                self.loss_weights[top] = weight
            self._log_top(shape, weight)
        log_line("net.cpp:139", f"Memory required for data: {self._memory * self.dtype.itemsize}")
        need_backward |= self._append_params(param, layer)
        if need_backward:
            self._blob_need_backward.update(dict.fromkeys(tops, True))
        self.layers.append(layer)
        self._layer_params.append(param)
        run = partial(_next_tops, layer, self.dtype) if isinstance(layer, DataLayer) else layer
        self.steps.append(
            Step(
                layer,
                run,
                tuple(param.bottom),
                tuple(tops),
                bottom_need_backward,
                need_backward,
                shapes=bottom_shapes,
            )
        )

    def _report_leftovers(self) -> None:
        layers = [step.layer for step in self.steps]
        found = [f"layer '{layer.name}' ({layer.type}): {', '.join(layer.leftovers)}"
                 for layer in layers if layer.leftovers]  # fmt: skip
        report_leftovers(logger, f"net '{self.name}' ({Phase.Name(self.phase)})", found, LayerError)

    def _append_bottom(self, param: LayerParameter, index: int) -> bool:
        bottom = param.bottom[index]
        if bottom not in self._available:
            raise LayerError(f"Unknown bottom blob '{bottom}' (layer '{param.name}', bottom index {index})")
        log_line("net.cpp:408", f"{param.name} <- {bottom}")
        self._available.discard(bottom)
        if param.propagate_down:
            return param.propagate_down[index]
        return self._blob_need_backward[bottom]

    def _append_tops(self, param: LayerParameter, layer: Layer) -> list[str]:
        seen: set[str] = set()
        for index, top in enumerate(param.top):
            if index < len(param.bottom) and param.bottom[index] == top:
                log_line("net.cpp:369", f"{param.name} -> {top} (in-place)")
            elif top in self.blob_shapes or top in seen:
                raise LayerError(param, f"Top blob '{top}' produced by multiple sources.")
            else:
                log_line("net.cpp:382", f"{param.name} -> {top}")
                self._blob_need_backward[top] = False
            self._available.add(top)
            seen.add(top)
            if layer.is_fed:
                self.inputs.append(top)
        tops = list(param.top)
        if layer.auto_tops:
            while len(tops) < max(layer.min_tops, layer.num_tops or 0):
                log_line("net.cpp:382", f"{param.name} -> {AUTOMATIC}")
                # Caffe calls every such blob so; a name each keeps them apart here (see blob_name).
                tops.append(f"{AUTOMATIC}{param.name}:{len(tops)}")
                self._blob_need_backward[tops[-1]] = False
        return tops

    def _loss_weights(self, layer: Layer, num_tops: int) -> list[float]:
        given = list(layer.param.loss_weight)
        if given:
            if len(given) != num_tops:
                raise layer.error(
                    f"loss_weight must be unspecified or specified once per top blob; got {len(given)} for "
                    f"{num_tops} tops"
                )
            return given
        return [float(layer.default_loss_weight(index)) for index in range(num_tops)]

    def _append_params(self, param: LayerParameter, layer: Layer) -> bool:
        if len(param.param) > len(layer.blobs):
            raise LayerError(
                param,
                f"Too many params specified for layer {param.name}: {len(param.param)} for "
                f"{len(layer.blobs)} blobs",
            )
        # Caffe: whether the layer needs a backward pass is judged by the prototxt's lr_mult, before a layer
        # (BatchNorm) sets its own to 0.
        need_backward = any(
            param.param[i].lr_mult != 0 if i < len(param.param) else True for i in range(len(layer.blobs))
        )
        specs = layer.param_specs()
        for index, spec in enumerate(specs):
            owner = self._owners.get(spec.name) if spec.name else None
            if owner is None:
                self._own(layer, index, spec)
            else:
                self._share(layer, index, spec, owner)
        if len(layer.blobs):
            self.params[param.name] = list(layer.blobs)
        return need_backward

    def _own(self, layer: Layer, index: int, spec: ParamSpec) -> None:
        if spec.name:
            self._owners[spec.name] = (len(self.learnable), layer, index)
        self.learnable.append(layer.blobs[index])
        self.lr_mults.append(spec.lr_mult)
        self.decay_mults.append(spec.decay_mult)
        self._given_mults.append((spec.HasField("lr_mult"), spec.HasField("decay_mult")))

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
        mults = (self.lr_mults, self.decay_mults)
        given = list(self._given_mults[learnable_id])
        for which, name in enumerate(("lr_mult", "decay_mult")):
            if spec.HasField(name):
                value = getattr(spec, name)
                if given[which] and mults[which][learnable_id] != value:
                    raise LayerError(
                        f"Shared param '{spec.name}' has mismatched {name}: "
                        f"{mults[which][learnable_id]:g} and, in layer '{layer.name}', {value:g}"
                    )
                mults[which][learnable_id], given[which] = value, True
        self._given_mults[learnable_id] = (given[0], given[1])
        layer.blobs[index] = theirs

    def _prune_backward(self) -> None:
        """Take the backward passes away that cannot reach a loss; give them all back under force_backward."""
        under_loss: set[str] = set()
        skip: set[str] = set()
        for step in reversed(self.steps):
            contributes = any(top in self.loss_weights or top in under_loss for top in step.tops)
            if step.need_backward and all(top in skip for top in step.tops):
                step.need_backward = False
                step.bottom_need_backward = [False] * len(step.bottoms)
            if not contributes:
                step.need_backward = False
                step.bottom_need_backward = [False] * len(step.bottoms)
            else:
                under_loss.update(step.bottoms)
            skip.update(
                b for b, need in zip(step.bottoms, step.bottom_need_backward, strict=True) if not need
            )
            if step.need_backward:
                log_line("net.cpp:200", f"{step.layer.name} needs backward computation.")
            else:
                log_line("net.cpp:202", f"{step.layer.name} does not need backward computation.")
        if self.force_backward:
            for step in self.steps:
                step.need_backward = True
                step.bottom_need_backward = [
                    need or step.layer.allows_force_backward(index)
                    for index, need in enumerate(step.bottom_need_backward)
                ]

    def _finish_steps(self) -> None:
        for step in self.steps:
            if step.need_backward:
                step.layer.bottom_need_backward = tuple(step.bottom_need_backward)
            else:
                step.layer.bottom_need_backward = (False,) * len(step.bottoms)
            if step.layer.param.propagate_down:
                step.detach = tuple(not need for need in step.bottom_need_backward)
        last_in_place: dict[str, tuple[int, str]] = {}  # by memory: the last step to overwrite it, the blob
        for index, step in enumerate(self.steps):
            if step.layer.shares_memory:
                self._shared.update(dict.fromkeys(step.tops, self.memory_of(step.bottoms[0])))
            for top in {*step.tops}.intersection(step.bottoms):
                last_in_place[self.memory_of(top)] = index, top
        for index, step in enumerate(self.steps):
            if step.tops:
                last, step.memory = last_in_place.get(self.memory_of(step.tops[0]), (-1, step.tops[0]))
                step.overwritten = _is_overwritten(step, last > index)
        spoilt = [f"'{step.layer.name}' ({step.layer.type})" for step in self.steps if _is_spoilt(step)]
        if spoilt:
            logger.warning(
                "layer %s: in place, Caffe overwrites what it still needs; here values and gradients are as "
                "if the top had a name of its own",
                ", ".join(spoilt),
            )
        for reader, blob, writer in self._overwritten_for_others():
            logger.warning(
                "layer '%s' (%s): in Caffe its bottom '%s' lies in memory that layer '%s' (%s), in place, "
                "has overwritten; here it has the values that it was given",
                reader.name, reader.type, blob, writer.name, writer.type,
            )  # fmt: skip
        mark_frees(self.steps)

    def _overwritten_for_others(self) -> list[tuple[Layer, str, Layer]]:
        """Who reads a blob whose memory has been overwritten under another name: reader, blob, writer."""
        found: list[tuple[Layer, str, Layer]] = []
        written: dict[str, int] = {}
        overwritten: dict[str, int] = {}  # by memory
        for index, step in enumerate(self.steps):
            for bottom in step.bottoms:
                at = overwritten.get(self.memory_of(bottom), -1)
                if at > written.get(bottom, -1):
                    found.append((step.layer, bottom, self.steps[at].layer))
            written.update(dict.fromkeys(step.tops, index))
            if not (step.layer.idle_in_test and self.phase == TEST):
                for top in {*step.tops}.intersection(step.bottoms):
                    overwritten[self.memory_of(top)] = index
        return found

    def memory_of(self, blob: str) -> str:
        """The blob in whose memory this one lies, in Caffe: its own but where a layer hands memory on."""
        return self._shared.get(blob, blob)

    def _log_top(self, shape: Shape, weight: float) -> None:
        count = 1
        for d in shape:
            count *= d
        self._memory += count
        log_line("net.cpp:131", f"Top shape: {shape_string(shape)}")
        if weight:
            log_line("net.cpp:134", f"    with loss weight {weight:g}")

    def share_with(self, other: Net) -> None:
        """Use the other net's parameters where layer names agree (Caffe's ShareTrainedLayersWith)."""
        mine: dict[str, Layer] = {}
        for step in self.steps:
            mine.setdefault(step.layer.name, step.layer)  # Caffe: the first layer of a name
        replaced: dict[int, nn.Parameter] = {}
        for step in other.steps:
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
        self._replace(replaced)

    def _replace(self, replaced: Mapping[int, nn.Parameter]) -> None:
        """Use other parameters in the places of those with these ids."""
        self.learnable = [replaced.get(id(old), old) for old in self.learnable]
        for step in self.steps:
            for index, old in enumerate(step.layer.blobs):
                if (new := replaced.get(id(old), old)) is not old:
                    step.layer.blobs[index] = new
                    self.params[step.layer.name] = list(step.layer.blobs)

    # -- running ---------------------------------------------------------------------------------------------

    def data_layers(self) -> list[DataLayer]:
        """The layers that make blobs themselves, in order."""
        return [step.layer for step in self.steps if isinstance(step.layer, DataLayer)]

    def next_batch(self) -> dict[str, Tensor]:
        """The next blobs of all data layers, on the CPU, in the net's dtype."""
        blobs: dict[str, Tensor] = {}
        for step in self.steps:
            if isinstance(step.layer, DataLayer):
                blobs.update(zip(step.tops, step.run(), strict=True))
        return blobs

    def forward(
        self, blobs: Mapping[str, Tensor] | None = None, keep: Iterable[str] = ()
    ) -> dict[str, Tensor]:
        """Run all layers; returns the output blobs, the losses, and the blobs named in `keep`.

        blobs   values of the inputs and, if they have been fetched already, of the data layers' tops; a data
                layer whose tops are not given fetches its next batch.
        """
        values = dict(blobs) if blobs is not None else {}
        given = set(values)
        missing = [name for name in self.inputs if name not in values]
        if missing:
            raise LayerError(f"net {self.name!r}: input {', '.join(missing)} is not given")
        kept = {*self.outputs, *self.loss_weights, *keep}
        memory: dict[str, Tensor | None] = {}
        for step in self.plan:
            if step.bottoms or not step.tops or not given.issuperset(step.tops):
                self._run_step(step, values, memory)
            if self.debug_info:
                log_forward(step, values)
            for name in step.frees:
                if name not in kept:
                    del values[name]
        return {name: value for name, value in values.items() if name in kept}

    def _run_step(self, step: Step, values: dict[str, Tensor], memory: dict[str, Tensor | None]) -> None:
        """Put the step's tops into `values`, and into `memory` those that lie where a backward pass reads."""
        place = self.memory_of(step.tops[0]) if step.tops else ""
        found = None
        if step.overwritten and torch.is_grad_enabled():
            memory[place] = None
            found = Memory(partial(memory.get, place))
        values.update(zip(step.tops, run_step(step, values, found), strict=True))
        if place in memory:
            memory[place] = values[step.tops[0]]  # the last one to be put there stays

    def loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """Sum of loss_weight * top over all tops that have a loss weight, a scalar."""
        total = None
        for name, weight in self.loss_weights.items():
            term = blobs[name].sum()
            term = term if weight == 1 else term * weight
            total = term if total is None else total + term
        return torch.zeros(()) if total is None else total

    def check_labels(self) -> None:
        """Raise for a label out of range that a loss saw on a device; one sync each."""
        for reader in self._label_readers:
            reader.check()


def _next_tops(layer: DataLayer, dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(top.to(dtype) for top in layer.next_batch())


def _is_overwritten(step: Step, later: bool) -> bool:
    """Whether what a step's backward pass reads in Caffe is overwritten in place, by it or a later step."""
    in_place = bool(step.tops) and step.tops[0] in step.bottoms
    if in_place and step.layer.spoils_in_place:
        return False
    return (step.layer.reads_top and later) or (step.layer.reads_bottom and in_place)


def _is_spoilt(step: Step) -> bool:
    """Whether Caffe, in place, would give a wrong top or gradient."""
    in_place = not set(step.tops).isdisjoint(step.bottoms)
    return in_place and (
        step.layer.spoils_in_place == "data" or (step.layer.spoils_in_place == "diff" and step.need_backward)
    )
