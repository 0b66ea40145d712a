"""Tests of Xyz and XyzLoss, for `python -m pytest` once the plugin is installed."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from imae.converters.deploy import deploy_net
from imae.converters.export_onnx import export_net
from imae.files.errors import LayerError
from imae.layers.run import Run
from imae.net.net import Net
from imae.prototxt import parse_net, read_solver
from imae.train.solver import Solver

LAYER = """
force_backward: true
layer { name: "in" type: "Input" top: "x" input_param { shape { dim: [2, 3, 5] } } }
layer {
  name: "a"
  type: "Xyz"
  bottom: "x"
  top: "y"
  xyz_param { scale: 0.5 filler { value: 0.25 } }
}
"""
LOSS = """
force_backward: true
layer { name: "z" type: "Input" top: "z" input_param { shape { dim: [7, 4] } } }
layer { name: "label" type: "Input" top: "label" input_param { shape { dim: 7 } } }
layer {
  name: "a"
  type: "XyzLoss"
  bottom: "z"
  bottom: "label"
  top: "loss"
  xyz_loss_param { gamma: GAMMA }
}
"""


def double_net(text: str) -> Net:
    """The net in double precision, for exact gradients."""
    return Net(parse_net(text), Run(dtype=torch.float64))


def loss_gradient(logits: Tensor, labels: Tensor, gamma: float) -> Tensor:
    net = double_net(LOSS.replace("GAMMA", str(gamma)))
    z = logits.clone().requires_grad_()
    net.loss(net({"z": z, "label": labels.double()})).backward()
    assert z.grad is not None
    return z.grad


def examples() -> tuple[Tensor, Tensor]:
    """Logits and labels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 4, generator=generator, dtype=torch.float64), torch.arange(7) % 4


def test_layer() -> None:
    x = torch.arange(30.0).reshape(2, 3, 5)
    assert torch.equal(Net(parse_net(LAYER))({"x": x})["y"], 0.5 * x + 0.25)


def test_layer_gradient() -> None:
    """Autograd's gradient with respect to the bottom and the offset is the numeric one."""
    net = double_net(LAYER)
    x = torch.linspace(-1, 1, 30, dtype=torch.float64).reshape(2, 3, 5).requires_grad_()
    assert torch.autograd.gradcheck(lambda x, _: net({"x": x})["y"], (x, net.params["a"][0]))


def test_loss_gradient_is_as_designed() -> None:
    logits, labels = examples()
    p = logits.softmax(1).gather(1, labels[:, None])[:, 0]
    norms = loss_gradient(logits, labels, 3).abs().sum(1)
    torch.testing.assert_close(norms, 2 * (1 - p) ** 3 / 7)


def test_loss_with_gamma_1_has_the_gradient_of_cross_entropy() -> None:
    logits, labels = examples()
    z = logits.clone().requires_grad_()
    F.cross_entropy(z, labels).backward()
    torch.testing.assert_close(loss_gradient(logits, labels, 1), z.grad)


def test_loss_refuses_a_wrong_parameter() -> None:
    with pytest.raises(LayerError, match="gamma must be a number above 0, got -1"):
        double_net(LOSS.replace("GAMMA", "-1"))


def test_onnx() -> None:
    """ONNX Runtime computes what the net computes; export_net raises an error where it does not."""
    result = export_net(Net(deploy_net(parse_net(LAYER))))
    assert [node.op_type for node in result.model.graph.node] == ["Mul", "Add"]
    assert not result.not_compared


def test_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[1])
    solver = Solver(read_solver("example/solver.prototxt"))
    before = solver.net.params["xyz"][0].detach().clone()
    losses = []
    solver.on_gradients_ready.append(lambda: losses.append(solver.net.loss(solver.net()).item()))
    solver.step(30)
    assert losses[-1] < losses[0] / 2
    assert not torch.equal(solver.net.params["xyz"][0], before)
