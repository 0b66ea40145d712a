"""Write nets in Python: layers are functions of the tops of other layers.

    from caffe import layers as L, params as P
    net = caffe.NetSpec()
    net.data = L.Input(shape=dict(dim=[1, 3, 32, 32]))
    net.conv = L.Convolution(net.data, num_output=20, kernel_size=5, weight_filler=dict(type="xavier"))
    net.pool = L.Pooling(net.conv, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    net.relu = L.ReLU(net.pool, in_place=True)
    print(net.to_proto())

A keyword of `L.Type` is a field of the type's own parameter (Convolution: convolution_param) or, if that has
no such field, of the layer. A keyword that ends in `param` is always a field of the layer. A dict is a
message, a list a repeated field. `ntop` is the number of tops; `in_place` makes the bottoms the tops. Tops
and layers without a name are called Type1, Type2, ...

Caffe: python/caffe/net_spec.py. Differs: tuples work as lists; the error names an unknown field.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from typing import Any

from google.protobuf.message import Message

from imae.files.errors import PrototxtError
from imae.prototxt import LayerParameter, NetParameter, caffe_pb2


class Top:
    """Blob number `n` of the layer `fn`."""

    def __init__(self, fn: Function, n: int) -> None:
        self.fn, self.n = fn, n

    def to_proto(self) -> NetParameter:
        """The net of all layers that this blob needs."""
        return to_proto(self)


class Function:
    """A layer: its type, the tops that are its bottoms, and its parameters."""

    def __init__(self, type_name: str, inputs: tuple[Top, ...], params: Mapping[str, Any]) -> None:
        for index, top in enumerate(inputs):
            if not isinstance(top, Top):
                raise TypeError(f"{type_name} input {index} is not a Top (type is {type(top)})")
        self.type_name, self.inputs = type_name, inputs
        self.params = dict(params)
        self.ntop: int = self.params.pop("ntop", 1)
        self.in_place: bool = self.params.pop("in_place", False)
        self.tops = tuple(Top(self, n) for n in range(self.ntop))


class NetSpec:
    """Tops by name, in the order in which they were assigned: `net.conv1 = ...` or `net["conv1"] = ...`."""

    tops: OrderedDict[str, Top | Function]

    def __init__(self) -> None:
        super().__setattr__("tops", OrderedDict())

    def __setattr__(self, name: str, value: Top | Function) -> None:
        if not isinstance(value, Top | Function):
            raise TypeError(f"{name} is not a Top (type is {type(value)})")
        self.tops[name] = value

    def __getattr__(self, name: str) -> Any:
        tops = self.__dict__.get("tops", {})  # copy and pickle look up attributes before `tops` exists
        if name not in tops:
            raise AttributeError(f"the net has no top {name!r}; it has {', '.join(tops)}")
        return tops[name]

    __setitem__ = __setattr__

    def __getitem__(self, name: str) -> Any:
        return self.tops[name]

    def to_proto(self) -> NetParameter:
        """The net of all layers that these tops need."""
        return _net(list(self.tops.values()), {top: name for name, top in self.tops.items()})


class Layers:
    """`L.Type(bottom, ..., field=value, ...)` is the top of a new layer, or a tuple of its `ntop` tops."""

    def __getattr__(self, name: str) -> Callable[..., Any]:
        def make(*inputs: Top, **params: Any) -> Any:
            layer = Function(name, inputs, params)
            if layer.ntop == 0:
                return layer
            return layer.tops[0] if layer.ntop == 1 else layer.tops

        return make


class Parameters:
    """`P.Pooling.MAX` is the constant MAX of PoolingParameter."""

    def __getattr__(self, name: str) -> Any:
        return getattr(caffe_pb2, f"{name}Parameter")


layers = Layers()
params = Parameters()


def to_proto(*tops: Top) -> NetParameter:
    """The net of all layers that these tops need, under automatic names."""
    return _net(list(tops), {})


def _net(ends: list[Top | Function], names: dict[Top | Function, str]) -> NetParameter:
    """The layers that lead to `ends`, each after its bottoms' layers."""
    net = NetParameter()
    counts: Counter[str] = Counter()
    made: dict[Function, LayerParameter] = {}

    def name(thing: Top | Function, type_name: str) -> str:
        if thing not in names:
            counts[type_name] += 1
            names[thing] = f"{type_name}{counts[type_name]}"
        return names[thing]

    for function in _in_order(ends):
        layer = made[function] = net.layer.add(type=function.type_name)
        layer.bottom.extend(made[top.fn].top[top.n] for top in function.inputs)
        if function.in_place:
            layer.top.extend(layer.bottom)
        else:
            layer.top.extend(name(top, function.type_name) for top in function.tops)
        if function not in names and function.tops:
            layer.name = names[function] = name(function.tops[0], function.type_name)
        else:
            layer.name = name(function, function.type_name)
        _assign_params(layer, function)
    return net


