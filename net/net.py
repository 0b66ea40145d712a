"""Net: a NetParameter made into a torch module that runs its layers in order over named blobs.

The plain net is the reference. Faster plans of the same layers (see fuse.py) are made from it. `forward` runs
the plan that is passed to it; every plan must give the same output blobs.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from imae.files.errors import LayerError
from imae.layers.data.data_resources import DataResources
from imae.layers.labels import LabelReader
from imae.layers.layer import DataLayer, Layer
from imae.layers.run import Run
from imae.net import kernels
from imae.net.build import build, share_parameters
from imae.net.debug_info import log_forward
from imae.net.in_place import memory_of
from imae.net.step import Memory, Step, run_step
from imae.net.summary import summarize
from imae.prototxt import NetParameter


class Net(nn.Module):
    """The layers of a net, built, connected and checked as in Caffe (see build.py).

    param          NetParameter; `state` (phase, level, stage) decides which layers are included
    run            what all layers of a run share: random numbers, which the fillers draw in Caffe's order,
                   ranks, memory and threads for the data layers, dtype
    share_from     a net whose parameters are used where layer names agree (a test net's train net); this
                   net's own blobs are filled nevertheless, so that the random stream is Caffe's

    name, phase, layers, steps
    param          the message that was built: include and exclude rules applied, splits inserted; a
                   snapshot's NetParameter comes from it
    layer_names    in order, automatic splits included
    blob_shapes    shape of every blob, in order of first appearance
    inputs         tops of Input layers; outputs: blobs that no layer consumes, in byte order of their names
    params         parameter blobs by layer name
    learnable      parameter blobs in Caffe's order, a shared one only once (its owner's); lr_mults and
                   decay_mults in the same order
    loss_weights   weight by blob name, of the blobs that have one
    debug_info     whether passes log the mean absolute values of blobs and diffs; may be set
    """

    def __init__(self, param: NetParameter, run: Run | None = None, share_from: Net | None = None) -> None:
        super().__init__()
        run = Run() if run is None else run
        if run.data_resources is None:
            run = replace(run, data_resources=DataResources(ranks=run.ranks.size))
        run = replace(run, plan_windows=kernels.plan_windows)
        built = build(param, run, None if share_from is None else share_from.steps)
        self.run, self.built = run, built
        self.name, self.phase, self.debug_info = param.name, param.state.phase, param.debug_info
        self.param: NetParameter = built.param
        self.steps: tuple[Step, ...] = built.steps
        self.layers = nn.ModuleList(step.layer for step in built.steps)
        self.blob_shapes, self.loss_weights = dict(built.blob_shapes), dict(built.loss_weights)
        self.inputs, self.outputs = list(built.inputs), list(built.outputs)
        self.learnable = list(built.learnable)
        self.lr_mults, self.decay_mults = list(built.lr_mults), list(built.decay_mults)
        self.params = _params(built.steps)
        self._label_readers = [m for m in self.modules() if isinstance(m, LabelReader)]

    @property
    def dtype(self) -> torch.dtype:
        """The type of parameters and blobs."""
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

    def memory_of(self, blob: str) -> str:
        """The blob whose memory this one uses in Caffe: itself, unless its layer shares the bottom's."""
        return memory_of(self.built.memory, blob)

    def share_with(self, other: Net) -> None:
        """Use the other net's parameters where layer names agree (Caffe's ShareTrainedLayersWith)."""
        self.learnable = share_parameters(self.steps, self.learnable, other.steps)
        self.params = _params(self.steps)

    def data_layers(self) -> list[DataLayer]:
        """The layers that make blobs themselves, in order."""
        return [step.layer for step in self.steps if isinstance(step.layer, DataLayer)]

    def next_batch(self) -> dict[str, Tensor]:
        """The next blobs of all data layers, on the CPU, in the net's dtype."""
        blobs: dict[str, Tensor] = {}
        for step in self.steps:
            if isinstance(step.layer, DataLayer):
                blobs.update(zip(step.tops, run_step(step, {}), strict=True))
        return blobs

    def forward(
        self,
        blobs: Mapping[str, Tensor] | None = None,
        keep: Iterable[str] = (),
        plan: Sequence[Step] | None = None,
    ) -> dict[str, Tensor]:
        """Run all layers; returns the output blobs, the losses, and the blobs named in `keep`.

        blobs   values of the inputs and, if they have been fetched already, of the data layers' tops; a data
                layer whose tops are missing fetches its next batch
        plan    the steps to run; by default `steps`, one for each layer
        """
        values = dict(blobs) if blobs is not None else {}
        given = set(values)
        self.check_inputs(values)
        kept = {*self.outputs, *self.loss_weights, *keep}
        memory: dict[str, Tensor | None] = {}
        for step in self.steps if plan is None else plan:
            if step.bottoms or not step.tops or not given.issuperset(step.tops):
                self._put_tops(step, values, memory)
            if self.debug_info:
                log_forward(step, values)
            for name in step.frees:
                if name not in kept:
                    del values[name]
        return {name: value for name, value in values.items() if name in kept}

    def check_inputs(self, blobs: Mapping[str, Tensor]) -> None:
        """LayerError for inputs that `blobs` lacks."""
        if missing := [name for name in self.inputs if name not in blobs]:
            raise LayerError(
                f"net {self.name!r}: input {', '.join(missing)} is not given, and no data layer makes it; "
                "give it by its name, or use the prototxt that has data layers"
            )

    def _put_tops(self, step: Step, values: dict[str, Tensor], memory: dict[str, Tensor | None]) -> None:
        """Put the step's tops into `values`; into `memory`, too, if a backward pass reads them there."""
        place = self.memory_of(step.tops[0]) if step.tops else ""
        overwritten = None
        if step.overwritten and torch.is_grad_enabled():
            memory[place] = None
            overwritten = Memory(partial(memory.get, place))
        values.update(zip(step.tops, run_step(step, values, overwritten), strict=True))
        if place in memory:
            memory[place] = values[step.tops[0]]  # of several tops in one memory, the last one stays

    def loss(self, blobs: Mapping[str, Tensor]) -> Tensor:
        """Sum of loss_weight * top over all tops that have a loss weight, a scalar."""
        total = None
        for name, weight in self.loss_weights.items():
            term = blobs[name].sum()
            term = term if weight == 1 else term * weight
            total = term if total is None else total + term
        return torch.zeros(()) if total is None else total

    def _repr_html_(self) -> str:
        """A notebook shows the net's layers as a table."""
        return summarize(self).as_html()

    def check_labels(self) -> None:
        """Raise for a label out of range that a layer read on a device; each layer's check waits for it."""
        for reader in self._label_readers:
            reader.check()


def _params(steps: Iterable[Step]) -> dict[str, list[nn.Parameter]]:
    return {step.layer.name: list(step.layer.blobs) for step in steps if len(step.layer.blobs)}
