"""LazyStepwise: a Stepwise whose blobs, in a TEST net, are made when somebody looks at them.

A script that classifies images calls `forward` of the whole net and reads an output. Stepwise would run each
layer by itself and copy each blob to its memory. Here such a pass runs the fast plan of inference.py. The
outputs, the losses and the blobs that were asked for are stored. All other blobs are pending.

A look at a pending blob makes all of them: layer by layer, as Stepwise does, from the inputs and the weights
that the pass had. So every value is what Stepwise gives; stored ones differ by rounding. The blob that was
looked at is stored by the next passes, for some time. So is a blob of which a script has an array, as it
shows the values of each pass. What computes with pending blobs (a pass over some of the layers, a
backward pass) makes them, too, and the next passes run plainly.

Scripts may write to any array at any time. So the inputs' values are copied, and the weights whose arrays
scripts have are compared with what they were at the pass before. All other changes of weights are announced
(synced_memory.py), except those that bypass pycaffe and write to the module's parameters.

Only layers whose passes can be repeated are put off (`Layer.repeatable`). Layers that make data run at once.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from imae.files.errors import ImaeError
from imae.layers.layer import Shape
from imae.layers.utility import synced_memory
from imae.layers.utility.synced_memory import ParameterMemory, announce_change
from imae.net.inference import InferencePlan, plan_inference
from imae.net.net import Net
from imae.net.step import Step
from imae.net.stepwise import CPU, Place, Stepwise
from imae.prototxt import TEST

# For so many passes a blob is stored after a look at it, and passes are plain after a backward pass.
PATIENCE = 16
# So many passes in a row whose pending blobs were looked at are followed by plain passes.
MISSES = 3


@dataclass
class _Pending:
    """A pass whose blobs have not all been made.

    values       of the blobs that the pass began with: inputs and the tops of data layers
    parameters   values, at the pass, of the parameters that scripts may have written to since
    made         the names of the blobs that were stored
    places       the memory of every blob at the pass, if blobs were reshaped since
    reshaped     whether the whole net was reshaped since
    """

    values: dict[str, Tensor]
    parameters: dict[nn.Parameter, Tensor]
    made: set[str]
    places: dict[str, Place] = field(default_factory=dict)
    reshaped: bool = False


class LazyStepwise(Stepwise):
    """A Stepwise that puts off the blobs of whole passes of a TEST net on the CPU, where this is safe."""

    def __init__(self, net: Net, device: torch.device = CPU) -> None:
        super().__init__(net, device)
        steps = list(enumerate(net.steps))
        self._sources = [i for i, step in steps if _is_source(step)]
        self._computed = [i for i, step in steps if not _is_source(step) and not step.layer.is_fed]
        self._begins = [name for i, step in steps if i not in self._computed for name in step.tops]
        self._unrepeatable = [net.steps[i] for i in self._computed if not net.steps[i].layer.repeatable]
        self._losses = [n for i in self._computed for n in net.steps[i].tops if n in net.loss_weights]
        self._inner = set(net.blob_shapes).difference(self._begins, net.outputs, net.loss_weights)
        layers = [step.layer for step in net.steps]
        self._shapes_vary = any(layer.open_axes or not layer.capturable for layer in layers)
        self._can_plan = (
            device == CPU
            and net.phase == TEST
            and bool(self.blobs)
            and not self._unrepeatable
            and self._is_simple()
        )

        self._passes = 0
        self._plain_until = 0
        self._misses = 0
        self._last_use: dict[str, int] = {}  # by blob: the last pass whose value of it was used
        self._lent: set[str] = set()  # blobs of which a script may have an array
        self._pending: _Pending | None = None
        self._spare: dict[str, Tensor] = {}  # memory for the next pass's values
        self._shapes: dict[str, Shape] | None = None  # of the inputs, when all blobs had the shapes for them

        self._plan: InferencePlan | None = None
        self._keep: frozenset[str] = frozenset()
        self._parameters: set[nn.Parameter] = set()  # that the plan has read
        # Parameters that scripts may write to, with their values when the plan last read them.
        self._watched: dict[nn.Parameter, Tensor] = {}
        self._weights_changed = False

    def _is_simple(self) -> bool:
        """Whether no layer overwrites what a pass begins with, or a blob with a loss_weight."""
        written = [name for index in self._computed for name in self.net.steps[index].tops]
        return not set(written).intersection(self._begins) and len(self._losses) == len(set(self._losses))

    # -- passes ----------------------------------------------------------------------------------------------

    def forward(self, start: int = 0, end: int | None = None, keep: Iterable[str] = ()) -> float:
        """Run the layers start..end; returns the sum of their weighted losses.

        keep   blobs that will be looked at
        """
        whole = start == 0 and end in (None, len(self.net.steps) - 1)
        self._passes += whole
        if whole and self._may_be_lazy():
            wanted = self._wanted(keep)
            if 2 * len(wanted) <= len(self._inner):
                return self._forward_lazily(wanted)
        if start > 0:
            self._stay_plain()
        self.settle()
        self._shapes = None
        announce_change(blob for step in self._unrepeatable for blob in step.layer.blobs)
        return super().forward(start, end)

    def _may_be_lazy(self) -> bool:
        watching = self.before_forward or self.after_forward or self.before_compute or self.after_compute
        return (
            self._can_plan
            and self._passes > self._plain_until
            and not watching
            and not self.net.debug_info
            and synced_memory.in_cpu_memory(next(iter(self.blobs.values())).data)
        )

    def _wanted(self, keep: Iterable[str]) -> frozenset[str]:
        """The blobs that the next pass must store, besides outputs and losses."""
        self._lent = {name for name in self._lent if self.blobs[name].synced_data.is_seen}
        self._last_use.update(dict.fromkeys((*keep, *self._lent), self._passes))
        first = self._passes - PATIENCE
        return frozenset(name for name, last in self._last_use.items() if last > first) & self._inner

    def _forward_lazily(self, keep: frozenset[str]) -> float:
        before = self._pending
        if before is not None:  # nobody has looked into it
            self._misses = 0
        loss = 0.0
        for index in self._sources:
            self._remember_places()
            loss += self._forward_step(index)
        values = {name: self._copied(name) for name in self._begins}
        try:
            self._propagate_shapes({name: tuple(value.shape) for name, value in values.items()})
            plan = self._planned(keep)
            results = plan.run(values)
        except ImaeError:
            # The plain pass fails at the same layer, and leaves the blobs before it as Stepwise does.
            self.settle()
            self._shapes = None
            return loss + sum(self._forward_step(index) for index in self._computed)
        self._spare = {} if before is None else before.values
        made = {*keep, *self.net.outputs, *self.net.loss_weights}.difference(self._begins)
        for name in made:
            self.blobs[name].store(results[name])
        self._pending = _Pending(values, dict(self._watched), made.union(self._begins))
        for name in self._losses:  # as Stepwise, which sees a loss_weight that the script has changed
            loss += float((self.blobs[name].data * self.blobs[name].diff).sum())
        return loss

    def _copied(self, name: str) -> Tensor:
        """A copy of the blob's values, which nobody else can write to."""
        data, spare = self.blobs[name].data, self._spare.pop(name, None)
        return data.clone() if spare is None or spare.shape != data.shape else spare.copy_(data)

    def _propagate_shapes(self, shapes: dict[str, Shape]) -> None:
        """Give all blobs the shapes for inputs of these shapes, where only these decide."""
        if shapes != self._shapes and not self._shapes_vary:
            self._remember_places()
            super().reshape()
            self._shapes = shapes

    def _planned(self, keep: frozenset[str]) -> InferencePlan:
        """A plan that stores these blobs and has read the weights as they are now."""
        if not self._parameters:
            self._read_parameters()
        watched = {}
        for parameter, values in self._watched.items():
            if not _are_same(parameter, values):
                self._weights_changed = True
                values = parameter.detach().clone()
            if ParameterMemory.of_parameter(parameter).data.is_seen:
                watched[parameter] = values
        self._watched = watched
        if self._plan is None or keep != self._keep:
            self._plan, self._keep = plan_inference(self.net, sorted(keep)), keep
        elif self._weights_changed:
            self._plan.weights_changed()
        self._weights_changed = False
        return self._plan

    def backward(self, start: int | None = None, end: int = 0) -> None:
        """Run the backward passes of layers start..end, downwards, from the diffs of their tops."""
        self._stay_plain()
        self.settle()
        super().backward(start, end)

    def _stay_plain(self) -> None:
        """Run the next passes plainly, since what is done after them needs all blobs."""
        self._plain_until = self._passes + PATIENCE

    # -- pending blobs ---------------------------------------------------------------------------------------

    def look(self, name: str) -> None:
        """Make the blob if it is pending, before a script gets its array."""
        self._lent.add(name)
        if self._passes:  # before the first one, scripts look at shapes
            self._last_use[name] = self._passes
        if self._pending is not None and name not in self._pending.made:
            self._misses += 1
            if self._misses == MISSES:
                self._misses = 0
                self._stay_plain()
            self.settle()

    def look_at_shape(self, name: str) -> None:
        """Make the blob if it is pending and its shape may depend on values, before a script gets it."""
        if self._shapes_vary and self._pending is not None and name not in self._pending.made:
            self.settle()

    def settle(self) -> None:
        """Make all pending blobs, layer by layer, as they were at the pass that put them off.

        Memory and weights are for this time what they were then. What was stored at the pass, and may have
        been overwritten since, is restored afterwards.
        """
        pending, self._pending = self._pending, None
        if pending is None:
            return
        places = {name: self.blobs[name].place for name in pending.places}
        for name, place in pending.places.items():
            self.blobs[name].place = place
        stored = {name: self.blobs[name].data.clone() for name in pending.made}
        weights = {parameter: parameter.detach().clone() for parameter in pending.parameters}
        try:
            for name, values in pending.values.items():
                self.blobs[name].data.copy_(values)
            for parameter, values in pending.parameters.items():
                parameter.data.copy_(values)
            for index in self._computed:
                self._forward_step(index)
        finally:
            for parameter, values in weights.items():
                parameter.data.copy_(values)
            for name, values in stored.items():
                self.blobs[name].store(values)
            for name, place in places.items():
                if place[0] is not pending.places[name][0]:  # else it has grown just now, if at all
                    self.blobs[name].place = place
            if pending.places:
                self._shapes = None
            if pending.reshaped:
                self._graphs.clear()

    def _remember_places(self) -> None:
        """Keep the memory of the pending pass, before blobs are reshaped."""
        if self._pending is not None and not self._pending.places:
            self._pending.places = {name: blob.place for name, blob in self.blobs.items()}

    def reshape(self) -> None:
        """Propagate the shapes of the inputs through all layers (Caffe: Net::Reshape)."""
        if self._shapes_vary:
            self.settle()
        self._remember_places()
        if self._pending is not None:
            self._pending.reshaped = True
        super().reshape()
        self._shapes = {name: tuple(self.blobs[name].data.shape) for name in self._begins}

    def reshape_blob(self, name: str, shape: Shape) -> None:
        """Give one blob another shape."""
        self.look_at_shape(name)
        self._remember_places()
        self.blobs[name].reshape(shape)
        if name not in self._begins:
            self._shapes = None

    # -- weights ---------------------------------------------------------------------------------------------

    def _read_parameters(self) -> None:
        """Become a reader of all parameters, and watch those of which scripts have arrays."""
        self._parameters = {blob for step in self.net.steps for blob in step.layer.blobs}
        for parameter in self._parameters:
            memory = ParameterMemory.of_parameter(parameter)
            memory.readers.add(self)
            if memory.data.is_seen:
                self._watched[parameter] = parameter.detach().clone()

    def is_lent(self, parameter: nn.Parameter) -> None:
        """Keep the values of a parameter that a script may write to from now on."""
        if parameter in self._parameters and parameter not in self._watched:
            self._watched[parameter] = parameter.detach().clone()
            if self._pending is not None:
                self._pending.parameters.setdefault(parameter, self._watched[parameter])

    def will_change(self, parameters: Iterable[nn.Parameter]) -> None:
        """Make the pending blobs before these parameters change, and read them again at the next pass."""
        if not self._parameters.isdisjoint(parameters):
            self.settle()
            self._weights_changed = True

    def replace_parameters(self) -> None:
        """To be called before the net gets other parameters."""
        self.settle()
        self._plan = None
        self._parameters.clear()
        self._watched.clear()


def _is_source(step: Step) -> bool:
    """Whether the step's layer makes data: it runs in each pass, and only then."""
    return step.layer.makes_input and bool(step.tops) and not step.bottoms and not step.layer.is_fed


def _are_same(parameter: nn.Parameter, values: Tensor) -> bool:
    """Whether no bit differs: NaN equals itself, and 0 is not -0."""
    current = parameter.detach()
    if current.shape != values.shape:
        return False
    as_integers = torch.int32 if current.dtype == torch.float32 else torch.int64
    return torch.equal(current.contiguous().view(as_integers), values.contiguous().view(as_integers))
