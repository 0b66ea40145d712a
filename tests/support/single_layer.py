"""Test a single layer: build it from prototxt text, check its contract, its gradients and its export."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from onnx import TensorProto, helper
from tolerances import tolerance
from torch import Tensor

from imae.converters.graph import Graph
from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.layer import Layer, Shape
from imae.layers.registry import class_of
from imae.layers.run import Run
from imae.net.net import Net
from imae.net.stepwise import Stepwise
from imae.prototxt import LayerParameter
from imae.prototxt.text import parse_net


def build(text: str, *shapes: Shape, seed: int = 1) -> Layer:
    """The layer of `text`, named "it" and set up for bottoms of these shapes; one top if none is named."""
    param = text_format.Parse('name: "it" ' + text, LayerParameter())
    if not param.bottom:
        param.bottom.extend(f"bottom{index}" for index in range(len(shapes)))
    layer_type = class_of(param)
    if not param.top and layer_type.num_tops != 0:
        param.top.append("top0")
    layer = layer_type(param)
    layer.build([tuple(shape) for shape in shapes], Run(CaffeRandom(seed)))
    return layer


def run(layer: Layer, *bottoms: Tensor) -> tuple[Tensor, ...]:
    """The tops, always as a tuple."""
    tops = layer(*bottoms)
    return (tops,) if isinstance(tops, Tensor) else tuple(tops)


def refused(message: str) -> AbstractContextManager[object]:
    """Expect a LayerError whose message contains this text."""
    return pytest.raises(LayerError, match=re.escape(message))


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    """Normally distributed values."""
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def diffs(
    layer: Layer, *bottoms: Tensor, top_diffs: Sequence[Tensor] | None = None
) -> tuple[Tensor | None, ...]:
    """The bottom diffs for these top diffs (default: 1 everywhere); None for a bottom without a diff."""
    leaves = [bottom.detach().clone().requires_grad_() for bottom in bottoms]
    tops = run(layer, *leaves)
    torch.autograd.backward(tops, [torch.ones_like(top) for top in tops] if top_diffs is None else top_diffs)
    return tuple(leaf.grad for leaf in leaves)


def overwritten(
    text: str, in_place: bool, stepwise: bool, x: Tensor, top_diff: Tensor
) -> tuple[Tensor, Tensor]:
    """Bottom diff and top memory of a layer whose top is overwritten by a later in-place layer."""
    top = "x" if in_place else "y"
    net = Net(parse_net(
        f"""force_backward: true
        layer {{ name: "in" type: "Input" top: "x" input_param {{ shape {{ dim: {list(x.shape)} }} }} }}
        layer {{ name: "it" {text} bottom: "x" top: "{top}" }}
        layer {{ name: "later" type: "Power" bottom: "{top}" top: "{top}"
                 power_param {{ scale: 0.5 shift: -0.25 }} }}"""
    ))  # fmt: skip
    if stepwise:
        steps = Stepwise(net)
        steps.blobs["x"].data.copy_(x)
        steps.forward()
        memory = steps.blobs[top].data.clone()
        steps.blobs[top].diff.copy_(2 * top_diff)
        steps.backward()
        return steps.blobs["x"].diff, memory
    leaf = x.clone().requires_grad_()
    memory = net({"x": leaf})[top]
    memory.backward(2 * top_diff)
    assert leaf.grad is not None
    return leaf.grad, memory.detach()


def check_contract(text: str, *bottoms: Tensor) -> None:
    """Check a layer's contract.

    The tops have the announced shapes and the bottoms' dtype; the bottoms do not change; a second layer, and
    bottoms that are not contiguous, give the same tops.
    """
    before = [bottom.clone() for bottom in bottoms]
    shapes = [tuple(bottom.shape) for bottom in bottoms]
    layer = build(text, *shapes)
    tops = run(layer, *bottoms)
    assert [tuple(top.shape) for top in tops] == layer.checked_top_shapes(shapes)
    for bottom, copy in zip(bottoms, before, strict=True):
        torch.testing.assert_close(bottom, copy, rtol=0, atol=0)
    scattered = [torch.stack([bottom, bottom + 1], -1)[..., 0] for bottom in bottoms]
    assert not any(bottom.is_contiguous() for bottom in scattered if bottom.numel() > 1)
    rtol, atol, _ = tolerance("same arithmetic")
    for again in (run(build(text, *shapes), *bottoms), run(build(text, *shapes), *scattered)):
        for top, other in zip(tops, again, strict=True):
            torch.testing.assert_close(other, top, rtol=rtol, atol=atol)
    double = build(text, *shapes).double()
    for top, other in zip(tops, run(double, *(bottom.double() for bottom in bottoms)), strict=True):
        assert other.dtype == torch.float64
        torch.testing.assert_close(other.float(), top, rtol=rtol, atol=atol)


def check_gradient(text: str, *bottoms: Tensor, constant: Sequence[int] = ()) -> None:
    """Compare the gradients of parameters and bottoms (except `constant`) with differences, in float64."""
    layer = build(text, *(tuple(bottom.shape) for bottom in bottoms)).double()
    leaves = [bottom.double().requires_grad_(index not in constant) for index, bottom in enumerate(bottoms)]
    blobs = list(layer.blobs)

    def tops(*values: Tensor) -> tuple[Tensor, ...]:
        return run(layer, *values[: len(leaves)])

    rtol, atol, _ = tolerance("gradient", "float64")
    assert torch.autograd.gradcheck(tops, [*leaves, *blobs], rtol=rtol, atol=atol)


def check_onnx(
    text: str, *bottoms: Tensor, opsets: Sequence[int] = (13, 17, 18, 22), one_batch: bool = False
) -> None:
    """ONNX Runtime computes the same as the layer, for the batch size of the export and for another one.

    one_batch   only for that of the export
    """
    shapes = [tuple(bottom.shape) for bottom in bottoms]
    layer = build(text, *shapes)
    names, tops = list(layer.param.bottom), list(layer.param.top)
    more = [torch.cat([bottom, bottom, bottom]) if bottom.dim() else bottom for bottom in bottoms]
    rtol, atol, _ = tolerance("onnx")
    for opset in opsets:
        blobs = dict(zip([*names, *tops], [*shapes, *layer.checked_top_shapes(shapes)], strict=True))
        graph = Graph(opset, blobs)
        layer.to_onnx(graph, names, tops)
        session = _session(graph, opset, names, tops)
        for values in (bottoms,) if one_batch else (bottoms, more):
            feeds = {name: value.numpy() for name, value in zip(names, values, strict=True)}
            got: list[NDArray[Any]] = session.run(tops, feeds)
            for value, want in zip(got, run(layer, *values), strict=True):
                assert value.shape == tuple(want.shape)
                np.testing.assert_allclose(value, want.detach().numpy(), rtol=rtol, atol=atol)


def _session(graph: Graph, opset: int, names: list[str], tops: list[str]) -> onnxruntime.InferenceSession:
    def info(name: str) -> onnx.ValueInfoProto:
        shape: list[int | str] = list(graph.shape(name))
        if shape:
            shape[0] = f"size of {name}"
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, shape)

    inputs, outputs = [info(name) for name in names], [info(name) for name in tops]
    made = helper.make_graph(graph.nodes, "it", inputs, outputs, graph.initializers)
    opsets = [helper.make_opsetid("", opset)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=helper.find_min_ir_version_for(opsets))
    onnx.checker.check_model(model, full_check=True)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    providers = ["CPUExecutionProvider"]
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=providers)
