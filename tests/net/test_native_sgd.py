"""SGD's kernel in C, and the gradients that an update gives up: the rule's numbers, and Caffe's diffs."""

from __future__ import annotations

import pytest
import torch
from tolerances import tolerance
from torch import Tensor

from imae.layers.utility.synced_memory import ParameterMemory
from imae.net.kernels import native, sgd, sgd_supports
from imae.prototxt.text import parse_solver
from imae.train.options import Options
from imae.train.solver import Solver

built = pytest.mark.skipif(not native.available(), reason="the kernels in C were not built")

SOLVER = """
base_lr: 0.1 lr_policy: "fixed" momentum: 0.9 weight_decay: 0.3 snapshot_after_train: false random_seed: 1
net_param {
  layer { name: "data" type: "DummyData" top: "data" top: "label"
          dummy_data_param { shape { dim: [4, 3, 6, 6] } shape { dim: 4 }
                             data_filler { type: "gaussian" } data_filler { type: "constant" } } }
  layer { name: "conv" type: "Convolution" bottom: "data" top: "conv"
          param { lr_mult: 1 } param { lr_mult: 2 decay_mult: 0 }
          convolution_param { num_output: 5 kernel_size: 3 weight_filler { type: "xavier" } } }
  layer { name: "ip" type: "InnerProduct" bottom: "conv" top: "ip"
          inner_product_param { num_output: 7 weight_filler { type: "xavier" } } }
  layer { name: "loss" type: "SoftmaxWithLoss" bottom: "ip" bottom: "label" top: "loss" }
}
"""


@pytest.fixture(autouse=True)
def kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("IMAE_KERNELS", raising=False)


def solver(more: str = "", fast: bool = True, dtype: torch.dtype = torch.float64) -> Solver:
    param = parse_solver(SOLVER)
    param.MergeFrom(parse_solver(more))
    return Solver(param, Options(fast=fast), dtype=dtype)


def state(of: Solver) -> list[Tensor]:
    """Weights, diffs and history."""
    return [*(p.detach() for p in of.net.learnable), *of.update.diffs(), *of.history]


@built
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float", "double"])
@pytest.mark.parametrize("count", [1, 2])
def test_the_kernel_is_the_rule(dtype: torch.dtype, count: int) -> None:
    # One number, a last block that is cut off, and the order N, H, W, C.
    tensors = [torch.randn(3, *shape, dtype=dtype) for shape in [(1,), (40_001,), (4, 3, 2, 5)]]
    weights, diffs, histories = (
        [t[i].contiguous(memory_format=torch.channels_last) if t.dim() == 5 else t[i] for t in tensors]
        for i in range(3)
    )
    want = []
    for weight, diff, history in zip(weights, diffs, histories, strict=True):
        change = 0.1 * (diff.double() + 0.3 * weight.double()) + 0.9 * history.double()
        want.append((weight.double() - change, change))
    versions = [weight._version for weight in weights]
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        sgd(weights, diffs, histories, 0.3, 0.9, 0.1)
    finally:
        torch.set_num_threads(before)
    allowed = tolerance("kernel", str(dtype).removeprefix("torch.")).atol
    for weight, diff, history, (new, change) in zip(weights, diffs, histories, want, strict=True):
        assert torch.equal(diff, history)
        assert (diff.double() - change).abs().max() <= allowed * change.abs().max()
        assert (weight.double() - new).abs().max() <= allowed * new.abs().max()
    # Whoever keeps something that was made of the weights sees that they have changed.
    assert all(weight._version > version for weight, version in zip(weights, versions, strict=True))


@built
def test_no_decay_is_no_product_with_the_weights() -> None:
    """Caffe: a running variance that has overflowed, which no rate changes, stays infinite."""
    weight, nothing = torch.tensor([torch.inf, 2.0]), torch.zeros(2)
    sgd([weight], [nothing.clone()], [nothing.clone()], 0.0, 0.9, 0.0)
    assert weight.tolist() == [torch.inf, 2]


