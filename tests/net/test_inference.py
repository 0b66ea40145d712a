"""The plan of inference.py gives what `Net.forward` gives in phase TEST and in double precision."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pytest
import torch
from tolerances import sum_rounding, tolerance

from imae.files.errors import LayerError
from imae.layers.caffe_random import CaffeRandom
from imae.layers.run import Run
from imae.net.inference import InferencePlan, plan_inference
from imae.net.net import Net
from imae.prototxt import TEST, NetParameter
from imae.prototxt.models.resnet import resnet
from imae.prototxt.text import parse_net

Blobs = Mapping[str, torch.Tensor]


def made(param: NetParameter | str, dtype: torch.dtype = torch.float32) -> Net:
    """A TEST net; statistics, scales and biases are not those of a fresh one."""
    param = parse_net(param) if isinstance(param, str) else param
    param.state.phase = TEST
    net = Net(param, Run(CaffeRandom(3), dtype=dtype))
    generator = np.random.default_rng(5)
    for step in net.steps:
        for index, blob in enumerate(step.layer.blobs):
            if blob.dim() == 1 or step.layer.type in ("BatchNorm", "Scale"):
                values = generator.uniform(0.5, 1.5, tuple(blob.shape))
                values = np.float32(1 if index == 2 else values)
                blob.data.copy_(torch.from_numpy(np.asarray(values)))
    return net


def fed(net: Net, seed: int = 7, **shapes: Sequence[int]) -> dict[str, torch.Tensor]:
    """Values of the inputs: normal, or labels for an input of that name."""
    generator = np.random.default_rng(seed)
    values = {}
    for name in net.inputs:
        shape = shapes.get(name, net.blob_shapes[name])
        drawn = generator.standard_normal(tuple(shape)).astype(np.float32)
        values[name] = torch.from_numpy(np.abs(drawn).round() if name == "label" else drawn)
    return values


def plain(net: Net, values: Blobs, keep: Sequence[str] = ()) -> dict[str, torch.Tensor]:
    """What the plain net gives in double precision."""
    double = Net(net.param, Run(CaffeRandom(3), dtype=torch.float64))
    double.load_state_dict({name: value.double() for name, value in net.state_dict().items()})
    with torch.no_grad():
        return double.forward({name: value.double() for name, value in values.items()}, keep)


def assert_same(got: Blobs, want: Blobs, terms: int = 1000, layers: int = 4) -> None:
    """Equal up to the rounding of sums of so many products, one layer after the other."""
    assert got.keys() == want.keys()
    for name, blob in want.items():
        assert got[name].shape == blob.shape, name
        assert got[name].dtype == torch.float32, name
        finite = blob[blob.isfinite()].abs()
        scale = float(finite.max()) if len(finite) else 1.0
        torch.testing.assert_close(
            got[name].double(),
            blob,
            rtol=0,
            atol=sum_rounding(terms, layers) * scale,
            equal_nan=True,
            msg=lambda m, name=name: f"{name}: {m}",
        )


def kinds(plan: InferencePlan) -> list[list[str]]:
    """The types of the layers of each node."""
    assert plan._graph is not None
    return [[member.step.layer.type for member in node.members] for node in plan._graph.nodes]


INPUT = 'layer { name: "in" type: "Input" top: "data" input_param { shape { %s } } }\n'


def test_resnet_is_one_node_for_each_convolution() -> None:
    param = parse_net(
        'layer { name: "in" type: "Input" top: "data" top: "label" input_param {'
        "shape { dim: 4 dim: 3 dim: 32 dim: 32 } shape { dim: 4 } } }"
    )
    param.layer.extend(resnet(8).layer)
    net = made(param)
    plan = plan_inference(net, ["fc"])
    got = plan.run(fed(net))
    want = plain(net, fed(net), ["fc"])
    allowed = tolerance("fused")
    assert got.keys() == want.keys()
    for name, blob in want.items():
        scale = float(blob.abs().max())
        torch.testing.assert_close(got[name].double(), blob, rtol=allowed.rtol, atol=allowed.atol * scale)
    assert plan.fast
    assert [types[0] for types in kinds(plan)].count("Convolution") == 9
    assert len(kinds(plan)) == 9 + len(["Pooling", "InnerProduct", "SoftmaxWithLoss", "Accuracy"])


def test_missing_input_is_an_error() -> None:
    net = made(INPUT % "dim: 1 dim: 2")
    with pytest.raises(LayerError, match="input data is not given"):
        plan_inference(net).run({})
