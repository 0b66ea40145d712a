"""The contract of a layer: one torch module per `layer { }` of a prototxt.

A layer type is a class with an arity, `setup` (parameter blobs), `top_shapes` and `forward`; its backward is
autograd's, or a `torch.autograd.Function` where Caffe's gradient is not the derivative of its forward. With
`to_onnx` it can be exported, too; onnx_graph.py has that method's contract and an example.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, NoReturn

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from imae.files.errors import ExportError, LayerError
from imae.files.limits import blob_problem
from imae.layers.autograd import apply
from imae.layers.blob import array_from_blob, shape_string
from imae.layers.caffe_random import CaffeRandom
from imae.layers.filler import fill
from imae.layers.plugin_checks import check_shapes, check_tops
from imae.layers.run import Run
from imae.prototxt import FillerParameter, LayerParameter, ParamSpec
from imae.prototxt.fork_names import FORK_NUMBERS

if TYPE_CHECKING:
    from imae.layers.onnx_graph import OnnxGraph
    from imae.layers.ranks import Ranks

Shape = tuple[int, ...]


class ReceptiveWindow(NamedTuple):
    """On the last axes: how many places of a bottom one place of the top depends on, and from top to top.

    stride   below 1 for layers that enlarge
    """

    size: Shape
    stride: tuple[Fraction, ...]


AUTOMATIC = "(automatic)"  # Caffe's name for a top that a layer needs and the prototxt leaves out

# Fields of LayerParameter below this number (name, bottom, ...) belong to all types, the others to some.
FIRST_PARAMETER = 100
# Caffe's own fields have lower numbers. A field that Caffe lacks is either read or an error, no leftover.
FIRST_OF_OURS = 1000
# The name of Intel's library that computes the layer. As the `engine` of a type's own parameter it changes no
# numbers, except for BatchNorm (batch_norm.py).
ENGINE = "engine"
# Such a message that a fork does not pass over, where one may do without it.
NOTES = {"quantization_param": "it makes Intel's fork compute with 8-bit integers; here in floating point"}
OF_THE_FORK = ("caffe.LossParameter.lamda_p", "caffe.LossParameter.scale")


class Layer(nn.Module):
    """Base of all layers.

    Class attributes give the arity: `num_bottoms`/`num_tops` (exact) or `min_`/`max_` (bounds);
    `same_count` requires as many tops as bottoms.

    name, type   of the layer
    param        its LayerParameter, never changed
    leftovers    fields that are set and have no effect, as in Caffe; the net lists them in a warning
    phase        TRAIN or TEST; the only switch of behaviour (torch's .training is not read)
    blobs        parameter blobs in Caffe's order
    random       the run's CaffeRandom; draws for fillers and masks come from it
    """

    num_bottoms: ClassVar[int | None] = None
    min_bottoms: ClassVar[int] = 0
    max_bottoms: ClassVar[int | None] = None
    num_tops: ClassVar[int | None] = None
    min_tops: ClassVar[int] = 0
    max_tops: ClassVar[int | None] = None
    same_count: ClassVar[bool] = False
    in_place: ClassVar[bool] = True  # False: Caffe refuses a top that is also a bottom
    deployed: ClassVar[bool] = True  # False: losses and accuracies, which a deployed net leaves out
    undeployed_fields: ClassVar[tuple[str, ...]] = ()  # "message.field": what a deployed net leaves out
    makes_input: ClassVar[bool] = False  # True: tops come from outside the net; an Input when deployed
    is_user_code: ClassVar[bool] = False  # True: code of a project, which may do anything to its blobs
    plugin: ClassVar[str] = ""  # the package that brings the type; set by the registry
    is_fed: ClassVar[bool] = False  # True: it computes nothing, the net's caller sets the tops (Input)
    idle_in_test: bool = False  # True: in phase TEST top[0] equals bottom[0] (Dropout)
    # True: a pass goes on from the states, kept in buffers, that the pass before has left. They are 0 at
    # first; an ONNX model always starts from 0.
    continues: bool = False
    # Caffe: whether the backward pass reads top[0], or bottom[0], from memory that in-place layers overwrite.
    reads_top: bool = False
    reads_bottom: bool = False
    # Caffe: whether the tops share bottom[0]'s memory, perhaps under another shape. An in-place layer after
    # this one then also overwrites bottom[0].
    shares_memory: bool = False
    # Whether each place of the tops, on the axes after the channels, needs that place of the bottoms alone.
    keeps_places: bool = False
    # Names of the parameter blobs, in Caffe's order, for ONNX initializers and PyTorch's keys (conv1.weight).
    # A blob beyond their end is blob2, ... by its index. `blob_name` gives the name of a layer's blob.
    blob_names: ClassVar[tuple[str, ...]] = ("weight", "bias")
    # Buffers that say what the prototxt says. A run that is resumed takes them from its own prototxt.
    constant_buffers: ClassVar[tuple[str, ...]] = ()
    # Axes of the tops whose size depends on values, not on shapes alone; axis 0 is then not the batch.
    open_axes: ClassVar[tuple[int, ...]] = ()
    # What Caffe overwrites too early when the layer runs in-place: "data" (the bottom's data, so the top is
    # wrong), "diff" (the top's diff, so the gradient is wrong) or "" (nothing). Here both are right.
    spoils_in_place: str = ""
    auto_tops: ClassVar[bool] = False  # True: the net makes the tops that the prototxt leaves out
    # Fields of LayerParameter that the type reads, besides the field named like the type or one of its base
    # classes: "softmax_param" for a whole message, "loss_param.ignore_label" for one field of a message.
    # Fields that it does not read are leftovers.
    reads: ClassVar[tuple[str, ...]] = ()
    # Fields that are named like the type and belong to another one: lstm_param to Lstm, not to LSTM.
    namesakes: ClassVar[tuple[str, ...]] = ()
    # If `reads` names single fields of a message: whether the message's other fields are leftovers. False for
    # types that Caffe lacks, where another field is an error, as nobody can state that it has no effect.
    unread_parts_are_leftovers: ClassVar[bool] = True

    # Whether weights may have fewer or more trailing axes of 1 than the layer's blobs, where forks that have
    # the same layer write other shapes.
    trailing_ones_vary: ClassVar[bool] = False
    # Advice on weights with another number of blobs, where a fork's layer of the same name has that number.
    advice_by_blob_count: ClassVar[Mapping[int, str]] = MappingProxyType({})

    # Set by the net: which bottoms need a gradient. As in Caffe, it may be true for a layer that sends none,
    # such as ArgMax.
    bottom_need_backward: tuple[bool, ...] = ()
    # Which top holds places of maxima, where rounding decides near-ties (near_ties.py), and those of a model,
    # which the check of an export sets.
    decision_top: int | None = None
    decided: Tensor | None = None
    # Set by a forward pass: the error that a backward pass through it raises.
    refusal: LayerError | None = None

    random: CaffeRandom

    @classmethod
    def variant(cls, param: LayerParameter) -> type[Layer]:
        """The class that makes this layer.

        Another than `cls` where forks use one name for different layers: then the fields or the number of
        bottoms tell which is meant. LayerError, with the candidates, where they do not.
        """
        return cls

    def __init__(self, param: LayerParameter) -> None:
        super().__init__()
        self.param = param
        self.name: str = param.name
        self.type: str = param.type  # type: ignore[assignment]  # Caffe's word; nn.Module's method casts dtypes
        self.phase = param.phase
        self.blobs = nn.ParameterList()
        self.blob_shapes: list[Shape] = []
        self.leftovers: list[str] = []
        self._find_leftovers()

    def build(self, bottom_shapes: Sequence[Shape], run: Run) -> list[Shape]:
        """Check the arity, make the parameter blobs, return the tops' shapes. Called once, by the net."""
        self._check_count("bottom", len(bottom_shapes))
        self._check_count("top", len(self.param.top))
        if self.same_count and len(bottom_shapes) != len(self.param.top):
            raise self.error(
                f"{self.type} Layer produces one top blob as output for each bottom blob input; "
                f"got {len(bottom_shapes)} bottoms and {len(self.param.top)} tops"
            )
        if not self.in_place and set(self.param.bottom) & set(self.param.top):
            raise self.error(
                f"{self.type} Layer does not allow in-place computation; give the top another name"
            )
        self.random = run.random
        self.use_run(run)
        self.setup(bottom_shapes)
        if len(self.param.blobs) > len(self.blobs):
            raise self.error(
                f"Incorrect number of weight blobs.; its prototxt has {len(self.param.blobs)}, "
                f"it needs {len(self.blobs)}"
            )
        return self.checked_top_shapes(bottom_shapes)

    def use_run(self, run: Run) -> None:
        """Store what this type needs from the run besides random numbers; called before `setup`."""

    def setup(self, bottom_shapes: Sequence[Shape]) -> None:
        """Make the parameter blobs with `add_blob`; check what depends on the bottoms' shapes."""

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """Shapes of the tops for bottoms of these shapes; by default all like bottom[0]."""
        return [tuple(bottom_shapes[0])] * len(self.param.top)

    def reshape(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """The tops' shapes for bottoms of other shapes than in the last pass; LayerError if they do not fit.

        Caffe calls Reshape before every Forward; here a net's step does, where a shape has changed.
        """
        return self.checked_top_shapes(bottom_shapes)

    def checked_top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        """`top_shapes`; LayerError for an impossible size, or an in-place top whose shape would change."""
        stated = self.top_shapes(bottom_shapes)
        if self.plugin:
            check_shapes(self, stated)
        shapes = [tuple(int(d) for d in shape) for shape in stated]
        shape_of_bottom = dict(zip(self.param.bottom, bottom_shapes, strict=False))
        for top, shape in zip(self.param.top, shapes, strict=False):
            if top in shape_of_bottom and shape != (old_shape := tuple(shape_of_bottom[top])):
                raise self.error(
                    f"blob '{top}' is bottom and top, and its shape would change from "
                    f"{shape_string(old_shape)} to {shape_string(shape)}; give the top a name of its own"
                )
            if any(d < 0 for d in shape):
                raise self.error(
                    f"top {top!r} would have the shape {shape}; bottoms are {list(bottom_shapes)}"
                )
            if problem := blob_problem(shape):
                raise self.error(f"top {top!r}: {problem}")
        return shapes

    # Loosely typed, like nn.Module's forward: a type names its bottoms in its own signature.
    forward: Callable[..., Any]
    """Compute the tops from the bottoms: a tensor, or a tuple of them. Bottoms are never written to."""

    def __call__(self, *bottoms: Tensor) -> Any:
        """The tops, from `forward`."""
        tops = super().__call__(*bottoms)
        if self.plugin:
            check_tops(self, bottoms, tops)
        if self.refusal is None:
            return tops
        refusal, self.refusal = self.refusal, None
        if isinstance(tops, Tensor):
            return _refused(tops, bottoms, refusal)
        return tuple(_refused(top, bottoms, refusal) for top in tops)

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can record the forward pass: it needs nothing from the host."""
        return True

    @property
    def repeatable(self) -> bool:
        """Whether another forward pass over the same bottoms makes the same tops, and neither changes more.

        False for a layer that draws random numbers, changes its blobs, counts its passes or writes a file.
        """
        return not self.continues and not self.get_state()

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        """For a bottom of indices: their number, valid are 0 to count - 1. None: it may hold any number.

        2 for a bottom of 0 and 1.
        """
        return None

    def example(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> NDArray[np.float32] | None:
        """Values of a bottom for the check of an export; None where any numbers will do."""
        return None

    def batch_axis(self, bottom_index: int) -> int:
        """The axis of the bottom that counts the items of a batch: 1 where time steps come first, else 0."""
        return 0

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        """Add nodes to `graph` that compute the values `tops` from the values `bottoms` as in phase TEST."""
        raise ExportError(
            f"layer {self.name!r}: type {self.type} has no ONNX form; its class gives it one by Layer.to_onnx"
        )

    def multiply_adds(self, bottom_shapes: Sequence[Shape], top_shapes: Sequence[Shape]) -> int:
        """How many products a forward pass adds up: of its weights with its bottoms, for all items together.

        0 for a type whose work is of another kind: bias, pooling, normalization, activation.
        """
        return 0

    def receptive_window(self, bottom_shape: Shape) -> ReceptiveWindow | None:
        """The places of bottom[0] that a place of the tops depends on; None: no window of a fixed size."""
        return None

    def get_state(self) -> dict[str, Any]:
        """What the next pass depends on besides bottoms, blobs and buffers, for an exact resume.

        Numbers, strings, bytes and numpy arrays, whose values never change later.
        """
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Continue where `get_state` was called."""

    def add_blob(self, shape: Shape, filler: FillerParameter) -> None:
        """Append a parameter blob: the next one given in the prototxt, else one that the filler fills."""
        if problem := blob_problem(shape):
            raise self.error(f"blob {len(self.blobs)}: {problem}")
        stored_blobs = self.param.blobs
        if stored_blobs:
            if len(self.blobs) >= len(stored_blobs):
                raise self.error(f"its prototxt has {len(stored_blobs)} blobs; more are needed")
            values = array_from_blob(stored_blobs[len(self.blobs)])
            if values.size != int(np.prod(shape)):
                raise self.error(
                    f"blob {len(self.blobs)} of its prototxt has shape {values.shape}, needs {shape}"
                )
            values = values.reshape(shape)
        else:
            try:
                values = fill(shape, filler, self.random)
            except LayerError as error:
                raise self.error(f"blob {len(self.blobs)}: {error}") from error
        self.blobs.append(nn.Parameter(torch.from_numpy(values)))
        self.blob_shapes.append(shape)

    def blob(self, index: int) -> Tensor:
        """Parameter blob `index` in this layer's own shape (a blob shared PERMISSIVE may have another)."""
        blob: Tensor = self.blobs[index]
        shape = self.blob_shapes[index]
        return blob if blob.shape == shape else blob.reshape(shape)

    def blob_name(self, index: int) -> str:
        """The name of parameter blob `index`, unique in this layer: weight, bias, ..."""
        return self.blob_names[index] if index < len(self.blob_names) else f"blob{index}"

    def param_specs(self) -> list[ParamSpec]:
        """One ParamSpec per blob: the prototxt's, or the default."""
        specs = list(self.param.param)
        return [specs[i] if i < len(specs) else ParamSpec() for i in range(len(self.blobs))]

    def default_loss_weight(self, top_index: int) -> float:
        """loss_weight of a top where the prototxt gives none."""
        return 0

    def allows_force_backward(self, bottom_index: int) -> bool:
        """Whether `force_backward` sends a gradient to this bottom."""
        return True

    def canonical_axis(self, axis: int, num_axes: int) -> int:
        """Axis counted from the front; LayerError where it does not exist."""
        if not -num_axes <= axis < num_axes:
            raise self.error(f"axis {axis} out of range for a blob with {num_axes} axes")
        return axis % num_axes if num_axes else 0

    def legacy_shape(self, shape: Shape) -> Shape:
        """The shape with four axes, (num, channels, height, width), absent ones 1; LayerError for more."""
        if len(shape) > 4:
            raise self.error(f"the bottom must have at most 4 axes, (N, C, H, W); got {tuple(shape)}")
        return (*shape, *(1,) * (4 - len(shape)))

    def error(self, message: str) -> LayerError:
        """A LayerError that names this layer."""
        return LayerError(self.param, message)

    def note_leftover(self, field: str, instead: str = "") -> None:
        """Note a field that is set and has no effect, as in Caffe; `instead`: the field to write."""
        self.leftovers.append(f"{field} (write {instead})" if instead else field)

    def _find_leftovers(self) -> None:
        """Note the fields that are set and that this type does not read.

        LayerError for a field that Caffe lacks: it was set for a purpose, which would be lost in silence.
        """
        own = {name.lower() for name in (self.type, *(base.__name__ for base in type(self).__mro__))}
        for field, value in self.param.ListFields():
            name = field.name
            if field.number < FIRST_PARAMETER or name in (*self.reads, ENGINE):
                continue
            if name.removesuffix("_param").replace("_", "") in own and name not in self.namesakes:
                continue
            parts = {entry.partition(".")[2] for entry in self.reads if entry.startswith(f"{name}.")}
            unread = [(name, field)]
            if parts:
                unread = [(f"{name}.{p.name}", p) for p, _ in value.ListFields() if p.name not in parts]
            for path, descriptor in unread:
                passed_over = descriptor.number < FIRST_OF_OURS and descriptor.full_name not in OF_THE_FORK
                # A fork passes over a message of a fork where a type does not read it, as Caffe over its own.
                passed_over |= descriptor is field and field.number in FORK_NUMBERS
                if not passed_over or (parts and not self.unread_parts_are_leftovers):
                    raise self.error(f"{self.type} does not look at {path}; remove it")
                self.note_leftover(f"{path} ({NOTES[path]})" if path in NOTES else path)

    def _check_count(self, kind: str, got: int) -> None:
        exact = getattr(self, f"num_{kind}s")
        low, high = getattr(self, f"min_{kind}s"), getattr(self, f"max_{kind}s")
        verb, noun = ("takes", "input") if kind == "bottom" else ("produces", "output")
        if kind == "top" and self.auto_tops:  # the net makes the missing ones
            exact, low, high = None, 0, exact or high
        if exact is not None and got != exact:
            raise self.error(f"{self.type} Layer {verb} {exact} {kind} blob(s) as {noun}.; got {got}")
        if got < low:
            raise self.error(f"{self.type} Layer {verb} at least {low} {kind} blob(s) as {noun}.; got {got}")
        if high is not None and got > high:
            raise self.error(f"{self.type} Layer {verb} at most {high} {kind} blob(s) as {noun}.; got {got}")

    def extra_repr(self) -> str:
        return f"{self.name!r}, {', '.join(self.param.bottom)} -> {', '.join(self.param.top)}"


def _refused(top: Tensor, bottoms: Sequence[Tensor], refusal: LayerError) -> Tensor:
    """The top; any backward pass through it raises this error."""
    # Requires a gradient even where no bottom does, so that autograd always calls `backward`.
    anchor = torch.zeros((), device=top.device, requires_grad=True)
    return apply(_Refused, refusal, top, anchor, *bottoms)


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, refusal: LayerError, top: Tensor, *inputs: Tensor) -> Tensor:
        ctx.refusal = refusal
        return top.view_as(top)

    @staticmethod
    def backward(ctx: Any, top_diff: Tensor) -> NoReturn:
        raise ctx.refusal


class DataLayer(Layer):
    """A layer that makes its tops itself; its random numbers, if any, come from its own generators.

    `next_batch` may therefore run before the net needs it (in a thread, or outside a captured graph).

    ranks    the processes among which the records are divided in TRAIN; in TEST rank 0 works alone
    waited   total seconds that callers of `next_batch` have waited; counted if `prefetches` is set
    record_size
             (height, width) of the images before the transform; None: there are none, or of several sizes
    """

    num_bottoms = 0
    makes_input = True
    prefetches: ClassVar[bool] = False  # True: batches are made in advance
    waited = 0.0
    record_size: tuple[int, int] | None = None
    ranks: Ranks

    def use_run(self, run: Run) -> None:
        self.ranks = run.ranks_in(self.phase)

    def next_batch(self) -> tuple[Tensor, ...]:
        """The tops of the next forward pass, on the CPU."""
        raise self.error(f"{self.type} defines no next_batch")

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return self.next_batch()

    def make_resident(self, device: torch.device, budget: int) -> bool:
        """Keep all records on `device`, if the type supports it and they need at most `budget` bytes.

        Returns whether they are resident. A batch is then made in two steps: `assemble(next_draw())` equals
        `next_batch()`.
        """
        return False

    def next_draw(self) -> Tensor:
        """With resident records: what makes up the next batch, a few numbers on the host."""
        raise self.error("its records are not resident on a device")

    def assemble(self, drawn: Tensor) -> tuple[Tensor, ...]:
        """With resident records: the batch of a draw, on the device, computed without the host."""
        raise self.error("its records are not resident on a device")


class LossLayer(Layer):
    """A layer whose first top is a scalar (shape ()) with loss_weight 1 unless the prototxt gives another.

    bottom[0]  predictions, bottom[1] labels; no gradient goes to the labels.
    """

    num_bottoms: ClassVar[int | None] = 2
    num_tops: ClassVar[int | None] = 1
    auto_tops = True
    deployed = False

    def checked_top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        if not all(bottom_shapes[:2]):
            raise self.error(
                "axis 0 out of range for a blob with 0 axes; "
                f"got data {bottom_shapes[0]} and label {bottom_shapes[1]}"
            )
        if bottom_shapes[0][:1] != bottom_shapes[1][:1]:
            raise self.error(
                "The data and label should have the same first dimension; "
                f"got data {bottom_shapes[0]} and label {bottom_shapes[1]}"
            )
        return super().checked_top_shapes(bottom_shapes)

    def top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
        return [()]

    def default_loss_weight(self, top_index: int) -> float:
        return 1 if top_index == 0 else 0

    def allows_force_backward(self, bottom_index: int) -> bool:
        return bottom_index != 1


def blob_name(name: str) -> str:
    """The name of a blob as Caffe shows it; inside a net every automatic top has a unique name."""
    return AUTOMATIC if name.startswith(AUTOMATIC) else name