def _in_order(ends: list[Top | Function]) -> Iterator[Function]:
    """All functions that `ends` need, depth first; without recursion, since nets are deep."""
    seen: set[Function] = set()
    for end in ends:
        start = end.fn if isinstance(end, Top) else end
        stack = [(start, iter(start.inputs))]
        while stack:
            function, inputs = stack[-1]
            below = next((top.fn for top in inputs if top.fn not in seen), None)
            if below is not None:
                stack.append((below, iter(below.inputs)))
                continue
            stack.pop()
            if function not in seen:
                seen.add(function)
                yield function


def _assign_params(layer: LayerParameter, function: Function) -> None:
    own_name = _own_params().get(function.type_name)
    own: Message | None = getattr(layer, own_name) if own_name else None
    for field, value in function.params.items():
        if own is not None and field in own.DESCRIPTOR.fields_by_name and not field.endswith("param"):
            assign_proto(own, field, value)
        elif field in layer.DESCRIPTOR.fields_by_name:
            assign_proto(layer, field, value)
        else:
            raise PrototxtError(
                f"L.{function.type_name}: neither {own_name} nor the layer has a field {field!r}"
                if own_name
                else f"L.{function.type_name}: the layer has no field {field!r}; its parameter is given as a "
                "dict, as in convolution_param=dict(num_output=20)"
            )


def param_name_dict() -> dict[str, str]:
    """The name of each layer type's own parameter, without `_param`: Convolution: convolution."""
    return {kind: field.removesuffix("_param") for kind, field in _own_params().items()}


@cache
def _own_params() -> dict[str, str]:
    """The field of LayerParameter that holds a layer type's own parameter: Convolution: convolution_param."""
    return {
        field.message_type.name.removesuffix("Parameter"): field.name
        for field in LayerParameter.DESCRIPTOR.fields
        if field.name.endswith("_param") and field.message_type is not None
    }


def assign_proto(proto: Message, name: str, val: Any) -> None:
    """Set a field. A dict becomes a message; a list, or a single value, sets a repeated field."""
    if name not in proto.DESCRIPTOR.fields_by_name:
        raise PrototxtError(f"{proto.DESCRIPTOR.name} has no field {name!r}")
    field = getattr(proto, name)
    try:
        if hasattr(field, "extend"):
            for item in val if isinstance(val, list | tuple) else [val]:
                if isinstance(item, dict):
                    _assign_all(field.add(), item)
                else:
                    field.append(item)
        elif isinstance(val, dict):
            _assign_all(field, val)
        else:
            setattr(proto, name, val)
    except (TypeError, ValueError, AttributeError) as error:
        if isinstance(error, PrototxtError):
            raise
        raise PrototxtError(f"{proto.DESCRIPTOR.name}: field {name!r} cannot be {val!r}: {error}") from error


def _assign_all(proto: Message, fields: Mapping[str, Any]) -> None:
    for name, value in fields.items():
        assign_proto(proto, name, value)
