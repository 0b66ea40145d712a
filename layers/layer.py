"""The contract of a layer: one torch module per `layer { }` of a prototxt.

A layer type is a class with an arity, `setup` (parameter blobs), `top_shapes` and `forward`; its backward is
autograd's, or a `torch.autograd.Function` where Caffe's gradient is not the derivative of its forward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, NoReturn

import numpy as np
import torch
from torch import Tensor, nn

from imae.files.errors import ExportError, LayerError
from imae.files.limits import blob_problem
from imae.layers.autograd import apply
from imae.layers.blob import array_from_blob, shape_string
from imae.layers.caffe_random import CaffeRandom
from imae.layers.filler import fill
from imae.layers.run import Run
from imae.prototxt import FillerParameter, LayerParameter, ParamSpec

if TYPE_CHECKING:
    from imae.layers.onnx_graph import OnnxGraph
    from imae.layers.ranks import Ranks

Shape = tuple[int, ...]
AUTOMATIC = "(automatic)"  # what Caffe calls a top that a layer needs and the prototxt does not name

# Fields of LayerParameter with lower numbers (name, bottom, ...) are every layer's, the others some types'.
FIRST_PARAMETER = 100
# Caffe has no field of a higher number; what it does not know, it does not pass over.
FIRST_OF_OURS = 1000
OF_THE_FORK = ("caffe.LossParameter.lamda_p", "caffe.LossParameter.scale")


class Layer(nn.Module):
    """Base of all layers.

    Class attributes say the arity: `num_bottoms`/`num_tops` (exact) or `min_`/`max_` (bounds);
    `same_count` asks for as many tops as bottoms.

    name, type   of the layer
    param        its LayerParameter, never changed
    leftovers    its fields that are set and do nothing, as in Caffe; the net names them
    phase        TRAIN or TEST; the only switch of behaviour (torch's .training is not looked at)
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
    deployed: ClassVar[bool] = True  # False: losses and measures, which a deployed net does without
    makes_input: ClassVar[bool] = False  # True: tops come from outside the net; an Input when deployed
    is_fed: ClassVar[bool] = False  # True: nothing is computed, whoever runs the net gives the tops (Input)
    idle_in_test: ClassVar[bool] = False  # True: in phase TEST the top is the bottom as it is (Dropout)
    # Caffe: whether the backward pass reads top[0], or bottom[0], from memory that in-place layers overwrite.
    reads_top: bool = False
    reads_bottom: bool = False
    # Caffe: whether the tops are bottom[0]'s memory under another shape, so that an in-place layer after this
    # one overwrites bottom[0], too.
    shares_memory: bool = False
    # What Caffe's passes, in place, overwrite before they have used it: the bottom's "data", so that the top
    # is wrong, the top's "diff", so that the gradient is, or nothing (""). Here both are right.
    spoils_in_place: str = ""
    auto_tops: ClassVar[bool] = False  # True: tops that the prototxt leaves out are made by the net
    # Fields of LayerParameter that the type looks at besides the one of its own name (or its base class's):
    # "softmax_param", or "loss_param.ignore_label" for this one of it. Others are leftovers.
    reads: ClassVar[tuple[str, ...]] = ()
    # Whether parts of a message in `reads` that it does not name are leftovers, too; False where Caffe lacks
    # the type, so that nobody can say that they do nothing.
    passes_over_parts: ClassVar[bool] = True

    # Set by the net: which bottoms get a gradient. Caffe asks for that of an ArgMax, too, who sends none.
    bottom_need_backward: tuple[bool, ...] = ()
    # Set by a forward pass: the error that its backward pass has to be, if there will be one.
    refusal: LayerError | None = None

    random: CaffeRandom

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
        """Note what this type needs of the run besides random numbers; called before `setup`."""

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
        """`top_shapes`, refusing sizes that cannot be."""
        shapes = [tuple(int(d) for d in shape) for shape in self.top_shapes(bottom_shapes)]
        given = dict(zip(self.param.bottom, bottom_shapes, strict=False))
        for top, shape in zip(self.param.top, shapes, strict=False):
            if top in given and shape != (was := tuple(given[top])):
                raise self.error(
                    f"blob '{top}' is bottom and top, and its shape would change from {shape_string(was)} to "
                    f"{shape_string(shape)}; give the top a name of its own"
                )
            if any(d < 0 for d in shape):
                raise self.error(
                    f"top {top!r} would have the shape {shape}; bottoms are {list(bottom_shapes)}"
                )
            if problem := blob_problem(shape):
                raise self.error(f"top {top!r}: {problem}")
        return shapes

    # A type names its bottoms; nn.Module's forward is typed as loosely.
    forward: Callable[..., Any]
    """Compute the tops from the bottoms: a tensor, or a tuple of them. Bottoms are never written to."""

    def __call__(self, *bottoms: Tensor) -> Any:
        """The tops, from `forward`."""
        tops = super().__call__(*bottoms)
        if self.refusal is None:
            return tops
        refusal, self.refusal = self.refusal, None
        if isinstance(tops, Tensor):
            return _refused(tops, bottoms, refusal)
        return tuple(_refused(top, bottoms, refusal) for top in tops)

    @property
    def capturable(self) -> bool:
        """Whether a CUDA graph can hold the forward pass: it asks the host for nothing while it runs."""
        return True

    def index_count(self, bottom_index: int, bottom_shapes: Sequence[Shape]) -> int | None:
        """For a bottom of indices how many are valid, from 0 on; None: the bottom may hold any number."""
        return None

    def to_onnx(self, graph: OnnxGraph, bottoms: Sequence[str], tops: Sequence[str]) -> None:
        """Add nodes to `graph` that compute the values `tops` from the values `bottoms` as in phase TEST."""
        raise ExportError(f"layer {self.name!r}: type {self.type} has no ONNX form; cut the net before it")

    def add_blob(self, shape: Shape, filler: FillerParameter) -> None:
        """Append a parameter blob: the next one given inside the prototxt, else one that the filler fills."""
        if problem := blob_problem(shape):
            raise self.error(f"blob {len(self.blobs)}: {problem}")
        given = self.param.blobs
        if given:
            if len(self.blobs) >= len(given):
                raise self.error(f"its prototxt has {len(given)} blobs; more are needed")
            values = array_from_blob(given[len(self.blobs)])
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

    def param_specs(self) -> list[ParamSpec]:
        """One ParamSpec a blob: the prototxt's, or the default."""
        given = list(self.param.param)
        return [given[i] if i < len(given) else ParamSpec() for i in range(len(self.blobs))]

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

    def error(self, message: str) -> LayerError:
        """A LayerError that names this layer."""
        return LayerError(self.param, message)

    def pass_over(self, field: str, instead: str = "") -> None:
        """Note a field that is set and does nothing, as in Caffe; `instead`: what would do it."""
        self.leftovers.append(f"{field} (write {instead})" if instead else field)

    def _find_leftovers(self) -> None:
        """Note the fields that are set and that this type does not look at.

        LayerError for one that is not Caffe's: whoever wrote it meant something by it.
        """
        own = {name.lower() for name in (self.type, *(base.__name__ for base in type(self).__mro__))}
        for field, value in self.param.ListFields():
            name = field.name
            if field.number < FIRST_PARAMETER or name in self.reads:
                continue
            if name.removesuffix("_param").replace("_", "") in own:
                continue
            parts = {entry.partition(".")[2] for entry in self.reads if entry.startswith(f"{name}.")}
            unread = [(name, field)]
            if parts:
                unread = [(f"{name}.{p.name}", p) for p, _ in value.ListFields() if p.name not in parts]
            for path, descriptor in unread:
                of_caffe = descriptor.number < FIRST_OF_OURS and descriptor.full_name not in OF_THE_FORK
                if not of_caffe or (parts and not self.passes_over_parts):
                    raise self.error(f"{self.type} does not look at {path}; remove it")
                self.pass_over(path)

    def _check_count(self, what: str, got: int) -> None:
        exact = getattr(self, f"num_{what}s")
        low, high = getattr(self, f"min_{what}s"), getattr(self, f"max_{what}s")
        verb, noun = ("takes", "input") if what == "bottom" else ("produces", "output")
        if what == "top" and self.auto_tops:  # the net makes those that are missing
            exact, low, high = None, 0, exact or high
        if exact is not None and got != exact:
            raise self.error(f"{self.type} Layer {verb} {exact} {what} blob(s) as {noun}.; got {got}")
        if got < low:
            raise self.error(f"{self.type} Layer {verb} at least {low} {what} blob(s) as {noun}.; got {got}")
        if high is not None and got > high:
            raise self.error(f"{self.type} Layer {verb} at most {high} {what} blob(s) as {noun}.; got {got}")

    def extra_repr(self) -> str:
        return f"{self.name!r}, {', '.join(self.param.bottom)} -> {', '.join(self.param.top)}"


def _refused(top: Tensor, bottoms: Sequence[Tensor], refusal: LayerError) -> Tensor:
    """The top, whose backward pass is this error, whoever asks for it."""
    asks = torch.zeros((), device=top.device, requires_grad=True)  # where no bottom does
    return apply(_Refused, refusal, top, asks, *bottoms)


class _Refused(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, refusal: LayerError, top: Tensor, *asking: Tensor) -> Tensor:
        ctx.refusal = refusal
        return top.view_as(top)

    @staticmethod
    def backward(ctx: Any, top_diff: Tensor) -> NoReturn:
        raise ctx.refusal


class DataLayer(Layer):
    """A layer that makes its tops itself and draws, if at all, from generators of its own.

    `next_batch` may therefore run ahead of the net (in a thread, or outside a captured graph).

    ranks    the processes that share the records out, in TRAIN; rank 0 tests alone
    waited   seconds for which callers of `next_batch` have waited so far; where `prefetches`, it is counted
    """

    num_bottoms = 0
    makes_input = True
    prefetches: ClassVar[bool] = False  # True: batches are made ahead, so that nobody should wait
    waited = 0.0
    ranks: Ranks

    def use_run(self, run: Run) -> None:
        self.ranks = run.ranks_in(self.phase)

    def next_batch(self) -> tuple[Tensor, ...]:
        """The tops of the next forward pass, on the CPU."""
        raise self.error(f"{self.type} defines no next_batch")

    def forward(self, *bottoms: Tensor) -> tuple[Tensor, ...]:
        return self.next_batch()

    def reside(self, device: torch.device, budget: int) -> bool:
        """Keep all records on `device` from now on, if the type can and they take at most `budget` bytes.

        Whether it does. Then a batch is made in two parts: `assemble(next_draw())` is `next_batch()`.
        """
        return False

    def next_draw(self) -> Tensor:
        """Where the records reside on a device: what makes up the next batch, a few numbers on the host."""
        raise self.error("its records do not reside on a device")

    def assemble(self, drawn: Tensor) -> tuple[Tensor, ...]:
        """Where the records reside on a device: the batch of such a draw, there; work of the device alone."""
        raise self.error("its records do not reside on a device")

    def get_state(self) -> dict[str, Any]:
        """What `next_batch` depends on, for an exact resume: numbers, strings, bytes and numpy arrays."""
        return {}

    def set_state(self, state: dict[str, Any]) -> None:
        """Go on where `get_state` was called."""


class LossLayer(Layer):
    """A layer whose first top is a scalar (shape ()) with loss_weight 1 unless the prototxt says otherwise.

    bottom[0]  predictions, bottom[1] labels; no gradient goes to the labels.
    """

    num_bottoms: ClassVar[int | None] = 2
    num_tops: ClassVar[int | None] = 1
    auto_tops = True
    deployed = False

    def checked_top_shapes(self, bottom_shapes: Sequence[Shape]) -> list[Shape]:
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
    """The name of a blob as Caffe shows it; in a net's tables each automatic top has one of its own."""
    return AUTOMATIC if name.startswith(AUTOMATIC) else name