@built
def test_the_kernel_is_for_one_order_in_memory_and_one_type() -> None:
    a = torch.randn(4, 3, 2, 5)
    last = a.contiguous(memory_format=torch.channels_last)
    for one in (a, last):
        assert sgd_supports([one], [one.clone()], [one.clone()])
    assert not sgd_supports([], [], [])
    for other in (last, a.double(), a[:2], a.transpose(0, 3)):
        assert not sgd_supports([a], [other], [a.clone()])
        assert not sgd_supports([a], [a.clone()], [other])
        with pytest.raises(ValueError, match="no kernel"):
            sgd([a], [other], [a.clone()], 0.0, 0.9, 0.1)


@built
@pytest.mark.parametrize("more", ["", "iter_size: 2", "clip_gradients: 0.01", "momentum: 0 weight_decay: 0"])
def test_an_iteration_is_the_plain_one(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    kernel = native.sgd
    monkeypatch.setattr("imae.net.kernels.sgd", lambda *values: (calls.append(1), kernel(*values)))
    found = []
    for fast in (True, False):
        own = solver(more, fast)
        own.step(2)
        found.append(state(own))
        assert bool(calls) == fast
        calls.clear()
    for got, want in zip(*found, strict=True):
        assert (got - want).abs().max() <= tolerance("fast way", "float64").atol * want.abs().max()


@built
@pytest.mark.parametrize(
    "more", ['regularization_type: "L1"', 'type: "Nesterov"', 'type: "AdaGrad" momentum: 0']
)
def test_other_rules_have_no_kernel(more: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        pytest.fail("the kernel was called")

    monkeypatch.setattr("imae.net.kernels.sgd", refuse)
    solver(more).step(1)


def test_a_backward_pass_stores_its_gradients_where_nobody_looks_at_them() -> None:
    own = solver()
    own.step(1)
    changes = [diff.clone() for diff in own.update.diffs()]
    for change, history in zip(changes, own.history, strict=True):
        assert torch.equal(change, history)  # Caffe: the diff is what was subtracted
    own.update.clear_diffs()
    assert all(parameter.grad is None for parameter in own.net.learnable)
    assert all(not diff.any() for diff in own.update.diffs())


def test_an_array_that_a_script_holds_shows_each_iterations_diff() -> None:
    own = solver()
    own.step(1)
    parameter = own.net.learnable[0]
    held = ParameterMemory.of_parameter(parameter).diff.array()
    for _ in range(2):
        own.step(1)
        assert parameter.grad is not None
        assert torch.equal(torch.from_numpy(held), parameter.grad) and held.any()
    own.update.clear_diffs()
    assert not held.any()


TWO_PARAMETERS = """
base_lr: 0.5 lr_policy: "fixed" momentum: 0 weight_decay: 0 snapshot_after_train: false
net_param {
  layer { name: "a" type: "Parameter" top: "a" parameter_param { shape { dim: 2 dim: 3 } } }
  layer { name: "b" type: "Parameter" top: "b" parameter_param { shape { dim: 2 dim: 3 } } }
  layer { name: "sum" type: "Eltwise" bottom: "a" bottom: "b" top: "sum" }
  layer { name: "triple" type: "Power" bottom: "sum" top: "triple" power_param { scale: 3 } }
  layer { name: "loss" type: "Reduction" bottom: "triple" top: "loss" loss_weight: 1 }
}
"""


@pytest.mark.parametrize("fast", [True, False])
@pytest.mark.parametrize("more", ["", "iter_size: 2"])
def test_blobs_with_the_same_gradient_have_each_its_own(more: str, fast: bool) -> None:
    """Autograd stores one memory for both, and an update changes it in-place, as a second pass does."""
    param = parse_solver(TWO_PARAMETERS + more)
    own = Solver(param, Options(fast=fast))
    own.step(2)
    assert len(own.net.learnable) == 2
    assert all(torch.equal(p.detach(), torch.full((2, 3), -3.0)) for p in own.net.learnable)


def test_a_gradient_is_kept_while_a_script_has_its_array() -> None:
    its = solver()
    its.step(1)
    parameter = its.net.learnable[0]
    array = ParameterMemory.of_parameter(parameter).diff.array()
    its.update.clear_diffs()
    assert parameter.grad is not None and not array.any() and not parameter.grad.any()
    del array
    its.update.clear_diffs()
    assert parameter.grad is None
