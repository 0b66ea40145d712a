"""A fast plan for TEST nets: see InferencePlan."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from imae.layers.common.dropout import Dropout
from imae.layers.layer import Layer, Shape
from imae.net.executor import Result
from imae.net.fuse import fast_batch_norms, fuse_training
from imae.net.inference_graph import Graph, Node, layers_of, make_graph
from imae.net.inference_operations import Setting, in_order
from imae.net.net import Net
from imae.net.step import Step, run_checked, run_step
from imae.prototxt import TEST

SHAPES_AT_ONCE = 3  # Passes are planned for so many shapes of the bottoms: each has packed weights of its own

CPU = torch.device("cpu")


def plan_inference(net: Net, keep: Collection[str] = ()) -> InferencePlan:
    """A plan for the passes of a net of phase TEST.

    keep   names of further blobs that are needed after a pass
    """
    return InferencePlan(net, keep)


class InferencePlan:
    """Runs a TEST net without gradients, and as fast as this machine's libraries allow.

    On the CPU and in single precision

    - BatchNorm, Scale and forks' BN are folded into the convolution or inner product before them (in
      float64), and the shortcut A, which appends zeros, is one convolution;
    - a sum, a ReLU, leaky or not, and a PReLU are computed in the memory of the convolution before them;
    - splits and dropouts are no steps;
    - blobs of four axes have the order N, H, W, C in memory, and the convolutions' weights are packed once;
    - everything that depends on shapes alone is computed once for each shape of the bottoms.

    The blobs are those of `Net.forward` up to rounding. The plan of fuse.py runs nets with Python layers,
    with dropouts that draw, with `debug_info`, in double precision or on a GPU, and bottoms of another type.
    Hooks of single layers are not called.

    net, keep   what the plan was made for
    fast        whether the net is of the kind that is folded and packed

    A change of weights is noticed at the next pass wherever torch counts it: an update of a solver, a
    caffemodel that is loaded, `net.share_with`, every operation of torch on a parameter. It is not noticed
    where torch does not see it: a write through a NumPy array that shares a parameter's memory, or through
    `parameter.data`, or to a parameter that was made in torch's inference mode; a Parameter that is put in
    the place of another one in `layer.blobs`. Call `weights_changed` after these.
    """

    def __init__(self, net: Net, keep: Collection[str] = ()) -> None:
        self.net, self.keep = net, tuple(keep)
        self.fast = (
            net.phase == TEST
            and net.dtype == torch.float32
            and not any(step.layer.is_user_code or _draws(step.layer) for step in net.steps)
        )
        self._sources = [step for step in net.steps if not step.bottoms and step.tops]
        self._programs: OrderedDict[tuple[Shape, ...], _Program] = OrderedDict()
        self._graph: Graph | None = None
        self._watched: list[Tensor] = []
        self._versions: list[tuple[int, int]] = []
        self._are_single = True  # the weights are on the CPU and in single precision
        self._params: object = None
        self._others: dict[bool, list[Step]] = {}

    def run(
        self, values: Mapping[str, Tensor] | None = None, *, contiguous: bool = False
    ) -> dict[str, Tensor]:
        """One pass; returns the output blobs, the losses and the blobs of `keep`, as `Net.forward` does.

        values       of the inputs and, if they have been fetched already, of the data layers' tops; a data
                     layer whose tops are missing fetches its next batch
        contiguous   let all results have the order N, C, H, W in memory

        The results are tensors without gradients; one may be a bottom itself, where no layer changes it.
        LayerError for an input that is missing, a bottom that does not fit, or a label out of range.
        """
        values = {} if values is None else values
        if torch.is_grad_enabled():
            with torch.no_grad():
                result = self._pass(values)
        else:
            result = self._pass(values)
        if contiguous:
            result = {name: value.contiguous() for name, value in result.items()}
        return result

    def weights_changed(self) -> None:
        """Fold and pack the weights again at the next pass."""
        self._programs.clear()

    def _pass(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        batch = self._fetched(values)
        result = self._run_fast(batch) if self._is_fast(batch) else self._run_plainly(batch)
        self.net.check_labels()
        return result

    def _fetched(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The values, with a batch of each data layer, or other layer without a bottom, that they lack."""
        net, batch = self.net, dict(values)
        net.check_inputs(batch)
        for step in self._sources:
            if not batch.keys() >= set(step.tops):
                batch.update(zip(step.tops, run_step(step, {}), strict=True))
        return batch

    def _is_fast(self, batch: Mapping[str, Tensor]) -> bool:
        """Whether this pass can be a planned one."""
        return (
            self.fast
            and not self.net.debug_info
            and all(
                batch[name].dtype is torch.float32 and batch[name].is_cpu
                for step in self._sources
                for name in step.tops
            )
            and self._weights_are_known()
        )

    def _weights_are_known(self) -> bool:
        """Notice weights that have changed; returns whether they are on the CPU and in single precision."""
        net = self.net
        if self._graph is None or self._params is not net.params:  # net.share_with makes other params
            self._graph, self._params = make_graph(net, self.keep), net.params
            self._watched = _blobs(layers_of(self._graph.nodes))
            self.weights_changed()
        versions = [(blob._version, blob.data_ptr()) for blob in self._watched]
        if versions != self._versions:
            self.weights_changed()
            self._versions = versions
            self._are_single = all(blob.dtype is torch.float32 and blob.is_cpu for blob in self._watched)
        return self._are_single

    def _run_fast(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        assert self._graph is not None
        shapes = tuple(batch[name].shape for step in self._sources for name in step.tops)
        program = self._programs.get(shapes)
        if program is None:
            program = self._programs[shapes] = _Program(self.net, self._graph, shapes)
            if len(self._programs) > SHAPES_AT_ONCE:
                self._programs.popitem(last=False)
        self._programs.move_to_end(shapes)
        result = program.run(batch)
        for name in self.keep:
            if name not in result and name in batch:
                result[name] = batch[name]
        return result

    def _run_plainly(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        net = self.net
        if (plan := self._others.get(net.debug_info)) is None:
            plan = fast_batch_norms(net) if net.debug_info else fuse_training(net, self.keep)
            self._others[net.debug_info] = plan
        weight = next(net.parameters(), None)
        device = CPU if weight is None else weight.device
        order = torch.channels_last if device == CPU else torch.contiguous_format
        placed = {
            name: value.to(device, memory_format=order) if value.dim() == 4 else value.to(device)
            for name, value in batch.items()
        }
        return net.forward(placed, self.keep, plan)


def _draws(layer: Layer) -> bool:
    """Whether the layer draws random numbers in phase TEST."""
    return isinstance(layer, Dropout) and layer.draws


def _blobs(layers: Iterable[Layer]) -> list[Tensor]:
    """The parameter blobs of these layers, each once, without those whose changes torch does not count."""
    blobs = {id(blob): blob for layer in layers for blob in layer.blobs if not blob.is_inference()}
    return list(blobs.values())


class InferenceExecutor:
    """Runs a TEST net by its InferencePlan: an Executor of executor.py, of forward passes alone.

    kept   after a pass: the blobs that the plan keeps
    """

    def __init__(self, plan: InferencePlan) -> None:
        self.plan, self.kept = plan, dict[str, Tensor]()

    def forward(self) -> Result:
        """The loss and the outputs of the next batch."""
        net, blobs = self.plan.net, self.plan.run()
        self.kept = {name: blobs[name] for name in self.plan.keep}
        return net.loss(blobs), {name: blobs[name] for name in net.outputs}


class _Instruction(NamedTuple):
    """compute(slots[places]...) is put into the slots `tops`; then the slots `frees` are emptied."""

    compute: Callable[..., Any]
    places: tuple[int, ...]
    tops: tuple[int, ...]
    single: bool
    frees: tuple[int, ...]


class _Program:
    """The calls of a pass for bottoms of certain shapes, over a list of values."""

    def __init__(self, net: Net, graph: Graph, shapes: Sequence[Shape]) -> None:
        self._shapes: list[Shape | None] = [None] * graph.count
        self._count = graph.count
        self._net, self._graph = net, graph
        self._sources: list[tuple[str, int]] = [
            pair for plain in graph.sources for pair in zip(plain.step.tops, plain.tops, strict=True)
        ]
        self._infer_shapes(shapes)
        self._instructions: list[_Instruction] = []
        self._emit()

    def run(self, batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The blobs at the pass's ends."""
        slots: list[Any] = [None] * self._count
        for name, place in self._sources:
            slots[place] = batch[name]
        for compute, places, tops, single, frees in self._instructions:
            if len(places) == 1:
                value = compute(slots[places[0]])
            else:
                value = compute(*[slots[place] for place in places])
            if single:
                slots[tops[0]] = value
            else:
                for top, part in zip(tops, value, strict=True):
                    slots[top] = part
            for place in frees:
                slots[place] = None
        return {name: slots[place] for name, place in self._graph.ends.items()}

    def _infer_shapes(self, shapes: Sequence[Shape]) -> None:
        """The shape of each value; LayerError where a layer does not fit. None where values decide on it."""
        known: dict[str, Shape | None] = dict(
            zip((name for name, _ in self._sources), map(tuple, shapes), strict=True)
        )
        for step in self._net.steps:  # all layers of the net, whether they are run or not, in Caffe's order
            if step.bottoms or not step.tops:
                known.update(zip(step.tops, _top_shapes(step, [known[b] for b in step.bottoms]), strict=True))
        for (_, place), shape in zip(self._sources, shapes, strict=True):
            self._shapes[place] = tuple(shape)
        for plain in self._graph.steps:
            tops = _top_shapes(plain.step, [self._shapes[place] for place in plain.bottoms])
            for place, top in zip(plain.tops, tops, strict=True):
                self._shapes[place] = top

    def _emit(self) -> None:
        nodes, ends = self._graph.nodes, set(self._graph.ends.values())
        last_read = {place: index for index, node in enumerate(nodes) for place in node.bottoms}
        ready: dict[int, int] = {}  # by value: the slot that holds it in order, with its planned shape
        owned: set[int] = set()  # values whose memory is theirs alone
        frees: list[int] = []
        for index, node in enumerate(nodes):
            dead = [p for p in dict.fromkeys(node.bottoms) if last_read[p] == index and p not in ends]
            shapes = [self._shapes[place] for place in node.bottoms]
            if node.operation is None or any(shape is None or 0 in shape for shape in shapes):
                self._emit_plain(node, dead)
                owned.difference_update(node.bottoms)  # a top may be a view of a bottom
                continue
            places = []
            for place, shape in zip(node.bottoms, shapes, strict=True):
                if place not in ready:
                    ready[place] = self._emit_check(place, shape, node)
                places.append(ready[place])
            spare = tuple(
                place in owned and place in dead and node.bottoms.count(place) == 1 for place in node.bottoms
            )
            compute = node.operation.plan(Setting(tuple(s for s in shapes if s is not None), spare))
            frees = [slot for place in dead for slot in {place, ready.get(place, place)}]
            self._instructions.append(
                _Instruction(compute, tuple(places), tuple(node.tops), True, tuple(frees))
            )
            ready[node.tops[0]] = node.tops[0]
            owned.add(node.tops[0])

    def _emit_plain(self, node: Node, dead: Sequence[int]) -> None:
        for member in node.members:
            step = member.step
            known = all(self._shapes[place] is not None for place in member.bottoms)
            compute = partial(run_checked, step) if known else _checked(step)
            places = tuple(member.bottoms)
            self._instructions.append(_Instruction(compute, places, tuple(member.tops), False, ()))
        if self._instructions and dead:
            last = self._instructions.pop()
            self._instructions.append(last._replace(frees=tuple(dead)))

    def _emit_check(self, place: int, shape: Shape | None, reader: Node) -> int:
        """Put a value that a layer, or the caller, has made into order; returns its slot."""
        layer = reader.members[0].step.layer

        def check(x: Tensor) -> Tensor:
            if x.shape != shape or x.dtype is not torch.float32:
                raise layer.error(
                    f"a bottom was planned as float32 {shape}, and the layer before has made {x.dtype} "
                    f"{tuple(x.shape)}; its top_shapes must tell the shapes of its tops"
                )
            return in_order(x)

        self._instructions.append(_Instruction(check, (place,), (self._count,), True, ()))
        self._count += 1
        return self._count - 1


def _top_shapes(step: Step, bottoms: Sequence[Shape | None]) -> Sequence[Shape | None]:
    """The tops' shapes; None where they depend on values."""
    known = [shape for shape in bottoms if shape is not None]
    if len(known) < len(bottoms):
        return [None] * len(step.tops)
    tops = step.layer.reshape(known)
    if step.layer.open_axes or not step.layer.capturable:
        return [None] * len(step.tops)
    return tops


def _checked(step: Step) -> Callable[..., tuple[Tensor, ...]]:
    """Runs a step on bottoms of any shape."""
    return lambda *bottoms: run_step(step, dict(zip(step.bottoms, bottoms, strict=True)))
